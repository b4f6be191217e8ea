"""Checkpoints: every bit comes back, and damaged ones are passed over for the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_vp import checkpoint
from fedjax_vp.checkpoint import KEEP, Checkpoints
from fedjax_vp.errors import UserError


class State(NamedTuple):
    """A state of all the kinds there are."""

    round: jax.Array
    rows: dict[str, jax.Array]
    nothing: None
    flag: jax.Array


def state(index: int) -> State:
    rng = np.random.default_rng(index)
    rows = {"b": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "a/x": jnp.arange(5) + index}
    rows["b"] = rows["b"].at[0, 0].set(jnp.float32(1e-42)).at[0, 1].set(-0.0)  # subnormal and signed zero
    return State(jnp.int32(index), rows, None, jnp.asarray([index > 3, False]))


def same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints, of rounds 3 and 6."""
    kept = Checkpoints(tmp_path / "checkpoints")
    for index in (3, 6):
        kept.save(index, state(index), {"rounds": [0.1] * index})
    kept.close()
    return tmp_path / "checkpoints"


def test_the_newest_comes_back_bit_for_bit(folder: Path) -> None:
    again = Checkpoints(folder)
    found = again.latest(state(0))
    assert found is not None
    same(found[0], state(6))
    assert found[1] == {"rounds": [0.1] * 6}
    assert again.last_round() == 6
    again.close()


def test_only_the_last_few_are_kept(folder: Path) -> None:
    again = Checkpoints(folder)
    again.save(9, state(9), {})
    again.close()
    assert sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) == [6, 9]
    assert KEEP == 2


def test_without_a_folder_nothing_is_kept() -> None:
    kept = Checkpoints(None)
    kept.save(1, state(1), {})
    assert kept.latest(state(0)) is None
    assert kept.last_round() is None
    kept.close()


def test_an_empty_folder_has_nothing(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "new")
    assert kept.latest(state(0)) is None
    kept.close()


# What Orbax leaves open when it cannot read a file is Orbax's.
DAMAGED = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)


def files(folder: Path, step: int) -> list[Path]:
    return sorted(p for p in (folder / str(step)).rglob("*") if p.is_file())


def test_a_checkpoint_of_another_format_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arrays are as they should be, but a run would go on from them with other draws."""
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    again = Checkpoints(folder)
    with pytest.raises(UserError, match="another model, method or version"):
        again.latest(state(0))
    again.close()


@DAMAGED
@pytest.mark.parametrize("damage", ["half", "empty", "gone"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(folder: Path, damage: str) -> None:
    """Everything that makes up the newest one, cut to half, emptied or deleted."""
    for path in files(folder, 6):
        data = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(data[: len(data) // 2] if damage == "half" else b"")
    again = Checkpoints(folder)
    found = again.latest(state(0))
    assert found is not None
    same(found[0], state(3))
    assert again.last_round() == 3
    again.save(6, state(6), {"rounds": []})  # the round is reached again, and this time it is whole
    again.close()
    third = Checkpoints(folder)
    same(third.latest(state(0))[0], state(6))
    third.close()


@DAMAGED
def test_a_cut_in_any_single_file_is_never_taken_for_good(folder: Path) -> None:
    """Whichever file a kill has cut short: either all is there after all, or the one before is taken."""
    taken = set()
    for path in files(folder, 6):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        again = Checkpoints(folder)
        found = again.latest(state(0))
        again.close()
        assert found is not None
        index = int(found[0].round)
        same(found[0], state(index))
        assert found[1] == {"rounds": [0.1] * index}
        taken.add(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert 3 in taken


def test_what_a_kill_left_half_written_is_no_checkpoint(folder: Path) -> None:
    half = folder / "9.orbax-checkpoint-tmp-0"
    (half / "state").mkdir(parents=True)
    (half / "state" / "data").write_bytes(b"half")
    again = Checkpoints(folder)
    assert again.last_round() == 6
    same(again.latest(state(0))[0], state(6))
    again.save(9, state(9), {})
    same(again.latest(state(0))[0], state(9))
    again.close()


def test_another_models_checkpoint_is_refused(folder: Path) -> None:
    other = state(0)._replace(flag=jnp.zeros(3, bool))
    again = Checkpoints(folder)
    with pytest.raises(UserError, match="the checkpoint of round 6 is of another model, method or version"):
        again.latest(other)
    again.close()


@DAMAGED
def test_all_damaged_is_as_if_there_were_none(folder: Path) -> None:
    for step in (3, 6):
        for path in files(folder, step):
            path.write_bytes(b"")
    again = Checkpoints(folder)
    assert again.latest(state(0)) is None
    again.close()
