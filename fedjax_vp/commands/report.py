"""`fedjax-vp report`: a finished run's table and figures, from its folder alone."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
def report(run: Path) -> None:
    """Print the tables of the finished run or cold start in folder RUN and draw its figures there."""
    from fedjax_vp.commands import coldstart
    from fedjax_vp.report import figures, folder, tables

    if (run / coldstart.TABLE).is_file():
        coldstart.present(run)
        click.echo(f"figures written to {run / 'figures'}")
        return
    for table in tables.of_run(folder.read(run)):
        tables.show(table)
    files = figures.render(run)
    click.echo(f"figures written to {run / 'figures'}: {', '.join(sorted({file.stem for file in files}))}")
