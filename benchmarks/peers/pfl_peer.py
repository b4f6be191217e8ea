"""pfl-research (Granqvist et al. 2024): its `FederatedAveraging`, `SimulatedBackend` and `PyTorchModel`.

Several processes find each other as under `torchrun`, which pfl knows by the variable set below.
"""

from __future__ import annotations

import os

import protocol
import torch

ASKED = protocol.request()
SIZE = protocol.CORES if ASKED.mode == "processes" else 1
_, OTHERS = protocol.team(SIZE)
if SIZE > 1:
    os.environ["TORCHELASTIC_RUN_ID"] = "peers"
    torch.set_num_threads(1)

# pfl reads the variables when it is imported.
from pfl.aggregate.simulate import SimulatedBackend  # noqa: E402
from pfl.algorithm.base import NNAlgorithmParams  # noqa: E402
from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: E402
from pfl.data.federated_dataset import FederatedDataset  # noqa: E402
from pfl.data.pytorch import PyTorchTensorDataset  # noqa: E402
from pfl.hyperparam import NNTrainHyperParams  # noqa: E402
from pfl.model.pytorch import PyTorchModel  # noqa: E402
from torch_models import Net, sgd  # noqa: E402


class Model(Net):
    """The workload's module with the metrics that pfl asks for; none is evaluated."""

    def metrics(self, past: torch.Tensor, future: torch.Tensor) -> dict:
        """Nothing."""
        del past, future
        return {}


def main() -> None:
    past, future, weights = ASKED.work()
    past, future = torch.from_numpy(past), torch.from_numpy(future)
    first = {name: torch.from_numpy(w) for name, w in weights.items()}
    net = Model(ASKED.workload, first)
    model = PyTorchModel(net, sgd, torch.optim.SGD(net.parameters(), lr=1.0))
    datasets = [PyTorchTensorDataset(pair) for pair in zip(past, future, strict=True)]
    train = NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=protocol.RATE, local_batch_size=protocol.BATCH
    )

    def run_round(count: int | None) -> None:
        cohort = len(datasets) if count is None else min(count, len(datasets))
        # A sampler a round: every cohort is the first clients in order.
        backend = SimulatedBackend(FederatedDataset(datasets.__getitem__, iter(range(cohort)).__next__), None)
        # Evaluation comes in iteration 0 and would come again much later: this is iteration 1.
        params = NNAlgorithmParams(2, 10**9, cohort, None)
        algorithm = FederatedAveraging()
        contexts, _, _ = algorithm.get_next_central_contexts(model, 1, params, train)
        statistics, metrics = backend.gather_results(model, algorithm, central_context=contexts[0])
        algorithm.process_aggregated_statistics(contexts[0], metrics, model, statistics)

    def loss() -> float:
        flat = (x[: protocol.JUDGED].flatten(0, 1) for x in (past, future))
        with torch.no_grad():
            return float(net.loss(*flat))

    protocol.serve(lambda: net.load(first), run_round, loss, OTHERS)


if __name__ == "__main__":
    main()
