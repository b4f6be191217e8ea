"""`fedjax-vp coldstart`: the error on new videos and new users, by how much is known of them."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fedjax_vp.errors import UserError

TABLE = "coldstart.parquet"


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True},
    epilog="Settings can be overridden as in `fedjax-vp run`: --rounds 50 --coldstart.rounds '[0, 1, 10]'.",
)
@click.option("--seeds", default=None, metavar="0,1,2", help="Seeds; the config's own by default.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder [default: in runs/, by the config's name]; with the same one, what is finished is kept.",
)
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Override one setting.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="CONFIG [--KEY VALUE]...")
def coldstart(
    seeds: str | None, out: Path | None, pairs: tuple[str, ...], quiet: bool, words: tuple[str, ...]
) -> None:
    """Train CONFIG without some videos and users, then let these arrive.

    A new video starts from scratch, from the first level, from each further level that it shares with other
    videos, or in the whole hierarchy, and is measured after some rounds, and with some viewers; a new user is
    measured after the first seconds. Writes coldstart.parquet, coldstart.md and figures.
    """
    from fedjax_vp.commands.compare import parse_seeds
    from fedjax_vp.commands.run import split_pair, split_words

    name, overrides = split_words(words)
    overrides += [split_pair(pair) for pair in pairs]
    if name is None:
        raise UserError("coldstart takes a config: fedjax-vp coldstart coldstart_jin, say")
    execute(name, overrides, parse_seeds(seeds), out, quiet)


def execute(
    name: str,
    overrides: list[tuple[str, object]],
    seeds: list[int] | None = None,
    out: Path | None = None,
    quiet: bool = False,
) -> Path:
    """Runs what is missing, then prints, writes and draws.

    Returns:
        The folder written.

    Raises:
        UserError: The config or the folder is at fault.
    """
    from fedjax_vp import results, simulate
    from fedjax_vp.coldstart import running, table
    from fedjax_vp.config import load_config
    from fedjax_vp.environment import prepare_devices
    from fedjax_vp.progress import Tally

    config = running.adjusted(load_config(name, **{"compare": [], **dict(overrides)}))
    seeds = [config.seed] if seeds is None else seeds
    out = out or Path("runs") / (
        config.name if config.name.startswith("coldstart") else f"coldstart-{config.name}"
    )
    prepare_devices(config.engine.devices)
    results.open_folder(out, config, resume=True)
    try:
        with Tally(config.name, running.rounds(config, seeds, out), enabled=not quiet) as tally:
            found = running.run(config, seeds, out, tally)
    except (simulate.Interrupted, KeyboardInterrupt) as stop:
        done = str(stop) or "what was saved is kept"
        click.echo(f"interrupted: the same command continues ({done})", err=True)
        sys.exit(130)
    results.write_table(out / TABLE, found)
    results.write_json(out / results.SUMMARY, table.summary(config, found))
    present(out)
    click.echo(f"written to {out}")
    return out


def present(folder: Path) -> None:
    """Prints a cold start's tables and writes them and its figures into its folder.

    Raises:
        UserError: A file in the folder cannot be read.
    """
    import json

    import polars as pl

    from fedjax_vp import results
    from fedjax_vp.coldstart import table
    from fedjax_vp.report import tables
    from fedjax_vp.report.figures import write as draw

    try:
        found = pl.read_parquet(folder / TABLE)
        dataset = json.loads((folder / results.MANIFEST).read_text("utf-8"))["config"]["dataset"]
        shown = table.to_tables(found, tables.describe(dataset))
    except (OSError, ValueError, KeyError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}: the cold start cannot be read ({reason}); run it again") from error
    (folder / "coldstart.md").write_text("\n".join(one.markdown() for one in shown), "utf-8")
    draw(folder / "figures", table.figures(found))
    for one in shown:
        tables.show(one)
