"""Errors on windows of any phase, session by session, inside one compiled function.

A session's models are composed once (and adapted, where the method says so); its windows then pass in blocks,
first to be predicted, with those that lead up to them where a headset remembers, then to be judged. Sessions
are dealt to the devices of the mesh. Blocks beyond a session's last are not predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from fedjax_vp import compiling, geometry, processes
from fedjax_vp.errors import UserError
from fedjax_vp.federated import hierarchy, mixing
from fedjax_vp.federated.federation import Arrays, Windows, cut, thin, traces_of
from fedjax_vp.federated.hedging import Times
from fedjax_vp.federated.round import State
from fedjax_vp.federated.settings import Evaluate
from fedjax_vp.federated.simulator import Simulator
from fedjax_vp.forecasting import Forecaster, models, of_models
from fedjax_vp.models.base import WindowShape

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


def make_mixing(sim: Simulator) -> Callable[[State], mixing.Weights]:
    """Learner of the weights of experts and prefixes on validation windows, by the models of their sessions.

    With `mixing.online` a headset begins with half of them (`federated/hedging.py`).

    Raises:
        UserError: The sessions have no label `mixing.per`.
    """
    settings, shape, labels = sim.method.mixing, sim.federation.shape, sim.federation.labels
    sessions = np.flatnonzero(np.asarray(sim.federation.arrays.valid.count))
    count = len(sim.experts) + len(sim.layout.levels)
    if settings.kind == "none" or count == 1 or not len(sessions):
        whole = mixing.last_level(count, shape.horizon)
        return lambda state: mixing.same_for_all(whole, sim.federation.num_sessions)
    unknown = [name for name in settings.per.split("*") if settings.per and name not in labels]
    if unknown:
        raise UserError(
            f"mixing.per: no label {unknown[0]!r} in this data set; it has {', '.join(sorted(labels))}"
        )
    groups = hierarchy.grouping(labels, settings.per)
    num_groups = groups.num_groups if settings.per else 0
    row = jnp.asarray(np.where(groups.code < 0, num_groups, groups.code), jnp.int32)
    num_users = int(labels["user"].max()) + 1
    counts = mixing.hurt_horizons(shape.horizon, shape.rate_hz)
    batch = together(sim.mesh)

    def fit(state: State, arrays: Arrays, row: Array, user: Array, sessions: Array) -> mixing.Weights:
        windows = thin(arrays.valid, settings.windows)
        size = windows.now.shape[1]

        def one(session: Array) -> tuple[Array, Array, Array]:
            traces, row = traces_of(arrays, session[None])
            inputs, target = cut(traces, shape, jnp.full(size, row[0]), windows.of(session))
            predicted = of_models(sim, models(sim, state, arrays, session), inputs)
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
        rows = mixing.fit(settings, found, num_groups, num_users, counts)
        return mixing.Weights(rows, row, mixing.typical(found, rows[-1]))

    fixed = row, jnp.asarray(labels["user"], jnp.int32), jnp.asarray(sessions, jnp.int32)
    whole = PartitionSpec()
    shardings = compiling.Shardings(sim.mesh, (whole,) * 5, whole)
    fitted = compiling.Lazily(fit, mixing.Weights(*fixed), shardings)

    def learn(state: State) -> mixing.Weights:
        return processes.here(fitted(*processes.everywhere(sim.mesh, (state, sim.federation.arrays, *fixed))))

    return learn


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
    kept = np.arange(shape.horizon) if forecaster.remembers else np.union1d(at, tiles_at)
    at, tiles_at = np.searchsorted(kept, at), np.searchsorted(kept, tiles_at)

    def session_fn(state: Any, arrays: Arrays, windows: Windows, session: Array) -> tuple[Array, Array]:
        size, count = windows.now.shape[1], windows.count[session]
        now, lead = _led(arrays.lead, windows, session) if forecaster.remembers else (windows.of(session), 0)
        whole = lead + count
        block = min(BLOCK, size)
        blocks, used = -(-now.shape[0] // block), -(-whole // block)
        now = now[jnp.minimum(jnp.arange(blocks * block), jnp.maximum(whole - 1, 0))]
        traces, row = traces_of(arrays, session[None])
        model = forecaster.model_of(state, arrays, session)

        def predict(index: Array) -> tuple[Array, Array]:
            inputs, true = cut(traces, shape, jnp.full(block, row[0]), now.reshape(blocks, block)[index])
            return jnp.moveaxis(forecaster.predict(model, inputs)[:, :, kept], 0, 1), true[:, kept]

        predicted, true = _by_block(predict, blocks, used)  # [window, prefix, ...] and [window, ...]
        times = Times(now, kept + 1, shape.rate_hz)
        ours = forecaster.join(model, jnp.moveaxis(predicted, 1, 0), true, times)

        def judge(index: Array) -> tuple[Array, Array]:
            place = jnp.minimum(lead + index * block + jnp.arange(block), now.shape[0] - 1)
            one, target = ours[place], true[place]
            angle = geometry.great_circle(one[:, at], target[:, at])
            return jnp.rad2deg(angle), geometry.tile_scores(
                one[:, tiles_at], target[:, tiles_at], settings.grid
            )

        error, tiles = _by_block(judge, -(-size // block), -(-count // block))
        return error[:size], tiles[:size]

    def device_fn(state: Any, arrays: Arrays, windows: Windows, sessions: Array) -> tuple[Array, Array]:
        return jax.lax.map(
            lambda s: session_fn(state, arrays, windows, s), sessions, batch_size=together(mesh)
        )

    own_part, whole = PartitionSpec("clients"), PartitionSpec()
    places = (whole, whole, whole, own_part)
    sharded = jax.shard_map(device_fn, mesh=mesh, in_specs=places, out_specs=own_part, check_vma=False)
    return compiling.Lazily(sharded, (0.0, 0.0), compiling.Shardings(mesh, places, own_part))


def _led(lead: Windows, windows: Windows, session: Array) -> tuple[Array, Array]:
    """`now` of a session's windows after those that lead up to them, padded; and how many these are."""
    count, size = lead.count[session], lead.now.shape[1]
    place = jnp.arange(size + windows.now.shape[1])
    place = jnp.where(place < count, place, place - count + size)
    now = jnp.concatenate([lead.of(session), windows.of(session)])
    return now[jnp.minimum(place, now.shape[0] - 1)], count


def _by_block(part: Callable[[Array], tuple[Array, ...]], blocks: int, used: Array) -> tuple[Array, ...]:
    """What `part` makes of each block of windows, end to end; zeros beyond the used blocks."""
    kinds = jax.eval_shape(part, jnp.int32(0))
    empty = tuple(jnp.zeros((blocks, *kind.shape), kind.dtype) for kind in kinds)

    def add(index: Array, out: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(x.at[index].set(y) for x, y in zip(out, part(index), strict=True))

    return tuple(x.reshape(-1, *x.shape[2:]) for x in jax.lax.fori_loop(0, used, add, empty))


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
