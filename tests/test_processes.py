"""Two processes that run together: the result of one, checkpoints that either resumes, one voice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedjax_vp import environment, experiment, processes, simulate
from fedjax_vp.config import Config, load_config
from fedjax_vp.errors import UserError
from fedjax_vp.progress import Progress, Reporter

CONFIG: dict[str, Any] = {
    "algorithm": "ifca",
    "rounds": 4,
    "dataset": {"kind": "synthetic", "users": 3, "videos": 2, "duration_s": 20.0},
    "model": {"kind": "linear"},
    "local": {"batch": 4, "steps": 1, "lr": 0.01, "optimizer": "adam", "keep_state": True},
    "engine": {"chunk": 1, "devices": 2},
    "mixing": {"kind": "mixture", "online": 1.0, "experts": ["fedavg"]},
    "evaluate": {"every": 4, "horizons_s": [0.2, 1.0], "tile_horizons_s": [1.0]},
}
MEASURED = ("error_deg", "by_client", "by_user", "worst_decile_deg", "baselines", "tiles")


def run(config: Config, out: str | None = None, resume: bool = False) -> dict[str, Any]:
    return experiment.run(config, out, resume=resume, progress=False).summary


def compile_once(patch: pytest.MonkeyPatch) -> None:
    """Every run of this process has the same compiled functions."""
    known: list[simulate.Common] = []
    make = simulate.Common

    def common(*args: Any) -> simulate.Common:
        known.extend([] if known else [make(*args)])
        return known[0]

    patch.setattr(simulate, "Common", common)


def stop_in(process: int, patch: pytest.MonkeyPatch, config: Config, out: str) -> int:
    """Round after which a run stops that is interrupted in one process after round 2."""
    reporter = Progress.reporter

    def stopping(self: Progress, method: str) -> Reporter:
        tell = reporter(self, method)

        def report(facts: Mapping[str, Any]) -> None:
            tell(facts)
            if facts["round"] == 2 and os.environ.get("JAX_PROCESS_ID", "0") == str(process):
                os.kill(os.getpid(), signal.SIGINT)

        return report

    with patch.context() as inner:
        inner.setattr(Progress, "reporter", stopping)
        with pytest.raises(simulate.Interrupted) as stop:
            run(config, out)
    return stop.value.round


def complaint(do: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        do()
    return str(caught.value)


def one_of_two() -> None:
    """What each of two processes does; the first one alone has the folder."""
    environment.prepare_processes(2)
    config = load_config(CONFIG, **{"engine.processes": 2})
    index = os.environ["JAX_PROCESS_ID"]
    with pytest.MonkeyPatch.context() as patch:
        compile_once(patch)
        said: dict[str, Any] = {"stopped": stop_in(1, patch, config, "spread")}
        if processes.is_first():
            shutil.copytree("spread", "spread_half")
        said["error_deg"] = run(config, "spread", resume=True)["error_deg"]
        run(config, "half", resume=True)
        other = config.model_copy(update={"seed": int(index)})
        said["other"] = complaint(lambda: run(other))
        said["held"] = complaint(lambda: run(config, "spread"))
    Path(f"said{index}.json").write_text(json.dumps(said))


def start(index: int, address: str) -> subprocess.Popen:
    env = {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_PROCESS_ID": str(index),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)]),
    }
    code = "from test_processes import one_of_two; one_of_two()"
    return subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One process made `whole`, two `spread`; one began `half` and two ended it.

    `spread_half` was begun by two and ended by one.
    """
    place, config = tmp_path_factory.mktemp("processes"), load_config(CONFIG)
    with pytest.MonkeyPatch.context() as patch, socket.socket() as free:
        patch.chdir(place)
        compile_once(patch)
        run(config, "whole")
        assert stop_in(0, patch, config, "half") == 2
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        started = [start(index, address) for index in (0, 1)]
        try:
            errors = [process.communicate(timeout=600)[1] for process in started]
        finally:
            for process in started:
                process.kill()
        assert [process.returncode for process in started] == [0, 0], "\n".join(errors)
        assert not Path("spread_half/summary.json").exists()
        run(config, "spread_half", resume=True)
        yield place


def numbers(tree: Any) -> list[float]:
    if isinstance(tree, dict):
        return [x for value in tree.values() for x in numbers(value)]
    return [x for value in tree for x in numbers(value)] if isinstance(tree, list) else [tree]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spread", "half", "spread_half"])
def test_any_number_of_processes_gives_the_same_result(name: str, folder: Path) -> None:
    """Summaries are equal but for times, and what is measured but for the order of sums."""
    one, other = (json.loads((folder / run / "summary.json").read_text()) for run in ("whole", name))
    assert one.keys() == other.keys()
    for key in MEASURED:
        np.testing.assert_allclose(numbers(one[key]), numbers(other[key]), atol=2e-3, err_msg=key)
    for key in one.keys() - set(MEASURED):
        assert key.endswith("_s") or one[key] == other[key], key


@pytest.mark.slow
def test_both_processes_know_the_result_and_stop_together(folder: Path) -> None:
    first, second = (json.loads((folder / f"said{index}.json").read_text()) for index in (0, 1))
    assert first == second
    assert first["stopped"] == 2
    summary = json.loads((folder / "spread" / "summary.json").read_text())
    np.testing.assert_allclose(numbers(first["error_deg"]), numbers(summary["error_deg"]), atol=1e-4)


@pytest.mark.slow
def test_what_fails_in_one_process_fails_in_both(folder: Path) -> None:
    for index in (0, 1):
        said = json.loads((folder / f"said{index}.json").read_text())
        assert "process 1 has other data or settings than process 0" in said["other"]
        assert said["held"].startswith("process 0: spread already holds a run")


def test_processes_that_cannot_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "engine.processes is 3, but JAX has 1" in complaint(lambda: processes.require(3))
    monkeypatch.setenv("JAX_PROCESS_ID", "2")
    assert "JAX_PROCESS_ID is '2': give a number" in complaint(lambda: environment.prepare_processes(2))
