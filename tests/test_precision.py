"""The precision of local training's products reaches the compiled program, derivatives included."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest
import toy

from fedjax_vp.federated import round as rounds
from fedjax_vp.federated.precision import Precision
from fedjax_vp.federated.settings import Engine, Level, Local, Method
from fedjax_vp.federated.simulator import simulator
from fedjax_vp.models.gru import GRU

METHOD = Method(levels=(Level("global"),), local=Local(batch=2, steps=1))


def products(precision: Precision, platform: str) -> list[str]:
    """The matrix products of a round, as lowered."""
    engine = Engine(devices=1, client_block=2, precision=precision)
    model = GRU(width=4).build(toy.SHAPE)
    sim = simulator(toy.federation(), model, METHOD, engine)
    arguments = rounds.init(sim, jnp.int32(0)), sim.federation.arrays, rounds.hyper(METHOD, 1)
    traced = jax.jit(rounds.make_round(sim)).trace(*arguments)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return [line for line in text.splitlines() if "stablehlo.dot_general" in line]


@pytest.mark.parametrize(
    ("precision", "platform", "mark"),
    [
        ("float32", "cpu", r"precision = \[HIGHEST, HIGHEST\]"),
        ("float32", "cuda", r"precision = \[HIGHEST, HIGHEST\]"),
        ("tf32", "cuda", r"precision = \[HIGH, HIGH\]"),
        ("bfloat16", "cuda", r"lhs_precision_type = bf16.*accumulation_type = f32"),
    ],
)
def test_precision_reaches_every_product(precision: Precision, platform: str, mark: str) -> None:
    found = products(precision, platform)
    trained = [line for line in found if re.search(mark, line)]
    rest = [line for line in found if line not in trained]
    assert len(trained) >= 15  # forward and backward products of both loops, and the weight gradients
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in rest)
    assert (not rest) or precision != "float32"
