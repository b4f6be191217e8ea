"""YAML as settings have it, and dotted overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_vp.errors import UserError
from fedjax_vp.federated.server import Schedule
from fedjax_vp.settings_text import nest, parse, plain, read, write

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc-_.", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5e-1", -0.25),
        ("3", 3),
        ("3.", 3.0),
        (".5", 0.5),
        ("true", True),
        ("on", "on"),
        ("no", "no"),
        ("2024-01-01", "2024-01-01"),
        ("null", None),
        ("[1, a]", [1, "a"]),
        ("auto", "auto"),
        ("{on: train}", {"on": "train"}),
    ],
)
def test_scalars_of_yaml_1_2(text: str, value: object) -> None:
    parsed = parse(text, "test")
    assert parsed == value
    assert type(parsed) is type(value)


@given(TREES)
def test_what_is_written_is_read_back(tree: object) -> None:
    assert parse(write({"tree": tree}), "test") == {"tree": plain(tree)}


@pytest.mark.parametrize(
    "text", ["a: 1\na: 2", "a: [1", "a: b: c", "1.5: x", "a: !!python/object:os.system {}"]
)
def test_bad_yaml_names_its_source(text: str) -> None:
    with pytest.raises(UserError, match=r"^here(, line \d+)?: not valid YAML"):
        parse(text, "here")


def test_bad_yaml_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("rounds: 3\nlocal: {lr: 1\nseed: 2\n")
    with pytest.raises(UserError, match=r"bad\.yaml, line 3"):
        read(path)


def test_read_refuses_what_is_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(UserError, match="holds a list"):
        read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read(path)
    path.write_text("")
    assert read(path) == {}


def test_nest_lays_later_keys_on_top() -> None:
    pairs = [
        ("local.lr", 1),
        ("local.lr", 2),
        ("levels.video.server.lr", 3),
        ("model", "gru"),
        ("model.x", 4),
    ]
    assert nest(pairs) == {
        "local": {"lr": 2},
        "levels": {"video": {"server": {"lr": 3}}},
        "model": {"kind": "gru", "x": 4},
    }


@pytest.mark.parametrize("key", ["", "local..lr", ".lr", "local."])
def test_nest_refuses_empty_parts(key: str) -> None:
    with pytest.raises(UserError, match="write it as section"):
        nest([(key, 1)])


def test_plain_takes_dataclasses_tuples_and_paths() -> None:
    value = plain({"a": Schedule(kind="cosine"), "b": (1, Path("x"))})
    assert value == {"a": {"kind": "cosine", "warmup": 0.0, "final": 0.0}, "b": [1, "x"]}
