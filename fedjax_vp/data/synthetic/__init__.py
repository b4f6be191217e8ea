"""Synthetic federations: calibrated to public traces, or with planted groups; nothing of them is stored.

A session is a pure function of (key, session id), so any number of them can be generated inside a jit, block
by block (`session_fn`); `generate` collects them into a `TraceSet`.
"""

from fedjax_vp.data.synthetic.calibrated import PRESETS, Motion, Synthetic
from fedjax_vp.data.synthetic.generate import generate, root_key, session_fn, session_ids
from fedjax_vp.data.synthetic.latents import SyntheticSession
from fedjax_vp.data.synthetic.planted import Planted

__all__ = [
    "PRESETS",
    "Motion",
    "Planted",
    "Synthetic",
    "SyntheticSession",
    "generate",
    "root_key",
    "session_fn",
    "session_ids",
]
