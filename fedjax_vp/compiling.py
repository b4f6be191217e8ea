"""How JAX compiles what takes long, what it keeps of it for later processes, and the seconds it spends on it.

JAX's persistent cache holds what XLA makes of a lowered function; tracing and lowering, which take half of
what a cached start does, are done anew by every process. `compile` puts the lowered function (StableHLO, by
`jax.export`) beside it, under a digest of the function with all that it closes over (`closures.py`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.monitoring
import jax.numpy as jnp
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_vp import closures

_EVENTS: tuple[str, ...] = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",  # or what it takes to read a function from the cache
)
_LEVEL = "xla_backend_optimization_level"
_SUFFIX = ".stablehlo"
_DIGEST = hashlib.sha256().digest_size


class Shardings(NamedTuple):
    """Where arguments and results lie: one place for all leaves of each argument, one for all results."""

    mesh: Mesh
    arguments: Sequence[PartitionSpec]
    results: PartitionSpec


class Compiled(NamedTuple):
    """A compiled function of trees of arrays."""

    of_leaves: jax.stages.Compiled
    results: jax.tree_util.PyTreeDef

    def __call__(self, *args: Any) -> Any:
        """Runs it on arguments like those it was compiled for."""
        return jax.tree.unflatten(self.results, self.of_leaves(*jax.tree.leaves(args)))

    @property
    def bytes_needed(self) -> int:
        """Memory of a device for results and what is temporary; 0 where it is not known."""
        memory = self.of_leaves.memory_analysis()
        return int(memory.temp_size_in_bytes + memory.output_size_in_bytes) if memory else 0


def compile(
    function: Callable[..., Any], args: Sequence[Any], like: Any, shardings: Shardings, donated: int = 0
) -> Compiled:
    """Compiles a function, as far as possible from what an earlier process has kept.

    Args:
        function: Pure function of trees of arrays.
        args: Arguments, or their shapes and types.
        like: A tree of arrays, or their shapes and types, of the structure of its results.
        shardings: Of arguments and results.
        donated: How many leading arguments it takes over.
    """
    shapes = jax.eval_shape(lambda *x: x, *args)
    leaves, tree = jax.tree.flatten(shapes)
    count = [len(jax.tree.leaves(one)) for one in shapes]
    mesh, parts = shardings.mesh, zip(shardings.arguments, count, strict=True)
    places = tuple(NamedSharding(mesh, part) for part, n in parts for _ in range(n))
    structure = jax.tree.structure(like)

    def of_leaves(*leaves: jax.Array) -> list[jax.Array]:
        found = function(*jax.tree.unflatten(tree, leaves))
        assert jax.tree.structure(found) == structure
        return jax.tree.leaves(found)

    jitted: dict[str, Any] = {"in_shardings": places, "out_shardings": NamedSharding(mesh, shardings.results)}
    like = jax.eval_shape(lambda x: x, like)
    lowered = _kept(jax.jit(of_leaves, **jitted), leaves, (function, shapes, like, shardings))
    taken = tuple(range(sum(count[:donated])))
    whole = jax.jit(lowered, donate_argnums=taken, compiler_options=options(mesh), **jitted)
    return Compiled(whole.lower(*leaves).compile(), structure)


class Lazily:
    """A function that is compiled (`compile`) when it is called, once for each kind of arguments.

    Args:
        function: Pure function of trees of arrays.
        like: A tree of the structure of its results.
        shardings: Of arguments and results.
    """

    def __init__(self, function: Callable[..., Any], like: Any, shardings: Shardings) -> None:
        self._how = function, like, shardings
        self._compiled: dict[tuple[Any, ...], Compiled] = {}

    def __call__(self, *args: Any) -> Any:
        """Results of arguments that lie where they should, or anywhere if they have not been placed."""
        leaves, tree = jax.tree.flatten(args)
        kind = (tree, *((jnp.shape(x), jnp.result_type(x)) for x in leaves))
        if kind not in self._compiled:
            function, like, shardings = self._how
            self._compiled[kind] = compile(function, args, like, shardings)
        return self._compiled[kind](*args)


def _kept(function: Any, leaves: Sequence[Any], facts: tuple[Any, ...]) -> Callable[..., Any]:
    """A jitted function as an earlier process lowered it, else as it is, lowered now and kept where possible.

    Args:
        function: Of leaves.
        leaves: Their shapes and types.
        facts: All that it follows from.
    """
    folder, enabled = jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache
    if not folder or not enabled or jax.process_count() > 1:
        return function
    try:
        path = Path(folder) / f"{closures.digest(facts)}{_SUFFIX}"
    except closures.Opaque:
        return function
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    try:
        if _sound(data):
            return export.deserialize(bytearray(data[_DIGEST:])).call
        found = export.export(function)(*leaves)
        data = bytes(found.serialize())
    except (ValueError, NotImplementedError):  # some operations of accelerators cannot be kept
        return function
    beside = path.with_suffix(f".{os.getpid()}")
    try:
        beside.write_bytes(hashlib.sha256(data).digest() + data)
        beside.replace(path)
    except OSError:
        pass  # a full or read-only disk costs the next start its time, nothing else
    return found.call


def _sound(data: bytes) -> bool:
    """Whether a file holds what was written: a digest, and what it is of."""
    return len(data) > _DIGEST and hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]


@cache
def _listening() -> dict[str, float]:
    spent: dict[str, float] = dict.fromkeys(_EVENTS, 0.0)

    def listen(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event in spent:
            spent[event] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    return spent


def spent_s() -> float:
    """Seconds of lowering and compiling in this process so far, from some call on: take differences."""
    return sum(_listening().values())


def options(mesh: Mesh) -> dict[str, Any]:
    """Options of XLA for functions that run on these devices: `compiler_options` of `jax.jit`.

    On a CPU, LLVM's first level of optimization in place of its third: compilation takes up to a tenth less,
    rounds of the GRU and the transformer 5 %, those of the MLP the same (benchmarks/README.md). What the user
    has set in XLA_FLAGS stays.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return {_LEVEL: 1} if on_cpu and _LEVEL not in os.environ.get("XLA_FLAGS", "") else {}
