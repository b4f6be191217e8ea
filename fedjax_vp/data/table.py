"""The generic table: anyone's traces brought into columns, as Parquet or CSV.

Columns ``user``, ``video``, ``t`` (s) and one of

- ``x, y, z``: unit vectors, x to the front, y to the left, z up;
- ``yaw, pitch``: degrees, yaw positive to the left, pitch positive upwards;
- ``qw, qx, qy, qz``: the head's quaternion in a stated convention (``head.py``).

Rows of a session stand in order of time; sessions may be interleaved and sampled at any rate. A further
column that is constant within every session becomes a label, unknown where it is empty; others are left
aside, said and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedjax_vp.data.head import QUATERNION_CONVENTIONS, direction_of_angles, direction_of_quaternion
from fedjax_vp.data.importers import looks_like_radians
from fedjax_vp.data.ingest import ingest
from fedjax_vp.data.resample import BadTrace, RawSession, Rules
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.errors import UserError

if TYPE_CHECKING:
    import polars as pl

_KEYS = ("user", "video", "t")
_FORMS = (("x", "y", "z"), ("yaw", "pitch"), ("qw", "qx", "qy", "qz"))
_NO_LABELS = ("session",)  # the engine's own label, one group a session
SUFFIXES = (".parquet", ".csv")


def _silent(message: str) -> None:
    del message


@dataclass(frozen=True)
class Table:
    """A Parquet or CSV file of traces.

    Attributes:
        kind: Tag of the settings.
        path: The file.
        rate_hz: Samples a second after resampling.
        repair: Drop rows out of order or not finite, normalize vectors, keep the longest piece between holes.
        on_error: "fail" at the first bad session, or "skip" it and count it.
        angles: Unit of yaw and pitch; "degrees" refuses a table that looks like radians, "degrees_unchecked"
            takes it as it is.
        quaternion: Convention of qw, qx, qy, qz: "unity", "opengl" or "ros"; must be stated to use them.
    """

    kind: Literal["table"] = "table"
    path: str = ""
    rate_hz: float = 5.0
    repair: bool = False
    on_error: Literal["fail", "skip"] = "fail"
    angles: Literal["degrees", "radians", "degrees_unchecked"] = "degrees"
    quaternion: Literal["", "unity", "opengl", "ros"] = ""

    def __post_init__(self) -> None:
        """Refuse a rate that is no rate.

        Raises:
            ValueError: ``rate_hz`` is not within (0, 1000].
        """
        Rules(rate_hz=self.rate_hz)

    def load(self, warn: Callable[[str], None] = _silent) -> TraceSet:
        """Read, check and resample the file.

        Args:
            warn: Takes one line for each session skipped and for columns left aside.

        Returns:
            The traces, named after the file.

        Raises:
            UserError: The file is absent, unreadable, lacks a column, or a session is bad.
        """
        path = Path(self.path)
        table = _read(path)
        form = _form(path, table.columns)
        if form == _FORMS[2] and not self.quaternion:
            raise UserError(
                f"{path}: has quaternions; state their convention, quaternion: "
                + " or ".join(QUATERNION_CONVENTIONS)
            )
        table = _numbers(path, table, ("t", *form))
        if form == _FORMS[1] and self.angles == "degrees":
            _refuse_radians(path, table)
        labels, ignored = _labels(table, form)
        if ignored:
            reason = "they change within a session, hold fractions or have a name of ours"
            warn(f"{path}: columns not used ({reason}): {', '.join(ignored)}")
        units = [
            partial(_session, self, form, labels, group)
            for group in table.partition_by("user", "video", maintain_order=True)
        ]
        rules = Rules(self.rate_hz, mend_order=self.repair, mend_holes=self.repair, mend_rows=self.repair)
        traces = ingest(path.stem, units, rules, self.on_error, warn)
        return (
            replace(traces, counts=traces.counts | Counter(columns_ignored=len(ignored)))
            if ignored
            else traces
        )


def from_table(path: str | Path, **settings: Any) -> TraceSet:
    """Traces of a Parquet or CSV file with columns user, video, t and x, y, z or yaw, pitch (degrees).

    Args:
        path: The file.
        settings: Further settings of ``Table``.

    Returns:
        The traces at 5 Hz, or at ``rate_hz``.
    """
    return Table(path=str(path), **settings).load()


def _read(path: Path) -> pl.DataFrame:
    """The file with row numbers in column "_row", as an editor counts them (a CSV's header is row 1)."""
    import polars as pl

    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .parquet or .csv table")
    try:
        if path.suffix.lower() == ".parquet":
            return pl.read_parquet(path).with_row_index("_row", offset=1)
        if path.suffix.lower() == ".csv":
            return pl.read_csv(path, infer_schema=False).with_row_index("_row", offset=2)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise UserError(_unreadable(path, str(error).splitlines()[0])) from error
    raise UserError(f"{path}: tables are read from .parquet or .csv, not from {path.suffix or 'this'}")


def _unreadable(path: Path, reason: str) -> str:
    if path.suffix.lower() == ".csv":
        lines = path.read_text(errors="replace").splitlines()
        width = lines[0].count(",") if lines else 0
        for number, line in enumerate(lines, start=1):
            if line.count(",") != width and '"' not in line:
                return (
                    f"{path}: row {number}: {line.count(',') + 1} column(s) where the header has {width + 1}"
                )
    return f"{path}: cannot be read as a table: {reason}"


def _form(path: Path, columns: list[str]) -> tuple[str, ...]:
    missing = [name for name in _KEYS if name not in columns]
    form = next((form for form in _FORMS if set(form) <= set(columns)), None)
    if missing or form is None:
        lacking = ", ".join(missing) or "x, y, z or yaw, pitch or qw, qx, qy, qz"
        found = ", ".join(name for name in columns if name != "_row")
        raise UserError(f"{path}: lacks column(s) {lacking}; it has {found}")
    return form


def _numbers(path: Path, table: pl.DataFrame, columns: tuple[str, ...]) -> pl.DataFrame:
    """Names as text and the rest as numbers; what is missing becomes NaN and is dealt with by session."""
    import polars as pl

    nested = [name for name in ("user", "video", *columns) if table[name].dtype.is_nested()]
    if nested:
        raise UserError(f"{path}: {nested[0]} holds lists or records: give one text or number a row")
    cast = table.with_columns(
        *(pl.col(name).cast(pl.String) for name in ("user", "video")),
        *(pl.col(name).cast(pl.Float64, strict=False).fill_null(float("nan")) for name in columns),
    )
    for name in columns:
        no_number = table.filter(cast[name].is_nan() & table[name].is_not_null())
        texts = no_number[name].cast(pl.String)
        wrong = ~texts.str.strip_chars().str.to_lowercase().is_in(["nan", ""])
        if wrong.any():
            row = no_number.filter(wrong).row(0, named=True)
            raise UserError(f"{path}: row {row['_row']}: {name} is {str(row[name])[:40]!r}, not a number")
    nameless = cast.filter(pl.col("user").is_null() | pl.col("video").is_null())
    if len(nameless):
        raise UserError(f"{path}: row {nameless['_row'][0]}: user or video is empty")
    return cast


def _refuse_radians(path: Path, table: pl.DataFrame) -> None:
    if looks_like_radians(table["yaw"].to_numpy(), table["pitch"].to_numpy()):
        raise UserError(
            f"{path}: yaw and pitch never pass 6.3: radians where degrees are declared; "
            "set angles: radians (or degrees_unchecked if they are degrees)"
        )


def _labels(table: pl.DataFrame, form: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Further columns that are constant within every session, and those that are not."""
    import polars as pl

    extra = [name for name in table.columns if name not in {*_KEYS, *form, "_row"}]
    if not extra:
        return [], []
    distinct = (
        table.group_by("user", "video").agg(pl.col(extra).n_unique()).select(pl.col(extra).max()).row(0)
    )
    constant = [
        name
        for name, n in zip(extra, distinct, strict=True)
        if n == 1 and not table[name].dtype.is_float() and name not in _NO_LABELS
    ]
    return constant, [name for name in extra if name not in constant]


def _session(
    settings: Table, form: tuple[str, ...], labels: list[str], rows: pl.DataFrame
) -> list[RawSession]:
    user, video = str(rows["user"][0]), str(rows["video"][0])
    values = rows.select(form).to_numpy()
    row = rows["_row"].to_numpy().astype(np.int64)
    channels = {}
    if form == _FORMS[1]:
        angles = np.degrees(values) if settings.angles == "radians" else values
        steep = np.abs(angles[:, 1]) > 90.01
        if steep.any():
            at = int(steep.argmax())
            raise BadTrace(
                "angles",
                f"{settings.path}: row {row[at]} (user {user}, video {video}): "
                f"pitch {angles[at, 1]:g} lies outside [-90, 90] degrees",
            )
        values = direction_of_angles(*np.where(np.isfinite(angles), angles, np.nan).T)
    elif form == _FORMS[2]:
        channels = {"quaternion": values}
        values = direction_of_quaternion(values, settings.quaternion)
    return [
        RawSession(
            user=user,
            video=video,
            source=settings.path,
            row=row,
            time_s=rows["t"].to_numpy(),
            direction=values,
            channels=channels,
            labels={name: "" if rows[name][0] is None else str(rows[name][0]) for name in labels},
        )
    ]
