"""Published traces, method by method: the README's tables, made by one resumable command.

    python benchmarks/real_traces.py --out runs/real_traces [--jobs N] [--limit-s S]
        [--tables ...] [--sets ...] [--methods ...] [--seeds 0,1,2]

Prints what it will run and roughly how long that takes, then runs every cell (a method on a data set, with
its seeds) in a process of its own, N at once; on an accelerator each gets its share of the memory. Run again
with the same folder, finished runs are reused and interrupted ones go on. A cell that fails stops no other.
The data sets must have been imported (`fedjax-vp data import NAME PATH`). Writes `real_traces.json`,
`real_traces.md` and `verdicts.md` into the folder; `--tables-only` runs nothing and writes them anew.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from traces import cells, judging, spreading

from fedjax_vp import simulate
from fedjax_vp.commands.compare import parse_seeds
from fedjax_vp.environment import prepare_jax
from fedjax_vp.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is missing, then writes the tables."""
    options = _parser().parse_args(arguments)
    if not options.cell:  # a polite kill ends the processes too; a cell saves what it has by itself
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=True)
    try:
        plan = cells.plan(options.tables, options.sets, options.methods, parse_seeds(options.seeds))
        if options.cell:
            prepare_jax()
            found = [cell for cell in plan if cell.name == options.cell]
            return min(1, sum(spreading.run_cell(cell, options.out, options.rounds) for cell in found))
        missing = [] if options.tables_only else spreading.todo(plan, options.out)
        seconds = sum(cell.seconds for cell in missing) / options.jobs
        console.print(
            f"{len(plan)} cells, {len(missing)} to run: about {seconds / 60:.0f} min with {options.jobs} at "
            "once where each has two CPU cores"
        )
        failed = {}
        if missing and not options.estimate:
            options.out.mkdir(parents=True, exist_ok=True)
            how = spreading.How(options.jobs, options.limit_s, options.rounds)
            failed = spreading.spread(missing, options.out, how, console)
        if not options.estimate:
            write(plan, options.out, failed)
        return 1 if failed else 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, simulate.Interrupted):
        print(f"interrupted: the same command goes on after the runs in {options.out}", file=sys.stderr)
        return 130


def write(plan: Sequence[cells.Cell], out: Path, failed: dict[str, str]) -> None:
    """Tables, verdicts and the summaries they are made from."""
    found = judging.collect(plan, out)
    verdicts = [
        one for item in found.items() for one in judging.verdicts(*item) + judging.centralized_verdict(*item)
    ]
    whole = {
        "runs": {"/".join(place): judging.record(methods) for place, methods in found.items()},
        "verdicts": [one._asdict() for one in verdicts],
        "failed": failed,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "real_traces.json").write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
    text = "\n\n".join(judging.table(*item) for item in found.items())
    (out / "real_traces.md").write_text(text + "\n")
    (out / "verdicts.md").write_text(judging.lines(verdicts) + "\n")
    print(text, judging.lines(verdicts), sep="\n\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real_traces"))
    parser.add_argument("--tables", nargs="+", choices=cells.TABLES, default=list(cells.TABLES))
    parser.add_argument("--sets", nargs="+", choices=cells.SETS, default=list(cells.SETS))
    parser.add_argument("--methods", nargs="+", choices=cells.methods(), default=[], metavar="METHOD")
    parser.add_argument("--seeds", help="such as 0,1,2; by default 3 on jin and wu, 1 elsewhere")
    parser.add_argument("--rounds", type=int, help="of every run, to try the command out; by default its own")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once, each in a process of its own")
    parser.add_argument(
        "--limit-s", type=float, default=math.inf, help="no cell starts after so many seconds"
    )
    parser.add_argument("--estimate", action="store_true", help="say how long it takes, and run nothing")
    parser.add_argument("--tables-only", action="store_true", help="run nothing, write the tables anew")
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # run by the processes
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
