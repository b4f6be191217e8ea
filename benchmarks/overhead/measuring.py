"""Seconds and bytes of a round's parts: who takes part, choice of groups, training, sums, grouping.

The parts are the engine's own (`fedjax_vp.federated.round`), compiled and timed one by one. What training
adds to a pass in which nobody takes a step is training; the rest of that pass (generating sessions, composing
models, adding up) and pooling are aggregation. Clustering is choosing by loss inside the round, what sketches
add to a pass, keeping what was sketched, and grouping anew on the host, as if it came in every round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from workloads import BATCH, MODELS, RATE, SHAPE

from fedjax_vp import compiling
from fedjax_vp.data import splits, synthetic
from fedjax_vp.federated import assignment, federation, regrouping, training
from fedjax_vp.federated import learned as learned_of
from fedjax_vp.federated import round as rounds_of
from fedjax_vp.federated.federation import Federation
from fedjax_vp.federated.grouping import similarity
from fedjax_vp.federated.grouping.linkage import agglomerate
from fedjax_vp.federated.grouping.settings import IFCA, ByUpdates
from fedjax_vp.federated.precision import products
from fedjax_vp.federated.settings import Engine, Everyone, Local, Method
from fedjax_vp.federated.simulator import Simulator, simulator
from fedjax_vp.models import Chord
from overhead.cells import READ_TRACES, VIDEOS, Cell, levels
from overhead.resident import forget_peak, peak_bytes

ENOUGH_S, MOST_REPEATS = 1.0, 4  # of what is timed; the best counts


def measure(cell: Cell, steps: int, block: int) -> dict[str, Any]:
    """Times the parts of a round of a cell.

    Args:
        cell: what is measured.
        steps: local steps of 32 windows.
        block: clients trained side by side, 0 for the backend's own choice.

    Returns:
        Seconds of each part and of training, clustering and aggregation; bytes of the largest compiled part
        and, on a CPU, resident at the peak.
    """
    forget_peak()
    data = _federation(cell.clients, cell.method not in READ_TRACES, max(cell.groups, 2))
    method = Method(
        levels=levels(cell),
        local=Local(loss=Chord(), lr=RATE, batch=BATCH, steps=steps),
        participation=Everyone(),
    )
    begun = time.perf_counter()
    sim = simulator(data, MODELS["vp-mlp"].build(SHAPE), method, Engine(client_block=block))
    found_s = time.perf_counter() - begun if cell.method in READ_TRACES else 0.0
    parts = _Parts(sim)
    state = rounds_of.init(sim, jnp.int32(0))
    found = parts.round(state)
    if cell.method == "exact":
        found |= _exact(sim, cell)
    clustering = ("choose_s", "sketch_s", "observe_s", "regroup_s", "similarity_s")
    return {
        **found,
        "before_training_s": found_s,
        "clustering_s": sum(found.get(name, 0.0) for name in clustering),
        "aggregation_s": found["pass_s"] - found["sketch_s"] + found["pool_s"] + found["invite_s"],
        "training_s": found["train_s"],
        "sessions": data.num_sessions,
        "compile_s": parts.compile_s,
        "round_bytes": max(*parts.bytes, found.get("similarity_bytes", 0)),
        "peak_rss_bytes": peak_bytes(),
    }


@lru_cache(maxsize=2)
def _federation(clients: int, generated: bool, groups: int) -> Federation:
    users = max(clients // VIDEOS, 1)
    settings = synthetic.Planted(
        users=users, videos=VIDEOS, user_categories=groups, stored=not generated, duration_s=20.0
    )
    traces = synthetic.generate(settings)
    return federation.build(traces, splits.split(traces, splits.WithinSession()), SHAPE)


class _Parts:
    """The compiled parts of a round."""

    def __init__(self, sim: Simulator) -> None:
        self.sim, self.compile_s, self.bytes = sim, 0.0, list[int]()

    def compiled(self, part: Callable[..., Any], *args: Any) -> Callable[..., Any]:
        """A part made ready for these arguments."""
        begun = time.perf_counter()
        options = compiling.options(self.sim.mesh)
        made = jax.jit(products("float32")(part), compiler_options=options).lower(*args).compile()
        self.compile_s += time.perf_counter() - begun
        sizes = made.memory_analysis()
        if sizes is not None:
            self.bytes.append(
                sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes
            )
        return made

    def round(self, state: rounds_of.State) -> dict[str, float]:
        """Seconds of the parts, in the order of a round."""
        sim, arrays = self.sim, self.sim.federation.arrays
        numbers = rounds_of.hyper(sim.method, 1)
        found = dict.fromkeys(("choose_s", "sketch_s", "observe_s", "regroup_s"), 0.0)
        invite = self.compiled(lambda s, a: rounds_of.invite(sim, s.seed, s.round, a)[1], state, arrays)
        found["invite_s"], clients = best(invite, state, arrays)
        dealt = state.levels
        if any(isinstance(level.grouping, IFCA) for level in sim.layout.levels):
            args = dealt, arrays, clients, state.round, state.seed
            choose = self.compiled(lambda *a: assignment.assign(sim, *a)[0], *args)
            found["choose_s"], dealt = best(choose, *args)
        args = clients, dealt, arrays, numbers.local_lr
        train = self.compiled(training.trainer(sim), *args)
        idle = clients._replace(reports=jnp.zeros_like(clients.reports))
        found["pass_s"] = best(train, idle, *args[1:])[0]
        whole_s, (totals, _, _, _, seen) = best(train, *args)
        found["train_s"] = max(whole_s - found["pass_s"], 0.0)
        args = dealt, totals, arrays, numbers.pooling, (state.round, numbers.num_rounds)
        pool = self.compiled(rounds_of.pooler(sim), *args)
        found["pool_s"], rows = best(pool, *args)
        if any(isinstance(level.grouping, ByUpdates) for level in sim.layout.levels):
            args = dealt, rows, seen
            observe = self.compiled(lambda *a: learned_of.observe_updates(sim.layout, *a), *args)
            found["observe_s"], rows = best(observe, *args)
            after = state._replace(levels=rows, round=state.round + 1)
            for _ in range(2):  # the first compiles
                begun = time.perf_counter()
                jax.block_until_ready(regrouping.regroup(sim.method, after, 1)[0])
                found["regroup_s"] = time.perf_counter() - begun
            found["sketch_s"] = self._sketch_s(found["pass_s"], idle, numbers.local_lr)
        return found

    def _sketch_s(self, pass_s: float, clients: Any, lr: Any) -> float:
        """What sketches add to a pass: the same pass where the same units choose by loss makes none."""
        method = self.sim.method
        plain = tuple(
            replace(level, grouping=IFCA(groups=level.grouping.groups, of=level.grouping.of))
            if isinstance(level.grouping, ByUpdates)
            else level
            for level in method.levels
        )
        task, engine = self.sim.task, Engine(client_block=self.sim.block)
        sim = simulator(task.federation, task.predictor, replace(method, levels=plain), engine)
        args = clients, rounds_of.init(sim, jnp.int32(0)).levels, task.federation.arrays, lr
        options = compiling.options(sim.mesh)
        train = jax.jit(products("float32")(training.trainer(sim)), compiler_options=options)
        jax.block_until_ready(train(*args))  # compiles
        return max(pass_s - best(train, *args)[0], 0.0)


def _exact(sim: Simulator, cell: Cell) -> dict[str, float]:
    """Cosines of all pairs of whole updates, and their agglomeration; the updates are random numbers."""
    size = sum(int(x.size) for x in jax.tree.leaves(sim.task.predictor.init(jax.random.key(0))))
    updates = np.random.default_rng(0).random((cell.clients, size), np.float32) - np.float32(0.5)
    if jax.default_backend() != "cpu":
        similarity.cosine(updates)  # compiles
    begun = time.perf_counter()
    cosines = similarity.cosine(updates)
    cosine_s = time.perf_counter() - begun
    agglomerate(1 - cosines, "average", num_groups=cell.groups)
    spent = time.perf_counter() - begun
    return {
        "similarity_s": spent,
        "cosine_s": cosine_s,
        "similarity_bytes": updates.nbytes + 3 * 8 * cell.clients**2,
    }


def best(work: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Best seconds of a few calls (of one, where it takes long), and the result."""
    spent: list[float] = []
    while len(spent) < MOST_REPEATS and sum(spent) < ENOUGH_S:
        begun = time.perf_counter()
        result = jax.block_until_ready(work(*args))
        spent.append(time.perf_counter() - begun)
    return min(spent), result
