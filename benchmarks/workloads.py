"""The benchmarks' shared workloads: models, windows and the engine's own round over them.

A client has 256 windows: 10 observed and 25 future positions at 5 Hz, unit vectors that walk at random. Its
epoch is 8 steps of SGD over batches of 32 at rate 0.05 on the chord loss; in a round all clients start from
the global model, and their results are averaged by windows (FedAvg).

    vp-gru          the shipped GRU of width 64 that reads and feeds back positions
    vp-mlp          30-256-256-75: positions in, displacements of the last position out, scaled to unit length
    vp-transformer  the shipped transformer at its default size
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fedjax_vp import geometry
from fedjax_vp.data.splits import Split
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.federated import federation, round
from fedjax_vp.federated.settings import Engine, Everyone, Level, Local, Method
from fedjax_vp.federated.simulator import Simulator, simulator
from fedjax_vp.models import GRU, Chord, Features, Predictor, Transformer, WindowShape
from fedjax_vp.models.base import learned, small_head_init

WINDOWS, BATCH, RATE = 256, 32, 0.05
SHAPE = WindowShape(history=10, horizon=25, rate_hz=5.0, duration_s=60.0)


class _PositionsNet(nn.Module):
    """Dense layers from all observed positions to displacements of the last one."""

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, past: jax.Array, context: jax.Array) -> jax.Array:
        del context
        x = past.reshape(past.shape[0], -1)
        for index, width in enumerate(self.hidden):
            x = jax.nn.relu(nn.Dense(width, name=f"dense_{index}")(x))
        x = nn.Dense(3 * SHAPE.horizon, kernel_init=small_head_init(), name="head")(x)
        return geometry.normalize(past[:, -1:] + x.reshape(-1, SHAPE.horizon, 3))


@dataclass(frozen=True)
class PositionsMLP:
    """The MLP of the peers' comparison; the shipped one reads steps and predicts in the tangent plane."""

    kind: Literal["positions_mlp"] = "positions_mlp"
    hidden: tuple[int, ...] = (256, 256)
    features: Features = field(default_factory=Features)

    def build(self, shape: WindowShape) -> Predictor:
        """Predictor of the given window shape."""
        assert shape == SHAPE, "the sizes are those of the workload"
        return learned(_PositionsNet(self.hidden), self.features, shape)


MODELS = {"vp-gru": GRU(inputs="positions"), "vp-mlp": PositionsMLP(), "vp-transformer": Transformer()}


class Workload(NamedTuple):
    """One workload on so many clients, ready to run."""

    name: str
    simulator: Simulator
    hyper: round.Hyper

    @property
    def clients(self) -> int:
        """Clients of a round."""
        return self.simulator.federation.num_clients


def traces(clients: int, seed: int = 0) -> TraceSet:
    """Random walks of the yaw and the elevation, one session a client, just long enough for its windows."""
    rng = np.random.default_rng(seed)
    time = SHAPE.history + WINDOWS - 1 + SHAPE.horizon
    walk = np.cumsum(rng.normal(0, 0.1, (clients, time, 2)), axis=1, dtype=np.float32)
    yaw, elevation = walk[..., 0], 0.5 * np.sin(walk[..., 1])
    level = np.cos(elevation)
    direction = np.stack([level * np.cos(yaw), level * np.sin(yaw), np.sin(elevation)], axis=-1)
    return TraceSet(
        name="random walks",
        rate_hz=SHAPE.rate_hz,
        direction=direction.astype(np.float32),
        length=np.full(clients, time, np.int32),
        t0=np.zeros(clients),
        valid=np.ones((clients, time), bool),
        user=np.arange(clients, dtype=np.int32),
        video=np.zeros(clients, np.int32),
        user_ids=tuple(f"u{i}" for i in range(clients)),
        video_ids=("v0",),
        labels={},
        channels={},
        counts={},
    )


def build(name: str, clients: int, engine: Engine | None = None, steps: int | None = None) -> Workload:
    """A workload of `MODELS` on so many clients; `steps` of free draws in place of the epoch where given."""
    walks = traces(clients)
    now = np.arange(walks.direction.shape[1])[None, :]
    fits = (now >= SHAPE.history - 1) & (now + SHAPE.horizon < walks.length[:, None])
    none = np.zeros_like(fits)
    # Training does not look at the test windows; the federation wants some.
    fed = federation.build(walks, Split(train=fits, valid=none, adapt=none, test=fits), SHAPE)
    work = {"epochs": 1.0} if steps is None else {"steps": steps}
    method = Method(
        levels=(Level("global"),),
        local=Local(loss=Chord(), lr=RATE, batch=BATCH, **work),
        participation=Everyone(),
    )
    sim = simulator(fed, MODELS[name].build(SHAPE), method, engine or Engine())
    return Workload(name, sim, round.hyper(method, 1))


def initial(workload: Workload) -> round.State:
    """The state before the first round."""
    return round.init(workload.simulator, jnp.int32(0))


class Product(NamedTuple):
    """Matrix products [m, k] x [k, n] of the forward pass of one batch, all of one size."""

    count: int
    m: int
    k: int
    n: int


def products(name: str) -> list[Product]:
    """The matrix products of a batch's forward pass, step by step where the model works in steps."""
    history, horizon = SHAPE.history, SHAPE.horizon
    if name == "vp-gru":
        width, steps = 64, history + horizon
        cell = [Product(steps, BATCH, 3, 3 * width), Product(steps, BATCH, width, 3 * width)]
        return [*cell, Product(horizon, BATCH, width, 3)]
    if name == "vp-mlp":
        sizes = (3 * history, 256, 256, 3 * horizon)
        return [Product(1, BATCH, a, b) for a, b in itertools.pairwise(sizes)]
    model, tokens = Transformer(), BATCH * history
    width, heads, layers = model.width, BATCH * model.num_heads, model.num_layers
    dense = [Product(layers, tokens, a * width, b * width) for a, b in ((1, 3), (1, 1), (1, 2), (2, 1))]
    one = width // model.num_heads
    attention = [Product(layers * heads, history, a, b) for a, b in ((one, history), (history, one))]
    ends = [(tokens, 6, width), (BATCH, 2, width), (BATCH, width, 2 * horizon)]
    return [*dense, *attention, *(Product(1, *sizes) for sizes in ends)]


def matmul_flops(name: str) -> int:
    """Operations of the matrix products of one client's round: forward, and twice that backward.

    A product of [m, k] and [k, n] counts 2 m k n; elementwise work is not counted.
    """
    return WINDOWS // BATCH * 3 * sum(2 * p.count * p.m * p.k * p.n for p in products(name))


def matmul_bytes(name: str) -> int:
    """Bytes that these products read and write once each, as float32: 4 (m k + k n + m n) a product.

    The two products of the backward pass have matrices of the same three sizes. What a cache or a fusion
    saves counts as moved, and elementwise work does not.
    """
    entries = sum(p.count * (p.m * p.k + p.k * p.n + p.m * p.n) for p in products(name))
    return WINDOWS // BATCH * 3 * 4 * entries
