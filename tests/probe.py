"""A predictor whose optimum is a mean, so that the engine's every step can be worked out by hand.

    prediction[w, k] = last[w] + body + head[k] + table[second of w]        loss = |prediction - true|^2 / 2

It compiles in a fraction of a network's time. `oracle.gradient` is its gradient in plain NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import toy

from fedjax_vp.data.traces import TraceSet
from fedjax_vp.federated.federation import Federation, build
from fedjax_vp.federated.settings import Engine, Local, Method
from fedjax_vp.federated.simulator import Simulator, simulator
from fedjax_vp.models.base import Inputs, Params, Predictor
from fedjax_vp.models.losses import Chord, LossFn

BINS = 8
ONE = Engine(devices=1)


@dataclass(frozen=True)
class Squared(Chord):
    """Half the squared distance: not a setting of the package, but all arithmetic."""

    def build(self) -> LossFn:
        return lambda predicted, true: 0.5 * jnp.sum((predicted - true) ** 2, axis=-1)


def predictor(table: bool = False, crowd: bool = False) -> Predictor:
    """The mean predictor, with a table by the second and a crowd that it does not read, if asked."""

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key)
        params = {
            "body": jax.random.normal(keys[0], (3,)),
            "head/bias": jax.random.normal(keys[1], (toy.SHAPE.horizon, 3)),
        }
        if table:
            params["video_table"] = jnp.zeros((BINS, 3))
        if crowd:
            params["video_crowd"] = jnp.zeros((2 * BINS, 4))
        return params

    def apply(params: Params, inputs: Inputs) -> jax.Array:
        out = inputs.past[:, -1:] + params["body"][None, None] + params["head/bias"][None]
        if "video_table" in params:
            out = out + params["video_table"][jnp.floor(inputs.time + 1e-4).astype(jnp.int32)][:, None]
        return out

    return Predictor(init, apply)


def local(**kwargs: object) -> Local:
    """Local work with the squared loss; whole-batch steps unless told."""
    return Local(**({"loss": Squared(), "batch": 0, "steps": 1, "lr": 0.5} | kwargs))


def sim(method: Method, engine: Engine = ONE, table: bool = False, **kwargs: object) -> Simulator:
    """A simulator of a method on a toy federation."""
    fed = toy.federation(client=method.client, **kwargs)
    return simulator(fed, predictor(table), method, engine)


def relabel(toy_traces: TraceSet, client: str = "session", **labels: np.ndarray) -> Federation:
    """A federation of traces with further labels of the sessions."""
    traces = replace(toy_traces, labels=toy_traces.labels | labels)
    return build(traces, toy.split(traces), toy.SHAPE, client)
