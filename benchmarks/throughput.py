"""Seconds of a whole round of a workload, and its rates against what the device can do.

    python benchmarks/throughput.py --workload vp-gru --clients 256 --json
    python benchmarks/throughput.py --all --out benchmarks/results/throughput.json

A round is the engine's own: draw, train everybody, pool. Its rates count the matrix products alone
(`workloads.matmul_flops`, `matmul_bytes`); the ceilings are the best of five large square products in the
same precision and of five copies of a large array, in the same process. Every option takes several values,
and every combination is measured. `--all` stands for all workloads at 64, 256, 1024 and 4096 clients, on an
accelerator also at 16384 and in each precision; it writes after each, and draws the figure beside the
results. A combination that fails, for want of memory say, is recorded with the reason.

On a CPU each has a process of its own, so that `peak_rss_mb` is its own. On an accelerator one process takes
them all and compiles those of a workload side by side. There Triton's products cost minutes of tuning;
without them:

    XLA_FLAGS=--xla_gpu_enable_triton_gemm=false python benchmarks/throughput.py --all --out FILE
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_vp.environment import prepare_jax

WORKLOADS = ("vp-gru", "vp-mlp", "vp-transformer")
CLIENTS = (64, 256, 1024, 4096)
MANY = 16384  # on an accelerator
PRECISIONS = ("float32", "tf32", "bfloat16")
SECONDS = {"cpu": 10.0}  # rounds are repeated for about so long, and at least twice; elsewhere 1 s
RESULTS = Path("benchmarks/results/throughput.json")


class Cell(NamedTuple):
    """One measurement; a block of 0 clients is the engine's choice."""

    workload: str
    clients: int
    precision: Any = "float32"
    block: int = 0


class Ready(NamedTuple):
    """A cell's round, compiled."""

    workload: Any
    state: Any
    step: Any
    compile_s: float


def compiled(cell: Cell) -> Ready:
    """Builds a cell's workload and compiles its round."""
    import jax
    from workloads import build, initial

    from fedjax_vp import compiling
    from fedjax_vp.federated.round import make_round
    from fedjax_vp.federated.settings import Engine

    workload = build(cell.workload, cell.clients, Engine(client_block=cell.block, precision=cell.precision))
    state, arrays = initial(workload), workload.simulator.federation.arrays
    begun = time.perf_counter()
    options = compiling.options(workload.simulator.mesh)
    step = jax.jit(make_round(workload.simulator), donate_argnums=0, compiler_options=options)
    ready = step.lower(state, arrays, workload.hyper).compile()
    return Ready(workload, state, ready, time.perf_counter() - begun)


@cache
def ceilings(precision: Any) -> tuple[float, float]:
    """GFLOP/s of a large product and GB/s of a large copy, on all devices together."""
    import ceilings
    import jax

    devices = 1 if jax.default_backend() == "cpu" else jax.device_count()  # one product takes all cores
    return devices * ceilings.matmul_gflops(precision), devices * ceilings.copy_gbytes()


def measure(cell: Cell, ready: Ready) -> dict[str, Any]:
    """Repeats a round, and then measures the ceilings."""
    import ceilings as of_device
    import jax
    from workloads import matmul_bytes, matmul_flops

    state, arrays, hyper = ready.state, ready.workload.simulator.federation.arrays, ready.workload.hyper
    enough = SECONDS.get(jax.default_backend(), 1.0)
    times: list[float] = []
    losses: list[float] = []
    while len(times) < 3 or sum(times[1:]) < enough:
        begun = time.perf_counter()
        state, info = jax.block_until_ready(ready.step(state, arrays, hyper))
        times.append(time.perf_counter() - begun)
        losses.append(float(info.loss))
    best = min(times[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    matmul, copy = ceilings(cell.precision)
    rate = 1e-9 * cell.clients / best
    flops, moved = rate * matmul_flops(cell.workload), rate * matmul_bytes(cell.workload)
    memory = ready.step.memory_analysis()
    return {
        **cell._asdict(),
        "block": ready.workload.simulator.block,
        "seconds_per_round": best,
        "client_steps_per_second": 8 * cell.clients / best,
        "matmul_gflops": matmul,
        "achieved_gflops": flops,
        "share_of_matmul": flops / matmul,
        "copy_gbytes": copy,
        "achieved_gbytes": moved,
        "share_of_copy": moved / copy,
        "compile_s": ready.compile_s,
        "peak_rss_mb": peak,
        "program_mb": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20,
        "losses": losses[:5],
        "rounds": len(times),
        "machine": of_device.device(),
    }


def failed(cell: Cell, reason: object) -> dict[str, Any]:
    """The record of a cell that could not be measured."""
    lines = str(reason).strip().splitlines() or [repr(reason)]
    return {**cell._asdict(), "error": lines[0][:500]}


def here(cells: list[Cell]) -> Iterator[dict[str, Any]]:
    """Measures cells in this process, a workload's after all of them are compiled."""
    for _, mine in itertools.groupby(cells, lambda cell: cell.workload):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            waiting = [(cell, pool.submit(compiled, cell)) for cell in mine]
        while waiting:  # what was measured is let go
            yield attempt(*waiting.pop(0))


def attempt(cell: Cell, future: Future[Ready]) -> dict[str, Any]:
    """Measures a cell, or says why not."""
    try:
        return measure(cell, future.result())
    except Exception as error:  # whatever it is, the other cells can still be measured
        return failed(cell, error)


def apart(cells: list[Cell]) -> Iterator[dict[str, Any]]:
    """Measures each cell in a process of its own."""
    for cell in cells:
        options = [text for key, value in cell._asdict().items() for text in (f"--{key}", str(value))]
        done = subprocess.run([sys.executable, __file__, *options, "--json"], capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines()
            yield failed(cell, said[-1] if said else f"exit status {done.returncode}")
        else:
            yield json.loads(done.stdout)


def line(row: dict[str, Any]) -> str:
    """One result to read."""
    name = f"{row['workload']:15s} {row['clients']:5d} clients {row['precision']:8s} block {row['block']:4d} "
    if "error" in row:
        return f"{name} failed: {row['error']}"
    return (
        f"{name}{row['seconds_per_round']:8.3f} s a round, "
        f"{row['achieved_gflops']:7.1f} of {row['matmul_gflops']:.1f} GFLOP/s "
        f"({row['share_of_matmul']:.0%}), {row['achieved_gbytes']:6.1f} of {row['copy_gbytes']:.1f} GB/s "
        f"({row['share_of_copy']:.0%}), "
        f"{row['peak_rss_mb']:.0f} MB, compiled in {row['compile_s']:.1f} s"
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Share of the ceiling over the number of clients, by workload and precision."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    good = sorted((row for row in rows if "error" not in row), key=lambda row: row["clients"])
    for key, mine in itertools.groupby(sorted(good, key=_curve), _curve):
        (name, precision), points = key, list(mine)
        color, style = f"C{WORKLOADS.index(name)}", ("-", "--", ":")[PRECISIONS.index(precision)]
        x, y = zip(*((row["clients"], row["share_of_matmul"]) for row in points), strict=True)
        axes.plot(x, y, style, marker="o", color=color, label=f"{name} {precision}")
    axes.set(xlabel="clients", ylabel="share of the matmul rate", xscale="log", ylim=(0, None))
    sizes = sorted({row["clients"] for row in good})
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize="x-small")
    figure.savefig(path, dpi=150)


def _curve(row: dict[str, Any]) -> tuple[str, str]:
    return row["workload"], row["precision"]


def cells_of(options: argparse.Namespace, on_cpu: bool) -> list[Cell]:
    """Every combination that is asked for."""
    sizes = CLIENTS if on_cpu else (*CLIENTS, MANY)
    precisions = PRECISIONS[:1] if on_cpu else PRECISIONS
    every = (WORKLOADS, sizes, precisions, (0,))
    chosen = (options.workload, options.clients, options.precision, options.block)
    alone = (("vp-gru",), (256,), ("float32",), (0,))
    default = every if options.all else alone
    return [Cell(*x) for x in itertools.product(*(a or b for a, b in zip(chosen, default, strict=True)))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS)
    parser.add_argument("--clients", nargs="+", type=int)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS)
    parser.add_argument("--block", nargs="+", type=int, help="clients side by side; 0: the engine's choice")
    parser.add_argument("--all", action="store_true", help="every workload and size, with a figure")
    parser.add_argument("--here", action="store_true", help="all in this process, on a CPU too")
    parser.add_argument("--json", action="store_true", help="JSON on standard output, an object a line")
    parser.add_argument("--out", type=Path, help=f"where results go; with --all {RESULTS}")
    options = parser.parse_args()
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # compile_s is that of the first time
    prepare_jax()
    import jax

    on_cpu = jax.default_backend() == "cpu"
    cells = cells_of(options, on_cpu)
    out = options.out or (RESULTS if options.all else None)
    rows = []
    for row in (here if options.here or not on_cpu or len(cells) == 1 else apart)(cells):
        rows.append(row)
        print(json.dumps(row) if options.json else line(row), flush=True)
        if out:
            out.write_text(json.dumps(rows, indent=1) + "\n")
    if options.all and out:
        draw(rows, out.with_suffix(".png"))
    if len(rows) == 1 and "error" in rows[0]:
        sys.exit(f"throughput: {line(rows[0])}")


if __name__ == "__main__":
    main()
