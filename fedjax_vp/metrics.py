"""Numbers about errors on test windows: summaries, who is hurt, intervals over seeds. Host side, NumPy.

Everything is in degrees and accumulated in float64. The mean "by windows" weighs every test window alike, the
mean "by clients" every session. Nothing here changes its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.special import ndtri, stdtrit

from fedjax_vp.errors import UserError
from fedjax_vp.geometry import TILE_SCORES

REFERENCE = "fedavg"  # users are hurt or helped relative to it
HURT_MARGIN_DEG = 0.5
HURT_HORIZONS_S = (1.0, 5.0)
_CONFIDENCE = 0.95
_TIME_SLACK_S = 1e-6


@runtime_checkable
class Windows(Protocol):
    """What is read of an evaluation: one row a test window."""

    @property
    def session(self) -> np.ndarray:
        """Index of the session, int [window]."""
        ...

    @property
    def error_deg(self) -> np.ndarray:
        """Great-circle error, float [window, horizon]."""
        ...

    @property
    def tiles(self) -> np.ndarray:
        """Precision, recall, F1 and IoU, float [window, tile_horizon, 4]."""
        ...


class Interval(NamedTuple):
    """Mean and confidence limits over ``repeats`` runs; the limits are NaN where one run says nothing."""

    mean: np.ndarray  # [...]
    low: np.ndarray  # [...]
    high: np.ndarray  # [...]
    repeats: int

    @property
    def half(self) -> np.ndarray:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


def summarize(
    evaluation: Windows,
    horizons_s: Sequence[float],
    tile_horizons_s: Sequence[float],
    user_of_session: Int[np.ndarray, "session"],
) -> dict[str, Any]:
    """Everything a run folder keeps of an evaluation, as plain lists and numbers.

    Args:
        evaluation: Errors and tile scores, one row a test window.
        horizons_s: Horizons of the errors' columns, in seconds.
        tile_horizons_s: Horizons of the tile scores, in seconds.
        user_of_session: User of every session, those without a test window included.

    Returns:
        ``error_deg`` with ``mean``, ``median``, ``p95`` (lists over horizons, by windows); ``by_client``
        (mean over sessions of session means) and ``by_user``; ``worst_decile_deg`` (mean of the worst tenth
        of the sessions, chosen at each horizon anew); ``tiles`` (lists over tile horizons by score);
        ``num_windows``; the tables ``sessions`` (session, user, windows, error_deg) and ``users`` (user,
        sessions, windows, error_deg), whose ``error_deg`` has one list over horizons a row.

    Raises:
        UserError: There is no test window.
        ValueError: Columns and horizons differ in number.
    """
    error, tiles = _checked(evaluation, len(horizons_s), len(tile_horizons_s))
    user = np.asarray(user_of_session)
    session, windows, by_session = group_means(evaluation.session, error)
    users, user_windows, by_user = group_means(user[evaluation.session], error)
    return {
        "error_deg": {
            "mean": error.mean(axis=0).tolist(),
            "median": np.median(error, axis=0).tolist(),
            "p95": np.quantile(error, 0.95, axis=0).tolist(),
        },
        "by_client": by_session.mean(axis=0).tolist(),
        "by_user": by_user.mean(axis=0).tolist(),
        "worst_decile_deg": worst_decile(by_session).tolist(),
        "tiles": dict(zip(TILE_SCORES, tiles.mean(axis=0).T.tolist(), strict=True)),
        "num_windows": len(error),
        "sessions": {
            "session": session.tolist(),
            "user": user[session].tolist(),
            "windows": windows.tolist(),
            "error_deg": by_session.tolist(),
        },
        "users": {
            "user": users.tolist(),
            "sessions": [int((user[session] == one).sum()) for one in users],
            "windows": user_windows.tolist(),
            "error_deg": by_user.tolist(),
        },
    }


def _checked(
    evaluation: Windows, num_horizons: int, num_tile_horizons: int
) -> tuple[Float[np.ndarray, "window horizon"], Float[np.ndarray, "window tile_horizon score"]]:
    """Errors and tile scores in float64, of the columns expected and of one window at least."""
    error = np.asarray(evaluation.error_deg, np.float64)
    tiles = np.asarray(evaluation.tiles, np.float64)
    if error.shape[1] != num_horizons or tiles.shape[1:] != (num_tile_horizons, len(TILE_SCORES)):
        raise ValueError(
            f"{num_horizons} horizons and {num_tile_horizons} tile horizons do not fit "
            f"errors {error.shape} and tiles {tiles.shape}"
        )
    if len(error) == 0:
        raise UserError("evaluation: no session has a test window; give longer traces or another protocol")
    return error, tiles


def group_means(
    group: Shaped[np.ndarray, "row"],
    values: Float[np.ndarray, "row column"],
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted mean of the rows of each group.

    Args:
        group: Group of every row, numbers or names.
        values: Rows to average.
        weights: Weight of every row, [row]; equal weights of 1 by default.

    Returns:
        The groups present in ascending order, the sum of their weights, and their means [group, column].
    """
    weight = np.ones(len(group), np.int64) if weights is None else np.asarray(weights)
    names, row = np.unique(group, return_inverse=True)
    total = np.zeros(len(names), weight.dtype)
    np.add.at(total, row, weight)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, row, values * weight[:, None])
    return names, total, sums / total[:, None]


def worst_decile(by_session: Float[np.ndarray, "session horizon"]) -> Float[np.ndarray, "horizon"]:
    """Mean over the tenth of the sessions with the largest error, at each horizon (at least one session)."""
    num_worst = -(-len(by_session) // 10)
    return np.sort(by_session, axis=0)[-num_worst:].mean(axis=0)


def long_term(
    error_deg: Float[np.ndarray, "row horizon"], horizons_s: Sequence[float]
) -> Float[np.ndarray, "row"]:
    """Mean error over the reported horizons from 1 to 5 s, the figure by which users are hurt or helped.

    Raises:
        UserError: No horizon lies between 1 and 5 s.
    """
    horizons = np.asarray(horizons_s)
    low, high = HURT_HORIZONS_S
    chosen = (horizons >= low - _TIME_SLACK_S) & (horizons <= high + _TIME_SLACK_S)
    if not chosen.any():
        raise UserError(f"evaluate.horizons_s is {list(horizons_s)}: give one between {low:g} and {high:g} s")
    return np.asarray(error_deg, np.float64)[:, chosen].mean(axis=1)


def hurt(
    own: Float[np.ndarray, "user"], fedavg: Float[np.ndarray, "user"], margin_deg: float = HURT_MARGIN_DEG
) -> dict[str, Any]:
    """Users whom a method serves worse than FedAvg.

    Args:
        own: Mean error of every user over 1-5 s in degrees (``long_term``).
        fedavg: The same users' error under FedAvg.
        margin_deg: A user is hurt where the error grows by more than this.

    Returns:
        ``share``, ``count``, ``total`` and the Wilson 95 % ``interval`` [low, high] of the share.
    """
    count = int((np.asarray(own, np.float64) - np.asarray(fedavg, np.float64) > margin_deg).sum())
    total = len(own)
    return {
        "share": count / total if total else 0.0,
        "count": count,
        "total": total,
        "interval": list(wilson(count, total)),
    }


def wilson(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a binomial share (Wilson 1927); all of [0, 1] when nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    z = float(ndtri((1 + _CONFIDENCE) / 2))
    share, scale = count / total, 1 + z * z / total
    center = (share + z * z / (2 * total)) / scale
    half = z * float(np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))) / scale
    return max(0.0, center - half), min(1.0, center + half)


def interval(values: Float[np.ndarray, "seed ..."]) -> Interval:
    """Mean over seeds (the first axis) with Student's 95 % interval; NaN limits for a single seed."""
    values = np.asarray(values, np.float64)
    count = len(values)
    mean = values.mean(axis=0)
    if count < 2:
        return Interval(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan), count)
    half = stdtrit(count - 1, (1 + _CONFIDENCE) / 2) * values.std(axis=0, ddof=1) / np.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def paired(a: Float[np.ndarray, "seed ..."], b: Float[np.ndarray, "seed_b ..."]) -> Interval:
    """Interval of the differences a - b of runs with the same seeds, which cancels what the seeds share.

    Raises:
        ValueError: The two differ in shape.
    """
    if np.shape(a) != np.shape(b):
        raise ValueError(f"paired: shapes {np.shape(a)} and {np.shape(b)} differ")
    return interval(np.asarray(a, np.float64) - np.asarray(b, np.float64))
