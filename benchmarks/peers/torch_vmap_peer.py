"""`torch.func.vmap` over clients, by chunks; the best of a few chunk sizes is taken before the first round.

The strongest way we know to train many small PyTorch models at once: stacked weights, one `grad` mapped over
clients and their batches, and updates in place.
"""

from __future__ import annotations

import itertools
import sys
import time

import protocol
import torch
from torch_models import MODELS, chord
from torch_team import Federation, Weights

CHUNKS = (2, 4, 8, 16, 32, 64, 128)


def main() -> None:
    federation = Federation()
    model = MODELS[federation.workload]

    def objective(w: Weights, past: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
        return chord(model(w, past), future)

    gradient = torch.func.vmap(torch.func.grad(objective))

    def train_chunk(clients: slice) -> Weights:
        past, future = federation.past[clients], federation.future[clients]
        own = {n: w.expand(len(past), *w.shape).clone() for n, w in federation.weights.items()}
        for begin in range(0, past.shape[1], protocol.BATCH):
            batch = slice(begin, begin + protocol.BATCH)
            found = gradient(own, past[:, batch], future[:, batch])
            for n, w in own.items():
                w.sub_(found[n], alpha=protocol.RATE)
        return {n: w.sum(0) for n, w in own.items()}

    chunk = best_chunk(len(federation.mine(None)), train_chunk)

    def train(clients: range) -> Weights:
        edges = [*range(clients.start, clients.stop, chunk), clients.stop]
        parts = [train_chunk(slice(*edge)) for edge in itertools.pairwise(edges)]
        return {n: torch.stack([part[n] for part in parts]).sum(0) for n in federation.first}

    federation.serve(train)


def best_chunk(clients: int, train_chunk) -> int:
    """The first chunk size whose double takes longer a client."""
    train_chunk(slice(0, CHUNKS[0]))  # allocates
    best, least = CHUNKS[0], float("inf")
    for chunk in (size for size in CHUNKS if size <= clients):
        begun = time.perf_counter()
        train_chunk(slice(0, chunk))
        seconds = (time.perf_counter() - begun) / chunk
        print(f"chunk {chunk}: {1e3 * seconds:.2f} ms a client", file=sys.stderr)
        if seconds > 1.1 * least:
            break
        if seconds < least:
            best, least = chunk, seconds
    return best


if __name__ == "__main__":
    main()
