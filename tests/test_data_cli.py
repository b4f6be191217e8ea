"""`fedjax-vp data`: import, info, list and download as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fedjax_vp.commands.data import data
from fedjax_vp.data.head import direction_of_angles
from fedjax_vp.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fedjax_vp"


@pytest.fixture
def david(tmp_path: Path) -> Path:
    """Two users turning left at 10 degrees a second for 20 s."""
    time_s = np.arange(100) / 5
    directions = direction_of_angles(10 * time_s, np.zeros(100)) * np.array([-1.0, 1, 1])
    for user in ("3", "20"):
        file = tmp_path / "copy" / "sampled_dataset" / "1_Porto" / user
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = (f"{t},{x},{y},{z}\n" for t, (x, y, z) in zip(time_s, directions, strict=True))
        file.write_text("".join(lines))
    return tmp_path / "copy"


def _call(*words: object, fails: bool = False) -> Result:
    result = CliRunner().invoke(data, [str(word) for word in words])
    if fails:
        assert isinstance(result.exception, UserError)
    elif result.exception:
        raise result.exception
    return result


def test_import_then_info(david: Path, cache: Path) -> None:
    result = _call("import", "david_mmsys18", david)
    assert "imported 2 sessions (2 users, 1 videos) at 5 Hz" in result.stdout
    assert (cache / "david_mmsys18-5hz.parquet").is_file()
    numbers = json.loads(_call("info", "david_mmsys18", "--json").stdout)
    assert {key: numbers[key] for key in ("users", "videos", "sessions", "rate_hz")} == {
        "users": 2,
        "videos": 1,
        "sessions": 2,
        "rate_hz": 5.0,
    }
    errors = {horizon: 10 * float(horizon) for horizon in ("0.2", "0.4", "0.6", "1", "2", "3", "4", "5")}
    assert numbers["no_motion_deg"] == pytest.approx(errors, abs=1e-3)
    assert numbers["windows"] == 2 * (100 - 25 - 30)
    assert numbers["speed_deg_per_s"]["p50"] == pytest.approx(10, abs=1e-2)
    text = _call("info", "david_mmsys18").stdout
    assert "50.00" in text
    assert "19.8" in text or "20.0" in text


def test_info_without_any_window(tmp_path: Path) -> None:
    table = tmp_path / "short.csv"
    table.write_text("user,video,t,x,y,z\na,v,0,1,0,0\na,v,0.2,1,0,0\n")
    numbers = json.loads(_call("info", table, "--json").stdout)
    assert set(numbers["no_motion_deg"].values()) == {None}
    assert numbers["sessions_without_window"] == 1
    assert "0 windows" in _call("info", table).stdout


def test_figures(david: Path, tmp_path: Path) -> None:
    _call("info", "david_mmsys18", "--root", david, "--figures", tmp_path / "figures")
    written = {file.name: file.read_bytes()[:5] for file in (tmp_path / "figures").iterdir()}
    assert len(written) == 6
    for name, start in written.items():
        assert start == (b"%PDF-" if name.endswith(".pdf") else b"\x89PNG\r")


def test_skipped_sessions_are_said_and_counted(david: Path) -> None:
    (david / "sampled_dataset" / "1_Porto" / "4").write_text("0.0,1,0\n")
    result = _call("import", "david_mmsys18", david, fails=True)
    assert "row 1: 3 column(s)" in str(result.exception)
    result = _call("import", "david_mmsys18", david, "--on-error", "skip")
    assert "skipped columns: 1" in result.stdout
    assert "row 1: 3 column(s)" in result.stderr
    numbers = json.loads(_call("info", "david_mmsys18", "--json").stdout)
    assert numbers["counts"] == {"skipped_columns": 1}


def test_table_under_a_name(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    rows = [f"a,v,{k / 5},{k * 1.0},{k / 10}" for k in range(60)]
    rows[10], rows[11] = rows[11], rows[10]
    table.write_text("\n".join(["user,video,t,yaw,pitch", *rows]))
    assert "row 13" in str(_call("import", "mine", table, fails=True).exception)
    result = _call("import", "mine", table, "--repair", "--rate", "10")
    assert "rows out of order: 1" in result.stdout
    assert json.loads(_call("info", "mine", "--rate", "10", "--json").stdout)["rate_hz"] == 10
    listed = {row["name"]: row["rates_hz"] for row in json.loads(_call("list", "--json").stdout)}
    assert listed == {
        "wu_mmsys17": [],
        "jin_mmsys22": [],
        "david_mmsys18": [],
        "avtrack360": [],
        "mine": [10.0],
    }
    assert "jin_mmsys22" in _call("list").stdout


def test_bad_calls(tmp_path: Path) -> None:
    assert "data import wu_mmsys17 PATH" in str(_call("info", "wu_mmsys17", fails=True).exception)
    assert "no such file" in str(_call("import", "wu_mmsys17", tmp_path / "absent", fails=True).exception)
    for words in (("--repair",), ("--angles", "radians"), ("--quaternion", "ros")):
        failed = _call("import", "wu_mmsys17", tmp_path, *words, fails=True)
        assert f"{words[0]} is for tables" in str(failed.exception)
    refused = _call("download", "mine", fails=True)
    assert "no published address" in str(refused.exception)
    assert refused.stderr == ""  # the one line is the caller's to print
    assert CliRunner().invoke(data, ["import", "mine", "x.csv", "--rate", "0"]).exit_code == 2
