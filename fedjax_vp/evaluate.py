"""Errors on windows of any phase, session by session, inside one compiled function.

A session's model is composed once (and adapted, where the method says so); its windows then pass in blocks.
Sessions are dealt to the devices of the mesh. Nothing is padded but the last block of a session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from fedjax_vp import geometry, processes
from fedjax_vp.errors import UserError
from fedjax_vp.federated import levels, mixing
from fedjax_vp.federated.federation import Arrays, Windows, cut, cut_early, gather, thin, traces_of
from fedjax_vp.federated.round import State
from fedjax_vp.federated.settings import Evaluate
from fedjax_vp.federated.simulator import Simulator
from fedjax_vp.models.base import Inputs, Params, Predictor, WindowShape

BLOCK = 128  # windows predicted at once
SESSIONS = 64  # sessions in one call: the grain of the progress bar
ACCELERATOR_SESSIONS = 32  # of them, side by side on an accelerator


def together(mesh: Mesh) -> int:
    """Sessions predicted side by side on a device: one on a CPU, where 4 or 16 gain little or lose."""
    return 1 if mesh.devices.flat[0].platform == "cpu" else ACCELERATOR_SESSIONS


class Evaluation(NamedTuple):
    """One row a window, on the host."""

    session: np.ndarray  # int32 [window]
    now_s: np.ndarray  # float32 [window] video time
    error_deg: np.ndarray  # float32 [window, horizon]
    tiles: np.ndarray  # float32 [window, tile_horizon, 4] precision, recall, F1, IoU


class Forecaster(NamedTuple):
    """What predicts: a model for each session, and predictions from it; both are traced."""

    model_of: Callable[[Any, Arrays, Int[Array, ""]], Any]  # (state, arrays, session) -> model
    predict: Callable[[Any, Inputs], Float[Array, "window horizon 3"]]


def baseline(predictor: Predictor) -> Forecaster:
    """A predictor without weights."""
    return Forecaster(lambda state, arrays, session: (), lambda model, inputs: predictor.apply({}, inputs))


def own(sim: Simulator) -> Forecaster:
    """The method's own forecasts; its state is `(State, mixing weights)`."""

    def model_of(state: tuple[State, mixing.Weights], arrays: Arrays, session: Int[Array, ""]) -> Any:
        return prefixes(sim, state[0], arrays, session), mixing.of(state[1], session)

    def predict(model: tuple[Params, Array], inputs: Inputs) -> Float[Array, "window horizon 3"]:
        predicted = of_prefixes(sim.task.predictor, model[0], inputs)
        return predicted[0] if len(predicted) == 1 else mixing.mix(model[1], predicted)

    return Forecaster(model_of, predict)


def prefixes(sim: Simulator, state: State, arrays: Arrays, session: Int[Array, ""]) -> Params:
    """A session's models to be mixed, coarse to fine; the last, and only one without mixing, is adapted.

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
    return jax.lax.map(lambda model: predictor.apply(model, inputs), models)


def adapt(sim: Simulator, model: Params, state: State, arrays: Arrays, session: Int[Array, ""]) -> Params:
    """Local steps on a session's own windows before it is evaluated; without any it keeps its model."""
    settings, loss_fn = sim.method.adapt, sim.method.local.loss.build()
    phase = {"adapt": False, "train": True}.get(settings.on, arrays.train.count[session] > 0)
    count = jnp.where(phase, arrays.train.count[session], arrays.adapt.count[session])
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), state.seed), session)
    free = {n for n in model if levels.owns(settings.owns, n)}

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


def make_mixing(sim: Simulator) -> Callable[[State], mixing.Weights]:
    """Learner of the prefixes' weights on validation windows, predicted as test windows will be.

    Raises:
        UserError: The sessions have no label `mixing.per`.
    """
    settings, shape, labels = sim.method.mixing, sim.federation.shape, sim.federation.labels
    sessions = np.flatnonzero(np.asarray(sim.federation.arrays.valid.count))
    if settings.kind == "none" or len(sim.layout.levels) == 1 or not len(sessions):
        whole = mixing.last_level(len(sim.layout.levels), shape.horizon)
        return lambda state: mixing.same_for_all(whole, sim.federation.num_sessions)
    unknown = [name for name in settings.per.split("*") if settings.per and name not in labels]
    if unknown:
        raise UserError(
            f"mixing.per: no label {unknown[0]!r} in this data set; it has {', '.join(sorted(labels))}"
        )
    groups = levels.grouping(labels, settings.per)
    num_groups = groups.num_groups if settings.per else 0
    row = jnp.asarray(np.where(groups.code < 0, num_groups, groups.code), jnp.int32)
    num_users = int(labels["user"].max()) + 1
    counts = mixing.hurt_horizons(shape.horizon, shape.rate_hz)
    batch = together(sim.mesh)

    @jax.jit
    def fit(state: State, arrays: Arrays, row: Array, user: Array, sessions: Array) -> Array:
        windows = thin(arrays.valid, settings.windows)
        size = windows.now.shape[1]

        def one(session: Array) -> tuple[Array, Array, Array]:
            traces, row = traces_of(arrays, session[None])
            inputs, target = cut(traces, shape, jnp.full(size, row[0]), windows.of(session))
            predicted = of_prefixes(sim.task.predictor, prefixes(sim, state, arrays, session), inputs)
            return predicted, target, (jnp.arange(size) < windows.count[session]).astype(jnp.float32)

        predicted, target, weight = jax.lax.map(one, sessions, batch_size=batch)
        found = mixing.Validation(
            predicted=jnp.moveaxis(predicted, 1, 0).reshape(predicted.shape[1], -1, *predicted.shape[3:]),
            target=target.reshape(-1, *target.shape[2:]),
            weight=weight.reshape(-1),
            share=(weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1.0)).reshape(-1),
            row=jnp.repeat(row[sessions], size),
            user=jnp.repeat(user[sessions], size),
        )
        return mixing.fit(settings, found, num_groups, num_users, counts)

    fixed = row, jnp.asarray(labels["user"], jnp.int32), jnp.asarray(sessions, jnp.int32)
    return lambda state: mixing.Weights(fit(state, sim.federation.arrays, *fixed), row)


def make_errors(
    forecaster: Forecaster, shape: WindowShape, mesh: Mesh, settings: Evaluate
) -> Callable[..., tuple[Array, Array]]:
    """Compiled errors of a dealt set of sessions.

    Returns:
        A function of (forecaster's state, arrays, windows, sessions [s]) to errors in degrees
        [s, window, horizon] and tile scores [s, window, tile horizon, 4]; s is a multiple of the devices.
    """
    at = np.array([round(h * shape.rate_hz) - 1 for h in settings.horizons_s])
    tiles_at = np.array([round(h * shape.rate_hz) - 1 for h in settings.tile_horizons_s])

    def session_fn(state: Any, arrays: Arrays, windows: Windows, session: Array) -> tuple[Array, Array]:
        size = windows.now.shape[1]
        block = min(BLOCK, size)
        blocks = -(-size // block)
        now = jnp.pad(windows.of(session), (0, blocks * block - size), mode="edge").reshape(blocks, block)
        traces, row = traces_of(arrays, session[None])
        model = forecaster.model_of(state, arrays, session)

        def block_fn(index: Array, out: tuple[Array, Array]) -> tuple[Array, Array]:
            inputs, target = cut(traces, shape, jnp.full(block, row[0]), now[index])
            predicted = forecaster.predict(model, inputs)
            angle = geometry.great_circle(predicted[:, at], target[:, at])
            scores = geometry.tile_scores(predicted[:, tiles_at], target[:, tiles_at], settings.grid)
            return out[0].at[index].set(jnp.rad2deg(angle)), out[1].at[index].set(scores)

        empty = jnp.zeros((blocks, block, len(at))), jnp.zeros((blocks, block, len(tiles_at), 4))
        used = -(-windows.count[session] // block)
        found = jax.lax.fori_loop(0, used, block_fn, empty)
        return tuple(x.reshape(blocks * block, *x.shape[2:])[:size] for x in found)

    def device_fn(state: Any, arrays: Arrays, windows: Windows, sessions: Array) -> tuple[Array, Array]:
        return jax.lax.map(
            lambda s: session_fn(state, arrays, windows, s), sessions, batch_size=together(mesh)
        )

    own_part, whole = PartitionSpec("clients"), PartitionSpec()
    return jax.jit(
        jax.shard_map(
            device_fn,
            mesh=mesh,
            in_specs=(whole, whole, whole, own_part),
            out_specs=own_part,
            check_vma=False,
        )
    )


def evaluate(
    errors_fn: Callable[..., tuple[Array, Array]],
    state: Any,
    sim: Simulator,
    windows: Windows,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Errors on all given windows.

    Args:
        errors_fn: from `make_errors`.
        state: the forecaster's state.
        sim: for the arrays, window lengths and mesh.
        windows: of a phase, whole or thinned.
        tick: told how many of how many sessions are done.
    """
    arrays, rate_hz = sim.federation.arrays, sim.federation.shape.rate_hz
    count = np.asarray(windows.count)
    sessions = np.flatnonzero(count).astype(np.int32)
    size = min(SESSIONS, len(sessions))
    size = -(-size // sim.mesh.size) * sim.mesh.size
    parts, fixed = [], processes.everywhere(sim.mesh, (state, arrays, windows))
    for begin in range(0, len(sessions), size):
        some = sessions[begin : begin + size]
        padded = np.concatenate([some, np.full(size - len(some), some[-1], np.int32)])
        error, tiles = processes.fetch(errors_fn(*fixed, processes.dealt(sim.mesh, padded)))
        mask = np.arange(error.shape[1])[None, :] < count[some][:, None]
        parts.append((np.repeat(some, count[some]), error[: len(some)][mask], tiles[: len(some)][mask]))
        tick(begin + len(some), len(sessions))
    session, error, tiles = (np.concatenate(x) for x in zip(*parts, strict=True))
    now = np.asarray(windows.of(jnp.asarray(sessions)))
    now = now[np.arange(now.shape[1])[None, :] < count[sessions][:, None]]
    now_s = np.asarray(arrays.t0)[session] + now / rate_hz
    return Evaluation(session, now_s.astype(np.float32), error, tiles)


def forecast(
    forecaster: Forecaster, state: Any, sim: Simulator, session: np.ndarray, now: np.ndarray
) -> dict[str, np.ndarray]:
    """Forecasts of chosen windows themselves, for maps and for errors other than angles.

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

        def one(item: tuple[Array, Inputs]) -> Array:
            model = forecaster.model_of(state, arrays, item[0])
            return forecaster.predict(model, jax.tree.map(lambda x: x[None], item[1]))[0]

        return inputs.past, target, jax.lax.map(one, (session, inputs))

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
