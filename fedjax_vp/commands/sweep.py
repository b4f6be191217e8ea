"""`fedjax-vp sweep`: a config over seeds and settings, many points in one compiled function."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import click

from fedjax_vp.errors import UserError


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True},
    epilog="Settings that do not vary can be overridden as in `fedjax-vp run`: --rounds 50 --local.steps 4.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the sweep [default: runs/SWEEP's name]."
)
@click.option("--cluster", type=click.Choice(["ray"]), help="Run the points on a cluster that is up already.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Override one setting.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="SWEEP.yaml [--KEY VALUE]...")
def sweep(
    out: Path | None, cluster: str | None, pairs: tuple[str, ...], quiet: bool, words: tuple[str, ...]
) -> None:
    """Run every point of SWEEP.yaml, one table at the end.

    Seeds and traced numbers (rates, shrinkage, progress) share one compiled function, other settings compile
    apart. Every point has a run folder of its own; the same command again continues, and adds points to it.
    """
    from fedjax_vp.commands.run import split_pair, split_words

    name, overrides = split_words(words)
    overrides += [split_pair(pair) for pair in pairs]
    if name is None:
        raise UserError("sweep takes a YAML file that says what varies: fedjax-vp sweep SWEEP.yaml")
    execute(Path(name), overrides, out, cluster, quiet)


def execute(
    path: Path,
    overrides: list[tuple[str, object]],
    out: Path | None = None,
    cluster: str | None = None,
    quiet: bool = False,
) -> Path:
    """Plans, runs, writes and prints a sweep.

    Returns:
        The folder written.

    Raises:
        UserError: The sweep is malformed, or no point of it came to an end.
    """
    from fedjax_vp import simulate
    from fedjax_vp.environment import prepare_devices
    from fedjax_vp.progress import Tally
    from fedjax_vp.report import tables
    from fedjax_vp.sweeps import spec, table
    from fedjax_vp.sweeps.cluster import run_on_ray
    from fedjax_vp.sweeps.groups import Case, group, run

    out = out or Path("runs") / path.stem
    asked = spec.read_sweep(path)
    points = spec.plan(asked, overrides, out)
    cases = [Case(point.config, point.folder) for point in points if point.config is not None]
    prepare_devices(max(case.config.engine.devices for case in cases))
    rounds = {case.folder: case.config.rounds for case in cases}
    with Tally(path.stem, rounds, enabled=not quiet) as tally:
        functions = f"{len(cases)} points in {len(group(cases))} compiled functions"
        tally.note(f"{functions}, {sum(rounds.values())} rounds in all")
        for refused, count in Counter(point.refused for point in points if point.refused).items():
            tally.note(f"{count} points are refused: {refused}")
        try:
            failed = (run_on_ray if cluster else run)(cases, tally)
        except (simulate.Interrupted, KeyboardInterrupt) as stop:
            done = str(stop) or "what was saved is kept"
            click.echo(f"interrupted: the same command continues ({done})", err=True)
            sys.exit(130)
    found = table.frame(asked.varied, points, failed)
    table.write(found, out)
    if len(failed) == len(cases):
        raise UserError(f"no point of {path} came to an end; the first: {next(iter(failed.values()))}")
    phases = {"test": "test", "valid": "validation"}
    windows = " and ".join(sorted({phases[case.config.evaluate.phase] for case in cases}))
    title = f"Mean great-circle error in degrees on {windows} windows: {path.stem}"
    tables.show(table.to_table(title, found, asked.varied))
    click.echo(f"written to {out}")
    return out
