"""From a config to objects, and from objects to a run: the only place where names meet code."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from fedjax_vp import fitting, processes, results, simulate, summarizing
from fedjax_vp.config import Config, load_config
from fedjax_vp.data import splits
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.evaluate import Evaluation
from fedjax_vp.federated.settings import Evaluate
from fedjax_vp.metrics import REFERENCE
from fedjax_vp.problem import Outcome
from fedjax_vp.progress import Progress
from fedjax_vp.settings_text import read


class RunResult(NamedTuple):
    """What a run gives back.

    Attributes:
        summary: The content of summary.json.
        history: Errors on the way, one row a measured round and horizon.
        state: Final state of the method; None where a finished run was only read back.
        path: The run folder; None where none was asked for.
    """

    summary: dict[str, Any]
    history: pl.DataFrame
    state: Any
    path: Path | None


def run(
    config: Config | str | Path = "quickstart",
    out: str | Path | None = None,
    *,
    resume: bool = False,
    progress: bool = True,
) -> RunResult:
    """Trains the config's method and those it names in `compare`, and measures them on the same windows.

    Args:
        config: Settings, or what `load_config` takes.
        out: Run folder; nothing is written where it is None.
        resume: Continue the run in `out` from its last checkpoint; a finished one is read back.
        progress: Show a progress bar.

    Raises:
        UserError: Settings, data or folder are at fault.
        fedjax_vp.simulate.Interrupted: Ctrl-C; what was computed is kept in `out`.
    """
    config = config if isinstance(config, Config) else load_config(config)
    fitting.require_weights(config)
    processes.require(config.engine.processes)
    folder = None if out is None else Path(out)
    begun = processes.from_first(lambda: folder is not None and results.kept_config(folder) is not None)
    compared = processes.from_first(lambda: _open(config, folder, resume)) if begun else {}
    if compared is None:
        return read_back(folder if processes.is_first() else None)
    traces, split = processes.together(
        lambda: fitting.load_traces(config), "data or settings", partial(_identity, config)
    )
    evaluate = fitting.horizons(config, traces.rate_hz)
    if not begun:  # what is wrong is told before anything is trained or written
        fitting.check_on({**config.beside, config.algorithm: config}, traces, split)
        compared = processes.from_first(lambda: _open(config, folder, resume)) or {}
    if not processes.is_first():
        folder, progress = None, False
    compared = _compared(config, compared)
    if folder is not None:
        describe(folder, config, compared, traces)
    methods = {**compared, config.algorithm: config}
    outcomes: dict[str, Outcome] = {}
    baselines: dict[str, Evaluation] = {}
    with Progress(config.rounds, evaluate.horizons_s, enabled=progress) as bar:
        for name, one in methods.items():
            for note in filter(None, (fitting.needless(one, split), fitting.unmixed(one, split))):
                bar.note(f"{name} {note}")
            place = folder if folder is None or one is config else results.beside(folder, name)
            one_problem = fitting.problem(one, traces, split, evaluate)._replace(baselines=baselines)
            outcomes[name] = simulate.simulate(
                one_problem, one.rounds, one.seed, place, resume, bar.reporter(name)
            )
    return record(config, traces, evaluate, outcomes, folder)


def describe(folder: Path, config: Config, compared: dict[str, Config], traces: TraceSet) -> None:
    """Writes the manifest of a run, or checks that the one it goes on from had the same traces."""
    if not (folder / results.MANIFEST).is_file():
        results.write_json(folder / results.MANIFEST, results.manifest(config, compared, traces))
    elif not isinstance(config.dataset, fitting.GENERATED):
        results.require_same_traces(folder, traces)


def record(
    config: Config,
    traces: TraceSet,
    evaluate: Evaluate,
    outcomes: dict[str, Outcome],
    folder: Path | None,
) -> RunResult:
    """Sums up a run, and writes what belongs into its folder.

    Args:
        config: Settings of its own method.
        traces: What it was measured on.
        evaluate: What was measured.
        outcomes: Of its own method, by algorithm, and of those beside it.
        folder: The run folder; None writes nothing.
    """
    own = outcomes[config.algorithm]
    evaluations = {name: outcome.evaluation for name, outcome in outcomes.items()}
    ran = {config.algorithm: config, **config.beside}
    fedavg = next((name for name, one in ran.items() if one.algorithm == REFERENCE), REFERENCE)
    scores = summarizing.Scores(traces, evaluate, {**own.baselines, **evaluations}, fedavg)
    summary = summarizing.summary(config, traces, own, scores)
    history = summarizing.history_table(own.history, evaluate.horizons_s)
    if folder is not None:
        table = summarizing.clients_table(traces, scores[config.algorithm], evaluate.horizons_s)
        results.write_table(folder / "clients.parquet", table)
        results.write_table(folder / "users.parquet", summarizing.users_table(scores))
        results.write_table(folder / "history.parquet", history)
        for name in outcomes.keys() - {config.algorithm}:
            table = summarizing.history_table(outcomes[name].history, evaluate.horizons_s)
            results.write_table(results.beside(folder, name) / "history.parquet", table)
        results.write_arrays(folder / "examples.npz", own.examples)
        if own.groups:
            results.write_table(folder / "groups.parquet", summarizing.groups_table(own.groups))
        results.write_table(folder / "compare.parquet", summarizing.compare_table(outcomes, scores))
        results.write_json(folder / results.SUMMARY, summary)
    return RunResult(summary, history, own.state, folder)


def _open(config: Config, folder: Path | None, resume: bool) -> dict[str, Any] | None:
    """Opens the run folder, if any; settings of the compared methods, or None where the run is finished.

    Those of a run that is resumed are read from its folder.
    """
    if folder is None:
        return {name: one.to_mapping() for name, one in config.beside.items()}
    results.open_folder(folder, config, resume)
    if results.is_finished(folder):
        return None
    return {name: read(results.beside(folder, name) / results.CONFIG) for name in config.beside}


def _compared(config: Config, kept: dict[str, Any]) -> dict[str, Config]:
    """Configs of the compared methods.

    The engine lays out the computation and may change on resuming, for all of them.
    """
    found = {name: load_config(mapping) for name, mapping in kept.items()}
    return {name: one.model_copy(update={"engine": config.engine}) for name, one in found.items()}


def _identity(config: Config, found: tuple[TraceSet, splits.Split]) -> tuple[Any, str]:
    """What processes that run together must have in common."""
    return config.to_mapping(), results.fingerprint(found[0])


def read_back(folder: Path | None) -> RunResult:
    """A finished run from its folder, without its state; without a folder, nothing."""
    if folder is None:
        return RunResult({}, summarizing.history_table([], ()), None, None)
    history = pl.read_parquet(folder / "history.parquet")
    return RunResult(results.read_json(folder / results.SUMMARY), history, None, folder)
