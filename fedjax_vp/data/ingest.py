"""Sessions of many files to one TraceSet: skipping or failing, counting, duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal

from fedjax_vp.data.resample import BadTrace, RawSession, Rules, resample
from fedjax_vp.data.traces import Session, TraceSet, stack_sessions
from fedjax_vp.errors import UserError

OnError = Literal["fail", "skip"]
Unit = Callable[[], list[RawSession]]  # reads one file
WINDOW_S = 7.0  # 2 s of history and 5 s of horizon


def ingest(
    name: str,
    units: Iterable[Unit],
    rules: Rules,
    on_error: OnError = "fail",
    warn: Callable[[str], None] = lambda message: None,
) -> TraceSet:
    """Read, check and resample all sessions.

    Args:
        name: Name of the data set.
        units: Readers of one file each.
        rules: What to accept and what to mend.
        on_error: "fail" stops at the first bad session; "skip" leaves it out, counts it and calls ``warn``.
        warn: Takes one line for each session left out.

    Returns:
        The traces, with everything mended, dropped or skipped in ``counts``.

    Raises:
        UserError: A bad session under "fail", or no good one at all.
    """
    sessions: list[Session] = []
    counts: Counter[str] = Counter()
    source_of: dict[tuple[str, str], str] = {}
    first_problem = ""

    def refuse(error: BadTrace) -> None:
        nonlocal first_problem
        if on_error == "fail":
            raise error
        counts["skipped_" + error.reason] += 1
        first_problem = first_problem or str(error)
        warn(f"skipped: {error}")

    for unit in units:
        try:
            raws = unit()
        except BadTrace as error:
            refuse(error)
            continue
        for raw in raws:
            try:
                _check_new(raw, source_of)
                noted: Counter[str] = Counter()
                sessions.append(resample(raw, rules, noted))
                counts.update(noted)
                source_of[raw.user, raw.video] = raw.source
            except BadTrace as error:
                refuse(error)
    if not sessions:
        raise UserError(f"{name}: no usable session; the first problem was: {first_problem or 'no rows'}")
    short = sum(len(s.direction) < WINDOW_S * rules.rate_hz for s in sessions)
    counts["traces_shorter_than_a_window"] = short
    return stack_sessions(name, rules.rate_hz, sessions, {key: n for key, n in sorted(counts.items()) if n})


def _check_new(raw: RawSession, source_of: dict[tuple[str, str], str]) -> None:
    earlier = source_of.get((raw.user, raw.video))
    if earlier is not None:
        raise BadTrace(
            "duplicate", f"{raw.source}: user {raw.user}, video {raw.video} a second time, first in {earlier}"
        )
