"""PyTorch in one process on all cores (`threads`), or in one process a core that share the clients."""

from __future__ import annotations

from collections.abc import Callable

import protocol
import torch
from torch_models import MODELS, chord

Weights = dict[str, torch.Tensor]


class Federation:
    """Global weights and the clients of this process."""

    def __init__(self) -> None:
        asked = protocol.request()
        self.workload = asked.workload
        self.size = protocol.CORES if asked.mode == "processes" else 1
        self.rank, self.others = protocol.team(self.size)
        if self.size > 1:
            torch.set_num_threads(1)
            torch.distributed.init_process_group("gloo")
        past, future, weights = asked.work()
        self.past, self.future = torch.from_numpy(past), torch.from_numpy(future)
        self.first = {name: torch.from_numpy(w) for name, w in weights.items()}
        self.weights = dict(self.first)

    def mine(self, count: int | None) -> range:
        """Clients of this process among the first so many."""
        everybody = len(self.past) if count is None else min(count, len(self.past))
        return range(everybody * self.rank // self.size, everybody * (self.rank + 1) // self.size)

    def average(self, sums: Weights, count: int | None) -> None:
        """Takes over the mean of all processes' clients."""
        everybody = len(self.past) if count is None else min(count, len(self.past))
        flat = torch.cat([sums[name].flatten() for name in self.first])
        if self.size > 1:
            torch.distributed.all_reduce(flat)
        parts = (flat / everybody).split([w.numel() for w in self.first.values()])
        self.weights = {n: p.view_as(w) for (n, w), p in zip(self.first.items(), parts, strict=True)}

    def loss(self) -> float:
        """Mean loss of the judged clients under the global weights."""
        flat = (x[: protocol.JUDGED].flatten(0, 1) for x in (self.past, self.future))
        with torch.no_grad():
            past, future = flat
            return float(chord(MODELS[self.workload](self.weights, past), future))

    def serve(self, train: Callable[[range], Weights]) -> None:
        """Serves rounds; `train` gives the sum of the trained weights of some clients."""

        def reset() -> None:
            self.weights = dict(self.first)

        def run_round(count: int | None) -> None:
            self.average(train(self.mine(count)), count)

        protocol.serve(reset, run_round, self.loss, self.others)
