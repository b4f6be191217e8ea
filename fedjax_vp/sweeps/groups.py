"""Points in groups that share data, shapes and a compiled function; a group at a time is run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_vp import experiment, fitting, results, simulate
from fedjax_vp.batching import static_part
from fedjax_vp.config import Config
from fedjax_vp.errors import UserError
from fedjax_vp.problem import Common, Outcome, Point
from fedjax_vp.progress import Tally
from fedjax_vp.settings_text import plain

_STATIC = ("rounds", "dataset", "protocol", "model", "engine", "evaluate")


class Case(NamedTuple):
    """A run to be made, continued, or found finished."""

    config: Config
    folder: Path


def group(cases: Sequence[Case]) -> list[list[Case]]:
    """Cases that differ only in seed and traced numbers, together.

    The seed changes neither traces nor split: a data set has a seed of its own.
    """
    groups: dict[str, list[Case]] = {}
    for case in cases:
        static = {key: plain(getattr(case.config, key)) for key in _STATIC}
        static["method"] = plain(static_part(case.config.method))
        groups.setdefault(json.dumps(static, sort_keys=True), []).append(case)
    return list(groups.values())


def run(cases: Sequence[Case], tally: Tally) -> dict[Path, str]:
    """Runs all cases, finished ones excepted; one that fails stops no other.

    Args:
        cases: Runs, each with a folder of its own.
        tally: Told of what is done.

    Returns:
        Why runs failed, by folder.

    Raises:
        fedjax_vp.simulate.Interrupted: Ctrl-C; running the same cases again continues.
    """
    failed: dict[Path, str] = {}
    for together in group(cases):

        def fail(case: Case, error: UserError) -> None:
            failed[case.folder] = str(error)
            tally.end(case.folder, str(error))

        try:
            _run_group(together, tally, fail)
        except UserError as error:  # of the data, the model or the method: nothing more of the group can run
            for case in together:
                if case.folder not in failed and not results.is_finished(case.folder):
                    fail(case, error)
    return failed


def _run_group(cases: Sequence[Case], tally: Tally, fail: Callable[[Case, UserError], None]) -> None:
    todo = [case for case in cases if _open(case, fail)]
    for case in todo:
        if results.is_finished(case.folder):
            tally.end(case.folder, before=True)
    todo = [case for case in todo if not results.is_finished(case.folder)]
    if not todo:
        return
    first = cases[0].config
    traces, split = fitting.load_traces(first)
    evaluate = fitting.horizons(first, traces.rate_hz)
    for note in filter(None, (fitting.needless(first, split), fitting.unmixed(first, split))):
        tally.note(f"{first.name} {note}")
    problem = fitting.problem(first, traces, split, evaluate)
    for case in todo:
        experiment.describe(case.folder, case.config, {}, traces)
    # The number of points decides how they are laid out; those that are finished count, so that a sweep that
    # was killed goes on as it began.
    common = Common(problem, first.rounds, len(cases))

    def finish(index: int, outcome: Outcome | UserError) -> None:
        case = todo[index]
        if isinstance(outcome, UserError):
            return fail(case, outcome)
        experiment.record(case.config, traces, evaluate, {case.config.algorithm: outcome}, case.folder)
        return tally.end(case.folder)

    def report(index: int, facts: dict[str, Any]) -> None:
        tally.report(todo[index].folder, facts)

    points = [Point(case.config.seed, case.config.method, case.folder) for case in todo]
    simulate.simulate_many(common, points, finish, resume=True, reporter=report)


def _open(case: Case, fail: Callable[[Case, UserError], None]) -> bool:
    """Makes a case's folder; whether it could."""
    try:
        results.open_folder(case.folder, case.config, resume=True)
    except UserError as error:
        fail(case, error)
        return False
    return True
