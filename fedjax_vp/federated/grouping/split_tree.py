"""The splits of clustered federated learning in order of time, as arrays of fixed size.

Split s divides the group of row `row[s]`: child 0 keeps the row, child 1 moves to row `new[s]`. So the list
of splits is the tree (or the forest, where several groups are there from the start): a path from a root is
found by going through the list once. Sattler et al. 2021, on new clients: at each split a client
computes its update at the model of that split and joins the child with the most similar stored update.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fedjax_vp.federated.grouping.similarity import cosine_to


class Tree(NamedTuple):
    """Splits so far; unused places hold -1 or 0."""

    row: np.ndarray  # divided, int32 [split]
    new: np.ndarray  # row of child 1, int32 [split]
    round: np.ndarray  # int32 [split]
    mean_norm: np.ndarray  # of the members' mean update, float32 [split]
    max_norm: np.ndarray  # the largest of a member's update, float32 [split]
    alpha_cross_max: np.ndarray  # float32 [split]
    size: np.ndarray  # members at the split, int32 [split]
    member: np.ndarray  # units whose updates are kept, int32 [split, kept]
    side: np.ndarray  # child that each of them joined, int32 [split, kept]
    update: np.ndarray  # theirs, or its sketch, float32 [split, kept, q]
    model: dict[str, np.ndarray]  # at the split, leaves [split, ...]

    @property
    def count(self) -> int:
        """Splits made."""
        return int((self.row >= 0).sum())

    @property
    def free(self) -> int:
        """Splits that still fit."""
        return len(self.row) - self.count


def empty(splits: int, kept: int, size: int, model: dict[str, tuple[int, ...]]) -> Tree:
    """No split yet.

    Args:
        splits: most splits: one less than there may be groups.
        kept: most members whose updates are kept at a split.
        size: numbers in an update or its sketch.
        model: shapes of the leaves that are kept; none: {}.
    """

    def ints(*shape: int) -> np.ndarray:
        return np.full(shape, -1, np.int32)

    def floats(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    return Tree(
        row=ints(splits),
        new=ints(splits),
        round=ints(splits),
        mean_norm=floats(splits),
        max_norm=floats(splits),
        alpha_cross_max=floats(splits),
        size=np.zeros(splits, np.int32),
        member=ints(splits, kept),
        side=ints(splits, kept),
        update=floats(splits, kept, size),
        model={name: floats(splits, *shape) for name, shape in model.items()},
    )


def record(
    tree: Tree,
    rows: tuple[int, int],
    round_: int,
    norms: tuple[float, float, float],
    members: tuple[Int[np.ndarray, "member"], Int[np.ndarray, "member"]],
    updates: Float[np.ndarray, "unit q"],
    models: dict[str, np.ndarray],
) -> Tree:
    """The tree with one more split.

    Where there are more members than places, every so-manieth of each child is kept.

    Args:
        tree: before; stays as it is.
        rows: the divided row, and that of child 1.
        round_: when.
        norms: `mean_norm`, `max_norm` and `alpha_cross_max`.
        members: units of the group, and the child (0 or 1) that each joins.
        updates: of all units.
        models: leaves [row, ...].

    Raises:
        ValueError: the tree is full.
    """
    if not tree.free:
        raise ValueError(f"the tree holds {tree.count} splits already: make it larger")
    at = tree.count
    units, side = members
    kept = _spread(side, tree.member.shape[1])
    places = slice(0, len(kept))
    new = tree._replace(**{name: getattr(tree, name).copy() for name in tree._fields[:-1]})
    new.row[at], new.new[at] = rows
    new.round[at], new.size[at] = round_, len(units)
    new.mean_norm[at], new.max_norm[at], new.alpha_cross_max[at] = norms
    new.member[at, places], new.side[at, places] = units[kept], side[kept]
    new.update[at, places] = updates[units[kept]]
    model = {name: leaf.copy() for name, leaf in tree.model.items()}
    for name, leaf in model.items():
        leaf[at] = models[name][rows[0]]
    return new._replace(model=model)


def _spread(side: np.ndarray, places: int) -> np.ndarray:
    """Which members are kept: all that fit, else the children's shares of the places, each at least one."""
    if len(side) <= places:
        return np.arange(len(side))
    one = int(np.clip(round(places * side.mean()), 1, places - 1))
    parts = [np.flatnonzero(side == child) for child in (0, 1)]
    counts = (min(places - one, len(parts[0])), min(one, len(parts[1])))
    picked = [part[np.arange(n) * len(part) // n] for part, n in zip(parts, counts, strict=True)]
    return np.sort(np.concatenate(picked))


def route(
    tree: Tree, updates: Float[np.ndarray, "newcomer split q"], start: Int[np.ndarray, "newcomer"]
) -> Int[np.ndarray, "newcomer"]:
    """Leads newcomers down the tree to a row.

    Args:
        tree: the splits.
        updates: of each newcomer at the model of each split; an axis of 1 takes one update for all splits,
            an approximation that needs no further training.
        start: row of the root of each.
    """
    row = np.array(start, np.int32)
    at_split = np.broadcast_to(updates, (len(row), len(tree.row), updates.shape[2]))
    for split in range(tree.count):
        here = np.flatnonzero(row == tree.row[split])
        similarity = cosine_to(at_split[here, split], tree.update[split])
        nearest = [
            np.where(tree.side[split][None] == child, similarity, -np.inf).max(axis=1) for child in (0, 1)
        ]
        row[here[nearest[1] > nearest[0]]] = tree.new[split]
    return row


def to_arrays(tree: Tree) -> dict[str, np.ndarray]:
    """Plain arrays, for a checkpoint; their shapes do not change as the tree grows."""
    arrays = {name: getattr(tree, name) for name in tree._fields[:-1]}
    return arrays | {f"model/{name}": leaf for name, leaf in tree.model.items()}


def from_arrays(arrays: dict[str, np.ndarray]) -> Tree:
    """Inverse of `to_arrays`."""
    model = {name.removeprefix("model/"): x for name, x in arrays.items() if name.startswith("model/")}
    return Tree(**{name: np.asarray(arrays[name]) for name in Tree._fields[:-1]}, model=model)
