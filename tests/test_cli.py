"""The command line: names, overrides, exit status, and one line for every mistake of a user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stand_in
from click.testing import CliRunner, Result

from fedjax_vp import cli, environment, simulate
from fedjax_vp.commands import run as run_command
from fedjax_vp.commands.running import fresh_folder
from fedjax_vp.errors import UserError
from fedjax_vp.report import figures

RENDER = figures.render


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small config, and an engine that answers at once."""
    monkeypatch.setattr(simulate, "simulate", stand_in.simulate)
    monkeypatch.setattr(figures, "render", lambda folder: [])
    monkeypatch.chdir(tmp_path)
    stand_in.write_traces(tmp_path / "traces.csv")
    (tmp_path / "mine.yaml").write_text("dataset: {kind: table, path: traces.csv}\nrounds: 2\n")
    return tmp_path


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli.cli, list(words))


@pytest.mark.contract
def test_help_lists_the_commands_without_loading_them() -> None:
    code = "import sys; from fedjax_vp.cli import cli; cli.main(['--help'])"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert all(name in done.stdout for name in ("run", "compare", "sweep", "report", "data", "list"))
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"jax", "numpy", "polars", "pydantic", "matplotlib", "fedjax_vp.config"}


@pytest.mark.parametrize("command", ["run", "list"])
def test_every_command_has_help_and_debug(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "--debug" in result.stdout


def test_run_writes_a_folder_and_prints_the_table(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "render", RENDER)
    result = invoke("run", "mine.yaml", "--out", "out", "--seed", "3", "--compare", "[fedsgd]")
    assert result.exit_code == 0, result.stderr
    assert (here / "out" / "summary.json").is_file()
    assert list((here / "out" / "figures").glob("*.png"))
    for word in ("fedavg", "fedsgd", "no motion", "velocity", "5 s", "run folder"):
        assert word in result.stdout
    assert "Traceback" not in result.stderr


def test_default_folder_is_named_after_the_config(here: Path) -> None:
    assert invoke("run", "mine.yaml").exit_code == 0
    (folder,) = (here / "runs").iterdir()
    assert folder.name.startswith("mine-")


def test_resuming_a_finished_run_prints_its_table(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("run", "mine.yaml", "--out", "out").exit_code == 0
    monkeypatch.setattr(simulate, "simulate", None)
    result = invoke("run", "--resume", "out")
    assert result.exit_code == 0, result.stderr
    assert "no motion" in result.stdout


def test_interruption_says_how_to_resume(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> Any:
        raise simulate.Interrupted(1, Path("out"))

    monkeypatch.setattr(simulate, "simulate", interrupted)
    result = invoke("run", "mine.yaml", "--out", "out")
    assert result.exit_code == 130
    assert "fedjax-vp run --resume out" in result.stderr
    monkeypatch.setattr(simulate, "simulate", stand_in.simulate)
    assert invoke("run", "--resume", "out").exit_code == 0


MALFORMED = {
    "no such config": (["run", "nosuch.yaml"], r"nosuch.yaml does not exist"),
    "no such name": (["run", "quickstrt"], "did you mean quickstart?"),
    "no such command": (["rnu"], "No such command"),
    "no such algorithm": (["run", "mine.yaml", "--algorithm", "fedagv"], "did you mean fedavg?"),
    "misspelt key": (["run", "mine.yaml", "--local.lrr", "1"], "did you mean local.lr?"),
    "wrong type": (["run", "mine.yaml", "--rounds", "many"], "rounds is 'many'"),
    "out of range": (["run", "mine.yaml", "--set", "rounds=0"], "rounds is 0: give at least 1"),
    "no value": (["run", "mine.yaml", "--local.lr"], "--local.lr lacks its value"),
    "no equals sign": (["run", "mine.yaml", "--set", "rounds"], "write --set KEY=VALUE"),
    "two configs": (["run", "mine.yaml", "quickstart"], "one config, not 2"),
    "not YAML": (["run", "broken.yaml"], "not valid YAML"),
    "not a mapping": (["run", "list.yaml"], "holds a list"),
    "no such table": (["run", "mine.yaml", "--dataset.path", "nosuch.csv"], "nosuch.csv"),
    "no path of a table": (["run", "mine.yaml", "--dataset.path", "''"], "error: "),
    "not a table": (["run", "mine.yaml", "--dataset.path", "broken.yaml"], "broken.yaml"),
    "unwritable folder": (["run", "mine.yaml", "--out", "mine.yaml"], "is a file"),
    "nothing to resume": (["run", "--resume", "nowhere"], "no run in this folder"),
    "horizon beyond the protocol": (
        ["run", "mine.yaml", "--evaluate.horizons_s", "[9]"],
        "evaluate.horizons_s",
    ),
    "a model without weights": (
        ["run", "mine.yaml", "--model.kind", "static"],
        "static has no weights: it stands in every table as a baseline; choose a model that learns: linear, ",
    ),
    "no test windows": (["run", "mine.yaml", "--protocol.start_s", "100"], "error: "),
    "no such list": (["list", "algorthms"], "algorithms"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_input_gives_one_line_and_status_2(case: str, here: Path) -> None:
    (here / "broken.yaml").write_text("rounds: [1\n")
    (here / "list.yaml").write_text("- rounds\n")
    words, expected = MALFORMED[case]
    result = invoke(*words)
    assert result.exit_code == 2, result.stderr
    assert expected in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_debug_shows_the_traceback(here: Path) -> None:
    for words in (("--debug", "run", "nosuch.yaml"), ("run", "nosuch.yaml", "--debug")):
        result = invoke(*words)
        assert result.exit_code == 2
        assert "Traceback" in result.stderr
        assert "UserError" in result.stderr


def test_a_defect_keeps_its_traceback(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(simulate, "simulate", broken)
    result = invoke("run", "mine.yaml", "--out", "out")
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stderr


def test_words_are_a_config_and_overrides() -> None:
    words = (
        "--local.lr",
        "1e-3",
        "jin_fedavg",
        "--levels.video.shrinkage=auto",
        "--a",
        "[1, 2]",
        "--b",
        "-0.5",
    )
    assert run_command.split_words(words) == (
        "jin_fedavg",
        [("local.lr", 1e-3), ("levels.video.shrinkage", "auto"), ("a", [1, 2]), ("b", -0.5)],
    )
    assert run_command.split_pair("adapt.on=train") == ("adapt.on", "train")
    with pytest.raises(UserError, match="lacks its value"):
        run_command.split_words(("--a", "--b", "1"))


def test_later_overrides_win(here: Path) -> None:
    result = invoke("run", "mine.yaml", "--rounds", "5", "--rounds", "3", "--out", "out", "--local.lr=5e-1")
    assert result.exit_code == 0, result.stderr
    text = (here / "out" / "config.yaml").read_text()
    assert "rounds: 3" in text
    assert "lr: 0.5" in text


@pytest.mark.parametrize("what", ["algorithms", "models", "datasets", "configs"])
def test_list_names_and_describes(what: str) -> None:
    result = invoke("list", what)
    assert result.exit_code == 0
    expected = {"algorithms": "fedavg", "models": "gru", "datasets": "jin_mmsys22", "configs": "quickstart"}
    assert expected[what] in result.stdout
    assert all(len(line.split(None, 1)) == 2 for line in result.stdout.splitlines())


def test_models_that_do_not_learn_are_marked() -> None:
    lines = invoke("list", "models").stdout.splitlines()
    assert [line.split()[0] for line in lines if "baseline without weights" in line] == ["static", "velocity"]


def test_folders_of_one_second_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "now")
    first = fresh_folder("a")
    first.mkdir(parents=True)
    assert fresh_folder("a") != first


def test_jax_gets_devices_and_a_private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    environment.prepare_jax()
    assert "xla_force_host_platform_device_count=" in os.environ["XLA_FLAGS"]
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert folder == tmp_path / "fedjax_vp" / "jax"
    assert folder.stat().st_mode & 0o777 == 0o700
    environment.prepare_devices(64)
    assert "device_count=64" in os.environ["XLA_FLAGS"]
    environment.prepare_devices(1)
    assert "device_count=64" in os.environ["XLA_FLAGS"]


def test_what_the_user_set_for_jax_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--xla_force_host_platform_device_count=3"]
    monkeypatch.setenv("XLA_FLAGS", " ".join(given))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(environment, "_has_avx512", lambda: False)
    environment.prepare_jax()
    assert os.environ["XLA_FLAGS"].split() == given
    monkeypatch.setattr(environment, "_has_avx512", lambda: True)
    environment.prepare_jax()
    assert os.environ["XLA_FLAGS"].split() == [*given, "--xla_cpu_prefer_vector_width=512"]
    given.append("--xla_cpu_prefer_vector_width=256")
    monkeypatch.setenv("XLA_FLAGS", " ".join(given))
    environment.prepare_jax()
    assert os.environ["XLA_FLAGS"].split() == given
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)


@pytest.mark.parametrize(
    ("where", "begun"),
    [("fedjax_vp.fitting.load_traces", False), ("fedjax_vp.report.figures.render", True)],
)
def test_ctrl_c_at_any_time_is_one_line(
    where: str,
    begun: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the first round, and while figures are drawn; between them the engine answers."""

    def interrupt(*words: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulate, "simulate", stand_in.simulate)
    table = stand_in.write_traces(tmp_path / "traces.csv")
    (tmp_path / "c.yaml").write_text(f"dataset: {{kind: table, path: {table}}}\nrounds: 2\n")
    folder = str(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(where, interrupt)
        with pytest.raises(SystemExit) as stopped:
            cli.cli.main(["run", str(tmp_path / "c.yaml"), "--out", folder, "--quiet"])
    assert stopped.value.code == 130
    said = capsys.readouterr().err
    again = ["--resume", folder] if begun else [str(tmp_path / "c.yaml"), "--out", folder]
    told = f"continue with `fedjax-vp run --resume {folder}`" if begun else "give the same command again"
    assert said.startswith("interrupted")
    assert told in said
    assert len(said.splitlines()) == 1
    with pytest.raises(SystemExit) as done:
        cli.cli.main(["run", *again, "--quiet"])
    assert done.value.code == 0
    assert (tmp_path / "run" / "figures" / "users.png").is_file()
    assert "Cost of fedavg by depth" in capsys.readouterr().out
