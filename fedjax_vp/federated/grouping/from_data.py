"""Groups found once, before training, from what the headsets know: their windows or their trajectories.

PACFL needs a few numbers of each client's windows; the trajectory clusterings see everything and are oracles
to compare with. Only samples of training windows are looked at, so that nothing leaks from valid or test,
but where an oracle is told to `peek`. A unit that does not train joins, under PACFL, the members whose
subspaces are nearest to that of its first windows (`adapt`); otherwise it is of no known group.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from fedjax_vp.errors import UserError
from fedjax_vp.federated.federation import Federation, Windows, gather
from fedjax_vp.federated.grouping import pacfl, trajectories
from fedjax_vp.federated.grouping.settings import PACFL, Trajectories

MOST_WINDOWS = 256  # of a unit, spread over all: its subspace needs no more


def find(
    settings: PACFL | Trajectories, federation: Federation, within: np.ndarray, unit: np.ndarray
) -> tuple[np.ndarray, int]:
    """Groups the units of each parent group.

    Args:
        settings: how.
        federation: with stored traces.
        within: parent group of each session, int [session], -1 where unknown.
        unit: unit of each session, int [session], -1 where unknown.

    Returns:
        Group codes, int32 [session], -1 where unknown, and the number of groups.

    Raises:
        UserError: traces are not stored.
    """
    if federation.arrays.make is not None:
        raise UserError(f"grouping {settings.kind} reads traces: give dataset.stored: true")
    arrays = federation.arrays
    trains = np.asarray(arrays.train.count) > 0
    early = (np.asarray(arrays.adapt.count) > 0) & ~np.isin(unit, unit[trains])
    if isinstance(settings, Trajectories) and settings.peek:
        trains = np.ones_like(trains)
    code, groups = np.full(len(unit), -1, np.int32), 0
    for parent in np.unique(within[trains & (within >= 0)]):
        inside = (within == parent) & (unit >= 0)
        sessions, of = _units(unit, trains & inside)
        if isinstance(settings, PACFL):
            bases = _subspaces(settings, federation, arrays.train, sessions)
            found = pacfl.fit(bases, settings.threshold, min(settings.groups, len(bases)), settings.angle)
            late, of_late = _units(unit, early & inside)
            if late:
                theirs = _subspaces(settings, federation, arrays.adapt, late)
                joined = pacfl.newcomers(theirs, bases, found, angle=settings.angle)
                code[early & inside] = groups + joined[of_late]
        else:
            found = _paths(settings, federation, sessions)
        code[trains & inside] = groups + found[of]
        groups += int(found.max(initial=-1)) + 1
    return code, groups


def _units(unit: np.ndarray, mask: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Sessions of each unit that has one in the mask, and which of these units each such session is of."""
    here = np.flatnonzero(mask)
    units, of = np.unique(unit[here], return_inverse=True)
    return [here[of == one] for one in range(len(units))], of


def _subspaces(
    settings: PACFL, federation: Federation, phase: Windows, sessions: list[np.ndarray]
) -> np.ndarray:
    """Bases of the units' windows of a phase, each taken relative to its last observed direction."""
    matrices = []
    for some in sessions:
        count = np.asarray(phase.count)[some]
        each = max(1, MOST_WINDOWS // len(some))
        picked = [np.linspace(0, n - 1, min(n, each)).astype(int) for n in count]
        owner = np.repeat(some, [len(one) for one in picked])
        now = phase.at(jnp.asarray(owner), jnp.asarray(np.concatenate(picked)))
        inputs, target = gather(federation.arrays, federation.shape, jnp.asarray(owner, jnp.int32), now)
        path = np.concatenate([inputs.past[:, :-1], target], axis=1) - np.asarray(inputs.past[:, -1:])
        matrices.append(path.reshape(len(owner), -1))
    return pacfl.subspaces(matrices, settings.rank)


def _paths(settings: Trajectories, federation: Federation, sessions: list[np.ndarray]) -> np.ndarray:
    """Clusters of viewers by where they looked when; sessions of a unit must be of one video each."""
    if any(len(some) > 1 for some in sessions):
        raise UserError(
            f"grouping {settings.kind} compares sessions of one video: give by: video, grouping.of: session"
        )
    order = np.concatenate(sessions) if sessions else np.zeros(0, int)
    direction = np.asarray(federation.arrays.direction)[order]
    known = np.zeros(direction.shape[:2], bool)
    shape, arrays = federation.shape, federation.arrays
    phases = (arrays.train, arrays.valid, arrays.test) if settings.peek else (arrays.train,)
    for phase in phases:
        now, count = np.asarray(phase.of(jnp.asarray(order))), np.asarray(phase.count)[order]
        for viewer, own in enumerate(count):
            for k in now[viewer, :own]:
                known[viewer, k - shape.history + 1 : k + shape.horizon + 1] = True
    if settings.kind == "spectral":
        return trajectories.spectral(direction, known, settings.groups)
    return trajectories.cliques(direction, known)
