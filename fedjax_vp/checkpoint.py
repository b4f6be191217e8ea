"""Checkpoints of a run by Orbax: the state's arrays and the log of rounds, written together at chunk ends.

Arrays are saved from the host of process 0, so that a run may be resumed on another number of devices and of
processes. Orbax writes beside and renames; a checkpoint that a kill left half written is passed over, and the
one before it is taken.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_vp.errors import UserError

Tree = TypeVar("Tree")
KEEP = 2
FORMAT = 2  # raised when a run would go on from a state otherwise: with other draws, or other sketches


class Checkpoints:
    """The checkpoints of one run folder; without a folder nothing is kept.

    Args:
        folder: where they lie; made on first use.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._manager = None
        self._damaged: set[int] = set()  # steps that could not be read: written anew when they are reached
        if folder is not None:
            import orbax.checkpoint as ocp  # slow to import

            logging.getLogger("absl").setLevel(logging.ERROR)
            folder.mkdir(parents=True, exist_ok=True)
            # Among several processes the first one writes alone, and waits for no other.
            writers = {0} if jax.process_count() > 1 else None
            options = ocp.CheckpointManagerOptions(
                max_to_keep=KEEP,
                enable_async_checkpointing=False,
                create=False,
                multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes=writers),
            )
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, round_index: int, state: Any, log: dict[str, Any]) -> None:
        """Writes a checkpoint after `round_index` rounds; a second one of the same round is not written."""
        if self._manager is None or round_index in self._whole():
            return
        if round_index in self._damaged:
            self._manager.delete(round_index)
            self._damaged.remove(round_index)
        import orbax.checkpoint as ocp

        kept = {"format": np.asarray(FORMAT), **_leaves(state)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(kept), log=ocp.args.JsonSave(log))
        self._manager.save(round_index, args=args)
        self._manager.wait_until_finished()

    def latest(self, template: Tree) -> tuple[Tree, dict[str, Any]] | None:
        """State and log of the newest whole checkpoint, None where there is none.

        Args:
            template: a state of the same structure, shapes and dtypes.

        Raises:
            UserError: checkpoints exist, but were written by a run of other shapes, or by another version.
        """
        if self._manager is None:
            return None
        import orbax.checkpoint as ocp

        steps = sorted(self._manager.all_steps(), reverse=True)
        wanted = _leaves(template)
        for step in steps:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(), log=ocp.args.JsonRestore())
            try:
                found = self._manager.restore(step, args=args)
            except (OSError, ValueError, KeyError):  # half written, or damaged since: take the one before
                self._damaged.add(step)
                continue
            kept = {n: (x.shape, x.dtype) for n, x in found["state"].items() if n != "format"}
            same = kept == {n: (x.shape, x.dtype) for n, x in wanted.items()}
            if not same or found["state"].get("format") != FORMAT:
                raise UserError(
                    f"{self.folder}: the checkpoint of round {step} is of another model, method or version; "
                    "resume with the config and version that wrote it, or start in a new folder"
                )
            leaves = [jnp.asarray(found["state"][name]) for name in wanted]
            return jax.tree.unflatten(jax.tree.structure(template), leaves), found["log"]
        return None

    def last_round(self) -> int | None:
        """Round of the newest checkpoint that is not known to be damaged."""
        return max(self._whole(), default=None)

    def _whole(self) -> set[int]:
        return set() if self._manager is None else set(self._manager.all_steps()) - self._damaged

    def close(self) -> None:
        """Ends the manager's threads."""
        if self._manager is not None:
            self._manager.close()


def _leaves(state: Any) -> dict[str, np.ndarray]:
    return {f"leaf_{i:04d}": np.asarray(x) for i, x in enumerate(jax.device_get(jax.tree.leaves(state)))}
