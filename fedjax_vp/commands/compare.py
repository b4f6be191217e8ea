"""`fedjax-vp compare`: several configs or finished runs, over seeds, in one table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedjax_vp.errors import UserError

if TYPE_CHECKING:
    from fedjax_vp.config import Config
    from fedjax_vp.report import RunFolder
    from fedjax_vp.sweeps.groups import Case

_FREE = ("seed", "name", "engine", "compare")  # settings that may differ between runs of one method


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


def collect(targets: Sequence[str], seeds: Sequence[int] | None, out: Path) -> dict[str, list[RunFolder]]:
    """Runs by method: folders read, configs run (or their finished runs under ``out`` reused)."""
    from fedjax_vp import report

    _prepare(targets)
    _check(targets, seeds, out)
    by_config: dict[str, list[RunFolder]] = {}
    label_of: dict[str, str] = {}
    for target, method in _methods(targets):
        is_folder, name = Path(target).is_dir(), method or Path(target).stem
        folders = [Path(target)] if is_folder else _run_all(target, method, seeds, out)
        for folder in folders:
            run = report.read(folder)
            key = _identity(run.manifest.get("config", run.summary["algorithm"]))
            label = run.label if is_folder else name
            if label_of.setdefault(key, label) != label and not is_folder:
                raise UserError(f"{target}: the same config as {label_of[key]}; give it once")
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
    if len(set(seeds)) != len(parts):
        raise UserError(f"--seeds {text}: give different whole numbers with commas between, such as 0,1,2")
    return seeds


def _prepare(targets: Sequence[str]) -> None:
    """Host devices for the most demanding config, before JAX starts with the first of them."""
    from fedjax_vp.config import load_config
    from fedjax_vp.environment import prepare_devices

    configs = [load_config(target, compare=[]) for target in targets if not Path(target).is_dir()]
    prepare_devices(max((config.engine.devices for config in configs), default=0))


def _methods(targets: Sequence[str]) -> list[tuple[str, str | None]]:
    """Targets, each with None; a config given alone with its own method and those that it names beside it."""
    from fedjax_vp.config import load_config

    if len(targets) == 1 and not Path(targets[0]).is_dir():
        config = load_config(targets[0])
        if config.beside:
            return [(targets[0], name) for name in (config.algorithm, *config.beside)]
    return [(target, None) for target in targets]


def _config(target: str, method: str | None, **overrides: int) -> Config:
    """The target's config by itself, or that of a method beside it."""
    from fedjax_vp.config import load_config

    config = load_config(target, **overrides)
    return config.beside[method] if method in config.beside else load_config(target, compare=[], **overrides)


def _check(targets: Sequence[str], seeds: Sequence[int] | None, out: Path) -> None:
    """Tells of a mistake in any config that has to be run before the first of them is."""
    from fedjax_vp import fitting, results

    todo: dict[str, Config] = {}
    for target, method in _methods(targets):
        cases = [] if Path(target).is_dir() else _cases(target, method, seeds, out)
        if not all(results.is_finished(case.folder) for case in cases):
            todo[f"{target}: {method}" if method else target] = cases[0].config
    fitting.check(todo)


def _cases(target: str, method: str | None, seeds: Sequence[int] | None, out: Path) -> list[Case]:
    """A config's runs, one a seed; its own seed by default."""
    from fedjax_vp.sweeps.groups import Case

    own, name = _config(target, method), method or Path(target).stem
    return [
        Case(_config(target, method, seed=seed), out / f"{name}-seed{seed}")
        for seed in (seeds if seeds is not None else [own.seed])
    ]


def _run_all(target: str, method: str | None, seeds: Sequence[int] | None, out: Path) -> list[Path]:
    """Runs a config with its seeds, side by side; finished runs stay, interrupted ones continue."""
    from fedjax_vp import results, simulate
    from fedjax_vp.progress import Tally
    from fedjax_vp.sweeps import groups

    cases, name = _cases(target, method, seeds, out), method or Path(target).stem
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


def _identity(config: Any) -> str:
    """What makes two runs runs of one method."""
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if key not in _FREE}
    return json.dumps(config, sort_keys=True)


def _distinct(labels: dict[str, str], runs: dict[str, list[RunFolder]]) -> dict[str, str]:
    """Labels no two configs share: where two do, each is called by its first folder."""
    shared = [label for label in labels.values() if list(labels.values()).count(label) > 1]
    return {key: runs[key][0].path.name if label in shared else label for key, label in labels.items()}


def _default_name(targets: Sequence[str]) -> str:
    return "-".join(["compare", *(Path(target).stem for target in targets)])[:100]
