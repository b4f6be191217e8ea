"""What a hierarchy costs at each depth: bytes of models stored and sent, and the time of one prediction.

Depth d keeps the first d levels. Bytes are those of model rows: a server also keeps optimizer states, which
`state_bytes` of the summary counts. Sizes follow from shapes alone; the time is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fedjax_vp.federated import mixing
from fedjax_vp.federated.simulator import Simulator
from fedjax_vp.federated.sums import Shapes
from fedjax_vp.models.base import Inputs, Params, WindowShape

REPEATS = 200


class Cost(NamedTuple):
    """Lists over depths."""

    level: list[str]  # the finest level kept
    groups: list[int]  # rows of that level
    server_bytes: list[int]  # rows of all levels kept, less leaves that never leave the headset
    headset_bytes: list[int]  # what one session predicts with
    sent_bytes: list[int]  # one way, by a client with one session in one round
    latency_s: list[float]  # median time of predicting one window on the CPU


def by_depth(sim: Simulator) -> Cost:
    """Costs of a method's hierarchy at each depth."""
    layout = sim.layout
    params = jax.eval_shape(sim.task.predictor.init, jax.random.key(0))
    size = {n: int(p.size) * p.dtype.itemsize for n, p in params.items()}
    public = {n: 0 if n in layout.private else size[n] for n in size}
    mixed = sim.method.mixing.kind != "none"
    server = headset = 0
    found = Cost([], [], [], [], [], [])
    for depth, names in enumerate(layout.owned, start=1):
        composed = set().union(*layout.owned[:depth])
        server += layout.num_groups[depth - 1] * sum(public[n] for n in names)
        headset += sum(size[n] for n in names)  # prefixes that are mixed are kept apart
        found.level.append(layout.levels[depth - 1].name)
        found.groups.append(layout.num_groups[depth - 1])
        found.server_bytes.append(server)
        found.headset_bytes.append(headset if mixed else sum(size[n] for n in composed))
        found.sent_bytes.append(sum(public[n] for n in composed))
        found.latency_s.append(_latency_s(sim, params, depth if mixed else 1))
    return found


def _latency_s(sim: Simulator, params: Shapes, num_models: int) -> float:
    """Median time of one window's prediction, from inputs on the host to directions on the host."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        predict = jax.jit(_predictor(sim, num_models))
        models = [{n: jnp.zeros(p.shape, p.dtype) for n, p in params.items()}] * num_models
        inputs = _one_window(sim.federation.shape)
        taken = []
        for _ in range(REPEATS + 1):  # the first compiles
            begun = time.perf_counter()
            np.asarray(predict(models, inputs))
            taken.append(time.perf_counter() - begun)
    return float(np.median(taken[1:]))


def _predictor(
    sim: Simulator, num_models: int
) -> Callable[[list[Params], Inputs], Float[Array, "window horizon 3"]]:
    weights = jnp.full((num_models, 1, sim.federation.shape.horizon), 1 / num_models)

    def predict(models: list[Params], inputs: Inputs) -> Float[Array, "window horizon 3"]:
        predicted = [sim.task.predictor.apply(model, inputs) for model in models]
        return predicted[0] if len(predicted) == 1 else mixing.mix(weights, jnp.stack(predicted))

    return predict


def _one_window(shape: WindowShape) -> Inputs:
    """A viewer who turns slowly to the left."""
    yaw = np.linspace(0.0, 0.1, shape.history)
    past = np.stack([np.cos(yaw), np.sin(yaw), np.zeros_like(yaw)], axis=-1)[None]
    return Inputs(jnp.asarray(past, jnp.float32), jnp.zeros(1, jnp.float32))
