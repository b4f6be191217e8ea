"""The local step of a client: stochastic gradient steps on its own windows, from its own model.

The objective is `plain`: the mean loss of a batch. With `prefix_share` some windows of each batch are
predicted by the shallower prefixes of the hierarchy, theta^(<=l), whose rows are the same parameters less the
finer rows:

    theta^(<=l) = theta - sum_{j > l} P_j delta_j,        0 where only finer levels own a leaf.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from fedjax_vp.federated import batches, crowd, operations
from fedjax_vp.federated.federation import Arrays, Federation, Traces, client_windows, cut, traces_of
from fedjax_vp.federated.grouping.settings import ByUpdates
from fedjax_vp.federated.grouping.sketch import sketch
from fedjax_vp.federated.hierarchy import BLOCK_AXES, Layout
from fedjax_vp.federated.levels import LevelState, looked_up, prefixes
from fedjax_vp.federated.precision import Precision, products
from fedjax_vp.federated.settings import Local, Pooling
from fedjax_vp.models.base import Inputs, Params, Predictor

_GOLDEN = (5**0.5 - 1) / 2


class ClientResult(NamedTuple):
    """What a client returns from a round.

    Leaves that some level keeps apart within the client have one row a session (slot), others one row in all.
    """

    delta: Params  # [slot or 1, ...]
    halves: Params  # [slot or 1, ...] even minus odd steps' part of delta (empty without auto shrinkage)
    weight: Float[Array, "slot"]  # weight of each session in pooling
    coverage: Params  # [slot or 1, blocks or 1, ...] 1 where a block was trained
    aux: dict[str, Array]  # sketch of the update for each level that groups by updates: [slot or 1, q]
    state: Any  # the client's private pytree
    loss: Float[Array, ""]  # mean over its steps
    finite: Array  # whether everything above is finite


class Task(NamedTuple):
    """Static parts of the local step."""

    federation: Federation
    layout: Layout
    predictor: Predictor
    local: Local
    pooling: Pooling
    precision: Precision = "float32"  # of the products in local steps
    tick: Callable[..., None] | None = None  # told the device after every stretch: progress of a long round

    @property
    def mixed(self) -> bool:
        """Whether one model serves the whole bag, so that a batch may mix its sessions."""
        return self.num_slots == 1

    @property
    def num_slots(self) -> int:
        """Sessions of a client that are told apart: 1 where one model serves them all."""
        return self.federation.max_sessions if self.layout.varying else 1

    @property
    def halves(self) -> bool:
        """Whether some level asks for the client's own sampling variance."""
        return any(level.shrinkage == "auto" for level in self.layout.levels)


class Client(NamedTuple):
    """One participant of a round."""

    index: Int[Array, ""]
    reports: Array  # bool: a padded place or a drop-out does no work
    key: Array
    state: Any
    made: Traces | None = None  # traces of its bag where they are not stored (None: made when asked for)


class Progress(NamedTuple):
    """Carry of the local steps."""

    theta: Params  # [slot or 1, ...]
    halves: Params
    optimizer: Any
    visited: Float[Array, "slot"]
    loss: Float[Array, ""]


def optimizer(settings: Local) -> optax.GradientTransformation:
    """The local optimiser without its learning rate."""
    base = {
        "sgd": optax.trace(settings.momentum) if settings.momentum else optax.identity(),
        "adam": optax.scale_by_adam(),
    }[settings.optimizer]
    return optax.chain(optax.clip_by_global_norm(settings.clip), base) if settings.clip else base


def slots(arrays: Arrays, client: Int[Array, ""], size: int) -> tuple[Int[Array, "slot"], Array]:
    """Sessions of a client, padded by its first, and which of them are real."""
    first, end = arrays.bags.first[client], arrays.bags.first[client + 1]
    member = first + jnp.arange(size)
    real = member < end
    return arrays.bags.session[jnp.where(real, member, first)], real


def bag_traces(task: Task, arrays: Arrays, client: Client) -> tuple[Traces, Int[Array, "place"]]:
    """Where a client's windows are cut from, and the row of each session of its bag there."""
    size = task.federation.max_sessions
    if client.made is not None:
        return client.made, jnp.arange(size)
    return traces_of(arrays, slots(arrays, client.index, size)[0])


def start(task: Task, states: tuple[LevelState, ...], session: Int[Array, "slot"]) -> tuple[Params, Params]:
    """A client's parameters, and what each shallower prefix lacks of them (nothing where none is trained).

    Returns:
        Leaves [slot or 1, ...]; and of those in which prefixes differ, [prefix, slot or 1, ...].
    """
    apart, whole = looked_up(states, session), looked_up(states, session[:1])
    leaves = sorted({n for names in task.layout.owned for n in names})
    found = {n: prefixes(states, apart if n in task.layout.varying else whole, n) for n in leaves}
    theta = {n: parts[-1] for n, parts in found.items()}
    if not task.local.prefix_share or len(states) == 1:
        return theta, {}
    finer = {n for names in task.layout.owned[1:] for n in names}
    return theta, {n: theta[n][None] - jnp.stack(found[n][:-1]) for n in sorted(finer)}


def local_update(
    task: Task,
    states: tuple[LevelState, ...],
    arrays: Arrays,
    client: Client,
    lr: Float[Array, ""],
    bound: Int[Array, ""] | None = None,
) -> ClientResult:
    """Trains one client from the server's rows.

    Args:
        task: static parts.
        states: rows of every level.
        arrays: the federation.
        client: who, whether it reports at all, its key and private state.
        lr: learning rate of this round.
        bound: steps of the loop; those beyond the client's own work change nothing (default: its own work).
    """
    federation, layout, settings = task.federation, task.layout, task.local
    session, real = slots(arrays, client.index, task.num_slots)
    count = client_windows(arrays, client.index)
    work = batches.plan(client.key, settings, federation, arrays, client.index, task.mixed)
    work = work._replace(steps=jnp.where(client.reports, work.steps, 0))
    theta, lacks = start(task, states, session)
    if layout.varying or federation.max_sessions == 1:
        theta = crowd.without_own(theta, arrays, federation.shape, session, real)
    traces, row = bag_traces(task, arrays, client)
    update_fn = optimizer(settings).update
    size = batches.batch_size(settings, federation)

    def step(index: Array, carry: Progress) -> Progress:
        batch = batches.draw(work, index, size, federation, arrays, client.index, task.mixed)
        active = index < work.steps
        windows = cut(traces, federation.shape, row[batch.place], batch.now)
        with products(task.precision):
            loss, gradient = jax.value_and_grad(_loss)(carry.theta, task, lacks, windows, batch)
        found, moments = update_fn(gradient, carry.optimizer, carry.theta)
        direction = cast(Params, found)
        rate = jnp.where(active, lr, 0.0)
        # The halves tell the client's own sampling noise: even steps count up, odd steps down (`_halves`).
        sign = rate * (1.0 - 2.0 * (index % 2))
        return Progress(
            theta=jax.tree.map(lambda p, d: p - rate * d, carry.theta, direction),
            halves={n: h - sign * direction[n] for n, h in carry.halves.items()},
            optimizer=jax.tree.map(lambda a, b: jnp.where(active, a, b), moments, carry.optimizer),
            visited=carry.visited.at[batch.slot].max(active.astype(jnp.float32)),
            loss=carry.loss + jnp.where(active, loss, 0.0),
        )

    moments = client.state if settings.keep_state else optimizer(settings).init(theta)
    halves = jax.tree.map(jnp.zeros_like, theta) if task.halves else {}
    begin_state = Progress(theta, halves, moments, jnp.zeros(session.shape[0]), jnp.zeros(()))
    done = jax.lax.fori_loop(0, work.steps if bound is None else bound, step, begin_state)
    windows = jnp.where(real, arrays.train.count[session], 0) * done.visited
    if task.mixed:
        windows = jnp.where(done.visited > 0, count, 0)[:1]
    return _result(task, theta, done, weigh(task.pooling, windows), work.steps)


def _loss(
    theta: Params, task: Task, lacks: Params, windows: tuple[Inputs, Array], batch: batches.Batch
) -> Float[Array, ""]:
    """Mean loss of a batch, part of it predicted by the shallower prefixes."""
    size, weight = batch.now.shape[0], batch.weight
    depths = len(task.layout.levels) - 1 if lacks else 0
    part = round(size * task.local.prefix_share / depths) if depths else 0
    if depths:
        weight, windows = jax.tree.map(lambda x: x[scatter(size)], (weight, windows))
    inputs, target = windows
    model, loss_fn = _picked(theta, task, batch), task.local.loss.build()
    seen, first = task.predictor.see(inputs), depths * part
    output = task.predictor.output(model, jax.tree.map(lambda x: x[first:], seen))
    if part:
        views = jax.tree.map(lambda x: x[:first].reshape(depths, part, *x.shape[1:]), seen)
        shallow = _of_prefixes(model, task, lacks, views, batch)
        shallow = jax.tree.map(lambda x: x.reshape(first, *x.shape[2:]), shallow)
        output = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), shallow, output)
    loss = task.predictor.loss_of(output, seen, target, loss_fn)
    return jnp.sum(weight * loss) / jnp.maximum(jnp.sum(weight), 1.0)


def _picked(tree: Params, task: Task, batch: batches.Batch) -> Params:
    """The rows of the session a batch is drawn from."""
    varying = task.layout.varying
    return {n: x[batch.slot if n in varying and x.shape[0] > 1 else 0] for n, x in tree.items()}


def _of_prefixes(model: Params, task: Task, lacks: Params, views: Any, batch: batches.Batch) -> Any:
    """Each shallower prefix's output on its own windows, a tree of arrays [prefix, window, ...].

    Side by side, with one copy of the leaves in which prefixes do not differ: there the windows of all meet
    the weights in one product, and so do their gradients.
    """
    layout = task.layout
    depths = jnp.arange(len(layout.levels) - 1)

    def one(lack: Params, depth: Int[Array, ""], view: Any) -> Any:
        lack = _picked(lack, task, batch)
        rows = {n: model[n] - lack[n] for n in lack}
        rows = {n: jnp.where(layout.coarsest(n) <= depth, x, 0.0) for n, x in rows.items()}
        return task.predictor.output(model | rows, view)

    return jax.vmap(one)(lacks, depths, views)  # over prefixes


def scatter(size: int) -> np.ndarray:
    """An order of a batch's places any stretch of which is spread over the batch: int [size].

    The windows of a batch that is not full stand first; a prefix that took the first places would take them
    all, and leave none to the whole model.
    """
    return np.argsort(np.arange(size) * _GOLDEN % 1.0, kind="stable")


def weigh(pooling: Pooling, windows: Array) -> Array:
    """Weight in pooling of sessions (or clients) with so many training windows."""
    windows = windows.astype(jnp.float32)
    powers = {"windows": lambda n: n, "sqrt": jnp.sqrt, "equal": lambda n: (n > 0).astype(jnp.float32)}
    return powers[pooling.weights](windows)


def _result(task: Task, theta: Params, done: Progress, weight: Array, steps: Array) -> ClientResult:
    delta = {n: done.theta[n] - theta[n] for n in theta}
    halves = {n: _halves(delta[n], h, steps) for n, h in done.halves.items()}
    finite = operations.all_finite(delta.values()) & jnp.isfinite(done.loss)
    clean = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), (delta, halves))
    return ClientResult(
        delta=clean[0],
        halves=clean[1],
        weight=jnp.where(finite, weight, 0.0),
        coverage={n: _coverage(n, d) for n, d in clean[0].items()},
        aux=_sketches(task, clean[0], weight.shape[0]),
        state=done.optimizer if task.local.keep_state else None,
        loss=jnp.where(finite, done.loss / jnp.maximum(steps, 1), 0.0),
        finite=finite,
    )


def _sketches(task: Task, delta: Params, size: int) -> dict[str, Array]:
    """What the server may see of an update: a linear sketch of the leaves that a level owns."""
    found = {}
    for level, names in zip(task.layout.levels, task.layout.owned, strict=True):
        if isinstance(level.grouping, ByUpdates):
            count = size if task.layout.varying & set(names) else 1
            own = {n: jnp.broadcast_to(delta[n], (count, *delta[n].shape[1:])) for n in names}
            found[level.name] = sketch(own, level.grouping.sketch)
    return found


def _halves(delta: Array, signed: Array, steps: Array) -> Array:
    """Difference of the even and the odd steps' part of delta, scaled to delta's own sampling variance.

    With a single step there is no second half: the whole of it counts as noise, the safe side.
    """
    even_steps, odd_steps = (steps + 1) // 2, steps // 2
    even, odd = (delta + signed) / 2, (delta - signed) / 2
    scale = jnp.sqrt((even_steps * odd_steps).astype(jnp.float32))
    apart = scale * (even / jnp.maximum(even_steps, 1) - odd / jnp.maximum(odd_steps, 1))
    return jnp.where(odd_steps > 0, apart, delta)


def _coverage(leaf: str, delta: Array) -> Array:
    """1 for the blocks of a leaf that the client has moved; everything else counts as one block."""
    blocks = BLOCK_AXES.get(leaf, 0)
    if not blocks:
        return jnp.ones(delta.shape[:1] + (1,) * (delta.ndim - 1))
    return jnp.any(delta != 0, axis=tuple(range(1 + blocks, delta.ndim)), keepdims=True).astype(jnp.float32)
