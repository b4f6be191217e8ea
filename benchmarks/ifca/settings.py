"""Settings of the experiment, read from YAML. Symbols are the paper's: k, m, n, r, sigma, d."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedjax_vp import settings_text
from fedjax_vp.errors import UserError

Count = Annotated[int, Field(ge=1)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]
Numbers = Annotated[tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...], Field(min_length=1)]


class Sweep(BaseModel):
    """A grid of points, all with k groups. A data set succeeds at distance <= 0.6 sigma + slack."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    k: Count = 2
    m: Counts
    n: Counts
    r: Numbers
    sigma: Numbers
    lr: Numbers
    rounds: Count = 300
    slack: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _whole_groups(self) -> Sweep:
        for m in self.m:
            if m % self.k:
                raise ValueError(f"m is {m} in sweep {self.name}: give a multiple of k, {self.k}")
        return self


class Experiment(BaseModel):
    """All sweeps, and what they share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d: Count = 1000
    data_sets: Count = 40
    at_once: Count = 1
    starts: Count = 10
    seed: int = 0
    tolerance: Annotated[float, Field(ge=0)] = 1e-4
    patience: Count = 5
    sweeps: Annotated[tuple[Sweep, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Experiment:
        if self.data_sets % self.at_once:
            raise ValueError(f"at_once is {self.at_once}: give a divisor of data_sets, {self.data_sets}")
        names = [sweep.name for sweep in self.sweeps]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"sweeps has {name!r} twice: give each a name of its own")
        return self


class Cell(NamedTuple):
    """One compiled shape: all (r, sigma) of a sweep at one (m, n), which share their samples."""

    sweep: Sweep
    m: int
    n: int

    @property
    def points(self) -> list[tuple[float, float]]:
        """(r, sigma) of each point."""
        return list(itertools.product(self.sweep.r, self.sweep.sigma))


def cells(experiment: Experiment) -> list[Cell]:
    """Every cell, in the order of the config."""
    return [Cell(sweep, m, n) for sweep in experiment.sweeps for m in sweep.m for n in sweep.n]


def identity(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """All that a cell's result depends on: a stored result is used again only where this is equal."""
    shared = experiment.model_dump(mode="json", exclude={"sweeps", "at_once"})
    return {**shared, **cell.sweep.model_dump(mode="json"), "m": cell.m, "n": cell.n}


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment that a YAML file describes, with some top-level keys replaced.

    Raises:
        UserError: The file cannot be read, or a setting is wrong.
    """
    try:
        return Experiment.model_validate({**settings_text.read(path), **(overrides or {})})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        given = f"{where} is {problem['input']!r}: " if where and problem["type"] != "value_error" else ""
        raise UserError(f"{path}: {given}{message}") from error
