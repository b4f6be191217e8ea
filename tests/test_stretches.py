"""Stretches of blocks: sums that keep what plain float32 loses, and rounds whose traces are not stored."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from fedjax_vp.data.protocols import WithinSession
from fedjax_vp.data.splits import split
from fedjax_vp.data.synthetic import Planted, generate
from fedjax_vp.errors import UserError
from fedjax_vp.federated import round as rounds
from fedjax_vp.federated import stretches
from fedjax_vp.federated.federation import Federation, build
from fedjax_vp.federated.grouping.settings import IFCA
from fedjax_vp.federated.local import Client
from fedjax_vp.federated.settings import Engine, Everyone, Level, Local, Method, Uniform
from fedjax_vp.federated.simulator import simulator
from fedjax_vp.models import MLP

COUNT = 100_001
PLANTED = Planted(users=7, videos=4, duration_s=12.0, duration_power=0.5, min_duration_s=4.0)
PROTOCOL = WithinSession(history_s=0.8, horizon_s=0.6, start_s=1.0)


def federation(stored: bool, client: str) -> Federation:
    traces = generate(replace(PLANTED, stored=stored))
    return build(traces, split(traces, PROTOCOL), toy.SHAPE, client)


def summed(values: np.ndarray, rows: int = 1) -> np.ndarray:
    """Sum over the first axis by the engine's own scan, client i adding to row i mod `rows`."""
    task = toy.sim(Method()).task
    count = len(values)
    clients = Client(jnp.arange(count), jnp.ones(count, bool), jnp.zeros(count), jnp.asarray(values))

    def block_fn(total: jax.Array, block: Client) -> tuple[jax.Array, jax.Array]:
        kept = jnp.where(block.reports[:, None], block.state, 0.0)
        return total.at[block.index % rows].add(kept), block.index

    scan = jax.jit(
        lambda clients: stretches.scan(
            block_fn, jnp.zeros((rows, values.shape[1])), task, task.federation.arrays, clients, 4
        )
    )
    total, index = scan(clients)
    np.testing.assert_array_equal(index, np.arange(count))
    return np.asarray(total, np.float64)


@pytest.mark.parametrize("rows", [1, 100])
def test_small_updates_are_not_lost_between_large_ones(rows: int) -> None:
    """Large updates that cancel at the end: plain float32 keeps nothing of the small ones in between."""
    values = np.full((COUNT, 2), 0.01, np.float32)
    values[:256], values[-256:] = 1e6, -1e6
    exact = values.astype(np.float64).sum(axis=0)
    plain = np.add.accumulate(values, axis=0)[-1]
    assert abs(plain - exact).min() > 0.5 * exact.max()
    if rows == 1:
        # What shares a stretch with large updates is lost, and nothing else.
        np.testing.assert_allclose(summed(values)[0], exact, rtol=2 * stretches.CLIENTS / COUNT)
    else:  # few clients a row: as they come
        values = np.random.default_rng(0).normal(size=(COUNT, 2)).astype(np.float32)
        wanted = [values[r::rows].astype(np.float64).sum(axis=0) for r in range(rows)]
        np.testing.assert_allclose(summed(values, rows), wanted, atol=2e-3)


def test_heavy_tails_are_summed_to_rounding() -> None:
    values = np.random.default_rng(1).lognormal(0, 4, (COUNT, 3)).astype(np.float32)
    np.testing.assert_allclose(summed(values)[0], values.astype(np.float64).sum(axis=0), rtol=1e-6)


@pytest.mark.parametrize("clients", [1, 5, 255, 257, 1000, 500_001])
@pytest.mark.parametrize("block", [1, 7, 256])
def test_a_plan_has_room_for_all_and_little_padding(clients: int, block: int) -> None:
    task = toy.sim(Method()).task
    plan = stretches.plan(task, block, clients)
    assert plan.clients >= clients
    assert plan.clients - clients < block + plan.stretches * block
    assert plan.blocks * block <= max(stretches.CLIENTS, block)
    assert stretches.plan(task, block, plan.clients) == plan


LEVELS = (Level("global"), Level("video", by="video", owns=("head/*",)))
LOCAL = Local(lr=0.2, steps=3, batch=8)
METHODS = {
    "levels": Method(levels=LEVELS, local=LOCAL, participation=Everyone()),
    "bags": Method(levels=LEVELS, local=LOCAL, participation=Everyone(), client="user"),
    "epochs": Method(local=replace(LOCAL, epochs=1.0), participation=Uniform(clients=5), client="user"),
    "ifca": Method(
        levels=(Level("cluster", grouping=IFCA(groups=2)),), local=LOCAL, participation=Everyone()
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "bags" else pytest.mark.slow) for name in METHODS]
)
def test_a_round_without_stored_traces_is_the_same_round(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = METHODS[name]
    found = []
    for stored, engine in ((True, Engine(devices=1)), (False, Engine(client_block=3, devices=2))):
        monkeypatch.setattr(stretches, "GENERATED", 12)  # several stretches
        fed = federation(stored, method.client)
        sim = simulator(fed, toy.predictor(), method, engine)
        ticks: list[int] = []
        sim = sim._replace(
            task=sim.task._replace(tick=lambda device, _, ticks=ticks: ticks.append(int(device)))
        )
        round_fn = jax.jit(rounds.make_round(sim))
        state = rounds.init(sim, jnp.int32(0))
        for _ in range(2):
            state, info = round_fn(state, fed.arrays, rounds.hyper(method, 2))
        found.append((state.levels, info))
        jax.effects_barrier()
        cohort = method.participation.clients if name == "epochs" else fed.num_clients
        plan = stretches.plan(sim.task, sim.block, -(-cohort // sim.mesh.size))
        assert len(ticks) == 2 * plan.stretches * sim.mesh.size * (2 if name == "ifca" else 1)
        assert set(ticks) == set(range(sim.mesh.size))
    rows = [[level.rows for level in levels] for levels, _ in found]
    for a, b in zip(*(jax.tree.leaves(x) for x in rows), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    (levels, info), (_, other) = found
    assert float(info.loss) == pytest.approx(float(other.loss), abs=1e-5)
    assert int(info.reported) == int(other.reported) > 0
    for a, b in zip(levels, found[1][0], strict=True):
        np.testing.assert_array_equal(a.members.group, b.members.group)


def test_one_client_of_all_sessions_is_not_generated_at_once() -> None:
    traces = generate(replace(PLANTED, users=300, stored=False))
    fed = build(traces, split(traces, PROTOCOL), toy.SHAPE, "all")
    with pytest.raises(UserError, match=r"1200 sessions.*dataset.stored: true"):
        simulator(fed, toy.predictor(), Method(client="all"), Engine())


def test_nothing_grows_with_clients_times_parameters() -> None:
    taken = []
    method = Method(
        levels=(Level("cluster", grouping=IFCA(groups=2)),), local=Local(steps=1), participation=Everyone()
    )
    for users in (512, 2048):
        traces = generate(replace(PLANTED, users=users, videos=1, stored=False))
        fed = build(traces, split(traces, PROTOCOL), toy.SHAPE)
        sim = simulator(fed, MLP(hidden=(256,)).build(toy.SHAPE), method, Engine(devices=1))
        args = rounds.init(sim, jnp.int32(0)), fed.arrays, rounds.hyper(method, 2), jnp.int32(2)
        memory = jax.jit(rounds.make_chunk(sim, 2)).lower(*args).compile().memory_analysis()
        taken.append(memory.temp_size_in_bytes + memory.output_size_in_bytes)
    model = sum(4 * row[0].size for row in args[0].levels[0].rows.values())
    assert model > 10_000
    assert (taken[1] - taken[0]) / (2048 - 512) < model / 20
