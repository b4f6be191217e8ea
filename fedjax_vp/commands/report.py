"""`fedjax-vp report`: a finished run's table and figures, from its folder alone."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
def report(run: Path) -> None:
    """Print the tables of the finished run in folder RUN and draw its figures into RUN/figures."""
    from fedjax_vp.report import figures, folder, tables

    for table in tables.of_run(folder.read(run)):
        tables.show(table)
    files = figures.render(run)
    click.echo(f"figures written to {run / 'figures'}: {', '.join(sorted({file.stem for file in files}))}")
