"""Bundles: leaves that the same levels own and that weigh the same, pooled as one array.

What pooling does to one of them it does to all, so that it is traced and compiled once for a bundle instead
of once for a leaf. The rows of several leaves lie side by side, [row, number]; a leaf by itself keeps its
shape, [row, ...], for what is large is not copied, and a leaf that clients train by blocks has weights of its
own. Variances are those of a tensor, of the last layer those of an output unit: the statistics of several
leaves lie side by side, too, [row, stat], those of one are 1 on the axes that they pool.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from fedjax_vp.federated.hierarchy import BLOCK_AXES, Layout, block_shape
from fedjax_vp.models.base import Params

COPIED = 2**22  # numbers of a level that are laid side by side; more stay where they are, leaf by leaf


class Bundle(NamedTuple):
    """Static facts of a bundle."""

    shapes: Mapping[str, tuple[int, ...]]  # of its leaves
    owners: tuple[int, ...]  # levels, coarse to fine

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of a row's weights: 1 where they are the same."""
        return next(block_shape(*one) for one in self.shapes.items()) if len(self.shapes) == 1 else (1,)

    @property
    def stat_shape(self) -> tuple[int, ...]:
        """Of a row's statistics."""
        if len(self.shapes) == 1:
            return next(stat_shape(*one) for one in self.shapes.items())
        return (sum(self._stats()),)

    def joined(self, leaves: Params) -> Array:
        """Rows of the leaves, [row, ...] each, or their statistics, as one array."""
        parts = [leaves[n] for n in self.shapes]
        return parts[0] if len(parts) == 1 else jnp.concatenate([x.reshape(x.shape[0], -1) for x in parts], 1)

    def leaves(self, rows: Array) -> Params:
        """Rows by leaf: inverse of `joined`."""
        if len(self.shapes) == 1:
            return dict.fromkeys(self.shapes, rows)
        parts = _parts(rows, [math.prod(shape) for shape in self.shapes.values()])
        return {n: part.reshape(-1, *self.shapes[n]) for n, part in zip(self.shapes, parts, strict=True)}

    def by_leaf(self, weight: Array) -> Params:
        """A weight, [row, ...], for each leaf, broadcastable to its rows."""
        return {n: weight.reshape(-1, *block_shape(n, shape)) for n, shape in self.shapes.items()}

    def total(self, x: Array) -> Array:
        """Sums of rows over groups and the numbers of a statistic: [1, ...], broadcastable to statistics.

        Of weights too, each of which counts for every number that has it.
        """
        if len(self.shapes) == 1:
            shape = next(iter(self.shapes.values()))
            axes = [axis for axis, size in enumerate(self.stat_shape) if size == 1]
            repeated = math.prod(shape[axis] for axis in axes if x.shape[1 + axis] == 1)
            return repeated * jnp.sum(x, axis=(0, *(1 + axis for axis in axes)), keepdims=True)
        sizes, stats = [math.prod(shape) for shape in self.shapes.values()], self._stats()
        if x.shape[1] == 1:
            counts = [size // count for size, count in zip(sizes, stats, strict=True) for _ in range(count)]
            return jnp.sum(x) * jnp.asarray(counts, jnp.float32)[None]
        parts = zip(_parts(jnp.sum(x, axis=0), sizes), stats, strict=True)
        return jnp.concatenate([jnp.sum(part.reshape(-1, count), axis=0) for part, count in parts])[None]

    def spread(self, stat: Array) -> Array:
        """Statistics, [row, ...], beside the numbers that they belong to."""
        if len(self.shapes) == 1:
            return stat
        found = []
        for part, (n, shape) in zip(_parts(stat, self._stats()), self.shapes.items(), strict=True):
            rows = part.reshape(-1, *stat_shape(n, shape))
            found.append(jnp.broadcast_to(rows, (rows.shape[0], *shape)).reshape(rows.shape[0], -1))
        return jnp.concatenate(found, axis=1)

    def _stats(self) -> list[int]:
        """Statistics of each leaf."""
        return [math.prod(stat_shape(n, shape)) for n, shape in self.shapes.items()]


def stat_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a leaf's variances: 1 on the pooled axes, all but the output units of the last layer."""
    last = len(shape) - 1 if leaf.startswith("head/") else -1
    return tuple(size if axis == last else 1 for axis, size in enumerate(shape))


def table_of(layout: Layout, leaf: str) -> str:
    """Name of the tables that hold a leaf's weights; leaves of equal weights share them."""
    if BLOCK_AXES.get(leaf, 0):
        return leaf
    return "by session" if leaf in layout.varying else "by client"


def bundled(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Bundle]:
    """The bundles of some leaves, each under the name of its first leaf."""
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for leaf in sorted(shapes):
        owners = tuple(index for index, owned in enumerate(layout.owned) if leaf in owned)
        alike.setdefault((table_of(layout, leaf), owners), []).append(leaf)
    found = {}
    for (_, owners), leaves in alike.items():
        rows = max((layout.num_groups[index] for index in owners), default=0)
        few = rows * sum(math.prod(shapes[n]) for n in leaves) <= COPIED
        for part in [leaves] if few else [[n] for n in leaves]:
            found[part[0]] = Bundle({n: tuple(shapes[n]) for n in part}, owners)
    return found


def _parts(x: Array, sizes: list[int]) -> list[Array]:
    """Pieces of the last axis."""
    return [x[..., a:b] for a, b in itertools.pairwise([0, *itertools.accumulate(sizes)])]
