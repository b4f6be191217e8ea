"""Strict settings of JAX for the whole suite, two host devices, workers, and the place of the real traces."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compilation is most of what tests take

os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # what a test patches must not be kept

import jax
import pytest

jax.config.update("jax_legacy_prng_key", "error")
jax.config.update("jax_numpy_rank_promotion", "raise")

MOST_WORKERS = 4  # each holds its own JAX


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker for each core where folders are asked for; chosen files and tests run in this process."""
    if any(".py" in argument for argument in config.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with published traces; tests that need them are skipped where it is absent."""
    folder = Path(
        os.environ.get("FEDJAX_VP_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data")
    )
    if not (folder / "original").is_dir():
        pytest.skip(f"the published traces are not at {folder} (set FEDJAX_VP_DATA)")
    return folder
