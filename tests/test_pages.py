"""What README and docs tell a reader to type, typed, with an engine that answers at once."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import stand_in
from click.testing import CliRunner

from fedjax_vp import cli, fitting, report, simulate
from fedjax_vp.config import Config, load_config
from fedjax_vp.data import splits, synthetic
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.report import figures
from fedjax_vp.sweeps import groups, spec

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Needs files or machines of the reader's own, or trains by itself.
ELSEWHERE = ("fedjax-vp coldstart", "PATH", "FOLDER", "--cluster", "data download", "data info")


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language on a page."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory like the repository's, with the files that pages speak of, and no computation."""
    traces = synthetic.generate(synthetic.Synthetic(users=4, videos=2, duration_s=20.0))

    def load_traces(config: Config) -> tuple[TraceSet, splits.Split]:
        return traces, splits.split(traces, splits.UnseenUsers())

    def simulate_many(
        common: Any, points: list[Any], finish: Callable, resume: bool, reporter: Callable
    ) -> None:
        for index, point in enumerate(points):
            told = (point.seed, point.run_dir, resume, lambda facts, i=index: reporter(i, facts))
            finish(index, stand_in.simulate(common.problem, common.rounds, *told))

    monkeypatch.setattr(fitting, "load_traces", load_traces)
    monkeypatch.setattr(fitting, "check_on", lambda *args: None)  # this process has its devices already
    monkeypatch.setattr(simulate, "simulate", stand_in.simulate)
    monkeypatch.setattr(simulate, "simulate_many", simulate_many)
    monkeypatch.setattr(
        groups, "Common", lambda problem, rounds, points: SimpleNamespace(problem=problem, rounds=rounds)
    )
    monkeypatch.setattr(figures, "render", lambda folder: [])
    monkeypatch.setattr(report, "render_comparison", lambda *args: [])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    pl.read_csv(stand_in.write_traces(tmp_path / "traces.csv")).write_parquet("traces.parquet")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_on_a_page_are_settings(page: Path, here: Path) -> None:
    for text in blocks(page, "yaml"):
        (here / "mine.yaml").write_text(text)
        if "\ngrid:" in text:
            assert all(point.config for point in spec.plan(spec.read_sweep(here / "mine.yaml"), [], here))
        else:
            load_config(here / "mine.yaml")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_on_a_page_run(page: Path, here: Path) -> None:
    for text in blocks(page, "yaml"):
        if name := re.match(r"# ([\w.]+\.yaml)", text):
            (here / name[1]).write_text(text)
    lines = [line[2:] for text in blocks(page, "console") for line in text.splitlines() if line[:2] == "$ "]
    for line in lines:
        for command in line.split(" #")[0].split("&&"):
            words = shlex.split(command)
            if words[0] == "fedjax-vp" and not any(word in command for word in ELSEWHERE):
                result = CliRunner().invoke(cli.cli, words[1:])
                assert result.exit_code == 0, f"{command}: {result.output}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_on_a_page_runs(page: Path, here: Path) -> None:
    for text in blocks(page, "python"):
        exec(compile(text, page.name, "exec"), {})
