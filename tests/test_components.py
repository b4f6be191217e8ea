"""FedEM as gradient steps of a mixture's likelihood: responsibilities, shares and predictions by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import probe
import pytest
import toy

from fedjax_vp.errors import UserError
from fedjax_vp.federated.components import LOGITS, Components, mixture
from fedjax_vp.models import MLP
from fedjax_vp.models.base import Inputs, Predictor

SETTINGS = Components(count=3, width=0.5)
RNG = np.random.default_rng(0)
WINDOWS = 6


def inputs() -> Inputs:
    past = RNG.standard_normal((WINDOWS, toy.SHAPE.history, 3)).astype(np.float32)
    return Inputs(jnp.asarray(past), jnp.arange(WINDOWS, dtype=jnp.float32))


TARGET = jnp.asarray(RNG.standard_normal((WINDOWS, toy.SHAPE.horizon, 3)), jnp.float32)
LOSS = probe.Squared().build()


def model() -> tuple[Predictor, dict[str, jax.Array]]:
    mixed = mixture(SETTINGS, probe.predictor())
    params = mixed.init(jax.random.key(1)) | {LOGITS: jnp.asarray([0.3, -0.2, 0.8])}
    return mixed, params


def losses(params: dict[str, jax.Array], view: Inputs) -> np.ndarray:
    """Of each component on each window, in plain NumPy: [component, window]."""
    found = []
    for k in range(SETTINGS.count):
        step = np.asarray(params["body"][k]) + np.asarray(params["head/bias"][k])[None]
        predicted = np.asarray(view.past)[:, -1:] + step
        found.append(0.5 * np.sum((predicted - np.asarray(TARGET)) ** 2, axis=-1).mean(axis=1))
    return np.stack(found)


def test_a_gradient_step_is_the_m_step_with_fedems_responsibilities() -> None:
    mixed, params = model()
    view = inputs()
    found = jax.grad(lambda p: jnp.sum(mixed.loss(p, view, TARGET, LOSS)))(params)
    share = np.exp(params[LOGITS]) / np.exp(params[LOGITS]).sum()
    odds = share[:, None] * np.exp(-losses(params, view) / SETTINGS.width)
    q = odds / odds.sum(axis=0)
    error = np.asarray(view.past)[:, -1:] + np.asarray(params["body"])[:, None, None]
    error = error + np.asarray(params["head/bias"])[:, None] - np.asarray(TARGET)  # [component, window, h, 3]
    np.testing.assert_allclose(
        found["body"], (q[..., None] * error.mean(axis=2)).sum(axis=1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        found[LOGITS], SETTINGS.width * (WINDOWS * share - q.sum(axis=1)), rtol=1e-3, atol=1e-5
    )


@pytest.mark.slow
def test_shares_come_to_rest_at_the_mean_of_the_responsibilities() -> None:
    mixed, params = model()
    view = inputs()
    for _ in range(300):
        slope = jax.grad(lambda p: jnp.mean(mixed.loss(p, view, TARGET, LOSS)))(params)
        params = params | {LOGITS: params[LOGITS] - 4.0 * slope[LOGITS]}
    share = np.asarray(jax.nn.softmax(params[LOGITS]))
    odds = share[:, None] * np.exp(-losses(params, view) / SETTINGS.width)
    np.testing.assert_allclose(share, (odds / odds.sum(axis=0)).mean(axis=1), atol=2e-3)


def test_predictions_are_mixed_and_parameters_are_not() -> None:
    mixed, params = model()
    view, single = inputs(), probe.predictor()
    share = np.asarray(jax.nn.softmax(params[LOGITS]))
    each = [single.apply({n: x[k] for n, x in params.items() if n != LOGITS}, view) for k in range(3)]
    total = sum(s * np.asarray(p) for s, p in zip(share, each, strict=True))
    wanted = total / np.linalg.norm(total, axis=-1, keepdims=True)
    np.testing.assert_allclose(mixed.apply(params, view), wanted, atol=1e-5)


def test_one_component_is_the_network_and_a_table_has_none() -> None:
    plain = probe.predictor()
    assert mixture(Components(), plain) is plain
    with pytest.raises(UserError, match="leave out the table and crowd"):
        mixture(SETTINGS, probe.predictor(table=True))
    with pytest.raises(ValueError, match="give at least 1"):
        Components(count=0)


def test_networks_with_a_view_of_their_own_predict_as_each_alone() -> None:
    """What is seen of the windows is shared; the networks' outputs become directions one by one."""
    network = MLP(hidden=(8,)).build(toy.SHAPE)
    mixed = mixture(SETTINGS, network)
    params = mixed.init(jax.random.key(2))
    params = {n: x + 0.3 * jax.random.normal(jax.random.key(3), x.shape) for n, x in params.items()}
    windows, share = inputs(), np.asarray(jax.nn.softmax(params[LOGITS]))
    alone = [{n: x[k] for n, x in params.items() if n != LOGITS} for k in range(SETTINGS.count)]
    each = np.stack([network.apply(one, windows) for one in alone])
    total = np.einsum("c,cwhx->whx", share, each)
    wanted = total / np.linalg.norm(total, axis=-1, keepdims=True)
    np.testing.assert_allclose(mixed.apply(params, windows), wanted, atol=1e-5)
    loss = np.stack([network.loss(one, windows, TARGET, LOSS) for one in alone])
    wanted = -SETTINGS.width * np.log(share @ np.exp(-loss / SETTINGS.width))
    np.testing.assert_allclose(mixed.loss(params, windows, TARGET, LOSS), wanted, rtol=1e-4, atol=1e-6)
