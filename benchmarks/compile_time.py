"""Compile time of shipped configs, cold and from the persistent cache.

    python benchmarks/compile_time.py                 # one data set a method: about 20 min on 2 cores
    python benchmarks/compile_time.py --all           # every shipped config: about 60 min
    python benchmarks/compile_time.py quickstart      # chosen ones

Each config runs one round of its own method twice, each in a process of its own: first with an empty
compilation cache, then with what the first has left there. `chunk` is `compile_s` of its summary (tracing,
lowering and compiling of the first chunk), `evaluation` its `evaluate_compile_s`. What the output file holds
already is not measured again: the same command goes on where it was stopped (`--fresh` begins anew).
Configs whose data set has not been imported are named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ceilings import device

from fedjax_vp.environment import prepare_jax

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DATA_SET = "jin_"  # stands for the other data sets, which only differ in sizes
TARGETS_S = {"cold": 10.0, "cached": 2.0}


def compile_s(config: str, cache: Path, out: Path) -> dict[str, float]:
    """Compile times of a run of one round, with few sessions to measure.

    Raises:
        RuntimeError: the run failed; the text is its last line.
    """
    command = [sys.executable, "-c", "from fedjax_vp.cli import main; main()", "run", config]
    few = ["--rounds", "1", "--compare", "[]", "--evaluate.sessions", "64", "--out", str(out)]
    result = subprocess.run(
        [*command, *few],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise RuntimeError((result.stderr.strip().splitlines() or ["?"])[-1])
    summary = json.loads((out / "summary.json").read_text())
    return {"chunk": round(summary["compile_s"], 2), "evaluation": round(summary["evaluate_compile_s"], 2)}


def chosen(names: list[str], everything: bool) -> list[str]:
    """Names of configs: those given, or one data set's for each method, or all."""
    known = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    if names or everything:
        return names or known
    return [n for n in known if n.startswith(DATA_SET) or DATA_SET + n.partition("_")[2] not in known]


def measure(names: list[str], rows: dict[str, Any], out: Path) -> None:
    """Adds cold and cached compile times of each config that is not among the rows, and writes them."""
    for number, name in enumerate(names, 1):
        if name in rows:
            continue
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / "cache"
            try:
                rows[name] = {key: compile_s(name, cache, Path(folder) / key) for key in TARGETS_S}
            except RuntimeError as reason:
                print(f"{name}: left out: {reason}", file=sys.stderr)
                continue
        told = ", ".join(f"{k} {v['chunk']:.2f} s + {v['evaluation']:.2f} s" for k, v in rows[name].items())
        print(f"{number}/{len(names)} {name:28s} {told}", flush=True)
        out.write_text(json.dumps({"machine": device(), "configs": rows}, indent=1) + "\n")


def draw(rows: dict[str, Any], path: Path) -> None:
    """Bars of both times by config, with the targets."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 1.2 + 0.28 * len(rows)), layout="constrained")
    for offset, key, color in ((-0.2, "cold", "0.35"), (0.2, "cached", "0.75")):
        places = [place + offset for place in range(len(rows))]
        axes.barh(places, [row[key]["chunk"] for row in rows.values()], 0.38, color=color, label=key)
        axes.axvline(TARGETS_S[key], color=color, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlabel="compile time of the first chunk (s); dashed: targets")
    axes.invert_yaxis()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", help="names of shipped configs")
    parser.add_argument("--all", action="store_true", help="every shipped config")
    parser.add_argument("--fresh", action="store_true", help="measure again what the output file holds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/compile_time.json"))
    options = parser.parse_args()
    prepare_jax()
    kept = options.out.is_file() and not options.fresh
    rows = json.loads(options.out.read_text())["configs"] if kept else {}
    measure(chosen(options.configs, options.all), rows, options.out)
    if rows:
        draw(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
