"""Stretches: runs of blocks of clients, for what is worth doing once for many clients.

Traces that are not stored are generated for a stretch at once, side by side. A row of sums that many clients
add to starts at zero in every stretch, and the stretches' parts meet in a compensated sum: the error of a sum
over 10^6 clients is that of a sum over one stretch (Neumaier, "Rundungsfehleranalyse einiger Verfahren zur
Summation endlicher Summen", ZAMM 54, 1974).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_vp.federated.federation import Arrays, Traces, traces_of
from fedjax_vp.federated.local import Client, Task, slots

Sums = TypeVar("Sums")

CLIENTS = 256  # of a stretch
GENERATED = 256  # sessions of a stretch whose traces are generated
FEW_ROWS = 64  # rows beyond that have few clients each, and take them one by one


class Plan(NamedTuple):
    """How the clients of a device are cut up; all but `clients` of them are padding."""

    stretches: int
    blocks: int  # of a stretch
    block: int  # clients of a block

    @property
    def clients(self) -> int:
        """Places, the padded ones included."""
        return self.stretches * self.blocks * self.block


def plan(task: Task, block: int, clients: int) -> Plan:
    """Stretches of one size, with the least padding.

    Args:
        task: static parts.
        block: clients of a block.
        clients: of a device.
    """
    federation = task.federation
    most = CLIENTS if federation.arrays.make is None else max(GENERATED // federation.max_sessions, 1)
    blocks = -(-clients // block)
    stretches = -(-blocks // max(most // block, 1))
    return Plan(stretches, -(-blocks // stretches), block)


def scan(
    block_fn: Callable[[Sums, Client], tuple[Sums, Any]],
    sums: Sums,
    task: Task,
    arrays: Arrays,
    clients: Client,
    block: int,
) -> tuple[Sums, Any]:
    """Takes the clients of a device block by block.

    Args:
        block_fn: adds a block of clients to sums, and returns what belongs to each client, [block, ...].
        sums: zeros, with a leading axis of rows.
        task: static parts.
        arrays: the federation.
        clients: [client, ...]; places that are added to fill the last block do not report.
        block: clients of a block.

    Returns:
        The sums, and the outputs [client, ...].
    """
    count = clients.index.shape[0]
    cut = plan(task, block, count)
    if cut.clients > count:
        place = jnp.arange(cut.clients)
        clients = jax.tree.map(lambda x: x[jnp.minimum(place, count - 1)], clients)
        clients = clients._replace(reports=clients.reports & (place < count))
    split = jax.tree.map(lambda x: x.reshape(*cut, *x.shape[1:]), clients)

    def one(start: Sums, stretch: Client) -> tuple[Sums, Any]:
        if arrays.make is not None:
            stretch = stretch._replace(made=_generate(task, arrays, stretch))
        found, outputs = jax.lax.scan(block_fn, start, stretch)
        if task.tick is not None:
            done = jnp.ravel(jax.tree.leaves(outputs)[0])[0]
            jax.debug.callback(task.tick, jax.lax.axis_index("clients"), done)
        return found, outputs

    if cut.stretches == 1:  # nothing to compensate, and less to compile
        sums, outputs = one(sums, jax.tree.map(lambda x: x[0], split))
        return sums, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], outputs)

    def stretch_fn(carry: tuple[Sums, Any], stretch: Client) -> tuple[tuple[Sums, Any], Any]:
        total, lost = carry
        start = jax.tree.map(lambda x: jnp.zeros_like(x) if _many(x) else x, total)
        found, outputs = one(start, stretch)
        lost = jax.tree.map(lambda a, b, c: two_sum(a, b, c)[1] if _many(a) else c, total, found, lost)
        total = jax.tree.map(lambda a, b: a + b if _many(a) else b, total, found)
        return (total, lost), outputs

    lost = jax.tree.map(lambda x: jnp.zeros_like(x) if _many(x) else jnp.zeros(()), sums)
    (sums, lost), outputs = jax.lax.scan(stretch_fn, (sums, lost), split)
    sums = jax.tree.map(lambda a, b: a + b if _many(a) else a, sums, lost)
    return sums, jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:])[:count], outputs)


def _many(rows: Array) -> bool:
    """Whether many clients add to a row."""
    return rows.shape[0] <= FEW_ROWS


def two_sum(
    total: Float[Array, "*shape"], part: Float[Array, "*shape"], lost: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Adds a part to a total; what rounding takes from the sum goes to `lost`."""
    new = total + part
    back = new - total
    return new, lost + ((total - (new - back)) + (part - back))


def _generate(task: Task, arrays: Arrays, stretch: Client) -> Traces:
    """Traces of the clients' bags, [block, client, place, ...]."""
    size = task.federation.max_sessions
    bags = jax.vmap(lambda c: slots(arrays, c, size)[0])(stretch.index.reshape(-1))  # over clients
    made, _ = traces_of(arrays, bags.reshape(-1))
    shape = (*stretch.index.shape, size)
    return Traces(*(x.reshape(*shape, *x.shape[1:]) for x in made))
