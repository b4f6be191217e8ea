"""The shape of a hierarchy, worked out on the host before anything is traced.

Which group each session is of at each level, which leaves a level owns, and how the groups of two levels lie
to each other: on this pooling depends (`pooling`), and what a client keeps apart (`local`).
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np

from fedjax_vp.errors import UserError
from fedjax_vp.federated.grouping.settings import IFCA, PACFL, ByUpdates, Known, Trajectories
from fedjax_vp.federated.settings import Level, Method, is_soft, parent_level

# Leaves whose leading axes are blocks that a client may train or leave alone: a second of the video table.
BLOCK_AXES = {"video_table": 1, "video_crowd": 1}


class Grouping(NamedTuple):
    """Host-side group codes of one level.

    Where groups are learned, `code` are the groups they are learned within, and `unit` is what moves as one.
    Within a learned level (`under`) both are as training begins, and unit u is u * branches + the row above.
    """

    code: np.ndarray  # int32 [session], -1 where unknown
    num_groups: int  # rows
    unit: np.ndarray | None = None  # int32 [session], -1 where unknown
    soft: bool = False  # a session may use several rows
    under: int | None = None  # index of the learned level within whose groups these are learned
    branches: int = 1  # rows of that level
    atom: np.ndarray | None = None  # int32 [session], what moves as one in both

    @property
    def finest(self) -> np.ndarray:
        """Sessions that are never apart: int32 [session]."""
        return next(x for x in (self.atom, self.unit, self.code) if x is not None)


class Layout(NamedTuple):
    """Static facts of a hierarchy over a federation.

    Attributes:
        levels: the settings, coarse to fine.
        num_groups: rows of each level.
        owned: leaf names of each level.
        relation: by (fine, coarse) level index: `single`, `nested` or `crossed`.
        varying: leaves that some level keeps apart within one client.
        private: leaves that no two clients share: they stay on the headset.
        patchy: levels of `auto` shrinkage at which some training session's group is unknown.
    """

    levels: tuple[Level, ...]
    num_groups: tuple[int, ...]
    owned: tuple[tuple[str, ...], ...]
    relation: dict[tuple[int, int], str]
    varying: frozenset[str]
    private: frozenset[str]
    patchy: frozenset[int]

    def coarsest(self, leaf: str) -> int:
        """Index of the coarsest level that owns the leaf."""
        return next(i for i, names in enumerate(self.owned) if leaf in names)


def block_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a leaf's weights: its block axes, and 1 elsewhere."""
    blocks = BLOCK_AXES.get(leaf, 0)
    return tuple(size if axis < blocks else 1 for axis, size in enumerate(shape))


def owns(patterns: tuple[str, ...], leaf: str) -> bool:
    """Whether shell patterns (a leading "!" takes out, the last match wins) cover a leaf."""
    verdict = bool(patterns) and patterns[0].startswith("!")
    for pattern in patterns:
        if fnmatchcase(leaf, pattern.removeprefix("!")):
            verdict = not pattern.startswith("!")
    return verdict


def grouping(labels: dict[str, np.ndarray], by: str, key: str = "by") -> Grouping:
    """Group codes of the joint label `by` ("" one group, "video*user" pairs that occur); `key` asks."""
    size = len(labels["session"])
    if not by:
        return Grouping(np.zeros(size, np.int32), 1)
    names = by.split("*")
    missing = [name for name in names if name not in labels]
    if missing:
        raise UserError(
            f"levels: {key}: no label {missing[0]!r} in this data set; it has {', '.join(sorted(labels))}"
        )
    codes = np.stack([labels[name] for name in names], axis=1)
    known = (codes >= 0).all(axis=1)
    if not known.any():
        raise UserError(f"levels: {key}: no session has a known {by!r} in this data set; take the level out")
    code = np.full(size, -1, np.int32)
    _, code[known] = np.unique(codes[known], axis=0, return_inverse=True)
    return Grouping(code, int(code.max()) + 1)


def groupings_of(
    labels: dict[str, np.ndarray],
    levels: tuple[Level, ...],
    look: Callable[[PACFL | Trajectories, np.ndarray, np.ndarray], tuple[np.ndarray, int]] | None = None,
) -> list[Grouping]:
    """Group codes of every level; those of a level that learns while training at full capacity.

    Args:
        labels: group code of each session by label.
        levels: the settings.
        look: finds groups in the data (`grouping.from_data.find`), given parent groups and units.
    """
    found: list[Grouping] = []
    for level in levels:
        group = grouping(labels, level.by)
        settings = level.grouping
        if not isinstance(settings, Known):
            joint = "*".join(name for name in (level.by, settings.of) if name)
            unit = grouping(labels, joint, "grouping.of").code
            group = _within(levels, found, group._replace(unit=unit))
            assert group.unit is not None
            if isinstance(settings, PACFL | Trajectories):
                assert look is not None
                group = Grouping(*look(settings, group.code, group.unit))
            else:
                group = group._replace(num_groups=group.num_groups * settings.groups, soft=is_soft(level))
        found.append(group)
    return found


def _within(levels: tuple[Level, ...], above: list[Grouping], group: Grouping) -> Grouping:
    """Parent groups and units of the next level, within the groups of the level that it names."""
    index = parent_level(levels, len(above))
    if index is None:
        return group
    parent, known = above[index], levels[index].grouping
    assert group.unit is not None
    if not isinstance(known, IFCA | ByUpdates):  # its groups stay as they are
        code, unit = (_pairs(parent.code, one, levels[len(above)]) for one in (group.code, group.unit))
        return group._replace(code=code, num_groups=int(code.max()) + 1, unit=unit)
    assert parent.unit is not None
    first = parent.code * known.groups  # everybody is in the first group of its own parent group
    code, unit = (
        np.where((one >= 0) & (parent.unit >= 0), one * parent.num_groups + first, -1).astype(np.int32)
        for one in (group.code, group.unit)
    )
    return Grouping(
        code=code,
        num_groups=group.num_groups * parent.num_groups,
        unit=unit,
        under=index,
        branches=parent.num_groups,
        atom=_pairs(parent.finest, group.unit, levels[len(above)]),
    )


def _pairs(one: np.ndarray, other: np.ndarray, level: Level) -> np.ndarray:
    """Codes of the pairs that occur, int32 [session], -1 where one of the two is unknown; `level` asks."""
    try:
        return grouping({"session": one, "one": one, "other": other}, "one*other").code
    except UserError:
        raise UserError(
            f"levels: {level.name}.grouping.within: no session is known both there and here; take it out"
        ) from None


def layout(method: Method, groupings: list[Grouping], leaves: list[str], client_of: np.ndarray) -> Layout:
    """Works out ownership and how levels nest.

    Args:
        method: settings.
        groupings: host codes of each level.
        leaves: names of the model's parameters.
        client_of: int [session], client of each session, -1 without training windows.
    """
    owned = tuple(tuple(n for n in leaves if owns(level.owns, n)) for level in method.levels)
    orphans = [n for n in leaves if not any(n in names for names in owned)]
    if orphans:
        raise UserError(f"levels: nobody owns {orphans[0]!r}; add it to the owns of a level")
    for level, names in zip(method.levels, owned, strict=True):
        if not names:
            raise UserError(
                f"levels: {level.name} owns nothing: no parameter of this model is like "
                f"{', '.join(level.owns) or 'nothing'}; change its owns or the model, or take the level out"
            )
    used = client_of >= 0
    relation = {(f, c): _lies(groupings, (f, c), used) for f in range(len(groupings)) for c in range(f)}
    for fine, level in enumerate(method.levels):
        if level.absorb and relation[fine, fine - 1] == "crossed":
            raise UserError(
                f"levels: {level.name}.absorb: its groups do not lie within those of "
                f"{method.levels[fine - 1].name}, so they have no level to be absorbed into; set absorb to 0"
            )
    clients = client_of[used]
    atoms = [g.finest[used] for g in groupings]
    apart = [
        g.num_groups > 1 and nesting(clients, atom) != "nested" and len(np.unique(atom)) > 1
        for g, atom in zip(groupings, atoms, strict=True)
    ]
    shared = [nesting(g.code[used], clients) != "nested" or len(np.unique(clients)) == 1 for g in groupings]
    varying = {n for names, yes in zip(owned, apart, strict=True) if yes for n in names}
    public = {n for names, yes in zip(owned, shared, strict=True) if yes for n in names}
    return Layout(
        levels=method.levels,
        num_groups=tuple(g.num_groups for g in groupings),
        owned=owned,
        relation=relation,
        varying=frozenset(varying),
        private=frozenset(leaves) - public,
        patchy=frozenset(
            i
            for i, (level, group) in enumerate(zip(method.levels, groupings, strict=True))
            if level.shrinkage == "auto" and (group.finest[used] < 0).any()
        ),
    )


def _lies(groupings: list[Grouping], pair: tuple[int, int], used: np.ndarray) -> str:
    """How groups of a (fine, coarse) pair of levels lie however a learned grouping deals its units."""
    fine, coarse = (groupings[index] for index in pair)
    if coarse.num_groups == 1:
        return nesting(fine.code, coarse.code, used)
    if fine.under is not None:
        if (fine.finest[used] < 0).any():
            return "crossed"
        return "nested" if fine.under == pair[1] else _lies(groupings, (fine.under, pair[1]), used)
    found = nesting(fine.code, coarse.finest, used)
    if coarse.soft and coarse.unit is not None:
        return "crossed"
    return "nested" if found == "single" and coarse.unit is not None else found


def nesting(fine: np.ndarray, coarse: np.ndarray, used: np.ndarray | None = None) -> str:
    """How fine groups lie in coarse ones: all in the only one (`single`), each within one (`nested`), across.

    Sessions that only test (not `used`) share rows with those that train, so they too must nest; where one of
    their groups is unknown they say nothing.
    """
    used = np.ones(len(fine), bool) if used is None else used
    known = (fine >= 0) & (coarse >= 0)
    if not known[used].all():
        return "crossed"
    if (coarse <= 0).all():
        return "single"
    pairs = np.unique(np.stack([fine[known], coarse[known]], axis=1), axis=0)
    return "nested" if len(pairs) == len(np.unique(fine[known])) else "crossed"
