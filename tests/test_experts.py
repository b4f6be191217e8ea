"""Methods trained beside a hierarchy and mixed with it: each is what it is alone, and none is forgotten."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import probe
import pytest
import toy

from fedjax_vp import evaluate, forecasting
from fedjax_vp.batching import static_part
from fedjax_vp.config import load_config
from fedjax_vp.cost import by_depth
from fedjax_vp.course import PER_ROUND, Course
from fedjax_vp.errors import UserError
from fedjax_vp.federated import hedging, mixing
from fedjax_vp.federated.federation import build
from fedjax_vp.federated.grouping.settings import IFCA
from fedjax_vp.federated.settings import Adapt, Engine, Evaluate, Level, Method, Mixing, Uniform
from fedjax_vp.problem import Common, Point, Problem
from fedjax_vp.simulate import simulate

ROUNDS = 5
TRACES = toy.traces()
SPLIT = toy.split(TRACES)
VALID = SPLIT.train & (np.arange(SPLIT.train.shape[1])[None, :] % 5 == 0)
SPLIT = SPLIT._replace(train=SPLIT.train & ~VALID, valid=VALID)
SLOTS: dict[str, Any] = {"participation": Uniform(clients=5), "local": probe.local(batch=4, steps=2, lr=0.3)}
PLAIN = Method(**SLOTS)
BY_VIDEO = Method(levels=(Level("video", by="video"),), **SLOTS)
STACK = Method(
    levels=(Level("global"), Level("video", by="video", owns=("head/*",), shrinkage=0.5)),
    mixing=Mixing("mixture"),
    **SLOTS,
)
BOTH = replace(
    STACK,
    mixing=Mixing("mixture", experts=("plain", "by_video"), online=1.0),
    experts=(PLAIN, BY_VIDEO),
)
METHODS = {
    "plain": (PLAIN, False),
    "by_video": (BY_VIDEO, True),
    "stack": (STACK, False),
    "both": (BOTH, False),
}
TABLES = (False, True)  # the second expert has a leaf that the method does not have


def problem(method: Method, table: bool = False, devices: int = 1) -> Problem:
    return Problem(
        federation=build(TRACES, SPLIT, toy.SHAPE, method.client),
        predictor=probe.predictor(table),
        method=method,
        engine=Engine(devices=devices, chunk=ROUNDS),
        evaluate=Evaluate(horizons_s=(0.2, 0.6), tile_horizons_s=(0.4,), every=2, history_windows=2),
        traces=TRACES,
        split=SPLIT,
        experts=tuple(probe.predictor(one) for one in TABLES[: len(method.experts)]),
    )


@cache
def trained(name: str, devices: int = 1) -> Course:
    """A method after its rounds, unmeasured."""
    method, table = METHODS[name]
    course = Course(Common(problem(method, table, devices), ROUNDS), Point(3, method))
    [course.state], [info] = course.common.chunk([course.state], [course.numbers], ROUNDS)
    for key in PER_ROUND:
        course.log["rounds"][key] = getattr(info, key).tolist()
    assert info.healthy.all()
    return course


def close(a: Any, b: Any) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_each_is_what_it_is_alone() -> None:
    both = trained("both").state
    close(both.experts[0], trained("plain").state)
    close(both.experts[1], trained("by_video").state)
    close(both._replace(experts=()), trained("stack").state)


def test_devices_change_nothing() -> None:
    close(trained("both", devices=2).state, trained("both").state)


def test_points_side_by_side_change_nothing() -> None:
    """Two seeds in one compiled function, each with its experts."""
    common = Common(problem(BOTH)._replace(engine=Engine(devices=1, chunk=ROUNDS, points=2)), ROUNDS, 2)
    courses = [Course(common, Point(seed, BOTH)) for seed in (2, 3)]
    states, _ = common.chunk([one.state for one in courses], [one.numbers for one in courses], ROUNDS)
    close(states[1], trained("both").state)


def test_they_are_kept_in_checkpoints(tmp_path: Path) -> None:
    course = trained("both")
    course.save_to(tmp_path / "checkpoints")
    again = Course(course.common, Point(3, BOTH, tmp_path))
    again.resume()
    again.checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, again.state, course.state)


def test_their_predictions_come_before_the_prefixes() -> None:
    course = trained("both")
    common = course.common
    sim, arrays, session = common.sim, common.arrays, jnp.int32(4)
    window = forecasting.gather(arrays, toy.SHAPE, session[None], arrays.test.of(session)[:1])[0]
    found = forecasting.of_models(sim, forecasting.models(sim, course.state, arrays, session), window)
    assert len(found) == 4  # two experts, two prefixes
    for place, (one, state) in enumerate(zip(sim.experts, course.state.experts, strict=True)):
        rows, video = state.levels[0].rows, TRACES.video[4]
        model = {n: x[video if place else 0] for n, x in rows.items()}
        np.testing.assert_allclose(found[place], one.task.predictor.apply(model, window)[...], rtol=1e-5)
    model = {n: x[0] for n, x in course.state.levels[0].rows.items()}
    np.testing.assert_allclose(found[2], sim.task.predictor.apply(model, window), rtol=1e-5)


def test_the_weights_are_learned_over_all_of_them() -> None:
    """The best single model on validation windows is found, whichever it is."""
    course = trained("both")
    common = course.common
    for place in range(4):
        best = replace(BOTH, mixing=replace(BOTH.mixing, kind="best_prefix"))
        sim = replace_method(common, best)
        state = worsened(course.state, place)
        rows = evaluate.make_mixing(sim)(state).rows
        assert (np.asarray(rows[0]).argmax(axis=0) == place).all(), place


def replace_method(common: Common, method: Method) -> Any:
    return common.problem._replace(method=method).simulator()


def worsened(state: Any, but: int) -> Any:
    """A state where every model but one predicts nonsense."""

    def far(one: Any) -> Any:
        levels = tuple(
            level._replace(rows={n: x + 50.0 if n == "body" else x for n, x in level.rows.items()})
            for level in one.levels[:1]
        )
        return one._replace(levels=levels + one.levels[1:])

    experts = tuple(one if place == but else far(one) for place, one in enumerate(state.experts))
    if but < 2:
        return far(state)._replace(experts=experts)
    whole = state._replace(experts=tuple(map(far, state.experts)))
    first, last = whole.levels
    # What the last layer adds takes the nonsense of the first away, or brings it.
    if but == 3:
        first = first._replace(rows={**first.rows, "head/bias": first.rows["head/bias"] + 50.0})
    sign = -50.0 if but == 3 else 50.0
    last = last._replace(rows={"head/bias": last.rows["head/bias"] + sign})
    return whole._replace(levels=(first, last))


def test_online_weights_begin_with_a_share_for_each() -> None:
    learned = jnp.zeros((5, 2)).at[4].set(1.0)
    times = hedging.Times(jnp.arange(2), np.arange(1, 3), 5.0)
    found = hedging.weights(hedging.prior(learned, 2), jnp.zeros((5, 2, 2)), jnp.ones(2), times, 1.0)
    eighth = 1 / 8
    expected = [2 * eighth, eighth, eighth / 3, eighth / 3, eighth / 3 + 0.5]
    np.testing.assert_allclose(found[:, 0, 0], expected, rtol=1e-5)


def test_safe_retreats_to_the_first_expert() -> None:
    """Deeper models hurt every user: all weight is the first one's, though it is an expert's."""
    far, near = jnp.asarray([0.0, 1.0, 0.0]), jnp.asarray([1.0, 0.0, 0.0])
    predicted = jnp.broadcast_to(jnp.stack([near, far, far])[:, None, None], (3, 4, 5, 3))
    found = mixing.Validation(
        predicted,
        jnp.broadcast_to(near, (4, 5, 3)),
        *(jnp.ones(4),) * 2,
        row=jnp.zeros(4, jnp.int32),
        user=jnp.arange(4),
    )
    rows = mixing.fit(Mixing("mixture", safe=True), found, 0, 4, np.ones(5, bool))
    np.testing.assert_allclose(rows[0, 0], 1.0)


def test_a_sick_expert_stops_the_run() -> None:
    sick = replace(BOTH, experts=(replace(PLAIN, local=probe.local(lr=1e30, steps=3)), BY_VIDEO))
    with pytest.raises(UserError, match=r"diverged in round 1 .*of plain in mixing.experts"):
        simulate(problem(sick), ROUNDS, seed=3)


def test_bytes_are_counted() -> None:
    alone, both = [trained(name) for name in ("plain", "by_video", "stack")], trained("both")
    for key, total in both.traffic(ROUNDS).items():
        assert total == sum(one.traffic(ROUNDS)[key] for one in alone)
    costs, found = [by_depth(one.common.sim) for one in alone], by_depth(both.common.sim)
    assert found.level == ["global", "video", "plain", "by_video"]
    for key in ("server_bytes", "headset_bytes", "sent_bytes"):
        assert getattr(found, key)[-1] == sum(getattr(one, key)[-1] for one in costs)


def test_rates_of_experts_are_traced_too() -> None:
    faster = replace(BOTH, experts=(replace(PLAIN, local=replace(PLAIN.local, lr=0.01)), BY_VIDEO))
    assert static_part(faster) == static_part(BOTH)
    others = replace(BOTH, experts=(replace(PLAIN, local=replace(PLAIN.local, steps=9)), BY_VIDEO))
    assert static_part(others) != static_part(BOTH)


@pytest.mark.parametrize(
    ("expert", "words"),
    [
        (replace(PLAIN, levels=(Level("global", grouping=IFCA(groups=2)),)), "learns its groups"),
        (replace(PLAIN, client="user"), "client"),
        (replace(PLAIN, participation=Uniform(clients=4)), "participation"),
        (replace(PLAIN, adapt=Adapt(steps=1)), "adapts"),
        (BOTH, "experts of its own"),
    ],
)
def test_what_cannot_be_trained_beside_is_refused(expert: Method, words: str) -> None:
    with pytest.raises(ValueError, match=f"mixing.experts: one.*{words}"):
        replace(STACK, mixing=replace(STACK.mixing, experts=("one",)), experts=(expert,))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"experts": ["fedavg", "fedavg"]}, "twice"),
        ({"experts": ["fedavgg"]}, "mixing.experts: 'fedavgg' is neither"),
        ({"experts": ["ifca"]}, "mixing.experts: ifca learns its groups"),
        ({"experts": ["david_five_layers"]}, "david_five_layers has experts of its own"),
        ({"experts": ["fedavg"], "kind": "none"}, "mixing.kind is none"),
    ],
)
def test_mistakes_are_told_with_their_key(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config({"algorithm": "five_layers"}, mixing=settings)


def test_an_expert_is_the_method_that_is_compared() -> None:
    """And the same again from the resolved settings, as a run folder keeps them."""
    config = load_config("david_five_layers", compare=["fedavg", "per_video"], **{"local.batch": 16})
    assert config.experts == config.beside
    assert config.experts["fedavg"].local.batch == 16
    assert config.experts["fedavg"].local.prefix_share == 0


@pytest.mark.parametrize(
    ("source", "overrides"),
    [
        ("david_five_layers", {"local.batch": 16}),
        ({"algorithm": "ifca"}, {"mixing": {"kind": "mixture", "experts": ["fedavg", "per_video"]}}),
        (
            "planted_fedavg",
            {
                "mixing": {"kind": "mixture", "experts": ["jin_fedavg_5"]},
                "local.lr": 0.5,
                "participation.clients": 32,
            },
        ),
    ],
)
def test_a_resolved_config_keeps_its_experts(source: Any, overrides: dict[str, Any]) -> None:
    """As a run folder has them, whatever their recipes and files say by then."""
    config = load_config(source, **overrides)
    again = load_config(config.to_mapping())
    assert again.to_mapping() == config.to_mapping()
    assert {name: one.model for name, one in again.experts.items()} == {
        name: one.model for name, one in config.experts.items()
    }
    assert again.method == config.method
    changed = load_config(config.to_mapping(), **{"local.clip": 0.25, "seed": 3})
    assert all(one.local.clip == 0.25 and one.seed == 3 for one in changed.experts.values())


def test_an_expert_predicts_with_its_whole_hierarchy() -> None:
    config = load_config({"algorithm": "five_layers"}, mixing={"experts": ["global_video"]})
    assert config.experts["global_video"].mixing.kind == "mixture"
    assert config.method.experts[0].mixing.kind == "none"


def test_settings_of_experts_are_not_written_by_hand() -> None:
    with pytest.raises(UserError, match=r"experts is \['fedavg'\].*mixing.experts"):
        load_config({"algorithm": "five_layers", "experts": ["fedavg"]})


def test_a_named_config_brings_its_experts() -> None:
    config = load_config("wu_methods")
    assert list(config.beside["wu_five_layers"].experts) == ["fedavg", "per_video"]
    assert len(config.beside["wu_five_layers"].method.experts) == 2
