"""Labelings of members: int32, numbered by first appearance, so that equal partitions are equal arrays."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int
from scipy.optimize import linear_sum_assignment


def renumber(labels: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """The same partition with groups 0, 1, ... in the order of their first members."""
    _, first, code = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    return rank[code]


def same_group(labels: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n n"]:
    """Which pairs share a group; every member with itself."""
    return labels[:, None] == labels[None, :]


def contingency(a: Int[np.ndarray, "n"], b: Int[np.ndarray, "n"]) -> Int[np.ndarray, "groups_a groups_b"]:
    """How many members each pair of groups shares."""
    a, b = renumber(a), renumber(b)
    table = np.zeros((a.max(initial=-1) + 1, b.max(initial=-1) + 1), np.int64)
    np.add.at(table, (a, b), 1)
    return table


def best_overlap(a: Int[np.ndarray, "n"], b: Int[np.ndarray, "n"]) -> int:
    """Most members that agree under any one-to-one matching of groups (the Hungarian algorithm)."""
    table = contingency(a, b)
    return int(table[linear_sum_assignment(table, maximize=True)].sum())
