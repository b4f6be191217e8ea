"""Typed merging of layers, on settings classes of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from fedjax_vp.errors import UserError
from fedjax_vp.merging import Layer, describe, merge


@dataclass(frozen=True)
class Wheels:
    kind: Literal["wheels"] = "wheels"
    number: int = 4
    paint: str = "red"


@dataclass(frozen=True)
class Legs:
    kind: Literal["legs", "tentacles"] = "legs"
    number: int = 2
    paint: str = "red"
    length_m: float = 1.0


@dataclass(frozen=True)
class Part:
    name: str
    size: float | Literal["auto"] = 1.0
    moves: Wheels | Legs = field(default_factory=Wheels)


@dataclass(frozen=True)
class Robot:
    speed: float = 1.0
    moves: Wheels | Legs = field(default_factory=lambda: Legs(number=6))
    spare: Legs | None = None
    parts: tuple[Part, ...] = (Part("body"),)
    grid: tuple[int, int] = (1, 2)
    notes: dict[str, float] = field(default_factory=dict)
    on: bool = True


def merged(*values: Any, tolerant: bool = False) -> dict[str, Any]:
    first = [Layer("recipe", values[0], tolerant)] if tolerant else [Layer("layer 0", values[0])]
    return merge(Robot, first + [Layer(f"layer {i + 1}", value) for i, value in enumerate(values[1:])])


def test_the_last_layer_wins_leaf_by_leaf() -> None:
    result = merged({"speed": 2.0, "moves": {"paint": "blue"}}, {"moves": {"length_m": 3}}, {"speed": 4})
    assert result["speed"] == 4
    assert result["moves"] == {"kind": "legs", "number": 6, "paint": "blue", "length_m": 3}


def test_defaults_of_an_instance_hold() -> None:
    assert merged({"moves": {"paint": "blue"}})["moves"]["number"] == 6


def test_another_kind_drops_the_old_members_keys() -> None:
    result = merged({"moves": {"kind": "legs", "number": 8, "length_m": 2.0}}, {"moves": {"kind": "wheels"}})
    assert result["moves"] == {"kind": "wheels"}


def test_the_same_kind_or_a_sibling_of_it_keeps_keys() -> None:
    below = {"moves": {"kind": "legs", "number": 8}}
    assert merged(below, {"moves": {"kind": "legs"}})["moves"]["number"] == 8
    assert merged(below, {"moves": {"kind": "tentacles"}})["moves"] == {
        "kind": "tentacles",
        "number": 8,
        "paint": "red",
        "length_m": 1.0,
    }


def test_a_recipe_without_a_kind_holds_for_every_kind() -> None:
    contribution = {"moves": {"paint": "green", "length_m": 9.0}}
    assert merged(contribution, {"moves": {"kind": "wheels"}}, tolerant=True)["moves"] == {
        "kind": "wheels",
        "paint": "green",
    }


def test_a_word_is_short_for_a_kind() -> None:
    assert merged({"moves": "wheels"})["moves"] == {"kind": "wheels"}


def test_null_takes_out_what_is_below() -> None:
    assert merged({"spare": {"number": 3}}, {"spare": None})["spare"] is None
    assert merged({"spare": {"number": 3}}, {"spare": None}, {"spare": {"paint": "x"}})["spare"] == {
        "paint": "x"
    }


def test_list_items_by_name_and_index() -> None:
    parts = {"parts": [{"name": "a"}, {"name": "b", "size": 2.0}]}
    result = merged(parts, {"parts": {"b": {"size": "auto"}, "0": {"moves": {"kind": "legs"}}}})
    assert result["parts"] == [
        {"name": "a", "moves": {"kind": "legs"}},
        {"name": "b", "size": "auto"},
    ]
    assert merged({"parts": {"body": {"size": 3}}})["parts"][0]["size"] == 3
    assert merged(parts, {"parts": [{"name": "c"}]})["parts"] == [{"name": "c"}]
    assert merged({"grid": [3, 4]}, {"grid": {"1": 5}})["grid"] == [3, 5]


def test_free_mappings_merge_by_key() -> None:
    assert merged({"notes": {"a": 1.0}}, {"notes": {"b": 2}})["notes"] == {"a": 1.0, "b": 2}


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"sped": 1}, r"^sped is not a setting \(layer 0\): did you mean speed\?$"),
        (
            {"moves": {"lenght_m": 1}},
            r"^moves\.lenght_m is not a setting of kind legs .*did you mean moves\.length_m",
        ),
        ({"moves": {"kind": "wheels", "length_m": 1}}, r"moves\.length_m is not a setting of kind wheels"),
        ({"moves": {"kind": "lags"}}, r"^moves\.kind is 'lags' \(layer 0\): did you mean legs\?"),
        ({"moves": {"kind": ["legs"]}}, r"^moves\.kind is \['legs'\]"),
        ({"moves": 3}, r"^moves is 3 \(layer 0\): give a mapping"),
        ({"speed": "fast"}, r"^speed is 'fast' \(layer 0\): give a number$"),
        ({"speed": True}, r"^speed is True \(layer 0\): give a number$"),
        ({"speed": None}, r"^speed is None"),
        ({"on": "yes"}, r"^on is 'yes' \(layer 0\): give true or false"),
        ({"moves": {"number": 2.5}}, r"^moves\.number is 2\.5 \(layer 0\): give a whole number"),
        ({"parts": [{"size": 1}]}, r"^parts\.0\.name is missing \(layer 0\): give text"),
        (
            {"parts": [{"name": "a", "size": "atuo"}]},
            r"^parts\.a\.size is 'atuo' .*a number or auto; did you mean auto",
        ),
        ({"parts": {"boddy": {}}}, r"^parts\.boddy \(layer 0\) names no item: did you mean body\?"),
        ({"parts": {"7": {}}}, r"^parts\.7 \(layer 0\) names no item"),
        ({"parts": "body"}, r"^parts is 'body' \(layer 0\): give a list of mappings"),
        ({"grid": [1]}, r"^grid is \[1\] \(layer 0\): give a list of 2 whole numbers"),
        ({"notes": {"a": "b"}}, r"^notes is \{'a': 'b'\}"),
        ({"notes": 3}, r"^notes is 3"),
    ],
)
def test_complaints_name_key_layer_and_remedy(value: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        merged(value)


def test_inputs_are_left_alone() -> None:
    below, above = {"moves": {"kind": "legs", "number": 8}}, {"moves": {"kind": "wheels"}}
    merged(below, above)
    assert below == {"moves": {"kind": "legs", "number": 8}}
    assert above == {"moves": {"kind": "wheels"}}


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (float, "a number"),
        (int | None, "a whole number or null"),
        (Literal["a", "b"], "a or b"),
        (tuple[float, ...], "a list of numbers"),
        (tuple[int, int], "a list of 2 whole numbers"),
        (dict[str, float], "a mapping"),
    ],
)
def test_types_in_words(annotation: Any, words: str) -> None:
    assert describe(annotation) == words
