"""One client after another in plain PyTorch: the loop that most research code has."""

from __future__ import annotations

import protocol
import torch
from torch_models import Net, sgd
from torch_team import Federation, Weights


def main() -> None:
    federation = Federation()
    net = Net(federation.workload, federation.first)

    def train(clients: range) -> Weights:
        sums = {name: torch.zeros_like(w) for name, w in federation.first.items()}
        for client in clients:
            net.load(federation.weights)
            optimizer = sgd(net.parameters(), protocol.RATE)
            batches = (x[client].split(protocol.BATCH) for x in (federation.past, federation.future))
            for past, future in zip(*batches, strict=True):
                optimizer.zero_grad()
                net.loss(past, future).backward()
                optimizer.step()
            for name, w in net.weights.items():
                sums[name] += w.detach()
        return sums

    federation.serve(train)


if __name__ == "__main__":
    main()
