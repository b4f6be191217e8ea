"""What is lowered once: equal functions are found again, others never, and a kept one computes the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_vp import closures, compiling, evaluate, forecasting
from fedjax_vp.federated import round as rounds
from fedjax_vp.federated.federation import thin
from fedjax_vp.federated.settings import Engine, Evaluate, Level, Local, Method, Mixing, Uniform
from fedjax_vp.federated.simulator import Simulator, simulator
from fedjax_vp.models.mlp import MLP

ENGINE = Engine(devices=2)
METHOD = Method(participation=Uniform(clients=4), local=Local(steps=2, batch=4))
HIDDEN = MLP(hidden=(4,))


def built(
    method: Method = METHOD, model: MLP = HIDDEN, engine: Engine = ENGINE, **federation: Any
) -> Simulator:
    """A simulator made from nothing."""
    return simulator(toy.federation(**federation), model.build(toy.SHAPE), method, engine)


def chunk(sim: Simulator, length: int = 3) -> Callable[..., Any]:
    return rounds.make_chunk(sim, length)


OTHERS: dict[str, Callable[[], Callable[..., Any]]] = {
    "length": lambda: chunk(built(), 4),
    "steps": lambda: chunk(built(replace(METHOD, local=Local(steps=3, batch=4)))),
    "clip": lambda: chunk(built(replace(METHOD, local=Local(steps=2, batch=4, clip=1.0)))),
    "cohort": lambda: chunk(built(replace(METHOD, participation=Uniform(clients=5)))),
    "level": lambda: chunk(built(replace(METHOD, levels=(Level("video", by="video"),)))),
    "mixing": lambda: chunk(built(replace(METHOD, mixing=Mixing("mixture")))),
    "model": lambda: chunk(built(model=MLP(hidden=(5,)))),
    "features": lambda: chunk(built(model=replace(HIDDEN, features=replace(HIDDEN.features, table=3)))),
    "devices": lambda: chunk(built(engine=Engine(devices=1))),
    "precision": lambda: chunk(built(engine=Engine(devices=2, precision="bfloat16"))),
    "traces": lambda: chunk(built(seed=1)),
    "windows": lambda: chunk(built(empty=(0,))),
    "round": lambda: rounds.make_round(built()),
}


@pytest.fixture(scope="module")
def own() -> str:
    return closures.digest(chunk(built()))


def test_a_function_made_again_has_the_same_digest(own: str) -> None:
    assert closures.digest(chunk(built())) == own


SCRIPT = """
from fedjax_vp import closures, fitting
from fedjax_vp.config import load_config
from fedjax_vp.federated import round as rounds

planted = {"kind": "planted", "users": 6, "videos": 4, "duration_s": 30.0}
config = load_config({"algorithm": "five_layers", "dataset": planted})
traces, split = fitting.load_traces(config)
made = fitting.problem(config, traces, split, fitting.horizons(config, traces.rate_hz))
print(closures.digest(rounds.make_chunk(made.simulator(), 2)))
"""


def test_another_process_finds_the_same_digest() -> None:
    found = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 65


@pytest.mark.parametrize("name", OTHERS)
def test_whatever_a_function_holds_changes_its_digest(name: str, own: str) -> None:
    assert closures.digest(OTHERS[name]()) != own


def test_two_lambdas_of_one_function_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closures, "_KNOWN", (*closures._KNOWN, __name__))
    twins = [lambda x: x + 1, lambda x: x + 2]
    assert closures.digest(twins[0]) != closures.digest(twins[1])
    assert closures.digest(twins[0]) == closures.digest(twins[0])


def test_arguments_count_by_shape_and_type(own: str) -> None:
    shapes = [jax.ShapeDtypeStruct((2,), t) for t in ("float32", "int32")] + [
        jax.ShapeDtypeStruct((3,), "float32")
    ]
    found = {closures.digest(chunk(built()), shape) for shape in shapes}
    assert len(found | {own}) == 4


def test_settings_of_jax_count(own: str) -> None:
    with jax.default_matmul_precision("bfloat16"):
        assert closures.digest(chunk(built())) != own


def test_the_packages_code_counts(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closures, "_code", lambda: ("another",))
    assert closures.digest(chunk(built())) != own


class Mine(NamedTuple):
    """A class of a notebook, whose methods may change while its name stays."""

    value: int = 1


HELD = (lambda x: x, object(), {1: object()}, [iter(())], Mine(), Mine, wraps(rounds.init)(lambda x: x))


@pytest.mark.parametrize("held", HELD)
def test_what_is_not_known_has_no_digest(held: Any) -> None:
    with pytest.raises(closures.Opaque):
        closures.digest(held)


def test_a_file_changed_since_the_import_leaves_no_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closures, "_IMPORTED", 0.0)
    with pytest.raises(closures.Opaque, match="changed"):
        closures.digest(1)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A compilation cache of its own."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def run(sim: Simulator, seed: int = 5) -> list[np.ndarray]:
    """Three rounds through `compile`."""
    whole = NamedSharding(sim.mesh, PartitionSpec())
    state, numbers = rounds.init(sim, jnp.int32(seed)), rounds.hyper(sim.method, 3)
    args = (state, sim.federation.arrays, numbers, jnp.int32(3))
    like = (state, rounds.no_info(sim))
    compiled = compiling.compile(
        chunk(sim),
        args,
        like,
        compiling.Shardings(sim.mesh, (PartitionSpec(),) * 4, PartitionSpec()),
        donated=1,
    )
    assert compiled.bytes_needed > 0
    return jax.device_get(jax.tree.leaves(compiled(*jax.device_put(args, whole))))


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.stablehlo"))


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray]:
    """Three rounds by plain `jax.jit`."""
    sim = built()
    state, numbers = rounds.init(sim, jnp.int32(5)), rounds.hyper(sim.method, 3)
    whole = NamedSharding(sim.mesh, PartitionSpec())
    plain = jax.jit(
        chunk(sim), in_shardings=whole, out_shardings=whole, compiler_options=compiling.options(sim.mesh)
    )
    args = jax.device_put((state, sim.federation.arrays, numbers, jnp.int32(3)), whole)
    return jax.device_get(jax.tree.leaves(plain(*args)))


def test_a_kept_function_is_not_traced_again_and_computes_the_same(
    folder: Path, expected: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(built())
    assert len(kept(folder)) == 1
    monkeypatch.setattr(rounds, "make_round", lambda sim: fail)
    monkeypatch.setattr(compiling.closures, "digest", lambda *facts: kept(folder)[0].stem)
    jax.tree.map(np.testing.assert_array_equal, run(built()), first)
    jax.tree.map(np.testing.assert_array_equal, first, expected)


def fail(*args: Any) -> Any:
    raise AssertionError("traced")


def test_another_seed_finds_it_and_another_method_does_not(folder: Path) -> None:
    run(built())
    run(built(), seed=6)
    assert len(kept(folder)) == 1
    run(built(replace(METHOD, local=Local(steps=3, batch=4))))
    assert len(kept(folder)) == 2


def measured(most: int) -> np.ndarray:
    """Errors on some windows of each session, of a method whose mixture is learned."""
    levels = Level("global"), Level("video", by="video")
    sim = built(replace(METHOD, levels=levels, mixing=Mixing("mixture", online=1.0)))
    horizons = Evaluate(horizons_s=(0.2, 0.6), tile_horizons_s=(0.4,))
    errors = evaluate.make_errors(forecasting.own(sim), toy.SHAPE, sim.mesh, horizons)
    state = rounds.init(sim, jnp.int32(5))
    windows = thin(sim.federation.arrays.test, most)
    found = evaluate.evaluate(errors, (state, evaluate.make_mixing(sim)(state)), sim, windows)
    again = evaluate.evaluate(errors, (state, evaluate.make_mixing(sim)(state)), sim, windows)
    np.testing.assert_array_equal(found.error_deg, again.error_deg)
    return found.error_deg


def test_what_measures_errors_is_kept_too_by_the_number_of_windows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(2)
    once = len(kept(folder))
    assert once > 0
    wider = measured(3)
    assert len(kept(folder)) == once + 1
    monkeypatch.setattr(compiling.export, "export", lambda function: fail)  # all that is needed is there
    np.testing.assert_array_equal(measured(2), first)
    np.testing.assert_array_equal(measured(3), wider)


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_file_is_written_anew(
    damage: bytes | None, folder: Path, expected: list[np.ndarray]
) -> None:
    run(built())
    [path] = kept(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage is None else damage)
    jax.tree.map(np.testing.assert_array_equal, run(built()), expected)
    assert compiling._sound(path.read_bytes())


def test_without_a_folder_or_a_digest_nothing_is_kept(
    folder: Path, expected: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def opaque(*facts: Any) -> str:
        raise closures.Opaque

    monkeypatch.setattr(compiling.closures, "digest", opaque)
    jax.tree.map(np.testing.assert_array_equal, run(built()), expected)
    monkeypatch.undo()
    jax.config.update("jax_compilation_cache_dir", str(folder / "absent"))
    jax.tree.map(np.testing.assert_array_equal, run(built()), expected)
    jax.config.update("jax_compilation_cache_dir", None)
    jax.tree.map(np.testing.assert_array_equal, run(built()), expected)
    assert not kept(folder)
