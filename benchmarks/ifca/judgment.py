"""What the runs of a cell say about its points, and whether the map is as theory has it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from ifca.settings import Cell

CONFIDENCE = 0.95
EASY = 0.9  # share of data sets that must succeed in the easiest corner

Point = dict[str, Any]


def judge_cell(
    cell: Cell, d: int, distance: np.ndarray, rounds: np.ndarray, recovered: np.ndarray
) -> list[Point]:
    """Results of a cell's points.

    Args:
        cell: which.
        d: dimension of the models.
        distance: where each run ended: [set, point, start, lr], not finite where it diverged.
        rounds: that each took, of the same shape.
        recovered: whether machines ended in the planted groups.
    """
    distance = np.where(np.isfinite(distance), distance, np.inf)
    sweep, found = cell.sweep, []
    for index, (r, sigma) in enumerate(cell.points):
        limit = 0.6 * sigma + sweep.slack
        reached = distance[:, index] <= limit  # [set, start, lr]
        success, data_sets = int(reached.any(axis=(1, 2)).sum()), len(reached)
        found.append(
            {
                **{"sweep": sweep.name, "k": sweep.k, "m": cell.m, "n": cell.n, "r": r, "sigma": sigma},
                "success": success,
                "data_sets": data_sets,
                "interval": interval(success, data_sets),
                "recovered": int(recovered[:, index].any(axis=(1, 2)).sum()),
                "runs_within": {f"{lr:g}": float(reached[..., i].mean()) for i, lr in enumerate(sweep.lr)},
                "distance_allowed": limit,
                "distance_expected": least_squares_distance(cell, d, sigma),
                "distance_median": finite(float(np.median(distance[:, index].min(axis=(1, 2))))),
                "rounds_mean": float(rounds[:, index].mean()),
            }
        )
    return found


def interval(success: int, data_sets: int) -> list[float]:
    """Exact (Clopper-Pearson) interval of a share."""
    bounds = binomtest(success, data_sets).proportion_ci(CONFIDENCE, method="exact")
    return [float(bounds.low), float(bounds.high)]


def least_squares_distance(cell: Cell, d: int, sigma: float) -> float | None:
    """How far least squares that knows the groups ends from the truth: no run can expect to end nearer.

    sigma sqrt(d / (N - d - 1)) for N samples a group; none where they do not determine the model.
    """
    samples = cell.m * cell.n // cell.sweep.k
    return sigma * math.sqrt(d / (samples - d - 1)) if samples > d + 1 else None


def finite(value: float) -> float | None:
    """The value, none where it is not finite: JSON knows no infinity."""
    return value if math.isfinite(value) else None


def falls(found: Sequence[Point], along: str) -> list[str]:
    """Pairs of points, alike but for a larger `along`, whose success falls below the first one's interval."""
    fixed = [key for key in ("sweep", "k", "m", "n", "r", "sigma") if key != along]
    told = []
    for low, high in itertools.permutations(found, 2):
        alike = all(low[key] == high[key] for key in fixed)
        if alike and high[along] > low[along] and high["success"] / high["data_sets"] < low["interval"][0]:
            where = ", ".join(f"{key} {low[key]:g}" for key in ("m", "n", "r", "sigma"))
            later = f"{high['success']} at {along} {high[along]:g}"
            told.append(f"{low['sweep']}, {where}: {low['success']} of {low['data_sets']}, but {later}")
    return told


def easiest(found: Sequence[Point]) -> list[Point]:
    """The point of each sweep with the most machines and samples, the largest r and then the least noise."""
    sweeps = dict.fromkeys(point["sweep"] for point in found)

    def ease(point: Point) -> tuple[float, ...]:
        return (point["m"], point["n"], point["r"], -point["sigma"])

    return [max((point for point in found if point["sweep"] == sweep), key=ease) for sweep in sweeps]


def verdicts(found: Sequence[Point]) -> list[dict[str, Any]]:
    """What the map was to show, and whether it does."""
    out: list[dict[str, Any]] = []
    for along in ("r", "n"):
        told = falls(found, along)
        out.append({"claim": f"success does not fall in {along}", "holds": not told, "against": told})
    for point in easiest(found):
        share = point["success"] / point["data_sets"]
        where = f"m {point['m']}, n {point['n']}, r {point['r']:g}, sigma {point['sigma']:g}"
        claim = f"at least {EASY:g} in the easiest corner of {point['sweep']} ({where})"
        out.append(
            {"claim": claim, "holds": share >= EASY, "against": [] if share >= EASY else [f"{share:g}"]}
        )
    return out


def table(found: Sequence[Point]) -> str:
    """Markdown, a row a point."""
    head = ["sweep", "k", "m", "n", "r", "sigma", "success", "95 % interval", "groups found"]
    head += ["median distance", "allowed", "least squares", "rounds"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for p in found:
        low, high = p["interval"]
        cells = [p["sweep"], *(f"{p[key]:g}" for key in ("k", "m", "n", "r", "sigma"))]
        cells += [
            f"{p['success']}/{p['data_sets']}",
            f"{low:.2f} to {high:.2f}",
            f"{p['recovered']}/{p['data_sets']}",
        ]
        expected = p["distance_expected"]
        cells += [
            "diverged" if p["distance_median"] is None else f"{p['distance_median']:.4g}",
            f"{p['distance_allowed']:.4g}",
            "none" if expected is None else f"{expected:.4g}",
            f"{p['rounds_mean']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
