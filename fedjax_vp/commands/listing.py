"""`fedjax-vp list`: what there is to choose from."""

from __future__ import annotations

import json

import click


@click.command(name="list")
@click.argument("what", type=click.Choice(["algorithms", "models", "datasets", "configs"]))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON mapping of names to descriptions.")
def listing(what: str, as_json: bool) -> None:
    """List the names that configs and commands accept."""
    rows = {"algorithms": algorithms, "models": models, "datasets": datasets, "configs": configs}[what]()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    width = max((len(name) for name in rows), default=0)
    for name, text in rows.items():
        click.echo(f"{name:{width}}  {text}".rstrip())


def algorithms() -> dict[str, str]:
    """Titles of recipes by name."""
    from fedjax_vp.algorithms import RECIPES

    return {name: one.title for name, one in RECIPES.items()}


def models() -> dict[str, str]:
    """First lines of the models' documentation by kind."""
    from fedjax_vp.models import BASELINES, MODELS

    marks: dict[str, str] = dict.fromkeys(
        BASELINES, " (baseline without weights: in every table, not to be trained)"
    )
    return {kind: _first_line(settings) + marks.get(kind, "") for kind, settings in MODELS.items()}


def datasets() -> dict[str, str]:
    """What `dataset.kind` takes."""
    from fedjax_vp.config import DatasetSettings
    from fedjax_vp.merging import kinds_of, members_of

    return {kind: _first_line(one) for one in members_of(DatasetSettings) for kind in kinds_of(one)}


def configs() -> dict[str, str]:
    """Shipped configs and the comment that heads each."""
    from fedjax_vp.config import shipped_configs

    heads = {name: path.read_text("utf-8").partition("\n")[0] for name, path in shipped_configs().items()}
    return {name: head.lstrip("# ") if head.startswith("#") else "" for name, head in heads.items()}


def _first_line(documented: object) -> str:
    return (documented.__doc__ or "").strip().partition("\n")[0]
