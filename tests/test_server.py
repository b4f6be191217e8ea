"""Server optimizers against plain NumPy (Reddi et al.), schedules against their definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pools
import pytest

from fedjax_vp.errors import UserError
from fedjax_vp.federated import server
from fedjax_vp.federated.server import Adaptive, Average, Optax, Schedule
from fedjax_vp.federated.settings import Level

ROUNDS = 5


@pytest.mark.parametrize("kind", ["adagrad", "yogi", "adam"])
def test_adaptive_optimizers_follow_the_paper_over_rounds(kind: str) -> None:
    """At two levels, in rounds in which some groups and some bins of a table stay away."""
    settings = Adaptive(kind=kind, lr=0.1, beta1=0.8, beta2=0.95, tau=1e-2)
    levels = (Level("global", server=settings), Level("user", by="user", server=settings, shrinkage=0.5))
    one = pools.case(levels)
    servers = {i: _Masked(oracle.Adaptive(kind, 0.8, 0.95, 1e-2)) for i in range(2)}
    for index in range(ROUNDS):
        units = pools.reports(index, (0, 1, 2) if index % 2 else ())
        for masked in servers.values():
            masked.units = units
        wanted = pools.by_hand(one, units, servers=servers)
        states = one.pool(one.states, units, one.hyper, round_index=index)
        pools.assert_rows(states, wanted, atol=1e-4)
        one = one._replace(states=states)


class _Masked:
    """The oracle's optimizer, whose moments stand still where nobody reports (an update of exactly 0)."""

    def __init__(self, inner: oracle.Adaptive) -> None:
        self.inner, self.units = inner, {}

    def __call__(self, leaf: str, group: int, update: np.ndarray) -> np.ndarray:
        before = self.inner.moments.get((leaf, group))
        direction = self.inner(leaf, group, update)
        if before is None:
            before = np.zeros_like(update), np.full_like(update, self.inner.tau**2)
        moved = update != 0
        after = self.inner.moments[leaf, group]
        self.inner.moments[leaf, group] = tuple(
            np.where(moved, new, old) for new, old in zip(after, before, strict=True)
        )
        return direction


def test_momentum_is_heavy_ball() -> None:
    levels = (Level("global", server=Average(lr=0.5, momentum=0.9)),)
    one = pools.case(levels)
    row, speed = np.asarray(one.states[0].rows["body"][0], np.float64), 0.0
    states = one.states
    for index in range(ROUNDS):
        units = pools.reports(index)
        delta, weight = (np.asarray(x, np.float64) for x in (units["body"].delta, units["body"].weight))
        speed = 0.9 * speed + (weight * delta).sum(axis=0) / weight.sum()
        row = row + 0.5 * speed
        states = one.pool(states, units, one.hyper)
        np.testing.assert_allclose(states[0].rows["body"][0], row, atol=1e-5)


def test_any_optimizer_of_optax_descends_along_the_pooled_update() -> None:
    levels = (Level("global", server=Optax(name="adam", lr=0.3, options={"b1": 0.5})),)
    one = pools.case(levels)
    theirs = optax.adam(0.3, b1=0.5)
    params = {n: r[0] for n, r in one.states[0].rows.items()}
    state, states = theirs.init(params), one.states
    for index in range(3):
        units = pools.reports(index)
        mean = {
            n: jnp.sum(u.weight * u.delta, axis=0) / jnp.maximum(jnp.sum(u.weight, axis=0), 1e-9)
            for n, u in units.items()
        }
        update, state = theirs.update(jax.tree.map(lambda x: -x, mean), state, params)
        params = optax.apply_updates(params, update)
        states = one.pool(states, units, one.hyper)
        np.testing.assert_allclose(states[0].rows["body"][0], params["body"], atol=2e-5)


def test_plain_averaging_keeps_no_state() -> None:
    assert not jax.tree.leaves(server.transformation(Average()).init({"w": jnp.ones(3)}))


def test_an_unknown_optimizer_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="optax has no optimizer 'adamm'"):
        server.transformation(Optax(name="adamm"))


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        (Schedule(), [1, 1, 1, 1, 1]),
        (Schedule("linear"), [1, 0.75, 0.5, 0.25, 0]),
        (Schedule("linear", final=0.2), [1, 0.8, 0.6, 0.4, 0.2]),
        (Schedule("cosine"), [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0]),
        (Schedule("constant", warmup=0.5), [2 / 81, 42 / 81, 1, 1, 1]),
        (Schedule("linear", warmup=0.5), [2 / 81, 42 / 81, 1, 0.5, 0]),
    ],
)
def test_schedules(schedule: Schedule, wanted: list[float]) -> None:
    found = [float(server.factor(schedule, r, 81)) for r in (0, 20, 40, 60, 80)]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_run_of_one_round_is_not_scaled() -> None:
    assert float(server.factor(Schedule("linear", final=0.2), 0, 1)) == 1


def test_the_first_round_of_a_warm_up_moves() -> None:
    assert float(server.factor(Schedule(warmup=0.3), 0, 10)) > 0


def test_learning_rate_and_schedule_scale_a_levels_step() -> None:
    levels = (Level("global", server=Average(lr=0.5, schedule=Schedule("linear"))),)
    one, units = pools.case(levels), pools.reports(0)
    old = one.states[0].rows["body"]
    steps = [one.pool(one.states, units, one.hyper, round_index=r)[0].rows["body"] - old for r in (0, 5)]
    np.testing.assert_allclose(steps[1], 4 / 9 * steps[0], rtol=1e-5, atol=1e-6)


def test_a_misspelt_option_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="optax's adam does not take these options"):
        server.transformation(Optax(name="adam", options={"beta1": 0.9}))
