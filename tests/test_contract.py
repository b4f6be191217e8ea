"""The contract of a round, over every recipe: signatures, one trace, finite values, a state that keeps.

Run step by step, compiled, in a loop on the device, or side by side over seeds, a round is the same function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import probe
import pytest
import toy
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_vp.algorithms import RECIPES
from fedjax_vp.config import load_config
from fedjax_vp.federated import round as rounds
from fedjax_vp.federated.components import mixture
from fedjax_vp.federated.round import RoundInfo, State
from fedjax_vp.federated.settings import Method
from fedjax_vp.federated.simulator import ACCELERATOR_BLOCK, Simulator, simulator
from fedjax_vp.models import BASELINES, MODELS


def method_of(name: str) -> tuple[Method, bool]:
    """A recipe's method with little work, and whether its model has a table."""
    config = load_config({"algorithm": name})
    batch = min(config.local.batch, 4)
    method = replace(
        config.method, local=replace(config.local, batch=batch, steps=min(config.local.steps, 2))
    )
    return method, config.model.features.crowd


SAME_ROUND = {
    "fedgroup": "update_kmeans",
    "fl_hc": "update_kmeans",
    "feddrift": "ifca",
    "finetune": "fedavg",
    "pacfl": "oracle",
    "oracle_paths": "global_video_user",
}


class Built(NamedTuple):
    """A recipe on a tiny federation, with its round compiled once for all tests."""

    name: str
    sim: Simulator
    round: Callable[[State, Any, rounds.Hyper], tuple[State, RoundInfo]]
    traces: list[None]  # one entry a trace

    def start(self, seed: int = 3) -> State:
        """The state before the first round, laid out as a round returns it."""
        state = rounds.init(self.sim, jnp.int32(seed))
        return jax.device_put(state, NamedSharding(self.sim.mesh, PartitionSpec()))


def build(name: str) -> Built:
    method, table = method_of(name)
    walks = toy.traces(users=2, videos=2, time=24)
    planted = {"user_category": walks.user % 2, "video_category": walks.video % 2}
    federation = probe.relabel(walks, method.client, **planted)
    predictor = mixture(method.components, probe.predictor(table, crowd=table))
    sim = simulator(federation, predictor, method, probe.ONE)
    round_fn, traces = rounds.make_round(sim), []

    @jax.jit
    def counted(state: State, arrays: Any, numbers: rounds.Hyper) -> tuple[State, RoundInfo]:
        traces.append(None)
        return round_fn(state, arrays, numbers)

    return Built(name, sim, counted, traces)


@pytest.fixture(scope="module", params=RECIPES)
def built(request: pytest.FixtureRequest) -> Built:
    return build(request.param)


def kinds(tree: Any) -> Any:
    """Structure, shapes, dtypes and weak types."""
    flat, structure = jax.tree.flatten(tree)
    return structure, [(x.shape, x.dtype, x.weak_type) for x in flat]


@pytest.mark.contract
def test_a_recipes_round_keeps_the_contract(built: Built) -> None:
    method = built.sim.method
    assert list(inspect.signature(rounds.make_round(built.sim)).parameters) == ["state", "arrays", "numbers"]
    state = first = built.start()
    for index in range(3):
        before = state
        numbers = rounds.hyper(method, 10 + index)  # other numbers are no other program
        state, info = built.round(state, built.sim.federation.arrays, numbers)
        assert kinds(state) == kinds(before)
        assert info.healthy.shape == (1 + len(method.experts),)  # of each model
        others = info._replace(healthy=info.loss)
        assert all(x.shape in ((), (len(method.levels),)) for x in others)  # of the round, or of each level
        assert np.isfinite(float(info.loss))
        assert bool(info.healthy)
        assert int(info.reported) > 0
    assert len(built.traces) == 1
    assert int(state.round) == 3
    assert int(state.seed) == 3
    for x in jax.tree.leaves(state):
        assert np.isfinite(x).all()
    for level, old, new in zip(method.levels, first.levels, state.levels, strict=True):
        moved = any((old.rows[n] != new.rows[n]).any() for n in old.rows)
        # `auto` may find nothing that tells the groups apart; the crowd is counted before the first round.
        assert moved or level.shrinkage == "auto" or old.rows.keys() == {"video_crowd"}


def assert_close(found: Any, wanted: Any, what: str) -> None:
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5, rtol=2e-5, err_msg=what)


ALWAYS = ("fedavg", "five_layers", "ifca")  # what compiles long is tried of the others by `pytest -m slow`


def some_slow(names: list[str], always: tuple[str, ...]) -> list[Any]:
    return [pytest.param(name, marks=() if name in always else pytest.mark.slow) for name in names]


@pytest.mark.contract
@pytest.mark.parametrize("built", some_slow(RECIPES, ALWAYS), indirect=True)
def test_a_loop_of_rounds_side_by_side_over_seeds_is_each_round_alone(built: Built) -> None:
    """jit = scan = vmap over seeds."""
    if built.name in SAME_ROUND:
        pytest.skip(f"its round is that of {SAME_ROUND[built.name]}: they differ between rounds")
    arrays, numbers = built.sim.federation.arrays, rounds.hyper(built.sim.method, 10)
    alone = {seed: [(built.start(seed), None)] for seed in (3, 8)}
    for ran in alone.values():
        for _ in range(2):
            ran.append(built.round(ran[-1][0], arrays, numbers))

    @jax.jit
    def many(seeds: jax.Array) -> tuple[State, RoundInfo]:
        chunk = rounds.make_chunk(built.sim, 2)
        start = jax.vmap(lambda seed: rounds.init(built.sim, seed))  # over seeds
        return jax.vmap(chunk, in_axes=(0, None, None, None))(start(seeds), arrays, numbers, jnp.int32(2))

    states, infos = many(jnp.asarray(list(alone), jnp.int32))
    for index, (seed, ran) in enumerate(alone.items()):
        assert_close(jax.tree.map(lambda x, i=index: x[i], states), ran[-1][0], f"states of seed {seed}")
        for step in (0, 1):
            info = jax.tree.map(lambda x, i=index, s=step: x[i, s], infos)
            assert_close(info, ran[1 + step][1], f"round {step} of seed {seed}")


@pytest.mark.contract
@pytest.mark.parametrize(
    "name", some_slow(["fedavg", "global_video_user"], ALWAYS)
)  # eager rounds compile every operation apart
def test_an_eager_round_is_the_compiled_one(name: str) -> None:
    one = build(name)
    given = one.start(), one.sim.federation.arrays, rounds.hyper(one.sim.method, 10)
    assert_close(rounds.make_round(one.sim)(*given), one.round(*given), name)


@pytest.mark.contract
@pytest.mark.parametrize("block", [1, ACCELERATOR_BLOCK])
def test_a_recipes_round_lowers_for_accelerators(built: Built, block: int) -> None:
    """On a machine that has none: client by client, and side by side as an accelerator does by default."""
    if built.name in SAME_ROUND:
        return
    round_fn = jax.jit(rounds.make_round(built.sim._replace(block=block)))
    given = built.start(), built.sim.federation.arrays, rounds.hyper(built.sim.method, 10)
    lowered = jax.export.export(round_fn, platforms=["cuda", "tpu"])(*given)
    assert lowered.platforms == ("cuda", "tpu")


@pytest.mark.contract
@pytest.mark.parametrize(
    "kind", some_slow([kind for kind in MODELS if kind not in BASELINES], ("gru", "mlp"))
)
def test_training_of_every_model_lowers_for_accelerators(kind: str) -> None:
    predictor = load_config({"model": kind}).model.build(toy.SHAPE)
    sim = simulator(toy.federation(users=2, videos=2, time=24), predictor, Method(), probe.ONE)
    given = rounds.init(sim, jnp.int32(0)), sim.federation.arrays, rounds.hyper(sim.method, 10)
    round_fn = jax.jit(rounds.make_round(sim._replace(block=ACCELERATOR_BLOCK)))
    jax.export.export(round_fn, platforms=["cuda", "tpu"])(*given)


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
    for name in RECIPES:
        sim = build(name).sim
        leaves = jax.eval_shape(sim.task.predictor.init, jax.random.key(0))
        assert {n for names in sim.layout.owned for n in names} == set(leaves), name
