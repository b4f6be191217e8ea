"""Several processes that run one simulation together: what they agree on, and where their arrays lie.

Every process loads the same data, holds the whole state and calls the same functions in the same order. The
clients of a round and the sessions of an evaluation are dealt to the devices of all processes; whatever else
is computed, each process computes for itself and alike. Process 0 alone has the run folder, and speaks.

With one process, which is the usual case, nothing here does anything but put arrays on the devices of a mesh.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_vp.errors import UserError

Tree = TypeVar("Tree")
Found = TypeVar("Found")


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def require(count: int) -> None:
    """Refuses to go on with another number of processes.

    Raises:
        UserError: JAX was not told of them, or of others.
    """
    if jax.process_count() != count:
        raise UserError(
            f"engine.processes is {count}, but JAX has {jax.process_count()}: start `fedjax-vp run` in each, "
            "or call jax.distributed.initialize first (docs/devices.md)"
        )


def devices(most: int = 0) -> list[jax.Device]:
    """Devices of all processes, of each as many.

    Args:
        most: of each process; 0 takes all.

    Raises:
        UserError: some process has fewer.
    """
    found = [jax.local_devices(process_index=index)[: most or None] for index in range(jax.process_count())]
    fewest = min(map(len, found))
    if fewest < most:
        raise UserError(f"engine.devices is {most}, but JAX has {fewest}: give 0 for all")
    return [device for some in found for device in some[: most or None]]


def own(mesh: Mesh) -> Mesh:
    """A mesh along `clients` of this process alone: of several, the device that `here` copies from."""
    return mesh if jax.process_count() == 1 else Mesh(np.array(mesh.local_devices[:1]), mesh.axis_names)


def everywhere(mesh: Mesh, tree: Tree) -> Tree:
    """Copies of arrays, which all processes have alike, on every device of a mesh."""
    whole = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, whole)
    return jax.tree.map(lambda x: _assemble(whole, jnp.shape(x), x, lambda device, x: x), tree)


def dealt(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """An array that all processes have alike, dealt along its leading axis to the devices of a mesh."""
    sharding = NamedSharding(mesh, PartitionSpec("clients"))
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    part = sharding.addressable_devices_indices_map(array.shape)
    return _assemble(sharding, array.shape, array, lambda device, x: x[part[device]])


def _assemble(
    sharding: NamedSharding,
    shape: tuple[int, ...],
    array: Any,
    part_of: Callable[[jax.Device, Any], Any],
) -> jax.Array:
    mine = sorted(sharding.addressable_devices, key=lambda device: device.id)
    parts = [jax.device_put(part_of(device, array), device) for device in mine]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def here(tree: Tree) -> Tree:
    """This process's own copy of what lies everywhere."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def fetch(tree: Tree) -> Tree:
    """Arrays dealt along their leading axis, whole and on the host of every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def as_first(tree: Tree) -> Tree:
    """The arrays of process 0, in all processes."""
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return jax.tree.map(lambda x: jnp.asarray(multihost_utils.process_allgather(x)[0]), tree)


def any_of(flag: bool) -> bool:
    """Whether the flag is set in some process; all must ask."""
    if jax.process_count() == 1:
        return flag
    return any(_gather(flag))


def from_first(find: Callable[[], Found]) -> Found:
    """What process 0 finds, as JSON can hold it; where it fails, all fail.

    Raises:
        UserError: as `find` does in process 0.
    """
    if jax.process_count() == 1:
        return find()
    found, error = _attempt(find) if is_first() else (None, None)
    return _gather([found, error], fail=True)[0][0]


def together(find: Callable[[], Found], name: str, identity: Callable[[Found], Any]) -> Found:
    """What every process finds for itself, which must be the same.

    Args:
        find: looks for it.
        name: what it is called in a complaint.
        identity: of what was found, as JSON can hold it.

    Raises:
        UserError: as `find` does in some process, or the processes found different things.
    """
    if jax.process_count() == 1:
        return find()
    found, error = _attempt(find)
    digest = "" if error else hashlib.sha256(json.dumps(identity(found)).encode()).hexdigest()
    digests = [one for one, _ in _gather([digest, error], fail=True)]
    for index, other in enumerate(digests):
        if other != digests[0]:
            raise UserError(
                f"process {index} has other {name} than process 0: start all of them with the same"
            )
    return found


def _attempt(find: Callable[[], Any]) -> tuple[Any, str | None]:
    try:
        return find(), None
    except UserError as error:
        return None, str(error)


def _gather(value: Any, fail: bool = False) -> list[Any]:
    """What each process says, in their order; with `fail`, values are pairs of something and an error."""
    from jax.experimental import multihost_utils

    text = json.dumps(value).encode()
    size = int(np.max(multihost_utils.process_allgather(np.int32(len(text)))))
    padded = np.frombuffer(text.ljust(size), np.uint8)
    said = [json.loads(bytes(row)) for row in multihost_utils.process_allgather(padded)]
    for index, one in enumerate(said):
        if fail and one[1] is not None:
            raise UserError(f"process {index}: {one[1]}")
    return said
