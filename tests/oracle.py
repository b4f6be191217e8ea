"""Plain NumPy loops of what the engine does in one compiled function, written from the papers' equations.

Nothing here is shared with the package: one client, one group, one window at a time, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

Params = dict[str, np.ndarray]
Server = Callable[[str, int, np.ndarray], np.ndarray]  # (leaf, group, pooled update) -> direction


def plain(leaf: str, group: int, update: np.ndarray) -> np.ndarray:
    """Averaging: the pooled update is the direction."""
    del leaf, group
    return update


class Adaptive:
    """FedAdagrad, FedYogi, FedAdam: algorithm 2 of Reddi et al. (ICLR 2021), moments by leaf and group."""

    def __init__(self, kind: str, beta1: float, beta2: float, tau: float) -> None:
        self.kind, self.beta1, self.beta2, self.tau = kind, beta1, beta2, tau
        self.moments: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, leaf: str, group: int, update: np.ndarray) -> np.ndarray:
        m, v = self.moments.get((leaf, group), (np.zeros_like(update), np.full_like(update, self.tau**2)))
        square = update**2
        if self.kind == "adagrad":  # beta1 = 0
            m, v = update, v + square
        elif self.kind == "yogi":
            m = self.beta1 * m + (1 - self.beta1) * update
            v = v - (1 - self.beta2) * square * np.sign(v - square)
        elif self.kind == "adam":
            m = self.beta1 * m + (1 - self.beta1) * update
            v = self.beta2 * v + (1 - self.beta2) * square
        self.moments[leaf, group] = m, v
        return m / (np.sqrt(v) + self.tau)


@dataclass
class Level:
    """Rows of one level, and the group of every session (-1: unknown)."""

    rows: Params
    code: np.ndarray
    shrinkage: float | np.ndarray = 1.0  # an array has a leading axis of groups
    progress: float = 1.0
    lr: float = 1.0
    server: Server = plain
    denominator: str = "group"
    population: float = 0.0
    pools: bool = True  # whether its period has come


@dataclass
class Units:
    """What clients report about a leaf: [unit, ...] updates, weights that broadcast to them, sessions."""

    delta: np.ndarray
    weight: np.ndarray
    session: np.ndarray
    residual: list[np.ndarray] = field(default_factory=list)  # before each level


def pool(levels: list[Level], leaf: str, units: Units) -> list[np.ndarray | None]:
    """Rows of a leaf after pooling, coarse to fine; a client after the other, a group after the other."""
    count = len(units.session)
    left = [np.asarray(units.delta[i], np.float64).copy() for i in range(count)]
    weight = [np.broadcast_to(np.asarray(units.weight[i], np.float64), left[i].shape) for i in range(count)]
    everyone = sum(weight[1:], weight[0])
    new: list[np.ndarray | None] = []
    units.residual.clear()
    for level in levels:
        units.residual.append(np.stack(left))
        if leaf not in level.rows:
            new.append(None)
            continue
        rows = np.asarray(level.rows[leaf], np.float64).copy()
        took = np.zeros_like(rows)
        shrinkage, h = np.broadcast_to(level.shrinkage, rows.shape), level.progress
        for g in range(len(rows) if level.pools else 0):
            total, mass = np.zeros_like(rows[g]), np.zeros_like(rows[g])
            for i in range(count):
                if level.code[units.session[i]] == g:
                    total += weight[i] * left[i]
                    mass += weight[i]
            below = {"group": mass, "participants": everyone, "population": level.population}
            bottom = np.broadcast_to(below[level.denominator], mass.shape)
            mean = np.where(mass > 0, total / np.where(mass > 0, bottom, 1), 0)
            s = shrinkage[g]
            took[g] = np.where(mass > 0, s * (mean + h * rows[g]) - h * rows[g], 0)
            step = level.lr * level.server(leaf, g, took[g])
            rows[g] = np.where(mass > 0, rows[g] + step, rows[g])
        for i in range(count):
            g = level.code[units.session[i]]
            if g >= 0:
                left[i] = left[i] - took[g]
        new.append(rows)
    return new


def anova(
    value: np.ndarray, weight: np.ndarray, group: np.ndarray, centered: bool
) -> tuple[float, float, float]:
    """One-way analysis of variance of scalars: mean square of the groups' means, its noise, sigma^2."""
    square_between, noise, within, freedom, groups = 0.0, 0.0, 0.0, 0.0, 0
    for g in sorted(set(group)):
        mine = [i for i in range(len(value)) if group[i] == g and weight[i] > 0]
        if not mine:
            continue
        mass = sum(weight[i] for i in mine)
        mean = sum(weight[i] * value[i] for i in mine) / mass
        heavy = sum(weight[i] ** 2 for i in mine)
        square_between += mean**2
        noise += heavy / mass**2
        within += sum(weight[i] * (value[i] - mean) ** 2 for i in mine)
        freedom += mass - heavy / mass
        groups += 1
    sigma2 = within / freedom
    return square_between / max(groups - centered, 1), sigma2 * noise / groups, sigma2


def fedavg(model: Params, deltas: list[Params], windows: list[float]) -> Params:
    """McMahan et al. (2017): w + sum_k n_k / n (w_k - w)."""
    total = float(sum(windows))
    return {
        n: w + sum(k / total * d[n] for d, k in zip(deltas, windows, strict=True)) for n, w in model.items()
    }


def hierfavg(model: Params, deltas: list[Params], windows: list[float], edge: list[int]) -> Params:
    """Liu et al. (2020), one edge round a cloud round: average in each edge, then of the edges by samples."""
    edges, sizes = [], []
    for e in sorted(set(edge)):
        mine = [i for i in range(len(edge)) if edge[i] == e]
        edges.append(fedavg(model, [deltas[i] for i in mine], [windows[i] for i in mine]))
        sizes.append(float(sum(windows[i] for i in mine)))
    return {n: sum(s * w[n] for s, w in zip(sizes, edges, strict=True)) / sum(sizes) for n in model}


def gradient(model: Params, last: np.ndarray, target: np.ndarray, time: np.ndarray) -> Params:
    """Gradient of the mean of |last + body + head + table - target|^2 / 2 over windows and horizon.

    Args:
        model: body [3], head/bias [horizon, 3], and video_table [bin, 3] where there is one.
        last: [window, 3].
        target: [window, horizon, 3].
        time: s, [window].
    """
    slope = {n: np.zeros_like(p, np.float64) for n, p in model.items()}
    windows, horizon = target.shape[:2]
    for w in range(windows):
        second = int(np.floor(time[w] + 1e-4))
        for k in range(horizon):
            error = last[w] + model["body"] + model["head/bias"][k] - target[w, k]
            if "video_table" in model:
                error = error + model["video_table"][second]
                slope["video_table"][second] += error / (windows * horizon)
            slope["body"] += error / (windows * horizon)
            slope["head/bias"][k] += error / (windows * horizon)
    return slope


def great_circle_deg(a: np.ndarray, b: np.ndarray) -> float:
    """Angle between two unit vectors, from the lengths of their cross and dot products."""
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), np.dot(a, b))))
