"""Components: several networks of one kind that predict together, each in the share that fits a session.

FedEM (Marfoq, Neglia, Bellet, Kameni, Vidal, "Federated Multi-Task Learning under a Mixture of
Distributions", NeurIPS 2021). With pi = softmax(`components/logits`), which a level of its own may keep by
session, and loss_m the loss of component m,

    p(window)     = normalize( sum_m pi_m p_m(window) )                                            (1)
    q_m(window)   = softmax_m( log pi_m - loss_m(window) / width )                                 (2)
    F(window)     = -width log sum_m pi_m exp( -loss_m(window) / width )                           (3)
    dF / dtheta_m = q_m dloss_m / dtheta_m,      dF / dlogit_m = width (pi_m - q_m)                (4)

so that a gradient step of (3) is FedEM's M-step with the responsibilities (2) of the present parameters, and
the shares come to rest where pi is the mean of q. The paper takes the responsibilities once a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_vp.errors import UserError
from fedjax_vp.federated.checks import require
from fedjax_vp.models.base import Params, Predictor, over_horizon
from fedjax_vp.models.losses import LossFn

LOGITS = "components/logits"


@dataclass(frozen=True)
class Components:
    """How many networks predict together (1: no mixture), and the width of (2) in units of the loss."""

    count: int = 1
    width: float = 0.1

    def __post_init__(self) -> None:
        require(self.count >= 1, f"components.count is {self.count}: give at least 1")
        require(self.width > 0, f"components.width is {self.width}: give more than 0, in units of the loss")


class Output(NamedTuple):
    """What a mixture's networks say of a batch of windows."""

    each: Any  # [window, component, ...]
    logits: Float[Array, "window component"]


def mixture(settings: Components, predictor: Predictor) -> Predictor:
    """The predictor of (1), whose leaves have a leading axis of components; the same where there is one.

    Raises:
        UserError: the network has leaves by video time, whose first axis is time.
    """
    if settings.count == 1:
        return predictor
    if any(name.startswith("video_") for name in jax.eval_shape(predictor.init, jax.random.key(0))):
        raise UserError("components: leaves by video time have one; leave out the table and crowd")

    def init(key: Array) -> Params:
        rows = jax.vmap(predictor.init)(jax.random.split(key, settings.count))  # over components
        return rows | {LOGITS: jnp.zeros(settings.count)}

    def output(params: Params, view: Any) -> Output:
        networks = {name: leaf for name, leaf in params.items() if name != LOGITS}
        each = jax.lax.map(lambda network: predictor.output(network, view), networks)
        each = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), each)
        windows = jax.tree.leaves(each)[0].shape[0]
        return Output(each, jnp.broadcast_to(params[LOGITS], (windows, settings.count)))

    def each(output: Output, view: Any) -> Float[Array, "window component horizon 3"]:
        return jax.vmap(predictor.directions, (1, None), 1)(output.each, view)  # over components

    def directions(output: Output, view: Any) -> Float[Array, "window horizon 3"]:
        total = jnp.einsum("wc,wchx->whx", jax.nn.softmax(output.logits), each(output, view))
        return total / jnp.maximum(jnp.linalg.norm(total, axis=-1, keepdims=True), 1e-9)

    def objective(
        output: Output,
        view: Any,
        target: Float[Array, "window horizon 3"],
        loss_fn: LossFn,
        seen: Float[Array, "window horizon"] | None,
    ) -> Float[Array, "window"]:
        found = jax.vmap(loss_fn, (1, None))(each(output, view), target)  # over components
        loss = jax.vmap(over_horizon, (0, None), 1)(found, seen)  # over components
        log_share = jax.nn.log_softmax(output.logits)
        return -settings.width * jax.nn.logsumexp(log_share - loss / settings.width, axis=1)

    return Predictor(init, output, predictor.see, directions, objective)
