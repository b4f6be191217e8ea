"""What predicts in a session: the mixed prefixes of a hierarchy, or a baseline without weights.

A forecaster predicts a session's windows with each of its models, and then makes one prediction of them; only
there may it look at what has become of earlier forecasts, as a headset can (`federated/hedging.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fedjax_vp import geometry
from fedjax_vp.federated import hedging, hierarchy, keys, levels, mixing
from fedjax_vp.federated.federation import Arrays, cut, cut_early, gather, traces_of
from fedjax_vp.federated.hedging import Times
from fedjax_vp.federated.round import State
from fedjax_vp.federated.simulator import Simulator
from fedjax_vp.models.base import Inputs, Params, Predictor

Predictions = Float[Array, "prefix window horizon 3"]
Directions = Float[Array, "window horizon 3"]
Models = tuple[Params, ...]  # each with a leading axis of prefixes


class Forecaster(NamedTuple):
    """What predicts: the models of a session, predictions of each, and one prediction made of them.

    `join` is given the predictions of a session's windows at some horizons, where the viewer then looked, and
    the times of both. It may use of the truth only what is known by each window. If it `remembers`, it is
    shown all horizons, and the windows that lead up to the measured ones as well.
    """

    model_of: Callable[[Any, Arrays, Int[Array, ""]], Any]  # (state, arrays, session) -> model
    predict: Callable[[Any, Inputs], Predictions]
    join: Callable[[Any, Predictions, Directions, Times], Directions]
    remembers: bool = False


def alone(model: Any, predicted: Predictions, true: Directions, times: Times) -> Directions:
    """`Forecaster.join` of a single model."""
    return predicted[0]


def baseline(predictor: Predictor) -> Forecaster:
    """A predictor without weights."""
    return Forecaster(
        lambda state, arrays, session: (), lambda model, inputs: predictor.apply({}, inputs)[None], alone
    )


def own(sim: Simulator) -> Forecaster:
    """The method's own forecasts; its state is `(State, mixing weights)`."""
    rate, several = sim.method.mixing.online, len(sim.experts) + len(sim.layout.levels) > 1
    remembers = several and sim.method.mixing.kind != "none" and rate > 0

    def model_of(state: tuple[State, mixing.Weights], arrays: Arrays, session: Int[Array, ""]) -> Any:
        return models(sim, state[0], arrays, session), mixing.of(state[1], session), state[1].typical

    def predict(model: tuple[Models, Array, Array], inputs: Inputs) -> Predictions:
        return of_models(sim, model[0], inputs)

    def join(
        model: tuple[Models, Array, Array], predicted: Predictions, true: Directions, times: Times
    ) -> Directions:
        if len(predicted) == 1:
            return predicted[0]
        _, learned, typical = model
        if not remembers:
            return mixing.mix(learned[:, None, times.ahead - 1], predicted)
        error = geometry.great_circle(predicted, true[None])
        prior = hedging.prior(learned, len(sim.experts))
        return mixing.mix(hedging.weights(prior, error, typical, times, rate), predicted)

    return Forecaster(model_of, predict, join, remembers)


def models(sim: Simulator, state: State, arrays: Arrays, session: Int[Array, ""]) -> Models:
    """All of a session's models to be mixed: those of the experts, then the prefixes."""
    beside = zip(sim.experts, state.experts, strict=True)
    return *(prefixes(*one, arrays, session) for one in beside), prefixes(sim, state, arrays, session)


def of_models(sim: Simulator, found: Models, inputs: Inputs) -> Float[Array, "prefix window horizon 3"]:
    """Predictions of `models`, in their order."""
    predictors = [one.task.predictor for one in (*sim.experts, sim)]
    return jnp.concatenate([of_prefixes(*one, inputs) for one in zip(predictors, found, strict=True)])


def prefixes(sim: Simulator, state: State, arrays: Arrays, session: Int[Array, ""]) -> Params:
    """A session's prefixes, coarse to fine; the last, and only one without mixing, is adapted.

    Returns:
        Parameters with a leading axis of prefixes.
    """
    mixed = sim.method.mixing.kind != "none"
    models = levels.models_of(state.levels, session)[0 if mixed else -1 :]
    if sim.method.adapt.steps:
        models[-1] = adapt(sim, models[-1], state, arrays, session)
    return jax.tree.map(lambda *x: jnp.stack(x), *models)


def of_prefixes(
    predictor: Predictor, models: Params, inputs: Inputs
) -> Float[Array, "prefix window horizon 3"]:
    """Predictions of all prefixes in a loop: the model is compiled once, not once for each of them."""
    view = predictor.see(inputs)
    return jax.lax.map(lambda model: predictor.directions(predictor.output(model, view), view), models)


def adapt(sim: Simulator, model: Params, state: State, arrays: Arrays, session: Int[Array, ""]) -> Params:
    """Local steps on a session's own windows before it is evaluated; without any it keeps its model."""
    settings, loss_fn = sim.method.adapt, sim.method.local.loss.build()
    phase = {"adapt": False, "train": True}.get(settings.on, arrays.train.count[session] > 0)
    count = jnp.where(phase, arrays.train.count[session], arrays.adapt.count[session])
    key = jax.random.fold_in(keys.key_of(state.seed, keys.ADAPT), session)
    free = {n for n in model if hierarchy.owns(settings.owns, n)}

    traces, row = traces_of(arrays, session[None])

    def windows(picked: Array) -> tuple[tuple[Inputs, Array], Array]:
        train, early = (
            of_phase[jnp.minimum(picked, of_phase.shape[0] - 1)]
            for of_phase in (arrays.train.of(session), arrays.adapt.of(session))
        )
        whole = cut(traces, sim.federation.shape, jnp.full(picked.shape, row[0]), train)
        part, seen = cut_early(arrays, sim.federation.shape, session, early)
        return jax.tree.map(lambda a, b: jnp.where(phase, a, b), (whole, jnp.ones_like(seen)), (part, seen))

    def step(index: Array, params: Params) -> Params:
        picked = jax.random.randint(
            jax.random.fold_in(key, index), (settings.batch,), 0, jnp.maximum(count, 1)
        )
        (inputs, target), seen = windows(picked)

        def objective(p: Params) -> Float[Array, ""]:
            samples = jnp.sum(seen, axis=1)
            loss = sim.task.predictor.loss(p, inputs, target, loss_fn, seen)
            return jnp.sum(samples * loss) / jnp.maximum(jnp.sum(samples), 1.0)

        gradient = jax.grad(objective)(params)
        return {n: p - settings.lr * gradient[n] if n in free else p for n, p in params.items()}

    return jax.lax.fori_loop(0, jnp.where(count > 0, settings.steps, 0), step, model)


def forecast(
    forecaster: Forecaster, state: Any, sim: Simulator, session: np.ndarray, now: np.ndarray
) -> dict[str, np.ndarray]:
    """Forecasts of chosen windows themselves, for maps and for errors other than angles.

    Each stands alone, as the first one of its session.

    Args:
        forecaster: what predicts.
        state: the forecaster's state.
        sim: for the arrays and window lengths.
        session: int [window] session of each window.
        now: int [window] index of its last observed sample.

    Returns:
        past [window, history, 3], true and predicted [window, horizon, 3] unit vectors; session and now_s.
    """
    arrays, shape = sim.federation.arrays, sim.federation.shape

    @jax.jit
    def show(state: Any, arrays: Arrays, session: Array, now: Array) -> tuple[Array, Array, Array]:
        inputs, target = gather(arrays, shape, session, now)

        def one(item: tuple[Array, Array, Inputs, Array]) -> Array:
            session, *window = item
            now, inputs, true = jax.tree.map(lambda x: x[None], tuple(window))
            model = forecaster.model_of(state, arrays, session)
            times = Times(now, np.arange(1, shape.horizon + 1), shape.rate_hz)
            return forecaster.join(model, forecaster.predict(model, inputs), true, times)[0]

        return inputs.past, target, jax.lax.map(one, (session, now, inputs, target))

    chosen = jnp.asarray(session, jnp.int32), jnp.asarray(now, jnp.int32)
    past, true, predicted = jax.device_get(show(state, arrays, *chosen))
    now_s = np.asarray(arrays.t0)[session] + now / shape.rate_hz
    return {"past": past, "true": true, "predicted": predicted, "session": session, "now_s": now_s}


def examples(forecaster: Forecaster, state: Any, sim: Simulator, most: int = 6) -> dict[str, np.ndarray]:
    """`forecast` of one test window from each of `most` sessions spread over the federation."""
    windows = sim.federation.arrays.test
    count = np.asarray(windows.count)
    session = np.flatnonzero(count)
    session = session[np.linspace(0, len(session) - 1, min(most, len(session))).astype(int)]
    now = np.asarray(windows.at(jnp.asarray(session), jnp.asarray(count[session] // 2)))
    return forecast(forecaster, state, sim, session, now)
