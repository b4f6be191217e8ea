"""Clustered federated learning: groups are split in two where their members' updates disagree.

Sattler, Mueller, Samek, "Clustered Federated Learning: Model-Agnostic Distributed Multitask Optimization
under Privacy Constraints", IEEE TNNLS 32(8), 2021. A group c is split by the bipartition of `linkage.py` when

    | sum_{i in c} w_i D_i / sum_{i in c} w_i |  <  eps1           its model is nearly stationary       (1)
    max_{i in c} |D_i|                           >  eps2           but its members are not              (2)
    sqrt((1 - alpha_cross^max) / 2)              >  gamma_max      and the split is provably right      (3)

and each part goes on alone, which may split it again. The splits are kept with the model and the members'
updates, so that a newcomer can be led down the tree by its own updates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from fedjax_vp.federated.grouping.linkage import bipartition
from fedjax_vp.federated.grouping.similarity import cosine
from fedjax_vp.federated.grouping.split_tree import Tree, record


@dataclass(frozen=True)
class SplitRule:
    """When a group is split; the defaults are those of the released code, which has no test (3).

    By the paper's rule of thumb eps1 is a tenth of the largest mean update seen so far, and eps2 once to ten
    times eps1: see `scaled`.
    """

    eps1: float = 0.4
    eps2: float = 1.6
    gamma_max: float = 1.0  # 1: (3) is left out
    min_size: int = 3  # of a group that may be split
    linkage: Literal["single", "complete"] = "complete"
    min_round: int = 20  # splits come after it

    def scaled(self, norm: float) -> SplitRule:
        """The rule with eps1 and eps2 in units of a norm, such as the largest mean update seen so far."""
        return replace(self, eps1=self.eps1 * norm, eps2=self.eps2 * norm)


class Verdict(NamedTuple):
    """What the tests say of a group."""

    split: bool
    labels: np.ndarray  # the bipartition, int32 [member]
    mean_norm: float  # left side of (1)
    max_norm: float  # of (2)
    alpha_cross_max: float  # 1.0 for fewer than two members


def should_split(
    updates: Float[np.ndarray, "member d"], weights: Float[np.ndarray, "member"], rule: SplitRule, round_: int
) -> Verdict:
    """Applies (1) to (3) to one group.

    Args:
        updates: of its members, or their sketches.
        weights: of the members in the mean, not all 0.
        rule: the thresholds.
        round_: rounds trained so far.
    """
    if not len(updates):
        return Verdict(False, np.zeros(0, np.int32), 0.0, 0.0, 1.0)
    mean_norm = float(np.linalg.norm(np.average(updates, axis=0, weights=weights)))
    max_norm = float(np.linalg.norm(updates, axis=1).max())
    labels, alpha = bipartition(cosine(updates), rule.linkage)
    gap = math.sqrt((1 - alpha) / 2)
    split = (
        round_ > rule.min_round
        and len(updates) >= max(rule.min_size, 2)
        and mean_norm < rule.eps1
        and max_norm > rule.eps2
        and (rule.gamma_max >= 1 or gap > rule.gamma_max)
    )
    return Verdict(split, labels, mean_norm, max_norm, alpha)


class Members(NamedTuple):
    """What is known of the units that are grouped."""

    row: np.ndarray  # of each unit's group, int32 [unit]; -1: not considered
    update: np.ndarray  # or its sketch, [unit, q]
    weight: np.ndarray  # [unit]


class Outcome(NamedTuple):
    """Groups after the splits of one round."""

    row: np.ndarray  # int32 [unit]
    tree: Tree
    verdicts: dict[int, Verdict]  # by the row judged
    copied: dict[int, int]  # new row -> the row whose model it takes over


def advance(
    tree: Tree,
    members: Members,
    rule: SplitRule,
    round_: int,
    free: Sequence[int],
    models: dict[str, np.ndarray],
) -> Outcome:
    """Judges every group once, and splits those that fail, as long as there are free rows.

    Args:
        tree: splits so far; changes nothing in place.
        members: the units; groups are judged in the order of their rows.
        rule: the thresholds.
        round_: rounds trained so far.
        free: rows for the groups that split off, in the order of use.
        models: leaves [row, ...], kept with each split.
    """
    row, rows = members.row.copy(), list(free)
    verdicts, copied = {}, {}
    for group in np.unique(row[row >= 0]).tolist():
        units = np.flatnonzero(members.row == group)
        verdict = should_split(members.update[units], members.weight[units], rule, round_)
        verdicts[group] = verdict
        if not (verdict.split and rows and tree.free):
            continue
        new = rows.pop(0)
        row[units[verdict.labels == 1]] = new
        copied[new] = group
        norms = verdict.mean_norm, verdict.max_norm, verdict.alpha_cross_max
        tree = record(tree, (group, new), round_, norms, (units, verdict.labels), members.update, models)
    return Outcome(row, tree, verdicts, copied)
