"""Hierarchies over twelve sessions with random rows and reports, for the tests of pooling and shrinkage."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle

from fedjax_vp.federated import bundles, hierarchy, levels, pooling, sums
from fedjax_vp.federated.hierarchy import Layout
from fedjax_vp.federated.levels import LevelState
from fedjax_vp.federated.pooling import Hyper
from fedjax_vp.federated.settings import Level, Method
from fedjax_vp.federated.sums import Unit

SHAPES = {"body": (3,), "head/bias": (2, 3), "video_table": (4, 3)}
SESSIONS = 12
USER, VIDEO = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
LABELS = {
    "session": np.arange(SESSIONS),
    "user": USER,
    "video": VIDEO,
    "edge": USER // 2,
    "genre": np.array([0, 0, 1])[VIDEO],
    "habit": np.array([0, 1, 0, -1])[USER],  # the last user's habit is unknown
}


class Case(NamedTuple):
    """A hierarchy: its static facts, random rows, and one compiled round of pooling."""

    layout: Layout
    states: tuple[LevelState, ...]
    pool: Callable[..., tuple[LevelState, ...]]
    hyper: Hyper


def hyper_of(settings: tuple[Level, ...]) -> Hyper:
    """The traced numbers of some levels."""
    columns = [
        (level.server.lr, 1.0 if level.shrinkage == "auto" else level.shrinkage, level.progress)
        for level in settings
    ]
    return Hyper(*jnp.asarray(columns, jnp.float32).T)


def case(
    settings: tuple[Level, ...],
    labels: dict[str, np.ndarray] = LABELS,
    trains: np.ndarray | None = None,
    crossed: bool = False,
) -> Case:
    """Builds a hierarchy whose sessions all train unless told which do.

    `crossed` treats every pair of levels as crossed, which is always right.
    """
    rng = np.random.default_rng(0)
    client_of = np.arange(SESSIONS) if trains is None else np.where(trains, np.arange(SESSIONS), -1)
    groups = [hierarchy.grouping(labels, level.by) for level in settings]
    layout = hierarchy.layout(Method(levels=settings), groups, list(SHAPES), client_of)
    if crossed:
        layout = layout._replace(relation=dict.fromkeys(layout.relation, "crossed"))
    params = {n: jnp.zeros(shape) for n, shape in SHAPES.items()}
    states = tuple(
        s._replace(rows={n: jnp.asarray(rng.normal(size=r.shape), jnp.float32) for n, r in s.rows.items()})
        for s in levels.init(layout, groups, params)
    )

    @jax.jit
    def pool(states: Any, units: Any, hyper: Hyper, clock: Any, population: Any) -> tuple[LevelState, ...]:
        totals = sums.add(sums.zeros(layout, params), states, layout, units)
        return pooling.pool(layout, states, totals, population, hyper, clock)

    def call(
        states: Any, units: Any, hyper: Hyper, round_index: int = 0, population: float = 100.0
    ) -> tuple[LevelState, ...]:
        return pool(states, units, hyper, (jnp.int32(round_index), jnp.int32(10)), jnp.float32(population))

    return Case(layout, states, call, hyper_of(settings))


def bundle_of(one: Case, leaf: str) -> tuple[str, slice]:
    """Name of a leaf's bundle, and where its statistics lie there."""
    for name, bundle in bundles.bundled(one.layout, SHAPES).items():
        if leaf in bundle.shapes:
            sizes = [math.prod(bundles.stat_shape(n, shape)) for n, shape in bundle.shapes.items()]
            begin = sum(sizes[: list(bundle.shapes).index(leaf)])
            return name, slice(begin, begin + sizes[list(bundle.shapes).index(leaf)])
    raise KeyError(leaf)


def reports(seed: int = 0, away: tuple[int, ...] = ()) -> dict[str, Unit]:
    """Random updates of every session, in a random order; those of `away` have no weight."""
    rng = np.random.default_rng(seed)
    session = rng.permutation(SESSIONS).astype(np.int32)
    windows = rng.integers(1, 9, SESSIONS) * ~np.isin(session, away)
    units = {}
    for leaf, shape in SHAPES.items():
        delta = rng.normal(size=(SESSIONS, *shape))
        weight = windows.reshape(-1, *(1,) * len(shape)).astype(float)
        if leaf == "video_table":  # a client has seen some of the bins
            seen = rng.random((SESSIONS, shape[0], 1)) < 0.6
            weight, delta = weight * seen, delta * seen
        halves = 0.3 * rng.normal(size=delta.shape)
        arrays = (jnp.asarray(x, jnp.float32) for x in (delta, halves, weight))
        units[leaf] = Unit(*arrays, jnp.asarray(session))
    return units


def by_hand(
    one: Case,
    units: dict[str, Unit],
    population: float = 100.0,
    servers: dict[int, oracle.Server] | None = None,
) -> list[dict[str, np.ndarray]]:
    """The oracle's rows of every level after a round."""
    lr, shrinkage, progress = (np.asarray(x) for x in one.hyper)
    plain = [
        oracle.Level(
            rows={n: np.asarray(r) for n, r in state.rows.items()},
            code=np.where(np.asarray(state.members.share[:, 0]) > 0, state.members.group[:, 0], -1),
            shrinkage=float(shrinkage[i]),
            progress=float(progress[i]),
            lr=float(lr[i]),
            server=(servers or {}).get(i, oracle.plain),
            denominator=level.denominator,
            population=population,
            pools=level.period == 1,
        )
        for i, (level, state) in enumerate(zip(one.layout.levels, one.states, strict=True))
    ]
    rows: list[dict[str, np.ndarray]] = [{} for _ in plain]
    for leaf, unit in units.items():
        found = oracle.pool(plain, leaf, oracle.Units(unit.delta, unit.weight, np.asarray(unit.session)))
        for i, new in enumerate(found):
            if new is not None:
                rows[i][leaf] = new
    return rows


def assert_rows(
    states: tuple[LevelState, ...], rows: list[dict[str, np.ndarray]], atol: float = 2e-5
) -> None:
    """Rows of every level and leaf are what the oracle says."""
    for state, wanted in zip(states, rows, strict=True):
        assert set(state.rows) == set(wanted)
        for leaf, value in wanted.items():
            np.testing.assert_allclose(state.rows[leaf], value, atol=atol, rtol=2e-5, err_msg=leaf)
