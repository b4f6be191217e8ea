"""Probe federations whose sessions fall into groups, and compiled rounds on them.

Sample t of a session of group g lies at BASE + t * VELOCITY[g] (not a direction; angles are not judged here).
What the probe has to learn of it is a mean, VELOCITY[g] times k + 1 at step k, the same in all windows: the
updates of the two groups end up with cosine -1, but for noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import probe
import toy
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_vp.federated import regrouping
from fedjax_vp.federated import round as rounds
from fedjax_vp.federated.federation import Arrays, Federation, Windows, build
from fedjax_vp.federated.grouping.settings import Grouping
from fedjax_vp.federated.round import RoundInfo, State
from fedjax_vp.federated.settings import Engine, Everyone, Level, Method
from fedjax_vp.federated.simulator import Simulator, simulator

BASE = np.array([1.0, 0.0, 0.0])
VELOCITY = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
GROUP = np.array([0, 1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1])  # of toy's 12 sessions: users 0-3 by videos 0-2
SESSIONS = len(GROUP)


def traces(
    group: np.ndarray = GROUP, noise: float = 0.0, velocity: np.ndarray = VELOCITY, **labels: np.ndarray
):
    """toy's traces, on lines."""
    plain = toy.traces(ragged=False)
    time = np.arange(plain.direction.shape[1])[None, :, None]
    random = np.random.default_rng(1).normal(0, noise, plain.direction.shape)
    line = (BASE + time * velocity[group][:, None] + random).astype(np.float32)
    return replace(plain, direction=line, labels=plain.labels | {"planted": group.astype(np.int32)} | labels)


def federation(empty: tuple[int, ...] = (), early: tuple[int, ...] = (), **kwargs: Any) -> Federation:
    """Sessions in `empty` do not train; those in `early` have the windows to adapt that others train on."""
    lines = traces(**kwargs)
    whole, split = toy.split(lines), toy.split(lines, empty=empty)
    adapt = np.zeros_like(split.adapt)
    adapt[list(early)] = whole.train[list(early)]
    return build(lines, split._replace(adapt=adapt), toy.SHAPE)


def starts(phase: Windows, session: int) -> np.ndarray:
    """`now` of a session's windows."""
    return np.asarray(phase.now[session])[: int(phase.count[session])]


def blinded(arrays: Arrays, *phases: Windows) -> Arrays:
    """The same without a sample that is in no window of some phases."""
    line = np.full_like(arrays.direction, np.nan)
    for phase in phases:
        for s in range(SESSIONS):
            for now in starts(phase, s):
                used = slice(now - toy.SHAPE.history + 1, now + toy.SHAPE.horizon + 1)
                line[s, used] = arrays.direction[s, used]
    assert np.isnan(line).any(axis=(1, 2)).all()
    return arrays._replace(direction=jnp.asarray(line))


def windows(fed: Federation, session: int, phase: str = "train") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Last sample, target and time of a session's windows, float64: what `oracle.gradient` takes."""
    now = starts(getattr(fed.arrays, phase), session)
    line = np.asarray(fed.arrays.direction[session], np.float64)
    target = np.stack([line[k + 1 : k + 1 + toy.SHAPE.horizon] for k in now])
    return line[now], target, now / toy.SHAPE.rate_hz


def losses(model: dict[str, np.ndarray], batch: tuple[np.ndarray, ...]) -> np.ndarray:
    """Mean over the horizon of half the squared distance, [window]."""
    last, target, _ = batch
    predicted = last[:, None] + model["body"] + model["head/bias"][None]
    return 0.5 * np.sum((predicted - target) ** 2, axis=-1).mean(axis=1)


def descend(model: dict[str, np.ndarray], batch: tuple, lr: float, steps: int) -> dict[str, np.ndarray]:
    """The change that full-batch gradient descent makes."""
    at = {n: np.asarray(p, np.float64) for n, p in model.items()}
    for _ in range(steps):
        slope = oracle.gradient(at, *batch)
        at = {n: p - lr * slope[n] for n, p in at.items()}
    return {n: at[n] - model[n] for n in model}


class Case(NamedTuple):
    """A method with its compiled round."""

    sim: Simulator
    round: Callable[[State, Arrays, Any], tuple[State, RoundInfo]]
    hyper: rounds.Hyper

    def start(self, seed: int = 0) -> State:
        """Laid out as a round returns it: one compilation serves all."""
        state = rounds.init(self.sim, jnp.int32(seed))
        return jax.device_put(state, NamedSharding(self.sim.mesh, PartitionSpec()))

    def run(self, state: State, count: int = 1, arrays: Arrays | None = None) -> tuple[State, list[dict]]:
        """Some rounds with the regrouping between them; what each regrouping found, by `done` rounds."""
        facts = []
        for _ in range(count):
            arrays = self.sim.federation.arrays if arrays is None else arrays
            state, _ = self.round(state, arrays, self.hyper)
            done = int(state.round)
            if regrouping.due(self.sim.method, done - 1) == done:
                state, found = regrouping.regroup(self.sim.method, state, done)
                facts += [one | {"round": done} for one in found]
        return state, facts


_COMPILED: dict[str, Case] = {}


def case(method: Method, engine: Engine = probe.ONE, table: bool = False, **kwargs: Any) -> Case:
    """Compiled once for all tests that ask for it."""
    key = repr((method, engine, table, kwargs))
    if key not in _COMPILED:
        sim = simulator(federation(**kwargs), probe.predictor(table), method, engine)
        _COMPILED[key] = Case(sim, jax.jit(rounds.make_round(sim)), rounds.hyper(method, 10))
    return _COMPILED[key]


def one_level(grouping: Grouping, steps: int = 1, **level: Any) -> Method:
    """Everyone takes part; one level whose groups are learned."""
    found = Level("planted", grouping=grouping, **level)
    return Method(levels=(found,), participation=Everyone(), local=probe.local(steps=steps))


def groups(state: State, level: int = -1) -> np.ndarray:
    """Group of each unit within its parent group."""
    return np.asarray(state.levels[level].learned.share).argmax(axis=1)


def row(state: State, index: int, level: int = -1) -> dict[str, np.ndarray]:
    """One row of a level, float64."""
    return {n: np.asarray(x[index], np.float64) for n, x in state.levels[level].rows.items()}


def assert_states(a: State, b: State, atol: float = 1e-5) -> None:
    """Equal trees, number for number."""
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=atol, err_msg=jax.tree_util.keystr(path))
