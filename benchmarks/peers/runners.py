"""Processes that run rounds on request, and the environments they run in."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
PATIENCE_S = 600.0  # an answer that takes longer does not come


class Peer(NamedTuple):
    """Which environment a peer needs, the ways it can run, and the clients up to which it is measured."""

    requirements: str
    modes: tuple[str, ...]
    most: int


PEERS = {
    "torch_vmap": Peer("torch", ("threads", "processes"), 1024),
    "fedjax": Peer("fedjax", ("jit", "pmap"), 1024),
    "flower": Peer("flower", ("threads", "ray"), 256),
    "pfl": Peer("pfl", ("threads", "processes"), 256),
    "torch_loop": Peer("torch", ("threads", "processes"), 256),
}


class Skipped(Exception):
    """A peer cannot take part; the text says why."""


class Runner:
    """A process that runs rounds on request."""

    def __init__(self, command: list[str], log: Path, mode: str = "") -> None:
        self.log, self.mode = log, mode
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=HERE
            )
        try:
            self.versions = self.answer()["versions"]
        except Skipped:
            self.close()
            raise

    def answer(self) -> dict[str, Any]:
        """The next line of the process."""
        alarm = threading.Timer(PATIENCE_S, self.process.kill)
        alarm.start()
        line = self.process.stdout.readline()
        alarm.cancel()
        if not line:
            lines = self.log.read_text().strip().splitlines() or ["it ended without a word"]
            raise Skipped(next((line for line in reversed(lines) if "Error" in line), lines[-1]))
        return json.loads(line)

    def ask(self, word: str) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        with contextlib.suppress(BrokenPipeError):
            print(word, file=self.process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.stdout.close()


def start_ours(workload: str, clients: int, folder: Path) -> Runner:
    """Writes the work of a cell, then starts our runner."""
    for script in ("work.py", "ours.py"):
        command = [sys.executable, str(HERE / script), workload, str(folder), str(clients)]
        if script == "ours.py":
            return Runner(command, folder / "ours.log")
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
        if done.returncode:
            raise Skipped(done.stderr.strip().splitlines()[-1])
    raise AssertionError


def start_peer(name: str, workload: str, folder: Path, modes: tuple[str, ...]) -> Runner:
    """A peer in the fastest of its modes, by a round of a few clients.

    Raises:
        Skipped: it does not install, or runs in no mode.
    """
    interpreter = environment(PEERS[name].requirements)
    best, least, reason = None, float("inf"), Skipped("it has no mode")
    for mode in modes:
        command = [str(interpreter), str(HERE / f"{name}_peer.py"), workload, str(folder), mode]
        try:
            runner = Runner(command, folder / f"{name}-{mode}.log", mode)
            seconds = trial(runner)
        except Skipped as error:
            reason = error
            continue
        if seconds < least:
            runner, best, least = best, runner, seconds
        if runner:
            runner.close()
    if best is None:
        raise reason
    return best


def trial(runner: Runner) -> float:
    """Seconds of a round of a few clients."""
    try:
        runner.ask("trial")  # compiles, allocates
        return runner.ask("trial")["seconds"]
    except Skipped:
        runner.close()
        raise


def interpreter_of(version: str) -> str:
    """A Python of this version: the running one, one on the path, or one of pyenv's.

    Raises:
        Skipped: there is none.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [sys.executable, shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    question = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, found):
        asked = subprocess.run([str(candidate), "-c", question], capture_output=True, text=True)
        if asked.stdout.strip() == version:
            return str(candidate)
    raise Skipped(f"needs Python {version}: put python{version} on the path")


def environment(requirements: str) -> Path:
    """Interpreter of an environment of the user's cache, made if it is not there.

    The first line of `requirements/<name>.txt` tells the version of Python that its packages install on.

    Raises:
        Skipped: it cannot be made.
    """
    path = HERE / "requirements" / f"{requirements}.txt"
    wanted = path.read_text()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedjax_vp" / "peers"
    folder = base / f"{requirements}-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"
    interpreter, done = folder / "bin" / "python", folder / "installed"
    if done.exists():
        return interpreter
    version = re.match(r"# python (\S+)", wanted)
    python = interpreter_of(version[1]) if version else sys.executable
    print(f"making the environment of {requirements} in {folder} ...", file=sys.stderr)
    for command in (
        [python, "-m", "venv", "--clear", str(folder)],
        [str(interpreter), "-m", "pip", "install", "--quiet", "-r", str(path)],
    ):
        try:
            result = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise Skipped(f"does not install: {error}") from error
        if result.returncode:
            lines = result.stderr.strip().splitlines() or ["?"]
            raise Skipped(
                f"does not install: {next((x for x in reversed(lines) if x.startswith('ERROR')), lines[-1])}"
            )
    done.touch()
    return interpreter


def peak_mb(pid: int) -> float | None:
    """Sum of the peak resident memory of a process and all below it; None where /proc does not tell."""
    try:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    own = float(status.get("VmHWM", "0 kB").split()[0]) / 1024
    return own + sum(peak_mb(int(child)) or 0.0 for child in children)
