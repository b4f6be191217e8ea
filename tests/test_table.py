"""The generic table: every form of direction, any rate, labels, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.spatial.transform import Rotation

import fedjax_vp as fvp
from fedjax_vp.data.head import direction_of_angles
from fedjax_vp.data.table import Table, from_table
from fedjax_vp.errors import UserError

TIME_S = np.arange(40) / 10
YAW = 30 * np.sin(TIME_S)
PITCH = 10 * np.cos(TIME_S)
EXPECTED = direction_of_angles(YAW[::2], PITCH[::2])  # at 5 Hz


def _frame(form: str = "xyz") -> pl.DataFrame:
    """Two users and two videos at 10 Hz, everyone moving alike, rows interleaved by time."""
    if form == "xyz":
        values = dict(zip("xyz", direction_of_angles(YAW, PITCH).T, strict=True))
    elif form == "angles":
        values = {"yaw": YAW, "pitch": PITCH}
    else:
        turn = Rotation.from_euler("ZY", np.stack([YAW, -PITCH], 1), degrees=True)
        values = dict(zip(("qw", "qx", "qy", "qz"), np.roll(turn.as_quat(), 1, axis=1).T, strict=True))
    sessions = [
        pl.DataFrame({"user": u, "video": v, "t": TIME_S, **values, "user_group": g})
        for u, g in ((10, "left"), (9, "right"))
        for v in ("b", "a")
    ]
    return pl.concat(sessions).sort("t", maintain_order=True)


def _write(frame: pl.DataFrame, path: Path) -> Path:
    frame.write_parquet(path) if path.suffix == ".parquet" else frame.write_csv(path)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("form", ["xyz", "angles", "quaternion"])
def test_forms(form: str, suffix: str, tmp_path: Path) -> None:
    path = _write(_frame(form), tmp_path / f"mine{suffix}")
    traces = from_table(path, quaternion="ros" if form == "quaternion" else "")
    assert traces.name == "mine"
    assert traces.user_ids == ("9", "10")
    assert traces.video_ids == ("a", "b")
    assert traces.direction.shape == (4, 20, 3)
    np.testing.assert_allclose(traces.direction, np.broadcast_to(EXPECTED, (4, 20, 3)), atol=1e-6)
    np.testing.assert_array_equal(traces.labels["user_group"], [1, 1, 0, 0])
    assert set(traces.channels) == ({"quaternion"} if form == "quaternion" else set())
    assert traces.counts == {"traces_shorter_than_a_window": 4}


def test_public_name_and_rate(tmp_path: Path) -> None:
    path = _write(_frame(), tmp_path / "mine.parquet")
    assert fvp.data.from_table(path, rate_hz=10.0).direction.shape == (4, 40, 3)
    radians = _frame("angles").with_columns(pl.col("yaw", "pitch").radians())
    traces = from_table(_write(radians, tmp_path / "r.csv"), angles="radians")
    np.testing.assert_allclose(traces.direction[0], EXPECTED, atol=1e-6)
    small = _frame("angles").with_columns(pl.col("yaw", "pitch") / 20)
    assert from_table(_write(small, tmp_path / "s.csv"), angles="degrees_unchecked").num_traces == 4


def test_columns_that_change_are_left_aside_and_said(tmp_path: Path) -> None:
    path = _write(_frame().with_columns(pulse=pl.col("t") * 3), tmp_path / "mine.parquet")
    said: list[str] = []
    traces = Table(path=str(path)).load(said.append)
    assert traces.counts["columns_ignored"] == 1
    assert len(said) == 1
    assert "pulse" in said[0]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_label_that_is_empty_is_unknown(suffix: str, tmp_path: Path) -> None:
    group = pl.when(pl.col("user") == 9).then(pl.lit(None)).otherwise(pl.col("user_group"))
    traces = from_table(_write(_frame().with_columns(user_group=group), tmp_path / f"mine{suffix}"))
    np.testing.assert_array_equal(traces.labels["user_group"], [-1, -1, 0, 0])


def test_the_engines_own_label_is_not_taken_from_a_column(tmp_path: Path) -> None:
    path, said = _write(_frame().with_columns(session=pl.lit("morning")), tmp_path / "mine.parquet"), []
    assert set(Table(path=str(path)).load(said.append).labels) == {"user_group"}
    assert "session" in said[0]


def _set(frame: pl.DataFrame, column: str, row: int, value: object) -> pl.DataFrame:
    values = frame[column].to_list()
    values[row] = value
    return frame.with_columns(pl.Series(column, values, strict=False))


def _one() -> pl.DataFrame:
    return _frame().filter((pl.col("user") == 9) & (pl.col("video") == "a"))


BAD_ROWS = {
    "nan": (lambda: _set(_one(), "y", 3, float("nan")), "row 4 .*NaN"),
    "missing": (lambda: _set(_one(), "y", 3, None), "row 4 .*missing"),
    "not unit": (lambda: _set(_one(), "x", 3, 1.2), "row 4 .*length 1.2"),
    "same time": (lambda: _set(_one(), "t", 3, 0.2), "row 4 .*same as in the row before"),
    "time back": (lambda: _set(_one(), "t", 3, 0.15), "row 4 .*goes back from 0.2 s"),
    "hole": (
        lambda: _one().with_columns(t=pl.when(pl.col("t") > 1).then(pl.col("t") + 2).otherwise("t")),
        "row 12 .*hole of 2.1 s",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_fail_are_skipped_or_repaired(case: str, tmp_path: Path) -> None:
    make, message = BAD_ROWS[case]
    path = _write(make(), tmp_path / "mine.parquet")
    with pytest.raises(UserError, match=message) as caught:
        from_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    repaired = from_table(path, repair=True)
    assert repaired.num_traces == 1
    del repaired.counts["traces_shorter_than_a_window"]
    assert repaired.counts
    both = pl.concat([make(), _frame().filter(pl.col("user") == 10)], how="vertical_relaxed")
    skipped = from_table(_write(both, tmp_path / "two.parquet"), on_error="skip")
    assert skipped.user_ids == ("10",)
    assert sum(n for reason, n in skipped.counts.items() if reason.startswith("skipped_")) == 1


REFUSED = {
    "no column": (lambda: _one().drop("z"), {}, "lacks column.* x, y, z or yaw, pitch"),
    "no time": (lambda: _one().drop("t"), {}, "lacks column.* t; it has user, video"),
    "text": (
        lambda: _set(_one().cast({"x": pl.String}), "x", 5, "front"),
        {},
        "row 6: x is 'front', not a number",
    ),
    "no user": (lambda: _set(_one(), "user", 2, None), {}, "row 3: user or video is empty"),
    "radians": (
        lambda: _frame("angles").with_columns(pl.col("yaw", "pitch").radians()),
        {},
        "radians where degrees",
    ),
    "steep": (lambda: _set(_frame("angles"), "pitch", 0, 95.0), {}, "row 1 .*pitch 95 lies outside"),
    "endless": (lambda: _set(_frame("angles"), "yaw", 0, float("inf")), {}, "row 1 .*infinite"),
    "convention": (lambda: _frame("quaternion"), {}, "state their convention"),
    "twice": (lambda: pl.concat([_one(), _one()]), {}, "row 41 .*twice"),
    "short": (lambda: _one().head(1), {}, "too short"),
    "time of day": (lambda: _one().with_columns(pl.col("t") + 1.6e9), {}, r"1\.6e\+09 s is beyond any video"),
    "lists": (lambda: _one().with_columns(user=pl.lit([9])), {}, "user holds lists"),
    "milliseconds": (lambda: _one().with_columns(pl.col("t") * 1000), {}, "hole of 100 s"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_tables_that_are_refused(case: str, tmp_path: Path) -> None:
    make, settings, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        from_table(_write(make(), tmp_path / "mine.parquet"), **settings)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        from_table(tmp_path / "absent.csv")
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot be read as a table"):
        from_table(tmp_path / "x.parquet")
    (tmp_path / "x.xlsx").write_bytes(b"")
    with pytest.raises(UserError, match=r"from \.parquet or \.csv, not from \.xlsx"):
        from_table(tmp_path / "x.xlsx")
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read as a table"):
        from_table(tmp_path / "empty.csv")
    (tmp_path / "header.csv").write_text("user,video,t,x,y,z\n")
    with pytest.raises(UserError, match="no usable session"):
        from_table(tmp_path / "header.csv")


def test_csv_rows_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("user,video,t,x,y,z\na,v,0,1,0,0\na,v,0.2,1,0,0,9\n")
    with pytest.raises(UserError, match=r"row 3: 7 column\(s\) where the header has 6"):
        from_table(path)
    path.write_text("user,video,t,x,y,z\na,v,0,1,0,0\na,v,0.2,1,0\n")
    with pytest.raises(UserError, match="row 3"):
        from_table(path)
    path.write_text("user,video,t,x,y,z\na,v,0,1,0,0\na,v,0.2,1,one,0\n")
    with pytest.raises(UserError, match="row 3: y is 'one'"):
        from_table(path)


def test_rate_is_checked() -> None:
    with pytest.raises(ValueError, match="rate_hz"):
        Table(path="x.csv", rate_hz=-1.0)
