"""Tiny federations with known structure, shared by the engine's tests."""

from __future__ import annotations

import numpy as np

from fedjax_vp.data.splits import Split
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.federated.federation import Federation, build
from fedjax_vp.federated.settings import Engine, Method
from fedjax_vp.federated.simulator import Simulator, simulator
from fedjax_vp.models.base import WindowShape
from fedjax_vp.models.features import Features
from fedjax_vp.models.mlp import MLP

SHAPE = WindowShape(history=4, horizon=3, rate_hz=5.0, duration_s=8.0)


def traces(users: int = 4, videos: int = 3, time: int = 40, seed: int = 0, ragged: bool = True) -> TraceSet:
    """Smooth random walks on the sphere; ragged lengths unless told."""
    rng = np.random.default_rng(seed)
    count = users * videos
    walk = np.cumsum(rng.normal(0, 0.1, (count, time, 2)), axis=1) + rng.normal(0, 0.5, (count, 1, 2))
    yaw, elevation = walk[..., 0], 0.3 * walk[..., 1]
    direction = np.stack(
        [np.cos(yaw) * np.cos(elevation), np.sin(yaw) * np.cos(elevation), np.sin(elevation)], axis=-1
    )
    length = rng.integers(time // 2, time + 1, count) if ragged else np.full(count, time)
    return TraceSet(
        name="toy",
        rate_hz=5.0,
        direction=direction.astype(np.float32),
        length=length.astype(np.int32),
        t0=np.zeros(count),
        valid=np.arange(time)[None, :] < length[:, None],
        user=np.repeat(np.arange(users), videos).astype(np.int32),
        video=np.tile(np.arange(videos), users).astype(np.int32),
        user_ids=tuple(f"u{i}" for i in range(users)),
        video_ids=tuple(f"v{i}" for i in range(videos)),
        labels={"edge": (np.repeat(np.arange(users), videos) % 2).astype(np.int32)},
        channels={},
        counts={},
    )


def split(toy: TraceSet, shape: WindowShape = SHAPE, empty: tuple[int, ...] = ()) -> Split:
    """Windows of the first two thirds train, the rest test; sessions in `empty` do not train."""
    index = np.arange(toy.direction.shape[1])[None, :]
    fits = (index >= shape.history - 1) & (index + shape.horizon < toy.length[:, None])
    cut = (2 * toy.length // 3)[:, None]
    train = fits & (index + shape.horizon < cut)
    train[list(empty)] = False
    none = np.zeros_like(train)
    return Split(train=train, valid=none, adapt=none, test=fits & (index - shape.history >= cut - 1))


def federation(client: str = "session", empty: tuple[int, ...] = (), **kwargs: int) -> Federation:
    """A federation of `traces` and `split`."""
    toy = traces(**kwargs)
    return build(toy, split(toy, empty=empty), SHAPE, client)


def predictor(table: int = 0):
    """A small MLP, with a video table if asked."""
    return MLP(hidden=(8,), features=Features(table=table, table_at_s=(0.2, 0.6))).build(SHAPE)


def sim(method: Method, engine: Engine | None = None, table: int = 0, **kwargs) -> Simulator:
    """A simulator of a method on a toy federation."""
    fed = federation(client=method.client, **kwargs)
    return simulator(fed, predictor(table), method, engine or Engine())
