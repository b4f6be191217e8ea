"""`fedjax-vp sweep` and `compare --seeds`: points in groups, killed ones continued, failing ones recorded."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

import fedjax_vp as fvp
from fedjax_vp import cli, fitting, simulate
from fedjax_vp.batching import static_part
from fedjax_vp.config import load_config, shipped_configs
from fedjax_vp.errors import UserError
from fedjax_vp.problem import Common, Problem
from fedjax_vp.progress import Tally
from fedjax_vp.sweeps import cluster, groups, spec

CONFIG = """
algorithm: fedavg
compare: [local_only]
rounds: 6
dataset: {kind: synthetic, users: 4, videos: 2, duration_s: 20.0}
model: {kind: linear}
local: {batch: 4, steps: 1}
engine: {chunk: 2, devices: 1}
evaluate: {every: 6, horizons_s: [0.2, 1.0], tile_horizons_s: [1.0]}
"""
SWEEP = "config: small.yaml\ngrid: {seed: [0, 1], local.lr: [0.1, 1.0e+30]}\n"
RATE: dict[str, Any] = {"local.lr": 0.1}


@pytest.fixture(autouse=True, scope="module")
def one_compilation() -> Iterator[None]:
    """Compiled functions are kept for the module: all of it runs one method on the same data."""
    known: dict[Any, Common] = {}
    make = Common

    def common(problem: Problem, rounds: int, points: int = 1) -> Common:
        key = (rounds, static_part(problem.method), problem.engine)
        if key not in known:
            known[key] = make(problem, rounds, points)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        for module in (simulate, groups):
            patch.setattr(module, "Common", common)
        yield


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli.cli, list(words))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a config and a sweep."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(CONFIG)
    (tmp_path / "mine.yaml").write_text(SWEEP)
    return tmp_path


def timeless(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in summary.items() if not key.endswith("_s")}


def test_a_sweep_that_is_stopped_goes_on_and_records_what_fails(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four points, of which two diverge; stopped once, continued, then found finished."""
    folders = [point.folder for point in spec.plan(spec.read_sweep(Path("mine.yaml")), [], Path("out"))]
    assert len({folder.name for folder in folders}) == 4
    report = Tally.report

    def interrupt(self: Tally, folder: Path, facts: dict[str, Any]) -> None:
        report(self, folder, facts)
        if (folder.name, facts["round"]) == (folders[2].name, 4):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Tally, "report", interrupt)
    stopped = invoke("sweep", "mine.yaml", "--out", "out")
    assert stopped.exit_code == 130, stopped.output
    assert "the same command continues" in stopped.stderr
    assert [(folder / "summary.json").exists() for folder in folders] == [True, False, False, False]
    assert not Path("out/sweep.csv").exists()
    monkeypatch.setattr(Tally, "report", report)
    done = invoke("sweep", "mine.yaml", "--out", "out")
    assert done.exit_code == 0, done.output
    assert "diverged in round" in done.stdout
    assert "1 of 4 runs" not in done.stderr.splitlines()[0]
    frame = pl.read_parquet("out/sweep.parquet")
    assert frame["status"].to_list() == ["done", "failed", "done", "failed"]
    assert frame.columns[:5] == ["point", "seed", "local.lr", "status", "reason"]
    assert frame["error_deg_1.0"].null_count() == 2
    assert len(Path("out/sweep.csv").read_text().splitlines()) == 5
    # A point is the run that stands alone, to the last bit: the engine runs one point on one device.
    alone = Path("alone")
    fvp.run(load_config("small.yaml", compare=[], seed=1, **RATE), alone, progress=False)
    assert timeless(folders[2]) == timeless(alone)
    assert {p.name for p in folders[2].iterdir()} == {p.name for p in alone.iterdir()}

    def refuse(*args: Any) -> None:
        raise AssertionError("nothing is left to do for points that are finished")

    (here / "mine.yaml").write_text(SWEEP.replace(", 1.0e+30", ""))
    monkeypatch.setattr(simulate, "simulate_many", refuse)
    assert invoke("sweep", "mine.yaml", "--out", "out").exit_code == 0


def test_compare_runs_seeds_together_and_reuses_them(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = []
    many = simulate.simulate_many

    def watch(common: Any, points: Any, *rest: Any, **kwargs: Any) -> None:
        together.append([point.seed for point in points])
        many(common, points, *rest, **kwargs)

    monkeypatch.setattr(simulate, "simulate_many", watch)
    for seeds in ("0,1", "0,1,2"):
        result = invoke("compare", "small.yaml", "--seeds", seeds, "--out", "both")
        assert result.exit_code == 0, result.output
    # A config given alone is compared with the methods that it names.
    assert together == [[0, 1], [0, 1], [2], [2]]
    methods = pl.read_parquet("both/compare.parquet")["method"].unique().to_list()
    assert {"fedavg", "local_only"} <= set(methods)
    assert {p.name for p in Path("both").glob("local_only-seed*")} == {
        f"local_only-seed{k}" for k in range(3)
    }


def test_compare_tells_of_a_mistake_in_any_config_before_it_runs_one(here: Path) -> None:
    text = Path("small.yaml").read_text() + "levels: {global: {owns: [tail/*]}}\n"
    Path("wrong.yaml").write_text(text)
    result = invoke("compare", "small.yaml", "wrong.yaml", "--out", "both")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: wrong.yaml: levels")
    assert "running" not in result.output
    assert not Path("both").exists()


def test_compare_refuses_what_would_meet_in_the_table_before_it_runs_any(here: Path) -> None:
    text = Path("small.yaml").read_text()
    Path("twin.yaml").write_text(text)
    Path("other").mkdir()
    Path("other/small.yaml").write_text(text.replace("steps: 1", "steps: 2"))
    for second, told in (
        ("twin.yaml", "the same config as small.yaml"),
        ("small.yaml", "the same config as small.yaml"),
        ("other/small.yaml", "the same name"),
    ):
        result = invoke("compare", "small.yaml", second, "--out", "both")
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {second}: ")
        assert told in result.stderr
        assert not Path("both").exists()


def test_compare_reads_finished_runs_though_their_data_are_gone(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke("compare", "small.yaml", "--out", "both").exit_code == 0

    def gone(config: Any) -> None:
        raise UserError("the data are gone")

    monkeypatch.setattr(fitting, "load_traces", gone)
    again = invoke("compare", "small.yaml", "--out", "both")
    assert again.exit_code == 0, again.output
    more = invoke("compare", "small.yaml", "--seeds", "0,1", "--out", "both")
    assert more.exit_code == 2
    assert "small.yaml: fedavg: the data are gone" in more.stderr


def test_points_that_share_a_compiled_function(here: Path) -> None:
    def case(**settings: Any) -> groups.Case:
        return groups.Case(load_config("small.yaml", compare=[], **settings), Path(str(settings)))

    one = [case(), case(seed=3), case(**{"local.lr": 0.5}), case(**{"levels.global.server.lr": 0.5})]
    one += [case(**{"levels.global.shrinkage": 0.5}), case(name="other")]
    apart = [case(rounds=7), case(**{"local.steps": 2}), case(model="mlp"), case(**{"dataset.seed": 1})]
    apart += [case(**{"levels.global.shrinkage": "auto"}), case(**{"protocol.start_s": 2.0})]
    found = groups.group([*one, *apart])
    assert [len(together) for together in found] == [len(one), *[1] * len(apart)]
    assert [len(part) for part in cluster.divide(found, 4)] == [3, 3, *[1] * len(apart)]


def test_what_decides_a_points_folder(here: Path) -> None:
    plain = load_config("small.yaml", compare=[])
    same = load_config("small.yaml", compare=[], name="x", **{"engine.chunk": 5})
    assert spec.identity(plain.to_mapping()) == spec.identity(same.to_mapping())
    other = load_config("small.yaml", compare=[], **{"local.lr": 0.11})
    assert spec.identity(plain.to_mapping()) != spec.identity(other.to_mapping())


def test_points_are_combined_and_some_may_be_refused(here: Path) -> None:
    (here / "mine.yaml").write_text(
        "config: small.yaml\ngrid: {local.optimizer: [sgd, adam], seed: [0, 0, 1]}\n"
        "points: [{local.momentum: 0.0}, {local.momentum: 0.5, rounds: 3}]\n"
    )
    sweep = spec.read_sweep(Path("mine.yaml"))
    assert sweep.varied == ("local.optimizer", "seed", "local.momentum", "rounds")
    points = spec.plan(sweep, [("local.steps", 3)], Path("out"))
    assert len(points) == 8  # the repeated seed is one point
    refused = [point for point in points if point.config is None]
    assert len(refused) == 2
    assert all("which adam does not take" in point.refused for point in refused)
    accepted = [point.config for point in points if point.config]
    assert {config.local.steps for config in accepted} == {3}
    assert {(config.local.momentum, config.rounds) for config in accepted} == {(0.0, 6), (0.5, 3)}
    assert all(config.compare == () for config in accepted)


MALFORMED = {
    "no such file": ("", ["nosuch.yaml"], "nosuch.yaml does not exist"),
    "no file": ("", [], "sweep takes a YAML file"),
    "misspelt key": ("config: small.yaml\ngird: {seed: [0]}", ["mine.yaml"], "did you mean grid?"),
    "no config": ("grid: {seed: [0]}", ["mine.yaml"], "config is missing"),
    "no such config": ("config: nosuch\ngrid: {seed: [0]}", ["mine.yaml"], "nosuch"),
    "nothing varies": ("config: small.yaml", ["mine.yaml"], "nothing varies"),
    "no list": ("config: small.yaml\ngrid: {seed: 3}", ["mine.yaml"], "grid.seed is 3: give a list"),
    "no mapping": ("config: small.yaml\ngrid: [seed]", ["mine.yaml"], "give a mapping"),
    "points": ("config: small.yaml\npoints: {seed: 3}", ["mine.yaml"], "give a list of mappings"),
    "given twice": (
        "config: small.yaml\ngrid: {seed: [0]}\npoints: [{seed: 1}]",
        ["mine.yaml"],
        "seed stands in grid and in points",
    ),
    "varied and fixed": (SWEEP, ["mine.yaml", "--seed", "3"], "the sweep varies it"),
    "no such setting": (
        "config: small.yaml\ngrid: {local.lrr: [1]}",
        ["mine.yaml"],
        "did you mean local.lr?",
    ),
    "every point fails": ("config: small.yaml\ngrid: {model: [static]}", ["mine.yaml"], "has no weights"),
    "no such cluster": (SWEEP, ["mine.yaml", "--cluster", "slurm"], "ray"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_sweeps_give_one_line_and_status_2(case: str, here: Path) -> None:
    text, words, expected = MALFORMED[case]
    (here / "mine.yaml").write_text(text)
    result = invoke("sweep", *words, "--quiet", "--out", "out")
    assert result.exit_code == 2, result.output
    assert expected in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("path", sorted((shipped_configs()["quickstart"].parent / "sweeps").glob("*.yaml")))
def test_shipped_sweeps_can_be_planned(path: Path, tmp_path: Path) -> None:
    points = spec.plan(spec.read_sweep(path), [], tmp_path)
    assert len(points) > 1
    assert all(point.config for point in points)


def test_ray_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'fedjax-vp\[ray\]'"):
        cluster.run_on_ray([], Tally("", {}, enabled=False))


RAY = """
import ray
from fedjax_vp.commands.sweep import execute
from fedjax_vp.errors import UserError
from pathlib import Path
try:
    execute(Path("mine.yaml"), [], Path("none"), "ray", True)
except UserError as error:
    assert "no Ray cluster answers" in str(error), error
else:
    raise AssertionError("a cluster answered")
ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
execute(Path("mine.yaml"), [], Path("out"), "ray", False)
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed")
def test_a_local_ray_cluster_gives_the_same(here: Path) -> None:
    """In a process of its own: Ray leaves threads, sockets and handlers behind."""
    env = {**os.environ, "XDG_CACHE_HOME": str(here / "cache"), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    env.pop("RAY_ADDRESS", None)
    done = subprocess.run([sys.executable, "-c", RAY], capture_output=True, text=True, env=env, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 runs" in done.stderr
    frame = pl.read_parquet("out/sweep.parquet")
    assert frame["status"].to_list() == ["done", "failed", "done", "failed"]
    fvp.run(load_config("small.yaml", compare=[], seed=1, **RATE), "alone", progress=False)
    assert timeless(here / "out" / frame["point"][2]) == timeless(Path("alone"))
