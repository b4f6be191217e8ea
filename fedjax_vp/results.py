"""The run folder: what a run leaves behind, written so that equal runs leave equal bytes.

    manifest.json    resolved config, versions, device, commit, fingerprint of the traces
    config.yaml      the resolved config with its paths; what a resumed run is made from
    summary.json     the config's own method; written last, so that its presence means "finished"
    history.parquet  long form: round, horizon_s, error_deg, loss, bytes_up, bytes_down
    clients.parquet  session, user, video, windows, error_deg_<horizon>
    users.parquet    method, user, sessions, windows, error_deg_<horizon>; baselines included
    compare.parquet  long form: method, horizon_s, mean, median, p95, bytes_up, bytes_down, hurt_share,
                     by_client, by_user, worst_decile, precision, recall, f1, iou
    groups.parquet   learned groups by level and round, where there are any
    examples.npz     some windows with their predictions
    checkpoints/, starts/ (those of each of several starts), figures/
    beside/<method>/ with a history.parquet of its own

Every file is written beside its place and renamed into it: a killed run leaves no half-written one. JSON has
sorted keys, rounded numbers, no paths, and times only under keys that end in ``_s``.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl

from fedjax_vp.config import Config
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.errors import UserError
from fedjax_vp.settings_text import read, write

MANIFEST, CONFIG, SUMMARY = "manifest.json", "config.yaml", "summary.json"
_VERSIONS = ("fedjax-vp", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "polars")
_DIGITS = 6


def open_folder(out: Path, config: Config, resume: bool) -> Path:
    """Makes the run folder, or checks that the one to resume belongs to this config.

    Args:
        out: The folder itself.
        config: Settings of the run.
        resume: Whether a run that the folder holds is to be continued.

    Raises:
        UserError: The folder cannot be written, holds another run, or holds this one without `resume`.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a folder for the run")
    if (out / CONFIG).is_file() and not resume:
        raise UserError(
            f"{out} already holds a run: continue it with --resume {out}, or choose another --out"
        )
    if (out / CONFIG).is_file():
        require_same(out, config)
        return out
    try:
        for name, other in config.beside.items():
            _replace(beside(out, name) / CONFIG, write(other.to_mapping()).encode())
        _replace(out / CONFIG, write(config.to_mapping()).encode())
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): give a writable folder") from error
    return out


def require_same(out: Path, config: Config) -> None:
    """Raises UserError where the folder holds a run with other settings."""
    if not (out / CONFIG).is_file():
        return
    before, now = (dict(_leaves(one)) for one in (read(out / CONFIG), config.to_mapping()))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    changed = [key for key in changed if not key.startswith("engine.")]  # lays out, decides nothing
    if changed:
        key = changed[0]
        was, asked_for = (f"{key} = {one[key]!r}" if key in one else f"no {key}" for one in (before, now))
        raise UserError(
            f"{out} was run with {was}, not with {asked_for}: resume it with its own settings and version, "
            "or start a new run"
        )


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [leaf for key, below in value.items() for leaf in _leaves(below, f"{path}.{key}".lstrip("."))]
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return [leaf for i, below in enumerate(value) for leaf in _leaves(below, f"{path}.{i}")]
    return [(path, value)]


def beside(folder: Path, name: str) -> Path:
    """Where a compared method keeps its config and its checkpoints."""
    return folder / "beside" / name


def kept_config(folder: Path) -> Path | None:
    """The config file of the run in a folder, if there is one."""
    path = folder / CONFIG
    return path if path.is_file() else None


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a run that ended."""
    return (folder / SUMMARY).is_file()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON that is the same, byte for byte, for the same content."""
    text = json.dumps(_rounded(content), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    _replace(path, f"{text}\n".encode())


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a run folder.

    Raises:
        UserError: It is absent or damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): run it again") from error


def write_table(path: Path, table: pl.DataFrame) -> None:
    """Writes a table as Parquet."""
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    _replace(path, buffer.getvalue())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as npz."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    _replace(path, buffer.getvalue())


def manifest(config: Config, compared: Mapping[str, Config], traces: TraceSet) -> dict[str, Any]:
    """What the run was made with: settings, software, hardware, data; free of paths and of times."""
    devices = jax.devices()
    return {
        "config": _without_paths(config.to_mapping()),
        "compare": {name: _without_paths(other.to_mapping()) for name, other in compared.items()},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONS}},
        "device": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "git": _commit(),
        "traces": {
            "name": traces.name,
            "users": traces.num_users,
            "videos": traces.num_videos,
            "sessions": traces.num_traces,
            "rate_hz": traces.rate_hz,
            "counts": dict(traces.counts),
            "sha256": fingerprint(traces),
        },
    }


def require_same_traces(out: Path, traces: TraceSet) -> None:
    """Refuses to go on with other data than a run began with.

    Raises:
        UserError: The traces are not those of the run's manifest, or it is damaged.
    """
    if read_json(out / MANIFEST).get("traces", {}).get("sha256") != fingerprint(traces):
        raise UserError(
            f"{out}: the traces of {traces.name} have changed since this run began: "
            "resume it with the data it began with, or start a new run"
        )


def fingerprint(traces: TraceSet) -> str:
    """SHA-256 of the traces' samples and of who watched what."""
    digest = hashlib.sha256()
    for array in (traces.direction, traces.length, traces.t0, traces.user, traces.video):
        digest.update(np.ascontiguousarray(array).data)
    if traces.source is not None:  # nothing is stored: some of what it makes stands for all
        make, key, ids = traces.source
        some = jax.jit(jax.vmap(make, in_axes=(None, 0)))(key, ids[:: -(-len(ids) // 4)])
        digest.update(np.asarray(some).data)
    digest.update("\n".join((*traces.user_ids, *traces.video_ids)).encode())
    return digest.hexdigest()


def _without_paths(mapping: dict[str, Any]) -> dict[str, Any]:
    dataset = mapping["dataset"]
    places = {key: Path(dataset[key]).name for key in ("path", "root") if dataset.get(key)}
    return {**mapping, "dataset": {**dataset, **places}}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> dict[str, Any] | None:
    """Commit of the checkout this package runs from; None for an installed one."""
    top = Path(__file__).resolve().parents[1]
    if not (top / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(top), *command], capture_output=True, text=True, check=True, timeout=20
            )
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "fedjax_vp"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "modified": bool(changes.stdout.strip())}


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_rounded(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return round(value, _DIGITS) + 0.0 if math.isfinite(value) else None
    return value


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
