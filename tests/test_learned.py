"""Units of learned groupings: what is known of them, which rows follow, and that one group is no grouping."""

from __future__ import annotations

import grouped
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import probe
import pytest
from grouped import SESSIONS, case, descend, one_level, windows

from fedjax_vp.federated import hierarchy, keys, levels
from fedjax_vp.federated import learned as learned_of
from fedjax_vp.federated import round as rounds
from fedjax_vp.federated.grouping.settings import CFL, IFCA, KMeans
from fedjax_vp.federated.learned import Learned
from fedjax_vp.federated.round import State
from fedjax_vp.federated.settings import Everyone, Level, Method
from fedjax_vp.federated.simulator import simulator

UPDATES = {"groups": 1, "warmup": 1, "every": 1, "sketch": 0}


def test_one_group_is_fedavg() -> None:
    """A part of the model grouped by losses, one by k-means, and one by CFL, each into one group."""
    parts = {"body": IFCA(groups=1, windows=0), "head/*": KMeans(**UPDATES), "video_table": CFL(**UPDATES)}
    levels_ = tuple(Level(name, owns=(name,), grouping=grouping) for name, grouping in parts.items())
    method = Method(levels=levels_, participation=Everyone(), local=probe.local())
    one = case(method, table=True)
    state, fed = one.start(), one.sim.federation
    model = jax.device_get(levels.model_of(state.levels, jnp.int32(0)))
    init = probe.predictor(table=True).init(keys.key_of(state.seed, keys.INIT))
    for leaf, value in init.items():  # a single row has no symmetry to break
        np.testing.assert_array_equal(model[leaf], value)
    for _ in range(3):
        deltas = [descend(model, windows(fed, s), 0.5, 1) for s in range(SESSIONS)]
        model = oracle.fedavg(model, deltas, [len(windows(fed, s)[0]) for s in range(SESSIONS)])
        state, _ = one.run(state)
    for leaf, value in levels.model_of(state.levels, jnp.int32(0)).items():
        np.testing.assert_allclose(value, model[leaf], atol=1e-5)


def beginning(level: Level, **labels: np.ndarray) -> tuple[hierarchy.Grouping, Learned]:
    """A level's units before the first round."""
    fed = grouped.federation(**labels)
    (group,) = hierarchy.groupings_of(fed.labels, (level,))
    params = probe.predictor().init(jax.random.key(0))
    return group, learned_of.init(level, group, params, tuple(sorted(params)))


def test_units_lie_within_the_groups_of_by() -> None:
    level = Level("planted", by="video", grouping=IFCA(groups=2, of="user"))
    group, known = beginning(level)
    assert group.num_groups == 3 * 2
    assert known.share.shape == (12, 2)  # user within video
    video = np.tile(np.arange(3), 4)
    np.testing.assert_array_equal(known.within[known.unit], video)
    np.testing.assert_array_equal(learned_of.members(known, soft=False).group[:, 0], video * 2)


def test_sessions_of_unknown_units_leave_the_known_ones_where_they_are() -> None:
    """The last unit is of video 0; sessions of unknown taste are of all videos."""
    taste = np.array([5, -1, -1] * 4)
    level = Level("planted", by="video", grouping=IFCA(groups=2, of="taste"))
    _, known = beginning(level, taste=taste)
    assert known.within.tolist() == [0]
    np.testing.assert_array_equal(known.unit >= 0, taste >= 0)
    found = learned_of.members(known, soft=False)
    np.testing.assert_array_equal(found.share[:, 0], taste >= 0)


def test_soft_members_use_all_rows_of_their_parent_group() -> None:
    level = Level("planted", by="video", grouping=IFCA(groups=2, of="user", soft=True))
    _, known = beginning(level)
    share = np.random.default_rng(0).dirichlet([1, 1], 12).astype(np.float32)
    found = learned_of.members(known._replace(share=jnp.asarray(share)), soft=True)
    np.testing.assert_array_equal(found.group, np.tile(np.arange(3), 4)[:, None] * 2 + [0, 1])
    np.testing.assert_array_equal(found.share, share[np.asarray(known.unit)])


def plain(units: int, unit: list[int], groups: int = 2) -> Learned:
    return Learned(
        unit=jnp.asarray(unit, jnp.int32),
        within=jnp.zeros(units, jnp.int32),
        share=jnp.zeros((units, groups)).at[:, 0].set(1.0),
        seen=jnp.zeros(units),
        signal=jnp.zeros((units, 2)),
        peak=jnp.zeros(()),
        heard=jnp.zeros(len(unit), bool),
    )


def test_reports_of_a_unit_are_averaged_by_weight_and_remembered() -> None:
    """Units of four sessions: 0, 0, 1, unknown. Unit 1 does not report in the second round, unit 2 never."""
    known = plain(3, [0, 0, 1, -1])
    session, value = jnp.arange(4), jnp.array([[1.0, 0.0], [4.0, 3.0], [7.0, 7.0], [9.0, 9.0]])
    known, heard = learned_of.observe(known, session, jnp.array([1.0, 2.0, 1.0, 5.0]), value, 0.5)
    assert heard.tolist() == [True, True, False]
    np.testing.assert_allclose(known.signal, [[3.0, 2.0], [7.0, 7.0], [0.0, 0.0]])  # no memory of nothing
    known, heard = learned_of.observe(known, session, jnp.array([1.0, 0.0, 0.0, 0.0]), value, 0.5)
    assert heard.tolist() == [True, False, False]
    np.testing.assert_allclose(known.signal, [[2.0, 1.0], [7.0, 7.0], [0.0, 0.0]])
    np.testing.assert_allclose(known.seen, [4.0, 1.0, 0.0])


def test_rows_are_used_by_units_that_took_part() -> None:
    known = plain(3, [0, 1, 2])._replace(seen=jnp.array([1.0, 2.0, 0.0]))
    known = known._replace(share=jnp.array([[1.0, 0.0], [0.25, 0.75], [0.0, 1.0]]))
    np.testing.assert_allclose(learned_of.users(known, 2), [1.25, 0.75])


BOTH = Method(
    levels=(
        Level("a", owns=("body",), grouping=KMeans(groups=3, warmup=9, sketch=0, memory=0.0)),
        Level("b", owns=("head/*",), grouping=CFL(groups=3, warmup=9, sketch=0)),
    ),
    participation=Everyone(),
    local=probe.local(),
)


def updates(one: grouped.Case, state: State) -> list[dict[str, np.ndarray]]:
    """Of every session, from the rows it uses."""
    fed = one.sim.federation
    models = [levels.model_of(state.levels, jnp.int32(s)) for s in range(SESSIONS)]
    return [descend(model, windows(fed, s), 0.5, 1) for s, model in enumerate(models)]


def test_updates_count_from_the_middle_of_the_rows_in_use() -> None:
    """While one row is used, evidence is the update alone; then it tells where its group's row lies, too."""
    one = case(BOTH, noise=0.4)
    start = one.start()
    first, _ = one.run(start)
    wanted = [delta["body"] for delta in updates(one, start)]
    np.testing.assert_allclose(first.levels[0].learned.signal, wanted, atol=1e-5)

    dealt = np.arange(SESSIONS) % 2 * 2  # rows 0 and 2; row 1 lies elsewhere, unused
    level = first.levels[0]
    rows = level.rows["body"].at[2].add(0.5)
    moved = level._replace(rows={"body": rows})
    moved = learned_of.with_share(moved, level.learned, jnp.eye(3)[dealt])
    parted = first._replace(levels=(moved, first.levels[1]))
    middle = (rows[0] + rows[2]) / 2
    wanted = [d["body"] + rows[k] - middle for d, k in zip(updates(one, parted), dealt, strict=True)]
    second, _ = one.run(parted)
    np.testing.assert_allclose(second.levels[0].learned.signal, wanted, atol=1e-5)
    assert np.abs(rows[1] - middle).max() > 0.1


def test_cfl_sees_updates_as_they_are_and_their_largest_mean() -> None:
    one = case(BOTH, noise=0.4)
    state, peak = one.start(), 0.0
    for _ in range(2):
        wanted = np.array([d["head/bias"].reshape(-1) for d in updates(one, state)])
        peak = max(peak, float(np.linalg.norm(wanted.mean(axis=0))))
        state, _ = one.run(state)
        np.testing.assert_allclose(state.levels[1].learned.signal, wanted, atol=1e-5)
        assert float(state.levels[1].learned.peak) == pytest.approx(peak, rel=1e-4)


def test_each_run_starts_from_rows_of_its_own() -> None:
    method = one_level(IFCA(groups=3, windows=0, spread=0.1))
    sim = simulator(grouped.federation(), probe.predictor(), method, probe.ONE)
    init = jax.jit(lambda seed: rounds.init(sim, seed).levels[0].rows["body"])
    base = jax.jit(lambda seed: probe.predictor().init(keys.key_of(seed, keys.INIT))["body"])
    noise = [np.asarray(init(seed) - base(seed)[None]) for seed in (0, 1)]
    assert all(len({tuple(x) for x in rows.round(6)}) == 3 for rows in noise)
    size = [np.sqrt(np.mean(np.asarray(base(seed)) ** 2)) for seed in (0, 1)]
    assert not np.allclose(noise[0] / size[0], noise[1] / size[1], atol=1e-3)
    assert np.abs(noise[0]).max() < 0.5 * size[0]
