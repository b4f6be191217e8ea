"""The registry of recipes: every one resolves to a method that is what its paper says."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from fedjax_vp import algorithms
from fedjax_vp.algorithms import RECIPES, recipe
from fedjax_vp.config import load_config
from fedjax_vp.errors import UserError
from fedjax_vp.federated.server import Adaptive, Average
from fedjax_vp.federated.settings import Everyone


@pytest.mark.contract
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_resolves(name: str) -> None:
    config = load_config({"algorithm": name})
    assert config.algorithm == name
    assert config.method.levels == config.levels
    assert RECIPES[name].title


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_levels_with_a_crowd_belong_to_videos(name: str) -> None:
    config = load_config({"algorithm": name})
    by_video = [level for level in config.levels if level.by == "video"]
    assert bool(by_video) == config.model.features.crowd
    first = config.levels[0]
    if by_video and first not in by_video:
        assert first.owns == ("*", "!video_*")
        assert [level.owns for level in by_video[:2]] == [("video_crowd",), ("video_table",)]
    else:
        assert first.owns[0] == "*"


def test_every_file_has_its_equations() -> None:
    folder = Path(algorithms.__file__).parent
    for path in folder.glob("*.py"):
        if path.stem not in ("__init__", "recipe"):
            module = importlib.import_module(f"fedjax_vp.algorithms.{path.stem}")
            assert re.search(r"\(1\)$", module.__doc__ or "", re.MULTILINE), path


def test_every_recipe_of_a_file_is_registered() -> None:
    for path in Path(algorithms.__file__).parent.glob("*.py"):
        module = importlib.import_module(f"fedjax_vp.algorithms.{path.stem}")
        for value in vars(module).values():
            if isinstance(value, algorithms.Recipe):
                assert RECIPES[value.name] is value


def test_fedsgd_is_one_full_batch_step() -> None:
    local = load_config({"algorithm": "fedsgd"}).local
    assert (local.batch, local.steps, local.optimizer, local.momentum) == (0, 1, "sgd", 0.0)


def test_fedavg_is_one_unshrunk_level() -> None:
    (level,) = load_config({"algorithm": "fedavg"}).levels
    assert (level.by, level.shrinkage, level.server) == ("", 1.0, Average())


@pytest.mark.parametrize("name", ["adagrad", "yogi", "adam"])
def test_fedopt_differs_from_fedavg_in_the_server_alone(name: str) -> None:
    config, fedavg = load_config({"algorithm": f"fed{name}"}), load_config({"algorithm": "fedavg"})
    server = config.levels[0].server
    assert isinstance(server, Adaptive)
    assert (server.kind, server.tau) == (name, 1e-3)
    assert server.beta1 == (0.0 if name == "adagrad" else 0.9)
    mine, theirs = config.to_mapping(), fedavg.to_mapping()
    assert {key for key in mine if mine[key] != theirs[key]} == {"algorithm", "levels"}


def test_finetune_adds_steps_to_fedavg() -> None:
    mine, theirs = (load_config({"algorithm": name}).to_mapping() for name in ("finetune", "fedavg"))
    assert {key for key in mine if mine[key] != theirs[key]} == {"algorithm", "adapt"}
    assert mine["adapt"]["steps"] > 0 == theirs["adapt"]["steps"]


def test_centralized_is_one_client_that_keeps_its_optimiser() -> None:
    config = load_config({"algorithm": "centralized"})
    assert (config.client, config.participation, config.local.keep_state) == ("all", Everyone(), True)


def test_local_only_shares_no_row_between_clients() -> None:
    config = load_config({"algorithm": "local_only"})
    assert [level.by for level in config.levels] == [config.client] == ["user"]


@pytest.mark.parametrize("name", ["global_video_user", "five_layers"])
def test_finer_levels_that_train_are_shrunk_by_empirical_bayes(name: str) -> None:
    config = load_config({"algorithm": name})
    trained = [level.shrinkage for level in config.levels[1:] if level.name != "video"]
    assert trained == ["auto"] * (len(config.levels) - 2)
    assert config.mixing.kind == "mixture"
    assert config.mixing.online > 0


def test_an_unknown_recipe_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"'fedavgg' is unknown: did you mean fedavg\?"):
        recipe("fedavgg")
