"""Data sets by name: their published files, and what was imported from them into the user's cache.

Imports lie under ``$XDG_CACHE_HOME/fedjax_vp`` (default ``~/.cache/fedjax_vp``), named after set and rate.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from fedjax_vp.data.importers import Layout, layouts
from fedjax_vp.data.ingest import OnError, Unit, ingest
from fedjax_vp.data.parquet import read_cached
from fedjax_vp.data.resample import Rules
from fedjax_vp.data.sources import read_files
from fedjax_vp.data.table import SUFFIXES, Table
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.errors import UserError
from fedjax_vp.suggest import nearest, suggestion

NAMES = ("wu_mmsys17", "jin_mmsys22", "david_mmsys18", "avtrack360")
_Item = TypeVar("_Item")
Watch = Callable[[Iterable[_Item], int], Iterable[_Item]]  # (items, expected number) -> the same items


@dataclass(frozen=True)
class Named:
    """One of the known data sets.

    Attributes:
        kind: Name of the data set.
        root: Folder or archive in the published layout, read afresh at each load; by default the imported
            copy in the cache is used.
        rate_hz: Samples a second.
    """

    kind: Literal["wu_mmsys17", "jin_mmsys22", "david_mmsys18", "avtrack360"]
    root: str | None = None
    rate_hz: float = 5.0

    def __post_init__(self) -> None:
        """Refuse a rate that is no rate.

        Raises:
            ValueError: ``rate_hz`` is not within (0, 1000].
        """
        Rules(rate_hz=self.rate_hz)

    def load(self) -> TraceSet:
        """The traces.

        Raises:
            UserError: Neither imported yet nor readable at ``root``.
        """
        return load(self.kind, self.root, self.rate_hz)


def load(name: str, root: str | Path | None = None, rate_hz: float = 5.0) -> TraceSet:
    """Traces of a data set that was imported, or straight from its published files.

    Args:
        name: A known data set, or the name under which a table was imported.
        root: Folder or archive in the published layout (or a table), read without touching the cache.
        rate_hz: Samples a second.

    Returns:
        The traces.

    Raises:
        UserError: Not imported yet, an unknown name, or unreadable files.
    """
    if root is not None:
        return read_original(name, Path(root), rate_hz=rate_hz)
    path = cache_path(name, rate_hz)
    if not path.exists():
        rate = "" if rate_hz == 5.0 else f" --rate {rate_hz:g}"
        near = None if name in NAMES else nearest(name, NAMES)
        hint = f"; or did you mean {near}?" if near else ""
        raise UserError(
            f"data set {name} is not imported at {rate_hz:g} Hz; run: fedjax-vp data import {name} PATH{rate}"
            f" (PATH: the published folder, archive or table){hint}"
        )
    return read_cached(path)


def read_original(
    name: str,
    path: Path,
    *,
    rate_hz: float = 5.0,
    on_error: OnError = "fail",
    warn: Callable[[str], None] = lambda message: None,
    watch: Watch[Unit] = lambda units, expected: units,
    **table: Any,
) -> TraceSet:
    """Read, check and resample published files, or a table under a name of one's own.

    Args:
        name: A known data set, or any name for a table.
        path: Folder or archive in the published layout; or a .parquet or .csv table.
        rate_hz: Samples a second.
        on_error: "fail" at the first bad session, or "skip" it and count it.
        warn: Takes one line for each thing skipped.
        watch: Wraps the readers of files, to show progress.
        table: Further settings of ``Table``, for a table.

    Returns:
        The traces.

    Raises:
        UserError: No such files, or a bad session under "fail".
    """
    if name not in NAMES:
        _check_table(name, path)
        settings = Table(path=str(path), rate_hz=rate_hz, on_error=on_error, **table)
        return replace(settings.load(warn), name=name)
    refused = next((option for option in ("repair", "angles", "quaternion") if table.get(option)), None)
    if refused:
        raise UserError(
            f"--{refused} is for tables; {name} is read and mended as its publication is known to need: "
            "leave it out"
        )
    layout = layouts()[name]
    units = watch(_units(layout, path), layout.num_files)
    return ingest(name, units, replace(layout.rules, rate_hz=rate_hz), on_error, warn)


def _units(layout: Layout, path: Path) -> Iterator[Unit]:
    found = False
    for file in read_files(path, layout.pattern):
        found = True
        yield partial(layout.parse, *file)
    if not found:
        raise UserError(f"{path}: no file of {layout.name} in it; it should hold {layout.expected}")


def _check_table(name: str, path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"unknown data set {name!r}: {suggestion(name, NAMES)}; "
            "a name of your own is for a .parquet or .csv table"
        )


def cache_dir() -> Path:
    """Folder of imported data sets."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fedjax_vp"


def cache_path(name: str, rate_hz: float = 5.0) -> Path:
    """File of an imported data set.

    Raises:
        UserError: The name cannot be a file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UserError(f"{name!r} is no name for a data set; use letters, digits, '_', '-' and '.'")
    return cache_dir() / f"{name}-{rate_hz:g}hz.parquet"


def cached() -> list[tuple[str, float, Path]]:
    """Imported data sets: name, rate in Hz, file."""
    found = []
    for path in sorted(cache_dir().glob("*hz.parquet")):
        if match := re.fullmatch(r"(.+)-([\d.e+-]+)hz\.parquet", path.name):
            found.append((match[1], float(match[2]), path))
    return found
