"""Flower (Beutel et al. 2020): its `FedAvg` strategy sends messages to a `ClientApp` and averages replies.

Mode `ray` is Flower's own simulation engine with an actor a core; mode `threads` hands the same messages to
the same `ClientApp` in this process.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterable

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # read on import

import flower_client
import protocol
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from flwr.supercore.task_identity import TaskIdentity

ASKED = protocol.request()
server_app = ServerApp()


class InProcess:
    """What the strategy needs of a `Grid`: every message is answered at once by calling the `ClientApp`."""

    def __init__(self, clients: int) -> None:
        # What Flower's own runtime sets before a server's main function.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.contexts = {
            2 + i: Context(1, 2 + i, {"partition-id": i, "num-partitions": clients}, RecordDict(), {})
            for i in range(clients)
        }

    def get_node_ids(self) -> list[int]:
        """Everybody."""
        return list(self.contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Replies in the order of the messages."""
        del timeout
        contexts = self.contexts
        return [flower_client.app(message, contexts[message.metadata.dst_node_id]) for message in messages]


@server_app.main()
def main(grid: Grid, context: Context | None) -> None:
    """Serves rounds: each is one round of the strategy from the arrays of the last."""
    del context
    past, future, first, net = flower_client.work(ASKED)
    state = {"arrays": ArrayRecord(dict(first))}
    config = {"workload": ASKED.workload, "folder": str(ASKED.folder), "mode": ASKED.mode}

    def reset() -> None:
        state["arrays"] = ArrayRecord(dict(first))

    def run_round(count: int | None) -> None:
        share = 1.0 if count is None else min(1.0, count / len(past))
        strategy = FedAvg(fraction_train=share, fraction_evaluate=0.0)
        result = strategy.start(grid, state["arrays"], num_rounds=1, train_config=ConfigRecord(config))
        state["arrays"] = result.arrays

    def loss() -> float:
        net.load(state["arrays"].to_torch_state_dict())
        flat = (x[: protocol.JUDGED].flatten(0, 1) for x in (past, future))
        with torch.no_grad():
            return float(net.loss(*flat))

    protocol.serve(reset, run_round, loss)


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.WARNING)
    clients = len(flower_client.work(ASKED)[0])
    if ASKED.mode == "ray":
        resources = {"num_cpus": 1, "num_gpus": 0.0}
        try:
            run_simulation(
                server_app, flower_client.app, clients, backend_config={"client_resources": resources}
            )
        except RuntimeError:
            traceback.print_exc()
            os._exit(1)  # the thread that serves would go on waiting for requests
    else:
        main(InProcess(clients), None)
