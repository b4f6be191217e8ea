"""A run on 1, 2, 4 and 8 host devices is the same run; on all of them by default."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

DEVICES = (1, 2, 4, 8)

# Two levels, one learned from losses; private state, ragged work; 7 of 12 clients fill no mesh evenly.
SCRIPT = """
import sys
import jax, jax.numpy as jnp, numpy as np
import probe, toy
from fedjax_vp.evaluate import evaluate, make_errors
from fedjax_vp.federated import mixing
from fedjax_vp.federated import round as rounds
from fedjax_vp.federated.grouping.settings import IFCA
from fedjax_vp.federated.settings import Engine, Evaluate, Level, Method, Uniform
from fedjax_vp.federated.simulator import simulator
from fedjax_vp.forecasting import own
method = Method(
    levels=(Level("global"), Level("user", grouping=IFCA(groups=2, of="user"), shrinkage=0.5)),
    participation=Uniform(clients=7),
    local=probe.local(epochs=1.0, batch=4, optimizer="adam", keep_state=True, lr=0.05),
)
federation, numbers = toy.federation(), rounds.hyper(method, 3)
settings = Evaluate(horizons_s=(0.2, 0.6), tile_horizons_s=(0.4,))
assert simulator(federation, probe.predictor(), method, Engine()).mesh.size == 8
found = {}
for count in (1, 2, 4, 8):
    sim = simulator(federation, probe.predictor(), method, Engine(devices=count))
    state, step = rounds.init(sim, jnp.int32(3)), jax.jit(rounds.make_round(sim))
    for _ in range(2):
        state, info = step(state, federation.arrays, numbers)
    errors = make_errors(own(sim), federation.shape, sim.mesh, settings)
    weights = mixing.same_for_all(mixing.last_level(2, federation.shape.horizon), federation.num_sessions)
    error = evaluate(errors, (state, weights), sim, federation.arrays.test)
    for index, leaf in enumerate(jax.tree.leaves((state, info, error))):
        found[f"{count}_{index:03d}"] = np.asarray(leaf)
np.savez(sys.argv[1], **found)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """State, facts and errors by number of devices, from a process that has eight."""
    path = tmp_path_factory.mktemp("devices") / "found.npz"
    tests = Path(__file__).resolve().parent
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    env["PYTHONPATH"] = os.pathsep.join([str(tests.parent), str(tests)])
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.slow
def test_the_number_of_devices_changes_nothing(found: dict[str, np.ndarray]) -> None:
    names = sorted(name for name in found if name.startswith("1_"))
    assert len(names) * len(DEVICES) == len(found)
    for count in DEVICES[1:]:
        for name in names:
            other = found[name.replace("1_", f"{count}_", 1)]
            np.testing.assert_allclose(other, found[name], atol=5e-5, rtol=5e-5, err_msg=f"{count} {name}")
