"""One round over up to a million procedurally generated sessions: seconds, seconds a client, peak memory.

    python benchmarks/memory.py --clients 1000000 --algorithm fedavg ifca --json

`vp-mlp` (30-256-256-75, chord loss), one step of 32 windows a client, everybody takes part; IFCA has K = 4
groups and judges them on 32 windows. Sessions are generated inside the round and never stored. What it is
compared with are rounds over 10^4 clients in the same process, as many before the large round as after it.
The time a client takes is the median over stretches of one device. The host is measured, whatever else there
is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from bisect import bisect_left
from collections import defaultdict
from typing import Any

import numpy as np
from overhead.resident import forget_peak, peak_bytes

from fedjax_vp.environment import prepare_jax

FEW = 10_000
GROUPS = 4
PASSES = {"fedavg": 1, "ifca": 2}  # over the clients: IFCA judges before it trains
AROUND = 5  # rounds over few, before the large one and after it


class Clock:
    """Seconds of each device's stretches, and a line of progress on stderr."""

    def __init__(self, name: str, stretches: list[int]) -> None:
        self.name, self.ends = name, np.cumsum(stretches).tolist()
        self.restart()
        self.taken: list[list[float]] = [[] for _ in stretches]

    def restart(self) -> None:
        """A round begins."""
        self.begun = self.shown = time.perf_counter()
        self.since: dict[int, float] = {}
        self.count: dict[int, int] = defaultdict(int)

    def tick(self, device: Any, value: Any) -> None:
        """Called from the devices, after each of their stretches."""
        place, now = int(device), time.perf_counter()
        self.count[place] += 1
        if place in self.since:
            self.taken[bisect_left(self.ends, self.count[place])].append(now - self.since[place])
        if self.count[place] in self.ends:  # the next pass begins when all devices are done
            self.since.pop(place, None)
        else:
            self.since[place] = now
        self._tell(now)

    def _tell(self, now: float) -> None:
        if now - self.shown < 2:
            return
        self.shown, done = now, sum(self.count.values())
        share = done / (self.ends[-1] * max(len(self.count), 1))
        left = (now - self.begun) * (1 / share - 1)
        print(f"\r{self.name}: {share:4.0%}, {left:.0f} s left ", end="", file=sys.stderr)


class Rounds:
    """Compiled rounds of an algorithm over so many clients."""

    def __init__(self, algorithm: str, clients: int) -> None:
        import jax
        import jax.numpy as jnp
        from workloads import BATCH, MODELS, RATE, SHAPE

        from fedjax_vp import compiling
        from fedjax_vp.data import splits, synthetic
        from fedjax_vp.federated import assignment, federation, round, stretches
        from fedjax_vp.federated.grouping.settings import IFCA
        from fedjax_vp.federated.settings import Engine, Everyone, Level, Local, Method
        from fedjax_vp.federated.simulator import simulator
        from fedjax_vp.models import Chord

        begun = time.perf_counter()
        traces = synthetic.generate(synthetic.Planted(users=clients, videos=1, stored=False))
        self.federation = federation.build(traces, splits.split(traces, splits.WithinSession()), SHAPE)
        level = Level("cluster", grouping=IFCA(groups=GROUPS)) if algorithm == "ifca" else Level("global")
        method = Method(
            levels=(level,),
            local=Local(loss=Chord(), lr=RATE, batch=BATCH, steps=1),
            participation=Everyone(),
        )
        sim = simulator(self.federation, MODELS["vp-mlp"].build(SHAPE), method, Engine())
        plan = stretches.plan(sim.task, sim.block, -(-clients // sim.mesh.size))
        judged = assignment.judged_together(sim, 0) if algorithm == "ifca" else sim.block
        plans = [stretches.plan(sim.task, judged, plan.clients), plan][-PASSES[algorithm] :]
        self.clients, self.of_stretch = clients, [p.blocks * p.block * sim.mesh.size for p in plans]
        self.clock = Clock(algorithm, [p.stretches for p in plans])
        sim = sim._replace(task=sim.task._replace(tick=self.clock.tick))
        self.state, self.hyper = round.init(sim, jnp.int32(0)), round.hyper(method, 1)
        self.setup_s = time.perf_counter() - begun
        begun = time.perf_counter()
        step = jax.jit(round.make_round(sim), compiler_options=compiling.options(sim.mesh))
        self.round = step.lower(self.state, self.federation.arrays, self.hyper).compile()
        self.compile_s = time.perf_counter() - begun

    def run(self) -> Any:
        """One round from the start; its facts."""
        import jax

        self.clock.restart()
        begun = time.perf_counter()
        _, info = jax.block_until_ready(self.round(self.state, self.federation.arrays, self.hyper))
        jax.effects_barrier()
        self.seconds = time.perf_counter() - begun
        assert int(info.reported) == self.clients, "somebody's result was not finite"
        return jax.device_get(info)

    @property
    def seconds_per_client(self) -> float:
        """Median over stretches, of all devices together, added over the passes."""
        parts = zip(self.clock.taken, self.of_stretch, strict=True)
        return sum(float(np.median(taken)) / clients for taken, clients in parts)


def measure(algorithm: str, clients: int) -> dict[str, Any]:
    """One round over all clients, between rounds over few."""
    forget_peak()
    many, few = Rounds(algorithm, clients), Rounds(algorithm, min(FEW, clients))
    for _ in range(AROUND):
        few.run()
    info = many.run()
    for _ in range(AROUND):
        few.run()
    per_client, base = many.seconds_per_client, few.seconds_per_client
    return {
        "algorithm": algorithm,
        "clients": clients,
        "seconds": round(many.seconds, 3),
        "seconds_per_client": per_client,
        f"seconds_per_client_{few.clients}": base,
        "ratio": round(per_client / base, 3),
        "stretches": [[len(taken) for taken in one.clock.taken] for one in (many, few)],
        "peak_rss_bytes": peak_bytes(),
        "setup_s": round(many.setup_s, 2),
        "compile_s": round(many.compile_s, 2),
        "loss": float(info.loss),
    }


def main() -> None:
    """Measures the algorithms one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--algorithm", nargs="+", choices=list(PASSES), default=list(PASSES))
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={cores}"
    )
    prepare_jax()
    from ceilings import device

    runs = []
    for algorithm in options.algorithm:
        runs.append(measure(algorithm, options.clients))
        print(f"\r{json.dumps(runs[-1])}", file=sys.stderr)
    result = {"machine": device() | {"devices": cores}, "runs": runs}
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for run in runs:
        print(
            f"{run['algorithm']}: {run['clients']} clients in {run['seconds']:.1f} s, "
            f"{1e6 * run['seconds_per_client']:.0f} us a client ({run['ratio']:.2f} times that of few), "
            f"peak {run['peak_rss_bytes'] / 2**30:.2f} GiB"
        )


if __name__ == "__main__":
    main()
