"""Four published data sets, four ways of sharing: the table of the README, made by one resumable command.

    python benchmarks/real_traces.py --out runs/real_traces [--sets jin wu david avtrack] [--seeds 0]

Run it again with the same folder and finished runs are reused, interrupted ones go on. The data sets must
have been imported (`fedjax-vp data import NAME PATH`). Writes `real_traces.json` and `real_traces.md` into
the folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fedjax_vp.commands.compare import execute, parse_seeds
from fedjax_vp.environment import prepare_jax

METHODS = ("centralized", "fedavg", "per_video", "global_video")
KEPT = (
    "algorithm",
    "seed",
    "rounds",
    "model",
    "num_params",
    "num_clients",
    "num_windows",
    "horizons_s",
    "error_deg",
)
KEPT += ("baselines", "worst_decile_deg", "bytes_up", "bytes_down", "compile_s", "wall_s", "evaluate_s")
SETS = ("jin", "wu", "david", "avtrack")


def main() -> None:
    """Runs what is missing, then writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real_traces"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    options = parser.parse_args()
    prepare_jax()
    seeds = parse_seeds(options.seeds)
    for name in options.sets:
        execute([f"{name}_{method}" for method in METHODS], seeds, options.out / name)
    found = {name: collect(options.out / name) for name in options.sets}
    (options.out / "real_traces.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    text = "\n\n".join(table(name, runs) for name, runs in found.items())
    (options.out / "real_traces.md").write_text(text + "\n")
    print(text)


def collect(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Summaries of the finished runs below a folder, by method."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.rglob("summary.json")):
        whole = json.loads(path.read_text())
        one = {key: whole[key] for key in KEPT}
        found.setdefault(one["algorithm"], []).append(one)
    return found


def table(name: str, runs: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: mean error in degrees at each horizon, and in brackets its ratio to no motion."""
    first = next(iter(runs.values()))[0]
    still = first["baselines"]["no_motion"]["mean"]
    rows = {"no motion": still, "velocity": first["baselines"]["velocity"]["mean"]}
    for method in METHODS:
        errors = [one["error_deg"]["mean"] for one in runs.get(method, [])]
        if errors:
            rows[method] = [sum(column) / len(column) for column in zip(*errors, strict=True)]
    head = [
        f"{name}, {first['num_windows']} windows",
        *(f"{h:g} s" for h in first["horizons_s"]),
        "train (s)",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for method, errors in rows.items():
        cells = [f"{e:.2f} ({e / s:.3f})" for e, s in zip(errors, still, strict=True)]
        seconds = f"{runs[method][0]['wall_s']:.0f}" if method in runs else ""
        lines.append("| " + " | ".join([method.replace("_", " "), *cells, seconds]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
