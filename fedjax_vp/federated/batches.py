"""Which windows a client trains on in each local step, drawn inside the graph.

A client is a range of ranks in the common order of training windows (`federation.Bags`). Where every level
keeps all of a client in one group its model is the same for every window, and a batch is drawn from the whole
bag. Where a level tells the client's sessions apart, a batch is drawn from one session, so that its model is
defined.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedjax_vp.federated.federation import Arrays, Federation
from fedjax_vp.federated.settings import Local


class Batch(NamedTuple):
    """Windows of one local step."""

    slot: Int[Array, ""]  # which of the client's sessions the model is taken for
    session: Int[Array, "window"]
    place: Int[Array, "window"]  # of the session in the client's bag
    now: Int[Array, "window"]
    weight: Float[Array, "window"]  # 1, or 0 for padding


class Plan(NamedTuple):
    """A client's work of a round, drawn once."""

    key: Array
    steps: Int[Array, ""]  # gradient steps to take: 0 without data
    per_pass: Int[Array, ""]  # steps in one pass over the client's windows
    order: Int[
        Array, "pass rank"
    ]  # a permutation of the client's windows for each pass (empty: drawn freely)


def batch_size(settings: Local, federation: Federation) -> int:
    """Windows in a batch (static): all of the largest client's where `batch` is 0."""
    return settings.batch or federation.max_windows


def plan(key: Array, settings: Local, federation: Federation, count: Int[Array, ""]) -> Plan:
    """Draws a client's work: `steps` free draws, or `epochs` passes in a fresh order each.

    Args:
        key: the client's key of this round.
        settings: steps or epochs, and batch.
        federation: for static sizes.
        count: the client's training windows.
    """
    size = batch_size(settings, federation)
    key_order, key_draw = jax.random.split(key)
    order = jnp.zeros((0, 0), jnp.int32)
    passes = _passes(settings)
    if passes:
        ranks = jax.random.uniform(key_order, (math.ceil(passes), federation.max_windows))
        beyond = jnp.arange(federation.max_windows) >= count
        order = jnp.argsort(jnp.where(beyond[None, :], 2.0, ranks), axis=1).astype(jnp.int32)
    return Plan(key_draw, num_steps(settings, federation, count), -(-count // size), order)


def num_steps(settings: Local, federation: Federation, count: Int[Array, ""]) -> Int[Array, ""]:
    """Gradient steps of a client with `count` training windows; 0 without any."""
    passes = _passes(settings)
    steps = jnp.full((), settings.steps, jnp.int32)
    if passes:
        per_pass = -(-count // batch_size(settings, federation))
        steps = jnp.maximum(jnp.round(passes * per_pass), 1).astype(jnp.int32)
    return jnp.where(count > 0, steps, 0)


def _passes(settings: Local) -> float:
    """Passes over the client's windows; 0 where steps are drawn freely (a full batch is one pass)."""
    if settings.epochs is not None:
        return settings.epochs
    return 0.0 if settings.batch else float(settings.steps)


def draw(
    work: Plan, step: Int[Array, ""], size: int, arrays: Arrays, client: Int[Array, ""], mixed: bool
) -> Batch:
    """The windows of one local step.

    Args:
        work: the client's plan.
        step: index of the step.
        size: windows in a batch.
        arrays: the federation.
        client: the client.
        mixed: whether a batch may mix the client's sessions.
    """
    bags = arrays.bags
    begin, end = bags.rank[bags.first[client]], bags.rank[bags.first[client + 1]]
    count = jnp.maximum(end - begin, 1)
    key_session, key_window = jax.random.split(jax.random.fold_in(work.key, step))
    weight: Bool[Array, "window"] = jnp.ones(size, bool)
    if not mixed:
        member = _member(arrays, begin + _uniform(key_session, (), count))
        begin, count = bags.rank[member], bags.rank[member + 1] - bags.rank[member]
        rank = begin + _uniform(key_window, (size,), count)
    elif work.order.size:
        passes = jnp.clip(step // jnp.maximum(work.per_pass, 1), 0, work.order.shape[0] - 1)
        position = (step % jnp.maximum(work.per_pass, 1)) * size + jnp.arange(size)
        weight = position < count
        rank = begin + work.order[passes][jnp.minimum(position, count - 1)]
    else:
        rank = begin + _uniform(key_window, (size,), count)
    member = _member(arrays, rank)
    session = bags.session[member]
    now = arrays.train.at(session, rank - bags.rank[member])
    place = member - bags.first[client]
    slot = jnp.zeros((), jnp.int32) if mixed else place[0]
    return Batch(slot, session, place, now, weight.astype(jnp.float32))


def _uniform(key: Array, shape: tuple[int, ...], count: Int[Array, ""]) -> Array:
    return jax.random.randint(key, shape, 0, count, dtype=jnp.int32)


def _member(arrays: Arrays, rank: Array) -> Array:
    """The member whose windows include a rank."""
    last = arrays.bags.session.shape[0] - 1
    return jnp.clip(jnp.searchsorted(arrays.bags.rank, rank, side="right") - 1, 0, last).astype(jnp.int32)
