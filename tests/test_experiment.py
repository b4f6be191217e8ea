"""From names to objects: traces, windows, horizons and problems of a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import stand_in

import fedjax_vp as fvp
from fedjax_vp import fitting, simulate
from fedjax_vp.config import Config, load_config
from fedjax_vp.data import splits
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.errors import UserError
from fedjax_vp.models import BASELINES

SMALL: dict[str, Any] = {
    "dataset": {"kind": "synthetic", "users": 4, "videos": 2, "duration_s": 20.0},
    "rounds": 2,
    "model": {"hidden": [4]},
}


@pytest.fixture(scope="module")
def loaded() -> tuple[Config, TraceSet, splits.Split]:
    """A small synthetic federation."""
    config = load_config(SMALL)
    return (config, *fitting.load_traces(config))


@pytest.mark.parametrize(
    "dataset",
    [{"kind": "synthetic", "users": 3, "videos": 2}, {"kind": "planted", "users": 3, "videos": 2}],
)
def test_generated_data_sets_load(dataset: dict[str, Any]) -> None:
    traces, split = fitting.load_traces(load_config({"dataset": dataset}))
    assert (traces.num_users, traces.num_videos) == (3, 2)
    assert split.test.any()


def test_windows_follow_rate_and_protocol(loaded: tuple[Config, TraceSet, splits.Split]) -> None:
    config, traces, _ = loaded
    shape = fitting.window_shape(config, traces)
    assert (shape.history, shape.horizon, shape.rate_hz) == (10, 25, 5.0)
    assert shape.duration_s == pytest.approx(traces.duration_s)
    with pytest.raises(UserError, match=r"at 5 Hz give at least 0\.2 s"):
        fitting.window_shape(load_config(SMALL, **{"protocol.history_s": 0.05}), traces)


def test_a_problem_is_ready_to_simulate(loaded: tuple[Config, TraceSet, splits.Split]) -> None:
    _, traces, split = loaded
    config = load_config(SMALL, algorithm="global_video", client="user")
    problem = fitting.problem(config, traces, split, fitting.horizons(config, traces.rate_hz))
    params = problem.predictor.init(jax.random.key(0))
    assert "video_crowd" in params
    assert problem.federation.num_clients == 2  # even positions of four users train
    assert [level.name for level in problem.method.levels] == ["global", "video", "video_table"]
    assert problem.engine == config.engine


@pytest.mark.parametrize("kind", BASELINES)
def test_only_what_learns_is_trained(kind: str, loaded: tuple[Config, TraceSet, splits.Split]) -> None:
    _, traces, split = loaded
    config = load_config(SMALL, model=kind)
    assert not config.model.build(fitting.window_shape(config, traces)).init(jax.random.key(0))
    with pytest.raises(UserError, match=f"^{kind} has no weights: .*: linear, mlp, gru"):
        fitting.problem(config, traces, split, fitting.horizons(config, traces.rate_hz))


def test_settings_can_be_chosen_on_validation_windows(
    loaded: tuple[Config, TraceSet, splits.Split],
) -> None:
    _, _, split = loaded
    _, chosen = fitting.load_traces(load_config(SMALL, **{"evaluate.phase": "valid"}))
    assert split.valid.any()
    np.testing.assert_array_equal(chosen.test, split.valid)
    assert not (chosen.test & split.test).any()
    with pytest.raises(UserError, match=r"evaluate\.phase is valid.*raise protocol\.valid_share"):
        fitting.load_traces(load_config(SMALL, **{"evaluate.phase": "valid", "protocol.valid_share": 0.0}))


def test_horizons_end_with_the_protocols() -> None:
    short = load_config(SMALL, **{"protocol.horizon_s": 3.0})
    assert fitting.horizons(short, 5.0).horizons_s == (0.2, 0.4, 1.0, 2.0, 3.0)
    assert fitting.horizons(short, 5.0).tile_horizons_s == (1.0, 2.0)
    for asked in ([1.0, 6.0], [0.0, 1.0], [-1.0]):
        with pytest.raises(UserError, match=r"evaluate\.horizons_s is \["):
            fitting.horizons(load_config(SMALL, **{"evaluate.horizons_s": asked}), 5.0)


def test_horizons_end_on_a_sample() -> None:
    assert fitting.horizons(load_config(SMALL), 2.0).horizons_s == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert fitting.horizons(load_config(SMALL), 0.5).tile_horizons_s == (2.0, 4.0)
    thirds = load_config(SMALL, **{"evaluate.horizons_s": [0.3333, 1.0]})
    assert fitting.horizons(thirds, 3.0).horizons_s == (0.3333, 1.0)
    for key, asked in (("horizons_s", [0.2, 1.0]), ("tile_horizons_s", [1.25])):
        config = load_config(SMALL, **{f"evaluate.{key}": asked})
        with pytest.raises(UserError, match=rf"evaluate\.{key} is \[.*0\.5 s at 2 Hz"):
            fitting.horizons(config, 2.0)
    with pytest.raises(UserError, match=r"evaluate\.horizons_s"):
        fitting.horizons(load_config(SMALL), 0.1)


@pytest.mark.parametrize(
    ("on", "protocol", "needless"),
    [
        ("auto", {}, True),
        ("auto", {"adapt_s": 10.0, "horizon_s": 2.0}, False),
        ("auto", {"kind": "within_session"}, False),
        ("train", {"adapt_s": 10.0, "horizon_s": 2.0}, True),
        ("adapt", {"adapt_s": 10.0, "horizon_s": 2.0}, False),
        ("adapt", {"kind": "within_session"}, True),
    ],
)
def test_adapting_to_nothing_is_noticed(
    on: str, protocol: dict[str, Any], needless: bool, loaded: tuple[Config, TraceSet, splits.Split]
) -> None:
    _, traces, _ = loaded
    config = load_config(SMALL, algorithm="finetune", adapt={"on": on}, protocol=protocol)
    split = splits.split(traces, config.protocol)
    assert bool(fitting.needless(config, split)) == needless
    assert not fitting.needless(load_config(SMALL), split)


def test_the_note_names_the_windows_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulate, "simulate", stand_in.simulate)
    fvp.run(load_config(SMALL, algorithm="finetune", adapt={"on": "auto"}))
    note = " ".join(capsys.readouterr().err.split())
    assert "finetune adapts to nothing: no tested session has train or adapt windows" in note


def test_python_users_get_a_result_without_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulate, "simulate", stand_in.simulate)
    monkeypatch.chdir(tmp_path)
    result = fvp.run(fvp.load_config(SMALL), progress=False)
    assert result.path is None
    assert result.summary["hurt_share"] == 0.0  # FedAvg beside itself
    assert result.summary["dataset"] == "jin-like"
    assert set(result.history["horizon_s"]) == set(result.summary["horizons_s"])
    np.testing.assert_array_equal(result.state["w"], 0)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ({"levels.video.by": "vidoe"}, "vidoe"),
        ({"mixing.per": "vidoe"}, r"mixing\.per: no label 'vidoe'"),
        ({"levels.video.server": {"kind": "optax", "name": "admw"}}, "no optimizer 'admw'"),
    ],
)
def test_a_mistake_in_the_last_method_is_told_before_the_first_trains(
    mistake: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("nothing is trained")

    monkeypatch.setattr(simulate, "simulate", refuse)
    wrong = load_config(SMALL, algorithm="global_video", compare=["fedavg"], **mistake)
    with pytest.raises(UserError, match=rf"^global_video: .*{told}"):
        fvp.run(wrong, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_configs_are_checked_against_their_own_data(monkeypatch: pytest.MonkeyPatch) -> None:
    loads, load = [], fitting.load_traces

    def count(config: Config) -> tuple[TraceSet, splits.Split]:
        loads.append(config.dataset)
        return load(config)

    monkeypatch.setattr(fitting, "load_traces", count)
    more = {"dataset.users": 6}
    configs = {
        "a": load_config(SMALL),
        "b": load_config(SMALL, **more),
        "c": load_config(SMALL, algorithm="ifca"),
    }
    fitting.check(configs)
    assert loads == [configs["a"].dataset, configs["b"].dataset]
    owner = {"levels.cluster.owns": ["tail/*"]}
    with pytest.raises(UserError, match=r"^d: levels"):
        fitting.check({**configs, "d": load_config(SMALL, algorithm="ifca", **owner)})
    absent = load_config(SMALL, dataset={"kind": "table", "path": "nowhere.csv"})
    with pytest.raises(UserError, match=r"^e: .*nowhere"):
        fitting.check({**configs, "e": absent})


def test_nobody_is_hurt_where_fedavg_did_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "simulate", stand_in.simulate)
    result = fvp.run(load_config(SMALL, algorithm="per_video"), progress=False)
    assert result.summary["hurt_share"] is None


def test_users_are_hurt_relative_to_fedavg_by_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "simulate", stand_in.simulate)
    config = load_config(SMALL, algorithm="per_video", compare=["jin_fedavg"])
    assert fvp.run(config, progress=False).summary["hurt_share"] == 0.0  # the stand-in serves all alike


@pytest.mark.parametrize(("share", "noted"), [(0.0, True), (0.125, False)])
def test_levels_that_cannot_be_mixed_are_noticed(
    share: float, noted: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulate, "simulate", stand_in.simulate)
    fvp.run(load_config(SMALL, algorithm="global_video", **{"protocol.valid_share": share}))
    note = " ".join(capsys.readouterr().err.split())
    assert note.count("note: global_video learns no weights of its levels") == noted
