"""One round over up to a million procedurally generated sessions: seconds, seconds a client, peak memory.

    python benchmarks/memory.py --clients 1000000 --algorithm fedavg ifca --json

`vp-mlp` (30-256-256-75, chord loss), one step of 32 windows a client, everybody takes part; IFCA has K = 4
groups and judges them on 32 windows. Sessions are generated inside the round and never stored. The time a
client takes is the median over stretches of 256 clients of one device; rounds over 10^4 clients, before and
after in the same process, give the time that it is compared with.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_vp.environment import prepare_jax

FEW = 10_000
GROUPS = 4
PASSES = {"fedavg": 1, "ifca": 2}  # over the clients: IFCA judges before it trains


class Clock:
    """Times at which each device has finished its stretches, and a line of progress on stderr."""

    def __init__(self, name: str, stretches: int) -> None:
        self.name, self.total, self.loud = name, stretches, stretches > 100
        self.restart()

    def restart(self) -> None:
        """Forgets what was timed."""
        self.begun, self.shown, self.count = time.perf_counter(), 0.0, 0
        self.done: dict[int, list[float]] = defaultdict(list)

    def tick(self, device: Any, value: Any) -> None:
        """Called from the devices."""
        now = time.perf_counter()
        self.done[int(device)].append(now)
        self.count += 1
        if self.loud and now - self.shown > 2:
            self.shown = now
            left = (now - self.begun) * (self.total / self.count - 1)
            print(
                f"\r{self.name}: {self.count / self.total:4.0%}, {left:.0f} s left ", end="", file=sys.stderr
            )

    def of_stretch(self, passes: int) -> float:
        """Median seconds of a stretch, added over the passes."""
        parts = [np.array_split(np.array(times), passes) for times in self.done.values()]
        return sum(float(np.median(np.concatenate([np.diff(p[i]) for p in parts]))) for i in range(passes))


class Rounds:
    """Compiled rounds of an algorithm over so many clients."""

    def __init__(self, algorithm: str, clients: int) -> None:
        import jax
        import jax.numpy as jnp

        from benchmarks.workloads import BATCH, MODELS, RATE, SHAPE
        from fedjax_vp.data import splits, synthetic
        from fedjax_vp.federated import federation, round, stretches
        from fedjax_vp.federated.grouping.settings import IFCA
        from fedjax_vp.federated.settings import Engine, Everyone, Level, Local, Method
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
        sim = round.simulator(self.federation, MODELS["vp-mlp"].build(SHAPE), method, Engine())
        plan = stretches.plan(sim.task, sim.block, -(-clients // sim.mesh.size))
        self.passes, self.of_stretch = PASSES[algorithm], plan.blocks * plan.block * sim.mesh.size
        self.clock = Clock(algorithm, plan.stretches * sim.mesh.size * self.passes)
        sim = sim._replace(task=sim.task._replace(tick=self.clock.tick))
        self.state, self.hyper = round.init(sim, jnp.int32(0)), round.hyper(method, 1)
        self.setup_s = time.perf_counter() - begun
        begun = time.perf_counter()
        lowered = jax.jit(round.make_round(sim)).lower(self.state, self.federation.arrays, self.hyper)
        self.round = lowered.compile()
        self.compile_s = time.perf_counter() - begun

    def run(self) -> tuple[float, float, Any]:
        """One round from the start: its seconds, the median seconds a client, and its facts."""
        import jax

        self.clock.restart()
        _, info = jax.block_until_ready(self.round(self.state, self.federation.arrays, self.hyper))
        seconds = time.perf_counter() - self.clock.begun
        jax.effects_barrier()
        return seconds, self.clock.of_stretch(self.passes) / self.of_stretch, jax.device_get(info)


def peak_bytes() -> int:
    """Most memory this process has had resident since `forget_peak`."""
    try:
        kib = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        return 1024 * int(kib.group(1)) if kib else 0
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Starts the peak anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def measure(algorithm: str, clients: int, repeats: int) -> dict[str, Any]:
    """One round over all clients, between rounds over few."""
    forget_peak()
    few = Rounds(algorithm, FEW)
    many = Rounds(algorithm, clients)
    few.run()  # warm
    before = [few.run()[1] for _ in range(repeats)]
    seconds, per_client, info = many.run()
    after = [few.run()[1] for _ in range(repeats)]
    assert int(info.reported) == clients, "somebody's result was not finite"
    base = float(np.median(before + after))
    return {
        "algorithm": algorithm,
        "clients": clients,
        "seconds": round(seconds, 3),
        "seconds_per_client": per_client,
        f"seconds_per_client_{FEW}": base,
        f"seconds_per_client_{FEW}_before_after": [float(np.median(x)) for x in (before, after)],
        "ratio": round(per_client / base, 3),
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
    parser.add_argument("--repeats", type=int, default=3, help="rounds over 10^4 clients before and after")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    prepare_jax()
    import jax

    runs = []
    for algorithm in options.algorithm:
        runs.append(measure(algorithm, options.clients, options.repeats))
        print(f"\r{json.dumps(runs[-1])}", file=sys.stderr)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    result = {"device": device, "jax": jax.__version__, "runs": runs}
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for run in runs:
        print(
            f"{run['algorithm']}: {run['clients']} clients in {run['seconds']:.1f} s, "
            f"{1e6 * run['seconds_per_client']:.0f} us a client ({run['ratio']:.2f} times {FEW} clients'), "
            f"peak {run['peak_rss_bytes'] / 2**30:.2f} GiB"
        )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
