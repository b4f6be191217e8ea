"""The chunk loop: compiled rounds on the device; logging, checkpoints and looks at the error between them.

Points, that is seeds with their traced numbers, run in batches of one compiled function (`batching`); a
single run is a batch of one. Each point keeps its own log and checkpoints, and can be resumed by itself.
Where a method asks for several `starts`, each of them is run as a point, and the one with the least training
loss, which is all that a server hears, stands for the point.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fedjax_vp import processes
from fedjax_vp.course import Course, advance
from fedjax_vp.errors import UserError
from fedjax_vp.federated.precision import products
from fedjax_vp.problem import Common, Outcome, Point, Problem

_NEXT_SEED = 0x9E3779B9  # between the seeds of a run's starts: far from those that people give


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
    found: list[Outcome | UserError] = []
    simulate_many(
        Common(problem, rounds),
        [Point(seed, problem.method, run_dir)],
        lambda index, outcome: found.append(outcome),
        resume,
        lambda index, facts: reporter(facts),
    )
    if isinstance(found[0], UserError):
        raise found[0]
    return found[0]


@products("float32")
def simulate_many(
    common: Common,
    points: Sequence[Point],
    finish: Callable[[int, Outcome | UserError], None],
    resume: bool = False,
    reporter: Callable[[int, dict[str, Any]], None] = lambda index, facts: None,
) -> None:
    """Runs points through one compiled function, as many side by side as `common` provides for.

    Args:
        common: what they share; made for at least so many points.
        points: seeds, traced numbers and folders.
        finish: told of each point, by its index, as it ends: its outcome, or why it failed. A failing point
            stops no other.
        resume: continue each point from the newest checkpoint in its folder.
        reporter: told at every chunk end of each point's `round`, and of `loss` and `error_deg` where known.

    Raises:
        Interrupted: Ctrl-C; the points under way are saved.
    """
    width, starts = common.chunk.width, common.problem.method.starts
    runs = [_started(point, start, starts) for point in points for start in range(starts)]
    done, ended = dict.fromkeys(range(len(runs)), 0), dict[int, list[Course]]()
    tell = _summed(reporter, starts, done)
    with _graceful() as stop:
        for begin in range(0, len(runs), width):
            with ExitStack() as closing:
                courses: dict[int, Course] = {}
                for run, point in enumerate(runs[begin : begin + width], begin):
                    courses[run] = Course(common, point)
                    closing.callback(courses[run].checkpoints.close)
                _resume(courses if resume else {})
                done.update({run: course.done for run, course in courses.items()})
                try:
                    _run_batch(common, courses, tell, stop)
                except Interrupted as interrupted:
                    raise Interrupted(interrupted.round, points[begin // starts].run_dir) from None
                for run, course in courses.items():
                    index, done[run] = run // starts, common.rounds
                    ended.setdefault(index, []).append(course)
                    if len(ended[index]) == starts:
                        about = _about(index, course, reporter, stop)
                        finish(index, _kept(ended.pop(index), points[index], about))
            if processes.any_of(stop.is_set()):
                raise Interrupted(common.rounds, points[begin // starts].run_dir)


def _started(point: Point, start: int, starts: int) -> Point:
    """One of the starts of a point, with a seed and, where there are several, a folder of its own."""
    if starts == 1:
        return point
    folder = point.run_dir and point.run_dir / "starts" / str(start)
    return point._replace(seed=(point.seed + start * _NEXT_SEED) % 2**32, run_dir=folder)


def _summed(
    reporter: Callable[[int, dict[str, Any]], None], starts: int, done: dict[int, int]
) -> Callable[[int, dict[str, Any]], None]:
    """Tells of a point how far its starts have come, all together; `done` are the rounds of each."""

    def tell(run: int, facts: dict[str, Any]) -> None:
        index, done[run] = run // starts, facts["round"]
        mine = range(index * starts, (index + 1) * starts)
        reporter(index, {**facts, "round": sum(done[one] for one in mine) // starts})

    return tell


def _kept(
    courses: Sequence[Course], point: Point, tell: Callable[[dict[str, Any]], None]
) -> Outcome | UserError:
    """What comes of the start that ended with the least training loss, or why all of them failed."""
    sound = [course for course in courses if not course.failed]
    if not sound:
        assert courses[0].failed is not None
        return courses[0].failed
    best = min(sound, key=lambda course: (math.isnan(course.train_loss), course.train_loss))
    outcome = best.outcome(tell)
    if len(courses) == 1:
        return outcome
    if point.run_dir is not None:
        best.save_to(point.run_dir / "checkpoints")
    losses = [
        None if course.failed or math.isnan(course.train_loss) else course.train_loss for course in courses
    ]
    others = [course for course in courses if course is not best]
    timings = {key: x + sum(one.log["timings"][key] for one in others) for key, x in outcome.timings.items()}
    timings["clustering_s"] += best.common.choice_s * sum(course.done for course in others)
    sent = [course.traffic(course.done) for course in courses]
    totals = {key: sum(one[key] for one in sent) for key in sent[0]}
    counters = {**outcome.counters, **totals, "starts": losses, "start": courses.index(best)}
    return outcome._replace(timings=timings, counters=counters)


def _resume(courses: dict[int, Course]) -> None:
    """Goes on from checkpoints."""
    for course in courses.values():
        try:
            course.resume()
        except UserError as error:
            course.failed = error


def _run_batch(
    common: Common,
    courses: dict[int, Course],
    reporter: Callable[[int, dict[str, Any]], None],
    stop: threading.Event,
) -> None:
    """Runs a batch to its last round. Points that a kill left behind run first, until all are abreast."""
    chunk = common.problem.engine.chunk
    while active := {i: c for i, c in courses.items() if not c.failed and c.done < common.rounds}:
        least = min(course.done for course in active.values())
        behind = {index: course for index, course in active.items() if course.done == least}
        advance(common, list(behind.values()))
        sound = {index: course for index, course in behind.items() if not course.failed}
        for index, course in sound.items():
            reporter(index, {"round": course.done, **course.news()})
        stopping = processes.any_of(stop.is_set())
        for course in sound.values():
            if course.done % chunk == 0 or course.done == common.rounds or stopping:
                course.save()
        if stopping:
            last = next(iter(behind.values()))
            raise Interrupted(last.done, last.point.run_dir)


def _about(
    index: int, course: Course, reporter: Callable[[int, dict[str, Any]], None], stop: threading.Event
) -> Callable[[dict[str, Any]], None]:
    """Tells of a course that is measured; its rounds are saved, so that it may stop at any time."""

    def tell(facts: dict[str, Any]) -> None:
        reporter(index, facts)
        if processes.any_of(stop.is_set()):
            raise Interrupted(course.done, course.point.run_dir)

    return tell


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
