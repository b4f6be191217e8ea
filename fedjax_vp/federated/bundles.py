"""Bundles: leaves that the same levels own and that weigh the same, pooled as one array.

What pooling does to one of them it does to all, so that it is traced and compiled once for a bundle instead
of once for a leaf. A bundle's rows lie flat, [row, block, number]; a leaf that clients train by blocks is a
bundle by itself, all others have one block. Variances are those of a tensor, of the last layer those of an
output unit: a bundle has several statistics, [row, block, stat], one after the other by leaf.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_vp.federated.hierarchy import BLOCK_AXES, Layout, block_shape
from fedjax_vp.models.base import Params


class Bundle(NamedTuple):
    """Static facts of a bundle."""

    shapes: Mapping[str, tuple[int, ...]]  # of its leaves
    blocks: int
    owners: tuple[int, ...]  # levels, coarse to fine

    def flat(self, rows: Params) -> Float[Array, "row block number"]:
        """Rows of the leaves, [row, ...] each, side by side."""
        return _joined([rows[n].reshape(-1, self.blocks, self._numbers(n)) for n in self.shapes])

    def leaves(self, flat: Float[Array, "row block number"]) -> Params:
        """Inverse of `flat`."""
        parts = _parts(flat, [self._numbers(n) for n in self.shapes])
        return {n: part.reshape(-1, *self.shapes[n]) for n, part in zip(self.shapes, parts, strict=True)}

    def by_leaf(self, weight: Float[Array, "row block 1"]) -> Params:
        """A weight of blocks for each leaf, broadcastable to its rows."""
        return {n: weight.reshape(-1, *block_shape(n, shape)) for n, shape in self.shapes.items()}

    @property
    def num_stats(self) -> int:
        """Statistics of the bundle."""
        return sum(self._stats())

    def stats(self, found: Params) -> Float[Array, "1 1 stat"]:
        """Statistics by leaf, [1, ...] each, side by side."""
        return _joined([found[n].reshape(1, 1, -1) for n in self.shapes])

    def total(self, x: Float[Array, "row block number"]) -> Float[Array, "1 1 stat"]:
        """Sums over rows, blocks and a statistic's numbers; a weight common to all numbers is counted."""
        if x.shape[2] == 1:
            return jnp.sum(x) * jnp.asarray(self._counts(), jnp.float32)[None, None]
        parts = _parts(jnp.sum(x, axis=(0, 1)), [self._numbers(n) for n in self.shapes])
        found = [
            jnp.sum(part.reshape(-1, count), axis=0) for part, count in zip(parts, self._stats(), strict=True)
        ]
        return _joined(found)[None, None]

    def spread(self, stat: Float[Array, "row block stat"]) -> Float[Array, "row block #number"]:
        """Statistics beside the numbers that they belong to."""
        if stat.shape[2] == 1:
            return stat
        rows = stat.shape[:2]
        found = []
        for part, count, n in zip(_parts(stat, self._stats()), self._stats(), self.shapes, strict=True):
            shape = (*rows, self._numbers(n) // count, count)
            found.append(jnp.broadcast_to(part[:, :, None], shape).reshape(*rows, -1))
        return _joined(found)

    def _numbers(self, leaf: str) -> int:
        """Numbers of a leaf in one block."""
        return math.prod(self.shapes[leaf]) // self.blocks

    def _stats(self) -> list[int]:
        """Statistics of each leaf."""
        return [math.prod(stat_shape(n, shape)) for n, shape in self.shapes.items()]

    def _counts(self) -> list[int]:
        """Numbers of a block behind each statistic."""
        pairs = zip(self.shapes, self._stats(), strict=True)
        return [self._numbers(n) // count for n, count in pairs for _ in range(count)]


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
    return {
        leaves[0]: Bundle(
            {n: tuple(shapes[n]) for n in leaves},
            math.prod(block_shape(leaves[0], tuple(shapes[leaves[0]]))),
            owners,
        )
        for (_, owners), leaves in alike.items()
    }


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def _parts(x: Array, sizes: list[int]) -> list[Array]:
    """Pieces of the last axis."""
    if len(sizes) == 1:
        return [x]
    return [x[..., a:b] for a, b in itertools.pairwise([0, *itertools.accumulate(sizes)])]
