"""From a config to a folder of cold starts: the base runs, then cell by cell what is missing.

A cell is a seed with new videos over rounds, with new videos of so many viewers, or with new users. Its file
is written when it is complete; the same command again goes on with those that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from fedjax_vp import experiment, fitting, results
from fedjax_vp.checkpoint import Checkpoints
from fedjax_vp.coldstart import estimate
from fedjax_vp.coldstart.users import NewUsers
from fedjax_vp.coldstart.videos import NewVideos
from fedjax_vp.config import Config
from fedjax_vp.data import splits
from fedjax_vp.data.protocols import UnseenBoth, Windows
from fedjax_vp.errors import UserError
from fedjax_vp.evaluate import Evaluation, make_mixing
from fedjax_vp.federated import mixing
from fedjax_vp.federated import round as rounds_of
from fedjax_vp.federated.placement import make_place
from fedjax_vp.federated.round import State
from fedjax_vp.federated.simulator import Simulator
from fedjax_vp.problem import Problem
from fedjax_vp.progress import Tally, duration
from fedjax_vp.sweeps import groups

ROUNDS, VIEWERS, SECONDS = "rounds", "viewers", "seconds"
"""What is counted, the column `known` of coldstart.parquet."""


class Cell(NamedTuple):
    """What is measured and written at once."""

    known: str
    viewers: int | None  # of a new video; None: all
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        count = "" if self.viewers is None else f"-{self.viewers}"
        return f"{self.known}{count}-seed{self.seed}"


def adjusted(config: Config) -> Config:
    """The config as the base method is trained: test users and test videos train nowhere."""
    protocol = config.protocol
    if not isinstance(protocol, UnseenBoth):
        shared = {one.name: getattr(protocol, one.name) for one in fields(Windows)}
        protocol = UnseenBoth(**shared)
    evaluate = replace(config.evaluate, phase="test")
    mixing = replace(config.mixing, experts=())  # who arrives, arrives in one hierarchy
    changes = {"protocol": protocol, "compare": (), "evaluate": evaluate, "mixing": mixing}
    return config.model_copy(update=changes)


def protocol_of(config: Config) -> UnseenBoth:
    """The protocol of an adjusted config."""
    assert isinstance(config.protocol, UnseenBoth)
    return config.protocol


def cells(config: Config, seeds: Sequence[int]) -> list[Cell]:
    """All cells, in the order in which they are run."""
    return [
        cell
        for seed in seeds
        for cell in (
            Cell(ROUNDS, None, seed),
            *(Cell(VIEWERS, count, seed) for count in config.coldstart.viewers),
            Cell(SECONDS, None, seed),
        )
    ]


def rounds(config: Config, seeds: Sequence[int], out: Path) -> dict[Path, int]:
    """Rounds of each base run and cell, by folder or file; new users count as one."""
    settings = config.coldstart
    cost = {ROUNDS: max(settings.rounds[-1], 1), VIEWERS: settings.viewer_rounds, SECONDS: 1}
    return {base_folder(out, seed): config.rounds for seed in seeds} | {
        path(out, cell): cost[cell.known] for cell in cells(config, seeds)
    }


def run(config: Config, seeds: Sequence[int], out: Path, tally: Tally) -> pl.DataFrame:
    """Runs what is missing in the folder.

    Args:
        config: from `adjusted`.
        seeds: of the base runs and of all that follows.
        out: the folder.
        tally: told of rounds done.

    Returns:
        One row a cell's start (`start`), number (`count` of what is `known`) and horizon.

    Raises:
        UserError: A base run failed.
        fedjax_vp.simulate.Interrupted: Ctrl-C; running it again goes on.
    """
    traces, split = fitting.load_traces(config)
    experiment.describe(out, config, {}, traces)
    measured = fitting.horizons(config, traces.rate_hz)
    problem = fitting.problem(config, traces, split, measured)
    arrivals = splits.arrivals(traces, protocol_of(config))
    missing = [cell for cell in cells(config, seeds) if not path(out, cell).is_file()]
    if len(missing) == len(cells(config, seeds)):
        about = duration(estimate.seconds(problem, arrivals, config, seeds))
        tally.note(f"about {about} in all on this machine, if it is quiet")
    bases = [groups.Case(config.model_copy(update={"seed": seed}), base_folder(out, seed)) for seed in seeds]
    for folder, reason in groups.run(bases, tally).items():
        raise UserError(f"{folder}: {reason}")
    for cell in set(cells(config, seeds)) - set(missing):
        tally.end(path(out, cell), before=True)
    if missing:
        lab = Laboratory(config, problem, arrivals)
        for cell in missing:
            rows = lab.measure(cell, base_folder(out, cell.seed))
            results.write_table(path(out, cell), pl.DataFrame(rows))
            tally.end(path(out, cell))
    return pl.concat([pl.read_parquet(path(out, cell)) for cell in cells(config, seeds)])


def base_folder(out: Path, seed: int) -> Path:
    """Where the base method of a seed is trained."""
    return out / "base" / f"seed{seed}"


def path(out: Path, cell: Cell) -> Path:
    """A cell's file."""
    return out / "cells" / f"{cell.name}.parquet"


class Laboratory:
    """Everything compiled, and the state of the last seed asked for."""

    def __init__(self, config: Config, problem: Problem, arrivals: splits.Arrivals) -> None:
        self.config, self.horizons_s = config, problem.evaluate.horizons_s
        self.base = Base(problem)
        self.videos = NewVideos(problem, arrivals.videos, config.coldstart, config.algorithm)
        self.users = NewUsers(problem, protocol_of(config), config.coldstart, config.algorithm)

    def measure(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """A cell's rows."""
        state, weights = self.base.trained(folder, cell.seed)
        rows = []
        for start, count, found in self._evaluations(cell, state, weights):
            error = np.asarray(found.error_deg, np.float64)
            for horizon_s, column in zip(self.horizons_s, error.T, strict=True):
                about = {"known": cell.known, "seed": cell.seed, "start": start, "count": float(count)}
                about |= {"horizon_s": horizon_s, "windows": len(column)}
                rows.append(about | {"mean": column.mean(), "median": float(np.median(column))})
        return rows

    def _evaluations(
        self, cell: Cell, state: State, weights: mixing.Weights
    ) -> Iterator[tuple[str, float, Evaluation]]:
        settings = self.config.coldstart
        if cell.known == SECONDS:
            yield from self.users.errors(state, weights)
            return
        arrays = self.videos.viewers(cell.viewers, cell.seed)
        budgets = settings.rounds
        if cell.viewers is not None:
            budgets = (settings.viewer_rounds if cell.viewers else 0,)
        for start in self.videos.starts:
            for done, found in self.videos.course(start, state, weights, arrays, budgets):
                yield start, done if cell.viewers is None else cell.viewers, found


class Base:
    """The base method: its states are read from checkpoints."""

    def __init__(self, problem: Problem) -> None:
        self.sim: Simulator = problem.simulator()
        self._mixing, self._place = make_mixing(self.sim), make_place(self.sim)
        self._kept: dict[int, tuple[State, mixing.Weights]] = {}

    def trained(self, folder: Path, seed: int) -> tuple[State, mixing.Weights]:
        """The final state of a seed's run, and the weights of its prefixes.

        Raises:
            UserError: Its checkpoints are gone.
        """
        if seed not in self._kept:
            checkpoints = Checkpoints(folder / "checkpoints")
            template = rounds_of.init(self.sim, jnp.asarray(np.uint32(seed).view(np.int32)))
            found = checkpoints.latest(template)
            checkpoints.close()
            if found is None:
                raise UserError(f"{folder}: its checkpoints are gone; delete the folder, to train it again")
            state = jax.tree.map(jnp.asarray, found[0])
            self._kept = {seed: (state, self._mixing(self._place(state)))}
        return self._kept[seed]
