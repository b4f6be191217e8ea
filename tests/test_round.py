"""A whole round: the identities that must hold, and what blocks, devices, chunks and seeds may not change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import probe
import pytest
import toy
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_vp.federated import keys, levels
from fedjax_vp.federated import round as rounds
from fedjax_vp.federated.federation import Arrays, gather
from fedjax_vp.federated.local import Client, ClientResult, local_update
from fedjax_vp.federated.round import RoundInfo, State
from fedjax_vp.federated.server import Adaptive, Average, Optax
from fedjax_vp.federated.settings import Availability, Engine, Everyone, Level, Method, Pooling, Uniform
from fedjax_vp.federated.simulator import Simulator, simulator

TRACES = toy.traces()
SPLIT = toy.split(TRACES)
EDGE = TRACES.labels["edge"]
WINDOWS = SPLIT.train.sum(axis=1)
GLOBAL = (Level("global"),)
VIDEO = Level("video", by="video", owns=("video_table", "head/*"), shrinkage=0.5)
ALL = Everyone()


class Case(NamedTuple):
    """A method on a toy federation with its compiled round."""

    sim: Simulator
    round: Callable[[State, Arrays, Any], tuple[State, RoundInfo]]
    hyper: rounds.Hyper

    def run(self, state: State, count: int = 1, arrays: Arrays | None = None) -> tuple[State, RoundInfo]:
        """Some rounds; the last one's info."""
        info = None
        for _ in range(count):
            state, info = self.round(
                state, self.sim.federation.arrays if arrays is None else arrays, self.hyper
            )
        return state, info

    def start(self, seed: int = 0) -> State:
        """The state before the first round, laid out as a round returns it: one compilation serves all."""
        state = rounds.init(self.sim, jnp.int32(seed))
        return jax.device_put(state, NamedSharding(self.sim.mesh, PartitionSpec()))


def case(
    method: Method, engine: Engine = probe.ONE, table: bool = False, empty: tuple[int, ...] = ()
) -> Case:
    """Compiled once for all tests that ask for it."""
    key = repr((method, engine, table, empty))
    if key not in _COMPILED:
        sim = probe.sim(method, engine, table, empty=empty)
        _COMPILED[key] = Case(sim, jax.jit(rounds.make_round(sim)), rounds.hyper(method, 10))
    return _COMPILED[key]


_COMPILED: dict[str, Case] = {}


def model_of(state: State, session: int = 0) -> dict[str, np.ndarray]:
    return jax.device_get(levels.model_of(state.levels, jnp.int32(session)))


def assert_models(a: State, b: State, atol: float = 1e-5, sessions: range = range(12)) -> None:
    """Every session's model is the same in both states."""
    for session in sessions:
        one, two = model_of(a, session), model_of(b, session)
        for leaf in one.keys() & two.keys():
            np.testing.assert_allclose(one[leaf], two[leaf], atol=atol, err_msg=leaf)


def trainer(one: Case, state: State) -> Callable[[int, jax.Array], ClientResult]:
    """What a single client returns from a round."""
    arrays = one.sim.federation.arrays

    @jax.jit
    def run(client: Client) -> ClientResult:
        return local_update(one.sim.task, state.levels, arrays, client, jnp.float32(0.5))

    return lambda index, key: jax.device_get(run(Client(jnp.int32(index), jnp.asarray(True), key, None)))


def whole_batch(arrays: Arrays, sessions: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Last direction, target and time of all training windows of some sessions."""
    pairs = [(s, k) for s in sessions for k in np.flatnonzero(SPLIT.train[s])]
    session, now = (jnp.asarray(x, jnp.int32) for x in zip(*pairs, strict=True))
    inputs, target = gather(arrays, toy.SHAPE, session, now)
    return np.asarray(inputs.past, np.float64)[:, -1], np.asarray(target, np.float64), np.asarray(inputs.time)


def descend(model: dict[str, np.ndarray], batch: tuple, lr: float, steps: int) -> dict[str, np.ndarray]:
    """The change that full-batch gradient descent makes."""
    at = {n: np.asarray(p, np.float64) for n, p in model.items()}
    for _ in range(steps):
        slope = oracle.gradient(at, *batch)
        at = {n: p - lr * slope[n] for n, p in at.items()}
    return {n: at[n] - model[n] for n in model}


FEDAVG = Method(levels=GLOBAL, participation=ALL, local=probe.local(steps=3))


def test_one_unshrunk_global_level_is_fedavg() -> None:
    """Three local steps of every client by hand, then McMahan's mean, over two rounds."""
    one = case(FEDAVG)
    state = one.start()
    model = model_of(state)
    for _ in range(2):
        deltas = [descend(model, whole_batch(one.sim.federation.arrays, [s]), 0.5, 3) for s in range(12)]
        model = oracle.fedavg(model, deltas, list(WINDOWS))
        state, info = one.run(state)
    for leaf, value in model_of(state).items():
        np.testing.assert_allclose(value, model[leaf], atol=1e-5)
    assert int(info.reported) == int(info.invited) == 12


SAMPLED = Method(
    levels=GLOBAL, participation=Uniform(clients=5), local=probe.local(batch=4, steps=3, momentum=0.5)
)


def test_sampled_fedavg_is_the_mean_of_the_participants_own_results() -> None:
    """Which clients took part shows in their deltas: exactly five of twelve explain the step."""
    one = case(SAMPLED)
    state = one.start()
    key_cohort, key_local = keys.of_round(state.seed, state.round)
    cohort = rounds.participation.draw(key_cohort, SAMPLED.participation, 12).client
    train = trainer(one, state)
    results = [train(int(c), jax.random.fold_in(key_local, c)) for c in cohort]
    wanted = oracle.fedavg(
        model_of(state),
        [{n: d[0] for n, d in r.delta.items()} for r in results],
        list(WINDOWS[np.asarray(cohort)]),
    )
    after, info = one.run(state)
    for leaf, value in model_of(after).items():
        np.testing.assert_allclose(value, wanted[leaf], atol=1e-5)
    assert int(info.reported) == 5
    assert float(info.loss) == pytest.approx(np.mean([r.loss for r in results]), rel=1e-5)


def test_every_seed_and_every_round_draws_for_itself() -> None:
    """Seeds are 32 bits, and negative as the state holds them."""
    seeds = np.array([0, 1, 2, 2**31 - 1, -1, -(2**31)], np.int32)
    parts = [keys.of_round(seed, index) for seed in seeds for index in range(3)]
    parts += [(keys.key_of(seed, keys.INIT), keys.key_of(seed, keys.NOISE)) for seed in seeds]
    client = jax.random.fold_in(keys.of_round(0, 0)[1], 7)
    parts += [(keys.apart(client, index), keys.apart(client, keys.STEPS + index)) for index in range(3)]
    drawn = {int(jax.random.bits(key)) for pair in parts for key in pair}
    assert len(drawn) == 2 * (4 * len(seeds) + 3)


def test_one_full_batch_step_of_all_clients_is_centralized_gradient_descent() -> None:
    one = case(Method(levels=GLOBAL, participation=ALL, local=probe.local()))
    state = one.start()
    batch = whole_batch(one.sim.federation.arrays, list(range(12)))
    wanted = model_of(state)
    for _ in range(3):
        step = descend(wanted, batch, 0.5, 1)
        wanted = {n: wanted[n] + step[n] for n in wanted}
    after, _ = one.run(state, 3)
    for leaf, value in model_of(after).items():
        np.testing.assert_allclose(value, wanted[leaf], atol=1e-5)


def test_hierfavg_with_period_one_is_fedavg() -> None:
    hier = case(replace(FEDAVG, levels=(Level("global", period=0), Level("edge", by="edge", absorb=1))))
    flat = case(FEDAVG)
    a, b = hier.start(), flat.start()
    deltas = [descend(model_of(b), whole_batch(flat.sim.federation.arrays, [s]), 0.5, 3) for s in range(12)]
    wanted = oracle.hierfavg(model_of(b), deltas, list(WINDOWS), list(EDGE))
    a, b = hier.run(a)[0], flat.run(b)[0]
    for leaf, value in model_of(a).items():
        np.testing.assert_allclose(value, wanted[leaf], atol=1e-5)
    assert_models(a, b)
    assert_models(hier.run(a, 2)[0], flat.run(b, 2)[0])


def test_hierfavg_keeps_edges_apart_until_the_cloud_round() -> None:
    """Two edge rounds a cloud round, by hand: each edge averages alone, then the edges by samples."""
    one = case(replace(FEDAVG, levels=(Level("global", period=0), Level("edge", by="edge", absorb=2))))
    state = one.start()
    arrays = one.sim.federation.arrays
    model = {e: model_of(state) for e in (0, 1)}
    sizes = [float(WINDOWS[e == EDGE].sum()) for e in (0, 1)]
    for _ in range(2):
        for e in (0, 1):
            mine = [s for s in range(12) if EDGE[s] == e]
            deltas = [descend(model[e], whole_batch(arrays, [s]), 0.5, 3) for s in mine]
            model[e] = oracle.fedavg(model[e], deltas, list(WINDOWS[mine]))
    first, _ = one.run(state)
    assert (first.levels[1].rows["body"][0] != first.levels[1].rows["body"][1]).any()
    after, _ = one.run(first)
    for leaf, value in model_of(after).items():
        cloud = sum(s * model[e][leaf] for e, s in enumerate(sizes)) / sum(sizes)
        np.testing.assert_allclose(value, cloud, atol=1e-5)
    assert not any(r.any() for r in after.levels[1].rows.values())


TWO = (Level("global"), VIDEO)


def test_a_level_without_shrinkage_is_no_level() -> None:
    """Shrinkage is a traced number: the same compiled round, with s = 0, is FedAvg."""
    one, flat = case(replace(SAMPLED, levels=TWO), table=True), case(SAMPLED, table=True)
    shrinkage = one.hyper.pooling.shrinkage.at[1].set(0.0)
    off = one._replace(hyper=one.hyper._replace(pooling=one.hyper.pooling._replace(shrinkage=shrinkage)))
    a, b = off.run(off.start(), 3)[0], flat.run(flat.start(), 3)[0]
    assert_models(a, b)
    assert not any(r.any() for r in a.levels[1].rows.values())
    assert (
        case(replace(SAMPLED, levels=TWO), table=True).run(one.start())[0].levels[1].rows["head/bias"].any()
    )


DEEP = Method(
    levels=(
        Level("global", server=Average(lr=0.8, momentum=0.5)),
        Level("video", by="video", owns=("video_table", "head/*"), shrinkage="auto"),
        Level("user", by="user", owns=("head/*",), shrinkage=0.5, server=Adaptive(kind="adam", lr=0.1)),
    ),
    participation=Uniform(clients=7),
    local=probe.local(batch=4, epochs=1.0, optimizer="adam", keep_state=True, lr=0.1, prefix_share=0.25),
)


@pytest.fixture(scope="module")
def deep() -> Case:
    return case(DEEP, table=True)


def permuted(arrays: Arrays, order: np.ndarray) -> Arrays:
    """The same sessions in another order; clients are sessions."""
    new = arrays._replace(direction=arrays.direction[order], t0=arrays.t0[order])
    phases = {
        p: jax.tree.map(lambda x: x[order], getattr(arrays, p)) for p in ("train", "valid", "adapt", "test")
    }
    rank = np.r_[0, np.cumsum(np.asarray(phases["train"].count))]
    return new._replace(bags=arrays.bags._replace(rank=jnp.asarray(rank, jnp.int32)), **phases)


def test_permuting_clients_changes_nothing() -> None:
    """Whole-batch work has no draws, so that only the clients' places differ."""
    method = replace(FEDAVG, levels=(Level("global"), VIDEO, Level("user", by="user", shrinkage=0.3)))
    one = case(method, table=True)
    order = np.random.default_rng(0).permutation(12)
    state = one.start()
    moved = state._replace(
        levels=tuple(s._replace(members=jax.tree.map(lambda x: x[order], s.members)) for s in state.levels)
    )
    a, _ = one.run(state, 2)
    b, _ = one.run(moved, 2, permuted(one.sim.federation.arrays, order))
    for x, y in zip(a.levels, b.levels, strict=True):
        for leaf in x.rows:
            np.testing.assert_allclose(x.rows[leaf], y.rows[leaf], atol=1e-5)


def test_a_client_without_data_changes_nothing() -> None:
    """A session without training windows: FedAvg of the others by hand, whatever its trace holds."""
    one = case(FEDAVG, empty=(4,))
    others = [s for s in range(12) if s != 4]
    arrays = one.sim.federation.arrays
    state = one.start()
    deltas = [descend(model_of(state), whole_batch(arrays, [s]), 0.5, 3) for s in others]
    wanted = oracle.fedavg(model_of(state), deltas, list(WINDOWS[others]))
    noise = arrays._replace(direction=arrays.direction.at[4].set(jnp.nan))
    for some in (arrays, noise):
        after, info = one.run(state, 1, some)
        assert int(info.reported) == 11
        for leaf, value in model_of(after).items():
            np.testing.assert_allclose(value, wanted[leaf], atol=1e-5)


def test_a_client_that_is_not_finite_is_left_out_and_counted() -> None:
    one = case(FEDAVG)
    arrays = one.sim.federation.arrays
    sick = arrays._replace(direction=arrays.direction.at[7, 5].set(jnp.nan))
    state = one.start()
    others = [s for s in range(12) if s != 7]
    deltas = [descend(model_of(state), whole_batch(arrays, [s]), 0.5, 3) for s in others]
    wanted = oracle.fedavg(model_of(state), deltas, list(WINDOWS[others]))
    after, info = one.run(state, 1, sick)
    assert (int(info.nonfinite), int(info.reported), bool(info.healthy)) == (1, 11, True)
    assert np.isfinite(float(info.loss))
    for leaf, value in model_of(after).items():
        np.testing.assert_allclose(value, wanted[leaf], atol=1e-5)


def test_a_sick_client_keeps_its_private_state(deep: Case) -> None:
    arrays = deep.sim.federation.arrays
    sick = arrays._replace(direction=arrays.direction.at[:, :].set(jnp.nan))
    state, _ = deep.run(deep.start(), 3)
    after, info = deep.run(state, 1, sick)
    assert (int(info.reported), int(info.nonfinite), bool(info.healthy)) == (0, 7, False)
    for a, b in zip(
        jax.tree.leaves((state.clients, state.levels)),
        jax.tree.leaves((after.clients, after.levels)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_private_state_moves_for_participants_alone(deep: Case) -> None:
    """Adam's count: each client's own number of steps so far."""
    state = deep.start()
    counts = np.zeros(12, int)
    for _ in range(3):
        before = state
        state, info = deep.run(state)
        moved = np.asarray(state.clients.count != before.clients.count)
        assert moved.sum() == int(info.reported) == 7
        counts += np.where(moved, -(-WINDOWS // 4), 0)
        for mu in jax.tree.leaves(
            jax.tree.map(lambda a, b: np.asarray(a != b), state.clients.mu, before.clients.mu)
        ):
            assert not mu[~moved].any()
    assert state.clients.count.tolist() == counts.tolist()


@pytest.mark.parametrize(("block", "devices"), [(3, 2)])
def test_blocks_and_devices_change_nothing(deep: Case, block: int, devices: int) -> None:
    other = case(DEEP, Engine(client_block=block, devices=devices), table=True)
    a, info = deep.run(deep.start(), 3)
    b, same = other.run(other.start(), 3)
    for x, y in zip(jax.tree.leaves((a, info)), jax.tree.leaves((b, same)), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5, rtol=2e-5)


def test_seeds_are_one_more_axis(deep: Case) -> None:
    seeds = jnp.asarray([0, 5], jnp.int32)
    states = jax.jit(jax.vmap(lambda s: rounds.init(deep.sim, s)))(seeds)  # over seeds
    states = jax.device_put(states, NamedSharding(deep.sim.mesh, PartitionSpec()))
    many = jax.jit(jax.vmap(rounds.make_round(deep.sim), in_axes=(0, None, None)))  # over seeds
    for _ in range(2):
        states, info = many(states, deep.sim.federation.arrays, deep.hyper)
    for index, seed in enumerate((0, 5)):
        alone, one_info = deep.run(deep.start(seed), 2)
        for x, y in zip(jax.tree.leaves((alone, one_info)), jax.tree.leaves((states, info)), strict=True):
            np.testing.assert_allclose(x, y[index], atol=2e-5, rtol=2e-5)
    assert (states.levels[0].rows["body"][0] != states.levels[0].rows["body"][1]).all()


def test_a_chunk_is_its_rounds_and_its_length_changes_no_bit(deep: Case) -> None:
    arrays = deep.sim.federation.arrays
    chunk = jax.jit(rounds.make_chunk(deep.sim, 6))
    whole, infos = chunk(deep.start(), arrays, deep.hyper, jnp.int32(6))
    state, losses = deep.start(), []
    for count in (1, 2, 3):
        state, part = chunk(state, arrays, deep.hyper, jnp.int32(count))
        losses += part.loss[:count].tolist()
        assert not part.loss[count:].any()
    jax.tree.map(np.testing.assert_array_equal, whole, state)
    assert losses == infos.loss.tolist()
    single, info = deep.run(deep.start(), 6)
    assert float(info.loss) == pytest.approx(float(infos.loss[-1]), rel=1e-4)
    for x, y in zip(jax.tree.leaves(single), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4, rtol=1e-4)


def test_rows_without_participants_keep_everything() -> None:
    """Optimizer counts included, with levels whose turn comes every second round."""
    method = replace(
        SAMPLED,
        levels=(
            Level("global", period=2, server=Optax(name="adam", lr=0.1)),
            Level("user", by="user", server=Optax(name="adam", lr=0.1)),
            Level("session", by="session", owns=("head/*",), shrinkage=0.2),
        ),
        participation=Uniform(clients=2),
    )
    one = case(method)
    state, took_part = one.start(), np.zeros(4, int)
    for index in range(4):
        before = state
        state, _ = one.run(state)
        world = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), state.levels[0], before.levels[0])
        assert world.rows["body"] == (index % 2 == 1)
        sessions = np.asarray(state.levels[2].mass != before.levels[2].mass)
        assert sessions.sum() == 2
        users = np.isin(np.arange(4), TRACES.user[sessions])
        changed = jax.tree.map(lambda a, b: np.asarray(a != b), state.levels[1], before.levels[1])
        for x in jax.tree.leaves((changed.rows, changed.optimizer)):
            assert not x[~users].any()
        assert changed.rows["body"][users].all()
        took_part += users
    counts = [x for x in jax.tree.leaves(state.levels[1].optimizer) if x.dtype == jnp.int32]
    assert [c.tolist() for c in counts] == [took_part.tolist()]


USERS = replace(FEDAVG, client="user", pooling=Pooling("equal"))


def test_with_everyone_there_the_population_is_the_participants() -> None:
    """A client that is a user weighs as one client, in the mean and in the population alike."""
    wide = replace(USERS, levels=(Level("global", denominator="population"),))
    a, b = case(wide), case(USERS)
    assert_models(a.run(a.start())[0], b.run(b.start())[0])


@pytest.mark.parametrize("method", [USERS, replace(FEDAVG, client="all")], ids=["user", "all"])
def test_clients_of_several_sessions(method: Method) -> None:
    """FedAvg whose clients are bags: every user's windows (or all there are) in one batch, by hand."""
    one = case(method)
    arrays = one.sim.federation.arrays
    bags = [list(range(12))] if method.client == "all" else [list(range(3 * u, 3 * u + 3)) for u in range(4)]
    state = one.start()
    deltas = [descend(model_of(state), whole_batch(arrays, bag), 0.5, 3) for bag in bags]
    wanted = oracle.fedavg(model_of(state), deltas, [1.0] * len(bags))  # users weigh the same
    after, info = one.run(state)
    assert int(info.reported) == len(bags)
    assert int(info.sessions_up) == 12
    for leaf, value in model_of(after).items():
        np.testing.assert_allclose(value, wanted[leaf], atol=1e-5)


def test_leaves_that_vary_within_a_client_reach_the_rows_of_its_sessions() -> None:
    """Clients are users, rows are videos: pooling is the oracle's, fed with each session's own update."""
    settings = (Level("global", owns=("body",)), replace(VIDEO, shrinkage=0.7))
    method = Method(levels=settings, client="user", participation=ALL, local=probe.local(batch=4, steps=5))
    one = case(method, table=True)
    state, _ = one.run(one.start())
    after, _ = one.run(state)
    key_local = keys.of_round(state.seed, state.round)[1]
    delta: dict[str, list] = {n: [] for n in ("body", "head/bias", "video_table")}
    weight: dict[str, list] = {n: [] for n in delta}
    sessions: dict[str, list] = {n: [] for n in delta}
    train = trainer(one, state)
    for user in range(4):
        found = train(user, jax.random.fold_in(key_local, user))
        for leaf in delta:
            apart = len(found.delta[leaf]) == 3
            for slot in range(3 if apart else 1):
                mass = found.weight[slot] if apart else found.weight.sum()
                delta[leaf].append(found.delta[leaf][slot])
                weight[leaf].append(mass * found.coverage[leaf][slot])
                sessions[leaf].append(3 * user + slot)
    for leaf in delta:
        units = oracle.Units(*(np.stack(x[leaf]) for x in (delta, weight, sessions)))
        plain = [
            oracle.Level({n: np.asarray(r) for n, r in s.rows.items()}, code, shrinkage)
            for s, code, shrinkage in zip(
                state.levels, (np.zeros(12, int), TRACES.video), (1.0, 0.7), strict=True
            )
        ]
        for rows, level in zip(oracle.pool(plain, leaf, units), after.levels, strict=True):
            if rows is not None:
                np.testing.assert_allclose(level.rows[leaf], rows, atol=1e-5)
    assert one.sim.layout.varying == {"head/bias", "video_table"}


def test_dropouts_and_offline_clients_leave_no_trace() -> None:
    method = replace(SAMPLED, participation=Availability(clients=6, online=0.4, dropout=0.4))
    one = case(replace(method, levels=(Level("global"), Level("session", by="session", shrinkage=0.5))))
    state, invited, reported = one.start(), 0, 0
    for _ in range(8):
        before = state
        state, info = one.run(state)
        touched = np.asarray(state.levels[1].mass != before.levels[1].mass).sum()
        assert touched == int(info.reported) <= int(info.invited) <= 6
        assert int(info.sessions_up) == int(info.reported)
        assert int(info.sessions_down) == int(info.invited)
        assert int(info.nonfinite) == 0
        invited, reported = invited + int(info.invited), reported + int(info.reported)
    assert 0 < reported < invited < 48


def test_learning_rates_are_traced_and_follow_their_schedule(deep: Case) -> None:
    other = deep._replace(hyper=deep.hyper._replace(local_lr=jnp.float32(0.0)))
    still, _ = other.run(other.start(), 2)
    for leaf, value in model_of(still).items():
        np.testing.assert_array_equal(value, model_of(deep.start())[leaf])
    assert deep.round._cache_size() == 1  # neither a rate nor a seed compiles again


def test_an_unmixed_federation_of_labels_that_are_unknown_of_some() -> None:
    """Sessions of an unknown group train the levels above it and leave its rows alone."""
    habit = np.where(TRACES.user == 3, -1, TRACES.user % 2)
    fed = probe.relabel(TRACES, habit=habit)
    method = replace(FEDAVG, levels=(Level("global"), Level("habit", by="habit", shrinkage=0.5)))
    sim = simulator(fed, probe.predictor(), method, probe.ONE)
    state = rounds.init(sim, jnp.int32(0))
    deltas = [descend(model_of(state), whole_batch(fed.arrays, [s]), 0.5, 3) for s in range(12)]
    after, _ = jax.jit(rounds.make_round(sim))(state, fed.arrays, rounds.hyper(method, 10))
    for leaf in ("body", "head/bias"):
        units = oracle.Units(
            np.stack([d[leaf] for d in deltas]),
            WINDOWS.astype(float).reshape(12, *(1,) * deltas[0][leaf].ndim),
            np.arange(12),
        )
        plain = [
            oracle.Level({leaf: np.asarray(s.rows[leaf])}, code, shrinkage)
            for s, code, shrinkage in zip(state.levels, (np.zeros(12, int), habit), (1.0, 0.5), strict=True)
        ]
        for rows, level in zip(oracle.pool(plain, leaf, units), after.levels, strict=True):
            np.testing.assert_allclose(level.rows[leaf], rows, atol=1e-5)
    np.testing.assert_array_equal(model_of(after, 11)["body"], after.levels[0].rows["body"][0])
