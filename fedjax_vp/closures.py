"""A digest of a function with everything it has closed over: equal digests, equal traces.

What a function computes follows from its code and from what it holds: closed-over values, bound objects,
partial arguments, and so on down to numbers and arrays. The code of this package is digested as text, other
packages by their versions. What is neither, a function or a class of a notebook say, has no digest; nor has
anything once a file of this package is newer than the process, which may hold what the file held before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import hashlib
import re
import time
import types
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

_PLAIN = (bool, int, float, complex, str, bytes, enum.Enum, np.dtype)
_VERSIONED = ("jax", "jaxlib", "flax", "optax", "numpy", "chex", "jaxtyping")
_PACKAGE = __name__.partition(".")[0]
_KNOWN = (_PACKAGE, *_VERSIONED, "builtins", "collections", "contextlib", "functools", "math", "operator")
_CHECKS = re.compile(r"<@beartype|.*[/\\]jaxtyping[/\\]")  # where functions are made that only check types
_UNSEEN = ("parent", "scope")  # of a Flax module: places in a tree, not settings
_IDLE = ("jax_compilation_cache", "jax_persistent_cache", "jax_log", "jax_debug_log")  # decide no trace
_IMPORTED = time.time()


class Opaque(TypeError):
    """Something whose content cannot be known."""


def digest(*parts: Any) -> str:
    """SHA-256 of functions, settings and arrays with all they hold, of the code, and of JAX's settings.

    Arguments of a function to be are given as `jax.ShapeDtypeStruct`.

    Raises:
        Opaque: A part holds something that is neither data nor of a known package.
    """
    walk = _Walk()
    walk.add((_code(), _settings(), parts))
    return walk.sha.hexdigest()


def _settings() -> list[tuple[str, str]]:
    """JAX's settings, and what is in force of the one that is set for a while (`precision.products`)."""
    found = sorted((name, repr(x)) for name, x in jax.config.values.items() if not name.startswith(_IDLE))
    return [*found, ("now", repr(jax.config.jax_default_matmul_precision))]


def _code() -> tuple[str, ...]:
    """Digest of this package's source, and versions of those it builds on."""
    files = sorted(Path(__file__).parent.rglob("*.py"))  # their order stands for their folders
    if any(path.stat().st_mtime > _IMPORTED for path in files):
        raise Opaque(f"{_PACKAGE} has changed since it was imported")
    return _texts(tuple(files)), *_versions()


@functools.cache
def _texts(files: tuple[Path, ...]) -> str:
    sha = hashlib.sha256()
    for path in files:
        sha.update(f"{path.name}\n".encode() + path.read_bytes())
    return sha.hexdigest()


@functools.cache
def _versions() -> tuple[str, ...]:
    try:
        return tuple(f"{name} {metadata.version(name)}" for name in _VERSIONED)
    except metadata.PackageNotFoundError as error:
        raise Opaque(f"{error.name} has no version") from error


class _Walk:
    """Feeds a digest with an object and all below it; what comes again is told by its first place."""

    def __init__(self) -> None:
        self.sha = hashlib.sha256()
        self._seen: dict[int, tuple[int, Any]] = {}  # keeps the objects, so that no id is used twice

    def add(self, item: Any) -> None:
        """Feeds an object.

        Raises:
            Opaque: Its content cannot be known.
        """
        if item is None or isinstance(item, _PLAIN):
            self._say(f"{type(item).__name__} {item!r}")
        elif id(item) in self._seen:
            self._say(f"again {self._seen[id(item)][0]}")
        else:
            self._seen[id(item)] = len(self._seen), item
            if isinstance(item, jax.Array | np.ndarray | np.generic):
                self._array(item)
            else:
                name, below = _taken_apart(item)
                self._say(f"{name} {len(below)}")
                for one in below:
                    self.add(one)

    def _say(self, text: str) -> None:
        self.sha.update(f"{len(text)} {text}\n".encode())

    def _array(self, item: Any) -> None:
        if isinstance(item, jax.Array) and jnp.issubdtype(item.dtype, jax.dtypes.prng_key):
            self._say(str(jax.random.key_impl(item)))
            item = jax.random.key_data(item)
        if item.dtype.hasobject:
            raise Opaque("an array of objects")
        self._say(f"{item.dtype} {item.shape} {getattr(item, 'weak_type', False)}")
        self.sha.update(np.ascontiguousarray(item).reshape(-1).view(np.uint8))


def _taken_apart(item: Any) -> tuple[str, Sequence[Any]]:
    """An object's name and what it holds."""
    if isinstance(item, types.FunctionType):
        return _function(item)
    if isinstance(item, type | types.ModuleType):
        return _named(item), ()
    kind = _named(type(item))
    if isinstance(item, types.BuiltinFunctionType):
        return f"{kind} {item.__qualname__}", (item.__self__,)
    if isinstance(item, np.ufunc):
        return f"{kind} {item.__name__}", ()
    if isinstance(item, types.MethodType):
        return kind, (item.__self__, item.__func__)
    if isinstance(item, functools.partial):
        return kind, (item.func, item.args, item.keywords)
    if isinstance(item, jax.ShapeDtypeStruct):
        return f"{item.dtype} {item.shape} {item.weak_type}", ()
    if isinstance(item, PartitionSpec):
        return str(item), ()
    if isinstance(item, Mesh):
        first = item.devices.flat[0]
        return kind, (item.axis_names, item.devices.shape, str(item.axis_types), first.platform, str(first))
    if isinstance(item, list | tuple):
        return kind, item
    if isinstance(item, Mapping):
        return kind, [x for pair in item.items() for x in pair]
    if isinstance(item, set | frozenset):
        return kind, sorted(item, key=repr)
    if isinstance(item, contextlib._GeneratorContextManager):  # as a decorator it begins anew each time
        return kind, (item.func, item.args, item.kwds)
    if dataclasses.is_dataclass(item):
        unseen = _UNSEEN if isinstance(item, nn.Module) else ()
        names = [one.name for one in dataclasses.fields(item) if one.name not in unseen]
        return kind, [x for name in names for x in (name, getattr(item, name))]
    if hasattr(item, "__wrapped__"):  # jitted, cached, or with derivatives of its own
        return kind, [getattr(item, name, None) for name in ("__wrapped__", "fwd", "bwd", "jvp")]
    raise Opaque(f"{kind} cannot be taken apart")


def _function(item: types.FunctionType) -> tuple[str, Sequence[Any]]:
    """The name of a function's code, which is not that of what it wraps, and what it has closed over."""
    code = item.__code__
    if _CHECKS.match(code.co_filename) and hasattr(item, "__wrapped__"):  # of the suite
        return "checked", (vars(item)["__wrapped__"],)
    where = str(item.__globals__.get("__name__"))
    _require_known(where, code.co_qualname)
    try:
        cells = [cell.cell_contents for cell in item.__closure__ or ()]
    except ValueError as error:
        raise Opaque(f"{where}.{code.co_qualname} closes over what is not there yet") from error
    # Of two lambdas in one function only what they do tells them apart.
    does = (
        code.co_firstlineno,
        code.co_code,
        code.co_names,
        [x for x in code.co_consts if isinstance(x, _PLAIN)],
    )
    return f"{where}.{code.co_qualname}", (does, cells, item.__defaults__, item.__kwdefaults__)


def _named(item: Any) -> str:
    """Name of a class or module of a known package."""
    if isinstance(item, types.ModuleType):
        where, name = item.__name__, ""
    else:
        where, name = item.__module__, item.__qualname__
    _require_known(where, name)
    return f"{where}.{name}"


def _require_known(where: str, name: str) -> None:
    if where.partition(".")[0] not in _KNOWN:
        raise Opaque(f"{where}.{name} is of no package whose code is known")
