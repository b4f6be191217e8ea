"""Precedence, unions, names and errors of configs; every shipped file is valid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fedjax_vp as fvp
from fedjax_vp.config import Config, find_config, load_config, shipped_configs
from fedjax_vp.data.protocols import UnseenUsers, WithinSession
from fedjax_vp.errors import UserError
from fedjax_vp.federated.server import Adaptive
from fedjax_vp.federated.settings import Everyone, Method, Uniform
from fedjax_vp.models import GRU, MLP, Features, Static
from fedjax_vp.settings_text import read, write


@pytest.mark.contract
@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_config_is_valid(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert isinstance(config.method, Method)
    assert set(config.beside) == set(config.compare) - {config.algorithm}
    head = find_config(name).read_text("utf-8").partition("\n")[0]
    assert head.startswith("# "), "the first line says what the config is, for `list configs`"


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_a_shipped_config_holds_only_what_differs(name: str) -> None:
    given = read(find_config(name))
    bare = load_config({"algorithm": given.get("algorithm", "fedavg")}).to_mapping()
    for section in given.keys() - {"algorithm", "dataset", "protocol"}:  # these say what a number means
        assert load_config(name).to_mapping()[section] != bare[section], section


@pytest.mark.parametrize("name", ["jin", "wu", "david", "avtrack"])
@pytest.mark.parametrize("method", ["fedavg", "centralized", "per_video", "global_video"])
def test_the_four_data_sets_have_their_configs(name: str, method: str) -> None:
    config = load_config(f"{name}_{method}")
    assert config.dataset.kind.startswith(name)
    assert config.algorithm == method
    assert isinstance(config.protocol, UnseenUsers)


def test_precedence_of_defaults_recipe_file_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert load_config({"algorithm": "fedsgd"}).local.steps == 1  # the recipe wins over the default
    path.write_text("algorithm: fedsgd\nlocal: {steps: 3, lr: 0.3}\n")
    assert load_config(path).local.steps == 3  # the file over the recipe
    assert load_config(path).local.batch == 0  # what the file leaves out stays the recipe's
    config = load_config(path, rounds=7, local={"lr": 0.4}, **{"local.steps": 5})
    assert (config.local.steps, config.local.lr, config.rounds) == (5, 0.4, 7)  # overrides over the file
    assert config.name == "mine"


def test_levels_are_addressed_by_name_and_index() -> None:
    overrides = {"levels.video.shrinkage": 0.5, "levels.0.server.kind": "adam", "levels.0.server.lr": 0.02}
    config = load_config({"algorithm": "global_video"}, **overrides)
    assert config.levels[1].shrinkage == 0.5
    assert config.levels[0].server == Adaptive(kind="adam", lr=0.02)
    assert config.levels[0].owns == ("*", "!video_*")


def test_another_kind_drops_the_old_members_keys() -> None:
    mapping = {"participation": {"kind": "uniform", "clients": 9}, "model": {"kind": "mlp", "hidden": [8]}}
    config = load_config(mapping, **{"participation.kind": "all", "model.kind": "gru"})
    assert config.participation == Everyone()
    assert config.model == GRU()
    assert load_config(mapping, **{"participation.kind": "uniform"}).participation == Uniform(clients=9)
    assert load_config(mapping, **{"protocol.kind": "within_session"}).protocol == WithinSession()


def test_a_recipes_crowd_survives_another_model() -> None:
    config = load_config({"algorithm": "global_video", "model": {"kind": "gru"}})
    assert config.model.features.crowd
    assert load_config({"algorithm": "global_video", "model": "static"}).model == Static()


def test_another_algorithm_drops_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("algorithm: global_video\nlocal: {lr: 0.07}\n")
    config = load_config(path, algorithm="fedavg")
    assert [level.name for level in config.levels] == ["global"]
    assert config.model.features == Features()
    assert config.local.lr == 0.07


def test_settings_objects_are_taken_as_overrides() -> None:
    config = load_config({}, model=MLP(hidden=(4,)), participation=Everyone())
    assert config.model == MLP(hidden=(4,))
    assert config.participation == Everyone()


def test_compared_methods_are_what_another_algorithm_would_be() -> None:
    mapping = {
        "algorithm": "global_video",
        "compare": ["fedavg", "per_video"],
        "rounds": 11,
        "local": {"lr": 0.3},
        "levels": {"video": {"shrinkage": 0.25}},
        "model": {"hidden": [8], "features": {"table": 6, "yaw": True}},
    }
    beside = load_config(mapping).beside
    assert list(beside) == ["fedavg", "per_video"]
    fedavg, per_video = beside["fedavg"], beside["per_video"]
    assert (fedavg.algorithm, fedavg.rounds, fedavg.local.lr) == ("fedavg", 11, 0.3)
    assert [level.name for level in fedavg.levels] == ["global"]
    assert fedavg.model == MLP(hidden=(8,), features=Features(yaw=True))  # the table was the own method's
    assert per_video.model.features.table == 6
    assert per_video.compare == ()
    assert fedavg.mixing.kind == "none"


def test_a_shipped_config_is_compared_for_its_method() -> None:
    """What it says of its method comes before what this file says of training; data and rounds are ours."""
    file = {
        "rounds": 5,
        "dataset": {"kind": "planted", "users": 3},
        "local": {"prefix_share": 0.5, "lr": 0.3},
        "compare": ["planted_five_layers", "five_layers"],
    }
    config = load_config(file)
    named, usual = config.beside["planted_five_layers"], config.beside["five_layers"]
    alone = load_config("planted_five_layers")
    assert (named.name, named.algorithm) == ("planted_five_layers", "five_layers")
    assert (named.levels, named.mixing, named.model) == (alone.levels, alone.mixing, alone.model)
    assert (named.local.prefix_share, named.local.lr) == (0.0, 0.3)
    assert (named.rounds, named.dataset, named.protocol) == (5, config.dataset, config.protocol)
    assert named.compare == ()
    asked = load_config(file, **{"local.prefix_share": 0.25}).beside["planted_five_layers"]
    assert asked.local.prefix_share == 0.25  # an override comes before both files
    assert usual.local.prefix_share == 0.5
    assert usual.levels != named.levels


def test_compared_methods_follow_a_copied_config() -> None:
    config = load_config({"compare": ["fedsgd"], "rounds": 5}).model_copy(update={"rounds": 2})
    assert config.beside["fedsgd"].rounds == 2


def test_the_own_algorithm_is_not_compared_with_itself() -> None:
    assert load_config({"algorithm": "fedavg", "compare": ["fedavg"]}).beside == {}


@pytest.mark.contract
@pytest.mark.parametrize("algorithm", ["fedavg", "global_video_user", "centralized", "fedyogi"])
def test_the_resolved_mapping_gives_the_same_config(algorithm: str) -> None:
    config = load_config({"algorithm": algorithm, "dataset": {"kind": "table", "path": "a.csv"}})
    mapping = config.to_mapping()
    assert load_config(json.loads(json.dumps(mapping))) == config
    assert load_config(mapping).to_mapping() == mapping


def test_the_resolved_mapping_survives_a_file(tmp_path: Path) -> None:
    config = load_config("quickstart")
    (tmp_path / "resolved.yaml").write_text(write(config.to_mapping()))
    assert load_config(tmp_path / "resolved.yaml") == config


def _server(**settings: object) -> dict[str, object]:
    return {"levels": [{"name": "g", "server": settings}]}


def test_configs_are_frozen_and_closed() -> None:
    config = load_config({})
    with pytest.raises(ValueError, match="frozen"):
        config.rounds = 3
    with pytest.raises(ValueError, match="extra"):
        Config(roundz=3)


@pytest.mark.parametrize(
    ("mapping", "line"),
    [
        ({"roundz": 3}, r"^roundz is not a setting \(mapping\): did you mean rounds\?"),
        ({"local": {"lrr": 1}}, r"did you mean local\.lr\?"),
        (
            {"levels": [{"name": "g", "shrinkge": 1}]},
            r"^levels\.g\.shrinkge .*did you mean levels\.g\.shrinkage\?",
        ),
        ({"model": {"kind": "gruu"}}, r"^model\.kind is 'gruu' \(mapping\): did you mean gru\?"),
        ({"dataset": "jin"}, r"did you mean jin_mmsys22\?"),
        ({"algorithm": "fedagv"}, r"did you mean fedavg\?"),
        ({"algorithm": 3}, r"^algorithm is 3"),
        ({"compare": ["fedagv"]}, r"did you mean fedavg\?"),
        (
            {"compare": ["planted_five_layer"]},
            r"nor a shipped config: did you mean planted_five_layers\?",
        ),
        ({"compare": ["fedsgd", "fedsgd"]}, r"compare names a method twice"),
        ({"compare": ["jin_fedavg"]}, r"compare: jin_fedavg is fedavg under another name: take it out"),
        ({"local": {"lr": "big"}}, r"^local\.lr is 'big' \(mapping\): give a number"),
        ({"rounds": 0}, r"rounds is 0: give at least 1"),
        ({"rounds": 2.5}, r"^rounds is 2\.5 .*give a whole number"),
        ({"seed": -1}, r"seed is -1"),
        ({"name": "a/b"}, r"name is 'a/b'"),
        ({"levels": []}, r"levels is empty"),
        ({"levels": [{"name": "g"}, {"name": "g"}]}, r"share a name"),
        ({"levels": [{"name": "g", "shrinkage": 2}]}, r"shrinkage is 2"),
        ({"participation": {"kind": "uniform", "clients": 0}}, r"participation\.clients is 0"),
        ({"local": {"lr": 0}}, r"local\.lr is 0\.0: give a number above 0"),
        ({"local": {"lr": float("nan")}}, r"local\.lr is nan"),
        ({"local": {"clip": 0}}, r"local\.clip is 0\.0: give a norm above 0, or null"),
        ({"local": {"momentum": 1}}, r"local\.momentum is 1\.0: give a number in \[0, 1\)"),
        ({"local": {"momentum": 0.5, "optimizer": "adam"}}, r"local\.momentum is 0\.5, which adam"),
        ({"adapt": {"on": "trian"}}, r"^adapt\.on is 'trian'"),
        ({"adapt": {"steps": -1}}, r"adapt\.steps is -1"),
        ({"adapt": {"lr": float("inf")}}, r"adapt\.lr is inf: give a number above 0"),
        ({"adapt": {"batch": 0}}, r"adapt\.batch is 0: give at least 1"),
        (_server(lr=-1), r"server\.lr is -1\.0: give a number above 0"),
        (_server(momentum=1), r"server\.momentum is 1\.0"),
        (_server(kind="adam", lr=0), r"server\.lr is 0\.0"),
        (_server(kind="adam", beta1=-0.1), r"server\.beta1 is -0\.1: give a number in \[0, 1\)"),
        (_server(kind="yogi", beta2=1), r"server\.beta2 is 1\.0"),
        (_server(kind="adagrad", tau=0), r"server\.tau is 0\.0: give a number above 0"),
        (_server(kind="optax", lr=0), r"server\.lr is 0\.0"),
        ({"evaluate": {"every": 0}}, r"evaluate\.every is 0: give at least 1 round"),
        ({"evaluate": {"history_windows": 0}}, r"evaluate\.history_windows is 0: give at least 1"),
        ({"evaluate": {"grid": [0, 12]}}, r"evaluate\.grid is \[0, 12\]"),
        ({"evaluate": {"horizons_s": [0, 1]}}, r"evaluate\.horizons_s is \[0\.0, 1\.0\]: give seconds"),
        ({"evaluate": {"tile_horizons_s": [-1]}}, r"evaluate\.tile_horizons_s is \[-1\.0\]"),
        ({"evaluate": {"horizons_s": "all"}}, r"^evaluate\.horizons_s is 'all' .*give a list of numbers"),
    ],
)
def test_wrong_settings_say_what_where_and_what_to_do(mapping: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        load_config(mapping)
    assert "\n" not in str(caught.value)


def test_a_complaint_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("loca: {lr: 1}\n")
    with pytest.raises(UserError, match=r"loca is not a setting \(.*mine\.yaml\): did you mean local\?"):
        load_config(path)


def test_missing_configs_are_named() -> None:
    with pytest.raises(UserError, match=r"did you mean quickstart\?"):
        load_config("quickstrt")
    with pytest.raises(UserError, match=r"nowhere/a\.yaml does not exist"):
        load_config("nowhere/a.yaml")


def test_public_names() -> None:
    assert fvp.load_config is load_config
    assert fvp.Config is Config
