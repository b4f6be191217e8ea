"""Run folders: what they hold, that equal runs leave equal bytes, and that no path or time slips in."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import stand_in

from fedjax_vp import experiment, fitting, results, simulate
from fedjax_vp.config import Config, load_config
from fedjax_vp.data.synthetic import Planted, generate
from fedjax_vp.errors import UserError
from fedjax_vp.federated.settings import Engine

FIELDS = {
    *(
        "algorithm",
        "dataset",
        "protocol",
        "seed",
        "rounds",
        "num_clients",
        "num_params",
        "horizons_s",
        "error_deg",
    ),
    *(
        "baselines",
        "worst_decile_deg",
        "num_groups",
        "ari",
        "bytes_up",
        "bytes_down",
        "state_bytes",
        "adapt_s",
    ),
    *("hurt_share", "compile_s", "wall_s", "clustering_s", "evaluate_s"),
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A small table of traces, and an engine that answers at once."""
    monkeypatch.setattr(simulate, "simulate", stand_in.simulate)
    table = stand_in.write_traces(tmp_path / "traces.csv")
    return load_config(
        {
            "name": "small",
            "algorithm": "global_video",
            "compare": ["fedavg"],
            "dataset": {"kind": "table", "path": str(table)},
            "rounds": 4,
        }
    )


def run(config: Config, folder: Path, **options: Any) -> experiment.RunResult:
    return experiment.run(config, folder, progress=False, **options)


def test_a_run_folder_holds_what_scripts_rely_on(config: Config, tmp_path: Path) -> None:
    result = run(config, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary.keys() >= FIELDS
    assert summary["algorithm"] == "global_video"
    assert summary["dataset"] == "traces"
    assert summary["protocol"] == "unseen_users"
    horizons = len(summary["horizons_s"])
    lists = [*summary["error_deg"].values(), summary["worst_decile_deg"]]
    lists += [one["mean"] for one in summary["baselines"].values()]
    assert all(len(one) == horizons for one in lists)
    assert set(summary["baselines"]) == {"no_motion", "velocity"}
    assert summary["hurt_share"] is not None
    assert result.path == tmp_path / "run"
    assert result.summary.keys() == summary.keys()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {
        "manifest.json",
        "config.yaml",
        "history.parquet",
        "clients.parquet",
        "compare.parquet",
        "examples.npz",
    }
    assert len(list((tmp_path / "run").rglob("summary.json"))) == 1
    assert len(list((tmp_path / "run").rglob("manifest.json"))) == 1


def test_tables_have_their_columns(config: Config, tmp_path: Path) -> None:
    result = run(config, tmp_path / "run")
    clients = pl.read_parquet(tmp_path / "run" / "clients.parquet")
    assert clients.columns[:5] == ["session", "user", "video", "windows", "error_deg_0.2"]
    assert set(clients["user"]) == {"u1", "u3"}  # odd positions test
    assert clients["windows"].sum() == result.summary["num_windows"]
    history = pl.read_parquet(tmp_path / "run" / "history.parquet")
    assert {"round", "horizon_s", "error_deg", "bytes_up", "bytes_down"} <= set(history.columns)
    assert history.equals(result.history)
    assert history["round"].unique().to_list() == [1, 4]
    compare = pl.read_parquet(tmp_path / "run" / "compare.parquet")
    assert compare.columns == [
        *("method", "horizon_s", "mean", "median", "p95", "bytes_up", "bytes_down", "hurt_share"),
        *("by_client", "by_user", "worst_decile", "precision", "recall", "f1", "iou"),
    ]
    assert set(compare["method"]) == {"no_motion", "velocity", "fedavg", "global_video"}
    own = compare.filter(pl.col("method") == "global_video")["mean"].to_numpy()
    np.testing.assert_allclose(own, result.summary["error_deg"]["mean"])
    fedavg = compare.filter(pl.col("method") == "fedavg")
    assert fedavg["hurt_share"].to_list() == [0.0] * len(fedavg)


def test_equal_runs_leave_equal_bytes(config: Config, tmp_path: Path) -> None:
    run(config, tmp_path / "a")
    run(config, tmp_path / "elsewhere" / "b")
    for name in ("manifest.json", "summary.json", "clients.parquet", "history.parquet", "compare.parquet"):
        first, second = tmp_path / "a" / name, tmp_path / "elsewhere" / "b" / name
        assert first.read_bytes() == second.read_bytes(), name


def test_another_seed_leaves_other_bytes(config: Config, tmp_path: Path) -> None:
    run(config, tmp_path / "a")
    run(config.model_copy(update={"seed": 1}), tmp_path / "b")
    assert (tmp_path / "a" / "summary.json").read_bytes() != (tmp_path / "b" / "summary.json").read_bytes()


def test_no_path_and_no_time_slips_in(config: Config, tmp_path: Path) -> None:
    run(config, tmp_path / "run")
    for name in ("manifest.json", "summary.json"):
        text = (tmp_path / "run" / name).read_text()
        assert str(tmp_path) not in text
        assert str(Path(__file__).parent.parent) not in text
        assert not re.search(r"20\d\d-\d\d-\d\d|\d\d:\d\d:\d\d", text)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["config"]["dataset"]["path"] == "traces.csv"
    assert set(manifest["compare"]) == {"fedavg"}
    assert manifest.keys() >= {"config", "versions", "device", "git"}
    assert manifest["versions"]["jax"]


def test_a_finished_run_is_read_back(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(config, tmp_path / "run")
    monkeypatch.setattr(simulate, "simulate", None)
    again = run(config, tmp_path / "run", resume=True)
    assert again.summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert again.history.equals(first.history)


def test_a_killed_run_starts_again(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config, tmp_path / "whole")
    calls: list[bool] = []

    def killed(problem: Any, rounds: int, seed: int, run_dir: Any, resume: bool, reporter: Any) -> Any:
        calls.append(resume)
        raise KeyboardInterrupt

    monkeypatch.setattr(simulate, "simulate", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    assert not results.is_finished(tmp_path / "run")
    monkeypatch.setattr(simulate, "simulate", stand_in.simulate)
    kept = load_config(results.kept_config(tmp_path / "run"))
    assert kept == config
    run(kept, tmp_path / "run", resume=True)
    assert calls == [False]
    assert (tmp_path / "run" / "summary.json").read_bytes() == (
        tmp_path / "whole" / "summary.json"
    ).read_bytes()
    assert (tmp_path / "run" / "manifest.json").read_bytes() == (
        tmp_path / "whole" / "manifest.json"
    ).read_bytes()


def test_methods_have_folders_of_their_own(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path | None] = []

    def spy(problem: Any, rounds: int, seed: int, run_dir: Path | None, resume: bool, reporter: Any) -> Any:
        seen.append(run_dir)
        return stand_in.simulate(problem, rounds, seed, run_dir, resume, reporter)

    monkeypatch.setattr(simulate, "simulate", spy)
    run(config, tmp_path / "run")
    assert seen == [tmp_path / "run" / "beside" / "fedavg", tmp_path / "run"]
    experiment.run(config, progress=False)
    assert seen[2:] == [None, None]


def test_a_folder_is_not_used_twice(config: Config, tmp_path: Path) -> None:
    run(config, tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run"):
        run(config, tmp_path / "run")
    with pytest.raises(UserError, match=r"was run with rounds = 4, not with rounds = 5"):
        run(config.model_copy(update={"rounds": 5}), tmp_path / "run", resume=True)


def test_the_layout_of_the_computation_may_change_on_resume(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config, tmp_path / "run")
    (tmp_path / "run" / results.SUMMARY).unlink()
    engine = Engine(client_block=3)
    seen: list[Engine] = []

    def spy(problem: Any, *rest: Any) -> Any:
        seen.append(problem.engine)
        return stand_in.simulate(problem, *rest)

    monkeypatch.setattr(simulate, "simulate", spy)
    run(config.model_copy(update={"engine": engine}), tmp_path / "run", resume=True)
    assert seen == [engine, engine]  # the compared method's too


def test_a_run_is_not_resumed_with_other_traces(config: Config, tmp_path: Path) -> None:
    run(config, tmp_path / "run")
    (tmp_path / "run" / results.SUMMARY).unlink()
    run(config, tmp_path / "run", resume=True)  # the same traces, read once more
    (tmp_path / "run" / results.SUMMARY).unlink()
    table = tmp_path / "traces.csv"
    table.write_text(table.read_text().replace("u3,v0,", "u9,v0,"))
    with pytest.raises(UserError, match="the traces of traces have changed since this run began"):
        run(config, tmp_path / "run", resume=True)


def test_a_damaged_manifest_is_named(config: Config, tmp_path: Path) -> None:
    run(config, tmp_path / "run")
    (tmp_path / "run" / results.SUMMARY).unlink()
    (tmp_path / "run" / results.MANIFEST).write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        run(config, tmp_path / "run", resume=True)


def test_a_folder_that_cannot_be_written_is_named(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        run(config, tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        run(config, tmp_path / "file" / "below")


def test_json_is_sorted_rounded_and_finite(tmp_path: Path) -> None:
    content = {"b": np.float32(0.1), "a": [1, math.nan, np.int32(2)], "c": {"z": -0.0, "y": np.arange(2)}}
    results.write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"a": [1, None, 2], "b": 0.1, "c": {"y": [0, 1], "z": 0.0}}
    assert text.index('"a"') < text.index('"b"') < text.index('"y"') < text.index('"z"')
    assert "-0.0" not in text


def test_writes_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results.write_json(tmp_path / "x.json", {"a": 1})

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        results.write_json(tmp_path / "x.json", {"a": 2})
    assert results.read_json(tmp_path / "x.json") == {"a": 1}


def test_the_fingerprint_follows_the_traces(config: Config) -> None:
    traces, _ = fitting.load_traces(config)
    assert results.fingerprint(traces) == results.fingerprint(traces.subset(np.arange(traces.num_traces)))
    assert results.fingerprint(traces) != results.fingerprint(traces.subset(np.arange(1, traces.num_traces)))


def test_the_fingerprint_follows_traces_that_are_not_stored() -> None:
    settings = {"users": 3, "videos": 2, "duration_s": 6.0, "stored": False}
    prints = [
        results.fingerprint(generate(Planted(**settings, **other)))
        for other in ({}, {}, {"seed": 1}, {"distance": 0.0})
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_every_method_and_baseline_is_in_the_tables(config: Config, tmp_path: Path) -> None:
    result = run(config, tmp_path / "run")
    everybody = {"no_motion", "velocity", "fedavg", "global_video"}
    users = pl.read_parquet(tmp_path / "run" / "users.parquet")
    assert users.columns[:5] == ["method", "user", "sessions", "windows", "error_deg_0.2"]
    assert set(zip(users["method"], users["user"], strict=True)) == {
        (m, u) for m in everybody for u in ("u1", "u3")
    }
    own = users.filter(pl.col("method") == "global_video")
    np.testing.assert_allclose(own["error_deg_1.0"].mean(), result.summary["by_user"][2])
    beside = pl.read_parquet(tmp_path / "run" / "beside" / "fedavg" / "history.parquet")
    assert beside.columns == result.history.columns
    compare = pl.read_parquet(tmp_path / "run" / "compare.parquet")
    assert set(compare["method"]) == everybody
    for row in compare.filter(pl.col("method") == "global_video").to_dicts():
        column = result.summary["horizons_s"].index(row["horizon_s"])
        assert row["worst_decile"] == pytest.approx(result.summary["worst_decile_deg"][column])
        assert row["by_client"] == pytest.approx(result.summary["by_client"][column])
        if row["horizon_s"] in (1.0, 2.0, 4.0):
            tile = result.summary["tile_horizons_s"].index(row["horizon_s"])
            assert row["iou"] == pytest.approx(result.summary["tiles"]["iou"][tile])
        else:
            assert row["iou"] is None


def test_tiles_at_a_horizon_without_errors_have_a_row(config: Config, tmp_path: Path) -> None:
    evaluate = replace(config.evaluate, horizons_s=(0.2, 2.0))
    run(config.model_copy(update={"evaluate": evaluate}), tmp_path / "run")
    compare = pl.read_parquet(tmp_path / "run" / "compare.parquet")
    own = compare.filter(pl.col("method") == "fedavg")
    assert own["horizon_s"].to_list() == [0.2, 1.0, 2.0, 4.0]
    assert [value is None for value in own["mean"]] == [False, True, False, True]
    assert [value is None for value in own["f1"]] == [True, False, False, False]


def test_costs_are_sizes_and_times_apart(config: Config, tmp_path: Path) -> None:
    summary = run(config, tmp_path / "run").summary
    assert summary["depths"]["level"] == ["global", "video", "video_table"]
    assert not any(key.endswith("_s") for key in summary["depths"])
    assert summary["latency_s"] == [0.001, 0.002, 0.003]
