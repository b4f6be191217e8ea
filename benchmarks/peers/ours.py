"""Our side of the comparison: the engine's own round, and the arrays that every peer reads.

    python ours.py WORKLOAD FILE CLIENTS

writes FILE, then serves rounds as the peers do.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import protocol

from fedjax_vp.environment import prepare_jax


def main() -> None:
    prepare_jax()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import jax
    import jax.numpy as jnp
    import workloads

    from fedjax_vp import geometry
    from fedjax_vp.federated.levels import model_of
    from fedjax_vp.federated.round import make_round
    from fedjax_vp.models import Chord, Inputs

    name, path = protocol.arguments()
    workload = workloads.build(name, int(sys.argv[3]))
    arrays, predictor = workload.simulator.federation.arrays, workload.simulator.task.predictor
    first = workloads.initial(workload)
    past, future = ordered(workload)
    weights = model_of(first.levels, jnp.int32(0))
    frame = geometry.yaw_frame(past[:, :, -1])[:, :, None]
    past, future = (np.asarray(geometry.to_yaw_frame(x, frame)) for x in (past, future))
    np.savez(path, past=past, future=future, **{f"weight/{n}": np.asarray(w) for n, w in weights.items()})
    step = jax.jit(make_round(workload.simulator), donate_argnums=0)
    state = [first]

    @jax.jit
    def judge(weights: dict[str, jax.Array], past: jax.Array, future: jax.Array) -> jax.Array:
        found = predictor.apply(weights, Inputs(past, jnp.zeros(past.shape[0])))
        return jnp.mean(Chord().build()(found, future))

    def run_round() -> None:
        state[0] = jax.block_until_ready(step(state[0], arrays, workload.hyper)[0])

    def reset() -> None:
        state[0] = jax.block_until_ready(workloads.initial(workload))

    def loss() -> float:
        flat = (x[: protocol.JUDGED].reshape(-1, *x.shape[2:]) for x in (past, future))
        return float(judge(model_of(state[0].levels, jnp.int32(0)), *flat))

    protocol.serve(reset, run_round, loss)


def ordered(workload) -> tuple:
    """Windows of every client in the order of its first epoch: past and future in the world frame."""
    import jax
    import jax.numpy as jnp
    from workloads import SHAPE

    from fedjax_vp.federated import batches

    sim = workload.simulator
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 1), 0)
    key = jax.random.split(key)[1]

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
