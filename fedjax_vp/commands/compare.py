"""`fedjax-vp compare`: several configs or finished runs, over seeds, in one table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from fedjax_vp.errors import UserError

if TYPE_CHECKING:
    from fedjax_vp.config import Config
    from fedjax_vp.report import RunFolder
    from fedjax_vp.sweeps.groups import Case


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option(
    "--seeds", default=None, metavar="0,1,2", help="Seeds of the configs; a config's own by default."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the comparison; run again with the same one, finished runs are reused.",
)
def compare(targets: tuple[str, ...], seeds: str | None, out: Path | None) -> None:
    """Compare methods: each TARGET is a config (path or shipped name, run here) or a finished run folder.

    A config given alone is compared with the methods that it names under `compare`. Prints mean errors
    with 95 % intervals over seeds, paired differences to the first target and the share of users hurt
    relative to FedAvg; writes compare.parquet, compare.md, compare.csv and figures to the folder.
    """
    execute(targets, parse_seeds(seeds), out)


def execute(targets: Sequence[str], seeds: Sequence[int] | None = None, out: Path | None = None) -> Path:
    """Run what has to be run, compare, print, write.

    Args:
        targets: Paths or names of configs, and run folders; run folders of one config are its seeds.
        seeds: Seeds of the configs; their own by default.
        out: Folder of the comparison and of the runs made for it.

    Returns:
        The folder written.

    Raises:
        UserError: A target is missing, unfinished, or was not tested on the same windows.
    """
    out = out or Path("runs") / _default_name(targets)
    runs = collect(targets, seeds, out)

    from fedjax_vp import report
    from fedjax_vp.report import comparison

    result = comparison.compare(runs)
    table = comparison.to_table(result)
    out.mkdir(parents=True, exist_ok=True)
    comparison.to_frame(result).write_parquet(out / "compare.parquet")
    report.write(table, out / "compare.md")
    report.write(table, out / "compare.csv")
    first = {method: folders[0] for method, folders in runs.items()}
    report.render_comparison(out, first, result.error_deg, result.half_deg)
    report.show(table)
    click.echo(f"written to {out}")
    return out


class _Method(NamedTuple):
    """A row of the table to be."""

    where: str  # for errors: the target, and which of its methods
    name: str
    cases: list[Case] | None  # its runs, one a seed; None for a run folder


def collect(targets: Sequence[str], seeds: Sequence[int] | None, out: Path) -> dict[str, list[RunFolder]]:
    """Runs by method: folders read, configs run (or their finished runs under ``out`` reused)."""
    from fedjax_vp import report
    from fedjax_vp.config import identity

    methods = _methods(targets, seeds, out)
    _check(methods)
    by_config: dict[str, list[RunFolder]] = {}
    label_of: dict[str, str] = {}
    for one in methods:
        for folder in [Path(one.where)] if one.cases is None else _run_all(one.name, one.cases):
            run = report.read(folder)
            config = run.manifest.get("config")
            key = run.summary["algorithm"] if config is None else identity(config)
            label = one.name or run.label
            if label_of.setdefault(key, label) != label and one.cases is not None:
                raise UserError(f"{one.where}: the same config as {label_of[key]}; give it once")
            by_config.setdefault(key, []).append(run)
    labels = _distinct({key: label_of[key] for key in by_config}, by_config)
    return {labels[key]: folders for key, folders in by_config.items()}


def parse_seeds(text: str | None) -> list[int] | None:
    """Seeds given as "0,1,2".

    Raises:
        UserError: The text is something else, or names a seed twice.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    seeds = [int(part) for part in parts if part.isdecimal()]
    if len(set(seeds)) != len(parts) or any(seed >= 2**32 for seed in seeds):
        raise UserError(
            f"--seeds {text}: give different whole numbers below 2^32 with commas between, such as 0,1,2"
        )
    return seeds


def _methods(targets: Sequence[str], seeds: Sequence[int] | None, out: Path) -> list[_Method]:
    """What the targets stand for; a config given alone for its own method and those it names beside it."""
    from fedjax_vp.config import load_config
    from fedjax_vp.sweeps.groups import Case

    found: list[_Method] = []
    for target in targets:
        if Path(target).is_dir():
            found.append(_Method(target, "", None))
            continue
        whole, own = load_config(target), load_config(target, compare=[])
        several = {whole.algorithm: own, **whole.beside} if len(targets) == 1 and whole.beside else {}
        for name, config in (several or {Path(target).stem: own}).items():
            cases = [
                Case(config.model_copy(update={"seed": seed}), out / f"{name}-seed{seed}")
                for seed in (seeds if seeds is not None else [config.seed])
            ]
            found.append(_Method(f"{target}: {name}" if several else target, name, cases))
    return found


def _check(methods: Sequence[_Method]) -> None:
    """Tells of a mistake in any config before the first of them is run, and prepares devices for all."""
    from fedjax_vp import fitting, results
    from fedjax_vp.config import identity
    from fedjax_vp.environment import prepare_devices

    known: dict[Path | str, _Method] = {}
    todo: dict[str, Config] = {}
    cases = [(one, case) for one in methods for case in one.cases or ()]
    for one, case in cases:
        other = known.setdefault(identity(case.config.to_mapping()), one)
        if other is not one:
            raise UserError(f"{one.where}: the same config as {other.where}; give it once")
        other = known.setdefault(case.folder, one)
        if other is not one:
            raise UserError(f"{one.where}: {other.where} has runs of the same name: rename one of the files")
        results.require_same(case.folder, case.config)
        if not results.is_finished(case.folder):
            todo[one.where] = case.config
    prepare_devices(max((case.config.engine.devices for _, case in cases), default=0))
    fitting.check(todo)


def _run_all(name: str, cases: list[Case]) -> list[Path]:
    """Runs a method's seeds, side by side; finished runs stay, interrupted ones continue."""
    from fedjax_vp import results, simulate
    from fedjax_vp.progress import Tally
    from fedjax_vp.sweeps import groups

    for case in cases:
        click.echo(f"{case.folder}: {'finished before' if results.is_finished(case.folder) else 'running'}")
    try:
        with Tally(name, {case.folder: case.config.rounds for case in cases}) as tally:
            failed = groups.run(cases, tally)
    except (simulate.Interrupted, KeyboardInterrupt) as stop:
        done = str(stop) or "what was saved is kept"
        click.echo(f"interrupted: the same command continues ({done})", err=True)
        sys.exit(130)
    for folder, reason in failed.items():
        raise UserError(f"{folder}: {reason}")
    return [case.folder for case in cases]


def _distinct(labels: dict[str, str], runs: dict[str, list[RunFolder]]) -> dict[str, str]:
    """Labels no two configs share: where two do, each is called by its first folder."""
    shared = [label for label in labels.values() if list(labels.values()).count(label) > 1]
    return {key: runs[key][0].path.name if label in shared else label for key, label in labels.items()}


def _default_name(targets: Sequence[str]) -> str:
    return "-".join(["compare", *(Path(target).stem for target in targets)])[:100]
