"""Progress of a run on stderr: a live bar in a terminal or notebook, a line a report elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

_SHOWN_S = 1.0  # the error at the horizon nearest to this one is shown

Reporter = Callable[[Mapping[str, Any]], None]


class Progress:
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
        self._console = console or Console(stderr=True)
        self._rounds = rounds
        self._column = min(range(len(horizons_s)), key=lambda i: abs(horizons_s[i] - _SHOWN_S))
        self._error_at = f"error at {horizons_s[self._column]:g} s"
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

    def __enter__(self) -> Progress:
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
