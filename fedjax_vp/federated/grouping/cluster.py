"""From what is known of the units of one parent group to their groups: the choice of a clustering by settings."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fedjax_vp.federated.grouping.settings import ByUpdates


class Evidence(NamedTuple):
    """Units of one parent group that have reported."""

    rows: np.ndarray  # float32 [unit, q] sketches of their updates
    weight: np.ndarray  # float32 [unit]
    group: np.ndarray  # int [unit] where they are now
    peak: float  # largest norm of a mean update so far


class Found(NamedTuple):
    """New groups, and the similarity of updates within and between them."""

    group: np.ndarray  # int [unit]
    within: float  # mean cosine; nan without a pair
    between: float
    split: bool  # whether some group was divided


def find(settings: ByUpdates, evidence: Evidence) -> Found:
    """Groups the units; fewer than two stay where they are."""
    raise NotImplementedError


def merge(found: list[Found], moved: int) -> dict[str, Any]:
    """One line of the log from the parent groups' findings: means over those that have any pair."""
    def mean(values: list[float]) -> float | None:
        known = [value for value in values if np.isfinite(value)]
        return float(np.mean(known)) if known else None

    return {
        "within": mean([one.within for one in found]),
        "between": mean([one.between for one in found]),
        "split": any(one.split for one in found),
        "moved": moved,
        "groups": sum(len(np.unique(one.group)) for one in found),
    }
