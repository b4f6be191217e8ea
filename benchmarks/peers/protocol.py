"""What every peer shares: the work as arrays, and a loop that runs a round when asked. NumPy only.

    python PEER WORKLOAD FOLDER MODE

The folder holds `past.npy` [client, 256, 10, 3] and `future.npy` [client, 256, 25, 3] in the frame of the
last observed yaw, already in the order of the client's epoch, and the initial weights in `weights.npz`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BATCH, RATE = 32, 0.05
JUDGED = 16  # clients whose windows tell the global loss
TRIAL = 8  # clients of the round that warms up and is timed to choose a mode
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

_answers = sys.stdout


class Request(NamedTuple):
    """What a peer is asked to do on the command line."""

    workload: str
    folder: Path
    mode: str

    def work(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Past, future and initial weights."""
        with np.load(self.folder / "weights.npz") as arrays:
            weights = {name: arrays[name] for name in arrays.files}
        return np.load(self.folder / "past.npy"), np.load(self.folder / "future.npy"), weights


def request() -> Request:
    """Reads the command line, as `run.py` writes it.

    From here on what libraries print goes to standard error, processes they start included.
    """
    global _answers
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return Request(sys.argv[1], Path(sys.argv[2]), sys.argv[3])


def team(size: int) -> tuple[int, list[subprocess.Popen]]:
    """Rank of this process; the first one starts the others: the same command with the next ranks.

    They find each other by the variables that `torch.distributed` reads, and do what the first one is asked.
    """
    if size == 1 or "RANK" in os.environ:
        return int(os.environ.get("RANK", 0)), []
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "RANK": "0"}
    command = [sys.executable, *sys.argv]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    ranks = range(1, size)
    return 0, [subprocess.Popen(command, env={**os.environ, "RANK": str(r)}, **pipes) for r in ranks]


def serve(
    reset: Callable[..., None],
    run_round: Callable[[int | None], None],
    loss: Callable[[], float],
    others: list[subprocess.Popen] | tuple[()] = (),
) -> None:
    """Answers each line of standard input with one line of JSON, and passes it to the rest of the team.

    The words are `reset`, `round`, `trial` (a round of the first few clients) and `loss`; ours knows
    `reset 1e-7` too, which starts from weights that are off by this factor.
    """
    print(json.dumps({"versions": versions()}), file=_answers, flush=True)
    for line in sys.stdin:
        for other in others:
            print(line, end="", file=other.stdin, flush=True)
        begun = time.perf_counter()
        answer: dict[str, Any] = {}
        if line.startswith("reset"):
            reset(*map(float, line.split()[1:]))
        elif line.strip() == "loss":
            answer["loss"] = float(loss())
        else:
            run_round(TRIAL if line.strip() == "trial" else None)
        answer["seconds"] = time.perf_counter() - begun
        print(json.dumps(answer), file=_answers, flush=True)
    for other in others:
        other.stdin.close()
        other.wait()


def versions() -> dict[str, str]:
    """Versions of what makes a peer fast or slow, where it is installed."""
    found = {"python": platform.python_version()}
    for name in ("numpy", "torch", "flwr", "ray", "pfl", "fedjax", "jax", "flax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
