"""From a config to objects, and from objects to a run: the only place where names meet code."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from fedjax_vp import processes, results, simulate, summarizing
from fedjax_vp.config import Config, load_config
from fedjax_vp.data import splits, synthetic
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.errors import UserError
from fedjax_vp.evaluate import Evaluation
from fedjax_vp.federated import federation
from fedjax_vp.federated.components import mixture
from fedjax_vp.federated.settings import Evaluate
from fedjax_vp.models import BASELINES, MODELS, WindowShape
from fedjax_vp.problem import Outcome, Problem
from fedjax_vp.progress import Progress
from fedjax_vp.settings_text import read

_GENERATED = (synthetic.Synthetic, synthetic.Planted)
_SAMPLE_SLACK = 1e-3  # of a sample: what a horizon in decimal seconds may miss it by


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
    _require_weights(config)
    processes.require(config.engine.processes)
    folder = None if out is None else Path(out)
    compared = processes.from_first(lambda: _open(config, folder, resume))
    if not processes.is_first():
        folder, progress = None, False
    if compared is None:
        return read_back(folder)
    compared = _compared(config, compared)
    traces, split = processes.together(
        lambda: load_traces(config), "data or settings", partial(_identity, config)
    )
    evaluate = horizons(config, traces.rate_hz)
    if folder is not None:
        describe(folder, config, compared, traces)
    outcomes: dict[str, Outcome] = {}
    baselines: dict[str, Evaluation] = {}
    with Progress(config.rounds, evaluate.horizons_s, enabled=progress) as bar:
        for name, one in {**compared, config.algorithm: config}.items():
            for note in filter(None, (needless(one, split), unmixed(one, split))):
                bar.note(f"{name} {note}")
            place = folder if folder is None or one is config else results.beside(folder, name)
            one_problem = problem(one, traces, split, evaluate)._replace(baselines=baselines)
            outcomes[name] = simulate.simulate(
                one_problem, one.rounds, one.seed, place, resume, bar.reporter(name)
            )
    return record(config, traces, evaluate, outcomes, folder)


def describe(folder: Path, config: Config, compared: dict[str, Config], traces: TraceSet) -> None:
    """Writes the manifest of a run, or checks that the one it goes on from had the same traces."""
    if not (folder / results.MANIFEST).is_file():
        results.write_json(folder / results.MANIFEST, results.manifest(config, compared, traces))
    elif not isinstance(config.dataset, _GENERATED):
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
    scores = summarizing.Scores(traces, evaluate, {**own.baselines, **evaluations})
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


def load_traces(config: Config) -> tuple[TraceSet, splits.Split]:
    """The data set's traces and the phases of their windows; validation windows may test (`evaluate.phase`).

    Raises:
        UserError: The data are absent, unreadable, or the protocol cannot be used with them.
    """
    settings = config.dataset
    traces = synthetic.generate(settings) if isinstance(settings, _GENERATED) else settings.load()
    split = splits.split(traces, config.protocol)
    if config.evaluate.phase == "valid":
        if not split.valid.any():
            raise UserError(
                f"evaluate.phase is valid, but {traces.name} has no validation window: raise "
                "protocol.valid_share, or give evaluate.phase: test"
            )
        split = split._replace(test=split.valid)
    return traces, split


def window_shape(config: Config, traces: TraceSet) -> WindowShape:
    """Samples of history and horizon at the traces' rate.

    Raises:
        UserError: The protocol's windows are shorter than a sample.
    """
    history = round(config.protocol.history_s * traces.rate_hz)
    horizon = round(config.protocol.horizon_s * traces.rate_hz)
    if history < 1 or horizon < 1:
        raise UserError(
            f"protocol.history_s and horizon_s must hold a sample each: at {traces.rate_hz:g} Hz give "
            f"at least {1 / traces.rate_hz:g} s"
        )
    return WindowShape(history, horizon, traces.rate_hz, traces.duration_s)


def horizons(config: Config, rate_hz: float) -> Evaluate:
    """What is measured: horizons within the protocol's that end on a sample.

    The default horizons that do not are left out; those that were asked for must.

    Args:
        config: Settings.
        rate_hz: Samples a second of the traces.

    Raises:
        UserError: A horizon lies beyond the protocol's or between two samples.
    """
    longest = config.protocol.horizon_s + 1e-6
    chosen = {}
    for key in ("horizons_s", "tile_horizons_s"):
        asked = getattr(config.evaluate, key)
        usable = tuple(h for h in asked if h <= longest and _is_on_grid(h, rate_hz))
        if (usable != asked and asked != getattr(Evaluate(), key)) or not usable:
            raise UserError(
                f"evaluate.{key} is {list(asked)}: give multiples of a sample, {1 / rate_hz:g} s at "
                f"{rate_hz:g} Hz, within protocol.horizon_s, {config.protocol.horizon_s:g} s"
            )
        chosen[key] = usable
    return replace(config.evaluate, **chosen)


def _is_on_grid(horizon_s: float, rate_hz: float) -> bool:
    """Whether a horizon is a whole number of samples, at least one."""
    samples = horizon_s * rate_hz
    return round(samples) >= 1 and abs(samples - round(samples)) < _SAMPLE_SLACK


def needless(config: Config, split: splits.Split) -> str:
    """Says so, if the config adapts to windows of tested sessions and there are none; else nothing."""
    tested, phases = split.test.any(axis=1), _adapted_on(config)
    if not config.adapt.steps or any(getattr(split, phase)[tested].any() for phase in phases):
        return ""
    return f"adapts to nothing: no tested session has {' or '.join(phases)} windows"


def unmixed(config: Config, split: splits.Split) -> str:
    """Says so, if the config mixes levels and there is nothing to learn the weights on; else nothing."""
    if config.mixing.kind == "none" or len(config.levels) == 1 or split.windows("valid").any():
        return ""
    together = "begin with half of the weight together" if config.mixing.online else "predict together"
    return (
        f"learns no weights of its levels, for there is no validation window: all {together} at every "
        "horizon; raise protocol.valid_share, or set mixing.kind to none"
    )


def _adapted_on(config: Config) -> tuple[str, ...]:
    """Phases whose windows the config may adapt to."""
    return ("train", "adapt") if config.adapt.on == "auto" else (config.adapt.on,)


def problem(config: Config, traces: TraceSet, split: splits.Split, evaluate: Evaluate) -> Problem:
    """A config's federation, predictor and method, ready to simulate.

    Raises:
        UserError: The model has nothing to learn, or the windows are shorter than a sample.
    """
    _require_weights(config)
    shape = window_shape(config, traces)
    return Problem(
        federation=federation.sampled(
            federation.build(traces, split, shape, config.client), evaluate.sessions
        ),
        predictor=mixture(config.components, config.model.build(shape)),
        method=config.method,
        engine=config.engine,
        evaluate=evaluate,
        traces=traces,
        split=split,
    )


def _require_weights(config: Config) -> None:
    kind = config.model.kind
    if kind in BASELINES:
        learned = ", ".join(name for name in MODELS if name not in BASELINES)
        raise UserError(
            f"{kind} has no weights: it stands in every table as a baseline; "
            f"choose a model that learns: {learned}"
        )
