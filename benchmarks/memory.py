"""One round over up to a million procedurally generated sessions: seconds, seconds a client, peak memory.

    python benchmarks/memory.py --clients 1000000 --algorithm fedavg ifca --json

`vp-mlp` (30-256-256-75, chord loss), one step of 32 windows a client, everybody takes part; IFCA has K = 4
groups and judges them on 32 windows. Sessions are generated inside the round and never stored. What it is
compared with are rounds over 10^4 clients in the same process, on host devices of their own: the two take
turns, a few stretches of 256 clients each, so that both see the same machine. The time a client takes is the
median over stretches of one device; `seconds` leaves out the other's turns. The host is measured, whatever
else there is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
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
TURN = 16  # stretches, of all devices together


class Turns:
    """Two rounds that work in turn. Whoever has had its turn waits at the end of a stretch."""

    def __init__(self) -> None:
        self._change, self._active, self._left = threading.Condition(), 0, TURN
        self._ended, self._begun = [False, False], time.perf_counter()
        self.spent = [0.0, 0.0]

    def step(self, who: int) -> None:
        """Counts a stretch."""
        with self._change:
            self._left -= who == self._active
            if self._left <= 0:
                self._pass_on()

    def wait(self, who: int) -> None:
        """Until it is this one's turn."""
        with self._change:
            self._change.wait_for(lambda: self._active == who)

    def end(self, who: int, for_good: bool = False) -> None:
        """Gives the turn away before it is over, at the end of a round."""
        with self._change:
            self._ended[who] |= for_good
            if self._active == who:
                self._pass_on()

    def _pass_on(self) -> None:
        now, other = time.perf_counter(), 1 - self._active
        self.spent[self._active] += now - self._begun
        self._begun, self._left = now, TURN
        if not self._ended[other]:
            self._active = other
            self._change.notify_all()


class Clock:
    """Seconds of each device's stretches, and a line of progress on stderr."""

    def __init__(self, name: str, stretches: list[int], who: int) -> None:
        self.name, self.ends, self.who = name, np.cumsum(stretches).tolist(), who
        self.turns = Turns()
        self.restart()
        self.taken: list[list[float]] = [[] for _ in stretches]

    def restart(self) -> None:
        """A round begins."""
        self.shown, self.since = 0.0, dict[int, float]()
        self.count: dict[int, int] = defaultdict(int)

    def tick(self, device: Any, value: Any) -> None:
        """Called from the devices, after each of their stretches."""
        place, now = int(device), time.perf_counter()
        self.count[place] += 1
        if place in self.since:
            self.taken[bisect_left(self.ends, self.count[place])].append(now - self.since[place])
        self.turns.step(self.who)
        self._tell(now)
        if self.count[place] not in self.ends:
            self.turns.wait(self.who)
            self.since[place] = time.perf_counter()
        else:  # the other devices may wait for this one, and it for them
            self.since.pop(place, None)

    def _tell(self, now: float) -> None:
        if self.who or now - self.shown < 2:
            return
        self.shown, done = now, sum(self.count.values())
        share = done / (self.ends[-1] * max(len(self.count), 1))
        left = sum(self.turns.spent) * (1 / share - 1)
        print(f"\r{self.name}: {share:4.0%}, {left:.0f} s left ", end="", file=sys.stderr)


class Rounds:
    """Compiled rounds of an algorithm over so many clients, on one half of the host devices."""

    def __init__(self, algorithm: str, clients: int, who: int) -> None:
        import jax
        import jax.numpy as jnp
        from workloads import BATCH, MODELS, RATE, SHAPE

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
        half = jax.device_count() // 2
        sim = simulator(self.federation, MODELS["vp-mlp"].build(SHAPE), method, Engine(devices=half))
        sim = sim._replace(mesh=jax.sharding.Mesh(jax.devices()[who * half :][:half], ("clients",)))
        plan = stretches.plan(sim.task, sim.block, -(-clients // half))
        judged = assignment.judged_together(sim, 0) if algorithm == "ifca" else sim.block
        plans = [stretches.plan(sim.task, judged, plan.clients), plan][-PASSES[algorithm] :]
        self.clients, self.of_stretch = clients, [p.blocks * p.block * half for p in plans]
        self.clock = Clock(algorithm, [p.stretches for p in plans], who)
        sim = sim._replace(task=sim.task._replace(tick=self.clock.tick))
        self.state, self.hyper = round.init(sim, jnp.int32(0)), round.hyper(method, 1)
        self.setup_s = time.perf_counter() - begun
        begun = time.perf_counter()
        lowered = jax.jit(round.make_round(sim)).lower(self.state, self.federation.arrays, self.hyper)
        self.round = lowered.compile()
        self.compile_s = time.perf_counter() - begun

    def run(self) -> Any:
        """One round from the start, taking turns; its facts."""
        import jax

        self.clock.restart()
        self.clock.turns.wait(self.clock.who)
        _, info = jax.block_until_ready(self.round(self.state, self.federation.arrays, self.hyper))
        jax.effects_barrier()
        self.clock.turns.end(self.clock.who)
        assert int(info.reported) == self.clients, "somebody's result was not finite"
        return jax.device_get(info)

    @property
    def seconds_per_client(self) -> float:
        """Median over stretches, of all devices together, added over the passes."""
        parts = zip(self.clock.taken, self.of_stretch, strict=True)
        return sum(float(np.median(taken)) / clients for taken, clients in parts)


def measure(algorithm: str, clients: int) -> dict[str, Any]:
    """One round over all clients, in turn with rounds over few."""
    forget_peak()
    many, few = Rounds(algorithm, clients, 0), Rounds(algorithm, min(FEW, clients), 1)
    turns = few.clock.turns = many.clock.turns
    over = threading.Event()

    def compare() -> None:
        while not over.is_set():
            few.run()
        turns.end(1, for_good=True)

    beside = threading.Thread(target=compare)
    beside.start()
    try:
        info = many.run()
    finally:
        over.set()
        turns.end(0, for_good=True)
        beside.join()
    per_client, base = many.seconds_per_client, few.seconds_per_client
    return {
        "algorithm": algorithm,
        "clients": clients,
        "seconds": round(turns.spent[0], 3),
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
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={2 * cores}"
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
