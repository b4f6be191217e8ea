"""Server optimizers, one per level: their settings, and optax transformations of the pooled update.

FedAdagrad, FedYogi and FedAdam follow Reddi et al., "Adaptive Federated Optimization" (ICLR 2021), which
optax's own are not: no bias correction, second moment started at tau^2, tau added to the root:

    m <- beta1 m + (1 - beta1) Delta
    v <- v + Delta^2                                       (Adagrad)
    v <- v - (1 - beta2) Delta^2 sign(v - Delta^2)         (Yogi)
    v <- beta2 v + (1 - beta2) Delta^2                     (Adam)
    w <- w + lr m / (sqrt(v) + tau)

Here Delta points the way to go (an update, not a gradient). The learning rate is applied by the caller, who
holds it as a traced value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from fedjax_vp.errors import UserError
from fedjax_vp.federated.checks import require, require_rate, require_share


@dataclass(frozen=True)
class Schedule:
    """Factor on a learning rate over the run: linear warm-up, then constant, linear or cosine to `final`."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = 0.0  # share of the rounds
    final: float = 0.0  # factor in the last round (linear, cosine)

    def __post_init__(self) -> None:
        require(0 <= self.warmup < 1, f"schedule.warmup is {self.warmup}: give a share of the run in [0, 1)")
        require(self.final >= 0, f"schedule.final is {self.final}: give a factor of at least 0")


@dataclass(frozen=True)
class Average:
    """Plain averaging with a server learning rate and heavy-ball momentum (FedAvg, FedAvgM)."""

    kind: Literal["average"] = "average"
    lr: float = 1.0
    momentum: float = 0.0
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        require_rate(self.lr, "levels: server")
        require_share(self.momentum, "levels: server.momentum")


@dataclass(frozen=True)
class Adaptive:
    """FedAdagrad, FedYogi, FedAdam (Reddi et al. 2021): no bias correction, `tau` added to the root."""

    kind: Literal["adagrad", "yogi", "adam"] = "adam"
    lr: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        require_rate(self.lr, "levels: server")
        require_share(self.beta1, "levels: server.beta1")
        require_share(self.beta2, "levels: server.beta2")
        require(
            math.isfinite(self.tau) and self.tau > 0,
            f"levels: server.tau is {self.tau}: give a number above 0",
        )


@dataclass(frozen=True)
class Optax:
    """Any optax optimiser by name, stepped once a round with minus the pooled update as its gradient."""

    kind: Literal["optax"] = "optax"
    name: str = "sgd"
    lr: float = 1.0
    options: dict[str, float] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        require_rate(self.lr, "levels: server")


ServerOptimizer = Average | Adaptive | Optax


class AdaptiveState(NamedTuple):
    """First and second moment, each shaped like the parameters."""

    m: Any
    v: Any


def adaptive(kind: str, beta1: float, beta2: float, tau: float) -> optax.GradientTransformation:
    """FedAdagrad, FedYogi or FedAdam without its learning rate."""
    beta1 = 0.0 if kind == "adagrad" else beta1
    second = {
        "adagrad": lambda v, d: v + d**2,
        "yogi": lambda v, d: v - (1 - beta2) * d**2 * jnp.sign(v - d**2),
        "adam": lambda v, d: beta2 * v + (1 - beta2) * d**2,
    }[kind]

    def init_fn(params: Any) -> AdaptiveState:
        return AdaptiveState(
            jax.tree.map(jnp.zeros_like, params), jax.tree.map(lambda p: jnp.full_like(p, tau**2), params)
        )

    def update_fn(updates: Any, state: Any, params: Any = None) -> tuple[Any, AdaptiveState]:
        del params
        m = jax.tree.map(lambda m, d: beta1 * m + (1 - beta1) * d, state.m, updates)
        v = jax.tree.map(second, state.v, updates)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + tau), m, v), AdaptiveState(m, v)

    return optax.GradientTransformation(init_fn, update_fn)


def transformation(settings: ServerOptimizer) -> optax.GradientTransformation:
    """The server step of a level without its learning rate; maps pooled updates to updates.

    Raises:
        UserError: optax has no optimizer of that name, or it does not take these options.
    """
    if isinstance(settings, Average):
        return optax.trace(settings.momentum) if settings.momentum else optax.identity()
    if isinstance(settings, Adaptive):
        return adaptive(settings.kind, settings.beta1, settings.beta2, settings.tau)
    maker = getattr(optax, settings.name, None)
    if maker is None:
        raise UserError(f"levels: server.name: optax has no optimizer {settings.name!r}")
    try:
        theirs = maker(learning_rate=1.0, **settings.options)
    except TypeError as error:
        raise UserError(
            f"levels: server: optax's {settings.name} does not take these options: {error}"
        ) from error
    # Optax descends along gradients, so the pooled update enters with its sign turned.
    return optax.chain(optax.scale(-1.0), theirs)


def factor(schedule: Schedule, round_index: ArrayLike, num_rounds: ArrayLike) -> Float[Array, ""]:
    """Factor on a learning rate in round `round_index` (from 0) of `num_rounds`; `final` in the last."""
    index, rounds = jnp.asarray(round_index, jnp.float32), jnp.asarray(num_rounds, jnp.float32)
    progress = index / jnp.maximum(rounds - 1, 1.0)
    done = jnp.clip((progress - schedule.warmup) / (1 - schedule.warmup), 0.0, 1.0)
    fall = {"constant": jnp.zeros(()), "linear": done, "cosine": (1 - jnp.cos(jnp.pi * done)) / 2}
    value = 1 - (1 - schedule.final) * fall[schedule.kind]
    if schedule.warmup:
        # The first round already moves: (round + 1) / warm-up rounds.
        value = jnp.minimum(value, (index + 1) / (jnp.maximum(rounds, 1.0) * schedule.warmup))
    return value
