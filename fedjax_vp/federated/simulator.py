"""A method fitted to a federation: groups, ownership, device mesh and block size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_vp import processes
from fedjax_vp.errors import UserError
from fedjax_vp.federated import hierarchy, participation
from fedjax_vp.federated.federation import Federation
from fedjax_vp.federated.grouping import from_data
from fedjax_vp.federated.hierarchy import Layout
from fedjax_vp.federated.local import Task
from fedjax_vp.federated.precision import products
from fedjax_vp.federated.settings import Engine, Method
from fedjax_vp.models.base import Predictor

ACCELERATOR_BLOCK = 256  # clients side by side: small models fill an accelerator only together
_MOST_GENERATED = 1024  # sessions of one client


class Simulator(NamedTuple):
    """Static parts of a run."""

    task: Task
    method: Method
    groupings: list[hierarchy.Grouping]
    mesh: Mesh
    block: int
    experts: tuple[Simulator, ...] = ()  # of the methods that are trained and mixed with this one

    @property
    def layout(self) -> Layout:
        """Static facts of the hierarchy."""
        return self.task.layout

    @property
    def federation(self) -> Federation:
        """The federation."""
        return self.task.federation

    def on(self, mesh: Mesh) -> Simulator:
        """The same on other devices."""
        return self._replace(mesh=mesh, experts=tuple(one.on(mesh) for one in self.experts))


@products("float32")
def simulator(
    federation: Federation,
    predictor: Predictor,
    method: Method,
    engine: Engine,
    experts: Sequence[Predictor] = (),
) -> Simulator:
    """Fits a method to a federation: groups, ownership, device mesh and block size.

    Args:
        federation: Clients and their windows.
        predictor: Of the method.
        method: Levels and slots.
        engine: Layout of the computation.
        experts: Predictors of the method's experts.

    Raises:
        UserError: A client's traces would be too many to be generated at once, or a label is missing.
    """
    leaves = sorted(jax.eval_shape(predictor.init, jax.random.key(0)))
    groupings = hierarchy.groupings_of(
        federation.labels,
        method.levels,
        lambda settings, within, unit: from_data.find(settings, federation, within, unit),
    )
    layout = hierarchy.layout(method, groupings, leaves, client_of(federation))
    task = Task(federation, layout, predictor, method.local, method.pooling, engine.precision)
    if federation.arrays.make is not None and federation.max_sessions > _MOST_GENERATED:
        raise UserError(
            f"client: {method.client} has a client of {federation.max_sessions} sessions, whose traces would "
            "be generated at once: give dataset.stored: true, or client: session"
        )
    processes.require(engine.processes)
    devices = processes.devices(engine.devices)
    size = participation.cohort_size(method.participation, federation.num_clients)
    share = -(-size // len(devices))  # clients of a device
    most = engine.client_block or (1 if devices[0].platform == "cpu" else ACCELERATOR_BLOCK)
    block = -(-share // -(-share // most))  # blocks of one size, with the least padding
    if not len(experts) == len(method.experts) == len(method.mixing.experts):
        raise ValueError("a method, its mixing.experts and their predictors must be equally many")
    others = zip(experts, method.experts, strict=True)
    return Simulator(
        task,
        method,
        groupings,
        Mesh(np.array(devices), ("clients",)),
        block,
        tuple(simulator(federation, one, their, engine) for one, their in others),
    )


def client_of(federation: Federation) -> np.ndarray:
    """Client of each session, -1 where it has no training windows: int [session]."""
    bags = federation.arrays.bags
    owner = np.full(federation.num_sessions, -1)
    owner[np.asarray(bags.session)] = np.repeat(
        np.arange(federation.num_clients), np.diff(np.asarray(bags.first))
    )
    return owner
