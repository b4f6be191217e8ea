"""A digest of a function with everything it has closed over: equal digests, equal traces.

What a function computes follows from its code and from what it holds: closed-over values, bound objects,
partial arguments, and so on down to numbers and arrays. The code of this package is digested as text, other
packages by their versions. What is neither, a function typed in a notebook say, has no digest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import hashlib
import re
import types
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

_PLAIN = (bool, int, float, complex, str, bytes, enum.Enum, np.dtype)
_STANDARD = ("functools", "contextlib", "operator", "math")
_VERSIONED = ("jax", "jaxlib", "flax", "optax", "numpy", "chex", "jaxtyping")
_PACKAGE = __name__.partition(".")[0]
_CHECKS = re.compile(r"<@beartype|.*\bjaxtyping\b")  # where functions are made that only check types
_UNSEEN = ("parent", "scope")  # of a Flax module: places in a tree, not settings


class Opaque(TypeError):
    """Something whose content cannot be known."""


def digest(*parts: Any) -> str:
    """SHA-256 of functions, settings and arrays with all they hold, of the code, and of JAX's settings.

    Arguments of a function to be are given as `jax.ShapeDtypeStruct`.

    Raises:
        Opaque: A part holds something that is neither data nor a function of a known package.
    """
    walk = _Walk()
    walk.add((_code(), _settings(), parts))
    return walk.sha.hexdigest()


def _settings() -> list[tuple[str, str]]:
    """JAX's settings, and what is in force of the one that is set for a while (`precision.products`)."""
    found = [(name, repr(value)) for name, value in sorted(jax.config.values.items())]
    return [*found, ("now", repr(jax.config.jax_default_matmul_precision))]


@functools.cache
def _code() -> tuple[str, ...]:
    """Digest of this package's source, and versions of those it builds on."""
    sha, root = hashlib.sha256(), Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        sha.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return sha.hexdigest(), *(f"{name} {metadata.version(name)}" for name in _VERSIONED)


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
        self._say(f"{item.dtype} {item.shape} {getattr(item, 'weak_type', False)}")
        self.sha.update(np.ascontiguousarray(item).tobytes())


def _taken_apart(item: Any) -> tuple[str, Sequence[Any]]:
    """An object's name and what it holds."""
    kind = _name(type(item))
    if isinstance(item, type | types.ModuleType | types.BuiltinFunctionType | np.ufunc):
        return _name(item), ()
    if isinstance(item, jax.ShapeDtypeStruct):
        return f"{item.dtype} {item.shape} {item.weak_type}", ()
    if isinstance(item, list | tuple):
        return kind, item
    if isinstance(item, set | frozenset):
        return kind, sorted(item, key=repr)
    if isinstance(item, Mapping):
        return kind, [x for pair in item.items() for x in pair]
    if isinstance(item, Mesh):
        return kind, (item.axis_names, item.devices.shape, str(item.devices.flat[0]), item.size)
    if isinstance(item, PartitionSpec):
        return str(item), ()
    if isinstance(item, functools.partial):
        return kind, (item.func, item.args, item.keywords)
    if isinstance(item, types.MethodType):
        return kind, (item.__self__, item.__func__)
    if isinstance(item, types.FunctionType):
        if _CHECKS.match(item.__code__.co_filename):  # the suite's type checks hold what is not data
            return kind, (vars(item)["__wrapped__"],)
        if _package(item) not in (_PACKAGE, *_VERSIONED, *_STANDARD):
            raise Opaque(f"{_name(item)} is of no package whose code is known")
        cells = [cell.cell_contents for cell in item.__closure__ or ()]
        return _name(item), (cells, item.__defaults__, item.__kwdefaults__)
    if isinstance(item, contextlib._GeneratorContextManager):  # as a decorator it begins anew each time
        return kind, (item.func, item.args, item.kwds)
    if hasattr(item, "__wrapped__"):  # jitted, or decorated
        return kind, (item.__wrapped__,)
    if dataclasses.is_dataclass(item) and _package(type(item)) in (_PACKAGE, *_VERSIONED):
        fields = [one.name for one in dataclasses.fields(item) if one.name not in _UNSEEN]
        return kind, [x for name in fields for x in (name, getattr(item, name))]
    raise Opaque(f"{kind} cannot be taken apart")


def _name(item: Any) -> str:
    return f"{getattr(item, '__module__', '')}.{getattr(item, '__qualname__', getattr(item, '__name__', ''))}"


def _package(item: Any) -> str:
    return (getattr(item, "__module__", None) or "").partition(".")[0]
