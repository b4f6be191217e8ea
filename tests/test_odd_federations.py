"""Federations at the edge of what docs/levels.md promises, and the identities that must hold on them."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import probe
import pytest
import toy

from fedjax_vp.federated import levels
from fedjax_vp.federated import round as rounds
from fedjax_vp.federated.federation import Federation, build
from fedjax_vp.federated.server import Adaptive
from fedjax_vp.federated.settings import Availability, Everyone, Level, Method
from fedjax_vp.federated.simulator import simulator

GLOBAL = Level("global")
VIDEO = Level("video", by="video", owns=("head/*",), shrinkage="auto")
DEEP = (GLOBAL, VIDEO, Level("user", by="user", shrinkage="auto"), Level("session", by="session"))
PLAIN = Method(levels=(GLOBAL,), participation=Everyone(), local=probe.local(batch=4, steps=3))
HABIT = np.array([0, *[-1] * 11], np.int32)


def run(method: Method, fed: Federation, count: int = 3) -> tuple[rounds.State, rounds.RoundInfo]:
    """Some rounds from the start; the last one's info."""
    sim = simulator(fed, probe.predictor(), method, probe.ONE)
    step, state = jax.jit(rounds.make_round(sim)), rounds.init(sim, jnp.int32(0))
    for _ in range(count):
        state, info = step(state, fed.arrays, rounds.hyper(method, 10))
    return state, info


def no_one_or_many_windows() -> Federation:
    """Sessions with no, with a single and with all of their training windows, in turn."""
    traces = toy.traces()
    split = toy.split(traces)
    rank = np.cumsum(split.train, axis=1)
    most = np.array([0, 1, 100] * 4)[:, None]
    return build(traces, split._replace(train=split.train & (rank <= most)), toy.SHAPE)


ODD = {
    "no, one or many windows": (no_one_or_many_windows, DEEP, "session", 8),
    "one client of one session": (lambda: toy.federation(users=1, videos=1), DEEP, "session", 1),
    "one user": (lambda: toy.federation("user", users=1), (GLOBAL, VIDEO), "user", 1),
    "one video": (lambda: toy.federation(videos=1), DEEP[:3], "session", 4),
    "a label that one session has": (
        lambda: probe.relabel(toy.traces(), habit=HABIT),
        (GLOBAL, Level("habit", by="habit", shrinkage="auto"), VIDEO),
        "session",
        12,
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_federations_train_and_stay_finite(case: str) -> None:
    make, stack, client, clients = ODD[case]
    state, info = run(replace(PLAIN, levels=stack, client=client), make())
    assert int(info.reported) == clients
    assert int(info.nonfinite) == 0
    assert bool(info.healthy)
    assert float(info.loss) > 0
    for x in jax.tree.leaves(state.levels):
        assert np.isfinite(x).all()
    assert any(np.asarray(x).any() for x in state.levels[0].rows.values())


def assert_fedavg(method: Method, fed: Federation) -> None:
    """Every session's model is that of plain federated averaging with the same participation."""
    flat, _ = run(replace(method, levels=(GLOBAL,)), fed)
    mine, _ = run(method, fed)
    for session in range(fed.num_sessions):
        a, b = (levels.model_of(x.levels, jnp.int32(session)) for x in (flat, mine))
        for leaf in a:
            np.testing.assert_allclose(a[leaf], b[leaf], atol=1e-5)


@pytest.mark.parametrize(
    "stack",
    [
        (Level("habit", by="habit"),),
        (GLOBAL, Level("habit", by="habit", shrinkage=0.3)),
        (GLOBAL, Level("user", by="user", shrinkage=0.0, server=Adaptive(kind="adam"))),
        (
            Level("global", period=0),
            Level("edge", by="edge", period=0, absorb=1),
            Level("user", by="user", absorb=1),
        ),
    ],
    ids=["one group instead of a level", "one group below it", "a level shrunk away", "three tiers"],
)
def test_stacks_that_come_to_federated_averaging(stack: tuple[Level, ...]) -> None:
    everyone_alike = probe.relabel(toy.traces(), habit=np.zeros(12, np.int32))
    assert_fedavg(replace(PLAIN, levels=stack), everyone_alike)


def test_a_round_that_nobody_attends_changes_nothing() -> None:
    away = replace(PLAIN, levels=DEEP, participation=Availability(clients=6, online=1e-9, dropout=0.0))
    state, info = run(away, toy.federation())
    assert (int(info.invited), int(info.reported), bool(info.healthy)) == (0, 0, True)
    sim = simulator(toy.federation(), probe.predictor(), away, probe.ONE)
    start = rounds.init(sim, jnp.int32(0))
    jax.tree.map(np.testing.assert_array_equal, state.levels, start.levels)
