"""IFCA's synthetic experiment as a success map (Ghosh et al., NeurIPS 2020, section 6).

    python benchmarks/ifca_synthetic.py [CONFIG] --out runs/ifca_synthetic [--set data_sets=2 ...]

CONFIG is `benchmarks/configs/ifca_synthetic.yaml` unless given; `ifca_synthetic_full.yaml` beside it is the
published grid, for a GPU. Run it again with the same folder and finished cells are reused. Writes
`cells.jsonl`, `ifca_synthetic.json` and `ifca_synthetic.png` into the folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ifca import figure, judgment, solving
from ifca.settings import Experiment, load
from rich.console import Console

from fedjax_vp import settings_text
from fedjax_vp.errors import UserError

CONFIG = Path(__file__).parent / "configs" / "ifca_synthetic.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cells that are missing, then prints the map, what it shows, and writes both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, nargs="?", default=CONFIG)
    parser.add_argument("--out", type=Path, default=Path("runs/ifca_synthetic"))
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replaces a top-level key"
    )
    options = parser.parse_args(arguments)
    try:
        experiment = load(options.config, overrides(options.set))
        report(experiment, solving.run(experiment, options.out, Console(stderr=True)), options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted: the same command goes on after the cells in {options.out}", file=sys.stderr)
        return 130
    return 0


def overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Values of `key=value` texts."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair!r}: write it as key=value, such as data_sets=2")
        found[key] = settings_text.parse(value, f"--set {key}")
    return found


def report(experiment: Experiment, results: list[solving.Result], out: Path) -> None:
    """Prints the table and the verdicts; writes JSON and figure."""
    found = [point for result in results for point in result["points"]]
    verdicts = judgment.verdicts(found)
    seconds = sum(result["seconds"] for result in results)
    print(judgment.table(found), end="\n\n")
    for verdict in verdicts:
        against = f" ({'; '.join(verdict['against'])})" if verdict["against"] else ""
        print(f"{'yes' if verdict['holds'] else 'NO'}: {verdict['claim']}{against}")
    print(f"{len(results)} cells in {seconds / 60:.1f} min")
    whole = {
        "config": experiment.model_dump(mode="json"),
        "devices": sorted({result["device"] for result in results}),
        "jax": sorted({result["jax"] for result in results}),
        "wall_s": seconds,
        "verdicts": verdicts,
        "points": found,
    }
    solving.write(out / "ifca_synthetic.json", json.dumps(whole, indent=1) + "\n")
    figure.draw(found, out / "ifca_synthetic.png")


if __name__ == "__main__":
    sys.exit(main())
