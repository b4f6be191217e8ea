"""Tables of results: for the terminal, as Markdown and as CSV, from one description."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from fedjax_vp.errors import UserError
from fedjax_vp.report.folder import BASELINES, RunFolder, pretty

MISSING = "–"
_MIN_WIDTH = 118  # where output is not a terminal, wide enough for nine columns


class Table(NamedTuple):
    """Text cells; the first column names the row, the others hold numbers. A cell may have two lines."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """GitHub-flavored Markdown, with the title and notes around it."""
        lines = [f"**{self.title}**", "", _markdown_row(self.columns)]
        lines.append(_markdown_row(["---", *["--:"] * (len(self.columns) - 1)]))
        lines += [_markdown_row(row) for row in self.rows]
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Comma-separated values with a header line."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_flat(cell) for cell in row] for row in self.rows)
        return out.getvalue()

    def rich(self) -> RichTable:
        """The table as Rich draws it."""
        table = RichTable(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(self.columns[0], overflow="fold")
        for column in self.columns[1:]:
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table


def show(table: Table, console: Console | None = None) -> None:
    """Print a table and its notes."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _MIN_WIDTH)
    console.print(table.rich())
    for note in table.notes:
        console.print(note, highlight=False)


def write(table: Table, path: Path) -> Path:
    """Write a table as Markdown or CSV, by the path's suffix.

    Raises:
        UserError: The suffix is another.
    """
    texts = {".md": table.markdown, ".csv": table.csv}
    if path.suffix not in texts:
        raise UserError(f"{path}: no such kind of table; end the name in .md or .csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(texts[path.suffix](), "utf-8")
    return path


def run_table(run: RunFolder) -> Table:
    """A run's own method, those compared beside it and the baselines: mean error, bytes, users hurt."""
    summary = run.summary
    rows = [
        _row(run.label, summary["error_deg"]["mean"], summary, summary.get("hurt_share")),
        *(
            _row(method, columns["mean"].tolist(), _first(columns), _first(columns).get("hurt_share"))
            for method, columns in run.compared().items()
        ),
        *(_row(pretty(name), mean, {}, None) for name, mean in run.baselines.items()),
    ]
    title = (
        f"Mean great-circle error in degrees: {describe(summary['dataset'])}, "
        f"{describe(summary['protocol'])}, {summary['rounds']} rounds, seed {summary['seed']}"
    )
    return Table(title, header(run.horizons_s), tuple(rows), _notes(run))


def tail_table(run: RunFolder) -> Table | None:
    """Errors by client, by user and of the worst tenth, and tile scores; None for a folder without them."""
    kept = run.compare
    if "worst_decile" not in kept.columns:
        return None
    longest = max(run.horizons_s)
    tiles_s = kept.filter(pl.col("iou").is_not_null())["horizon_s"].unique().sort().to_list()
    rows = []
    for (method,), part in kept.group_by("method", maintain_order=True):
        at = {row["horizon_s"]: row for row in part.to_dicts()}
        errors = [degrees(at[longest][key]) for key in ("by_client", "by_user", "worst_decile")]
        scores = [f"{at[h]['f1']:.3f} / {at[h]['iou']:.3f}" for h in tiles_s]
        rows.append((pretty(str(method)), *errors, *scores))
    columns = ("method", "by client", "by user", "worst tenth", *(f"F1 / IoU {h:g} s" for h in tiles_s))
    title = f"Mean error at {longest:g} s in degrees by client, by user, of the worst tenth; tiles seen"
    rows.sort(key=lambda row: (row[0] in BASELINES, row[0] != run.label))
    return Table(title, columns, tuple(rows))


def cost_table(run: RunFolder) -> Table | None:
    """Bytes and time by depth of the hierarchy; None for a folder without them."""
    summary = run.summary
    if "depths" not in summary:
        return None
    depths, rounds = summary["depths"], max(int(summary["rounds"]), 1)
    rows = [
        (f"{'+ ' if index else ''}{name}", f"{groups}", *map(size, sizes), f"{1000 * latency:.3f}")
        for index, (name, groups, *sizes, latency) in enumerate(
            zip(
                *(depths[key] for key in ("level", "groups", "server_bytes", "headset_bytes", "sent_bytes")),
                summary["latency_s"],
                strict=True,
            )
        )
    ]
    up, down = (size(summary[key] / rounds) for key in ("bytes_up", "bytes_down"))
    notes = (
        f"server, headset: models stored; sent: each way, by a client and round; prediction: one window on "
        f"this CPU, median; a round sends {up} up and {down} down and spends "
        f"{summary.get('clustering_s', 0.0) / rounds:.3f} s on clustering",
    )
    columns = ("cost by depth", "groups", "server", "headset", "sent", "prediction (ms)")
    return Table(f"Cost of {run.label} by depth", columns, tuple(rows), notes)


def of_run(run: RunFolder) -> list[Table]:
    """Every table of a run."""
    return [table for table in (run_table(run), tail_table(run), cost_table(run)) if table is not None]


def header(horizons_s: Sequence[float]) -> tuple[str, ...]:
    """Columns of a table of methods over horizons."""
    return ("method", *(f"{h:g} s" for h in horizons_s), "up", "down", "hurt")


def degrees(value: float) -> str:
    """An error with two decimals.

    >>> degrees(12.744), degrees(float("nan"))
    ('12.74', '–')
    """
    return f"{value:.2f}" if np.isfinite(value) else MISSING


def size(num_bytes: int | float | None) -> str:
    """Bytes in a readable unit.

    >>> size(2_100_000), size(999), size(None)
    ('2.1 MB', '999 B', '–')
    """
    if num_bytes is None or not np.isfinite(num_bytes):
        return MISSING
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return (
                f"{num_bytes / scale:.3g} {unit}"
                if num_bytes < 999.5 * scale
                else f"{num_bytes / scale:.0f} {unit}"
            )
    return f"{num_bytes:.0f} B"


def percent(share: int | float | None) -> str:
    """A share in percent.

    >>> percent(0.125), percent(None)
    ('12.5 %', '–')
    """
    return MISSING if share is None or not np.isfinite(share) else f"{100 * share:.1f} %"


def describe(part: Any) -> str:
    """Name of a dataset or protocol, given as a name or as settings.

    >>> describe("jin_mmsys22"), describe({"kind": "table", "path": "a.csv"})
    ('jin_mmsys22', 'table')
    """
    if isinstance(part, Mapping):
        return str(part.get("name") or part.get("kind"))
    return str(part)


def _row(method: str, mean: Sequence[float], sent: Mapping[str, Any], hurt: float | None) -> tuple[str, ...]:
    up, down = size(sent.get("bytes_up")), size(sent.get("bytes_down"))
    return (method, *(degrees(float(value)) for value in mean), up, down, percent(hurt))


def _first(columns: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """What a method's rows repeat at every horizon."""
    first = {name: column[0] for name, column in columns.items()}
    return {name: None if value is None else float(value) for name, value in first.items()}


def _notes(run: RunFolder) -> tuple[str, ...]:
    summary = run.summary
    counts = f"{summary['num_clients']} clients, {summary['num_params']} parameters"
    notes = [f"up, down: bytes of the whole run; {counts}"]
    if summary.get("adapt_s"):
        notes.append(f"adapted on the first {summary['adapt_s']:g} s of each test session")
    if summary.get("hurt_share") is not None or run.compared():
        notes.append("hurt: share of users whose mean error over 1-5 s is above FedAvg's by more than 0.5°")
    return tuple(notes)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_flat(cell).replace("|", "\\|") for cell in cells) + " |"


def _flat(cell: str) -> str:
    return cell.replace("\n", " ")
