"""FedSGD against FedAvg with 1, 5 and 20 local epochs on Jin et al.: error over rounds and over bytes.

    python benchmarks/local_work.py --out runs/local_work

Each method's learning rate is chosen by its error on validation windows of training sessions, mean over 1-5 s
(`configs/sweeps/jin_local_work.yaml`); then the four are trained with their own rates and measured on test
windows. Run it again with the same folder and finished runs are reused, interrupted ones go on. Writes
`compare.md`, `figures/` and the tuned configs into the folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl
import yaml

from fedjax_vp.commands import compare, sweep
from fedjax_vp.environment import prepare_jax

CONFIGS = Path(__file__).parents[1] / "configs"
METHODS = {"jin_fedsgd": None, "jin_fedavg_1": 1, "jin_fedavg_5": 5, "jin_fedavg_20": 20}  # local epochs
JUDGED_S = (1.0, 2.0, 3.0, 4.0, 5.0)


def main() -> None:
    """Chooses rates, then compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/local_work"))
    out = parser.parse_args().out
    prepare_jax()
    sweep.execute(CONFIGS / "sweeps" / "jin_local_work.yaml", [], out / "rates")
    found = pl.read_parquet(out / "rates" / "sweep.parquet")
    targets = []
    for name, epochs in METHODS.items():
        rate, inner = choose(found, epochs)
        print(f"{name}: local.lr {rate:g}" + ("" if inner else ", at the edge of the rates tried"))
        targets.append(str(write(out / "configs", name, rate)))
    compare.execute(targets, None, out)


def choose(found: pl.DataFrame, epochs: int | None) -> tuple[float, bool]:
    """The rate of least validation error of a method, and whether it lies between others that were tried.

    Args:
        found: Rows of a sweep, one a point.
        epochs: Local epochs of the method; None is FedSGD.
    """
    mine = found.filter(
        pl.col("local.epochs").is_null() if epochs is None else pl.col("local.epochs") == epochs
    )
    error = pl.mean_horizontal(*(f"error_deg_{h}" for h in JUDGED_S))
    done = mine.filter(pl.col("status") == "done").sort(error)
    rate, tried = done["local.lr"][0], mine["local.lr"]
    return rate, min(tried) < rate < max(tried)


def write(folder: Path, name: str, rate: float) -> Path:
    """A shipped config with this rate, in a folder of tuned ones that can take its place."""
    text = (CONFIGS / f"{name}.yaml").read_text()
    title, settings = text.partition("\n")[0], yaml.safe_load(text)
    settings["local"] = {**settings.get("local", {}), "lr": rate}
    folder.mkdir(parents=True, exist_ok=True)
    tuned = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
    (folder / f"{name}.yaml").write_text(f"{title}\n{tuned}")
    return folder / f"{name}.yaml"


if __name__ == "__main__":
    main()
