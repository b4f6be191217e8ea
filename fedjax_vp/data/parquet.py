"""One TraceSet as one Parquet file: a row a session, ragged arrays as lists.

A file is written beside its place and then renamed, so that an interrupted import leaves none or the old one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedjax_vp.data.traces import TraceSet, natural_order
from fedjax_vp.errors import UserError

if TYPE_CHECKING:
    import polars as pl

_FORMAT = 1


def save(traces: TraceSet, path: Path) -> None:
    """Write traces to one Parquet file, whole or not at all."""
    import polars as pl

    def ragged(array: np.ndarray, dtype: type[pl.DataType]) -> pl.Series:
        rows = [array[k, :n].ravel() for k, n in enumerate(traces.length)]
        return pl.Series(rows, dtype=pl.List(dtype))

    count = traces.num_traces
    columns = {
        "format": np.full(count, _FORMAT, np.int32),
        "name": [traces.name] * count,
        "rate_hz": np.full(count, traces.rate_hz),
        "counts": [json.dumps(traces.counts)] * count,
        "user": [traces.user_ids[k] for k in traces.user],
        "video": [traces.video_ids[k] for k in traces.video],
        "t0": traces.t0,
        "length": traces.length,
        "direction": ragged(traces.direction, pl.Float32),
        "valid": ragged(traces.valid, pl.Boolean),
        **{f"label:{name}": codes for name, codes in traces.labels.items()},
        **{f"channel:{name}": ragged(channel, pl.Float32) for name, channel in traces.channels.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pl.DataFrame(columns).write_parquet(temporary, compression="lz4")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_cached(path: Path) -> TraceSet:
    """Traces written by ``save``.

    Raises:
        UserError: The file is damaged or of another version.
    """
    import polars as pl

    try:
        table = pl.read_parquet(path)
        if table["format"][0] != _FORMAT:
            raise ValueError("written by another version")
        return _unpack(table)
    except (pl.exceptions.PolarsError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: not readable as an imported data set ({reason}); import it again"
        ) from error


def _unpack(table: pl.DataFrame) -> TraceSet:
    length = table["length"].to_numpy().astype(np.int32)
    inside = np.arange(length.max())[None, :] < length[:, None]

    def padded(column: str) -> np.ndarray:
        flat = table[column].explode().to_numpy()
        rows = flat.reshape(inside.sum(), -1)
        array = np.empty((*inside.shape, rows.shape[1]), rows.dtype)
        array[inside] = rows
        last = array[np.arange(len(length)), length - 1]
        return np.where(inside[:, :, None], array, last[:, None, :])

    users, videos = natural_order(table["user"]), natural_order(table["video"])
    first = table.row(0, named=True)

    def codes(column: str, names: tuple[str, ...]) -> np.ndarray:
        index_of = {name: index for index, name in enumerate(names)}
        return np.array([index_of[value] for value in table[column]], np.int32)

    def named(prefix: str) -> list[str]:
        return [name for name in table.columns if name.startswith(prefix)]

    return TraceSet(
        name=first["name"],
        rate_hz=first["rate_hz"],
        direction=padded("direction"),
        length=length,
        t0=table["t0"].to_numpy(),
        valid=padded("valid")[:, :, 0] & inside,
        user=codes("user", users),
        video=codes("video", videos),
        user_ids=users,
        video_ids=videos,
        labels={name.removeprefix("label:"): table[name].to_numpy() for name in named("label:")},
        channels={name.removeprefix("channel:"): padded(name) for name in named("channel:")},
        counts=json.loads(first["counts"]),
    )
