"""NetLLM's protocol on Jin2022: mean absolute error over its three Euler columns, beside the published rows.

    python benchmarks/netllm.py --out runs/netllm

2 s to 4 s, its users and videos (Wu et al., SIGCOMM 2024). A predictor of directions keeps the last observed
roll to the horizon; no motion repeats the last three angles. Published rows are read off the paper's bars.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from fedjax_vp.environment import prepare_jax

PUBLISHED = {"linear regression": 18.9, "velocity": 17.05, "TRACK": 13.3, "NetLLM": 11.97}


def main() -> None:
    """Trains both ways of the config, or takes up what is there, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/netllm"))
    out = parser.parse_args().out
    prepare_jax()
    rows = {**{f"{name} (published)": mae for name, mae in PUBLISHED.items()}, **measure(out)}
    (out / "netllm.json").write_text(json.dumps(rows, indent=1) + "\n")
    print("| method | MAE (deg) |\n|---|---|")
    for name, mae in sorted(rows.items(), key=lambda row: -row[1]):
        print(f"| {name} | {mae:.2f} |")


def measure(out: Path) -> dict[str, float]:
    """MAE of no motion and of the config's methods on the protocol's test windows."""
    from fedjax_vp import fitting
    from fedjax_vp.config import load_config
    from fedjax_vp.data.inspect import netllm_mae
    from fedjax_vp.evaluate import make_mixing
    from fedjax_vp.forecasting import forecast, own
    from fedjax_vp.progress import Progress
    from fedjax_vp.simulate import simulate

    config = load_config("jin_netllm")
    traces, split = fitting.load_traces(config)
    trace, now = np.nonzero(split.test)
    rows = {f"no motion ({len(trace)} windows)": netllm_mae(traces, trace, now)}
    evaluate = fitting.horizons(config, traces.rate_hz)
    for name, one in {**config.beside, config.algorithm: config}.items():
        problem = fitting.problem(one, traces, split, evaluate)
        with Progress(one.rounds, evaluate.horizons_s) as bar:
            outcome = simulate(problem, one.rounds, one.seed, out / name, True, bar.reporter(name))
        sim = problem.simulator()
        state = (outcome.state, make_mixing(sim)(outcome.state))
        predicted = forecast(own(sim), state, sim, trace, now)["predicted"]
        rows[f"{name}, {one.model.kind}"] = netllm_mae(traces, trace, now, predicted)
    return rows


if __name__ == "__main__":
    main()
