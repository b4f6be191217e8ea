"""The chunk loop: chunks, stops and resumed runs give every bit of the uninterrupted run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import probe
import pytest
import toy

from fedjax_vp.course import Course
from fedjax_vp.errors import UserError
from fedjax_vp.federated.federation import build
from fedjax_vp.federated.server import Adaptive, Schedule
from fedjax_vp.federated.settings import Engine, Evaluate, Level, Method, Mixing, Uniform
from fedjax_vp.problem import Common, Outcome, Point, Problem
from fedjax_vp.simulate import Interrupted, simulate

ROUNDS = 7
TRACES = toy.traces()
SPLIT = toy.split(TRACES)
VALID = SPLIT.train & (np.arange(SPLIT.train.shape[1])[None, :] % 5 == 0)
SPLIT = SPLIT._replace(train=SPLIT.train & ~VALID, valid=VALID)
METHOD = Method(
    levels=(
        Level("global", server=Adaptive(lr=0.05)),
        Level("video", by="video", owns=("head/*",), shrinkage="auto"),
    ),
    participation=Uniform(clients=5),
    local=probe.local(
        batch=4, steps=2, optimizer="adam", keep_state=True, lr=0.05, schedule=Schedule("cosine")
    ),
    mixing=Mixing("mixture"),
)


def problem(method: Method = METHOD, chunk: int = ROUNDS, devices: int = 1, every: int = 4) -> Problem:
    return Problem(
        federation=build(TRACES, SPLIT, toy.SHAPE, method.client),
        predictor=probe.predictor(),
        method=method,
        engine=Engine(devices=devices, chunk=chunk),
        evaluate=Evaluate(horizons_s=(0.2, 0.6), tile_horizons_s=(0.4,), every=every, history_windows=2),
        traces=TRACES,
        split=SPLIT,
    )


def same(a: Outcome, b: Outcome) -> None:
    """Every bit but times."""
    for x, y in zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True):
        np.testing.assert_array_equal(x, y)
    assert a.history == b.history
    assert a.counters == b.counters
    for x, y in zip(
        jax.tree.leaves((a.evaluation, a.baselines, a.examples)),
        jax.tree.leaves((b.evaluation, b.baselines, b.examples)),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def whole() -> Outcome:
    """One chunk, nothing kept."""
    return simulate(problem(), ROUNDS, seed=3)


def test_what_a_run_reports(whole: Outcome) -> None:
    assert [entry["round"] for entry in whole.history] == [4, 7]
    assert int(whole.state.round) == ROUNDS
    counters = whole.counters
    assert counters["num_params"] == 12
    assert counters["num_clients"] == 12
    assert counters["num_groups"] == {"global": 1, "video": 3}
    # Five clients a round send all twelve numbers, 4 bytes each, up and down.
    assert counters["bytes_up"] == counters["bytes_down"] == ROUNDS * 5 * 12 * 4
    assert whole.history[0]["bytes_up"] == 4 * 5 * 12 * 4
    assert counters["nonfinite_clients"] == 0
    assert set(whole.baselines) == {"no_motion", "velocity"}
    for found in whole.baselines.values():
        np.testing.assert_array_equal(found.session, whole.evaluation.session)
        np.testing.assert_array_equal(found.now_s, whole.evaluation.now_s)
    assert len(whole.evaluation.session) == SPLIT.test.sum()
    assert all(value >= 0 for value in whole.timings.values())
    losses = [entry["loss"] for entry in whole.history]
    assert losses[1] < losses[0]


def test_a_run_in_chunks_that_is_stopped_and_resumed_is_the_whole_run(whole: Outcome, tmp_path: Path) -> None:
    """Chunks of 2 until Ctrl-C after round 4, then chunks of 3: no bit differs."""
    told: list[int] = []

    def interrupt(facts: dict[str, Any]) -> None:
        told.append(facts["round"])
        if facts["round"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as stopped:
        simulate(problem(chunk=2), ROUNDS, 3, tmp_path, reporter=interrupt)
    assert (stopped.value.round, stopped.value.path, told) == (4, tmp_path, [2, 4])
    assert signal.getsignal(signal.SIGINT) is before  # Ctrl-C is Ctrl-C again
    again: list[int] = []

    def listen(facts: dict[str, Any]) -> None:
        if "loss" in facts:  # at a chunk's end, not while the test windows are measured
            again.append(facts["round"])

    resumed = simulate(
        problem(chunk=3),
        ROUNDS,
        3,
        tmp_path,
        resume=True,
        reporter=listen,
    )
    assert again == [6, 7]
    same(resumed, whole)
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert steps == [6, 7]


def test_two_devices_give_the_same_result(whole: Outcome) -> None:
    other = simulate(problem(chunk=3, devices=2), ROUNDS, seed=3)
    for x, y in zip(jax.tree.leaves(other.state), jax.tree.leaves(whole.state), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-4, rtol=2e-4)
    np.testing.assert_allclose(other.evaluation.error_deg, whole.evaluation.error_deg, atol=0.05)
    assert other.counters == whole.counters
    assert other.train_loss == pytest.approx(whole.train_loss, rel=1e-4)


BROKEN = Method(local=probe.local(steps=4, lr=50.0))


def test_a_diverging_run_names_the_round_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"diverged in round (\d+)") as caught:
        simulate(problem(BROKEN, chunk=1, every=100), 20, 0, tmp_path)
    broke = int(str(caught.value).split("round ")[1].split()[0])
    assert broke > 1
    assert f"the last good checkpoint is of round {broke - 1}" in str(caught.value)
    steps = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert max(steps) == broke - 1


def test_a_run_that_diverges_in_its_first_chunk_has_no_checkpoint_to_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no earlier checkpoint"):
        simulate(problem(BROKEN, chunk=20, every=100), 20, 0, tmp_path)


def test_a_resumed_run_of_another_method_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(facts: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    small = Method(levels=(Level("global"),), local=probe.local())
    with pytest.raises(Interrupted):
        simulate(problem(small, chunk=1, every=100), 3, 0, tmp_path, reporter=stop)
    more = replace(small, levels=(Level("global"), Level("user", by="user")))
    with pytest.raises(UserError, match="is of another model, method or version"):
        simulate(problem(more, chunk=1, every=100), 3, 0, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("method", "up", "down"),
    [
        # One head a user stays on the headset where a client is a user; three sessions share one download.
        (
            Method(
                levels=(Level("global", owns=("body",)), Level("user", by="user", owns=("head/*",))),
                client="user",
            ),
            4 * 3 * 4,
            4 * 3 * 4,
        ),
        # A head for each video: a user of three videos sends three of them, and the body once.
        (
            Method(
                levels=(Level("global", owns=("body",)), Level("video", by="video", owns=("head/*",))),
                client="user",
            ),
            (4 * 3 + 12 * 9) * 4,
            (4 * 3 + 12 * 9) * 4,
        ),
    ],
    ids=["private heads", "heads of videos"],
)
def test_bytes_of_a_round_of_all_clients(method: Method, up: int, down: int) -> None:
    run = Course(Common(problem(method), 1), Point(0, method))
    log: dict[str, Callable | list] = run.log["rounds"]
    log |= {
        "loss": [0.0],
        "invited": [4],
        "reported": [4],
        "nonfinite": [0],
        "sessions_down": [12],
        "sessions_up": [12],
    }
    assert run.traffic(1) == {"bytes_up": up, "bytes_down": down}


def test_a_seed_beyond_31_bits() -> None:
    """Configs allow seeds up to 2^32 - 1."""
    common = Common(problem(), 1)
    run, other = (Course(common, Point(seed, METHOD)) for seed in (2**32 - 1, 2**31))
    assert (run.state.levels[0].rows["body"] != other.state.levels[0].rows["body"]).all()


def test_baselines_are_measured_once_for_all_methods_on_the_same_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known: dict[str, Any] = {}
    first = Common(problem()._replace(baselines=known), ROUNDS).baselines
    assert set(first) == {"no_motion", "velocity"}
    monkeypatch.setattr("fedjax_vp.course.evaluate", None)
    assert Common(problem()._replace(baselines=known), ROUNDS).baselines is first


def test_ctrl_c_while_windows_are_measured_loses_nothing(whole: Outcome, tmp_path: Path) -> None:
    def interrupt(facts: dict[str, Any]) -> None:
        if "stage" in facts:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as stopped:
        simulate(problem(), ROUNDS, 3, tmp_path, reporter=interrupt)
    assert (stopped.value.round, stopped.value.path) == (ROUNDS, tmp_path)
    told: list[dict[str, Any]] = []
    same(simulate(problem(), ROUNDS, 3, tmp_path, resume=True, reporter=told.append), whole)
    assert all("stage" in facts for facts in told)  # no round was run again


def test_of_several_starts_the_one_of_least_training_loss_is_kept(whole: Outcome, tmp_path: Path) -> None:
    """Each is what a run of its seed alone is; the kept one's checkpoint lies where a run's does."""
    told: list[int] = []
    several = problem(replace(METHOD, starts=3))
    found = simulate(several, ROUNDS, 3, tmp_path, reporter=lambda facts: told.append(facts["round"]))
    seeds = [(3 + start * 0x9E3779B9) % 2**32 for start in range(3)]
    alone = [whole, *(simulate(problem(), ROUNDS, seed) for seed in seeds[1:])]
    losses = [one.train_loss for one in alone]
    assert len(set(losses)) == 3
    assert found.counters["starts"] == losses
    best = alone[found.counters["start"]]
    assert best.train_loss == found.train_loss == min(losses)
    same(best, found._replace(counters=best.counters))
    assert found.counters["bytes_up"] == sum(one.counters["bytes_up"] for one in alone)
    assert told == sorted(told)
    assert told[-1] == ROUNDS
    course = Course(Common(problem(), ROUNDS), Point(3, METHOD, tmp_path))
    course.resume()
    np.testing.assert_array_equal(course.state.seed, best.state.seed)


def test_a_start_that_diverges_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best start fails: another stands for the run. Where all fail, the first says why."""
    several = problem(replace(METHOD, starts=2))
    take, best = Course.take, int(np.uint32(simulate(several, ROUNDS, 3).state.seed))

    def failing(bad: Callable[[int], bool]) -> Callable[..., None]:
        def wrapped(course: Course, *args: Any) -> None:
            take(course, *args)
            if bad(course.point.seed):
                course.failed = UserError(f"seed {course.point.seed}")

        return wrapped

    monkeypatch.setattr(Course, "take", failing(lambda seed: seed == best))
    found = simulate(several, ROUNDS, 3)
    assert found.counters["starts"].count(None) == 1
    assert int(np.uint32(found.state.seed)) != best
    monkeypatch.setattr(Course, "take", failing(lambda seed: True))
    with pytest.raises(UserError, match=r"^seed 3$"):
        simulate(several, ROUNDS, 3)


def test_starts_that_were_stopped_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the second start; the first one is not trained again."""
    several = problem(replace(METHOD, starts=2), chunk=3)
    wanted = simulate(several, ROUNDS, 3)

    def stop(facts: dict[str, Any]) -> None:
        if facts["round"] == (ROUNDS + 3) // 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as interrupted:
        simulate(several, ROUNDS, 3, tmp_path, reporter=stop)
    assert interrupted.value.path == tmp_path
    trained: list[int] = []
    take = Course.take

    def note(course: Course, *args: Any) -> None:
        trained.append(course.point.seed)
        take(course, *args)

    monkeypatch.setattr(Course, "take", note)
    told: list[int] = []
    found = simulate(
        several, ROUNDS, 3, tmp_path, resume=True, reporter=lambda facts: told.append(facts["round"])
    )
    assert 3 not in trained
    assert told[-1] == ROUNDS
    same(wanted, found)


def test_the_training_loss_is_that_of_the_last_tenth_by_who_reported() -> None:
    course = Course(Common(problem(), ROUNDS), Point(3, METHOD))
    course.log["rounds"]["loss"] = [9.0] * 18 + [1.0, 4.0]
    course.log["rounds"]["reported"] = [5] * 19 + [10]
    assert course.train_loss == pytest.approx(3.0)
    course.log["rounds"]["reported"] = [0] * 20
    assert np.isnan(course.train_loss)
