"""Groups of points over the machines of a Ray cluster that is running already.

Every task is a part of a group; it writes its points' folders itself, so the sweep's folder must be on a file
system that all machines share. Ray and its workers come by the extra `ray`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedjax_vp.errors import UserError
from fedjax_vp.progress import Tally
from fedjax_vp.sweeps.groups import Case, group, run

Job = list[tuple[dict[str, Any], str]]  # resolved configs and folders


def run_on_ray(cases: Sequence[Case], tally: Tally) -> dict[Path, str]:
    """Runs cases as Ray tasks; otherwise as `groups.run`.

    The cluster is the one this process has joined, that RAY_ADDRESS names, or that runs on this machine.

    Raises:
        UserError: Ray is not installed, or no cluster answers.
    """
    ray = _join()
    cpus = max(case.config.engine.devices or 1 for case in cases)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    slots = max(1, int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1)) // (gpus or cpus))
    # Host devices must be set before JAX starts in the worker.
    env = {"env_vars": {"XLA_FLAGS": f"--xla_force_host_platform_device_count={cpus}"}}
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, runtime_env=env)(_work)
    parts = {task.remote(_pack(part)): part for part in divide(group(cases), slots)}
    failed: dict[Path, str] = {}
    try:
        while parts:
            [ready], _ = ray.wait(list(parts), num_returns=1)
            part = parts.pop(ready)
            try:
                found = {part[place].folder: reason for place, reason in ray.get(ready).items()}
            except ray.exceptions.RayError as error:  # a defect, or a machine that was lost again and again
                reason = f"Ray: {str(error).strip().splitlines()[-1]}"
                found = {case.folder: reason for case in part}
            for case in part:
                tally.end(case.folder, found.get(case.folder, ""))
            failed |= found
    finally:
        for ref in parts:
            ray.cancel(ref)
    return failed


def divide(groups: Sequence[Sequence[Case]], slots: int) -> list[list[Case]]:
    """Groups in parts small enough that every slot of the cluster has work."""
    size = -(-sum(map(len, groups)) // slots)
    return [list(one[i : i + size]) for one in groups for i in range(0, len(one), size)]


def _join() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "--cluster ray needs Ray: install it with pip install 'fedjax-vp[ray]', here and on the cluster"
        ) from error
    if not ray.is_initialized():
        try:
            ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                "--cluster ray: no Ray cluster answers; start one with `ray start --head`, or set RAY_ADDRESS"
            ) from error
    return ray


def _pack(cases: Sequence[Case]) -> Job:
    return [(case.config.to_mapping(), str(case.folder.absolute())) for case in cases]


def _work(job: Job) -> dict[int, str]:
    """Runs in a worker; returns why points failed, by their place in the job."""
    from fedjax_vp.config import load_config
    from fedjax_vp.environment import prepare_jax

    prepare_jax()
    cases = [Case(load_config(mapping), Path(folder)) for mapping, folder in job]
    tally = Tally("", {case.folder: case.config.rounds for case in cases}, enabled=False)
    failed = run(cases, tally)
    return {place: failed[case.folder] for place, case in enumerate(cases) if case.folder in failed}
