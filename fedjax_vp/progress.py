"""Progress of a run on stderr: a live bar in a terminal or notebook, a line a report elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

_SHOWN_S = 1.0  # the error at the horizon nearest to this one is shown
_LINE_S = 10.0  # between lines, where there is no terminal

_Display = TypeVar("_Display", bound="_Shown")
Reporter = Callable[[Mapping[str, Any]], None]


class _Shown:
    """A live display in a terminal or notebook, lines elsewhere, or nothing."""

    def __init__(self, enabled: bool, console: Console | None) -> None:
        self._console = console or Console(stderr=True)
        live = enabled and (self._console.is_terminal or self._console.is_jupyter)
        self._lines = enabled and not live
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[news]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not live,
        )

    def __enter__(self: _Display) -> _Display:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def note(self, text: str) -> None:
        """Says something that is worth knowing, above the bars."""
        if self._lines or not self._bars.disable:
            self._console.print(f"note: {text}", highlight=False, soft_wrap=True)


class Progress(_Shown):
    """Bars of one or more methods.

    Args:
        rounds: Rounds of each method.
        horizons_s: Horizons of the reports' `error_deg`.
        enabled: Whether anything is shown.
        console: Where to; stderr by default.
    """

    def __init__(
        self, rounds: int, horizons_s: Sequence[float], enabled: bool = True, console: Console | None = None
    ) -> None:
        super().__init__(enabled, console)
        self._rounds = rounds
        self._column = min(range(len(horizons_s)), key=lambda i: abs(horizons_s[i] - _SHOWN_S))
        self._error_at = f"error at {horizons_s[self._column]:g} s"

    def reporter(self, method: str) -> Reporter:
        """What a simulation calls with rounds done (`round`) and, where known, `loss` and `error_deg`."""
        bar = self._bars.add_task(method, total=self._rounds, news="compiling")
        known: dict[str, str] = {}

        def report(facts: Mapping[str, Any]) -> None:
            if facts.get("loss") is not None:
                known["loss"] = f"loss {float(facts['loss']):.4f}"
            if facts.get("error_deg") is not None:
                known["error"] = f"{self._error_at} {float(facts['error_deg'][self._column]):.2f}°"
            stage = facts.get("stage")  # what is done beside the rounds: shown in the bar alone
            news = stage or ", ".join(known.values())
            self._bars.update(bar, completed=int(facts["round"]), news=news)
            if self._lines and not stage:
                line = f"{method}: round {int(facts['round'])} of {self._rounds}, {news}"
                self._console.print(line, highlight=False, soft_wrap=True)

        return report


class Tally(_Shown):
    """One bar for many runs: rounds of all of them, runs ended, time left.

    Args:
        name: What is run.
        rounds: Rounds of each run, by its folder.
        enabled: Whether anything is shown.
        console: Where to; stderr by default.
    """

    def __init__(
        self, name: str, rounds: Mapping[Path, int], enabled: bool = True, console: Console | None = None
    ) -> None:
        super().__init__(enabled, console)
        self._name, self._rounds = name, dict(rounds)
        self._done = dict.fromkeys(rounds, 0)
        self._ended: set[Path] = set()
        self._found: dict[Path, int] = {}  # rounds that were done before: they tell nothing of the speed
        self._begun = time.perf_counter()
        self._told = self._begun
        self._bar = self._bars.add_task(name, total=sum(self._rounds.values()), news="compiling")

    def report(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Takes what a simulation tells of a run."""
        if "stage" in facts:
            return
        self._found.setdefault(folder, self._done[folder])
        self._done[folder] = int(facts["round"])
        self._tell(_LINE_S)

    def end(self, folder: Path, failed: str = "", before: bool = False) -> None:
        """A run has ended: it failed for this reason, was finished before, or is finished now."""
        if before:
            self._found[folder] = self._rounds[folder]
        self._done[folder] = self._rounds[folder]
        self._ended.add(folder)
        if failed:
            self.note(f"{folder.name} failed: {failed}")
        if not before:
            self._tell(0.0)

    def _tell(self, least_s: float) -> None:
        now, done, total = time.perf_counter(), sum(self._done.values()), sum(self._rounds.values())
        news = f"{len(self._ended)} of {len(self._rounds)} runs"
        self._bars.update(self._bar, completed=done, news=news)
        if self._lines and now - self._told >= least_s:
            self._told = now
            fresh = done - sum(self._found.values())
            left = (now - self._begun) / fresh * (total - done) if fresh > 0 else float("nan")
            text = f"{self._name}: {news}, round {done} of {total}"
            text += f", about {duration(left)} left" if left > 0 else ""
            self._console.print(text, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(42.0), duration(600.0), duration(9000.0)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
