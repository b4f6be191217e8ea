"""`fedjax-vp run`: train, measure, write a run folder, print the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedjax_vp.errors import UserError


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True},
    epilog="Any setting can be overridden by its dotted name: --rounds 50 --local.lr 0.05 "
    "--levels.video.shrinkage auto. `fedjax-vp list` shows what there is to choose from.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder [default: runs/CONFIG-TIME].")
@click.option("--resume", type=click.Path(path_type=Path), help="Continue the run in this folder.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Override one setting.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[CONFIG] [--KEY VALUE]...")
def run(
    out: Path | None, resume: Path | None, pairs: tuple[str, ...], quiet: bool, words: tuple[str, ...]
) -> None:
    """Train CONFIG (a YAML file or a shipped name; quickstart by default) and print its table.

    Methods in the config's `compare` run beside its own, on the same windows.
    """
    name, overrides = split_words(words)
    overrides += [split_pair(pair) for pair in pairs]
    from fedjax_vp.commands import running

    config, folder = running.choose(name, overrides, out, resume)
    running.execute(config, folder, resume=resume is not None, quiet=quiet)


def split_words(words: tuple[str, ...]) -> tuple[str | None, list[tuple[str, Any]]]:
    """The config's name and the dotted overrides (`--key value` or `--key=value`).

    Raises:
        UserError: An override lacks its value, or there are two configs.
    """
    from fedjax_vp.settings_text import parse

    names: list[str] = []
    overrides: list[tuple[str, Any]] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            names.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            following = next(rest, None)
            if following is None or following.startswith("--"):
                raise UserError(f"{word} lacks its value: write {word} VALUE (see fedjax-vp run --help)")
            value = following
        overrides.append((key, parse(value, word)))
    if len(names) > 1:
        raise UserError(f"run takes one config, not {len(names)} ({', '.join(names)}): give one of them")
    return (names[0] if names else None), overrides


def split_pair(pair: str) -> tuple[str, Any]:
    """Key and value of a `--set KEY=VALUE`.

    Raises:
        UserError: There is no `=`.
    """
    from fedjax_vp.settings_text import parse

    key, equals, value = pair.partition("=")
    if not equals:
        raise UserError(f"--set {pair}: write --set KEY=VALUE, such as --set local.lr=0.05")
    return key, parse(value, f"--set {pair}")
