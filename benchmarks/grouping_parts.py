"""Rates of grouping's parts: the choice among K models, cosines of all pairs, and the error of sketches.

    python benchmarks/grouping_parts.py --out benchmarks/results/grouping_parts.json

- `choice`: IFCA's choice of every client among K models on 32 windows, against K forward passes of one model
  client by client over the same windows (`vp-mlp`).
- `exact`: all cosines of n whole updates, counted by the triangle (n^2 d operations), against the best of
  five float32 products of 4096^3.
- `sketch`: cosines of sketches of real updates (8 local steps) against those of the updates, all pairs; the
  bound is the standard deviation of a count-sketch's inner product, sqrt((1 + c^2) / q), of unit vectors.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ceilings import device

from fedjax_vp.environment import prepare_jax


def choice(clients: int, groups: tuple[int, ...], passes: int = 5) -> list[dict[str, Any]]:
    """Seconds of choosing among so many models, and of as many forward passes, in interleaved passes."""
    import jax
    import jax.numpy as jnp
    from workloads import BATCH, build

    from fedjax_vp.federated import assignment, round
    from fedjax_vp.federated.federation import cut, traces_of
    from fedjax_vp.federated.grouping.settings import IFCA
    from fedjax_vp.federated.settings import Engine, Level
    from fedjax_vp.federated.simulator import simulator

    base = build("vp-mlp", clients, steps=1).simulator
    arrays, shape, predict = base.federation.arrays, base.federation.shape, base.task.predictor
    loss_fn = base.task.local.loss.build()
    own = jax.sharding.PartitionSpec("clients")

    def forward(theta: Any, session: jax.Array) -> jax.Array:
        def one(session: jax.Array) -> jax.Array:
            now = arrays.train.at(jnp.full(BATCH, session), jnp.arange(BATCH))
            inputs, target = cut(traces_of(arrays, session[None])[0], shape, jnp.full(BATCH, session), now)
            return jnp.mean(loss_fn(predict.apply(theta, inputs), target))

        return jax.lax.map(one, session)

    rows = []
    for count in groups:
        level = Level("cluster", grouping=IFCA(groups=count, reseed=False))
        method = replace(base.method, levels=(level,))
        sim = simulator(base.federation, predict, method, Engine())
        state = round.init(sim, jnp.int32(0))
        people = round.invite(sim, state.seed, state.round, arrays)[1]
        choose = jax.jit(lambda *a, sim=sim: assignment.assign(sim, *a)[0])
        theta = predict.init(jax.random.key(0))
        session = jnp.arange(clients)
        once = jax.jit(
            jax.shard_map(forward, mesh=sim.mesh, in_specs=(jax.sharding.PartitionSpec(), own), out_specs=own)
        )
        taken = []
        for _ in range(passes + 1):
            begun = time.perf_counter()
            jax.block_until_ready(choose(state.levels, arrays, people, state.round, state.seed))
            middle = time.perf_counter()
            jax.block_until_ready(once(theta, session))
            taken.append((middle - begun, count * (time.perf_counter() - middle)))
        chosen, passed = np.median(np.array(taken[1:]), axis=0).tolist()
        rows.append({"groups": count, "choice_s": chosen, "passes_s": passed, "ratio": chosen / passed})
    return rows


def exact(members: int, size: int = 104_267) -> dict[str, Any]:
    """Rate of all cosines, and of a large matrix product before and after."""
    from ceilings import matmul_gflops

    from fedjax_vp.federated.grouping.similarity import COLUMNS, cosine

    updates = np.random.default_rng(0).standard_normal((members, size), np.float32)
    ceilings = [matmul_gflops()]
    cosine(updates[:, : COLUMNS + size % COLUMNS])  # compiles both shapes of slices
    begun = time.perf_counter()
    cosine(updates)
    seconds = time.perf_counter() - begun
    ceilings.append(matmul_gflops())
    rate = 1e-9 * members**2 * size / seconds
    return {
        "members": members,
        "seconds": seconds,
        "gflops": rate,
        "matmul_gflops": ceilings,
        "share_of_matmul": rate / max(ceilings),
    }


def sketches(clients: int = 96, sizes: tuple[int, ...] = (64, 256, 1024)) -> list[dict[str, Any]]:
    """Errors of sketched cosines over all pairs of real updates."""
    import jax
    import jax.numpy as jnp
    from workloads import build

    from fedjax_vp.federated import round, training
    from fedjax_vp.federated.grouping.settings import KMeans
    from fedjax_vp.federated.grouping.similarity import cosine
    from fedjax_vp.federated.grouping.sketch import signs, sketch
    from fedjax_vp.federated.settings import Engine, Level
    from fedjax_vp.federated.simulator import simulator

    base = build("vp-mlp", clients, steps=8).simulator
    method = replace(base.method, levels=(Level("cluster", grouping=KMeans(sketch=0)),))
    sim = simulator(base.federation, base.task.predictor, method, Engine())
    state, arrays = round.init(sim, jnp.int32(0)), base.federation.arrays
    people = round.invite(sim, state.seed, state.round, arrays)[1]
    seen = jax.jit(training.trainer(sim))(people, state.levels, arrays, jnp.float32(0.05))[4]
    whole = np.asarray(seen.sketch["cluster"])[:clients, 0]
    params, leaves, at = base.task.predictor.init(jax.random.key(0)), {}, 0
    for name, leaf in sorted(params.items()):
        leaves[name] = jnp.asarray(whole[:, at : at + leaf.size].reshape(-1, *leaf.shape))
        at += leaf.size
    pair = np.triu_indices(clients, 1)
    rows = []
    for size in sizes:
        errors, true = [], cosine(whole)[pair]
        for seed in range(10):
            some = sketch(leaves, size, signs(seed, leaves))
            errors.append(cosine(np.asarray(some))[pair] - true)
        error = np.stack(errors)
        rows.append(
            {
                "numbers": size,
                "error_rms": float(np.sqrt(np.mean(error**2))),
                "error_max": float(np.abs(error).max()),
                "bound_rms": float(np.sqrt(np.mean((1 + true**2) / size))),
                "cosine_mean": float(true.mean()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=2048, help="who choose among K models")
    parser.add_argument("--members", type=int, default=4096, help="whose updates are compared, up to 8192")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/grouping_parts.json"))
    options = parser.parse_args()
    prepare_jax()
    found: dict[str, Any] = {"machine": device(), "sketch": sketches()}
    for row in found["sketch"]:
        print(
            f"sketch of {row['numbers']:5d}: error of cosines {row['error_rms']:.4f} (bound "
            f"{row['bound_rms']:.4f}), at most {row['error_max']:.3f}",
            flush=True,
        )
    found["choice"] = choice(options.clients, (2, 4, 16))
    for row in found["choice"]:
        print(f"choice among {row['groups']:2d}: {row['ratio']:.2f} times as many forward passes", flush=True)
    found["exact"] = exact(options.members)
    print(f"exact cosines: {found['exact']['share_of_matmul']:.0%} of the matmul rate")
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
