"""The workloads' models in PyTorch, as functions of a dict of weights that vmap can map."""

from __future__ import annotations

import torch

HORIZON = 25


def normalize(x: torch.Tensor) -> torch.Tensor:
    """Scale to unit length."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True))


def cell(hidden: torch.Tensor, gates: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Gated recurrent unit, reset after the product."""
    reset_x, update_x, new_x = gates.chunk(3, -1)
    reset_h, update_h, new_h = (hidden @ kernel + bias).chunk(3, -1)
    update = torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return new + update * (hidden - new)


def gru(w: dict[str, torch.Tensor], past: torch.Tensor) -> torch.Tensor:
    """Encoder and decoder that feeds its positions back."""
    read = past @ w["encoder_input/kernel"] + w["encoder_input/bias"]
    hidden = torch.zeros(past.shape[0], w["head/kernel"].shape[0])
    for time in range(past.shape[1]):
        hidden = cell(hidden, read[:, time], w["encoder_hidden/kernel"], w["encoder_hidden/bias"])
    position, future = past[:, -1], []
    for _ in range(HORIZON):
        gates = position @ w["decoder_input/kernel"] + w["decoder_input/bias"]
        hidden = cell(hidden, gates, w["decoder_hidden/kernel"], w["decoder_hidden/bias"])
        position = normalize(position + hidden @ w["head/kernel"] + w["head/bias"])
        future.append(position)
    return torch.stack(future, 1)


def mlp(w: dict[str, torch.Tensor], past: torch.Tensor) -> torch.Tensor:
    """30-256-256-75."""
    x = past.flatten(1)
    for name in ("dense_0", "dense_1"):
        x = torch.relu(x @ w[f"{name}/kernel"] + w[f"{name}/bias"])
    x = x @ w["head/kernel"] + w["head/bias"]
    return normalize(past[:, -1:] + x.unflatten(1, (HORIZON, 3)))


MODELS = {"vp-gru": gru, "vp-mlp": mlp}


def chord(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Mean straight distance; a root that stays differentiable at 0."""
    return torch.sqrt(((found - true) ** 2).sum(-1).clamp_min(1e-24)).mean()
