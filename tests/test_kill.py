"""Runs that are killed at any moment and resumed end with the summary of a run that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

ROUNDS = 24
CONFIG = """
algorithm: ALGORITHM
compare: COMPARE
rounds: 24
dataset: {kind: synthetic, users: 4, videos: 2, duration_s: 20.0}
model: {hidden: [4], features: {table: 1}}
local: {batch: 4, steps: 1}
engine: {chunk: 1, devices: 1}
evaluate: {every: 6, horizons_s: [0.2, 1.0], tile_horizons_s: [1.0]}
"""
COMMAND = "from fedjax_vp.cli import main; main()"
# What the command does, less the figures: one run after the other costs less.
FUNCTION = """
import sys
from fedjax_vp.environment import prepare_jax
prepare_jax()
import fedjax_vp as fvp
fvp.run("small.yaml", out=sys.argv[-1], resume="--resume" in sys.argv, progress=False)
"""


class Place:
    """A working folder with a config, where runs are started in processes of their own."""

    def __init__(self, folder: Path, algorithm: str, compare: str, code: str) -> None:
        self.folder, self.code = folder, code
        config = CONFIG.replace("ALGORITHM", algorithm).replace("COMPARE", compare)
        (folder / "small.yaml").write_text(config)
        flags = {"XDG_CACHE_HOME": str(folder / "cache"), "JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg"}
        inherited = {k: v for k, v in os.environ.items() if k != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
        self.env = {**inherited, **flags}
        self.finish("--out", "whole")
        self.summary = timeless(json.loads((folder / "whole" / "summary.json").read_text()))

    def start(self, *words: str, code: str | None = None) -> subprocess.Popen:
        """A run in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-c", code or self.code, "run", "small.yaml", *words],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, *words: str) -> None:
        """A run that is left alone."""
        process = self.start(*words)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors

    def done(self, run: str) -> int:
        """Rounds that are saved, of all methods together."""
        folder = self.folder / run
        places = [folder / "checkpoints", *folder.glob("beside/*/checkpoints")]
        saved = [[int(name) for name in os.listdir(p) if name.isdigit()] for p in places if p.is_dir()]
        return sum(max(steps, default=0) for steps in saved)

    def kill(self, run: str, rounds: int, then_s: float, *words: str) -> None:
        """Kills a run so many seconds after it has saved so many rounds more."""
        wanted = self.done(run) + rounds
        with self.start(*words) as process:
            while self.done(run) < wanted and process.poll() is None:
                time.sleep(0.003)
            time.sleep(then_s)
            process.kill()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """One method, without figures."""
    return Place(tmp_path_factory.mktemp("kill"), "fedavg", "[]", FUNCTION)


@pytest.fixture(scope="module")
def whole_command(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Two methods, with shrinkage and mixing, by the command."""
    return Place(tmp_path_factory.mktemp("command"), "global_video", "[fedsgd]", COMMAND)


def timeless(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if not key.endswith("_s")}


def assert_same(place: Place, run: str) -> None:
    """The summary and the tables, times aside."""
    found, whole = place.folder / run, place.folder / "whole"
    assert timeless(json.loads((found / "summary.json").read_text())) == place.summary
    for table in whole.glob("*.parquet"):
        assert pl.read_parquet(found / table.name).equals(pl.read_parquet(table)), table.name


def trial(place: Place, seed: int, methods: int, kills: int = 1) -> None:
    """Kills a run, and maybe its resumed self: while it starts, computes, saves or sums up."""
    rng, name = random.Random(seed), f"trial-{seed}"
    words = ["--out", name]
    for _ in range(kills):
        rounds = rng.randrange(0, methods * ROUNDS)
        place.kill(name, rounds, rng.uniform(0, 0.1 if rounds else 5.0), *words)
        if not (place.folder / name / "summary.json").exists():
            words = ["--resume", name]
    place.finish("--resume", name)
    assert_same(place, name)


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_ends_as_if_it_had_not_been(place: Place, seed: int) -> None:
    trial(place, seed, methods=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_twenty_killed_commands_end_as_if_they_had_not_been(whole_command: Place, seed: int) -> None:
    trial(whole_command, seed, methods=2, kills=1 + seed % 2)


def test_ctrl_c_saves_and_a_truncated_checkpoint_falls_back(place: Place) -> None:
    """Ctrl-C in mid-run: status 130 and how to resume. Then the newest checkpoint is cut short."""
    with place.start("--out", "stopped", code=COMMAND) as process:
        lines = []
        for line in process.stderr or ():
            lines.append(line)
            if "fedavg: round 9 of" in line:
                process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130
    said = "".join(lines)
    assert "fedjax-vp run --resume stopped" in said
    assert "Traceback" not in said
    folder = place.folder / "stopped"
    assert not (folder / "summary.json").exists()
    steps = sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    assert len(steps) == 2
    assert 9 <= steps[-1] < ROUNDS
    for path in (folder / "checkpoints" / str(steps[-1])).rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    place.finish("--resume", "stopped")
    assert_same(place, "stopped")
