"""IFCA's synthetic experiment: plain loops in float64, the engine's pooling, judgment and resumption."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_vp.errors import UserError
from fedjax_vp.federated import hierarchy, levels, pooling, sums
from fedjax_vp.federated.settings import Level, Method

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
figure, judgment, settings, simulation, solving, script = (
    importlib.import_module(name)
    for name in (
        "ifca.figure",
        "ifca.judgment",
        "ifca.settings",
        "ifca.simulation",
        "ifca.solving",
        "ifca_synthetic",
    )
)

TINY = {
    **{"d": 6, "data_sets": 2, "starts": 2, "tolerance": 1e-4, "patience": 3},
    "sweeps": [
        {"name": "m-n", "m": [4, 8], "n": [20], "r": [0.5, 1], "sigma": [0.1], "lr": [1, 0.25], "rounds": 40},
        {"name": "r-sigma", "m": [4], "n": [20], "r": [1, 2], "sigma": [0.2], "lr": [1, 0.25], "rounds": 20},
    ],
}


def by_hand(
    data: Any, start: np.ndarray, lr: float, stop: tuple[int, float, int], m: int
) -> tuple[float, int, list]:
    """One run of IFCA with gradient averaging, machine by machine: distance, rounds, choices."""
    x, y, truth = data
    k, n = start.shape[1], len(x) // m
    theta, last, before, quiet, done = start.copy(), [-1] * m, float("inf"), 0, 0
    while quiet < stop[2] and done < stop[0] and (not done or before < 1e6):
        gradient, choice = np.zeros_like(theta), []
        for i in range(m):
            own, target = x[i * n : (i + 1) * n], y[i * n : (i + 1) * n]
            loss = [np.mean((own @ theta[:, j] - target) ** 2) for j in range(k)]
            best = int(np.argmin(loss))
            gradient[:, best] += 2 / n * own.T @ (own @ theta[:, best] - target)
            choice.append(best)
        theta -= lr / m * gradient
        distance = float(
            np.mean([min(np.linalg.norm(theta[:, j] - truth[:, t]) for t in range(k)) for j in range(k)])
        )
        still = choice == last and abs(distance - before) <= stop[1] * distance
        quiet = quiet + 1 if still else 0
        last, before, done = choice, distance, done + 1
    return before, done, last


def test_runs_are_the_loop_over_machines() -> None:
    shape = simulation.Shape(k=2, m=6, n=9, d=5, starts=3)
    with jax.enable_x64(True):
        grid = simulation.Grid(
            *(jnp.array(v, jnp.float64) for v in ([0.7, 2.0], [0.0, 0.3], [1.0, 0.2, 3.0]))
        )
        stop = simulation.Stop(jnp.array(60), jnp.array(1e-3, jnp.float64), jnp.array(3))
        data = simulation.draw(jax.random.key(3), grid, shape)
        start = simulation.starts(jax.random.key(4), shape)
        found = simulation.train(data, start, grid.lr, stop, shape)
        assert found.distance.dtype == jnp.float64
        data, start, found = jax.tree.map(np.asarray, (data, start, found))
    for (p, s, r), distance in np.ndenumerate(found.distance):
        one = (data.x, data.y[:, p], data.truth[:, p])
        wanted, rounds, choice = by_hand(one, start[:, s].copy(), (1.0, 0.2, 3.0)[r], (60, 1e-3, 3), 6)
        assert found.rounds[p, s, r] == rounds
        np.testing.assert_allclose(distance, wanted, rtol=1e-8, atol=1e-14)
        apart = len(set(choice[:3])) == len(set(choice[3:])) == 1 and choice[0] != choice[3]
        assert found.recovered[p, s, r] == apart
    ends = found.rounds
    assert (ends == 60).any()
    assert (ends < 60).any()
    assert (found.distance > 1e6).any()
    assert found.recovered.any()
    assert not found.recovered.all()


def test_a_round_is_the_engines_pooling_over_participants() -> None:
    shape = simulation.Shape(k=2, m=6, n=4, d=3, starts=1)
    rng = np.random.default_rng(0)
    x, theta = rng.normal(size=(24, 3)).astype(np.float32), rng.normal(size=(3, 1, 2)).astype(np.float32)
    y = np.concatenate([x[:8] @ theta[..., 1], x[8:] @ theta[..., 0]]) + np.float32(0.1)
    choice, gradient = simulation.ifca_round(jnp.asarray(x), jnp.asarray(y), jnp.asarray(theta), shape)
    choice, lr = np.asarray(choice)[:, 0], 0.3
    assert list(choice) == [1, 1, 0, 0, 0, 0]
    labels = {"group": choice, "session": np.arange(6)}
    level = Level("group", by="group", denominator="participants")
    group = hierarchy.grouping(labels, "group")
    layout = hierarchy.layout(Method(levels=(level,)), [group], ["w"], np.arange(6))
    rows = {"w": jnp.asarray(theta[:, 0].T)}
    states = tuple(s._replace(rows=rows) for s in levels.init(layout, [group], {"w": jnp.zeros(3)}))
    own = x.reshape(6, 4, 3)
    residual = np.einsum("mnd,md->mn", own, theta[:, 0].T[choice]) - y.reshape(6, 4)
    delta = jnp.asarray(-lr * 2 / 4 * np.einsum("mnd,mn->md", own, residual), jnp.float32)
    units = {"w": sums.Unit(delta, jnp.zeros((0, 3)), jnp.ones((6, 1)), jnp.arange(6))}
    totals = sums.add(sums.zeros(layout, {"w": jnp.zeros(3)}), states, layout, units)
    hyper = pooling.Hyper(*(jnp.array([one]) for one in (1.0, 1.0, 1.0)))
    (new,) = pooling.pool(layout, states, totals, jnp.float32(6.0), hyper, (jnp.int32(0), jnp.int32(1)))
    np.testing.assert_allclose(new.rows["w"].T, theta[:, 0] - lr * gradient[:, 0], atol=1e-5)


def test_data_are_the_mixture_of_the_paper() -> None:
    shape = simulation.Shape(k=4, m=8, n=500, d=10, starts=50)
    grid = simulation.Grid(jnp.array([0.25, 1.0]), jnp.array([0.0, 0.5]), jnp.array([1.0]))
    x, y, truth = (np.asarray(v) for v in simulation.draw(jax.random.key(0), grid, shape))
    assert set(np.unique(truth[:, 0])) == {0, 0.25}
    np.testing.assert_array_equal(truth[:, 1], 4 * truth[:, 0])
    group = np.arange(4000) // 500 // 2
    clean = np.einsum("sd,ds->s", x, truth[:, 0, group])
    np.testing.assert_allclose(y[:, 0], clean, atol=1e-5)
    assert abs(np.std(y[:, 1] - 4 * clean) - 0.5) < 0.02
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1) < 0.02
    start = np.asarray(simulation.starts(jax.random.key(0), shape))
    assert set(np.unique(start)) == {0, 1}
    assert abs(start.mean() - 0.5) < 0.05


def experiment(**changes: Any) -> Any:
    return settings.Experiment.model_validate({**TINY, **changes})


def test_cells_of_a_shape_share_a_compilation_and_stacking_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traced = []
    draw = simulation.draw
    monkeypatch.setattr(simulation, "draw", lambda *given: traced.append(1) or draw(*given))
    one = experiment()
    first, _, third = settings.cells(one)
    alone = [solving.outcome(one, first, index) for index in range(2)]
    compiled = len(traced)
    solving.outcome(one, third, 0)  # other r, sigma and rounds
    assert compiled
    assert len(traced) == compiled
    both = solving.outcome(experiment(at_once=2), first, 0)
    for index in range(2):
        np.testing.assert_allclose(both.distance[index], alone[index].distance[0], rtol=1e-4)
    assert not np.allclose(both.distance[0], both.distance[1])


def test_the_command_resumes_by_cells_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: Any
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps(TINY))
    command = [str(config), "--out", str(tmp_path / "out")]
    solve = solving.solve
    calls: list[str] = []

    def stop_at_third(one: Any, cell: Any, advance: Any) -> Any:
        calls.append(cell.sweep.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return solve(one, cell, advance)

    monkeypatch.setattr(solving, "solve", stop_at_third)
    assert script.main(command) == 130
    assert script.main(command) == 0
    assert calls == ["m-n", "m-n", "r-sigma", "r-sigma"]
    printed = capsys.readouterr()
    assert "3 of 3 cells to run" in printed.err
    assert "1 of 3 cells to run" in printed.err
    assert "| m-n | 2 | 8 | 20 | 1 | 0.1 | 2/2 | 0.16 to 1.00 | 2/2 |" in printed.out
    assert "success does not fall in r" in printed.out
    whole = json.loads((tmp_path / "out" / "ifca_synthetic.json").read_text())
    assert len(whole["points"]) == 6
    assert whole["verdicts"] == judgment.verdicts(whole["points"])
    assert (tmp_path / "out" / "ifca_synthetic.png").read_bytes()[:4] == b"\x89PNG"
    assert script.main([*command, "--set", "seed=1"]) == 0  # nothing known of another seed
    assert len(calls) == 7


def point(**facts: Any) -> dict[str, Any]:
    base = {"sweep": "a", "k": 2, "m": 50, "n": 50, "r": 0.1, "sigma": 0.1, "data_sets": 10, **facts}
    return {**base, "interval": judgment.interval(base["success"], base["data_sets"])}


def test_a_fall_beyond_the_interval_is_told() -> None:
    assert judgment.interval(10, 10) == pytest.approx([0.6915, 1.0], abs=1e-4)
    high = point(success=10)
    assert not judgment.falls([high, point(success=7, n=200)], "n")
    assert not judgment.falls([high, point(success=0, n=200, sigma=0.2)], "n")  # more than n differs
    assert not judgment.falls([point(success=0, n=10), high], "n")
    (told,) = judgment.falls([high, point(success=6, n=200)], "n")
    assert "m 50, n 50" in told
    assert "6 at n 200" in told
    claims = judgment.verdicts([high, point(success=6, n=200)])
    assert [claim["holds"] for claim in claims] == [True, False, False]
    assert "n 200" in claims[2]["claim"]
    assert claims[2]["against"] == ["0.6"]
    assert judgment.easiest([point(success=1, sigma=0.2), point(success=2, sigma=0.0)])[0]["success"] == 2


def test_diverged_runs_are_no_success_and_least_squares_bounds_distances() -> None:
    cell = settings.cells(experiment())[0]
    distance = np.array([[[[0.01, np.nan], [np.inf, 3.0]]] * 2, [[[np.nan] * 2] * 2] * 2])
    found = judgment.judge_cell(cell, 6, distance, np.ones(distance.shape), distance < 1)[0]
    assert (found["success"], found["recovered"], found["distance_median"]) == (1, 1, None)
    assert found["runs_within"] == {"1": 0.25, "0.25": 0.0}
    assert found["distance_expected"] == pytest.approx(0.1 * np.sqrt(6 / (40 - 7)))
    assert judgment.least_squares_distance(cell, 40, 0.1) is None


def test_shipped_configs_are_the_grids_they_say() -> None:
    small = settings.load(BENCHMARKS / "configs" / "ifca_synthetic.yaml")
    full = settings.load(BENCHMARKS / "configs" / "ifca_synthetic_full.yaml")
    assert [len(settings.cells(one)) for one in (small, full)] == [6 + 1 + 1, 21 + 15 + 1 + 1]
    assert sum(len(cell.points) for cell in settings.cells(full)) == 42 + 30 + 20 + 20
    assert (full.data_sets, full.starts, {sweep.rounds for sweep in full.sweeps}) == (40, 10, {300})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("data_sets=0", "data_sets"),
        ("at_once=3", "divisor of data_sets"),
        ("stars=3", "stars"),
        ("d", "key=value"),
        ("sweeps=[{name: a, m: [5], n: [2], r: [1], sigma: [0], lr: [1]}]", "multiple of k, 2"),
        ("sweeps=[]", "sweeps"),
    ],
)
def test_bad_settings_are_told_in_a_line(change: str, told: str, capsys: pytest.CaptureFixture) -> None:
    assert script.main(["--set", change]) == 2
    line = capsys.readouterr().err
    assert told in line
    assert line.count("\n") == 1


def test_a_missing_config_is_told() -> None:
    with pytest.raises(UserError, match=r"none\.yaml cannot be read"):
        settings.load(Path("none.yaml"))
