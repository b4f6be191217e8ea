"""The chunk loop: compiled rounds on the device; logging, checkpoints and looks at the error between them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_vp.checkpoint import Checkpoints
from fedjax_vp.data.splits import Split
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.errors import UserError
from fedjax_vp.evaluate import Evaluation, baseline, evaluate, examples, make_errors, make_mixing, own
from fedjax_vp.federated import regrouping
from fedjax_vp.federated import round as rounds_of
from fedjax_vp.federated.federation import Federation, thin
from fedjax_vp.federated.placement import make_place
from fedjax_vp.federated.settings import Engine, Evaluate, Method
from fedjax_vp.models.base import Predictor
from fedjax_vp.models.static import Static
from fedjax_vp.models.velocity import Velocity

BASELINES = {"no_motion": Static(), "velocity": Velocity()}
PER_ROUND = ("loss", "invited", "reported", "nonfinite", "sessions_down", "sessions_up")


class Problem(NamedTuple):
    """What is simulated."""

    federation: Federation
    predictor: Predictor
    method: Method
    engine: Engine
    evaluate: Evaluate
    traces: TraceSet
    split: Split


class Outcome(NamedTuple):
    """What a simulation returns."""

    state: Any
    history: list[dict[str, Any]]  # round, loss, error_deg (list over horizons), bytes_up, bytes_down
    evaluation: Evaluation  # all test windows
    baselines: dict[str, Evaluation]  # on the same windows
    timings: dict[str, float]  # s
    counters: dict[str, Any]
    examples: dict[str, np.ndarray]  # some test windows for the world map


class Interrupted(Exception):
    """Ctrl-C: the chunk was finished and saved.

    Attributes:
        round: rounds done.
        path: run folder, None where nothing is kept.
    """

    def __init__(self, round: int, path: Path | None) -> None:
        super().__init__(f"stopped after round {round}")
        self.round, self.path = round, path


def simulate(
    problem: Problem,
    rounds: int,
    seed: int,
    run_dir: Path | None = None,
    resume: bool = False,
    reporter: Callable[[dict[str, Any]], None] = lambda facts: None,
) -> Outcome:
    """Runs a method for `rounds` rounds and measures it on all test windows.

    Args:
        problem: what is simulated.
        rounds: rounds in all.
        seed: of participation, batches and the model's init.
        run_dir: folder whose `checkpoints/` are written; None keeps nothing.
        resume: continue from the newest checkpoint there.
        reporter: told at every chunk end of `round`, and of `loss` and `error_deg` where known.

    Raises:
        Interrupted: Ctrl-C.
        UserError: the run diverged; names the round and the last good checkpoint.
    """
    run = _Run(problem, rounds, seed)
    checkpoints = Checkpoints(run_dir / "checkpoints" if run_dir else None)
    try:
        with _graceful() as stop:
            found = checkpoints.latest(run.state) if resume else None
            if found:
                run.state, run.log = found
            while run.done < rounds:
                run.advance(checkpoints)
                reporter({"round": run.done, **run.news()})
                if run.done % problem.engine.chunk == 0 or run.done == rounds or stop.is_set():
                    checkpoints.save(run.done, run.state, run.log)
                if stop.is_set():
                    raise Interrupted(run.done, run_dir)
        return run.outcome(reporter)
    finally:
        checkpoints.close()


@contextmanager
def _graceful() -> Iterator[threading.Event]:
    """Turns Ctrl-C and a polite kill into a flag that is looked at between chunks."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt  # asked twice: now
        stop.set()

    for number in old:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class _Run:
    """A simulation in progress: compiled functions, the device state, and a log that JSON can hold."""

    def __init__(self, problem: Problem, rounds: int, seed: int) -> None:
        self.problem, self.rounds = problem, rounds
        self.sim = rounds_of.simulator(problem.federation, problem.predictor, problem.method, problem.engine)
        # Seeds go up to 2^32 - 1; the state holds the same 32 bits.
        self.state = rounds_of.init(self.sim, jnp.asarray(np.uint32(seed).view(np.int32)))
        self.arrays = problem.federation.arrays
        self.numbers = rounds_of.hyper(problem.method, rounds)
        self.log: dict[str, Any] = {
            "rounds": {name: [] for name in PER_ROUND},
            "looks": [],
            "groups": [],
            "timings": dict.fromkeys(("compile_s", "wall_s", "evaluate_s", "clustering_s"), 0.0),
        }
        self.chunk: Callable[..., Any] | None = None
        self.errors = make_errors(own(self.sim), problem.federation.shape, self.sim.mesh, problem.evaluate)
        self.mixing = make_mixing(self.sim)
        self.place = make_place(self.sim)
        self.quick = jax.jit(thin, static_argnums=1)(self.arrays.test, problem.evaluate.history_windows)

    @property
    def done(self) -> int:
        """Rounds done."""
        return len(self.log["rounds"]["loss"])

    def advance(self, checkpoints: Checkpoints) -> None:
        """Runs to the next chunk end or look, whichever comes first."""
        every, length = self.problem.evaluate.every, self.problem.engine.chunk
        turn = regrouping.due(self.problem.method, self.done) or self.rounds
        stop = min(self.rounds, turn, *((self.done // n + 1) * n for n in (every, length)))
        begun = time.perf_counter()
        if self.chunk is None:
            chunk = jax.jit(rounds_of.make_chunk(self.sim, length), donate_argnums=0)
            self.chunk = chunk.lower(self.state, self.arrays, self.numbers, jnp.int32(1)).compile()
            self.log["timings"]["compile_s"] += time.perf_counter() - begun
            begun = time.perf_counter()
        count = stop - self.done
        self.state, info = self.chunk(self.state, self.arrays, self.numbers, jnp.int32(count))
        info = jax.device_get(info)
        sick = np.flatnonzero(~info.healthy[:count])
        if len(sick):
            raise UserError(_diverged(self.done + int(sick[0]) + 1, checkpoints))
        for name in PER_ROUND:
            self.log["rounds"][name] += getattr(info, name)[:count].tolist()
        self.log["timings"]["wall_s"] += time.perf_counter() - begun
        if stop == turn:
            self.regroup()
        if stop % every == 0 or stop == self.rounds:
            self.look()

    def regroup(self) -> None:
        """Groups units by their updates, at the levels whose turn it is."""
        begun = time.perf_counter()
        self.state, facts = regrouping.regroup(self.problem.method, self.state, self.done)
        self.log["groups"] += facts
        self.log["timings"]["clustering_s"] += time.perf_counter() - begun

    def forecaster_state(self) -> tuple[Any, Any]:
        """The state with newcomers in groups, and the weights of its prefixes."""
        placed = self.place(self.state)
        return placed, self.mixing(placed)

    def look(self) -> None:
        """Measures the error on a few windows of each test session."""
        begun = time.perf_counter()
        found = evaluate(self.errors, self.forecaster_state(), self.sim, self.quick)
        self.log["looks"].append([self.done, [float(x) for x in found.error_deg.mean(axis=0)]])
        self.log["timings"]["evaluate_s"] += time.perf_counter() - begun

    def news(self) -> dict[str, Any]:
        """What a progress bar shows."""
        looks = self.log["looks"]
        return {"loss": self.log["rounds"]["loss"][-1], "error_deg": looks[-1][1] if looks else None}

    def traffic(self, rounds: int) -> dict[str, int]:
        """Bytes of models sent in the first `rounds` rounds: leaves that stay on the headset cost nothing."""
        params = jax.eval_shape(self.problem.predictor.init, jax.random.key(0))
        sent = {n: p.size * p.dtype.itemsize for n, p in params.items() if n not in self.sim.layout.private}
        apart = sum(size for n, size in sent.items() if n in self.sim.layout.varying)
        once = sum(sent.values()) - apart
        log = {name: sum(values[:rounds]) for name, values in self.log["rounds"].items() if name != "loss"}
        return {
            "bytes_up": once * log["reported"] + apart * log["sessions_up"],
            "bytes_down": once * log["invited"] + apart * log["sessions_down"],
        }

    def history(self) -> list[dict[str, Any]]:
        """One entry for every look: mean loss since the look before, errors and traffic so far."""
        entries, before = [], 0
        for done, error in self.log["looks"]:
            loss = float(np.mean(self.log["rounds"]["loss"][before:done]))
            entries.append({"round": done, "loss": loss, "error_deg": error, **self.traffic(done)})
            before = done
        return entries

    def outcome(self, reporter: Callable[[dict[str, Any]], None]) -> Outcome:
        """Measures everything on all test windows."""

        def tick(done: int, total: int) -> None:
            reporter({"round": self.done, "stage": f"measured {done} of {total} sessions"})

        begun = time.perf_counter()
        problem, federation = self.problem, self.problem.federation
        forecaster_state = self.forecaster_state()
        found = evaluate(self.errors, forecaster_state, self.sim, self.arrays.test, tick)
        baselines = {}
        for name, settings in BASELINES.items():
            forecaster = baseline(settings.build(federation.shape))
            errors = make_errors(forecaster, federation.shape, self.sim.mesh, problem.evaluate)
            baselines[name] = evaluate(errors, (), self.sim, self.arrays.test)
        shown = examples(own(self.sim), forecaster_state, self.sim)
        self.log["timings"]["evaluate_s"] += time.perf_counter() - begun
        return Outcome(
            self.state, self.history(), found, baselines, dict(self.log["timings"]), self.counters(), shown
        )

    def counters(self) -> dict[str, Any]:
        """Sizes and counts of the whole run."""
        params = jax.eval_shape(self.problem.predictor.init, jax.random.key(0))
        names = [level.name for level in self.sim.layout.levels]
        return {
            "num_params": sum(int(p.size) for p in params.values()),
            "num_clients": self.problem.federation.num_clients,
            "num_groups": dict(zip(names, self.sim.layout.num_groups, strict=True)),
            "state_bytes": sum(x.nbytes for x in jax.tree.leaves(self.state)),
            "nonfinite_clients": sum(self.log["rounds"]["nonfinite"]),
            **self.traffic(self.rounds),
        }


def _diverged(round_index: int, checkpoints: Checkpoints) -> str:
    good = checkpoints.last_round()
    kept = f"the last good checkpoint is of round {good}" if good else "there is no earlier checkpoint"
    return (
        f"the run diverged in round {round_index} (values are not finite); {kept}; "
        "lower local.lr or a level's server.lr, or set local.clip"
    )
