"""Points side by side: each is the single run, whatever runs beside it and however it was stopped."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from test_simulate import METHOD, ROUNDS, problem, same

from fedjax_vp import batching, compiling
from fedjax_vp.batching import Chunk, layout, static_part
from fedjax_vp.errors import UserError
from fedjax_vp.federated.round import hyper
from fedjax_vp.federated.settings import Engine, Method
from fedjax_vp.problem import Common, Point
from fedjax_vp.simulate import Interrupted, simulate, simulate_many

WIDTH = 2


def numbers(lr: float, server: float, progress: float) -> Method:
    """The method with other traced numbers."""
    first, second = METHOD.levels
    first = replace(first, server=replace(first.server, lr=server), progress=progress)
    return replace(METHOD, local=replace(METHOD.local, lr=lr), levels=(first, second))


POINTS = (
    Point(3, METHOD),
    Point(4, numbers(0.01, 0.1, 0.5)),
    Point(3, numbers(0.1, 0.02, 0.9)),
)
SICK = Point(3, numbers(1e30, 0.05, 1.0))


class Traced:
    """A problem's shared functions, and how often its chunk was traced."""

    def __init__(self, engine: Engine, points: int) -> None:
        self.count = 0
        make = batching.rounds_of.make_chunk

        def counting(*args: Any) -> Callable[..., Any]:
            chunk = make(*args)

            def traced(*inputs: Any) -> Any:
                self.count += 1
                return chunk(*inputs)

            return traced

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batching.rounds_of, "make_chunk", counting)
            self.common = Common(problem()._replace(engine=engine), ROUNDS, points)
            self.outcomes = run(self.common, POINTS)


class FakeMesh:
    """One device that is not a CPU."""

    class device:
        platform = "gpu"

    size, devices = 1, np.array([device])


def run(common: Common, points: Sequence[Point], resume: bool = False, **kwargs: Any) -> dict[int, Any]:
    """Outcomes by the points' index."""
    found: dict[int, Any] = {}
    simulate_many(common, points, found.__setitem__, resume, **kwargs)
    return found


@pytest.fixture(scope="module")
def one_by_one() -> Traced:
    return Traced(Engine(devices=1, chunk=3, points=1), len(POINTS))


@pytest.fixture(scope="module")
def side_by_side() -> Traced:
    """One point a device, by default."""
    return Traced(Engine(devices=2, chunk=3), len(POINTS))


def test_points_are_traced_once(one_by_one: Traced, side_by_side: Traced) -> None:
    assert (one_by_one.common.chunk.width, side_by_side.common.chunk.width) == (1, WIDTH)
    assert (one_by_one.count, side_by_side.count) == (1, 1)


def test_one_by_one_is_the_single_run_bit_for_bit(one_by_one: Traced) -> None:
    """The single run is compiled with its own numbers; the batch with the first point's."""
    point = POINTS[1]
    same(one_by_one.outcomes[1], simulate(problem(point.method), ROUNDS, point.seed))


def test_side_by_side_is_one_by_one(one_by_one: Traced, side_by_side: Traced) -> None:
    for index, point in enumerate(POINTS):
        a, b = one_by_one.outcomes[index], side_by_side.outcomes[index]
        assert int(b.state.seed) == point.seed
        for x, y in zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True):
            np.testing.assert_allclose(x, y, atol=2e-4, rtol=2e-4)
        np.testing.assert_allclose(a.evaluation.error_deg, b.evaluation.error_deg, atol=0.05)
        assert a.counters == b.counters
        assert [look["round"] for look in a.history] == [look["round"] for look in b.history]
        assert b.timings["compile_s"] >= 0
        assert b.timings["wall_s"] > 0
    errors = [o.evaluation.error_deg.mean() for o in side_by_side.outcomes.values()]
    assert len({round(float(e), 3) for e in errors}) == len(POINTS)  # seeds and numbers do count


def test_neighbors_change_no_bit(side_by_side: Traced) -> None:
    """Another neighbor, another place, and one that diverges."""
    found = run(side_by_side.common, [SICK, POINTS[2], POINTS[1], POINTS[0]])
    assert isinstance(found[0], UserError)
    assert "diverged in round" in str(found[0])
    for index, earlier in ((1, 2), (2, 1), (3, 0)):
        same(found[index], side_by_side.outcomes[earlier])


def test_a_batch_that_is_stopped_goes_on_bit_for_bit(side_by_side: Traced, tmp_path: Path) -> None:
    """Ctrl-C after round 4; one point then lacks its last checkpoint, as if killed before it was written."""
    points = [p._replace(run_dir=tmp_path / str(i)) for i, p in enumerate(POINTS)]

    def interrupt(index: int, facts: dict[str, Any]) -> None:
        if index == 0 and facts["round"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        run(side_by_side.common, points, reporter=interrupt)
    kept = {i: sorted(p.name for p in (tmp_path / i / "checkpoints").iterdir()) for i in "01"}
    assert kept == {"0": ["3", "4"], "1": ["3", "4"]}
    assert not (tmp_path / "2").exists()
    shutil.rmtree(tmp_path / "1" / "checkpoints" / "4")
    told: list[tuple[int, int]] = []

    def listen(index: int, facts: dict[str, Any]) -> None:
        if "loss" in facts:
            told.append((index, facts["round"]))

    found = run(side_by_side.common, points, resume=True, reporter=listen)
    assert told[:3] == [(1, 4), (0, 6), (1, 6)]  # the one left behind catches up first
    for index, outcome in found.items():
        same(outcome, side_by_side.outcomes[index])


def test_devices_are_dealt_to_points_first() -> None:
    assert layout(points=20, most=8, devices=8) == (8, 8)
    assert layout(points=3, most=8, devices=8) == (4, 2)  # two rows of four devices, two points each
    assert layout(points=9, most=100, devices=2) == (10, 2)
    assert layout(points=9, most=4, devices=2) == (4, 2)  # batches of 4, 4, 1
    assert layout(points=5, most=4, devices=1) == (3, 1)  # 3, 2 instead of 4, 1
    assert layout(points=1, most=8, devices=8) == (1, 1)
    assert layout(points=5, most=1, devices=2) == (1, 1)


@pytest.mark.parametrize(("free", "width"), [(1e6, 8), (90.0, 4), (3.0, 1)])
def test_as_many_points_as_memory_holds(
    free: float, width: int, side_by_side: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten bytes a point and device, of which four fifths of what is free may be used."""
    sim = side_by_side.common.sim._replace(mesh=FakeMesh())
    assert batching._free_bytes(side_by_side.common.sim.mesh) > 1e6
    monkeypatch.setattr(batching, "_free_bytes", lambda mesh: free)
    monkeypatch.setattr(Chunk, "_compile", lambda self: self.width * 10)
    assert Chunk(sim, Engine(), 8).width == width
    assert Chunk(sim, Engine(points=8), 8).width == 8  # the user knows
    monkeypatch.setattr(FakeMesh.device, "platform", "cpu")
    assert Chunk(sim, Engine(), 8).width == 1


def test_what_shares_a_compiled_function() -> None:
    assert len({static_part(p.method) for p in POINTS}) == 1
    assert static_part(replace(METHOD, local=replace(METHOD.local, steps=3))) != static_part(METHOD)
    fixed = replace(METHOD.levels[1], shrinkage=0.5)
    assert static_part(replace(METHOD, levels=(METHOD.levels[0], fixed))) != static_part(METHOD)
    # Every traced number is blanked: nothing else tells the points apart.
    for tree in (hyper(static_part(METHOD), 1), hyper(static_part(POINTS[1].method), 1)):
        assert all(float(x) == 1.0 for leaf in jax.tree.leaves(tree) for x in np.ravel(leaf))


def test_what_the_user_asks_of_the_compiler_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh(np.array(jax.devices("cpu")[:1]), ("clients",))
    level = "xla_backend_optimization_level"
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    assert compiling.options(mesh) == {level: 1}
    monkeypatch.setenv("XLA_FLAGS", f"--{level}=3")
    assert compiling.options(mesh) == {}
