"""Clustered federated learning on planted clients: linear regressions whose truths are shared by groups.

    python benchmarks/cfl_planted.py --out benchmarks/results

20 clients of 1 (IID), 2 or 4 groups, 20 seeds, both linkages; federated averaging in NumPy, splits by
`fedjax_vp.federated.grouping.cfl`. Writes `cfl_planted.json` and a figure of the similarity of updates within
and between the true groups over rounds, with the splits.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_vp.federated.grouping import split_tree
from fedjax_vp.federated.grouping.cfl import Members, SplitRule, advance
from fedjax_vp.federated.grouping.labels import renumber
from fedjax_vp.federated.grouping.scores import score
from fedjax_vp.federated.grouping.similarity import Separation, cosine, within_between

CLIENTS, SAMPLES, SIZE, NOISE = 20, 200, 20, 0.1
ROUNDS, LOCAL_STEPS, RATE = 40, 5, 0.1
MOST_GROUPS = 8
# the paper's rule of thumb: eps1 a tenth of the largest mean update, eps2 twice that
RULE = SplitRule(eps1=0.1, eps2=0.2, gamma_max=0.3, min_size=2, linkage="single", min_round=5)


class Clients(NamedTuple):
    """Regressions y = <x, theta> + noise."""

    x: np.ndarray  # [client, sample, d]
    y: np.ndarray  # [client, sample]
    truth: np.ndarray  # group of each client, int [client]


class Run(NamedTuple):
    """What a training has left."""

    row: np.ndarray  # group of each client
    tree: split_tree.Tree
    history: list[dict[str, Any]]  # a round each


def plant(groups: int, seed: int, clients: int = CLIENTS, noise: float = NOISE) -> Clients:
    """Clients whose groups' truths are drawn from N(0, I); groups are dealt in random order."""
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal((groups, SIZE))
    truth = rng.permutation(np.arange(clients) % groups)
    x = rng.standard_normal((clients, SAMPLES, SIZE))
    y = np.einsum("cnd,cd->cn", x, theta[truth]) + noise * rng.standard_normal((clients, SAMPLES))
    return Clients(x, y, truth)


def local_updates(clients: Clients, start: np.ndarray) -> np.ndarray:
    """Updates [client, d] of full-batch gradient steps from each client's model."""
    model = start.copy()
    for _ in range(LOCAL_STEPS):
        residual = np.einsum("cnd,cd->cn", clients.x, model) - clients.y
        model -= RATE * np.einsum("cnd,cn->cd", clients.x, residual) / clients.x.shape[1]
    return model - start


def train(clients: Clients, rule: SplitRule = RULE, rounds: int = ROUNDS) -> Run:
    """Federated averaging within groups, which are split when the rule says so."""
    count = len(clients.truth)
    models = np.zeros((MOST_GROUPS, SIZE), np.float32)
    row = np.zeros(count, np.int32)
    tree = split_tree.empty(MOST_GROUPS - 1, count, SIZE, {"w": (SIZE,)})
    history, peak = [], 0.0
    for round_ in range(1, rounds + 1):
        updates = local_updates(clients, models[row])
        means = [updates[row == group].mean(axis=0) for group in np.unique(row)]
        peak = max(peak, float(np.linalg.norm(means, axis=1).max()))
        free = list(range(tree.count + 1, MOST_GROUPS))
        members = Members(row, updates, np.ones(count))
        found = advance(tree, members, rule.scaled(peak), round_, free, {"w": models})
        seen = within_between(cosine(updates), clients.truth)
        history.append({**seen._asdict(), "splits": len(found.copied), "round": round_})
        tree, row = found.tree, found.row
        for new, old in found.copied.items():
            models[new] = models[old]
        for group in np.unique(row):
            models[group] += updates[row == group].mean(axis=0)
    return Run(row, tree, history)


def lead_newcomers(run: Run, newcomers: Clients) -> np.ndarray:
    """Rows of clients that come after the training, by their updates at the models of the splits."""
    count = len(newcomers.truth)
    starts = [np.broadcast_to(model, (count, SIZE)) for model in run.tree.model["w"]]
    updates = np.stack([local_updates(newcomers, start) for start in starts], axis=1)
    return split_tree.route(run.tree, updates, np.zeros(count, np.int32))


def trial(groups: int, seed: int, rule: SplitRule) -> tuple[Run, dict[str, Any]]:
    """One federation: half of the clients train, the others come later."""
    clients = plant(groups, seed, 2 * CLIENTS)
    old, new = (Clients(*(x[half] for x in clients)) for half in (slice(CLIENTS), slice(CLIENTS, None)))
    run = train(old, rule)
    labels = np.concatenate([run.row, lead_newcomers(run, new)])
    found = score(run.row, old.truth)
    splits = run.tree.round[: run.tree.count].tolist()
    line = {
        "groups": groups,
        "seed": seed,
        "linkage": rule.linkage,
        "ari": found.ari,
        "found": found.num_groups,
        "split_rounds": splits,
        "alpha_cross_max": [rounded(float(a)) for a in run.tree.alpha_cross_max[: run.tree.count]],
        "newcomers_right": float((renumber(labels) == renumber(clients.truth))[CLIENTS:].mean()),
        "cosine_before": {k: rounded(run.history[RULE.min_round - 1][k]) for k in Separation._fields},
    }
    return run, line


def rounded(value: float) -> float | None:
    """Four digits; JSON knows no NaN."""
    return round(value, 4) if np.isfinite(value) else None


def draw(runs: dict[str, Run], stem: Path) -> None:
    """Similarity of updates over rounds, one panel a federation."""
    import matplotlib
    from matplotlib.figure import Figure

    from fedjax_vp.report import style

    with matplotlib.rc_context(style.RC):
        figure = Figure(figsize=(8.4, 3.3), layout="constrained")
        panels = figure.subplots(1, len(runs), sharey=True)
        looks = style.looks(["within", "between"])
        for panel, (title, run) in zip(panels, runs.items(), strict=True):
            rounds = [line["round"] for line in run.history]
            for name, edge in (("within", "least_within"), ("between", "most_between")):
                mean = [line[name] for line in run.history]
                panel.plot(rounds, mean, **looks[name].line(), markevery=10, label=f"{name} groups, mean")
                limit = [line[edge] for line in run.history]
                label = f"{name} groups, {'least' if name == 'within' else 'most'}"
                panel.plot(rounds, limit, color=looks[name].color, linewidth=0.7, label=label)
            for at in np.unique(run.tree.round[: run.tree.count]):
                panel.axvline(at, color="#555555", linestyle=":", linewidth=1, label="split")
            panel.set(title=title, xlabel="round", ylim=(-1.05, 1.05))
        panels[0].set_ylabel("cosine of updates")
        entries = dict(zip(*reversed(panels[1].get_legend_handles_labels()), strict=True))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3)
    style.save(figure, stem)
    stem.with_suffix(".pdf").unlink()


def main() -> None:
    """Trains all federations, prints one line for each kind, and writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    trials, runs, summary = [], {}, []
    for linkage in ("single", "complete"):
        for groups, title in ((1, "IID"), (2, "2 groups"), (4, "4 groups")):
            mine = []
            for seed in range(arguments.seeds):
                run, line = trial(groups, seed, replace(RULE, linkage=linkage))
                runs.setdefault(title, run)
                mine.append(line)
            exact = sum(line["ari"] == 1.0 and line["found"] == groups for line in mine)
            placed = float(np.mean([line["newcomers_right"] for line in mine]))
            summary.append({"groups": groups, "linkage": linkage, "exact": exact, "newcomers_right": placed})
            print(f"{title}, {linkage}: exact on {exact} of {len(mine)} seeds, {placed:.1%} newcomers right")
            trials += mine
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = {"rule": asdict(RULE), "seeds": arguments.seeds, "summary": summary, "trials": trials}
    (arguments.out / "cfl_planted.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    draw(runs, arguments.out / "cfl_planted")


if __name__ == "__main__":
    main()
