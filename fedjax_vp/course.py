"""The course of one point of a simulation: its device state, and a log that JSON can hold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_vp import compiling, processes
from fedjax_vp.checkpoint import Checkpoints
from fedjax_vp.errors import UserError
from fedjax_vp.evaluate import evaluate
from fedjax_vp.federated import census, regrouping
from fedjax_vp.federated import round as rounds_of
from fedjax_vp.forecasting import examples, own
from fedjax_vp.problem import TIMES, Common, Outcome, Point

SUMMED = ("invited", "reported", "nonfinite", "sessions_down", "sessions_up")
PER_ROUND = ("loss", *SUMMED, "moved")


class Course:
    """One point in progress.

    Args:
        common: What it shares with others.
        point: Seed, numbers and folder.

    Attributes:
        failed: Why it cannot go on, None while it can.
    """

    def __init__(self, common: Common, point: Point) -> None:
        self.common, self.point = common, point
        # Seeds go up to 2^32 - 1; the state holds the same 32 bits.
        self.state = common.init(jnp.asarray(np.uint32(point.seed).view(np.int32)), common.arrays)
        self.numbers = rounds_of.hyper(point.method, common.rounds)
        self.checkpoints = Checkpoints(point.run_dir / "checkpoints" if point.run_dir else None)
        self.failed: UserError | None = None
        self.log: dict[str, Any] = {
            "rounds": {name: [] for name in PER_ROUND},
            "looks": [],
            "groups": [],
            "timings": dict.fromkeys(TIMES, 0.0),
        }

    @property
    def done(self) -> int:
        """Rounds done."""
        return len(self.log["rounds"]["loss"])

    def resume(self) -> None:
        """Goes on from the newest checkpoint, if there is one.

        Raises:
            UserError: It is of another model or method.
        """
        log = processes.from_first(self._restore)
        if log is not None:
            self.state, self.log = processes.as_first(self.state), log

    def _restore(self) -> dict[str, Any] | None:
        found = self.checkpoints.latest(self.state)
        if found is None:
            return None
        self.state, log = found
        return log

    def save(self) -> None:
        """Writes a checkpoint."""
        self.checkpoints.save(self.done, self.state, self.log)

    def save_to(self, folder: Path) -> None:
        """Writes a checkpoint to another folder."""
        with closing(Checkpoints(folder)) as checkpoints:
            checkpoints.save(self.done, self.state, self.log)

    @property
    def train_loss(self) -> float:
        """Mean loss of those that reported in the last tenth of the rounds; NaN where nobody did."""
        last = -max(self.done // 10, 1)
        loss, count = (np.asarray(self.log["rounds"][name][last:]) for name in ("loss", "reported"))
        return float(np.average(loss, weights=count)) if count.any() else math.nan

    def take(self, state: Any, info: rounds_of.RoundInfo, count: int) -> None:
        """Takes over the state after `count` more rounds and what they tell, and sees whether it is sound."""
        self.state = state
        sick = np.flatnonzero(~info.healthy[:count].all(axis=1))
        if len(sick):
            experts = zip(self.common.problem.method.mixing.experts, info.healthy[sick[0], 1:], strict=True)
            names = [name for name, healthy in experts if not healthy]
            self.failed = UserError(_diverged(self.done + int(sick[0]) + 1, names, self.checkpoints))
            return
        for name in PER_ROUND:
            self.log["rounds"][name] += getattr(info, name)[:count].tolist()
        if self.done == regrouping.due(self.common.problem.method, self.done - 1):
            self.regroup()
        if self.done % self.common.problem.evaluate.every == 0 or self.done == self.common.rounds:
            self.look()

    def regroup(self) -> None:
        """Groups units by their updates, at the levels whose turn it is."""
        begun = time.perf_counter()
        self.state, facts = regrouping.regroup(self.common.problem.method, self.state, self.done)
        self.spend("clustering_s", time.perf_counter() - begun)
        self.note(facts)
        names = [one["level"] for one in facts]
        self.note([one for one in census.take(self.common.sim, self.state.levels) if one["level"] in names])

    def note(self, facts: Sequence[dict[str, Any]]) -> None:
        """Adds to what the log knows of levels after this round."""
        entries = {one["level"]: one for one in self.log["groups"] if one["round"] == self.done}
        for fact in facts:
            if fact["level"] not in entries:
                entries[fact["level"]] = {"round": self.done}
                self.log["groups"].append(entries[fact["level"]])
            entries[fact["level"]].update(fact)

    def forecaster_state(self) -> tuple[Any, Any]:
        """The state with newcomers in groups, and the weights of what is mixed."""
        placed = self.common.place(self.state)
        return placed, self.common.mixing(placed)

    def look(self) -> None:
        """Measures the error on a few windows of each test session."""
        common = self.common
        with self.measuring():
            placed, mixing = self.forecaster_state()
            self.note(census.take(common.sim, placed.levels))
            found = evaluate(common.errors, (placed, mixing), common.sim, common.quick)
        self.log["looks"].append([self.done, [float(x) for x in found.error_deg.mean(axis=0)]])

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Times what is done within as evaluation; what is compiled for it, apart."""
        begun, compiled_s = time.perf_counter(), compiling.spent_s()
        yield
        compiled_s = compiling.spent_s() - compiled_s
        self.spend("evaluate_compile_s", compiled_s)
        self.spend("evaluate_s", time.perf_counter() - begun - compiled_s)

    def spend(self, kind: str, seconds: float) -> None:
        """Adds to one of the timings."""
        timings = self.log["timings"]
        timings[kind] = timings.get(kind, 0.0) + seconds

    def news(self) -> dict[str, Any]:
        """What a progress bar shows."""
        looks, loss = self.log["looks"], self.log["rounds"]["loss"]
        return {"loss": loss[-1] if loss else None, "error_deg": looks[-1][1] if looks else None}

    def traffic(self, rounds: int) -> dict[str, int]:
        """Bytes of models sent in the first `rounds` rounds: leaves that stay on the headset cost nothing."""
        once = apart = 0
        for sim in (self.common.sim, *self.common.sim.experts):
            params = jax.eval_shape(sim.task.predictor.init, jax.random.key(0))
            for leaf in params.keys() - set(sim.layout.private):
                size = params[leaf].size * params[leaf].dtype.itemsize
                once, apart = (once, apart + size) if leaf in sim.layout.varying else (once + size, apart)
        log = {name: sum(self.log["rounds"][name][:rounds]) for name in SUMMED}
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

        common = self.common
        with self.measuring():
            forecaster_state = self.forecaster_state()
            learned = census.take(common.sim, forecaster_state[0].levels)
            found = evaluate(common.errors, forecaster_state, common.sim, common.arrays.test, tick)
            baselines = common.baselines
            shown = examples(own(common.sim), forecaster_state, common.sim)
        timings = dict(self.log["timings"])
        timings["clustering_s"] += self.done * common.choice_s
        counters = self.counters(learned)
        groups = census.history(common.sim, self.log["groups"], self.log["rounds"]["moved"])
        return Outcome(
            *(self.state, self.history(), found, baselines, timings, counters, shown, groups, common.cost),
            train_loss=self.train_loss,
        )

    def counters(self, learned: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Sizes and counts of the whole run.

        Args:
            learned: Of the levels whose groups are learned (`census.take`).
        """
        problem, layout = self.common.problem, self.common.sim.layout
        params = jax.eval_shape(problem.predictor.init, jax.random.key(0))
        names = [level.name for level in layout.levels]
        return {
            "num_params": sum(int(p.size) for p in params.values()),
            "num_clients": problem.federation.num_clients,
            "num_groups": dict(zip(names, layout.num_groups, strict=True))
            | {one["level"]: one["groups"] for one in learned},
            **{
                score: {one["level"]: one[score] for one in learned if one[score] is not None}
                for score in ("ari", "nmi")
            },
            "state_bytes": sum(x.nbytes for x in jax.tree.leaves(self.state)),
            "nonfinite_clients": sum(self.log["rounds"]["nonfinite"]),
            **self.traffic(self.common.rounds),
        }


def advance(common: Common, courses: Sequence[Course]) -> None:
    """Runs points that have done equally many rounds to the next stop; their time is split evenly."""
    done = courses[0].done
    count = common.stop(done) - done
    ahead_s, begun = common.chunk.take_compile_s(), time.perf_counter()
    states, infos = common.chunk([one.state for one in courses], [one.numbers for one in courses], count)
    compile_s = common.chunk.take_compile_s()
    wall_s = time.perf_counter() - begun - compile_s
    for course, state, info in zip(courses, states, infos, strict=True):
        course.spend("wall_s", wall_s / len(courses))
        course.spend("compile_s", (ahead_s + compile_s) / len(courses))
        course.take(state, info, count)


def _diverged(round_index: int, experts: Sequence[str], checkpoints: Checkpoints) -> str:
    whose = f" of {' and '.join(experts)} in mixing.experts" if experts else ""
    good = checkpoints.last_round()
    kept = f"the last good checkpoint is of round {good}" if good else "there is no earlier checkpoint"
    return (
        f"the run diverged in round {round_index} (values{whose} are not finite); {kept}; "
        "lower local.lr or a level's server.lr, or set local.clip"
    )
