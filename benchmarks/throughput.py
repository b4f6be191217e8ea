"""Seconds of a whole round of a workload, and its rate against a large matrix product in the same process.

    python benchmarks/throughput.py --workload vp-gru --clients 256 --json
    python benchmarks/throughput.py --all --out benchmarks/results/throughput.json

A round is the engine's own: draw, train everybody, pool. Its rate counts the matrix products alone; the
ceiling is the best of five float32 products of 4096^3 on all cores. `--all` measures every workload at 64,
256, 1024 and 4096 clients, each in its own process, and draws the figure beside the results.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fedjax_vp.environment import prepare_jax

WORKLOADS = ("vp-gru", "vp-mlp", "vp-transformer")
CLIENTS = (64, 256, 1024, 4096)
SECONDS = 10.0  # rounds are repeated for about so long, and at least twice


def matmul_gflops(size: int = 4096, repeats: int = 5) -> float:
    """Rate of the best float32 product of two square matrices."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(jnp.matmul)
    x = jnp.ones((size, size), jnp.float32)
    product(x, x).block_until_ready()
    return 2e-9 * size**3 / min(seconds(lambda: product(x, x)) for _ in range(repeats))


def seconds(work: Any) -> float:
    """Time until the arrays of a call are there."""
    import jax

    begun = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - begun


def device() -> dict[str, Any]:
    """What the figures were measured on."""
    import jax
    import jaxlib

    first = jax.devices()[0]
    model = first.device_kind
    cpuinfo = Path("/proc/cpuinfo")
    if first.platform == "cpu" and cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    return {
        "platform": first.platform,
        "model": model,
        "devices": jax.device_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
    }


def measure(name: str, clients: int) -> dict[str, Any]:
    """Compiles a workload's round, repeats it, and then measures the ceiling."""
    import jax
    from workloads import build, initial, matmul_flops

    from fedjax_vp.federated.round import make_round

    workload = build(name, clients)
    state, arrays = initial(workload), workload.simulator.federation.arrays
    begun = time.perf_counter()
    step = (
        jax.jit(make_round(workload.simulator), donate_argnums=0)
        .lower(state, arrays, workload.hyper)
        .compile()
    )
    compile_s = time.perf_counter() - begun
    times, losses = [], []
    while len(times) < 3 or sum(times) < SECONDS:
        begun = time.perf_counter()
        state, info = jax.block_until_ready(step(state, arrays, workload.hyper))
        times.append(time.perf_counter() - begun)
        losses.append(float(info.loss))
    best = min(times[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ceiling, achieved = matmul_gflops(), 1e-9 * matmul_flops(name) * clients / best
    return {
        "workload": name,
        "clients": clients,
        "seconds_per_round": best,
        "client_steps_per_second": 8 * clients / best,
        "matmul_gflops": ceiling,
        "achieved_gflops": achieved,
        "share_of_matmul": achieved / ceiling,
        "compile_s": compile_s,
        "peak_rss_mb": peak,
        "losses": losses[:5],
        "rounds": len(times),
        "machine": device(),
    }


def measure_all(out: Path) -> None:
    """Every workload and size in a process of its own; writes after each, so that nothing is lost."""
    rows = []
    for name in WORKLOADS:
        for clients in CLIENTS:
            command = [sys.executable, __file__, "--workload", name, "--clients", str(clients), "--json"]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
            print(line(rows[-1]), flush=True)
            out.write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows, out.with_suffix(".png"))


def line(row: dict[str, Any]) -> str:
    """One result to read."""
    return (
        f"{row['workload']:15s} {row['clients']:5d} clients {row['seconds_per_round']:8.3f} s a round, "
        f"{row['achieved_gflops']:6.1f} of {row['matmul_gflops']:.1f} GFLOP/s "
        f"({row['share_of_matmul']:.0%}), {row['peak_rss_mb']:.0f} MB, compiled in {row['compile_s']:.1f} s"
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Share of the ceiling over the number of clients, by workload."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for name, marker in zip(WORKLOADS, "osD", strict=True):
        mine = [row for row in rows if row["workload"] == name]
        axes.plot(
            [r["clients"] for r in mine], [r["share_of_matmul"] for r in mine], marker=marker, label=name
        )
    axes.set(xlabel="clients", ylabel="share of the matmul rate", xscale="log", ylim=(0, 1))
    axes.set_xticks(CLIENTS, [str(n) for n in CLIENTS])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", choices=WORKLOADS, default="vp-gru")
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--all", action="store_true", help="every workload and size, with a figure")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/throughput.json"))
    options = parser.parse_args()
    prepare_jax()
    if options.all:
        measure_all(options.out)
        return
    row = measure(options.workload, options.clients)
    print(json.dumps(row) if options.json else line(row))


if __name__ == "__main__":
    main()
