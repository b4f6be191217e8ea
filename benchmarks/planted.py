"""Planted hierarchical federation: are the groups found, and is what they gain kept, as they draw apart?

    python benchmarks/planted.py --out runs/planted [--distances 0 1 4] [--methods fedavg five_layers ...]

Two federations of 16 viewers and 4 videos with 2 x 2 planted groups, 5 seeds each, a linear predictor (the
planted response is linear), 200 rounds, at each distance between the groups; the seeds of a federation run
side by side in one compiled function. Run it again with the same folder and finished cells are reused: the
table is of all that are there. Writes `cells/*.json` (a point a seed), `planted.json`, `planted.md` and
`planted.png` into the folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console

from fedjax_vp.environment import prepare_jax

DISTANCES = (0.0, 0.5, 1.0, 2.0, 4.0)
FEDERATIONS, SEEDS, ROUNDS = 2, 5, 200
HORIZONS_S = (1.0, 3.0, 5.0)
BASE: Mapping[str, Any] = {
    "rounds": ROUNDS,
    "protocol.kind": "within_session",
    "model.kind": "linear",
    "model.features.crowd": False,
    "model.features.table": 0,
    "local.lr": 2.0,
    "participation.kind": "uniform",
    "participation.clients": 24,
    "evaluate.horizons_s": list(HORIZONS_S),
    "evaluate.tile_horizons_s": [1.0],
    "evaluate.every": ROUNDS,
    "evaluate.history_windows": 1,
    "compare": [],
}
GROUPINGS = (*("ifca", "feddrift", "cfl", "fedgroup", "flexcfl", "fl_hc", "update_kmeans", "pacfl"),)
METHODS = ("fedavg", "oracle", "known_tree", "five_layers", "no_leaves", "fedem", *GROUPINGS)
WARMUPS = {  # of levels, where the recipes' are made for 300 rounds
    "ifca": {"cluster": 20},
    "feddrift": {"cluster": 20},
    "cfl": {"cluster": 20},
    "five_layers": {"video_category": 20, "viewers": 30},
    "no_leaves": {"video_category": 20, "viewers": 30},
}
TREE = {"video_category": "video_category", "viewers": "video_category*user_category"}  # of `known_tree`
STACKS = ("known_tree", "five_layers", "no_leaves")
TITLES = {
    "known_tree": "five layers, tree known",
    "five_layers": "five layers, learned",
    "no_leaves": "learned, no video nor user",
    "oracle": "groups known",
}


def main() -> None:
    """Runs the cells that are missing, then prints the table and writes everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/planted"))
    parser.add_argument("--distances", type=float, nargs="+", default=list(DISTANCES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--federations", type=int, default=FEDERATIONS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    prepare_jax()
    keys = [
        (method, distance, federation, options.seeds)
        for method in options.methods
        for distance in options.distances
        for federation in range(options.federations)
    ]
    points = collect(keys, options.out / "cells")
    found = summarize(points)
    text = table(found)
    print(text)
    device = sorted({point["device"] for point in points})
    seconds = sum(point["seconds"] for point in points)
    whole = {
        "rounds": ROUNDS,
        "horizons_s": HORIZONS_S,
        "device": device,
        "wall_s": seconds,
        "summary": found,
    }
    (options.out / "planted.json").write_text(json.dumps(whole, indent=1) + "\n")
    (options.out / "planted.md").write_text(text + "\n")
    draw(found, options.out / "planted.png")


def collect(keys: Sequence[tuple[str, float, int, int]], folder: Path) -> list[dict[str, Any]]:
    """Points of all cells in the folder, those asked for computed if missing; says how long that may take."""
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    paths = {key: folder / "-".join([key[0], f"{key[1]:g}", *map(str, (*key[2:], ROUNDS))]) for key in keys}
    paths = {key: path.with_name(path.name + ".json") for key, path in paths.items()}
    todo, begun = [key for key, path in paths.items() if not path.is_file()], time.perf_counter()
    console.print(
        f"{len(todo)} of {len(keys)} cells to compute, 10 to 60 s each on two cores", highlight=False
    )
    for done, key in enumerate(todo, 1):
        points = cell(*key)
        part = paths[key].with_suffix(".part")
        part.write_text(json.dumps(points) + "\n")
        part.replace(paths[key])
        left = (time.perf_counter() - begun) / done * (len(todo) - done)
        error = np.mean([point["error_deg"][-1] for point in points])
        console.print(
            f"{done} of {len(todo)}: {key[0]}, distance {key[1]:g}, federation {key[2]}: {error:.2f}° at "
            f"{HORIZONS_S[-1]:g} s, about {left / 60:.0f} min left",
            highlight=False,
        )
    points = [point for path in folder.glob(f"*-{ROUNDS}.json") for point in json.loads(path.read_text())]
    return sorted(points, key=lambda one: (METHODS.index(one["method"]), one["distance"], one["federation"]))


def cell(method: str, distance: float, federation: int, seeds: int) -> list[dict[str, Any]]:
    """One method on one federation, all seeds side by side."""
    import jax

    from fedjax_vp import fitting
    from fedjax_vp.course import Course, advance
    from fedjax_vp.evaluate import evaluate
    from fedjax_vp.federated import census
    from fedjax_vp.problem import Common, Point

    begun, config = time.perf_counter(), config_of(method, distance, federation)
    traces, split = fitting.load_traces(config)
    horizons = fitting.horizons(config, traces.rate_hz)
    common = Common(fitting.problem(config, traces, split, horizons), config.rounds, seeds)
    points = []
    for first in range(0, seeds, common.chunk.width):
        some = range(first, min(first + common.chunk.width, seeds))
        courses = [Course(common, Point(seed, config.method)) for seed in some]
        while courses[0].done < config.rounds and not any(course.failed for course in courses):
            advance(common, courses)
        for seed, course in zip(some, courses, strict=True):
            if course.failed:
                raise course.failed
            placed, mixing = course.forecaster_state()
            found = evaluate(common.errors, (placed, mixing), common.sim, common.arrays.test)
            groups = {one["level"]: one for one in census.take(common.sim, placed.levels)}
            facts = {level: {k: one[k] for k in ("groups", "ari", "nmi")} for level, one in groups.items()}
            error = [round(float(x), 4) for x in found.error_deg.mean(axis=0)]
            key = {"method": method, "distance": distance, "federation": federation, "seed": seed}
            points.append({**key, "error_deg": error, "levels": facts})
    device, spent = jax.devices()[0].device_kind, (time.perf_counter() - begun) / seeds
    return [{**point, "device": device, "seconds": round(spent, 2)} for point in points]


def config_of(method: str, distance: float, federation: int) -> Any:
    """Settings of one cell."""
    from fedjax_vp.config import load_config

    data = {"kind": "planted", "users": 16, "videos": 4, "duration_s": 60.0}
    overrides = {**BASE, "dataset": {**data, "distance": distance, "seed": federation}}
    for level, rounds in WARMUPS.get(method, {}).items():
        overrides[f"levels.{level}.grouping.warmup"] = rounds
    if method in STACKS:
        config = load_config("planted_five_layers", **overrides)
        levels = [dict(level) for level in config.to_mapping()["levels"]]
        if method == "no_leaves":
            levels = [level for level in levels if level["name"] not in ("video", "user")]
        for level in levels if method == "known_tree" else ():
            if level["name"] in TREE:
                level |= {"by": TREE[level["name"]], "grouping": {"kind": "known"}}
        rest = {key: value for key, value in overrides.items() if not key.startswith("levels.")}
        return load_config("planted_five_layers", **rest, levels=levels)
    return load_config({"algorithm": method}, **overrides)


def summarize(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By method and distance: error at the last horizon, against FedAvg and oracles, and scores of groups.

    Ratios are of runs on the same federation with the same seed; intervals are 95 % over all of these.
    """
    from fedjax_vp import metrics

    errors: dict[tuple[str, float], dict[tuple[int, int], float]] = {}
    for point in points:
        runs = errors.setdefault((point["method"], point["distance"]), {})
        runs[point["federation"], point["seed"]] = point["error_deg"][-1]
    found = []
    for (method, distance), runs in errors.items():
        line: dict[str, Any] = {"method": method, "distance": distance, "runs": len(runs)}
        line["error_deg"] = spread(metrics.interval(np.array(list(runs.values()))))
        for other in ("fedavg", "oracle", "known_tree"):
            theirs = errors.get((other, distance))
            if theirs and theirs.keys() == runs.keys():
                ratio = np.array([runs[key] / theirs[key] - 1 for key in runs])
                line[f"against_{other}"] = spread(metrics.interval(ratio))
        mine = [p for p in points if (p["method"], p["distance"]) == (method, distance)]
        line["ari"] = {
            level: spread(metrics.interval(np.array([point["levels"][level]["ari"] for point in mine])))
            for level in mine[0]["levels"]
        }
        found.append(line)
    return found


def spread(interval: Any) -> list[float | None]:
    """Mean and half of the interval; JSON knows no NaN."""
    half = float(interval.high - interval.mean)
    return [round(float(interval.mean), 4), round(half, 4) if np.isfinite(half) else None]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line a method, a column a distance: error at 5 s, in brackets against FedAvg; then ARI."""
    distances = sorted({line["distance"] for line in found})
    methods = list(dict.fromkeys(line["method"] for line in found))
    at = {(line["method"], line["distance"]): line for line in found}
    head = " | ".join(f"{d:g}" for d in distances)
    text = [f"| error at {HORIZONS_S[-1]:g} s, by distance | {head} |", "|---" * (len(distances) + 1) + "|"]
    for method in methods:
        cells = []
        for distance in distances:
            line = at.get((method, distance))
            ratio = line and line.get("against_fedavg")
            cells.append("" if line is None else f"{line['error_deg'][0]:.2f}°")
            cells[-1] += f" ({ratio[0]:+.1%} ± {ratio[1] or 0:.1%})" if ratio and method != "fedavg" else ""
        text.append(f"| {TITLES.get(method, method)} | " + " | ".join(cells) + " |")
    text += ["", f"| ARI, by distance | {head} |", "|---" * (len(distances) + 1) + "|"]
    for method, level in dict.fromkeys((line["method"], level) for line in found for level in line["ari"]):
        cells = [at[method, d]["ari"][level] if (method, d) in at else None for d in distances]
        shown = " | ".join("" if one is None else f"{one[0]:.2f} ± {one[1] or 0:.2f}" for one in cells)
        name = TITLES.get(method, method) + (f": {level}" if level != "cluster" else "")
        text.append(f"| {name} | {shown} |")
    return "\n".join([*text, "", *verdicts(at, distances)])


def verdicts(at: Mapping[tuple[str, float], dict[str, Any]], distances: Sequence[float]) -> list[str]:
    """What is asked of five layers: near the oracle and below FedAvg far apart, FedAvg where all is one."""
    asked = [
        ("against_known_tree", max(distances), 0.03, "at most 3 % above five layers that know the tree"),
        ("against_fedavg", max(distances), -0.10, "at least 10 % below FedAvg"),
        ("against_fedavg", 0.0, 0.01, "within 1 % of FedAvg"),
    ]
    lines = []
    for key, distance, most, claim in asked:
        ratio = at.get(("five_layers", distance), {}).get(key)
        if ratio:
            holds = abs(ratio[0]) <= most if distance == 0 else ratio[0] <= most
            verdict = f"{ratio[0]:+.1%} ± {ratio[1] or 0:.1%}"
            lines.append(f"{'yes' if holds else 'NO'}: distance {distance:g}, {claim}: {verdict}")
    return lines


def draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """ARI of each grouping over distance; error of the stacks against FedAvg over distance."""
    import matplotlib
    from matplotlib.figure import Figure

    from fedjax_vp.report import style

    scored = dict.fromkeys((line["method"], level) for line in found for level in line["ari"])
    scored = [one for one in scored if one[0] != "no_leaves"]
    names = {one: one[0] if one[1] == "cluster" else f"five layers: {one[1]}" for one in scored}
    errors = [m for m in METHODS if m != "fedavg" and any(line["method"] == m for line in found)]
    with matplotlib.rc_context(style.RC):
        figure = Figure(figsize=(9.5, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        looks = style.looks(list(dict.fromkeys([*errors, *names.values()])))
        for (method, level), name in names.items():
            mine = [line for line in found if line["method"] == method]
            _line(left, mine, [line["ari"][level] for line in mine], (name, looks[name]))
        for method in errors:
            mine = [line for line in found if line["method"] == method and "against_fedavg" in line]
            ratios = [[100 * (x or 0) for x in line["against_fedavg"]] for line in mine]
            _line(right, mine, ratios, (TITLES.get(method, method), looks[method]))
        left.set(xlabel="distance between groups", ylabel="ARI", ylim=(-0.1, 1.05))
        right.set(xlabel="distance between groups", ylabel=f"error at {HORIZONS_S[-1]:g} s against FedAvg, %")
        right.axhline(0, color="#555555", linewidth=0.8)
        for panel in (left, right):
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize=7)
    style.save(figure, path.with_suffix(""))
    path.with_suffix(".pdf").unlink()


def _line(panel: Axes, lines: Sequence[dict[str, Any]], values: Sequence[Any], look: tuple[str, Any]) -> None:
    """Means over distance with their intervals."""
    at = [line["distance"] for line in lines]
    panel.plot(at, [value[0] for value in values], **look[1].line(), markevery=1, label=look[0])
    low, high = ([value[0] + sign * (value[1] or 0) for value in values] for sign in (-1, 1))
    panel.fill_between(at, low, high, color=look[1].color, alpha=0.12, linewidth=0)


if __name__ == "__main__":
    main()
