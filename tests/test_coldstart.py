"""New videos and users: where each start stands before its first round, what moves, and who is looked at."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import probe
import pytest
import toy
from click.testing import CliRunner

from fedjax_vp.cli import cli
from fedjax_vp.coldstart import running, table
from fedjax_vp.coldstart.users import NewUsers
from fedjax_vp.coldstart.videos import NewVideos, first
from fedjax_vp.config import load_config
from fedjax_vp.data.protocols import UnseenBoth
from fedjax_vp.data.splits import arrivals, split
from fedjax_vp.errors import UserError
from fedjax_vp.federated import arrival, mixing
from fedjax_vp.federated import round as rounds
from fedjax_vp.federated.federation import build, gather
from fedjax_vp.federated.grouping.settings import IFCA, PACFL, KMeans
from fedjax_vp.federated.round import State
from fedjax_vp.federated.settings import Evaluate, Everyone, Level, Method
from fedjax_vp.federated.simulator import simulator
from fedjax_vp.geometry import great_circle
from fedjax_vp.models.base import Predictor
from fedjax_vp.models.features import VIDEO_CROWD
from fedjax_vp.problem import Problem

TRACES = toy.traces(users=6, videos=5, ragged=False)  # users 1, 3, 5 test, video 4 is new
PROTOCOL = UnseenBoth(history_s=0.8, horizon_s=0.6, start_s=0.8, valid_share=0.0)
SETTINGS = arrival.ColdStart(rounds=(0, 2), viewers=(0, 1), viewer_rounds=1, seconds=(0.0, 1.0, 1.6))
HORIZONS_S = (0.2, 0.6)
NEW = 4
LEVELS = (
    Level("global"),
    Level("category", owns=("head/*",), grouping=KMeans(groups=2, of="video", warmup=1, sketch=4)),
    Level("video", by="video", owns=("video_table",)),
    Level("viewers", by="video", owns=("head/*",), grouping=IFCA(groups=2, of="session", windows=0)),
)
METHOD = Method(levels=LEVELS, participation=Everyone(), local=probe.local(lr=0.2))


@cache
def base() -> tuple[Problem, State]:
    """The base method as if trained: rows by hand, one category and one group of viewers used by some."""
    phases = split(TRACES, PROTOCOL)
    problem = Problem(
        build(TRACES, phases, toy.SHAPE),
        probe.predictor(table=True),
        METHOD,
        probe.ONE,
        Evaluate(horizons_s=HORIZONS_S, tile_horizons_s=(0.2,)),
        TRACES,
        phases,
    )
    sim = simulator(problem.federation, problem.predictor, METHOD, probe.ONE)
    state = rounds.init(sim, jnp.int32(0))
    random = np.random.default_rng(0)
    states = []
    for index, level in enumerate(state.levels):
        rows = {n: jnp.asarray(random.normal(0, 0.2, x.shape), jnp.float32) for n, x in level.rows.items()}
        if index == 2:  # nobody has trained a new video's row
            rows = {n: x.at[NEW].set(0.0) for n, x in rows.items()}
        if level.learned is not None:
            known = level.learned
            old = np.isin(np.arange(known.seen.shape[0]), _units(known, phases.train.any(axis=1)))
            group = np.arange(len(old)) % 2 * old
            known = known._replace(
                seen=jnp.asarray(old, jnp.float32), share=jax.nn.one_hot(jnp.asarray(group), 2)
            )
            level = level._replace(learned=known)
        states.append(level._replace(rows=rows))
    return problem, State(jnp.int32(9), state.seed, tuple(states), None)


def _units(known: Any, sessions: np.ndarray) -> np.ndarray:
    return np.unique(np.asarray(known.unit)[sessions])


@cache
def videos() -> NewVideos:
    return NewVideos(base()[0], arrivals(TRACES, PROTOCOL).videos, SETTINGS, "tree")


def weights(levels: int = 4) -> mixing.Weights:
    return mixing.same_for_all(mixing.last_level(levels, toy.SHAPE.horizon), TRACES.num_traces)


def after(start: str, budgets: tuple[int, ...], viewers: int | None = None) -> list[np.ndarray]:
    """Mean error after each number of rounds."""
    found = videos().course(start, base()[1], weights(), videos().viewers(viewers, seed=0), budgets)
    return [one.error_deg.mean(axis=0) for _, one in found]


def error_of(model: dict[str, Any]) -> np.ndarray:
    """Mean error of one model on the test windows, in degrees."""
    session, now = np.nonzero(split(TRACES, PROTOCOL).test)
    inputs, target = gather(base()[0].federation.arrays, toy.SHAPE, jnp.asarray(session), jnp.asarray(now))
    angle = great_circle(base()[0].predictor.apply(model, inputs), target)
    return np.rad2deg(angle[:, [round(h * toy.SHAPE.rate_hz) - 1 for h in HORIZONS_S]]).mean(axis=0)


def the_global() -> dict[str, jax.Array]:
    rows = base()[1].levels[0].rows
    return {n: x[0] for n, x in rows.items()}


def test_new_videos_and_users_arrive_after_training() -> None:
    phases, found = split(TRACES, PROTOCOL), arrivals(TRACES, PROTOCOL)
    video, user = TRACES.video, TRACES.user
    new, tests = video == NEW, user % 2 == 1
    for name in ("train", "valid"):
        assert not getattr(phases, name)[new | tests].any()
    assert found.videos.train[new & ~tests].any(axis=1).all()
    assert not found.videos.train[~new | tests].any()
    np.testing.assert_array_equal(found.videos.test, phases.test)
    np.testing.assert_array_equal(found.users.train, phases.train)
    assert found.users.test[~new & tests].any(axis=1).all()
    assert not found.users.test[new | ~tests].any()


def test_more_viewers_include_fewer() -> None:
    trains = arrivals(TRACES, PROTOCOL).videos.train.any(axis=1)
    some = [first(TRACES, trains, most, seed=3) for most in (0, 1, 2, 9)]
    assert [int(one.sum()) for one in some] == [0, 1, 2, 3]
    for fewer, more in pairwise(some):
        assert not (fewer & ~more).any()
    others = {tuple(np.flatnonzero(first(TRACES, trains, 1, seed))) for seed in range(9)}
    assert len(others) == 3  # another seed, other viewers


def test_starts_are_prefixes_that_a_video_shares_and_the_whole() -> None:
    assert videos().starts == ["scratch", "global", "category", "tree"]


def test_before_the_first_round_a_start_is_the_model_it_is_named_after() -> None:
    fresh = rounds.init(videos().single.sim, jnp.int32(0)).levels[0].rows
    np.testing.assert_allclose(
        after("scratch", (0,))[0], error_of({n: x[NEW] for n, x in fresh.items()}), rtol=1e-5
    )
    alone = error_of(the_global())
    for start in ("global", "category", "tree"):  # nobody was asked for the category yet
        np.testing.assert_allclose(after(start, (0,))[0], alone, rtol=1e-5)


def test_viewers_choose_the_category_that_predicts_them_best() -> None:
    problem, state = base()
    arrays = videos().viewers(None, 0)
    carried = arrival.carried(videos().whole.sim, state)
    level = videos()._begin("category", carried, arrays).levels[0]
    session, now = np.nonzero(arrivals(TRACES, PROTOCOL).videos.train)
    inputs, target = gather(problem.federation.arrays, toy.SHAPE, jnp.asarray(session), jnp.asarray(now))
    heads = [the_global()["head/bias"] + row for row in state.levels[1].rows["head/bias"]]
    losses = []
    for head in heads:
        predicted = problem.predictor.apply(the_global() | {"head/bias": head}, inputs)
        losses.append(float(jnp.sum((predicted - target) ** 2)))
    np.testing.assert_allclose(level.rows["head/bias"][NEW], heads[int(np.argmin(losses))], rtol=1e-5)


def test_what_a_video_shares_stands_still_while_its_own_rows_move() -> None:
    stage, state = videos().whole, base()[1]
    before = arrival.carried(stage.sim, state)
    moved = stage.advance(before, videos().viewers(None, 0), 2)
    for old, new in zip(before.levels[:2], moved.levels[:2], strict=True):
        jax.tree.map(np.testing.assert_array_equal, new.rows, old.rows)
    table_rows = [np.asarray(one.levels[2].rows["video_table"]) for one in (before, moved)]
    np.testing.assert_array_equal(table_rows[0][:NEW], table_rows[1][:NEW])
    assert (table_rows[0][NEW] != table_rows[1][NEW]).any()
    errors = after("tree", (0, 2))
    assert (errors[0] != errors[1]).all()


@pytest.mark.parametrize("start", ["category", "tree"])
def test_only_the_first_viewers_are_looked_at(start: str) -> None:
    """Other traces of everybody else, and of the test users: the same rows."""
    seen = first(TRACES, arrivals(TRACES, PROTOCOL).videos.train.any(axis=1), 1, seed=0)
    one = videos()
    stage = one.whole if start == "tree" else one.single
    arrays = one.viewers(1, seed=0)
    other = arrays.direction.at[~seen].set(arrays.direction[~seen][:, ::-1])
    carried = arrival.carried(one.whole.sim, base()[1])
    found = []
    for view in (arrays, arrays._replace(direction=other)):
        found.append(stage.advance(one._begin(start, carried, view), view, 1))
    jax.tree.map(np.testing.assert_array_equal, found[0].levels[0].rows, found[1].levels[0].rows)
    jax.tree.map(np.testing.assert_array_equal, found[0].levels[-1].rows, found[1].levels[-1].rows)
    everyone = one.viewers(None, seed=0)
    view = stage.advance(one._begin(start, carried, everyone), everyone, 1)
    assert (found[0].levels[-1].rows["head/bias"] != view.levels[-1].rows["head/bias"]).any()


def test_the_crowd_is_counted_of_those_who_train() -> None:
    """A leaf that holds where others looked starts with the viewers there are, whatever the start."""
    plain = probe.predictor()

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return plain.init(key) | {VIDEO_CROWD: jnp.zeros((2 * probe.BINS, 4))}

    crowd = Level("video", by="video", owns=(VIDEO_CROWD,))
    method = replace(METHOD, levels=(Level("global", owns=("*", f"!{VIDEO_CROWD}")), crowd))
    problem = base()[0]._replace(predictor=Predictor(init, plain.apply), method=method)
    sim = simulator(problem.federation, problem.predictor, method, probe.ONE)
    one = NewVideos(problem, arrivals(TRACES, PROTOCOL).videos, SETTINGS, "tree")
    carried = arrival.carried(one.whole.sim, rounds.init(sim, jnp.int32(0)))
    for start in one.starts:
        seen = [
            float(
                one._begin(start, carried, one.viewers(most, 0)).levels[-1].rows[VIDEO_CROWD][NEW, :, 0].sum()
            )
            for most in (0, 1, 2, None)
        ]
        np.testing.assert_allclose(seen, np.array([0, 1, 2, 3]) * seen[1], rtol=1e-5)
        assert seen[1] > 0


def users_of(users: NewUsers, direction: np.ndarray) -> dict[tuple[str, float], np.ndarray]:
    sim = users._sim
    arrays = sim.federation.arrays._replace(direction=jnp.asarray(direction, jnp.float32))
    users._sim = sim._replace(task=sim.task._replace(federation=replace(sim.federation, arrays=arrays)))
    return {(name, known): one.error_deg for name, known, one in users.errors(base()[1], weights())}


def test_a_new_user_is_placed_by_no_more_than_the_seconds_that_are_known() -> None:
    users = NewUsers(base()[0], PROTOCOL, SETTINGS, "tree")
    plain = users_of(users, TRACES.direction)
    assert {one.shape for one in plain.values()} == {next(iter(plain.values())).shape}
    tests = TRACES.user % 2 == 1
    changed = TRACES.direction.copy()
    changed[tests, 6:9] = changed[tests, 6:9][:, ::-1] * [1, -1, -1]  # from 1.2 to 1.6 s
    found = users_of(users, changed)
    for name, seconds in plain:
        same = np.array_equal(plain[name, seconds], found[name, seconds])
        assert same or seconds == 1.6
    lines = {name for name, _ in plain}
    assert lines == {"global", "global + local steps", "tree", "tree + local steps"}
    assert np.array_equal(plain["global", 0.0], plain["global", 1.6])
    assert np.array_equal(plain["tree", 0.0], plain["tree + local steps", 0.0])
    for name in ("tree", "global + local steps"):
        assert not np.array_equal(plain[name, 0.0], plain[name, 1.6])
    assert not np.array_equal(plain["tree + local steps", 1.6], found["tree + local steps", 1.6])


def test_groups_from_data_have_no_place_for_newcomers() -> None:
    level = Level("pacfl", grouping=PACFL(groups=2))
    with pytest.raises(UserError, match=r"pacfl\.grouping is pacfl.*newcomers have none"):
        arrival.continued(replace(METHOD, levels=(LEVELS[0], level)), 1)


def test_rounds_until_the_error_from_scratch() -> None:
    errors = {"scratch": [9.0, 8.0, 5.0], "global": [6.0, 5.0, 4.0], "other": [9.0, 9.0, 9.0]}
    rows = [
        {
            "known": "rounds",
            "seed": 0,
            "start": start,
            "count": count,
            "horizon_s": 1.0,
            "windows": 3,
            "mean": error,
        }
        for start, found in errors.items()
        for count, error in zip((0.0, 3.0, 10.0), found, strict=True)
    ]
    assert table.reach(pl.DataFrame(rows)) == {"scratch": [10.0], "global": [3.0], "other": [None]}


CONFIG = """
algorithm: global_video
rounds: 2
dataset: {kind: planted, users: 6, videos: 5, duration_s: 20}
model: {kind: linear}
participation: {clients: 4}
mixing: {kind: none}
evaluate: {every: 2, horizons_s: [1.0, 5.0]}
coldstart: {rounds: [0, 1], viewers: [0, 1], viewer_rounds: 1, seconds: [0, 2]}
"""


def canned(cell: running.Cell) -> list[dict[str, Any]]:
    starts = ("global",) if cell.known == running.SECONDS else ("scratch", "global", "global_video")
    counts = {running.ROUNDS: (0, 1), running.VIEWERS: (cell.viewers,), running.SECONDS: (0, 2)}[cell.known]
    about = {"known": cell.known, "seed": cell.seed, "windows": 3, "mean": 9.0 + cell.seed, "median": 8.0}
    return [
        {"start": start, "count": float(count or 0), "horizon_s": horizon_s} | about
        for start in starts
        for count in counts
        for horizon_s in (1.0, 5.0)
    ]


def test_the_command_measures_what_is_missing_and_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Stand:
        def __init__(self, *parts: Any) -> None: ...

        def measure(self, cell: running.Cell, folder: Path) -> list[dict[str, Any]]:
            asked.append(cell.name)
            return canned(cell)

    monkeypatch.setattr(running, "Laboratory", Stand)
    monkeypatch.setattr(running.groups, "run", lambda cases, tally: {})
    monkeypatch.setattr(running.estimate, "seconds", lambda *parts: 60.0)
    (tmp_path / "cold.yaml").write_text(CONFIG)
    out = tmp_path / "out"
    words = ["coldstart", str(tmp_path / "cold.yaml"), "--out", str(out), "--seeds", "0,4"]
    first_time = CliRunner().invoke(cli, words)
    assert first_time.exit_code == 0, first_time.output
    assert "about 60 s in all" in first_time.output
    assert asked == [
        f"{name}-seed{n}" for n in (0, 4) for name in ("rounds", "viewers-0", "viewers-1", "seconds")
    ]
    found = pl.read_parquet(out / "coldstart.parquet")
    assert found.height == 2 * (12 + 6 + 6 + 4)
    assert {path.name for path in (out / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("new_videos", "new_users") for kind in ("png", "pdf")
    }
    assert "a new video after so many rounds" in (out / "coldstart.md").read_text()
    assert json.loads((out / "summary.json").read_text())["error_deg"]["rounds"]["scratch"]["1"] == [
        11.0,
        11.0,
    ]
    assert (out / "manifest.json").is_file()

    (out / "figures" / "new_users.png").unlink()
    again = CliRunner().invoke(cli, ["report", str(out)])
    assert again.exit_code == 0, again.output
    assert "a new video after so many rounds" in " ".join(again.output.split())
    assert (out / "figures" / "new_users.png").is_file()

    asked.clear()
    (out / "cells" / "viewers-1-seed4.parquet").unlink()
    assert CliRunner().invoke(cli, words).exit_code == 0
    assert asked == ["viewers-1-seed4"]
    assert pl.read_parquet(out / "coldstart.parquet").equals(found)
    other = CliRunner().invoke(cli, [*words, "--rounds", "3"])
    assert other.exit_code == 2
    assert "was run with rounds = 2, not with rounds = 3" in other.output
    (out / "coldstart.parquet").write_text("nothing")
    broken = CliRunner().invoke(cli, ["report", str(out)])
    assert broken.exit_code == 2
    assert "the cold start cannot be read" in broken.output


@pytest.mark.slow
def test_a_whole_cold_start(tmp_path: Path) -> None:
    """No viewers are no rounds, for every start; after the base run nothing but its checkpoint is read."""
    (tmp_path / "cold.yaml").write_text(CONFIG)
    out = tmp_path / "out"
    done = CliRunner().invoke(cli, ["coldstart", str(tmp_path / "cold.yaml"), "--out", str(out), "--quiet"])
    assert done.exit_code == 0, done.output
    by = dict(pl.read_parquet(out / "coldstart.parquet").group_by("known", "start", "count"))
    for start in ("scratch", "global", "global_video"):
        np.testing.assert_array_equal(by["rounds", start, 0.0]["mean"], by["viewers", start, 0.0]["mean"])
    base_run = json.loads((out / "base" / "seed0" / "summary.json").read_text())
    np.testing.assert_allclose(
        by["rounds", "global_video", 0.0]["mean"], base_run["error_deg"]["mean"], atol=1e-4
    )


def test_the_protocol_of_a_config_keeps_its_windows() -> None:
    config = running.adjusted(load_config("jin_five_layers", **{"protocol.test_stride": 3}))
    assert config.protocol == UnseenBoth(test_stride=3)
    with pytest.raises(UserError, match="give rising numbers"):
        load_config("jin_five_layers", **{"coldstart.rounds": [5, 1]})
