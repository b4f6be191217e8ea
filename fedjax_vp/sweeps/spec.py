"""What a sweep is made of: a YAML file that names a config and what varies.

    config: jin_fedavg                    # a shipped name or a path
    grid:                                 # every combination
      seed: [0, 1, 2]
      local.lr: [0.03, 0.1, 0.3]
    points:                               # if wanted: settings that belong together
      - {model.kind: mlp, rounds: 100}
      - {model.kind: gru, rounds: 200}

Each of `points` is combined with every combination of the grid.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_vp.config import Config, find_config, load_config
from fedjax_vp.errors import UserError
from fedjax_vp.settings_text import plain, read
from fedjax_vp.suggest import suggestion

_KEYS = ("config", "grid", "points")
_FREE = ("name", "engine", "compare")  # settings that decide no result of a point


class Sweep(NamedTuple):
    """A sweep as its file says it."""

    config: Path
    varied: tuple[str, ...]  # dotted keys, in the order given
    points: list[dict[str, Any]]  # values of what varies


class Planned(NamedTuple):
    """A point of a sweep.

    Attributes:
        values: Of the settings that vary.
        folder: Its run folder, named by the hash of the resolved config.
        config: Resolved; None where the values are refused.
        refused: Why they are.
    """

    values: dict[str, Any]
    folder: Path
    config: Config | None
    refused: str = ""


def read_sweep(path: Path) -> Sweep:
    """Reads a sweep's file.

    Raises:
        UserError: It is missing or malformed.
    """
    if not path.is_file():
        raise UserError(f"sweep {path} does not exist: give the path of a YAML file (docs/sweep.md)")
    given = read(path)
    for key in given:
        if key not in _KEYS:
            raise UserError(f"{path}: {key} is not a key of a sweep: {suggestion(key, _KEYS)}")
    if not isinstance(given.get("config"), str):
        raise UserError(f"{path}: config is missing: give the path of a config or a shipped name")
    beside = path.parent / given["config"]
    grid, points = _grid(path, given.get("grid", {})), _points(path, given.get("points", [{}]))
    twice = [key for point in points for key in point if key in grid]
    if twice:
        raise UserError(f"{path}: {twice[0]} stands in grid and in points: give it once")
    varied = tuple(dict.fromkeys((*grid, *(key for point in points for key in point))))
    if not varied:
        raise UserError(f"{path}: nothing varies: give grid: {{seed: [0, 1, 2]}}, say")
    combined = [
        {**point, **dict(zip(grid, values, strict=True))}
        for point in points
        for values in itertools.product(*grid.values())
    ]
    return Sweep(beside if beside.is_file() else find_config(given["config"]), varied, combined)


def plan(sweep: Sweep, overrides: Iterable[tuple[str, Any]], out: Path) -> list[Planned]:
    """Resolves every point; of points that come out the same the first is kept.

    Args:
        sweep: What varies.
        overrides: Settings by dotted key, for all points.
        out: Folder of the sweep; a point's folder lies in it.

    Raises:
        UserError: No point is accepted, or an override is of something that varies.
    """
    fixed = dict(overrides)
    for key in fixed:
        if key in sweep.varied:
            raise UserError(f"--{key}: the sweep varies it; take it out of one of the two")
    found: dict[str, Planned] = {}
    for values in sweep.points:
        try:
            config = load_config(sweep.config, **{**fixed, **values, "compare": []})
        except UserError as error:
            key = identity({"refused": values})
            found.setdefault(key, Planned(values, out / key, None, str(error)))
            continue
        key = identity(config.to_mapping())
        found.setdefault(key, Planned(values, out / key, config))
    planned = list(found.values())
    if all(point.config is None for point in planned):
        raise UserError(planned[0].refused)
    return planned


def identity(mapping: Mapping[str, Any]) -> str:
    """Hash of a resolved config, less what decides no result.

    >>> identity({"seed": 0, "name": "a"}) == identity({"seed": 0, "name": "b"})
    True
    """
    kept = {key: plain(value) for key, value in mapping.items() if key not in _FREE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def _grid(path: Path, grid: Any) -> dict[str, list[Any]]:
    if not isinstance(grid, Mapping):
        raise UserError(f"{path}: grid is {grid!r}: give a mapping of settings to lists of values")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}: grid.{key} is {values!r}: give a list of values, such as [0, 1, 2]")
    return dict(grid)


def _points(path: Path, points: Any) -> list[dict[str, Any]]:
    if not isinstance(points, list) or not points or not all(isinstance(one, Mapping) for one in points):
        raise UserError(f"{path}: points is {points!r}: give a list of mappings of settings to values")
    return [dict(one) for one in points]
