"""The contract of a round, over every recipe: signatures, one trace, finite values, a state that keeps."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import probe
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_vp.algorithms import RECIPES
from fedjax_vp.config import load_config
from fedjax_vp.federated import round as rounds
from fedjax_vp.federated.settings import Method


def method_of(name: str) -> tuple[Method, bool]:
    """A recipe's method with little work, and whether its model has a table."""
    config = load_config({"algorithm": name})
    batch = min(config.local.batch, 4)
    method = replace(
        config.method, local=replace(config.local, batch=batch, steps=min(config.local.steps, 2))
    )
    return method, config.model.features.table > 0


def kinds(tree: Any) -> Any:
    """Structure, shapes, dtypes and weak types."""
    flat, structure = jax.tree.flatten(tree)
    return structure, [(x.shape, x.dtype, x.weak_type) for x in flat]


@pytest.mark.contract
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_round_keeps_the_contract(name: str) -> None:
    method, table = method_of(name)
    sim = probe.sim(method, probe.ONE, table)
    traces = 0
    round_fn = rounds.make_round(sim)
    assert list(inspect.signature(round_fn).parameters) == ["state", "arrays", "numbers"]

    @jax.jit
    def counted(state: rounds.State, arrays: Any, numbers: rounds.Hyper) -> Any:
        nonlocal traces
        traces += 1
        return round_fn(state, arrays, numbers)

    state = jax.device_put(rounds.init(sim, jnp.int32(3)), NamedSharding(sim.mesh, PartitionSpec()))
    first = state
    for index in range(3):
        before = state
        numbers = rounds.hyper(method, 10 + index)  # other numbers are no other program
        state, info = counted(state, sim.federation.arrays, numbers)
        assert kinds(state) == kinds(before)
        assert all(x.shape == () for x in info)
        assert np.isfinite(float(info.loss))
        assert bool(info.healthy)
        assert int(info.reported) > 0
    assert traces == 1
    assert int(state.round) == 3
    assert int(state.seed) == 3
    for x in jax.tree.leaves(state):
        assert np.isfinite(x).all()
    for level, old, new in zip(method.levels, first.levels, state.levels, strict=True):
        moved = any((old.rows[n] != new.rows[n]).any() for n in old.rows)
        assert moved or level.shrinkage == "auto"  # which may find nothing that tells the groups apart


@pytest.mark.contract
def test_a_run_is_a_function_of_its_seed() -> None:
    method, table = method_of("fedavg")
    sim = probe.sim(method, probe.ONE, table)
    run = jax.jit(rounds.make_round(sim))
    found = [
        run(rounds.init(sim, jnp.int32(s)), sim.federation.arrays, rounds.hyper(method, 5)) for s in (1, 1, 2)
    ]
    jax.tree.map(np.testing.assert_array_equal, found[0], found[1])
    assert (found[0][0].levels[0].rows["body"] != found[2][0].levels[0].rows["body"]).all()


@pytest.mark.contract
def test_every_recipe_builds_a_method_whose_levels_own_every_leaf() -> None:
    leaves = list(probe.predictor(table=True).init(jax.random.key(0)))
    for name in RECIPES:
        method, table = method_of(name)
        mine = leaves if table else [n for n in leaves if n != "video_table"]
        layout = probe.sim(method, probe.ONE, table).layout
        assert {n for names in layout.owned for n in names} == set(mine)
