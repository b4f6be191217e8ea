"""What `fedjax-vp run` does once its words are parsed; loaded only then, as it needs everything."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from fedjax_vp import experiment, processes, results, simulate
from fedjax_vp.config import Config, load_config
from fedjax_vp.environment import prepare_devices, prepare_processes
from fedjax_vp.errors import UserError
from fedjax_vp.report import figures, tables
from fedjax_vp.report import folder as report_folder


def choose(
    name: str | None, overrides: list[tuple[str, Any]], out: Path | None, resume: Path | None
) -> tuple[Config, Path]:
    """The config to run and its folder; a resumed run brings its own config.

    Raises:
        UserError: The config is wrong, or there is nothing to resume.
    """
    if resume is None:
        config = load_config(name or "quickstart", **dict(overrides))
        return config, out or fresh_folder(config.name)
    if out is not None and out.resolve() != resume.resolve():
        raise UserError(f"--out {out} and --resume {resume} are two folders: give --resume alone")
    kept = results.kept_config(resume)
    if kept is None and name is None:
        raise UserError(
            f"--resume {resume}: there is no run in this folder; give the folder of one, or a CONFIG"
        )
    return load_config(name or kept or "quickstart", **dict(overrides)), resume


def fresh_folder(name: str) -> Path:
    """A run folder of its own under ./runs."""
    stem = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = stem, 1
    while folder.exists():
        number += 1
        folder = stem.with_name(f"{stem.name}-{number}")
    return folder


def execute(config: Config, folder: Path, resume: bool, quiet: bool) -> None:
    """Runs a config into a folder and prints its tables; exits with 130 when interrupted."""
    prepare_devices(config.engine.devices)
    prepare_processes(config.engine.processes)
    try:
        result = experiment.run(config, folder, resume=resume, progress=not quiet)
        if result.path and (result.state is not None or not (folder / "figures").is_dir()):
            figures.render(folder)
    except (simulate.Interrupted, KeyboardInterrupt) as stop:
        if processes.is_first():
            click.echo(_interrupted(folder, stop), err=True)
        sys.exit(130)
    except UserError:
        if processes.is_first():
            raise
        sys.exit(2)  # process 0 says why
    if result.path is None:
        return
    run = report_folder.read(folder)
    for table in tables.of_run(run):
        tables.show(table)
    times = result.summary
    compile_s = times["compile_s"] + times.get("evaluate_compile_s", 0.0)
    click.echo(
        f"{times['wall_s']:.1f} s of rounds, {compile_s:.1f} s of compilation, "
        f"{times['evaluate_s']:.1f} s of evaluation; run folder: {folder}"
    )


def _interrupted(folder: Path, stop: BaseException) -> str:
    if results.kept_config(folder) is None:
        return "interrupted before anything was computed: give the same command again"
    done = "all rounds are done" if results.is_finished(folder) else str(stop) or "what was saved is kept"
    return f"interrupted: continue with `fedjax-vp run --resume {folder}` ({done})"
