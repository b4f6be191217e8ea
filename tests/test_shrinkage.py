"""Partial pooling by empirical Bayes: its moments by analysis of variance, its aim by the best shrinkage."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pools
import pytest

from fedjax_vp.federated import bundles, hierarchy, levels, pooling, shrinkage, sums
from fedjax_vp.federated.server import Adaptive, Average, Optax, Schedule, ServerOptimizer
from fedjax_vp.federated.settings import Level, Method
from fedjax_vp.federated.sums import Unit

AUTO = (
    Level("global", owns=("body", "head/*"), server=Average(lr=0.6)),
    Level("video", by="video", owns=("body", "head/*"), shrinkage="auto", progress=0.5),
    Level("user", by="user", shrinkage="auto"),
)


@pytest.fixture(scope="module")
def auto() -> pools.Case:
    return pools.case(AUTO)


def test_moments_are_those_of_an_analysis_of_variance(auto: pools.Case) -> None:
    """Body and head, at two crossed levels, from residuals that are worked out client by client."""
    units = pools.reports(2, (4,))
    found = auto.pool(auto.states, units, auto.hyper)
    session = np.asarray(units["body"].session)
    for leaf, columns in (("body", [slice(None)]), ("head/bias", [0, 1, 2])):
        residuals, pooled = _residuals(auto, found, units[leaf], leaf)
        for state, rows in zip(found, pooled, strict=True):
            np.testing.assert_allclose(state.rows[leaf], rows, atol=2e-5, rtol=2e-5)
        for index, group, h in ((1, pools.VIDEO, 0.5), (2, pools.USER, 1.0)):
            seen = found[index].variance
            name, at = pools.bundle_of(auto, leaf)
            rows = np.asarray(auto.states[index].rows[leaf], np.float64)
            for out, column in enumerate(columns):
                parts = [
                    _anova(residuals[index], units[leaf].weight, rows, group[session], h, p)
                    for p in np.ndindex(rows.shape[1:])
                    if column == slice(None) or p[-1] == column
                ]
                wanted = np.mean(parts, axis=0)
                got = np.asarray(seen.moments[name])[:, at][:, out]
                np.testing.assert_allclose(got / (1 - shrinkage.DECAY), wanted, rtol=2e-4)
    assert float(found[1].variance.weight) == pytest.approx(1 - shrinkage.DECAY)


def _residuals(
    one: pools.Case, found: tuple[levels.LevelState, ...], unit: Unit, leaf: str
) -> tuple[list[np.ndarray], list[Any]]:
    """Residuals before each level, and rows after it, with the shrinkage that the engine reports."""
    plain = []
    for index, state in enumerate(one.states):
        sums = [np.zeros(state.mass.shape[0]) for _ in range(2)]
        group = np.asarray(state.members.group[:, 0])[np.asarray(unit.session)]
        for i, g in enumerate(group):
            w = float(np.asarray(unit.weight[i]).reshape(-1)[0])
            sums[0][g] += w
            sums[1][g] += w**2
        s = np.ones((1,) * unit.delta.ndim)
        if index:
            name, at = pools.bundle_of(one, leaf)
            mass, square = (jnp.asarray(x[:, None], jnp.float32) for x in sums)
            s = shrinkage.factor(found[index].variance, name, mass, square)[..., at]
            s = s.reshape(-1, *bundles.stat_shape(leaf, unit.delta.shape[1:]))
        plain.append(
            oracle.Level(
                rows={leaf: np.asarray(state.rows[leaf])},
                code=np.asarray(state.members.group[:, 0]),
                shrinkage=np.asarray(s),
                progress=float(one.hyper.progress[index]),
                lr=float(one.hyper.server_lr[index]),
            )
        )
    reported = oracle.Units(unit.delta, unit.weight, np.asarray(unit.session))
    rows = oracle.pool(plain, leaf, reported)
    return reported.residual, rows


def _anova(
    residual: np.ndarray, weight: Any, rows: np.ndarray, group: np.ndarray, h: float, at: tuple[int, ...]
) -> tuple[float, float, float]:
    value = residual[(slice(None), *at)]
    w = np.asarray(weight, np.float64).reshape(len(value), -1)[:, 0]
    signal, noise, sigma2 = oracle.anova(value, w, group, centered=True)
    # The spread of z = m + h delta is what matters, and m is what the analysis calls a group's mean.
    groups = [g for g in sorted(set(group)) if w[group == g].sum() > 0]
    z = [np.average(value[group == g], weights=w[group == g]) + h * rows[(g, *at)] for g in groups]
    del signal
    return float(np.sum(np.square(z)) / (len(groups) - 1)), noise, sigma2


class Problem(NamedTuple):
    """Noisy means of many groups of unequal size."""

    group: np.ndarray
    weight: np.ndarray
    value: np.ndarray  # [unit, p] every client's own optimum
    truth: np.ndarray  # [group, p] the groups' true deviations
    center: np.ndarray  # [p]
    best: np.ndarray  # [group] the best linear shrinkage, from the true variances


def means(tau: float, sigma: float, largest: int, seed: int = 0, groups: int = 600, p: int = 4) -> Problem:
    rng = np.random.default_rng(seed)
    size = rng.integers(1, largest + 1, groups)
    group = np.repeat(np.arange(groups), size)
    weight = rng.integers(1, 5, len(group)).astype(float)
    truth, center = tau * rng.normal(size=(groups, p)), 2 * rng.normal(size=p)
    value = center + truth[group] + sigma * rng.normal(size=(len(group), p))
    one_over_n = np.bincount(group, weight**2) / np.bincount(group, weight) ** 2
    return Problem(group, weight, value, truth, center, tau**2 / (tau**2 + sigma**2 * one_over_n))


def best_linear(problem: Problem) -> np.ndarray:
    """Groups' deviations from the generalized mean, shrunk with the true variances."""
    mass = np.bincount(problem.group, problem.weight)
    mean = np.stack([np.bincount(problem.group, problem.weight * v) / mass for v in problem.value.T], axis=1)
    trust = problem.best[:, None]
    center = (trust * mean).sum(axis=0) / trust.sum()
    return center + trust * (mean - center)


def run_rounds(
    problem: Problem,
    start: np.ndarray,
    halves: np.ndarray | None,
    rounds: int = 250,
    **level: Any,
) -> np.ndarray:
    """Models of all groups after rounds in which clients go `progress` of the way to their optimum."""
    progress = level.get("progress", 1.0)
    settings = (Level("global"), Level("leaf", by="leaf", **{"shrinkage": "auto", **level}))
    count = len(problem.truth)
    labels = {"session": np.arange(len(problem.group)), "leaf": problem.group}
    groupings = [hierarchy.grouping(labels, level.by) for level in settings]
    client_of = np.arange(len(problem.group))
    layout = hierarchy.layout(Method(levels=settings), groupings, ["body"], client_of)
    params = {"body": jnp.zeros(problem.value.shape[1])}
    fresh = levels.init(layout, groupings, params)
    states = (fresh[0], fresh[1]._replace(rows={"body": jnp.asarray(start, jnp.float32)}))
    value, group = jnp.asarray(problem.value, jnp.float32), jnp.asarray(problem.group)
    weight = jnp.asarray(problem.weight, jnp.float32)[:, None]
    noise = jnp.zeros((0,)) if halves is None else jnp.asarray(halves, jnp.float32)
    whole = jnp.ones(())

    @jax.jit
    def run(states: Any) -> Any:
        def body(index: jax.Array, states: Any) -> Any:
            theta = states[0].rows["body"] + states[1].rows["body"][group]
            unit = Unit(progress * (value - theta), noise, weight, jnp.asarray(client_of, jnp.int32))
            totals = sums.add(sums.zeros(layout, params), states, layout, {"body": unit})
            clock = (index, jnp.int32(rounds))
            return pooling.pool(layout, states, totals, whole, pools.hyper_of(settings), clock)

        return jax.lax.fori_loop(0, rounds, body, states)

    final = run(states)
    assert final[1].rows["body"].shape == (count, problem.value.shape[1])
    return np.asarray(final[0].rows["body"] + final[1].rows["body"], np.float64)


STARTS = {
    "from zero": lambda shape: np.zeros(shape),
    "from far away": lambda shape: 5 * np.random.default_rng(9).normal(size=shape) + 3,
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("tau", "progress"), [(0.5, 1.0), (0.2, 0.5), (2.0, 0.3)])
def test_auto_reaches_the_best_linear_shrinkage(start: str, tau: float, progress: float) -> None:
    """Within 2 % of the squared error that the true variances would give, whatever the rows began with."""
    problem = means(tau, sigma=1.0, largest=8)
    found = run_rounds(problem, STARTS[start](problem.truth.shape), None, progress=progress)
    goal = problem.center + problem.truth
    error, best = np.mean((found - goal) ** 2), np.mean((best_linear(problem) - goal) ** 2)
    assert error <= 1.02 * best
    unshrunk = np.mean((best_linear(problem._replace(best=np.ones(len(goal)))) - goal) ** 2)
    assert best < 0.95 * unshrunk  # shrinkage matters here, so that the first bound says something


@pytest.mark.parametrize("start", STARTS)
def test_leaves_of_one_session_take_the_noise_from_their_halves(start: str) -> None:
    """One client a group: no residual tells sigma^2, but the two halves of a client's steps do."""
    problem = means(tau=0.6, sigma=1.0, largest=1, seed=3, groups=1500)
    halves = np.random.default_rng(4).normal(size=problem.value.shape)  # var = sigma^2 of an update, h = 1
    found = run_rounds(problem, STARTS[start](problem.truth.shape), halves)
    goal = problem.center + problem.truth
    assert np.mean((found - goal) ** 2) <= 1.02 * np.mean((best_linear(problem) - goal) ** 2)


def test_no_signal_means_no_rows() -> None:
    """Groups that differ by noise alone are shrunk to nothing: tau^2 is cut at 0."""
    problem = means(tau=0.0, sigma=1.0, largest=8)
    found = run_rounds(problem, np.zeros(problem.truth.shape), None)
    apart = found - found.mean(axis=0)
    unshrunk = best_linear(problem._replace(best=np.ones(len(found))))
    assert np.mean(apart**2) < 0.01 * np.mean((unshrunk - unshrunk.mean(axis=0)) ** 2)


def test_no_noise_means_no_shrinkage() -> None:
    problem = means(tau=1.0, sigma=0.0, largest=8)
    found = run_rounds(problem, np.zeros(problem.truth.shape), None)
    np.testing.assert_allclose(found, problem.center + problem.truth, atol=1e-3)


FALLING = Schedule("cosine", final=0.0)
SERVERS: dict[str, tuple[ServerOptimizer, int]] = {
    "half rate": (Average(lr=0.5), 60),
    "falling rate": (Average(lr=0.8, schedule=FALLING), 120),
    "momentum": (Average(lr=0.5, momentum=0.3), 90),
    "adam": (Adaptive(lr=0.3, beta2=0.9, schedule=FALLING), 400),
    "of optax": (Optax(name="rmsprop", lr=0.3, schedule=FALLING), 400),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", SERVERS)
def test_fixed_shrinkage_rests_at_its_share_of_the_optimum(name: str, start: str) -> None:
    """One client a group, half way a round: rows end at s times the group's own deviation, at any rate."""
    optimizer, rounds = SERVERS[name]
    problem = means(tau=1.0, sigma=0.0, largest=1, groups=6)
    begin = STARTS[start](problem.truth.shape)
    level = {"shrinkage": 0.3, "progress": 0.5, "server": optimizer}
    found = run_rounds(problem, begin, None, rounds, **level)
    center = found.mean(axis=0) - 0.3 * problem.truth.mean(axis=0)
    np.testing.assert_allclose(found - center, 0.3 * problem.truth, atol=5e-3)


def test_sessions_of_unknown_group_say_nothing_of_its_noise() -> None:
    """With a third of the sessions unknown at the user level its variances are those of the others alone."""
    known = np.arange(len(pools.USER)) % 3 > 0
    case = pools.case(AUTO, {**pools.LABELS, "user": np.where(known, pools.USER, -1)})
    units = pools.reports(2, (4,))
    found = case.pool(case.states, units, case.hyper)
    session = np.asarray(units["body"].session)
    heard = known[session]
    assert heard.any()
    assert not heard.all()
    for leaf in ("body", "head/bias"):
        residual = _residuals(case, found, units[leaf], leaf)[0][2]
        rows = np.asarray(case.states[2].rows[leaf], np.float64)
        places = [p for p in np.ndindex(rows.shape[1:]) if leaf == "body" or p[-1] == 0]
        group, weight = pools.USER[session], np.asarray(units[leaf].weight)
        parts = [_anova(residual[heard], weight[heard], rows, group[heard], 1.0, p) for p in places]
        name, at = pools.bundle_of(case, leaf)
        sigma2 = np.asarray(found[2].variance.moments[name])[2, at][0] / (1 - shrinkage.DECAY)
        np.testing.assert_allclose(sigma2, np.mean(parts, axis=0)[2], rtol=2e-4)


def test_shrinkage_is_a_share_and_grows_with_a_group(auto: pools.Case) -> None:
    found = auto.pool(auto.states, pools.reports(5), auto.hyper)
    weight = jnp.asarray([1.0, 4.0, 16.0, 0.0])[:, None]
    s = np.asarray(shrinkage.factor(found[2].variance, "body", weight, weight))[:3, 0]
    assert (s >= 0).all()
    assert (s <= 1).all()
    assert (np.diff(s) >= 0).all()


def test_head_units_have_variances_of_their_own() -> None:
    assert bundles.stat_shape("head/kernel", (8, 6)) == (1, 6)
    assert bundles.stat_shape("head/bias", (6,)) == (6,)
    assert bundles.stat_shape("dense_0/kernel", (8, 6)) == (1, 1)
    assert bundles.stat_shape("video_table", (9, 2, 3)) == (1, 1, 1)


@pytest.mark.parametrize("denominator", ["participants", "population"])
def test_variances_need_the_groups_own_means(denominator: str) -> None:
    with pytest.raises(ValueError, match="auto needs the groups' own means"):
        Level("user", by="user", shrinkage="auto", denominator=denominator)
