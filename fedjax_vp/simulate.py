"""The chunk loop: compiled rounds on the device; logging, checkpoints and looks at the error between them.

Points, that is seeds with their traced numbers, run in batches of one compiled function (`batching`); a
single run is a batch of one. Each point keeps its own log and checkpoints, and can be resumed by itself.
"""

from __future__ import annotations

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
    width = common.chunk.width
    with _graceful() as stop:
        for begin in range(0, len(points), width):
            with ExitStack() as closing:
                courses: dict[int, Course] = {}
                for index, point in enumerate(points[begin : begin + width], begin):
                    courses[index] = Course(common, point)
                    closing.callback(courses[index].checkpoints.close)
                _run_batch(common, courses, resume, reporter, stop)
                for index, course in courses.items():
                    tell = _about(index, course, reporter, stop)
                    finish(index, course.failed or course.outcome(tell))
            if processes.any_of(stop.is_set()):
                raise Interrupted(common.rounds, points[begin].run_dir)


def _run_batch(
    common: Common,
    courses: dict[int, Course],
    resume: bool,
    reporter: Callable[[int, dict[str, Any]], None],
    stop: threading.Event,
) -> None:
    """Runs a batch to its last round. Points that a kill left behind run first, until all are abreast."""
    for course in courses.values() if resume else ():
        try:
            course.resume()
        except UserError as error:
            course.failed = error
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
