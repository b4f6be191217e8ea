"""`torch.func.vmap` over clients, by chunks; the best of a few chunk sizes is taken before the first round.

The strongest way we know to train many small PyTorch models at once: stacked weights, one `grad` mapped over
clients and their batches, and updates in place.
"""

from __future__ import annotations

import time

import protocol
import torch
from torch_models import MODELS, chord

CHUNKS = (4, 8, 16, 32, 64, 256)


def main() -> None:
    name, path = protocol.arguments()
    past, future, weights = protocol.load(str(path))
    past, future = torch.from_numpy(past), torch.from_numpy(future)
    first = {n: torch.from_numpy(w) for n, w in weights.items()}
    model = MODELS[name]
    state = dict(first)

    def objective(w: dict[str, torch.Tensor], past: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
        return chord(model(w, past), future)

    gradient = torch.func.vmap(torch.func.grad(objective))

    def train(clients: slice) -> dict[str, torch.Tensor]:
        size = past[clients].shape[0]
        own = {n: w.expand(size, *w.shape).clone() for n, w in state.items()}
        for begin in range(0, past.shape[1], protocol.BATCH):
            batch = slice(begin, begin + protocol.BATCH)
            found = gradient(own, past[clients, batch], future[clients, batch])
            for n, w in own.items():
                w.sub_(found[n], alpha=protocol.RATE)
        return {n: w.sum(0) for n, w in own.items()}

    def per_client(chunk: int) -> float:
        train(slice(0, chunk))
        begun = time.perf_counter()
        train(slice(0, chunk))
        return (time.perf_counter() - begun) / chunk

    count = past.shape[0]
    chunk = min((c for c in CHUNKS if c <= count), key=per_client)

    def run_round() -> None:
        parts = [train(slice(begin, begin + chunk)) for begin in range(0, count, chunk)]
        state.update({n: sum(part[n] for part in parts) / count for n in state})

    def loss() -> float:
        flat = (x[: protocol.JUDGED].flatten(0, 1) for x in (past, future))
        with torch.no_grad():
            return float(objective(state, *flat))

    protocol.serve(lambda: state.update(first), run_round, loss)


if __name__ == "__main__":
    main()
