"""Writes the arrays that every peer reads (see `protocol.py`), as our engine orders them.

    python work.py WORKLOAD FOLDER CLIENTS

A process of its own, so that none of it counts as memory of our runner.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fedjax_vp.environment import prepare_jax


def main() -> None:
    prepare_jax()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import jax.numpy as jnp
    import workloads

    from fedjax_vp import geometry
    from fedjax_vp.federated.levels import model_of

    name, folder, clients = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    workload = workloads.build(name, clients)
    weights = model_of(workloads.initial(workload).levels, jnp.int32(0))
    past, future = ordered(workload)
    frame = geometry.yaw_frame(past[:, :, -1])[:, :, None]
    np.save(folder / "past.npy", geometry.to_yaw_frame(past, frame))
    np.save(folder / "future.npy", geometry.to_yaw_frame(future, frame))
    np.savez(folder / "weights.npz", **{name: np.asarray(w) for name, w in weights.items()})


def ordered(workload) -> tuple:
    """Windows of every client in the order of its first epoch: past and future in the world frame."""
    import jax
    import jax.numpy as jnp
    from workloads import SHAPE

    from fedjax_vp.federated import batches, keys

    sim = workload.simulator
    key = keys.of_round(0, 0)[1]

    def order(client: jax.Array) -> jax.Array:
        own, fed = jax.random.fold_in(key, client), sim.federation
        return batches.plan(own, sim.task.local, fed, fed.arrays, client, True).order[0]

    orders = np.asarray(jax.jit(jax.vmap(order))(jnp.arange(workload.clients)))
    direction = np.asarray(sim.federation.arrays.direction)
    times = orders[:, :, None] + np.arange(SHAPE.history + SHAPE.horizon)
    windows = direction[np.arange(len(orders))[:, None, None], times]
    return windows[:, :, : SHAPE.history], windows[:, :, SHAPE.history :]


if __name__ == "__main__":
    main()
