"""The comparison with peers, by stand-ins: failures, modes, agreement of losses, resumption."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

PEERS = Path(__file__).resolve().parent.parent / "benchmarks" / "peers"
sys.path.insert(0, str(PEERS))
run, runners, table = (importlib.import_module(name) for name in ("run", "runners", "table"))

STAND_IN = """
import types, protocol
clock = [0.0]
protocol.time = types.SimpleNamespace(perf_counter=lambda: clock[0])
mode = protocol.request().mode
def one_round(count):
    rounds.append(count)
    clock[0] += {seconds}
    {fault}
def reset(nudge=0.0):
    rounds.clear()
    start[0] = nudge
rounds, start = [], [0.0]
protocol.serve(reset, one_round, lambda: {loss})
"""

PYTHON_WITHOUT_PACKAGES = """#!/bin/sh
if [ "$2" = venv ]; then mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && exit 0; fi
echo 'ERROR: No matching distribution' >&2
echo hint >&2
exit 1
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where stand-ins for the peers' scripts are looked up; environments are this one."""
    shutil.copy(PEERS / "protocol.py", tmp_path)
    (tmp_path / "requirements").mkdir()
    monkeypatch.setattr(runners, "HERE", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def stand_in(path: Path, seconds: str = "0.01", fault: str = "", loss: str = "len(rounds)") -> None:
    """A script whose loss is the number of rounds since the last reset."""
    path.write_text(STAND_IN.format(seconds=seconds, fault=fault, loss=loss))


def test_a_peer_without_its_python_is_skipped(folder: Path) -> None:
    (folder / "requirements" / "torch.txt").write_text("# python 2.1\ntorch\n")
    with pytest.raises(runners.Skipped, match=r"needs Python 2\.1"):
        runners.environment("torch")


def test_a_peer_that_does_not_install_is_skipped_and_tried_again(folder, monkeypatch) -> None:
    python = folder / "python"
    python.write_text(PYTHON_WITHOUT_PACKAGES)
    python.chmod(0o755)
    monkeypatch.setattr(runners, "interpreter_of", lambda version: str(python))
    (folder / "requirements" / "torch.txt").write_text("# python 3.11\nnothing-of-the-kind\n")
    for _ in range(2):
        with pytest.raises(runners.Skipped, match="does not install: ERROR: No matching"):
            runners.environment("torch")


def test_the_running_python_serves_its_own_version() -> None:
    assert runners.interpreter_of(f"{sys.version_info[0]}.{sys.version_info[1]}") == sys.executable


def test_the_faster_mode_is_taken_and_a_broken_one_passed_over(folder, monkeypatch) -> None:
    monkeypatch.setattr(runners, "environment", lambda name: Path(sys.executable))
    seconds, fault = "0.2 if mode == 'slow' else 0", "assert mode != 'broken', 'no such mode'"
    stand_in(folder / "pfl_peer.py", seconds, fault)
    runner = runners.start_peer("pfl", "vp-mlp", folder, ("broken", "slow", "fast", "slow"))
    runner.close()
    assert runner.mode == "fast"
    with pytest.raises(runners.Skipped, match="AssertionError: no such mode"):
        runners.start_peer("pfl", "vp-mlp", folder, ("broken",))


def options(out: Path, **changes: object) -> argparse.Namespace:
    """Command-line options of one small cell."""
    values = {"workload": ["vp-mlp"], "clients": [16], "peers": ["pfl", "flower", "torch_loop"], "passes": 2}
    return argparse.Namespace(**{**values, "out": out, **changes})


def test_a_cell_holds_ratios_verdicts_and_reasons_and_is_measured_once(folder, monkeypatch) -> None:
    monkeypatch.setattr(runners, "environment", lambda name: Path(sys.executable))
    (folder / "work.py").write_text("")
    stand_in(folder / "ours.py", "0.01")
    stand_in(folder / "pfl_peer.py", "0.05")
    stand_in(folder / "flower_peer.py", loss="len(rounds) + 2e-4 * (len(rounds) == 5)")
    stand_in(folder / "torch_loop_peer.py", fault="if len(rounds) == 3: raise MemoryError('no more')")
    results = {"machine": {}, "cells": []}
    out, shown = folder / "peers.json", io.StringIO()
    run.run(results, options(out), Console(file=shown, width=200))
    (cell,) = json.loads(out.read_text())["cells"]
    rows = cell["runners"]
    assert rows.keys() == {"ours", "pfl", "flower"}
    # Five passes in a row without a reset: the fifth round is compared too.
    assert rows["pfl"]["losses"] == {"1": 1.0, "5": 5.0}
    assert len(rows["pfl"]["seconds"]) == 5
    assert rows["pfl"]["same_work"]
    assert not rows["flower"]["same_work"]
    assert rows["pfl"]["times_ours"] == pytest.approx(5)
    assert rows["ours"]["client_steps_per_second"] == pytest.approx(8 * 16 / 0.01)
    assert "MemoryError" in cell["skipped"]["torch_loop"]
    assert "ANOTHER LOSS" in shown.getvalue()
    assert "plain PyTorch loop: skipped: MemoryError" in shown.getvalue()
    if sys.platform == "linux":
        assert rows["ours"]["peak_rss_mb"] > 5

    (folder / "ours.py").write_text("raise SystemExit('not again')")
    run.run(results, options(out), Console(file=shown))  # nothing is missing
    with pytest.raises(runners.Skipped, match="not again"):
        run.run(results, options(out, clients=[32]), Console(file=shown))


def test_the_gru_starts_anew_in_every_pass_and_agrees_as_far_as_rounding_lets_it(folder, monkeypatch) -> None:
    monkeypatch.setattr(runners, "environment", lambda name: Path(sys.executable))
    (folder / "work.py").write_text("")
    stand_in(folder / "ours.py", loss="len(rounds) + 1e3 * start[0]")  # moves by 6e-4 under nudges
    stand_in(folder / "pfl_peer.py", loss="len(rounds) + 1e-3")
    stand_in(folder / "flower_peer.py", loss="len(rounds) + 1.4e-3")
    results = {"machine": {}, "cells": []}
    arguments = options(folder / "peers.json", workload=["vp-gru"], peers=["pfl", "flower"])
    run.run(results, arguments, Console(file=io.StringIO()))
    rows = results["cells"][0]["runners"]
    assert rows["ours"]["losses"] == {"1": 1.0}
    assert len(rows["ours"]["seconds"]) == 2
    assert rows["pfl"]["same_work"]
    assert not rows["flower"]["same_work"]


def test_the_figure_is_drawn_where_peers_miss_sizes(tmp_path: Path) -> None:
    row = {"client_steps_per_second": 10.0}
    cells = [
        {"workload": "vp-mlp", "clients": 64, "runners": {"ours": row, "pfl": row}},
        {"workload": "vp-mlp", "clients": 4096, "runners": {"ours": row}},
    ]
    table.draw(cells, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").stat().st_size > 1000
