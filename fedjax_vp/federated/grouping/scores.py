"""How good and how steady a grouping is: against known groups, and from one round to the next.

Members with a negative label in either labeling are unknown there and left out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from fedjax_vp.federated.grouping.labels import best_overlap, contingency, renumber


class Scores(NamedTuple):
    """Agreement with the true groups; NaN where no member is known in both."""

    ari: float  # Hubert and Arabie 1985: 1 equal partitions, 0 in expectation by chance
    nmi: float  # mutual information over the arithmetic mean of the entropies
    purity: float  # share of members whose group's most frequent truth is their own
    num_groups: int


def score(labels: Int[np.ndarray, "n"], truth: Int[np.ndarray, "n"]) -> Scores:
    """Agreement of a grouping with the true groups.

    Example:
        >>> score(np.array([0, 0, 1, 1]), np.array([5, 5, 3, 3])).ari
        1.0
    """
    labels, truth = _known(labels, truth)
    if not len(labels):
        return Scores(math.nan, math.nan, math.nan, 0)
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    table = contingency(labels, truth)
    return Scores(
        ari=float(adjusted_rand_score(truth, labels)),
        nmi=float(normalized_mutual_info_score(truth, labels)),
        purity=float(table.max(axis=1).sum() / len(labels)),
        num_groups=len(table),
    )


def churn(before: Int[np.ndarray, "n"], after: Int[np.ndarray, "n"]) -> float:
    """Share of members that changed groups, after the matching of groups that leaves fewest movers."""
    before, after = _known(before, after)
    return 1 - best_overlap(before, after) / len(before) if len(before) else math.nan


def sizes(labels: Int[np.ndarray, "n"]) -> Int[np.ndarray, "group"]:
    """Members of each group, largest first; unknown members are in none."""
    return np.sort(np.bincount(renumber(labels[labels >= 0])))[::-1]


def _known(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = (a >= 0) & (b >= 0)
    return a[known], b[known]
