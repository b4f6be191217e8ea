"""What every predictor is: pure functions over a flat dict of parameters, `init` and `apply`.

`apply` has three steps, of which only the middle one depends on the parameters: several models (the prefixes
of a hierarchy, the candidates of a choice) share the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Key

from fedjax_vp import geometry
from fedjax_vp.models.features import FeatureMap, Features, Inputs, View, WindowShape, reach_s, view_of
from fedjax_vp.models.losses import LossFn

Params = dict[str, Array]
"""Parameters by path, "dense_0/kernel" -> array; those of the last layer are "head/kernel", "head/bias"."""


class Predictor(NamedTuple):
    """A model of a stated window shape; its functions are pure and need no state.

    What `see` and `output` return are trees of arrays [window, ...]. By default the windows are seen as they
    are, and the output is the directions themselves.
    """

    init: Callable[[Key[Array, ""]], Params]
    output: Callable[[Params, Any], Any]  # of what is seen
    see: Callable[[Inputs], Any] = lambda inputs: inputs
    directions: Callable[[Any, Any], Float[Array, "window horizon 3"]] = lambda output, seen: output
    objective: Callable[..., Float[Array, "window"]] | None = None  # as `loss_of`, where it is another

    def apply(self, params: Params, inputs: Inputs) -> Float[Array, "window horizon 3"]:
        """Predicted directions: unit vectors in the world frame."""
        seen = self.see(inputs)
        return self.directions(self.output(params, seen), seen)

    def loss(
        self,
        params: Params,
        inputs: Inputs,
        target: Float[Array, "window horizon 3"],
        loss_fn: LossFn,
        seen: Float[Array, "window horizon"] | None = None,
    ) -> Float[Array, "window"]:
        """What training makes small: a loss's mean over the (seen part of the) horizon."""
        view = self.see(inputs)
        return self.loss_of(self.output(params, view), view, target, loss_fn, seen)

    def loss_of(
        self,
        output: Any,
        view: Any,
        target: Float[Array, "window horizon 3"],
        loss_fn: LossFn,
        seen: Float[Array, "window horizon"] | None = None,
    ) -> Float[Array, "window"]:
        """The same, of an output and what was seen."""
        if self.objective is not None:
            return self.objective(output, view, target, loss_fn, seen)
        return over_horizon(loss_fn(self.directions(output, view), target), seen)


def over_horizon(
    loss: Float[Array, "*any horizon"], seen: Float[Array, "*any horizon"] | None
) -> Float[Array, "*any"]:
    """Mean over the horizon, or over the part of it that is seen."""
    if seen is None:
        return jnp.mean(loss, axis=-1)
    return jnp.sum(seen * loss, axis=-1) / jnp.maximum(jnp.sum(seen, axis=-1), 1.0)


def small_head_init() -> nn.initializers.Initializer:
    """Kernel of a last layer: small, so that a new model predicts almost no motion, yet passes a gradient."""
    return nn.initializers.variance_scaling(1e-4, "fan_in", "normal")


def displace(
    last: Float[Array, "window 3"], displacement: Float[Array, "window horizon 2"]
) -> Float[Array, "window horizon 3"]:
    """Exponential map of displacements at a direction of yaw 0.

    Args:
        last: directions (cos elevation, 0, sin elevation) in their own yaw frame.
        displacement: radians to the east and to the north in the tangent plane at `last`.
    """
    east, north = displacement[..., 0], displacement[..., 1]
    level, up = last[:, None, 0], last[:, None, 2]
    cos, sinc = geometry.cos_sinc(east * east + north * north)
    return jnp.stack([cos * level - sinc * north * up, sinc * east, cos * up + sinc * north * level], axis=-1)


def last_step(past: Float[Array, "window history 3"]) -> Float[Array, "window 2"]:
    """Last movement between samples, radians to the east and north, of windows in their yaw frame."""
    level, up = past[:, -1, 0], past[:, -1, 2]
    back = past[:, -2]
    return jnp.stack([-back[:, 1], back[:, 0] * up - back[:, 2] * level], axis=-1)


def refuse_velocity(features: Features, kind: str) -> None:
    """Raise ValueError where a model that feeds its own positions back is asked to add to a velocity."""
    if features.velocity:
        raise ValueError(f"features.velocity is of no use to {kind}, which feeds positions back: set false")


def learned(network: nn.Module, features: Features, shape: WindowShape) -> Predictor:
    """Split a Flax network into a predictor in the yaw frame of the last observed direction.

    Args:
        network: called on `past` [window, history, 3] and `context` [window, c], both seen in the yaw frame.
            It returns displacements in radians [window, 2 * horizon] (east, north of each sample in turn), or
            directions of that frame [window, horizon, 3].
        features: what the context holds.
        shape: of the windows.
    """
    feature_map: FeatureMap = features.build(shape)
    samples = jnp.asarray(reach_s(shape) * shape.rate_hz)

    @jax.jit  # the network's forward pass, of which only the shapes matter, then costs nothing
    def init(key: Key[Array, ""]) -> Params:
        past = jnp.zeros((1, shape.history, 3), jnp.float32)
        context = jnp.zeros((1, feature_map.num_context), jnp.float32)
        weights = cast(Params, flatten_dict(network.init(key, past, context)["params"], sep="/"))
        return weights | feature_map.init()

    def output(params: Params, view: View) -> Array:
        weights = {name: leaf for name, leaf in params.items() if name not in feature_map.leaves}
        variables = {"params": unflatten_dict(weights, sep="/")}
        return cast(Array, network.apply(variables, view.past, feature_map.context(params, view)))

    def directions(output: Array, view: View) -> Float[Array, "window horizon 3"]:
        if output.ndim == 2:
            displacement = output.reshape(-1, shape.horizon, 2)
            if features.velocity and shape.history > 1:
                displacement = displacement + last_step(view.past)[:, None] * samples[None, :, None]
            output = displace(view.past[:, -1], displacement)
        return geometry.from_yaw_frame(output, view.frame[:, None])

    return Predictor(init, output, view_of, directions)
