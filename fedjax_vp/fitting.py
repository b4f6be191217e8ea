"""From a config to a problem: traces, windows, federation, model and method that fit one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from fedjax_vp import processes
from fedjax_vp.config import Config
from fedjax_vp.data import splits, synthetic
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.errors import UserError
from fedjax_vp.evaluate import make_mixing
from fedjax_vp.federated import federation
from fedjax_vp.federated.components import mixture
from fedjax_vp.federated.server import transformation
from fedjax_vp.federated.settings import Evaluate
from fedjax_vp.models import BASELINES, MODELS, WindowShape
from fedjax_vp.models.base import Predictor
from fedjax_vp.problem import Problem

GENERATED = (synthetic.Synthetic, synthetic.Planted)
_SAMPLE_SLACK = 1e-3  # of a sample: what a horizon in decimal seconds may miss it by


def load_traces(config: Config) -> tuple[TraceSet, splits.Split]:
    """The data set's traces and the phases of their windows; validation windows may test (`evaluate.phase`).

    Raises:
        UserError: The data are absent, unreadable, or the protocol cannot be used with them.
    """
    settings = config.dataset
    traces = synthetic.generate(settings) if isinstance(settings, GENERATED) else settings.load()
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


def check(configs: Mapping[str, Config]) -> None:
    """Fits configs to their data, so that a mistake in the last of them is told before the first trains.

    Args:
        configs: By the name that an error begins with.

    Raises:
        UserError: The data of one are absent, or its settings do not fit them.
    """
    known: list[tuple[Any, tuple[TraceSet, splits.Split]]] = []
    for name, one in configs.items():
        key = (one.dataset, one.protocol, one.evaluate.phase)
        found = next((data for other, data in known if other == key), None)
        if found is None:
            with _named(name):
                found = load_traces(one)
            known.append((key, found))
        check_on({name: one}, *found)


def check_on(configs: Mapping[str, Config], traces: TraceSet, split: splits.Split) -> None:
    """`check` of configs that share these data."""
    for name, one in configs.items():
        with _named(name):
            made = problem(one, traces, split, horizons(one, traces.rate_hz))
            sim = made.simulator()
            make_mixing(sim.on(processes.own(sim.mesh)))
            for method in (made.method, *made.method.experts):
                for level in method.levels:
                    transformation(level.server)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Begins errors with a config's name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def needless(config: Config, split: splits.Split) -> str:
    """Says so, if the config adapts to windows of tested sessions and there are none; else nothing."""
    tested, phases = split.test.any(axis=1), _adapted_on(config)
    if not config.adapt.steps or any(getattr(split, phase)[tested].any() for phase in phases):
        return ""
    return f"adapts to nothing: no tested session has {' or '.join(phases)} windows"


def unmixed(config: Config, split: splits.Split) -> str:
    """Says so, if the config mixes levels and there is nothing to learn the weights on; else nothing."""
    single = len(config.levels) + len(config.experts) == 1
    if config.mixing.kind == "none" or single or split.windows("valid").any():
        return ""
    together = "begin with half of the weight together" if config.mixing.online else "predict together"
    return (
        f"learns no weights of its levels, for there is no validation window: all {together} at every "
        "horizon; raise protocol.valid_share, or set mixing.kind to none (and mixing.experts to [])"
    )


def _adapted_on(config: Config) -> tuple[str, ...]:
    """Phases whose windows the config may adapt to."""
    return ("train", "adapt") if config.adapt.on == "auto" else (config.adapt.on,)


def problem(config: Config, traces: TraceSet, split: splits.Split, evaluate: Evaluate) -> Problem:
    """A config's federation, predictor and method, ready to simulate.

    Raises:
        UserError: The model has nothing to learn, or the windows are shorter than a sample.
    """
    require_weights(config)
    shape = window_shape(config, traces)
    return Problem(
        federation=federation.sampled(
            federation.build(traces, split, shape, config.client), evaluate.sessions
        ),
        predictor=_predictor(config, shape),
        method=config.method,
        engine=config.engine,
        evaluate=evaluate,
        traces=traces,
        split=split,
        experts=tuple(_predictor(one, shape) for one in config.experts.values()),
    )


def _predictor(config: Config, shape: WindowShape) -> Predictor:
    return mixture(config.components, config.model.build(shape))


def require_weights(config: Config) -> None:
    """Raises UserError where the model has nothing to learn."""
    kind = config.model.kind
    if kind in BASELINES:
        learned = ", ".join(name for name in MODELS if name not in BASELINES)
        raise UserError(
            f"{kind} has no weights: it stands in every table as a baseline; "
            f"choose a model that learns: {learned}"
        )
