"""The Flower peer's `ClientApp`; a module of its own, which Ray's workers import and keep."""

from __future__ import annotations

import functools
from pathlib import Path

import protocol
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch_models import Net, sgd

app = ClientApp()


@functools.cache
def work(asked: protocol.Request) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], Net]:
    """Past, future, initial weights and a module, once a process."""
    if asked.mode == "ray":
        torch.set_num_threads(1)
    past, future, weights = asked.work()
    first = {name: torch.from_numpy(w) for name, w in weights.items()}
    return torch.from_numpy(past), torch.from_numpy(future), first, Net(asked.workload, first)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One client's epoch."""
    config = message.content["config"]
    asked = protocol.Request(str(config["workload"]), Path(str(config["folder"])), str(config["mode"]))
    past, future, _, net = work(asked)
    client = int(context.node_config["partition-id"])
    net.load(message.content["arrays"].to_torch_state_dict())
    optimizer = sgd(net.parameters(), protocol.RATE)
    batches = (x[client].split(protocol.BATCH) for x in (past, future))
    for batch in zip(*batches, strict=True):
        optimizer.zero_grad()
        net.loss(*batch).backward()
        optimizer.step()
    trained = ArrayRecord({name: w.detach() for name, w in net.weights.items()})
    metrics = MetricRecord({"num-examples": past.shape[1]})
    return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)
