"""Compile time of every shipped config's first chunk, cold and from the persistent cache.

    python benchmarks/compile_time.py --out benchmarks/results/compile_time.json

Each config runs one round twice in a process of its own, first with an empty compilation cache, then with
what the first has left there; the time is `compile_s` of its summary. Configs whose data set has not been
imported are named and left out.
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
TARGETS_S = {"cold": 10.0, "cached": 2.0}


def compile_s(config: str, cache: Path, out: Path) -> float:
    """Compile time of a run of one round.

    Raises:
        RuntimeError: the run failed; the text is its last line.
    """
    command = [sys.executable, "-c", "from fedjax_vp.cli import main; main()"]
    result = subprocess.run(
        [*command, "run", config, "--rounds", "1", "--out", str(out)],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise RuntimeError((result.stderr.strip().splitlines() or ["?"])[-1])
    return json.loads((out / "summary.json").read_text())["compile_s"]


def measure(names: list[str]) -> list[dict[str, Any]]:
    """Cold and cached compile time of each config that runs."""
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / "cache"
            try:
                row = {key: compile_s(name, cache, Path(folder) / key) for key in TARGETS_S}
            except RuntimeError as reason:
                print(f"{name}: left out: {reason}", file=sys.stderr)
                continue
        rows.append({"config": name, **row})
        print(f"{name:28s} cold {row['cold']:6.2f} s, cached {row['cached']:6.2f} s", flush=True)
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of both times by config, with the targets."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 1.2 + 0.28 * len(rows)), layout="constrained")
    for offset, key, color in ((-0.2, "cold", "0.35"), (0.2, "cached", "0.75")):
        places = [place + offset for place in range(len(rows))]
        axes.barh(places, [row[key] for row in rows], 0.38, color=color, label=key)
        axes.axvline(TARGETS_S[key], color=color, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["config"] for row in rows])
    axes.set(xlabel="compile time of the first chunk (s); dashed: targets")
    axes.invert_yaxis()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", help="names of shipped configs (default: all)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/compile_time.json"))
    options = parser.parse_args()
    prepare_jax()
    rows = measure(options.configs or sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    options.out.write_text(json.dumps({"machine": device(), "configs": rows}, indent=1) + "\n")
    if rows:
        draw(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
