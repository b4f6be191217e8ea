"""How exactly matrix products are computed.

On a GPU JAX lets products of float32 take the tensor cores' 10-bit factors (TF32) unless told otherwise. Here
everything is true float32; a run may choose shorter factors for the products of local training alone, with
sums in float32 always: `tf32` (an accelerator's choice; a CPU computes float32) or `bfloat16`. Errors,
groupings and pooling stay in float32. See Micikevicius et al., arXiv 1710.03740.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import jax

Precision = Literal["float32", "tf32", "bfloat16"]

# "bfloat16" to JAX is the device's fastest way, which on a GPU is TF32: the algorithm is named instead.
_OF_JAX = {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": "BF16_BF16_F32"}


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """Matrix products traced inside have this precision, their derivatives too; also a decorator."""
    with jax.default_matmul_precision(_OF_JAX[precision]):
        yield
