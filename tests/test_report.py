"""Tables, figures and comparisons from run folders made by hand."""

from __future__ import annotations

import doctest
import hashlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from fedjax_vp import fitting, report
from fedjax_vp.commands import compare as compare_command
from fedjax_vp.commands import report as report_command
from fedjax_vp.errors import UserError
from fedjax_vp.report import comparison, folder, lines, style, tables, world
from fedjax_vp.sweeps import groups

HORIZONS_S = [0.2, 1.0, 5.0]
NO_MOTION = np.array([3.0, 14.0, 32.0])
VELOCITY = np.array([2.5, 17.0, 60.0])
NUM_USERS = 6


def write_run(path: Path, algorithm: str, ratio: float, seed: int = 0, **summary: Any) -> Path:
    """A plausible finished run: `ratio` times no motion, user u at (0.5 + 0.2 u) times the mean."""
    path.mkdir(parents=True)
    mean = NO_MOTION * ratio * (1 + 0.01 * seed)
    content = {
        "algorithm": algorithm, "dataset": "jin", "protocol": "unseen_users", "seed": seed, "rounds": 20,
        "num_clients": 12, "num_params": 99, "horizons_s": HORIZONS_S,
        "error_deg": {"mean": mean.tolist(), "median": (mean / 2).tolist(), "p95": (mean * 3).tolist()},
        "baselines": {"no_motion": {"mean": NO_MOTION.tolist()}, "velocity": {"mean": VELOCITY.tolist()}},
        "bytes_up": 2_000_000, "bytes_down": 3_000_000, "hurt_share": None, "adapt_s": 0.0,
    }  # fmt: skip
    config = {"algorithm": algorithm, "name": path.name, "seed": seed, "local": {"lr": ratio}}
    (path / "summary.json").write_text(json.dumps(content | summary), "utf-8")
    (path / "manifest.json").write_text(json.dumps({"config": config}), "utf-8")
    sessions = [(user, video) for user in range(NUM_USERS) for video in range(2)]
    clients = [
        {"session": i, "user": f"u{user}", "video": f"v{video}", "windows": 10 + 20 * video}
        | {
            f"error_deg_{h}": float(m * (0.5 + 0.2 * user))
            for h, m in zip(HORIZONS_S, mean, strict=True)
        }
        for i, (user, video) in enumerate(sessions)
    ]  # fmt: skip
    pl.DataFrame(clients).write_parquet(path / "clients.parquet")
    history = [
        {
            "round": r,
            "horizon_s": h,
            "error_deg": float(m * (1 + 1 / (1 + r))),
            "bytes_up": 10 * r,
            "bytes_down": 5,
        }
        for r in range(0, 21, 5)
        for h, m in zip(HORIZONS_S, mean, strict=True)
    ]
    pl.DataFrame(history).write_parquet(path / "history.parquet")
    return path


def write_extras(path: Path) -> None:
    """Examples and a method compared beside the own one."""
    angle = np.linspace(2.5, 4.0, 15)[None, :] + np.linspace(0, 1, 5)[:, None]
    walk = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=-1).astype(np.float32)
    now_s, session = np.arange(5.0), np.arange(5)
    arrays = {"past": walk[:, :5], "true": walk[:, 5:], "predicted": walk[::-1, 5:], "now_s": now_s}
    np.savez(path / "examples.npz", session=session, **arrays)
    rows = [
        {
            "method": method,
            "horizon_s": h,
            "mean": factor * m,
            "median": m,
            "p95": m,
            "bytes_up": 10,
            "bytes_down": 20,
        }
        | {"hurt_share": 0.25 if method == "local_only" else None}
        for method, factor in (("own", 9.0), ("local_only", 1.1), ("no_motion", 1.0))
        for h, m in reversed(list(zip(HORIZONS_S, NO_MOTION.tolist(), strict=True)))
    ]
    pl.DataFrame(rows).write_parquet(path / "compare.parquet")


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_run(tmp_path_factory.mktemp("run") / "full", "own", 0.9)
    write_extras(path)
    return path


@pytest.fixture(scope="module")
def figures(full_run: Path) -> list[Path]:
    return report.render(full_run)


def test_render_writes_png_and_pdf(full_run: Path, figures: list[Path]):
    stems = {"error_over_horizon", "error_over_training", "users", "world_map"}
    assert {path.name for path in figures} == {f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")}
    for path in figures:
        assert path.parent == full_run / "figures"
        assert path.read_bytes()[:4] in (b"\x89PNG", b"%PDF")
        assert 5_000 < path.stat().st_size < 500_000


def test_render_twice_gives_the_same_bytes(full_run: Path, figures: list[Path]):
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in figures}
    report.render(full_run)
    assert before == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in figures}
    assert b"CreationDate" not in (full_run / "figures" / "users.pdf").read_bytes()


def test_render_without_history_and_examples(tmp_path: Path):
    path = write_run(tmp_path / "bare", "own", 0.9)
    (path / "history.parquet").unlink()
    assert {file.stem for file in report.render(path)} == {"error_over_horizon", "users"}


def texts_outside(figure: Figure) -> list[str]:
    """Labels that the figure's border cuts, and pairs of labels beside the axes that overlap."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    bad = ["key" for key in figure.legends if key.get_window_extent(renderer).x1 > figure.bbox.x1]
    for axes in figure.axes:
        boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]  # without the arrow
        bad += [t.get_text() for t, b in zip(axes.texts, boxes, strict=True) if b.x1 > figure.bbox.x1]
        bad += [
            f"{i} on {j}"
            for i, a in enumerate(boxes)
            for j in range(i)
            if a.padded(-1).overlaps(boxes[j].padded(-1))
        ]
        for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
            box = text.get_window_extent(renderer)
            inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
            bad += [] if inside or not text.get_text() else [text.get_text()]
    return bad


def test_no_label_is_cut_or_covered():
    names = ["global+video+user", "fedavg", "per_video", "local_only", "centralized", "finetune"]
    errors = {name: NO_MOTION * (0.9 + 0.001 * i) for i, name in enumerate(names)}
    errors |= {"no motion": NO_MOTION, "velocity": VELOCITY}
    assert texts_outside(lines.over_horizon(HORIZONS_S, errors)) == []
    by_user = {name: np.outer(1 + np.arange(4.0), error) for name, error in errors.items()}
    assert texts_outside(lines.over_users(HORIZONS_S, by_user)) == []


def test_over_horizon_shows_ratios_and_cuts_extrapolation():
    figure = lines.over_horizon(
        HORIZONS_S, {"own": NO_MOTION / 2, "no motion": NO_MOTION, "velocity": VELOCITY}
    )
    ratio = figure.axes[1]
    np.testing.assert_allclose(ratio.lines[0].get_ydata(), 50.0)
    assert ratio.get_ylim()[1] < 110
    assert any("velocity ↑ 188" in text.get_text() for text in ratio.texts)


def test_over_training_panels_and_units(full_run: Path):
    figure = lines.over_training({"own": report.read(full_run).history})
    assert figure is not None
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "mean error at 1 s (°)",
        "",
        "mean error at 5 s (°)",
        "",
    ]
    assert figure.axes[3].get_xlabel() == "sent up and down so far (B)"
    np.testing.assert_allclose(figure.axes[1].lines[0].get_xdata(), [5, 55, 105, 155, 205])
    assert lines.over_training({"own": pl.DataFrame()}) is None


@pytest.mark.parametrize("wanted", [[0.5, 0.5, 0.5], [0.0, 0.01, 1.0], [0.9, 0.95, 0.2], [0.3], [1.4, -0.2]])
def test_spread_keeps_order_gap_and_bounds(wanted: list[float]):
    out = style.spread(np.array(wanted), gap=0.1)
    assert (np.argsort(out) == np.argsort(wanted, kind="stable")).all()
    assert (np.diff(np.sort(out)) >= 0.1 - 1e-9).all()
    assert out.min() >= -1e-9
    assert out.max() <= 1 + 1e-9


def test_spread_moves_no_more_than_needed():
    np.testing.assert_allclose(style.spread(np.array([0.5, 0.5, 0.9]), 0.1), [0.45, 0.55, 0.9])
    np.testing.assert_allclose(style.spread(np.full(5, 0.5), 0.9), [0, 0.25, 0.5, 0.75, 1])


def test_looks_tell_methods_apart_without_color():
    names = [f"m{i}" for i in range(6)]
    looks = style.looks([*names, "no motion", "velocity"])
    assert len({(str(look.dash), look.marker) for look in looks.values()}) == 8


def test_field_outline_is_a_hundred_degrees_wide():
    outline = world.field_outline(np.array([1.0, 0.0, 0.0], np.float32))
    yaw, elevation = world.on_map(outline)
    on_equator = np.abs(outline[:, 2]) < 0.02
    np.testing.assert_allclose(np.abs(yaw[on_equator]).max(), 50, atol=0.05)
    np.testing.assert_allclose(elevation.max(), 50, atol=0.05)
    np.testing.assert_allclose(outline[0], outline[-1], atol=1e-6)


def test_on_map_cuts_at_the_border():
    yaw = np.radians([170, 176, -172])  # 12 degrees, a third of them before the border
    path = np.stack([np.cos(yaw), np.sin(yaw), 0 * yaw], axis=-1)
    x, y = world.on_map(path)
    np.testing.assert_allclose(x, [170, 176, 180, np.nan, -180, -172])
    assert np.isnan(y).tolist() == [False, False, False, True, False, False]


def test_choose_takes_quantiles_without_repeats():
    error = np.arange(21.0)[::-1]
    assert world.choose(error) == [15, 10, 5, 1]
    assert world.choose(error[:1]) == [0]


def test_run_table(full_run: Path):
    table = report.run_table(report.read(full_run))
    assert table.columns == ("method", "0.2 s", "1 s", "5 s", "up", "down", "hurt")
    assert table.rows == (
        ("own", "2.70", "12.60", "28.80", "2 MB", "3 MB", "–"),
        ("local_only", "3.30", "15.40", "35.20", "10 B", "20 B", "25.0 %"),
        ("no motion", "3.00", "14.00", "32.00", "–", "–", "–"),
        ("velocity", "2.50", "17.00", "60.00", "–", "–", "–"),
    )


def test_table_writers(tmp_path: Path):
    table = tables.Table("T", ("method", "1 s"), (("a|b", "1.0\n±0.1"),), ("note",))
    text = report.write(table, tmp_path / "t.md").read_text("utf-8")
    assert text == "**T**\n\n| method | 1 s |\n| --- | --: |\n| a\\|b | 1.0 ±0.1 |\n\nnote\n"
    assert report.write(table, tmp_path / "t.csv").read_text("utf-8") == "method,1 s\na|b,1.0 ±0.1\n"
    with pytest.raises(UserError, match="md or"):
        report.write(table, tmp_path / "t.txt")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(None, "–"), (0, "0 B"), (999_700, "1000 kB"), (12_345_678, "12.3 MB"), (4.2e9, "4.2 GB")],
)
def test_size(num_bytes: float | None, text: str):
    assert tables.size(num_bytes) == text


def test_errors_by_user_weigh_by_windows(tmp_path: Path):
    run = report.read(write_run(tmp_path / "a", "own", 1.0))
    frame = run.clients.with_columns(
        pl.when(pl.col("video") == "v1").then(4.0).otherwise(1.0).alias("error_deg_1.0")
    )
    frame.write_parquet(run.path / "clients.parquet")
    users, errors = report.read(run.path).errors_by_user()
    assert users == [f"u{i}" for i in range(NUM_USERS)]
    np.testing.assert_allclose(errors[:, 1], (10 * 1 + 30 * 4) / 40)


def test_read_names_what_is_wrong(tmp_path: Path):
    with pytest.raises(UserError, match="no such run folder"):
        report.read(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no run in this folder"):
        report.read(tmp_path)
    path = write_run(tmp_path / "a", "own", 1.0)
    (path / "clients.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read"):
        report.read(path)
    (path / "summary.json").unlink()
    with pytest.raises(UserError, match=r"has not finished .* --resume"):
        report.read(path)


@pytest.mark.parametrize("module", [folder, tables])
def test_examples_in_docstrings(module: ModuleType):
    outcome = doctest.testmod(module)
    assert outcome.attempted
    assert not outcome.failed


def folders(root: Path, **ratio_of: float) -> dict[str, list[report.RunFolder]]:
    return {
        name: [report.read(write_run(root / f"{name}{seed}", name, ratio, seed)) for seed in range(3)]
        for name, ratio in ratio_of.items()
    }


def test_compare_over_seeds(tmp_path: Path):
    out = comparison.compare(folders(tmp_path, fedavg=0.9, other=0.8))
    first, other, no_motion, velocity = out.rows
    # seeds multiply errors by 1, 1.01, 1.02: standard deviation 1 % of the first, t(0.975, 2) = 4.30265
    np.testing.assert_allclose(first.mean.mean, 0.9 * 1.01 * NO_MOTION)
    np.testing.assert_allclose(first.mean.half, 0.9 * 0.01 * NO_MOTION * 4.302653 / np.sqrt(3), rtol=1e-6)
    assert other.difference is not None
    np.testing.assert_allclose(other.difference.mean, -0.1 * 1.01 * NO_MOTION)
    np.testing.assert_allclose(
        other.difference.half, 0.1 * 0.01 * NO_MOTION * 4.302653 / np.sqrt(3), rtol=1e-6
    )
    assert first.hurt is None
    assert other.hurt is not None
    assert (other.hurt["count"], other.hurt["total"]) == (0, NUM_USERS)
    assert (no_motion.method, velocity.method) == ("no motion", "velocity")
    assert no_motion.mean.repeats == 1


def test_compare_counts_hurt_users(tmp_path: Path):
    rows = comparison.compare(folders(tmp_path, other=0.93, fedavg=0.9)).rows
    # mean of 14 and 32 is 23; user u loses 0.03 * 1.01 * 23 * (0.5 + 0.2 u) = 0.35, 0.49, 0.63, ...
    assert rows[0].hurt is not None
    assert rows[0].hurt["count"] == 4
    assert rows[1].hurt is None
    assert rows[1].difference is not None


def test_compare_writes_long_form_and_table(tmp_path: Path):
    out = comparison.compare(folders(tmp_path, fedavg=0.9, other=0.8))
    frame = comparison.to_frame(out)
    assert frame.columns[:8] == [
        "method", "horizon_s", "mean", "median", "p95", "bytes_up", "bytes_down", "hurt_share",
    ]  # fmt: skip
    assert frame.height == 4 * len(HORIZONS_S)
    assert frame.filter(pl.col("method") == "other")["hurt_share"].to_list() == [0.0] * 3
    assert frame.filter(pl.col("method") == "fedavg")["hurt_share"].null_count() == 3
    assert frame["difference"].null_count() == 3 * len(HORIZONS_S)
    rows = comparison.to_table(out).rows
    assert [row[0] for row in rows] == ["fedavg", "other", "  minus fedavg", "no motion", "velocity"]
    assert rows[0][2] == "12.73\n±0.31"
    assert rows[2][3] == "-3.23\n±0.08"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dataset": "wu"}, "dataset jin and wu"),
        ({"protocol": "netllm"}, "protocol"),
        ({"baselines": {"no_motion": {"mean": [3.0, 14.0, 33.0]}}}, "no motion has other errors"),
    ],
)
def test_compare_refuses_other_windows(tmp_path: Path, change: dict[str, Any], reason: str):
    runs = {
        "a": [report.read(write_run(tmp_path / "a", "a", 0.9))],
        "b": [report.read(write_run(tmp_path / "b", "b", 0.9, **change))],
    }
    with pytest.raises(UserError, match=f"not tested on the same windows .*{reason}"):
        comparison.compare(runs)


def test_compare_refuses_a_seed_twice(tmp_path: Path):
    runs = [report.read(write_run(tmp_path / name, "a", 0.9)) for name in ("a", "b")]
    with pytest.raises(UserError, match="both a with seed 0"):
        comparison.compare({"a": runs})


def test_compare_command_on_run_folders(tmp_path: Path):
    paths = [
        write_run(tmp_path / f"{n}{s}", n, r, s) for n, r in (("fedavg", 0.9), ("x", 0.8)) for s in (0, 1)
    ]
    out = tmp_path / "out"
    result = CliRunner().invoke(compare_command.compare, [*map(str, paths), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "minus fedavg" in result.output
    assert {path.name for path in out.iterdir()} == {
        "compare.parquet",
        "compare.md",
        "compare.csv",
        "figures",
    }
    assert (out / "figures" / "error_over_training.pdf").is_file()
    assert pl.read_parquet(out / "compare.parquet")["seeds"].max() == 2


def test_compare_command_runs_configs_for_each_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def fake_run(cases: list[groups.Case], tally: Any) -> dict[Path, str]:
        for config, out in cases:
            asked.append((out.name, config.seed, config.compare))
            if not out.exists():
                write_run(out, config.algorithm, 0.9 if config.algorithm == "fedavg" else 0.8, config.seed)
        return {}

    monkeypatch.setattr(groups, "run", fake_run)
    configs = {"plain": "algorithm: fedavg\n", "other": "algorithm: local_only\ncompare: [fedavg]\n"}
    for name, text in configs.items():
        (tmp_path / f"{name}.yaml").write_text(text, "utf-8")
    arguments = [str(tmp_path / f"{name}.yaml") for name in configs] + [
        "--seeds",
        "3,4",
        "--out",
        str(tmp_path / "o"),
    ]
    for again in (False, True):
        result = CliRunner().invoke(compare_command.compare, arguments)
        assert result.exit_code == 0, result.output
        assert ("finished before" in result.output) == again
    expected = [(f"{name}-seed{seed}", seed, ()) for name in configs for seed in (3, 4)]
    assert asked == expected * 2
    frame = pl.read_parquet(tmp_path / "o" / "compare.parquet")
    assert frame["method"].unique(maintain_order=True).to_list() == [
        "plain",
        "other",
        "no motion",
        "velocity",
    ]
    assert frame.filter(pl.col("method") == "other")["hurt_share"].to_list() == [0.0] * 3


def test_compare_command_prepares_devices_for_all_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fake_run(cases: list[groups.Case], tally: Any) -> dict[Path, str]:
        assert os.environ["XLA_FLAGS"] == "--xla_force_host_platform_device_count=5"
        for config, out in cases:
            write_run(out, config.name, 0.9)
        return {}

    monkeypatch.setattr(groups, "run", fake_run)
    monkeypatch.setattr(fitting, "check", lambda configs: None)  # this process has its devices already
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    for devices in (1, 5):
        (tmp_path / f"on{devices}.yaml").write_text(
            f"rounds: {devices}\nengine: {{devices: {devices}}}\n", "utf-8"
        )
    runs = compare_command.collect([str(tmp_path / f"on{n}.yaml") for n in (1, 5)], None, tmp_path / "out")
    assert list(runs) == ["on1", "on5"]


def test_collect_groups_seeds_of_one_config(tmp_path: Path):
    a0, a1 = (write_run(tmp_path / f"a{s}", "a", 0.9, s) for s in (0, 1))
    b = write_run(tmp_path / "b", "a", 0.7)  # the same recipe with another learning rate
    runs = compare_command.collect([str(a0), str(b), str(a1)], None, tmp_path / "out")
    assert {label: len(folders) for label, folders in runs.items()} == {"a0": 2, "b": 1}


@pytest.mark.parametrize("text", ["", "a", "0,0", "1.5", "0,-1"])
def test_parse_seeds_refuses(text: str):
    with pytest.raises(UserError, match="--seeds"):
        compare_command.parse_seeds(text)


def test_parse_seeds():
    assert compare_command.parse_seeds("0, 2,1") == [0, 2, 1]
    assert compare_command.parse_seeds(None) is None


def test_report_command(full_run: Path, figures: list[Path]):
    result = CliRunner().invoke(report_command.report, [str(full_run)])
    assert result.exit_code == 0, result.output
    assert "local_only" in result.output
    assert "world_map" in result.output


def test_every_method_is_drawn_over_rounds_and_over_users(tmp_path: Path):
    path = write_run(tmp_path / "run", "own", 0.9)
    write_extras(path)
    bare = report.read(path)
    assert list(bare.errors_over_rounds()) == list(bare.errors_over_users()) == ["own"]
    (path / "beside" / "fedavg").mkdir(parents=True)
    bare.history.write_parquet(path / "beside" / "fedavg" / "history.parquet")
    columns = {f"error_deg_{h}": [1.0, 2.0] for h in HORIZONS_S}
    tables_of = [
        pl.DataFrame({"method": [method] * 2, "user": ["u0", "u1"], "windows": [3, 4], **columns})
        for method in ("no_motion", "velocity", "fedavg", "own")
    ]
    pl.concat(tables_of).write_parquet(path / "users.parquet")
    run = report.read(path)
    assert list(run.errors_over_rounds()) == ["own", "fedavg"]
    users = run.errors_over_users()
    assert list(users) == ["own", "fedavg", "no motion", "velocity"]
    np.testing.assert_array_equal(users["no motion"], [[1.0] * 3, [2.0] * 3])
    assert users["own"].shape == (NUM_USERS, 3)


def test_tail_and_cost_tables(tmp_path: Path):
    path = write_run(tmp_path / "run", "own", 0.9)
    assert [table.title[:4] for table in report.of_run(report.read(path))] == ["Mean"]
    row = {"method": "own", "by_client": 20.0, "by_user": 21.0, "worst_decile": 40.0, "mean": 1.0}
    rows = [
        {**row, "method": method, "horizon_s": h, "f1": f1, "iou": f1}
        for method in ("no_motion", "fedavg", "own")
        for h, f1 in ((1.0, 0.5), (5.0, None))
    ]
    pl.DataFrame(rows).write_parquet(path / "compare.parquet")
    summary = json.loads((path / "summary.json").read_text())
    sizes = {name: [1_000, 2_000] for name in ("server_bytes", "headset_bytes", "sent_bytes")}
    depths = {"level": ["global", "video"], "groups": [1, 7], **sizes}
    more = {"depths": depths, "latency_s": [0.001, 0.0025], "clustering_s": 4.0}
    (path / "summary.json").write_text(json.dumps(summary | more))
    tail, cost = report.of_run(report.read(path))[1:]
    assert tail.columns == ("method", "by client", "by user", "worst tenth", "F1 / IoU 1 s")
    assert [one[0] for one in tail.rows] == ["own", "fedavg", "no motion"]
    assert tail.rows[0][1:] == ("20.00", "21.00", "40.00", "0.500 / 0.500")
    assert cost.rows == (
        ("global", "1", "1 kB", "1 kB", "1 kB", "1.000"),
        ("+ video", "7", "2 kB", "2 kB", "2 kB", "2.500"),
    )
    assert "sends 100 kB up and 150 kB down and spends 0.200 s on clustering" in cost.notes[0]
