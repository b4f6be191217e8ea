"""Named methods: one short file each with its paper, its equations and its recipe, and their registry."""

from __future__ import annotations

from fedjax_vp.algorithms.centralized import CENTRALIZED
from fedjax_vp.algorithms.cfl import CFL
from fedjax_vp.algorithms.fedavg import FEDAVG
from fedjax_vp.algorithms.feddrift import FEDDRIFT
from fedjax_vp.algorithms.fedem import FEDEM
from fedjax_vp.algorithms.fedopt import FEDADAGRAD, FEDADAM, FEDYOGI
from fedjax_vp.algorithms.fedsgd import FEDSGD
from fedjax_vp.algorithms.finetune import FINETUNE
from fedjax_vp.algorithms.five_layers import FIVE_LAYERS
from fedjax_vp.algorithms.global_video import GLOBAL_VIDEO
from fedjax_vp.algorithms.global_video_user import GLOBAL_VIDEO_USER
from fedjax_vp.algorithms.ifca import FEDSOFT, IFCA, IFCA_HEAD
from fedjax_vp.algorithms.local_only import LOCAL_ONLY
from fedjax_vp.algorithms.oracle import ORACLE, ORACLE_PATHS
from fedjax_vp.algorithms.per_video import PER_VIDEO
from fedjax_vp.algorithms.recipe import Recipe
from fedjax_vp.algorithms.update_clusters import FEDGROUP, FL_HC, FLEXCFL, PACFL, UPDATE_KMEANS
from fedjax_vp.errors import UserError
from fedjax_vp.suggest import suggestion

__all__ = ["RECIPES", "Recipe", "recipe"]

RECIPES: dict[str, Recipe] = {
    one.name: one
    for one in (
        FEDSGD,
        FEDAVG,
        FEDADAGRAD,
        FEDYOGI,
        FEDADAM,
        FINETUNE,
        LOCAL_ONLY,
        CENTRALIZED,
        PER_VIDEO,
        GLOBAL_VIDEO,
        GLOBAL_VIDEO_USER,
        FIVE_LAYERS,
        IFCA,
        IFCA_HEAD,
        FEDSOFT,
        FEDEM,
        FEDDRIFT,
        CFL,
        FEDGROUP,
        FLEXCFL,
        FL_HC,
        UPDATE_KMEANS,
        PACFL,
        ORACLE,
        ORACLE_PATHS,
    )
}
"""Every recipe by name."""


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UserError: There is none; the nearest name is given.
    """
    if name in RECIPES:
        return RECIPES[name]
    raise UserError(f"algorithm {name!r} is unknown: {suggestion(name, RECIPES)}")
