"""What the server and a headset keep at each depth of the shipped five layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fedjax_vp as fvp
from fedjax_vp import fitting
from fedjax_vp.cost import by_depth as costs

CONFIG = "planted_five_layers"


def by_depth(out: Path) -> dict[str, list[Any]]:
    """Bytes and time by depth; kept as `depths.json`."""
    config = fvp.load_config(CONFIG)
    traces, split = fitting.load_traces(config)
    problem = fitting.problem(config, traces, split, fitting.horizons(config, traces.rate_hz))
    sim = problem.simulator()
    found = costs(sim)._asdict()
    (out / "depths.json").write_text(json.dumps({"config": CONFIG, **found}, indent=1) + "\n")
    return found
