"""Progress: plain lines where there is no terminal, silence on demand."""

from __future__ import annotations

import io

from rich.console import Console

from fedjax_vp.progress import Progress


def shown(enabled: bool, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    with Progress(10, (0.2, 1.0, 5.0), enabled, console) as bar:
        report = bar.reporter("fedavg")
        report({"round": 4, "loss": 0.25})
        report({"round": 10, "loss": 0.125, "error_deg": [1.0, 2.5, 9.0]})
    return out.getvalue()


def test_lines_where_there_is_no_terminal() -> None:
    assert shown(True, False).splitlines()[:2] == [
        "fedavg: round 4 of 10, loss 0.2500",
        "fedavg: round 10 of 10, loss 0.1250, error at 1 s 2.50°",
    ]


def test_a_bar_in_a_terminal() -> None:
    text = shown(True, True)
    assert "10/10" in text
    assert "error at 1 s 2.50°" in text


def test_silence() -> None:
    assert shown(False, False).strip() == ""
    assert "fedavg" not in shown(False, True)


def test_notes_stand_above_the_bars() -> None:
    out = io.StringIO()
    with Progress(10, (1.0,), True, Console(file=out, width=60)) as bar:
        bar.note("a long text that says what is worth knowing and is not broken into lines")
    with Progress(10, (1.0,), False, Console(file=out, width=60)) as bar:
        bar.note("nothing of this")
    assert out.getvalue().startswith(
        "note: a long text that says what is worth knowing and is not broken into lines\n"
    )
    assert "nothing" not in out.getvalue()
