"""Strict settings of JAX for the whole suite, two host devices, and the place of the real traces."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_legacy_prng_key", "error")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with published traces; tests that need them are skipped where it is absent."""
    folder = Path(
        os.environ.get("FEDJAX_VP_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data")
    )
    if not (folder / "original").is_dir():
        pytest.skip(f"the published traces are not at {folder} (set FEDJAX_VP_DATA)")
    return folder
