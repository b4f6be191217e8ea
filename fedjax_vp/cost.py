"""What a hierarchy costs at each depth: bytes of models stored and sent, and the time of one prediction.

Depth d keeps the first d levels. Bytes are those of model rows: a server also keeps optimizer states, which
`state_bytes` of the summary counts. Sizes follow from shapes alone; the time is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fedjax_vp.federated import mixing
from fedjax_vp.federated.simulator import Simulator
from fedjax_vp.models.base import Inputs, Params, Predictor, WindowShape

REPEATS = 200


class Cost(NamedTuple):
    """Lists over depths, and over the methods trained beside (`mixing.experts`), one more at each step."""

    level: list[str]  # the finest level kept, or the method
    groups: list[int]  # rows of that level, of the method's finest one
    server_bytes: list[int]  # rows of all levels kept, less leaves that never leave the headset
    headset_bytes: list[int]  # what one session predicts with
    sent_bytes: list[int]  # one way, by a client with one session in one round
    latency_s: list[float]  # median time of predicting one window on the CPU


class _Depth(NamedTuple):
    """`Cost` of one depth, but for what must be measured."""

    level: str
    groups: int
    server_bytes: int
    headset_bytes: int
    sent_bytes: int
    models: int  # that predict


def by_depth(sim: Simulator) -> Cost:
    """Costs of a method's hierarchy at each depth, and then with each of its experts."""
    found, predictors, shape = [], [], sim.federation.shape
    for depth in _depths(sim):
        found.append(depth)
        predictors.append([sim.task.predictor] * depth.models)
    for name, expert in zip(sim.method.mixing.experts, sim.experts, strict=True):
        *_, whole = _depths(expert)
        sizes = [a + b for a, b in zip(found[-1][2:], whole[2:], strict=True)]
        found.append(_Depth(name, whole.groups, *sizes))
        predictors.append([*predictors[-1], expert.task.predictor])
    latency_s = [_latency_s(some, shape) for some in predictors]
    return Cost(
        [one.level for one in found],
        [one.groups for one in found],
        [one.server_bytes for one in found],
        [one.headset_bytes for one in found],
        [one.sent_bytes for one in found],
        latency_s,
    )


def _depths(sim: Simulator) -> Iterator[_Depth]:
    """Sizes of a hierarchy at each depth."""
    layout = sim.layout
    params = jax.eval_shape(sim.task.predictor.init, jax.random.key(0))
    size = {n: int(p.size) * p.dtype.itemsize for n, p in params.items()}
    public = {n: 0 if n in layout.private else size[n] for n in size}
    mixed = sim.method.mixing.kind != "none"
    server = headset = 0
    for depth, names in enumerate(layout.owned, start=1):
        composed = set().union(*layout.owned[:depth])
        server += layout.num_groups[depth - 1] * sum(public[n] for n in names)
        headset += sum(size[n] for n in names)  # prefixes that are mixed are kept apart
        yield _Depth(
            layout.levels[depth - 1].name,
            layout.num_groups[depth - 1],
            server,
            headset if mixed else sum(size[n] for n in composed),
            sum(public[n] for n in composed),
            depth if mixed else 1,
        )


def _latency_s(predictors: Sequence[Predictor], shape: WindowShape) -> float:
    """Median time of one window's prediction, from inputs on the host to directions on the host."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        predict = jax.jit(_predictor(predictors, shape))
        shapes = [jax.eval_shape(one.init, jax.random.key(0)) for one in predictors]
        models = [{n: jnp.zeros(p.shape, p.dtype) for n, p in params.items()} for params in shapes]
        inputs = _one_window(shape)
        taken = []
        for _ in range(REPEATS + 1):  # the first compiles
            begun = time.perf_counter()
            np.asarray(predict(models, inputs))
            taken.append(time.perf_counter() - begun)
    return float(np.median(taken[1:]))


def _predictor(
    predictors: Sequence[Predictor], shape: WindowShape
) -> Callable[[list[Params], Inputs], Float[Array, "window horizon 3"]]:
    weights = jnp.full((len(predictors), 1, shape.horizon), 1 / len(predictors))

    def predict(models: list[Params], inputs: Inputs) -> Float[Array, "window horizon 3"]:
        predicted = [one.apply(model, inputs) for one, model in zip(predictors, models, strict=True)]
        return predicted[0] if len(predicted) == 1 else mixing.mix(weights, jnp.stack(predicted))

    return predict


def _one_window(shape: WindowShape) -> Inputs:
    """A viewer who turns slowly to the left."""
    yaw = np.linspace(0.0, 0.1, shape.history)
    past = np.stack([np.cos(yaw), np.sin(yaw), np.zeros_like(yaw)], axis=-1)[None]
    return Inputs(jnp.asarray(past, jnp.float32), jnp.zeros(1, jnp.float32))
