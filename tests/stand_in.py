"""A stand-in for the engine, for tests of what surrounds it, and a small table of traces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_vp.cost import Cost
from fedjax_vp.evaluate import Evaluation
from fedjax_vp.problem import Outcome, Problem

NUM_USERS, NUM_VIDEOS, LENGTH_S = 4, 2, 20.0


def write_traces(path: Path) -> Path:
    """A CSV of four users and two videos, yaw and pitch in degrees at 5 Hz."""
    random = np.random.default_rng(0)
    lines = ["user,video,t,yaw,pitch"]
    for user in range(NUM_USERS):
        for video in range(NUM_VIDEOS):
            time = np.arange(0, LENGTH_S, 0.2)
            yaw = np.cumsum(random.normal(0, 2, len(time)))
            lines += [
                f"u{user},v{video},{t:.1f},{y:.3f},{10 * np.sin(t):.3f}"
                for t, y in zip(time, yaw, strict=True)
            ]
    path.write_text("\n".join(lines) + "\n")
    return path


def simulate(
    problem: Problem,
    rounds: int,
    seed: int,
    run_dir: Path | None,
    resume: bool,
    reporter: Callable[[dict[str, Any]], None],
) -> Outcome:
    """Outcomes drawn from the seed and the number of levels, as fast as nothing."""
    session, now = np.nonzero(problem.split.test)
    offset = 0.1 * len(problem.method.levels)
    history = [
        {"round": r, "error_deg": [20.0 / r] * len(problem.evaluate.horizons_s), "loss": 1.0 / r}
        | {"bytes_up": 8 * r, "bytes_down": 9 * r}
        for r in sorted({1, rounds})
    ]
    for facts in history:
        reporter(facts)

    def evaluation(level: float) -> Evaluation:
        random = np.random.default_rng(seed)
        error = random.gamma(2.0, level, (len(session), len(problem.evaluate.horizons_s)))
        tiles = random.uniform(size=(len(session), len(problem.evaluate.tile_horizons_s), 4))
        return Evaluation(
            session.astype(np.int32),
            (now / 5).astype(np.float32),
            error.astype(np.float32),
            tiles.astype(np.float32),
        )

    def unit(*shape: int) -> np.ndarray:
        vectors = np.random.default_rng(seed).normal(size=(*shape, 3))
        return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)

    return Outcome(
        state={"w": np.zeros(3)},
        history=history,
        evaluation=evaluation(10.0 - offset),
        baselines={"no_motion": evaluation(12.0), "velocity": evaluation(14.0)},
        timings={"compile_s": 1.0, "wall_s": 2.0, "evaluate_s": 3.0, "clustering_s": 0.0},
        counters={
            "num_params": 10,
            "bytes_up": 8 * rounds,
            "bytes_down": 9 * rounds,
            "state_bytes": 40,
            "num_clients": 4,
            "num_groups": {level.name: 1 for level in problem.method.levels},
            "nonfinite_clients": 0,
        },
        examples={
            "past": unit(6, 10),
            "true": unit(6, 25),
            "predicted": unit(6, 25),
            "session": session[:6].astype(np.int32),
            "now_s": (now[:6] / 5).astype(np.float32),
        },
        cost=cost([level.name for level in problem.method.levels]),
    )


def cost(levels: list[str]) -> Cost:
    """The same number of everything, one more a level."""
    numbers = list(range(1, len(levels) + 1))
    return Cost(levels, numbers, numbers, numbers, numbers, [0.001 * n for n in numbers])
