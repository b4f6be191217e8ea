"""From what is known of the units of one parent group to their groups: the clustering that settings name."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from fedjax_vp.federated.grouping import fedgroup, hierarchical, kmeans
from fedjax_vp.federated.grouping.settings import ByUpdates, FedGroup, Hierarchical, KMeans
from fedjax_vp.federated.grouping.similarity import cosine, silhouette, within_between

MOST_PAIRS = 2048  # units whose similarity is looked at
MOST_FITTED = 8192  # units that groups are found among; more join the nearest of the groups found


class Evidence(NamedTuple):
    """Units of one parent group that have reported."""

    update: np.ndarray  # float32 [unit, q] sketches
    weight: np.ndarray  # float32 [unit]
    group: np.ndarray  # int [unit] where they are now


class Similarity(NamedTuple):
    """How similar updates are within and between groups (nan without such a pair)."""

    within: float
    between: float
    silhouette: float


def find(settings: ByUpdates, evidence: Evidence, seed: int) -> np.ndarray:
    """Groups of the units, called as they were as far as possible; a unit alone stays where it is.

    Args:
        settings: of a clustering that starts afresh each time (CFL, which goes on from its tree, is not one).
        evidence: what is known of the units.
        seed: of the starts of k-means.
    """
    update, count = evidence.update, settings.groups
    if len(update) < 2 or count < 2:
        return evidence.group
    if len(update) > MOST_FITTED:
        picked = np.linspace(0, len(update) - 1, MOST_FITTED).astype(int)
        found = find(settings, Evidence(*(part[picked] for part in evidence)), seed)
        return _nearest(settings, update, update[picked], found)
    if isinstance(settings, KMeans):
        centered = update - np.average(update, axis=0, weights=evidence.weight)
        labels = kmeans.fit(centered, count, seed, evidence.weight, settings.metric == "cosine").labels
    elif isinstance(settings, FedGroup):
        labels = fedgroup.cold_start(update, count, seed, settings.measure).labels
    elif isinstance(settings, Hierarchical):
        form = settings.metric, settings.linkage
        labels = hierarchical.fit(update, *form, settings.threshold, count)
        if labels.max() >= count:  # more groups than rows: the nearest are merged
            labels = hierarchical.fit(update, *form, None, count)
    else:
        raise TypeError(f"{type(settings).__name__} does not start afresh")
    return _renamed(labels, evidence.group, count)


def join(settings: ByUpdates, evidence: Evidence, update: np.ndarray) -> np.ndarray:
    """The group whose members' mean update is most like each of some updates: newcomers', or members' own.

    Args:
        settings: k-means takes the members' mean out of all updates; metrics other than the angle compare
            updates as they are.
        evidence: the members; without any there may be no update either.
        update: float32 [newcomer, q].
    """
    used, code = np.unique(evidence.group, return_inverse=True)
    if len(used) < 2:
        return np.resize(used, len(update))
    weight = (code[None, :] == np.arange(len(used))[:, None]) * evidence.weight
    weight = weight / weight.sum(axis=1, keepdims=True)
    middle = np.average(evidence.update, axis=0, weights=evidence.weight)
    middle = middle if isinstance(settings, KMeans) else np.zeros_like(middle)
    centers, update = weight @ evidence.update - middle, update - middle
    if isinstance(settings, KMeans | Hierarchical) and settings.metric != "cosine":
        nearest = np.asarray(kmeans.assign(jnp.asarray(update), jnp.asarray(centers, jnp.float32)))
    else:
        nearest = fedgroup.newcomers(update, centers)
    return used[nearest]


def describe(update: np.ndarray, group: np.ndarray) -> Similarity:
    """The picture that grouping by updates rests on, of at most `MOST_PAIRS` units spread over all.

    Args:
        update: of the units of one parent group, or sketches of them, [unit, q].
        group: int [unit].
    """
    picked = np.unique(np.linspace(0, len(group) - 1, min(len(group), MOST_PAIRS)).astype(int))
    if len(picked) < 2:
        return Similarity(math.nan, math.nan, math.nan)
    similarity, some = cosine(update[picked]), group[picked]
    pair = within_between(similarity, some)
    return Similarity(pair.within, pair.between, silhouette(similarity, some))


def _nearest(settings: ByUpdates, update: np.ndarray, fitted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The group of each unit whose mean is nearest, by angle or as updates are: cost linear in the units.

    Args:
        settings: of the clustering that has grouped the fitted units.
        update: of all units.
        fitted: of those it has grouped.
        found: their groups.
    """
    middle = fitted.mean(axis=0) if isinstance(settings, KMeans) else np.zeros(fitted.shape[1], np.float32)
    by_angle = getattr(settings, "metric", "cosine") == "cosine"
    rows = fitted - middle
    if by_angle:
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    names = np.unique(found)
    means = np.stack([rows[found == name].mean(axis=0) for name in names]).astype(update.dtype)
    if by_angle:
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        offset = means @ middle
    else:
        offset = means @ middle + (means**2).sum(axis=1) / 2
    return names[np.argmax(update @ means.T - offset, axis=1)]


def _renamed(labels: np.ndarray, before: np.ndarray, count: int) -> np.ndarray:
    """The same partition, under those names of 0 .. count - 1 by which fewest units change theirs."""
    shared = np.zeros((count, count))
    np.add.at(shared, (labels, before), 1)
    _, name = linear_sum_assignment(shared, maximize=True)
    return name[labels]
