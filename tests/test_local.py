"""The local step against gradient descent in plain NumPy, over the same batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import probe
import pytest
import toy

from fedjax_vp.federated import batches, levels
from fedjax_vp.federated import round as rounds
from fedjax_vp.federated.components import Components, mixture
from fedjax_vp.federated.federation import gather
from fedjax_vp.federated.local import Client, ClientResult, _loss, local_update, scatter, slots, start, weigh
from fedjax_vp.federated.settings import Level, Local, Method, Pooling
from fedjax_vp.federated.simulator import Simulator, simulator

TRACES = toy.traces()
SPLIT = toy.split(TRACES)
KEY = jax.random.key(11)
LR = 0.3


class Case(NamedTuple):
    """A method, random rows, and its compiled local update."""

    sim: Simulator
    states: tuple[levels.LevelState, ...]
    update: Callable[..., ClientResult]


def case(method: Method) -> Case:
    sim = probe.sim(method, table=True)
    rng = np.random.default_rng(1)
    states = tuple(
        s._replace(rows={n: jnp.asarray(rng.normal(size=r.shape), jnp.float32) for n, r in s.rows.items()})
        for s in rounds.init(sim, jnp.int32(0)).levels
    )
    moments = rounds.optimizer(method.local).init({n: jnp.zeros(1) for n in ("body",)})

    @jax.jit
    def update(client: jax.Array, reports: jax.Array, states: Any, bound: jax.Array) -> ClientResult:
        one = Client(client, reports, KEY, moments)
        return local_update(sim.task, states, sim.federation.arrays, one, jnp.float32(LR), bound)

    def call(client: int, reports: bool = True, bound: int = 50) -> ClientResult:
        return jax.device_get(update(jnp.int32(client), jnp.asarray(reports), states, jnp.int32(bound)))

    return Case(sim, states, call)


CASES = {
    "full batch": Method(levels=(Level("global"),), local=probe.local(steps=4)),
    "epochs": Method(levels=(Level("global"),), client="user", local=probe.local(batch=7, epochs=2.0)),
    "halves": Method(
        levels=(Level("global"), Level("video", by="video", shrinkage="auto")),
        local=probe.local(batch=4, steps=5),
    ),
    "varying": Method(
        levels=(
            Level("global", owns=("body",)),
            Level("video", by="video", owns=("video_table", "head/*")),
            Level("user", by="user", owns=("head/*",)),
        ),
        client="user",
        local=probe.local(batch=4, steps=4),
    ),
    "epochs, varying": Method(
        levels=(Level("global", owns=("body", "head/*")), Level("video", by="video", owns=("video_table",))),
        client="user",
        local=probe.local(batch=7, epochs=1.0),
    ),
    "prefixes": Method(
        levels=(
            Level("global", owns=("*", "!video_table")),
            Level("video", by="video", owns=("video_table",)),
            Level("user", by="user", owns=("head/*",)),
        ),
        local=probe.local(batch=9, steps=3, prefix_share=0.5),
    ),
    "prefixes of varying leaves": Method(
        levels=(
            Level("global", owns=("*", "!video_table")),
            Level("video", by="video", owns=("video_table",)),
        ),
        client="user",
        local=probe.local(batch=8, steps=6, prefix_share=0.25),
    ),
    "prefixes of batches that are not full": Method(
        levels=(Level("global", owns=("*", "!video_table")), Level("video", by="video")),
        local=probe.local(batch=0, steps=2, prefix_share=0.25),
    ),
}


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    class Compiled(dict):
        """Compiles a case when it is first asked for."""

        def __missing__(self, name: str) -> Case:
            self[name] = case(CASES[name])
            return self[name]

    return Compiled()


class Replay(NamedTuple):
    """What a client should return."""

    delta: dict[str, np.ndarray]  # [slot or 1, ...]
    halves: dict[str, np.ndarray]
    visited: np.ndarray  # [slot]
    bins: np.ndarray  # [slot, bin] whether a step used the bin


def replay(one: Case, client: int) -> Replay:
    """Gradient descent, a step and a prefix at a time."""
    sim, local = one.sim, one.sim.method.local
    fed, varying = sim.federation, sim.layout.varying
    session = [int(s) for s in slots(fed.arrays, jnp.int32(client), fed.max_sessions if varying else 1)[0]]
    depth = len(one.states)

    def compose(leaf: str, levels_down: int) -> np.ndarray:
        sessions = session if leaf in varying else session[:1]
        rows = [levels.compose(one.states, jnp.asarray([s]), leaf, levels_down)[0] for s in sessions]
        return np.stack([np.asarray(r, np.float64) for r in rows])

    leaves = list(probe.predictor(True).init(jax.random.key(0)))
    start = {n: compose(n, depth) for n in leaves}
    theta = {n: p.copy() for n, p in start.items()}
    parts = {n: [np.zeros_like(p), np.zeros_like(p)] for n, p in start.items()}  # even and odd steps
    visited, bins = np.zeros(len(session)), np.zeros((len(session), probe.BINS), bool)
    plan = batches.plan(KEY, local, fed, fed.arrays, jnp.int32(client), sim.task.mixed)
    size = batches.batch_size(local, fed)
    prefixes = depth - 1 if local.prefix_share else 0
    part = round(size * local.prefix_share / prefixes) if prefixes else 0
    places = scatter(size) if prefixes else np.arange(size)
    for step in range(int(plan.steps)):
        batch = batches.draw(plan, jnp.int32(step), size, fed, fed.arrays, jnp.int32(client), sim.task.mixed)
        slot = int(batch.slot)
        visited[slot] = 1
        real = np.asarray(batch.weight) > 0
        slope = {n: np.zeros_like(p) for n, p in theta.items()}
        for d in range(prefixes + 1):
            mine = places[d * part : (d + 1) * part] if d < prefixes else places[prefixes * part :]
            mine = mine[real[mine]]
            if not len(mine):
                continue
            model, own = {}, {}
            for n in leaves:
                row = slot if n in varying and len(theta[n]) > 1 else 0
                exists = d == prefixes or any(n in names for names in sim.layout.owned[: d + 1])
                finer = start[n][row] - compose(n, d + 1)[row] if prefixes and d < prefixes else 0.0
                model[n], own[n] = (theta[n][row] - finer if exists else np.zeros_like(theta[n][row])), exists
            inputs, target = gather(
                fed.arrays, toy.SHAPE, batch.session[jnp.asarray(mine)], batch.now[jnp.asarray(mine)]
            )
            past, time = np.asarray(inputs.past, np.float64), np.asarray(inputs.time)
            found = oracle.gradient(model, past[:, -1], np.asarray(target, np.float64), time)
            for n in leaves:
                row = slot if n in varying and len(theta[n]) > 1 else 0
                if own[n]:
                    slope[n][row] += len(mine) / real.sum() * found[n]
            if own["video_table"]:
                row = slot if "video_table" in varying and len(theta["video_table"]) > 1 else 0
                bins[row, np.floor(time + 1e-4).astype(int)] = True
        for n in leaves:
            theta[n] = theta[n] - LR * slope[n]
            parts[n][step % 2] = parts[n][step % 2] - LR * slope[n]
    even, odd = -(-int(plan.steps) // 2), int(plan.steps) // 2
    # The difference of the two halves' rates, at the variance of their sum.
    halves = {n: np.sqrt(even * odd) * (a / max(even, 1) - b / max(odd, 1)) for n, (a, b) in parts.items()}
    return Replay({n: theta[n] - start[n] for n in leaves}, halves, visited, bins)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("client", [0, 3])
def test_a_client_descends_along_the_gradient_of_its_batches(
    cases: dict[str, Case], name: str, client: int
) -> None:
    one, wanted = cases[name], replay(cases[name], client)
    found = one.update(client)
    assert found.finite
    for leaf, delta in wanted.delta.items():
        np.testing.assert_allclose(found.delta[leaf], delta, atol=1e-5, err_msg=leaf)
        if found.halves:
            np.testing.assert_allclose(found.halves[leaf], wanted.halves[leaf], atol=1e-5, err_msg=leaf)
    assert bool(found.halves) == (name == "halves")
    covered = wanted.bins[: len(found.coverage["video_table"])]
    np.testing.assert_array_equal(found.coverage["video_table"][..., 0], covered)
    assert (found.coverage["body"] == 1).all()


@pytest.mark.parametrize("name", ["full batch", "epochs", "varying"])
def test_a_client_weighs_by_the_windows_of_what_it_trained(cases: dict[str, Case], name: str) -> None:
    one = cases[name]
    windows = SPLIT.train.sum(axis=1)
    found, visited = one.update(1).weight, replay(one, 1).visited
    if name == "varying":
        np.testing.assert_array_equal(found, windows[3:6] * visited)
        assert (visited == 0).sum() < 3
    else:
        assert found.tolist() == [windows[1] if name == "full batch" else windows[3:6].sum()]


def test_who_does_not_report_does_nothing(cases: dict[str, Case]) -> None:
    for name in ("full batch", "varying"):
        found = cases[name].update(0, reports=False)
        assert not any(x.any() for x in found.delta.values())
        assert not found.weight.any()
        assert found.finite


def test_steps_beyond_a_clients_own_change_nothing(cases: dict[str, Case]) -> None:
    a, b = (cases["epochs"].update(2, bound=n) for n in (30, 50))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_global_prefix_never_trains_a_leaf_of_the_video_alone() -> None:
    """All of a batch but one window in the prefix: bins of the table move for that window alone."""
    method = Method(
        levels=(
            Level("global", owns=("*", "!video_table")),
            Level("video", by="video", owns=("video_table",)),
        ),
        local=probe.local(batch=10, steps=1, prefix_share=0.9),
    )
    one = case(method)
    found, wanted = one.update(0), replay(one, 0)
    assert found.coverage["video_table"].sum() == 1
    np.testing.assert_array_equal(found.coverage["video_table"][..., 0], wanted.bins)


@pytest.mark.parametrize("size", [1, 2, 8, 32, 100])
def test_prefixes_take_their_share_of_batches_that_are_not_full(size: int) -> None:
    places = scatter(size)
    assert sorted(places.tolist()) == list(range(size))
    part = places[: size // 4]
    for count in range(1, size + 1):
        assert abs((part < count).sum() - count * len(part) / size) <= 2
        assert size < 2 or count < 2 or not set(range(count)) <= set(part.tolist())


def test_weights() -> None:
    windows = jnp.asarray([0, 1, 9])
    assert weigh(Pooling("windows"), windows).tolist() == [0, 1, 9]
    assert weigh(Pooling("equal"), windows).tolist() == [0, 1, 1]
    assert weigh(Pooling("sqrt"), windows).tolist() == [0, 1, 3]


def test_clipping_bounds_every_step() -> None:
    method = Method(local=probe.local(steps=1, clip=0.01))
    found = case(method).update(0)
    norm = np.sqrt(sum((x**2).sum() for x in found.delta.values()))
    assert norm == pytest.approx(LR * 0.01, rel=1e-4)


def test_a_result_that_is_not_finite_is_emptied() -> None:
    one = case(Method(local=probe.local(steps=2)))
    rows = dict(one.states[0].rows)
    rows["body"] = rows["body"].at[0, 0].set(jnp.inf)
    task, arrays = one.sim.task, one.sim.federation.arrays
    states = (one.states[0]._replace(rows=rows),)
    client = Client(jnp.int32(0), jnp.asarray(True), KEY, None)
    found = local_update(task, states, arrays, client, jnp.float32(LR))
    assert not found.finite
    assert not any(x.any() for x in found.delta.values())
    assert not found.weight.any()
    assert float(found.loss) == 0


@pytest.mark.parametrize("count", [1, 3], ids=["network", "mixture"])
def test_prefixes_of_a_network_predict_as_by_themselves(count: int) -> None:
    """What they see and how outputs become directions is shared, their outputs are laid side by side."""
    method = Method(
        levels=(
            Level("global", owns=("*", "!video_table")),
            Level("video", by="video"),
            Level("user", by="user", owns=("head/*",)),
        ),
        local=Local(batch=12, prefix_share=0.5),
    )
    predictor = mixture(Components(count=count), toy.predictor(table=int(count == 1)))
    sim = simulator(toy.federation(), predictor, method, probe.ONE)
    arrays, rng = sim.federation.arrays, np.random.default_rng(0)
    states = tuple(
        state._replace(
            rows={n: x + jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32) for n, x in state.rows.items()}
        )
        for state in rounds.init(sim, jnp.int32(0)).levels
    )
    session, now = jnp.full(12, 5), arrays.train.at(jnp.full(12, 5), jnp.arange(12) % arrays.train.count[5])
    windows, weight = gather(arrays, toy.SHAPE, session, now), jnp.asarray([1.0] * 10 + [0.0] * 2)
    batch = batches.Batch(jnp.int32(0), session, 0 * session, now, weight)
    theta, lacks = start(sim.task, states, session[:1])
    value, slope = jax.jit(jax.value_and_grad(lambda p: _loss(p, sim.task, lacks, windows, batch)))(theta)
    models, loss_fn = levels.models_of(states, session[0]), sim.task.local.loss.build()
    order = scatter(12)
    parts = [order[:3], order[3:6], order[6:]]  # a quarter each for the two shallower prefixes

    def by_hand(theta: dict[str, jax.Array]) -> jax.Array:
        total = jnp.zeros(())
        for depth, (model, mine) in enumerate(zip(models, parts, strict=True)):
            moved = {n: x + theta[n][0] - models[-1][n] for n, x in model.items()}
            moved = {n: x if sim.layout.coarsest(n) <= depth else model[n] for n, x in moved.items()}
            inputs, target = jax.tree.map(lambda x, mine=mine: x[mine], windows)
            total += weight[mine] @ predictor.loss(moved, inputs, target, loss_fn)
        return total / jnp.sum(weight)

    wanted, wanted_slope = jax.jit(jax.value_and_grad(by_hand))(theta)
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    for leaf, x in wanted_slope.items():
        np.testing.assert_allclose(slope[leaf], x, atol=1e-5)
