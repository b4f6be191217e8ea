"""`fedjax-vp data`: list, describe, import and download viewing traces."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fedjax_vp.data.traces import TraceSet

_Item = TypeVar("_Item")
_RATE = click.FloatRange(min=0, max=1000, min_open=True)


@click.group()
def data() -> None:
    """List, describe, import and download viewing traces."""


@data.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """Known data sets, and what is imported."""
    from fedjax_vp.data.importers import layouts
    from fedjax_vp.data.store import cached

    rows = [
        {"name": layout.name, "title": layout.title, "license": layout.license, "rates_hz": []}
        for layout in layouts().values()
    ]
    row_of = {row["name"]: row for row in rows}
    for name, rate_hz, _ in cached():
        if name not in row_of:
            row_of[name] = {"name": name, "title": "a table of your own", "license": "", "rates_hz": []}
            rows.append(row_of[name])
        row_of[name]["rates_hz"].append(rate_hz)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    _print_table(
        ("name", "imported at", "published as", "license"),
        [
            (r["name"], ", ".join(f"{x:g} Hz" for x in r["rates_hz"]) or "-", r["title"], r["license"])
            for r in rows
        ],
    )


@data.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--figures", type=click.Path(file_okay=False, path_type=Path), help="Draw figures into this folder."
)
@click.option("--rate", type=_RATE, default=5.0, show_default=True, help="Samples a second of the import.")
@click.option(
    "--root", type=click.Path(path_type=Path), help="Published files to read in place of the import."
)
def info(name: str, as_json: bool, figures: Path | None, rate: float, root: Path | None) -> None:
    """Describe data set NAME (or a .parquet or .csv table): counts, durations, speeds, no-motion errors."""
    from fedjax_vp.data.inspect import summary
    from fedjax_vp.data.store import load
    from fedjax_vp.data.table import SUFFIXES, Table

    if root is None and Path(name).suffix.lower() in SUFFIXES:
        traces = Table(path=name, rate_hz=rate).load(_warn)
    else:
        traces = load(name, root, rate)
    numbers = summary(traces)
    click.echo(json.dumps(numbers, indent=2)) if as_json else _print_summary(numbers)
    if figures:
        from fedjax_vp.data.figures import draw

        for file in draw(traces, figures):
            click.echo(f"wrote {file}", err=True)


@data.command("import")
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--rate", type=_RATE, default=5.0, show_default=True, help="Samples a second to resample to.")
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="Stop at the first bad session, or leave it out and report it.",
)
@click.option("--repair", is_flag=True, help="Tables: mend order, holes, missing rows and lengths; counted.")
@click.option(
    "--angles",
    type=click.Choice(["degrees", "radians", "degrees_unchecked"]),
    help="Tables: unit of yaw and pitch. [default: degrees]",
)
@click.option(
    "--quaternion", type=click.Choice(["unity", "opengl", "ros"]), help="Tables: convention of qw..qz."
)
def import_(name: str, path: Path, **options: Any) -> None:
    """Check, resample and cache data set NAME from PATH.

    PATH is the folder or archive (.zip, .tar.gz) of a known data set in its published layout, or a .parquet
    or .csv table of your own under any NAME.
    """
    from fedjax_vp.data.parquet import save
    from fedjax_vp.data.store import cache_path, read_original

    started = time.perf_counter()
    target = cache_path(name, options["rate"])
    options = {key: value for key, value in options.items() if value is not None}
    traces = read_original(name, path, rate_hz=options.pop("rate"), warn=_warn, watch=_watch, **options)
    save(traces, target)
    click.echo(
        f"imported {traces.num_traces} sessions ({traces.num_users} users, {traces.num_videos} videos) at "
        f"{traces.rate_hz:g} Hz in {time.perf_counter() - started:.1f} s to {target}"
    )
    _print_counts(traces)


@data.command()
@click.argument("name")
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder for the archive. [default: here]",
)
@click.option("--url", help="A mirror in place of the published address.")
def download(name: str, folder: Path, url: str | None) -> None:
    """Fetch the published files of data set NAME; an interrupted download goes on."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from fedjax_vp.data.download import download as fetch_data_set

    columns = (TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=None)
        path = fetch_data_set(
            name, folder, url, lambda done, total: progress.update(task, completed=done, total=total or None)
        )
    click.echo(f"{path} is the published {name}; next: fedjax-vp data import {name} {path}")


def _warn(message: str) -> None:
    click.echo(message, err=True)


def _watch(items: Iterable[_Item], expected: int) -> Iterator[_Item]:
    """A progress bar on the terminal, gone when done; nothing where there is no terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(
        items, "reading", total=expected, console=console, transient=True, disable=not console.is_terminal
    )


def _print_counts(traces: TraceSet) -> None:
    for reason, number in traces.counts.items():
        click.echo(f"  {reason.replace('_', ' ')}: {number}")


def _print_summary(numbers: dict[str, Any]) -> None:
    lines = [
        ("users, videos, sessions", f"{numbers['users']}, {numbers['videos']}, {numbers['sessions']}"),
        ("rate", f"{numbers['rate_hz']:g} Hz"),
        ("recorded", f"{numbers['hours']:.1f} h, {numbers['samples']} samples"),
        ("session lasts", "{min:.1f} to {max:.1f} s, median {median:.1f} s".format(**numbers["duration_s"])),
        ("too short for a window", str(numbers["sessions_without_window"])),
        ("speed (deg/s)", ", ".join(f"{q} {value:.1f}" for q, value in numbers["speed_deg_per_s"].items())),
        ("labels, channels", ", ".join([*numbers["labels"], *numbers["channels"]]) or "none"),
        *((reason.replace("_", " "), str(number)) for reason, number in numbers["counts"].items()),
    ]
    _print_table((numbers["name"], ""), lines)
    errors = [
        (f"{horizon} s", "-" if error is None else f"{error:.2f}")
        for horizon, error in numbers["no_motion_deg"].items()
    ]
    _print_table(("horizon", "no-motion error (deg)"), errors)
    click.echo(f"{numbers['windows']} windows from 6 s on, stride 1")


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
