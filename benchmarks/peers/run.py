"""Peers on the same work as ours, in interleaved passes, with paired ratios.

    python benchmarks/peers/run.py --workload vp-mlp --clients 64

Every peer has its own environment, made on first use from `requirements/<peer>.txt` in the user's cache; one
that does not install or run is skipped with the reason. All start from equal weights and see equal batches in
equal order: the global loss after the first round must agree to 1e-4. A pass is one round of each in turn;
the ratio of a pair is taken within a pass, and its median is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PEERS = tuple(sorted(path.stem for path in (HERE / "requirements").glob("*.txt")))
TOLERANCE = 1e-4


class Skipped(Exception):
    """A peer cannot take part; the text says why."""


class Runner:
    """A process that runs rounds on request."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name, self.log = name, log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=HERE
            )
        self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line of the process."""
        line = self.process.stdout.readline()
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
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def environment(peer: str, python: str) -> Path:
    """Interpreter of a peer's environment, made if it is not there.

    Raises:
        Skipped: it cannot be made.
    """
    wanted = (HERE / "requirements" / f"{peer}.txt").read_text()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedjax_vp" / "peers"
    folder = base / f"{peer}-{hashlib.sha256((wanted + python).encode()).hexdigest()[:8]}"
    interpreter, done = folder / "bin" / "python", folder / "installed"
    if done.exists():
        return interpreter
    print(f"{peer}: making its environment ...", file=sys.stderr)
    requirements = str(HERE / "requirements" / f"{peer}.txt")
    steps = [
        [python, "-m", "venv", str(folder)],
        [str(interpreter), "-m", "pip", "install", "--quiet", "-r", requirements],
    ]
    for command in steps:
        try:
            result = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise Skipped(f"does not install: {error}") from error
        if result.returncode:
            raise Skipped(f"does not install: {(result.stderr.strip().splitlines() or ['?'])[-1]}")
    done.touch()
    return interpreter


def start(peers: list[str], workload: str, clients: int, python: str, folder: Path) -> list[Runner]:
    """Ours first, which writes the work, then every peer that can run."""
    data = str(folder / "work.npz")
    command = [sys.executable, str(HERE / "ours.py"), workload, data, str(clients)]
    try:
        runners = [Runner("ours", command, folder / "ours.log")]
    except Skipped:
        sys.exit((folder / "ours.log").read_text())
    for peer in peers:
        try:
            interpreter = str(environment(peer, python))
            command = [interpreter, str(HERE / f"{peer}_peer.py"), workload, data]
            runners.append(Runner(peer, command, folder / f"{peer}.log"))
        except Skipped as reason:
            print(f"{peer}: skipped: {reason}", file=sys.stderr)
    return runners


def compare(runners: list[Runner], passes: int) -> dict[str, dict[str, Any]]:
    """Seconds of each pass and the loss after the first round, by runner."""
    rows: dict[str, dict[str, Any]] = {}
    for runner in list(runners):
        try:
            runner.ask("round")  # compiles
            rows[runner.name] = {"loss": runner.ask("loss")["loss"], "seconds": []}
        except Skipped as reason:
            print(f"{runner.name}: skipped: {reason}", file=sys.stderr)
            runners.remove(runner)
    for _ in range(passes):
        for runner in runners:
            runner.ask("reset")
            rows[runner.name]["seconds"].append(runner.ask("round")["seconds"])
    for row in rows.values():
        pairs = zip(row["seconds"], rows["ours"]["seconds"], strict=True)
        row["times_ours"] = statistics.median(theirs / ours for theirs, ours in pairs)
        row["same_loss"] = abs(row["loss"] - rows["ours"]["loss"]) < TOLERANCE
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", choices=("vp-gru", "vp-mlp"), default="vp-mlp")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--python", default=sys.executable, help="interpreter the environments are made of")
    parser.add_argument("--out", type=Path, help="adds the result to this list of results (JSON)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runners = start(options.peers, options.workload, options.clients, options.python, Path(folder))
        try:
            rows = compare(runners, options.passes)
        finally:
            for runner in runners:
                runner.close()
    for name, row in rows.items():
        steps = 8 * options.clients / statistics.median(row["seconds"])
        verdict = "" if row["same_loss"] else "  ANOTHER LOSS: not the same work"
        print(
            f"{name:14s} {statistics.median(row['seconds']):8.3f} s a round {steps:8.0f} client-steps/s "
            f"{row['times_ours']:6.2f} x ours, loss {row['loss']:.6f}{verdict}"
        )
    if options.out:
        rest = json.loads(options.out.read_text()) if options.out.exists() else []
        rest.append({"workload": options.workload, "clients": options.clients, "runners": rows})
        options.out.write_text(json.dumps(rest, indent=1) + "\n")


if __name__ == "__main__":
    main()
