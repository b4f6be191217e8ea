"""What every peer shares: the work as arrays, and a loop that runs a round when asked. NumPy only.

A peer reads one `.npz`: `past` [client, 256, 10, 3] and `future` [client, 256, 25, 3] in the frame of the
last observed yaw, already in the order of the client's epoch, and the initial weights under `weight/<name>`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BATCH, RATE = 32, 0.05
JUDGED = 16  # clients whose windows tell the global loss


def load(path: str) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Past, future and initial weights."""
    with np.load(path) as arrays:
        weights = {n.removeprefix("weight/"): arrays[n] for n in arrays.files if n.startswith("weight/")}
        return arrays["past"], arrays["future"], weights


def serve(reset: Callable[[], None], run_round: Callable[[], None], loss: Callable[[], float]) -> None:
    """Answers each line of standard input with one line of JSON: `round`, `reset`, or `loss`."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print must not mix with the answers
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        answer: dict[str, Any] = {}
        if line.strip() == "round":
            run_round()
        elif line.strip() == "reset":
            reset()
        else:
            answer["loss"] = float(loss())
        answer["seconds"] = time.perf_counter() - begun
        print(json.dumps(answer), file=answers, flush=True)


def arguments() -> tuple[str, Path]:
    """Workload and path of its arrays, as `run.py` hands them over."""
    return sys.argv[1], Path(sys.argv[2])
