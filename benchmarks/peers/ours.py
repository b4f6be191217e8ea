"""Our side of the comparison: the engine's own round; the mode is the number of clients."""

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

    from fedjax_vp import compiling
    from fedjax_vp.federated.levels import model_of
    from fedjax_vp.federated.round import make_round
    from fedjax_vp.models import Chord, Inputs

    asked = protocol.request()
    workload = workloads.build(asked.workload, int(asked.mode))
    arrays, predictor = workload.simulator.federation.arrays, workload.simulator.task.predictor
    options = compiling.options(workload.simulator.mesh)
    step = jax.jit(make_round(workload.simulator), donate_argnums=0, compiler_options=options)
    state = [workloads.initial(workload)]

    @jax.jit
    def judge(weights: dict[str, jax.Array], past: jax.Array, future: jax.Array) -> jax.Array:
        found = predictor.apply(weights, Inputs(past, jnp.zeros(past.shape[0])))
        return jnp.mean(Chord().build()(found, future))

    def run_round(count: int | None) -> None:
        del count  # another number of clients would be another compilation
        state[0] = jax.block_until_ready(step(state[0], arrays, workload.hyper)[0])

    def reset(nudge: float = 0.0) -> None:
        first = workloads.initial(workload)
        weights = jax.tree.map(
            lambda x: x * (1 + nudge) if jnp.issubdtype(x.dtype, jnp.floating) else x, first.levels
        )
        state[0] = jax.block_until_ready(first._replace(levels=weights))

    def loss() -> float:
        files = (asked.folder / f"{name}.npy" for name in ("past", "future"))
        parts = (np.load(file, mmap_mode="r")[: protocol.JUDGED] for file in files)
        past, future = (jnp.asarray(part).reshape(-1, *part.shape[2:]) for part in parts)
        return float(judge(model_of(state[0].levels, jnp.int32(0)), past, future))

    protocol.serve(reset, run_round, loss)


if __name__ == "__main__":
    main()
