"""The workloads' models in PyTorch: functions of a dict of weights, which vmap can map, and a module."""

from __future__ import annotations

import torch

HORIZON = 25


def normalize(x: torch.Tensor) -> torch.Tensor:
    """Scale to unit length."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True))


def cell(hidden: torch.Tensor, gates: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Gated recurrent unit, reset after the product."""
    reset_x, update_x, new_x = gates.chunk(3, -1)
    reset_h, update_h, new_h = torch.addmm(bias, hidden, kernel).chunk(3, -1)
    update = torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return new + update * (hidden - new)


def gru(w: dict[str, torch.Tensor], past: torch.Tensor) -> torch.Tensor:
    """Encoder and decoder that feeds its positions back."""
    read = past @ w["encoder_input/kernel"] + w["encoder_input/bias"]
    hidden = past.new_zeros(past.shape[0], w["head/kernel"].shape[0])
    for gates in read.unbind(1):
        hidden = cell(hidden, gates, w["encoder_hidden/kernel"], w["encoder_hidden/bias"])
    position, future = past[:, -1], []
    for _ in range(HORIZON):
        gates = torch.addmm(w["decoder_input/bias"], position, w["decoder_input/kernel"])
        hidden = cell(hidden, gates, w["decoder_hidden/kernel"], w["decoder_hidden/bias"])
        position = normalize(position + torch.addmm(w["head/bias"], hidden, w["head/kernel"]))
        future.append(position)
    return torch.stack(future, 1)


def mlp(w: dict[str, torch.Tensor], past: torch.Tensor) -> torch.Tensor:
    """30-256-256-75."""
    x = past.flatten(1)
    for name in ("dense_0", "dense_1"):
        x = torch.relu(torch.addmm(w[f"{name}/bias"], x, w[f"{name}/kernel"]))
    x = torch.addmm(w["head/bias"], x, w["head/kernel"])
    return normalize(past[:, -1:] + x.unflatten(1, (HORIZON, 3)))


MODELS = {"vp-gru": gru, "vp-mlp": mlp}


def chord(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Mean straight distance; a root that stays differentiable at 0."""
    return torch.sqrt(((found - true) ** 2).sum(-1).clamp_min(1e-24)).mean()


class Net(torch.nn.Module):
    """A workload's model as a module with the loss that it trains on."""

    def __init__(self, workload: str, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.model = MODELS[workload]
        self.weights = torch.nn.ParameterDict({name: w.clone() for name, w in weights.items()})

    def forward(self, past: torch.Tensor) -> torch.Tensor:
        """Predicted directions."""
        return self.model(dict(self.weights.items()), past)

    def loss(self, past: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
        """What local training minimizes."""
        return chord(self(past), future)

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Takes over the values of these weights."""
        with torch.no_grad():
            for name, w in self.weights.items():
                w.copy_(weights[name])


def sgd(parameters, lr: float) -> torch.optim.Optimizer:
    """Plain SGD over all tensors in one call: a tenth faster on the MLP than tensor by tensor."""
    return torch.optim.SGD(parameters, lr=lr, foreach=True)
