"""Trains a round's cohort on all devices, and adds up what its clients report.

Each device takes its clients block by block; of a client's update no more is kept than what it adds to the
sums over its groups (`sums`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int

from fedjax_vp.federated import stretches, sums
from fedjax_vp.federated.batches import num_steps, steps_of_pass
from fedjax_vp.federated.federation import Arrays
from fedjax_vp.federated.learned import Seen
from fedjax_vp.federated.levels import LevelState
from fedjax_vp.federated.local import Client, ClientResult, Task, local_update, slots
from fedjax_vp.federated.simulator import Simulator
from fedjax_vp.federated.sums import Totals, Unit


def trainer(sim: Simulator) -> Callable[..., tuple[Totals, Any, Array, Array, Seen]]:
    """Trains a dealt cohort on all devices; sums come back whole, the clients' own outputs sharded.

    Returns:
        A function of (clients, levels, arrays, learning rate). Clients that do not report take no step, but
        are added up like the others.
    """
    task, layout = sim.task, sim.layout
    params = jax.eval_shape(task.predictor.init, jax.random.key(0))

    def device_fn(
        clients: Client, states: tuple[LevelState, ...], arrays: Arrays, lr: Array
    ) -> tuple[Totals, Any, Array, Array, Seen]:
        def block_fn(totals: Totals, block: Client) -> tuple[Totals, tuple]:
            result = _train_block(task, states, arrays, block, lr)
            session = jax.vmap(lambda c: slots(arrays, c, task.num_slots)[0])(block.index)  # over the block
            totals = sums.add(totals, states, layout, _units(task, result, session))
            seen = Seen(session, result.weight, result.aux)
            return totals, (result.state, result.loss, result.finite, seen)

        zeros = sums.zeros(layout, params)
        totals, outputs = stretches.scan(block_fn, zeros, task, arrays, clients, sim.block)
        return jax.lax.psum(totals, "clients"), *outputs

    own, whole = PartitionSpec("clients"), PartitionSpec()
    return jax.shard_map(
        device_fn,
        mesh=sim.mesh,
        in_specs=(own, whole, whole, whole),
        out_specs=(whole, own, own, own, own),
        check_vma=False,
    )


def _train_block(
    task: Task, states: tuple[LevelState, ...], arrays: Arrays, block: Client, lr: Array
) -> ClientResult:
    """Trains the clients of a block side by side; a client alone loops its own number of steps."""
    if block.index.shape[0] == 1:
        one = local_update(task, states, arrays, jax.tree.map(lambda x: x[0], block), lr)
        return jax.tree.map(lambda x: x[None], one)
    federation, mixed = task.federation, task.mixed
    count = jax.vmap(lambda c: steps_of_pass(task.local, federation, arrays, c, mixed))(block.index)
    bound = jnp.max(num_steps(task.local, jnp.where(block.reports, count, 0)))
    train = jax.vmap(lambda client: local_update(task, states, arrays, client, lr, bound))  # over the block
    return train(block)


def _units(task: Task, result: ClientResult, session: Int[Array, "client slot"]) -> dict[str, Unit]:
    """Flattens clients and slots of each leaf into units of pooling."""
    units = {}
    for leaf, delta in result.delta.items():
        apart = leaf in task.layout.varying
        own = session if apart else session[:, :1]
        weight = result.weight if apart else jnp.sum(result.weight, axis=1, keepdims=True)
        count = own.size
        flat = delta.reshape(count, *delta.shape[2:])
        covered = result.coverage[leaf].reshape(count, *result.coverage[leaf].shape[2:])
        halves = result.halves[leaf].reshape(flat.shape) if result.halves else jnp.zeros((0,))
        scale = weight.reshape(count, *(1,) * (flat.ndim - 1))
        units[leaf] = Unit(flat, halves, scale * covered, own.reshape(count))
    return units
