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
from jaxtyping import Array, Bool, Float, Int, UInt32

from fedjax_vp.federated import keys
from fedjax_vp.federated.federation import Arrays, Federation, client_windows
from fedjax_vp.federated.settings import Local

_FEW = 64  # sessions of a bag that are compared with all at once


class Batch(NamedTuple):
    """Windows of one local step."""

    slot: Int[Array, ""]  # which of the client's sessions the model is taken for
    session: Int[Array, "window"]
    place: Int[Array, "window"]  # of the session in the client's bag
    now: Int[Array, "window"]
    weight: Float[Array, "window"]  # 1, or 0 for padding


class Plan(NamedTuple):
    """A client's work of a round, drawn once.

    Orders and batches are empty where windows are drawn freely, step by step.
    """

    key: Array  # the client's
    steps: Int[Array, ""]  # gradient steps to take: 0 without data
    per_pass: Int[Array, ""]  # steps in one pass over the client's windows
    order: Int[Array, "pass rank"]  # the client's windows in the order of each pass
    batch: Int[Array, "pass rank"]  # which step of the pass takes the window at this place


def batch_size(settings: Local, federation: Federation) -> int:
    """Windows in a batch (static): all of the largest client's where `batch` is 0."""
    return settings.batch or federation.max_windows


def plan(
    key: Array, settings: Local, federation: Federation, arrays: Arrays, client: Int[Array, ""], mixed: bool
) -> Plan:
    """Draws a client's work: `steps` free draws, or `epochs` passes in a fresh order each.

    Where batches may not mix sessions, a pass takes the sessions in random order, each in batches of its own.

    Args:
        key: the client's key of this round.
        settings: steps or epochs, and batch.
        federation: for static sizes.
        arrays: the federation's.
        client: the client.
        mixed: whether a batch may mix the client's sessions.
    """
    per_pass = steps_of_pass(settings, federation, arrays, client, mixed)
    steps, passes = num_steps(settings, per_pass), math.ceil(_passes(settings))
    if not passes:
        none = jnp.zeros((0, 0), jnp.int32)
        return Plan(key, steps, per_pass, none, none)
    size, most = batch_size(settings, federation), federation.max_windows
    place = jnp.arange(most)
    count = client_windows(arrays, client)
    drawn = jax.random.uniform(key, (passes, most + (0 if mixed else federation.max_sessions)))
    chance, turn = drawn[:, :most], drawn[:, most:]
    if mixed:
        beyond = jnp.where(place < count, 0.0, 2.0)
        order = jnp.argsort(chance + beyond[None, :], axis=1).astype(jnp.int32)
        return Plan(key, steps, per_pass, order, jnp.broadcast_to((place // size)[None, :], order.shape))
    bags, first = arrays.bags, arrays.bags.first[client]
    own = jnp.where(
        place < count,
        members(federation, arrays, client, bags.rank[first] + place) - first,
        federation.max_sessions,
    )
    rank = jnp.argsort(jnp.argsort(turn, axis=1), axis=1)  # place of each session in the pass
    rank = jnp.pad(rank, ((0, 0), (0, 1)), constant_values=federation.max_sessions)[:, own]
    order = jnp.argsort(rank + chance, axis=1).astype(jnp.int32)
    session = jnp.take_along_axis(rank, order, axis=1)
    new = jnp.pad(session[:, 1:] != session[:, :-1], ((0, 0), (1, 0)))
    since = place[None, :] - jax.lax.cummax(jnp.where(new, place[None, :], 0), axis=1)
    opens = (new | (since % size == 0)).astype(jnp.int32)
    return Plan(key, steps, per_pass, order, jnp.cumsum(opens, axis=1) - 1)


def steps_of_pass(
    settings: Local, federation: Federation, arrays: Arrays, client: Int[Array, ""], mixed: bool
) -> Int[Array, ""]:
    """Batches that hold all of a client's windows once; 0 without any."""
    size, bags = batch_size(settings, federation), arrays.bags
    if mixed:
        return -(-client_windows(arrays, client) // size)
    member = bags.first[client] + jnp.arange(federation.max_sessions)
    at = jnp.minimum(member, bags.session.shape[0] - 1)
    count = jnp.where(member < bags.first[client + 1], bags.rank[at + 1] - bags.rank[at], 0)
    return jnp.sum(-(-count // size))


def num_steps(settings: Local, per_pass: Int[Array, "*any"]) -> Int[Array, "*any"]:
    """Gradient steps of a client whose windows make so many batches; 0 without any."""
    passes = _passes(settings)
    steps = jnp.full(per_pass.shape, settings.steps, jnp.int32)
    if passes:
        steps = jnp.maximum(jnp.round(passes * per_pass), 1).astype(jnp.int32)
    return jnp.where(per_pass > 0, steps, 0)


def _passes(settings: Local) -> float:
    """Passes over the client's windows; 0 where steps are drawn freely (a full batch is one pass)."""
    if settings.epochs is not None:
        return settings.epochs
    return 0.0 if settings.batch else float(settings.steps)


def draw(
    work: Plan,
    step: Int[Array, ""],
    size: int,
    federation: Federation,
    arrays: Arrays,
    client: Int[Array, ""],
    mixed: bool,
) -> Batch:
    """The windows of one local step.

    Args:
        work: the client's plan.
        step: index of the step.
        size: windows in a batch.
        federation: for static sizes.
        arrays: the federation's.
        client: the client.
        mixed: whether a batch may mix the client's sessions.
    """
    bags = arrays.bags
    begin, end = bags.rank[bags.first[client]], bags.rank[bags.first[client + 1]]
    count = jnp.maximum(end - begin, 1)
    weight: Bool[Array, "window"] = jnp.ones(size, bool)
    if work.order.size:
        per_pass = jnp.maximum(work.per_pass, 1)
        order, batch = (x[jnp.clip(step // per_pass, 0, x.shape[0] - 1)] for x in (work.order, work.batch))
        begins = jnp.searchsorted(batch, step % per_pass)
        position = jnp.minimum(begins + jnp.arange(size), count - 1)
        weight = (begins + jnp.arange(size) < count) & (batch[position] == step % per_pass)
        position = jnp.where(weight, position, begins)  # padding repeats the first, of the same session
        rank = begin + order[jnp.minimum(position, count - 1)]
    else:
        bits = jax.random.bits(keys.apart(work.key, keys.STEPS + step), (1 + size,))  # session, windows
        if not mixed:
            member = members(federation, arrays, client, begin + below(count, bits[0]))
            begin, count = bags.rank[member], bags.rank[member + 1] - bags.rank[member]
        rank = begin + below(count, bits[1:])
    member = members(federation, arrays, client, rank)
    session = bags.session[member]
    now = arrays.train.at(session, rank - bags.rank[member])
    place = member - bags.first[client]
    slot = jnp.zeros((), jnp.int32) if mixed else place[0]
    return Batch(slot, session, place, now, weight.astype(jnp.float32))


def below(count: Int[Array, ""], bits: UInt32[Array, "*any"]) -> Int[Array, "*any"]:
    """Random numbers from 0 to count - 1 (0 of none), evenly up to count / 2^32.

    `jax.random.randint` splits its key and draws two numbers for each: three hashes to compile where this is
    one.
    """
    return (bits % jnp.maximum(count, 1).astype(jnp.uint32)).astype(jnp.int32)


def members(
    federation: Federation, arrays: Arrays, client: Int[Array, ""], rank: Int[Array, "*any"]
) -> Int[Array, "*any"]:
    """The members of a client's bag whose windows include these ranks.

    A rank is compared with all members of a small bag, which is one function to compile and no loop; among
    those of a large bag it is searched.
    """
    bags, first, size = arrays.bags, arrays.bags.first[client], federation.max_sessions
    if size > _FEW:
        last = bags.session.shape[0] - 1
        return jnp.clip(jnp.searchsorted(bags.rank, rank, side="right") - 1, 0, last).astype(jnp.int32)
    begins = bags.rank.at[first + jnp.arange(1, size)].get(mode="clip")
    return first + jnp.searchsorted(begins, rank, side="right", method="compare_all").astype(jnp.int32)
