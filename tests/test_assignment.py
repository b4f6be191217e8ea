"""IFCA and FedSoft inside the round, against plain NumPy loops written from the papers."""

from __future__ import annotations

from dataclasses import replace

import grouped
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from grouped import SESSIONS, case, descend, groups, losses, one_level, row, windows

from fedjax_vp.federated import assignment
from fedjax_vp.federated import learned as learned_of
from fedjax_vp.federated import round as rounds
from fedjax_vp.federated.federation import Arrays
from fedjax_vp.federated.grouping.settings import IFCA
from fedjax_vp.federated.placement import first_clients
from fedjax_vp.federated.round import State
from fedjax_vp.federated.settings import Engine, Level, Method, Pooling
from fedjax_vp.federated.simulator import simulator

NOISE = 0.4
PARTING = 0  # a seed whose rows are not all nearest to one
PLAIN = IFCA(groups=3, windows=0, start="keys", reseed=False)
GRADIENTS = replace(one_level(PLAIN, denominator="participants"), pooling=Pooling("equal"))
MODELS = one_level(PLAIN, steps=3)


def mean_losses(state: State, session: int, fed) -> np.ndarray:
    """Of each row, on all training windows of a session."""
    rows = len(state.levels[-1].mass)
    return np.array([losses(row(state, k), windows(fed, session)).mean() for k in range(rows)])


ALONE = np.arange(SESSIONS) == 4  # one session is unlike all others


@pytest.mark.parametrize("group", [grouped.GROUP, ALONE.astype(int)], ids=["halves", "one"])
@pytest.mark.parametrize(("method", "steps"), [(GRADIENTS, 1), (MODELS, 3)], ids=["gradients", "models"])
def test_a_round_is_algorithm_1_of_ifca(method: Method, steps: int, group: np.ndarray) -> None:
    """Gradients: theta_j -= gamma / m sum_i s_ij g_i, over all m. Models: the mean of those who chose j.

    There are more rows than groups: some row has no member.
    """
    one, fed = case(method, noise=NOISE), grouped.federation(noise=NOISE, group=group)
    state = one.start(PARTING)
    for _ in range(3):
        old = [row(state, k) for k in range(3)]
        chosen = np.array([np.argmin(mean_losses(state, s, fed)) for s in range(SESSIONS)])
        size = np.array([1.0 if steps == 1 else len(windows(fed, s)[0]) for s in range(SESSIONS)])
        state, _ = one.run(state, 1, fed.arrays)
        np.testing.assert_array_equal(groups(state), chosen)
        for k in range(3):
            mine = np.flatnonzero(chosen == k)
            below = SESSIONS if steps == 1 else max(size[mine].sum(), 1)
            deltas = [descend(old[k], windows(fed, s), 0.5, steps) for s in mine]
            for leaf, value in row(state, k).items():
                zero = np.zeros_like(value)
                step = sum((size[s] * d[leaf] for s, d in zip(mine, deltas, strict=True)), zero)
                np.testing.assert_allclose(value, old[k][leaf] + step / below, atol=1e-5)
    assert sorted(np.bincount(chosen, minlength=3)) == ([0, 6, 6] if group is grouped.GROUP else [0, 1, 11])


def shuffled(arrays: Arrays, order: np.ndarray) -> Arrays:
    """The same sessions, called otherwise."""

    def windows(phase):
        return phase._replace(now=phase.now[order], count=phase.count[order])

    assert int(arrays.train.count.min()) == int(arrays.train.count.max())  # or ranks would change, too
    traces = {"direction": arrays.direction[order], "t0": arrays.t0[order]}
    return arrays._replace(**traces, train=windows(arrays.train), test=windows(arrays.test))


def test_the_order_of_clients_changes_nothing() -> None:
    one = case(MODELS, noise=NOISE)
    order = np.random.default_rng(0).permutation(SESSIONS)
    plain, _ = one.run(one.start(PARTING), 3)
    other, _ = one.run(one.start(PARTING), 3, shuffled(one.sim.federation.arrays, order))
    np.testing.assert_array_equal(groups(other), groups(plain)[order])
    for k in range(3):
        for leaf, value in row(plain, k).items():
            np.testing.assert_allclose(row(other, k)[leaf], value, atol=1e-5)


def test_no_sample_beyond_the_training_windows_is_read() -> None:
    one = case(MODELS, noise=NOISE)
    arrays = one.sim.federation.arrays
    clean, _ = one.run(one.start(), 2)
    other, _ = one.run(one.start(), 2, grouped.blinded(arrays, arrays.train))
    grouped.assert_states(other, clean, atol=0)


def test_blocks_and_devices_change_nothing() -> None:
    one = case(MODELS, noise=NOISE)
    spread = case(MODELS, Engine(devices=2, client_block=4), noise=NOISE)
    a, b = one.run(one.start(), 3)[0], spread.run(spread.start(), 3)[0]
    grouped.assert_states(jax.device_get(a), jax.device_get(b))


def test_seeds_side_by_side_are_seeds_alone() -> None:
    one = case(MODELS, noise=NOISE)
    alone = [one.run(one.start(seed), 1)[0] for seed in (0, 1)]
    states = jax.tree.map(lambda *x: jnp.stack(x), one.start(0), one.start(1))
    many = jax.jit(jax.vmap(rounds.make_round(one.sim), in_axes=(0, None, None)))
    together, _ = many(states, one.sim.federation.arrays, one.hyper)
    for index, state in enumerate(alone):
        grouped.assert_states(jax.tree.map(lambda x, i=index: x[i], together), state)
    assert not np.allclose(row(alone[0], 0)["body"], row(alone[1], 0)["body"])


HELD = one_level(IFCA(groups=3, windows=0, warmup=2, hold=2, memory=0.5))


def test_warm_up_trains_one_row_then_rows_are_held_by_random_units() -> None:
    one = case(HELD, noise=NOISE)
    state = one.start()
    begin = [row(state, k)["body"] for k in range(3)]
    seen = []
    for done in range(1, 6):
        state, _ = one.run(state)
        seen.append(groups(state))
        if done == 2:
            assert not np.allclose(row(state, 0)["body"], begin[0])
            for k in (1, 2):
                np.testing.assert_array_equal(row(state, k)["body"], begin[k])
    assert not seen[0].any()
    assert not seen[1].any()
    assert set(seen[2]) == {0, 1, 2}  # dealt
    np.testing.assert_array_equal(seen[2], seen[3])
    # Half of what was said is remembered, from when the rows parted on: then they were copies of row 0.
    fed, after = one.sim.federation, [one.run(one.start(), done)[0] for done in (2, 3, 4)]
    said = [np.array([mean_losses(known, s, fed) for s in range(SESSIONS)]) for known in after]
    wanted = 0.25 * said[0][:, :1] + 0.25 * said[1] + 0.5 * said[2]
    np.testing.assert_allclose(state.levels[0].learned.signal, wanted, rtol=1e-4)
    np.testing.assert_array_equal(seen[4], wanted.argmin(axis=1))
    other = groups(one.run(one.start(seed=1), 3)[0])
    assert not np.array_equal(other, seen[2])  # each run deals anew


def test_rows_start_the_hold_as_copies_of_the_one_that_was_trained() -> None:
    one = case(HELD, noise=NOISE)
    warm, _ = one.run(one.start(), 2)
    held, _ = one.run(warm)
    fed, dealt = one.sim.federation, groups(held)
    for k in range(3):
        deltas = [descend(row(warm, 0), windows(fed, s), 0.5, 1) for s in np.flatnonzero(dealt == k)]
        wanted = row(warm, 0)["body"] + np.mean([d["body"] for d in deltas], axis=0)
        np.testing.assert_allclose(row(held, k)["body"], wanted, atol=1e-5)


SOFT = one_level(IFCA(groups=2, windows=0, start="keys", soft=True, floor=0.1))


def test_soft_units_use_rows_by_the_windows_that_each_predicts_best() -> None:
    """FedSoft: u_ks = max(n_ks / n_k, floor), normalized; pooling weighs updates by them."""
    one = case(SOFT, noise=2.0)
    state, fed = one.start(), one.sim.federation
    old = [row(state, k) for k in range(2)]
    share = np.zeros((SESSIONS, 2))
    for s in range(SESSIONS):
        each = np.stack([losses(model, windows(fed, s)) for model in old])
        share[s] = np.maximum(np.bincount(each.argmin(axis=0), minlength=2) / each.shape[1], 0.1)
    share /= share.sum(axis=1, keepdims=True)
    after, _ = one.run(state)
    np.testing.assert_allclose(after.levels[0].learned.share, share, atol=1e-6)
    mixed = [{n: sum(share[s, k] * old[k][n] for k in range(2)) for n in old[0]} for s in range(SESSIONS)]
    deltas = [descend(mixed[s], windows(fed, s), 0.5, 1) for s in range(SESSIONS)]
    for k in range(2):
        step = sum(share[s, k] * d["body"] for s, d in enumerate(deltas)) / share[:, k].sum()
        np.testing.assert_allclose(row(after, k)["body"], old[k]["body"] + step, atol=1e-5)
    assert len(np.unique(share[:, 0])) > 2


def known(one: grouped.Case, group: list[int], seen: list[float], signal: np.ndarray) -> State:
    """A state whose units have been heard as told."""
    state = one.start()
    share = np.eye(3, dtype=np.float32)[group]
    level, (heard, said) = state.levels[0], (jnp.asarray(x, jnp.float32) for x in (seen, signal))
    learned = level.learned._replace(seen=heard, signal=said)
    return state._replace(levels=(learned_of.with_share(level, learned, jnp.asarray(share)),))


def test_a_dead_row_starts_anew_from_the_worst_served_unit() -> None:
    """Nobody uses row 1. Unit 7 is served worst, but alone in row 2; unit 9 comes next, but is not heard."""
    one = case(MODELS, noise=NOISE)
    group = [0] * SESSIONS
    group[7] = 2
    signal = np.linspace(1, 2, SESSIONS)[:, None] + np.array([[0.0, 9.0, 0.5]])
    signal[7], signal[9] = 50.0, 40.0
    state = known(one, group, [1.0] * SESSIONS, signal)
    heard = np.ones(SESSIONS, bool)
    heard[9] = False
    after = jax.jit(assignment._reseed)(state.levels[0], jnp.asarray(heard))
    wanted = np.array(group)
    wanted[11] = 1  # the worst of the others
    np.testing.assert_array_equal(np.asarray(after.learned.share).argmax(axis=1), wanted)
    np.testing.assert_array_equal(after.members.group[:, 0], wanted)
    for leaf, rows in after.rows.items():
        np.testing.assert_array_equal(rows[1], state.levels[0].rows[leaf][0])
        np.testing.assert_array_equal(rows[jnp.array([0, 2])], state.levels[0].rows[leaf][jnp.array([0, 2])])
    # What is remembered of the dead row is what is known of the copy.
    np.testing.assert_array_equal(after.learned.signal[:, 1], signal[:, 0].astype(np.float32))


def test_no_row_is_given_away_while_all_are_used() -> None:
    one = case(MODELS, noise=NOISE)
    state = known(one, [0, 1, 2] * 4, [1.0] * SESSIONS, np.ones((SESSIONS, 3)))
    after = jax.jit(assignment._reseed)(state.levels[0], jnp.ones(SESSIONS, bool))
    grouped.assert_states(after, state.levels[0], atol=0)


def test_private_leaves_of_finer_levels_are_part_of_the_model_that_is_judged() -> None:
    """A body that is grouped, with a head of each session's own: without the head no body predicts."""
    body = Level("cluster", owns=("body",), grouping=replace(PLAIN, groups=2))
    method = replace(MODELS, levels=(body, Level("session", by="session", owns=("head/*",))))
    fed = grouped.federation(noise=NOISE)
    sim = simulator(fed, grouped.probe.predictor(), method, grouped.probe.ONE)
    state = rounds.init(sim, jnp.int32(0))
    heads = np.random.default_rng(0).normal(0, 2, (SESSIONS, toy.SHAPE.horizon, 3)).astype(np.float32)
    levels = (state.levels[0], state.levels[1]._replace(rows={"head/bias": jnp.asarray(heads)}))
    clients = first_clients(sim, state.seed, SESSIONS)
    found, _ = jax.jit(lambda *args: assignment.assign(sim, *args))(levels, fed.arrays, clients, state.round)
    bodies = np.asarray(levels[0].rows["body"], np.float64)
    wanted = [
        [losses({"body": b, "head/bias": heads[s]}, windows(fed, s)).mean() for b in bodies]
        for s in range(SESSIONS)
    ]
    np.testing.assert_allclose(found[0].learned.signal, wanted, rtol=1e-4)
    assert set(np.argmin(wanted, axis=1)) == {0, 1}
