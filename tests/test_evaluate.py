"""Errors on test windows against a loop over windows, and adaptation before them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import probe
import pytest
import toy

from fedjax_vp import evaluate as engine
from fedjax_vp import forecasting, geometry
from fedjax_vp.data.splits import Split
from fedjax_vp.errors import UserError
from fedjax_vp.federated import levels
from fedjax_vp.federated import round as rounds
from fedjax_vp.federated.federation import build, gather, thin
from fedjax_vp.federated.round import State
from fedjax_vp.federated.settings import Adapt, Engine, Evaluate, Level, Method, Mixing
from fedjax_vp.federated.simulator import Simulator, simulator
from fedjax_vp.models.base import Predictor
from fedjax_vp.models.static import Static

SETTINGS = Evaluate(horizons_s=(0.2, 0.6), tile_horizons_s=(0.4,))
TRACES = toy.traces()
LEVELS = (Level("global"), Level("video", by="video", owns=("head/*",)), Level("user", by="user"))


def phases() -> Split:
    """Toy windows with some of the training windows kept for validation, some test windows for adaptation."""
    split = toy.split(TRACES)
    index = np.arange(split.train.shape[1])[None, :]
    valid = split.train & (index % 4 == 1) & (TRACES.user != 2)[:, None]
    adapt = split.train & (index % 4 == 2) & (TRACES.user != 1)[:, None]
    return Split(split.train & ~valid & ~adapt, valid, adapt, split.test)


FED = build(TRACES, phases(), toy.SHAPE)


def unit(x: jax.Array) -> jax.Array:
    """Directions, as every predictor of the package gives them."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


MEAN = probe.predictor()
UNIT = Predictor(MEAN.init, lambda params, inputs: unit(MEAN.apply(params, inputs)))


def ready(devices: int = 1, **slots: Any) -> tuple[Simulator, State]:
    """A simulator and random rows."""
    method = Method(levels=LEVELS, local=probe.local(), **slots)
    sim = simulator(FED, UNIT, method, Engine(devices=devices))
    state = rounds.init(sim, jnp.int32(0))
    rng = np.random.default_rng(0)
    random = tuple(
        s._replace(
            rows={n: jnp.asarray(0.2 * rng.normal(size=r.shape), jnp.float32) for n, r in s.rows.items()}
        )
        for s in state.levels
    )
    return sim, state._replace(levels=random)


def errors_of(sim: Simulator, state: State, windows: Any = None, mix: Any = None) -> engine.Evaluation:
    errors = engine.make_errors(forecasting.own(sim), toy.SHAPE, sim.mesh, SETTINGS)
    mix = engine.mixing.last_level(len(LEVELS), toy.SHAPE.horizon) if mix is None else mix
    if isinstance(mix, jax.Array):
        mix = engine.mixing.same_for_all(mix, FED.num_sessions)
    return engine.evaluate(errors, (state, mix), sim, FED.arrays.test if windows is None else windows)


@pytest.fixture(scope="module")
def plain() -> tuple[Simulator, State, engine.Evaluation]:
    sim, state = ready()
    return sim, state, errors_of(sim, state)


def test_errors_are_those_of_a_loop_over_windows(plain: tuple[Simulator, State, engine.Evaluation]) -> None:
    _sim, state, found = plain
    wanted = [(s, k) for s, k in zip(*np.nonzero(phases().test), strict=True)]
    assert found.session.tolist() == [s for s, _ in wanted]
    np.testing.assert_allclose(found.now_s, [k / 5.0 for _, k in wanted], rtol=1e-6)
    for row in range(0, len(wanted), 3):
        session, now = wanted[row]
        model = {n: np.asarray(p) for n, p in levels.model_of(state.levels, jnp.int32(session)).items()}
        last = TRACES.direction[session, now]
        for column, ahead in enumerate((1, 3)):
            predicted = last + model["body"] + model["head/bias"][ahead - 1]
            angle = oracle.great_circle_deg(predicted, TRACES.direction[session, now + ahead])
            assert found.error_deg[row, column] == pytest.approx(angle, abs=1e-3)
        at = unit(jnp.asarray(last + model["body"] + model["head/bias"][1]))[None, None]
        true = jnp.asarray(TRACES.direction[session, now + 2])[None, None]
        scores = geometry.tile_scores(at, true, SETTINGS.grid)[0, 0]
        np.testing.assert_allclose(found.tiles[row, 0], scores, atol=1e-5)


@pytest.mark.parametrize(("block", "sessions", "devices"), [(3, 5, 2)])
def test_blocks_and_devices_change_nothing(
    plain: tuple[Simulator, State, engine.Evaluation],
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    sessions: int,
    devices: int,
) -> None:
    monkeypatch.setattr(engine, "BLOCK", block)
    monkeypatch.setattr(engine, "SESSIONS", sessions)
    monkeypatch.setattr(engine, "together", lambda mesh: 2)  # as on an accelerator, with one left over
    sim, state = ready(devices)
    for a, b in zip(errors_of(sim, state), plain[2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_sessions_without_windows_and_thinned_ones(plain: tuple[Simulator, State, engine.Evaluation]) -> None:
    sim, state, whole = plain
    valid = errors_of(sim, state, FED.arrays.valid)
    assert set(valid.session) == set(np.flatnonzero(TRACES.user != 2))
    assert len(valid.session) == phases().valid.sum()
    few = errors_of(sim, state, thin(FED.arrays.test, 2))
    assert np.bincount(few.session).max() == 2
    everything = {
        (s, round(float(t), 3)): e
        for s, t, e in zip(whole.session, whole.now_s, whole.error_deg, strict=True)
    }
    for s, t, e in zip(few.session, few.now_s, few.error_deg, strict=True):
        np.testing.assert_allclose(everything[s, round(float(t), 3)], e, atol=1e-4)


def test_a_baseline_needs_no_state() -> None:
    sim, _ = ready()
    errors = engine.make_errors(
        forecasting.baseline(Static().build(toy.SHAPE)), toy.SHAPE, sim.mesh, SETTINGS
    )
    found = engine.evaluate(errors, (), sim, FED.arrays.test)
    session, now = found.session[7], round(float(found.now_s[7]) * 5)
    angle = oracle.great_circle_deg(TRACES.direction[session, now], TRACES.direction[session, now + 3])
    assert found.error_deg[7, 1] == pytest.approx(angle, abs=1e-3)


@pytest.mark.parametrize("kind", ["mixture", "best_prefix"])
def test_mixing_is_fitted_on_validation_windows_and_never_hurts_there(kind: str) -> None:
    sim, state = ready(mixing=Mixing(kind, windows=100))
    found = engine.make_mixing(sim)(state)
    assert found.rows.shape == (1, 3, toy.SHAPE.horizon)
    weights = found.rows[0]
    np.testing.assert_allclose(weights.sum(axis=0), 1.0, atol=1e-5)
    single = [
        errors_of(sim, state, FED.arrays.valid, jnp.eye(3)[:, depth : depth + 1] * jnp.ones((1, 3))).error_deg
        for depth in range(3)
    ]
    found = errors_of(sim, state, FED.arrays.valid, weights).error_deg.mean(axis=0)
    best = np.min([e.mean(axis=0) for e in single], axis=0)
    assert (found <= best + 1e-2).all()
    if kind == "best_prefix":
        np.testing.assert_allclose(found, best, atol=1e-3)


def test_without_validation_windows_the_whole_hierarchy_predicts() -> None:
    fed = build(TRACES, toy.split(TRACES), toy.SHAPE)
    method = Method(levels=LEVELS, local=probe.local(), mixing=Mixing("mixture"))
    sim = simulator(fed, UNIT, method, Engine(devices=1))
    weights = engine.make_mixing(sim)(rounds.init(sim, jnp.int32(0)))
    np.testing.assert_array_equal(weights.rows, [[[0.0] * 3, [0.0] * 3, [1.0] * 3]])


def adapted(sim: Simulator, state: State, session: int) -> dict[str, np.ndarray]:
    model = levels.model_of(state.levels, jnp.int32(session))
    run = jax.jit(lambda m, s: forecasting.adapt(sim, m, state, FED.arrays, s))
    return jax.device_get(run(model, jnp.int32(session)))


def loss_on(model: dict[str, np.ndarray], session: int, phase: str) -> float:
    now = np.flatnonzero(getattr(phases(), phase)[session])
    inputs, target = gather(FED.arrays, toy.SHAPE, jnp.full(len(now), session), jnp.asarray(now, jnp.int32))
    predicted = UNIT.apply({n: jnp.asarray(p) for n, p in model.items()}, inputs)
    return float(jnp.mean(probe.Squared().build()(predicted, target)))


def test_mixing_is_fitted_on_adapted_models_where_adaptation_is_on() -> None:
    """Adaptation mends the whole hierarchy: weights go there, and would not without it."""
    slots = {"mixing": Mixing("best_prefix", windows=100), "adapt": Adapt(60, lr=0.5, batch=8, on="train")}
    sim, state = ready(**slots)
    far = state.levels[2]._replace(rows={n: r + 0.7 for n, r in state.levels[2].rows.items()})
    state = state._replace(levels=(*state.levels[:2], far))
    assert engine.make_mixing(sim)(state).rows[0, 2].all()
    sim, _ = ready(mixing=slots["mixing"])
    assert not engine.make_mixing(sim)(state).rows[0, 2].any()


def test_weights_by_label_belong_to_their_sessions() -> None:
    sim, state = ready(mixing=Mixing("best_prefix", per="video", windows=100, prior=0.0))
    weights = engine.make_mixing(sim)(state)
    np.testing.assert_array_equal(weights.row, TRACES.video)
    for video in range(3):
        mine = Mixing("best_prefix", windows=100)
        alone = phases()._replace(valid=phases().valid & (TRACES.video == video)[:, None])
        fed = build(TRACES, alone, toy.SHAPE)
        method = Method(levels=LEVELS, local=probe.local(), mixing=mine)
        found = engine.make_mixing(simulator(fed, UNIT, method, Engine(devices=1)))(state)
        np.testing.assert_array_equal(weights.rows[video], found.rows[0])
    sim, _ = ready(mixing=Mixing("mixture", per="mood"))
    with pytest.raises(UserError, match=r"mixing\.per: no label 'mood'"):
        engine.make_mixing(sim)


@pytest.mark.parametrize(("session", "phase"), [(0, "train"), (4, "train"), (8, "adapt")])
def test_adaptation_picks_train_windows_where_there_are_any_else_adapt_windows(
    session: int, phase: str
) -> None:
    """A session of user 1 has no adapt windows; session 8 has lost its train windows."""
    split = phases()
    train = split.train.copy()
    train[8] = False
    fed = build(TRACES, split._replace(train=train), toy.SHAPE)
    sims = [
        simulator(
            fed,
            UNIT,
            Method(levels=LEVELS, local=probe.local(), adapt=Adapt(3, lr=0.2, batch=8, on=on)),
            Engine(devices=1),
        )
        for on in ("auto", phase)
    ]
    _, state = ready()
    model = levels.model_of(state.levels, jnp.int32(session))
    auto, told = (
        jax.device_get(jax.jit(partial(forecasting.adapt, sim))(model, state, fed.arrays, jnp.int32(session)))
        for sim in sims
    )
    jax.tree.map(np.testing.assert_array_equal, auto, told)
    assert any((auto[name] != np.asarray(model[name])).any() for name in auto)


@pytest.mark.parametrize("phase", ["adapt", "train"])
def test_adaptation_lowers_the_loss_on_its_windows(phase: str) -> None:
    sim, state = ready(adapt=Adapt(steps=30, lr=0.2, batch=8, on=phase))
    model = levels.model_of(state.levels, jnp.int32(0))
    before, after = loss_on(model, 0, phase), loss_on(adapted(sim, state, 0), 0, phase)
    assert after < 0.5 * before


def test_adaptation_moves_only_what_it_owns_and_only_with_windows() -> None:
    sim, state = ready(adapt=Adapt(steps=5, lr=0.2, batch=8, on="adapt", owns=("head/*",)))
    model = jax.device_get(levels.model_of(state.levels, jnp.int32(0)))
    found = adapted(sim, state, 0)
    np.testing.assert_array_equal(found["body"], model["body"])
    assert (found["head/bias"] != model["head/bias"]).any()
    unseen = adapted(sim, state, 4)  # user 1 has no windows to adapt on
    jax.tree.map(
        np.testing.assert_array_equal, unseen, jax.device_get(levels.model_of(state.levels, jnp.int32(4)))
    )


def test_adaptation_of_no_steps_changes_nothing_and_of_some_does(
    plain: tuple[Simulator, State, engine.Evaluation],
) -> None:
    sim, state = ready(adapt=Adapt(steps=0))
    jax.tree.map(
        np.testing.assert_array_equal,
        adapted(sim, state, 0),
        jax.device_get(levels.model_of(state.levels, jnp.int32(0))),
    )
    sim, state = ready(adapt=Adapt(steps=20, lr=0.2, on="adapt"))
    found = errors_of(sim, state)
    unchanged = np.isin(found.session, np.flatnonzero(TRACES.user == 1))
    np.testing.assert_allclose(found.error_deg[unchanged], plain[2].error_deg[unchanged], atol=1e-4)
    assert found.error_deg[~unchanged].mean() < plain[2].error_deg[~unchanged].mean()


def test_what_is_typical_is_the_mixtures_error_on_validation_windows() -> None:
    sim, state = ready(mixing=Mixing("mixture", windows=4))
    learned = engine.make_mixing(sim)(state)
    found = errors_of(sim, state, thin(FED.arrays.valid, 4), learned.rows[-1])
    measured = np.rad2deg(learned.typical)[[0, 2]]  # 0.2 and 0.6 s
    np.testing.assert_allclose(measured, found.error_deg.mean(axis=0), rtol=1e-4)


def test_examples_are_test_windows_with_their_forecasts(
    plain: tuple[Simulator, State, engine.Evaluation],
) -> None:
    sim, state, whole = plain
    mix = engine.mixing.same_for_all(
        engine.mixing.last_level(len(LEVELS), toy.SHAPE.horizon), FED.num_sessions
    )
    shown = forecasting.examples(forecasting.own(sim), (state, mix), sim, most=4)
    assert len(set(shown["session"].tolist())) == 4
    for i, (session, now_s) in enumerate(zip(shown["session"], shown["now_s"], strict=True)):
        row = np.flatnonzero((whole.session == session) & np.isclose(whole.now_s, now_s))
        angle = oracle.great_circle_deg(shown["predicted"][i, 2], shown["true"][i, 2])
        assert whole.error_deg[row[0], 1] == pytest.approx(angle, abs=1e-3)
