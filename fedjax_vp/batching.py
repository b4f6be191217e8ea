"""Points side by side: one compiled chunk of rounds with a leading axis of points.

A point is a seed with its traced numbers. Devices are dealt to points before they are dealt to clients: with
as many points as devices each device runs whole points, and nothing crosses between them. On a CPU one point
a device is fastest (measured: docs/sweep.md); an accelerator takes as many as its memory holds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_vp import compiling, processes
from fedjax_vp.federated import round as rounds_of
from fedjax_vp.federated.round import Hyper, RoundInfo, State
from fedjax_vp.federated.settings import Engine, Method
from fedjax_vp.federated.simulator import Simulator, simulator

Tree = TypeVar("Tree")
_MEMORY_SHARE = 0.8  # of what is free, the rest is left to evaluation


class Chunk:
    """A chunk of rounds, compiled once for every point of a batch.

    Args:
        sim: Static parts, the same for all points.
        engine: Rounds of a chunk, devices, points side by side.
        points: How many points there are in all.

    Attributes:
        width: Points side by side; what is left over is filled up with copies. 1 is the plain chunk.
        compile_s: Spent on compilation and not yet taken (`take_compile_s`).
    """

    def __init__(self, sim: Simulator, engine: Engine, points: int) -> None:
        self.sim, self.engine = sim, engine
        self.compile_s = 0.0
        self._compiled: compiling.Compiled | None = None
        self._stacked: list[NamedSharding] = []  # by leading axis point, and whole
        devices = sim.mesh.size
        on_cpu = sim.mesh.devices.flat[0].platform == "cpu"
        most = engine.points or (devices if on_cpu else points)
        self.width, self._rows = layout(points, most, devices)
        while self.width > 1:
            need = self._compile()
            fitting = int(self.width * _MEMORY_SHARE * _free_bytes(sim.mesh) / max(need, 1))
            if engine.points or fitting >= self.width:
                break
            self._compiled = None
            self.width, self._rows = layout(points, max(fitting, 1), devices)

    def __call__(
        self, states: Sequence[State], numbers: Sequence[Hyper], count: int
    ) -> tuple[list[State], list[RoundInfo]]:
        """Runs up to `width` points, all after the same number of rounds, `count` rounds further.

        Args:
            states: Of each point; taken over.
            numbers: Traced numbers of each point.
            count: Rounds, at most `engine.chunk`.

        Returns:
            By point, the state and, on the host, the rounds' facts with a leading axis of `engine.chunk`.
        """
        if self._compiled is None:
            self._compile(states[0])
        assert self._compiled is not None
        arrays, rounds = self.sim.federation.arrays, jnp.int32(count)
        if self.width == 1:
            args = processes.everywhere(self.sim.mesh, (states[0], arrays, numbers[0], rounds))
            state, info = self._compiled(*args)
            return [processes.here(state)], [jax.device_get(processes.here(info))]
        missing = self.width - len(states)
        state, traced = (_stack([*trees, *[trees[-1]] * missing]) for trees in (states, numbers))
        own, whole = self._stacked
        args = (state, arrays, traced, rounds)
        state, info = self._compiled(*jax.device_put(args, (own, whole, own, whole)))
        info, home = jax.device_get(info), NamedSharding(self.sim.mesh, PartitionSpec())
        parts = jax.device_put(_split(state, len(states)), home)
        return parts, [jax.tree.map(lambda x, i=i: x[i], info) for i in range(len(states))]

    def take_compile_s(self) -> float:
        """Seconds of compilation since the last call."""
        spent, self.compile_s = self.compile_s, 0.0
        return spent

    def _compile(self, state: State | None = None) -> int:
        """Compiles for the present width; returns bytes needed on each device."""
        begun = time.perf_counter()
        arrays, length = self.sim.federation.arrays, self.engine.chunk
        state = jax.eval_shape(partial(rounds_of.init, self.sim), jnp.int32(0)) if state is None else state
        numbers, sim, own = rounds_of.hyper(self.sim.method, 1), self.sim, PartitionSpec()
        if self.width > 1:
            sim, own = _spread(sim, self.engine, self._rows), PartitionSpec("points")
            self._stacked = [NamedSharding(sim.mesh, part) for part in (own, PartitionSpec())]
            state, numbers = (
                jax.eval_shape(lambda x: _stack([x] * self.width), tree) for tree in (state, numbers)
            )
        chunk = rounds_of.make_chunk(sim, length)
        if self.width > 1:
            chunk = jax.vmap(chunk, in_axes=(0, None, 0, None), spmd_axis_name="points")  # over points
        self._compiled = compiling.compile(
            chunk,
            (state, arrays, numbers, jnp.int32(1)),
            (state, rounds_of.no_info(sim)),
            compiling.Shardings(sim.mesh, (own, PartitionSpec(), own, PartitionSpec()), own),
            donated=1,
        )
        self.compile_s += time.perf_counter() - begun
        return self._compiled.bytes_needed


def layout(points: int, most: int, devices: int) -> tuple[int, int]:
    """How many points run side by side, and over how many rows of devices they are spread.

    Args:
        points: Points in all.
        most: Most points side by side.
        devices: Devices in all; each row has the same number of them.

    Returns:
        Width, a multiple of the rows that wastes least on the last batch, and rows.

    >>> layout(20, 8, 8), layout(3, 8, 8), layout(9, 100, 2), layout(5, 1, 2)
    ((8, 8), (4, 2), (10, 2), (1, 1))
    """
    rows = max(n for n in range(1, devices + 1) if devices % n == 0 and n <= min(most, points))
    batches = -(-points // (most // rows * rows))
    return rows * -(-points // (batches * rows)), rows


def static_part(method: Method) -> Method:
    """The method with its traced numbers blanked: points that share it share a compiled function.

    These are the numbers of `round.Hyper`: the rates of clients and levels, fixed shrinkage, progress.
    """
    levels = tuple(
        replace(
            level,
            server=replace(level.server, lr=1.0),
            shrinkage=level.shrinkage if level.shrinkage == "auto" else 1.0,
            progress=1.0,
        )
        for level in method.levels
    )
    experts = tuple(static_part(one) for one in method.experts)
    return replace(method, levels=levels, local=replace(method.local, lr=1.0), experts=experts)


def _spread(sim: Simulator, engine: Engine, rows: int) -> Simulator:
    """The same with its devices in rows: points over rows, a point's clients over the devices of a row."""
    devices = sim.mesh.devices.reshape(rows, -1)
    task = sim.task
    fewer = replace(engine, devices=devices.shape[1])
    experts = [one.task.predictor for one in sim.experts]
    fitted = simulator(sim.federation, task.predictor, sim.method, fewer, experts)
    return fitted.on(Mesh(devices, ("points", "clients")))


def _stack(trees: Sequence[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _split(tree: Tree, count: int) -> list[Tree]:
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(count)]


def _free_bytes(mesh: Mesh) -> float:
    """Memory that one device may still use; host devices share the machine's."""
    stats = mesh.devices.flat[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / mesh.size
    return np.inf
