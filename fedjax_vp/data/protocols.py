"""Settings of the protocols: what `fedjax_vp.data.splits.split` can do, with all defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

DAVID_TEST_VIDEOS: tuple[str, ...] = (
    "1_PortoRiverside",
    "3_PlanEnergyBioLab",
    "5_Waterpark",
    "14_Warship",
    "16_Turtle",
)
"""TRACK's test videos of the data set of David et al. (Romero et al., TPAMI 2021)."""


def _require(condition: bool, name: str, value: object, advice: str) -> None:
    if not condition:
        raise ValueError(f"protocol.{name} is {value}: {advice}")


def _require_fold(folds: int, fold: int) -> None:
    _require(folds >= 2, "folds", folds, "give at least 2")
    _require(0 <= fold < folds, "fold", fold, f"give 0 to {folds - 1}")


@dataclass(frozen=True)
class Windows:
    """What every protocol shares.

    Attributes:
        history_s: Observed seconds of a window.
        horizon_s: Predicted seconds of a window.
        start_s: Earliest video time of `now` (train, valid and test).
        stride: Keep every so many windows of train, valid and adapt, counted from ``start_s``.
        test_stride: The same for test windows.
        valid_share: Share of training sessions (within_session: of training time) kept for validation.
        adapt_s: Seconds at the start of a test session that adaptation may use.
        reserve_s: Seconds at the start of a test session kept free of test windows, whatever ``adapt_s`` is.
    """

    history_s: float = 2.0
    horizon_s: float = 5.0
    start_s: float = 6.0
    stride: int = 1
    test_stride: int = 1
    valid_share: float = 0.125
    adapt_s: float = 0.0
    reserve_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: A duration or a stride is not positive, or a share not in [0, 1).
        """
        for name in ("history_s", "horizon_s", "stride", "test_stride"):
            _require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "give a number above 0")
        for name in ("start_s", "adapt_s", "reserve_s"):
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "give 0 or more seconds")
        _require(0 <= self.valid_share <= 0.5, "valid_share", self.valid_share, "give a share in [0, 0.5]")


@dataclass(frozen=True)
class WithinSession(Windows):
    """Every session is cut by time: train, then valid, then test; known users, known videos, later seconds.

    A session too short for three phases has no valid windows, one too short for two only trains.
    """

    kind: Literal["within_session"] = "within_session"
    train_share: float = 0.6  # of the windows, validation included

    def __post_init__(self) -> None:
        """Refuse impossible values; see `Windows`."""
        super().__post_init__()
        _require(0 < self.train_share < 1, "train_share", self.train_share, "give a share in (0, 1)")
        _require(self.adapt_s == 0, "adapt_s", self.adapt_s, "every session trains already, give 0")


@dataclass(frozen=True)
class UnseenUsers(Windows):
    """Users in natural order: position p tests where p mod ``folds`` is ``fold`` (default: odd positions).

    With ``rehearse`` k the users who test are left out altogether, and every k-th of the others tests in
    their place: settings can be chosen that way without a look at those whom the results are about.
    """

    kind: Literal["unseen_users"] = "unseen_users"
    folds: int = 2
    fold: int = 1
    rehearse: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible values; see `Windows`."""
        super().__post_init__()
        _require_fold(self.folds, self.fold)
        _require(self.rehearse == 0 or self.rehearse >= 2, "rehearse", self.rehearse, "give 0, or at least 2")


@dataclass(frozen=True)
class UnseenVideos(Windows):
    """Videos in natural order: position p tests where p mod ``folds`` is ``fold`` (default: every fifth)."""

    kind: Literal["unseen_videos"] = "unseen_videos"
    folds: int = 5
    fold: int = 4

    def __post_init__(self) -> None:
        """Refuse impossible values; see `Windows`."""
        super().__post_init__()
        _require_fold(self.folds, self.fold)


@dataclass(frozen=True)
class UnseenBoth(Windows):
    """TRACK's protocol (Romero et al., TPAMI 2021): no user and no video on both sides.

    Test videos are ``test_videos``; where that is empty, TRACK's own on the data set of David et al. and
    every fifth in natural order on others (80 % of the videos train). Users at odd positions test. TRACK
    itself observes one second: ``history_s`` 1.
    """

    kind: Literal["unseen_both"] = "unseen_both"
    test_videos: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetLLM(Windows):
    """NetLLM's lists of users and videos (Wu et al., SIGCOMM 2024) for Wu2017 and Jin2022.

    Its windows have their first target at sample 30, 45, ... of a 5 Hz session, with 60 samples after it. The
    validation sessions are the protocol's own: neither their users nor their videos train or test.
    """

    kind: Literal["netllm"] = "netllm"
    horizon_s: float = 4.0
    start_s: float = 5.8  # the first target lies at 6 s
    stride: int = 15
    test_stride: int = 15
    tail_s: float = 12.0  # of the session after a window's first target


Protocol = WithinSession | UnseenUsers | UnseenVideos | UnseenBoth | NetLLM


class Lists(NamedTuple):
    """Identifiers of one side (users or videos) of NetLLM's split."""

    train: tuple[int, ...]
    valid: tuple[int, ...]
    test: tuple[int, ...]


# fmt: off
NETLLM_LISTS: dict[str, tuple[Lists, Lists]] = {  # users, videos
    "jin_mmsys22": (
        Lists(
            (50, 54, 6, 34, 66, 63, 52, 39, 62, 46, 75, 28, 65, 18, 37, 13, 80, 33, 69, 78, 19, 40, 10,
             43, 61, 72, 56, 41, 79, 82, 27, 71, 57, 67, 8, 2, 12, 81, 1, 64, 32, 42),
            (9, 25, 73, 29, 31, 70, 58, 11, 14, 38, 16, 76, 77, 74, 24, 5, 17, 20, 51, 68, 36),
            (83, 15, 3, 35, 48, 22, 55, 4, 45, 60, 26, 21, 44, 23, 53, 84, 59, 49, 7, 47, 30),
        ),
        Lists(
            (1, 5, 9, 2, 6, 11, 15, 16, 13, 17, 21, 22, 26, 19, 23), (3, 7, 12, 10, 20, 27),
            (4, 8, 14, 18, 24, 25),
        ),
    ),
    "wu_mmsys17": (
        Lists(
            (23, 3, 19, 24, 18, 28, 9, 26, 6, 15, 21, 25, 32, 38, 45, 34, 48, 44, 29, 43, 4, 36, 39, 8,
             17, 42, 30, 11, 22, 37),
            (40, 20, 14, 1, 31, 12, 33, 27, 10), (16, 7, 46, 5, 35, 2, 41, 47, 13),
        ),
        Lists((9, 7, 4, 1, 6), (8, 2), (3, 5)),
    ),
}
# fmt: on
