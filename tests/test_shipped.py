"""Every shipped config builds and, slowly, runs a round, with small synthetic viewers for its own data."""

from __future__ import annotations

import json
from functools import partial

import jax
import jax.numpy as jnp
import pytest

import fedjax_vp as fvp
from fedjax_vp import closures, fitting
from fedjax_vp.batching import static_part
from fedjax_vp.config import Config, load_config, shipped_configs
from fedjax_vp.federated import round as rounds
from fedjax_vp.federated.simulator import Simulator
from fedjax_vp.settings_text import plain

SMALL = {"users": 4, "videos": 5, "duration_s": 20.0}


def small(name: str) -> Config:
    """A shipped config for one round over few viewers; lists of named users do not fit them."""
    config = load_config(name)
    keeps = config.to_mapping()["dataset"]["kind"] in ("synthetic", "planted")
    changed = (
        {f"dataset.{key}": value for key, value in SMALL.items()}
        if keeps
        else {"dataset": {"kind": "synthetic", **SMALL}}
    )
    if config.protocol.kind == "netllm":
        changed["protocol"] = {"kind": "unseen_users"}
    one = {"rounds": 1, "engine.devices": 1, "evaluate.every": 1}
    return load_config(name, compare=[], **one, **changed)


def identity(config: Config) -> str:
    """Configs of one method, model and kind of data have one round."""
    parts = static_part(config.method), config.model, config.dataset, config.protocol
    return json.dumps([plain(part) for part in parts], sort_keys=True)


def built(name: str) -> tuple[Simulator, rounds.State]:
    """A config's groups and levels on its federation, and the shapes of its state."""
    config = small(name)
    traces, split = fitting.load_traces(config)
    one = fitting.problem(config, traces, split, fitting.horizons(config, traces.rate_hz))
    sim = one.simulator()
    return sim, jax.eval_shape(partial(rounds.init, sim), jnp.int32(0))


FIRST: dict[str, str] = {}
for _name in sorted(shipped_configs()):
    FIRST.setdefault(identity(small(_name)), _name)


@pytest.mark.parametrize("name", FIRST.values())
def test_a_shipped_config_builds(name: str) -> None:
    sim, state = built(name)
    assert len(state.levels) == len(sim.method.levels)
    for level in state.levels:
        assert all(jnp.issubdtype(rows.dtype, jnp.floating) for rows in level.rows.values())
    assert closures.digest(rounds.make_chunk(sim, 1))  # its chunk can be kept (`compiling.compile`)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST.values())
def test_a_shipped_config_runs_a_round(name: str) -> None:
    result = fvp.run(small(name), progress=False)
    assert result.summary["rounds"] == 1
