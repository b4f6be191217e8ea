"""The cache: round trips, atomic writing, names, and what is said when nothing is there."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

import fedjax_vp as fvp
from fedjax_vp.data import parquet, store
from fedjax_vp.data.traces import Session, TraceSet, stack_sessions
from fedjax_vp.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fedjax_vp"


@pytest.fixture
def traces() -> TraceSet:
    rng = np.random.default_rng(0)

    def session(user: str, video: str, length: int) -> Session:
        vectors = rng.normal(size=(length, 3))
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return Session(
            user, video, 0.2 * length, unit, {"gaze": rng.normal(size=(length, 2))}, {"kind": user}
        )

    sessions = [session("10", "a", 4), session("2", "a", 7), session("2", "b", 2)]
    return stack_sessions("david_mmsys18", 5.0, sessions, {"holes": 3})


def _david(root: Path, times: str = "0.0 0.2 0.4") -> Path:
    file = root / "sampled_dataset" / "1_Porto" / "0"
    file.parent.mkdir(parents=True)
    file.write_text("".join(f"{t},-1,0,0\n" for t in times.split()))
    return root


def test_round_trip(traces: TraceSet, cache: Path) -> None:
    traces.valid[1, 3] = False
    parquet.save(traces, store.cache_path("david_mmsys18"))
    got = store.load("david_mmsys18")
    for field in dataclasses.fields(TraceSet):
        mine, theirs = getattr(traces, field.name), getattr(got, field.name)
        if isinstance(mine, np.ndarray):
            np.testing.assert_array_equal(mine, theirs)
            assert mine.dtype == theirs.dtype
        elif field.name in ("labels", "channels"):
            assert mine.keys() == theirs.keys()
            for name in mine:
                np.testing.assert_array_equal(mine[name], theirs[name])
                assert mine[name].dtype == theirs[name].dtype
        else:
            assert mine == theirs
    assert [path.name for path in cache.iterdir()] == ["david_mmsys18-5hz.parquet"]
    assert store.cached() == [("david_mmsys18", 5.0, cache / "david_mmsys18-5hz.parquet")]


def test_public_load_and_settings(traces: TraceSet) -> None:
    parquet.save(traces, store.cache_path("david_mmsys18"))
    assert fvp.data.load("david_mmsys18").num_traces == 3
    assert store.Named("david_mmsys18").load().num_traces == 3
    with pytest.raises(ValueError, match="rate_hz"):
        store.Named("david_mmsys18", rate_hz=0.0)


def test_an_interrupted_save_leaves_the_old_file(
    traces: TraceSet, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.cache_path("david_mmsys18")
    parquet.save(traces, path)
    before = path.read_bytes()

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        parquet.save(traces.subset(np.array([0])), path)
    assert path.read_bytes() == before
    assert [file.name for file in cache.iterdir()] == [path.name]


def test_what_is_not_imported_names_the_command() -> None:
    with pytest.raises(UserError, match="run: fedjax-vp data import wu_mmsys17 PATH"):
        store.load("wu_mmsys17")
    with pytest.raises(UserError, match="at 10 Hz; run: fedjax-vp data import wu_mmsys17 PATH --rate 10"):
        store.Named("wu_mmsys17", rate_hz=10.0).load()
    with pytest.raises(UserError, match="did you mean jin_mmsys22"):
        store.load("jin_mmsys2")
    with pytest.raises(UserError, match="no name for a data set"):
        store.load("../../etc/passwd")


def test_root_is_read_without_the_cache(tmp_path: Path, cache: Path) -> None:
    root = _david(tmp_path / "copy")
    traces = fvp.data.load("david_mmsys18", root=root)
    np.testing.assert_allclose(traces.direction[0], np.tile([1.0, 0, 0], (3, 1)))
    assert store.Named("david_mmsys18", root=str(root)).load().num_traces == 1
    assert not cache.exists()


def test_tables_need_a_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown data set 'david_mmsys'.*did you mean david_mmsys18"):
        store.read_original("david_mmsys", _david(tmp_path / "copy"))
    with pytest.raises(UserError, match=r"unknown data set 'zzz': choose one of wu_mmsys17, jin_mmsys22"):
        store.read_original("zzz", tmp_path / "copy")
    for option in ({"repair": True}, {"angles": "degrees"}, {"quaternion": "ros"}):
        with pytest.raises(UserError, match=f"--{next(iter(option))} is for tables; david_mmsys18 is"):
            store.read_original("david_mmsys18", tmp_path / "copy", **option)
    table = tmp_path / "t.csv"
    table.write_text("user,video,t,x,y,z\na,v,0,1,0,0\na,v,0.2,1,0,0\n")
    assert store.read_original("mine", table).name == "mine"


def test_a_damaged_import(traces: TraceSet) -> None:
    path = store.cache_path("david_mmsys18")
    parquet.save(traces, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="import it again"):
        store.load("david_mmsys18")
    import polars as pl

    pl.DataFrame({"user": ["a"]}).write_parquet(path)
    with pytest.raises(UserError, match="import it again"):
        store.load("david_mmsys18")
