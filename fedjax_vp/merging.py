"""Layers of settings merged into one mapping, guided by the types the settings have.

Layers are plain mappings, the weakest first: a recipe, a file, overrides. Merging knows three things that
plain mappings do not: which member of a union a `kind` names (another member drops the old one's keys), what
a section may be called, and that an item of a list can be addressed by its index or, if it has one, its name.
Every complaint names the full dotted key and the layer it came from.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from fedjax_vp.errors import UserError
from fedjax_vp.settings_text import plain
from fedjax_vp.suggest import suggestion


class Layer(NamedTuple):
    """One source's settings at some place of the tree."""

    source: str  # how an error names it: "configs/x.yaml", "command line", "recipe fedavg"
    value: Any
    tolerant: bool = False  # keys the chosen union member lacks are passed over (recipes hold for any model)


class Setting(NamedTuple):
    """A field of a settings class."""

    annotation: Any
    default: Any  # dataclasses.MISSING where it must be given


def merge(settings: type, layers: Sequence[Layer]) -> dict[str, Any]:
    """Merges layers into a mapping of what was set, fit for one validation by `settings`.

    Args:
        settings: A dataclass or pydantic model whose fields are settings, lists of settings, or values.
        layers: Mappings, the weakest first.

    Raises:
        UserError: A key, a kind or a value is wrong; the line says which, where, and what is right.
    """
    return _record((settings,), None, layers, "")


@cache
def fields_of(settings: type) -> dict[str, Setting]:
    """Fields of a dataclass or pydantic model by name."""
    if issubclass(settings, BaseModel):
        return {
            name: Setting(info.annotation, dataclasses.MISSING if info.is_required() else info.get_default())
            for name, info in settings.model_fields.items()
        }
    hints = typing.get_type_hints(settings)
    return {
        field.name: Setting(
            hints[field.name],
            field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default,
        )
        for field in dataclasses.fields(settings)
    }


def members_of(annotation: Any) -> tuple[type, ...]:
    """Settings classes that a value of this type may be an instance of; none for numbers, text and so on."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for part in get_args(annotation) for member in members_of(part))
    return (annotation,) if isinstance(annotation, type) and dataclasses.is_dataclass(annotation) else ()


def kinds_of(member: type) -> tuple[str, ...]:
    """Values of `kind` that choose this member."""
    kind = fields_of(member).get("kind")
    return get_args(kind.annotation) if kind and get_origin(kind.annotation) is Literal else ()


def _resolve(setting: Setting, layers: Sequence[Layer], path: str) -> Any:
    members = members_of(setting.annotation)
    if members:
        nullable = type(None) in get_args(setting.annotation)
        while nullable and any(layer.value is None for layer in layers):
            last = max(i for i, layer in enumerate(layers) if layer.value is None)
            if last == len(layers) - 1:
                return None
            layers = layers[last + 1 :]
        return _record(members, setting.default, layers, path)
    if get_origin(setting.annotation) in (tuple, list):
        return _list(setting, layers, path)
    value = layers[-1].value
    if get_origin(setting.annotation) is dict:
        value = {key: item for layer in layers for key, item in _mapping(layer, path).items()}
    return _value(setting.annotation, layers[-1]._replace(value=value), path)


def _record(members: tuple[type, ...], default: Any, layers: Sequence[Layer], path: str) -> dict[str, Any]:
    if isinstance(default, members):
        layers = [Layer("defaults", plain(default)), *layers]
    chosen, kept = _choose(members, layers, path)
    fields = fields_of(chosen)
    by_key: dict[str, list[Layer]] = {}
    for layer in kept:
        for key, value in layer.value.items():
            if key in fields:
                by_key.setdefault(key, []).append(layer._replace(value=value))
            elif not (layer.tolerant and len(members) > 1):
                raise UserError(_unknown_key(chosen, _kind_in(kept, members), key, layer, path))
    for name, setting in fields.items():
        if setting.default is dataclasses.MISSING and name not in by_key:
            where = layers[-1].source if layers else "defaults"
            raise UserError(f"{_join(path, name)} is missing ({where}): give {describe(setting.annotation)}")
    merged = {key: _resolve(fields[key], values, _join(path, key)) for key, values in by_key.items()}
    return {"kind": kinds_of(chosen)[0], **merged} if len(members) > 1 else merged


def _choose(members: tuple[type, ...], layers: Sequence[Layer], path: str) -> tuple[type, list[Layer]]:
    """The union's member that the last `kind` names, and the layers that speak of it."""
    chosen = members[0]
    kept: list[Layer] = []
    for layer in layers:
        if isinstance(layer.value, str) and kinds_of(chosen):
            layer = layer._replace(value={"kind": layer.value})
        kind = _mapping(layer, path).get("kind")
        if len(members) > 1 and kind is not None:
            named = [member for member in members if kind in kinds_of(member)]
            if not named:
                kinds = [kind for member in members for kind in kinds_of(member)]
                where = f"{_join(path, 'kind')} is {kind!r} ({layer.source})"
                raise UserError(f"{where}: {suggestion(str(kind), kinds)}")
            if named[0] is not chosen:
                kept = [old for old in kept if old.tolerant and "kind" not in old.value]
                chosen = named[0]
        kept.append(layer)
    return chosen, kept


def _list(setting: Setting, layers: Sequence[Layer], path: str) -> list[Any]:
    arguments = get_args(setting.annotation)
    members = members_of(arguments[0]) if arguments else ()
    default = [] if setting.default is dataclasses.MISSING else plain(setting.default)
    items = [[Layer("defaults", item)] for item in default]
    for layer in layers:
        if isinstance(layer.value, list):
            items = [[layer._replace(value=item)] for item in layer.value]
        elif isinstance(layer.value, Mapping):
            for key, value in layer.value.items():
                items[_position(items, key, layer, path)].append(layer._replace(value=value))
        else:
            return _value(setting.annotation, layer, path)
    if not members:
        return _value(setting.annotation, layers[-1]._replace(value=[item[-1].value for item in items]), path)
    return [
        _record(members, None, item, _join(path, _name(item) or str(index)))
        for index, item in enumerate(items)
    ]


def _name(item: Sequence[Layer]) -> str | None:
    names = [x.value["name"] for x in item if isinstance(x.value, Mapping) and "name" in x.value]
    return names[-1] if names and isinstance(names[-1], str) else None


def _position(items: Sequence[Sequence[Layer]], key: str, layer: Layer, path: str) -> int:
    names = [_name(item) or str(index) for index, item in enumerate(items)]
    if key in names:
        return names.index(key)
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    raise UserError(f"{_join(path, key)} ({layer.source}) names no item: {suggestion(key, names)}")


def _mapping(layer: Layer, path: str) -> Mapping[str, Any]:
    if isinstance(layer.value, Mapping):
        return layer.value
    raise UserError(
        f"{path or 'config'} is {layer.value!r} ({layer.source}): give a mapping of its settings, "
        f"such as {path or 'config'}: {{key: value}}"
    )


def _value(annotation: Any, layer: Layer, path: str) -> Any:
    try:
        _adapter(annotation).validate_json(json.dumps(layer.value), strict=True)
    except (ValidationError, TypeError) as error:
        expected = describe(annotation)
        near = ""
        if isinstance(layer.value, str) and (options := _options(annotation)):
            hint = suggestion(layer.value, options)
            near = f"; {hint}" if hint.startswith("did") else ""
        raise UserError(f"{path} is {layer.value!r} ({layer.source}): give {expected}{near}") from error
    return layer.value


@cache
def _adapter(annotation: Any) -> Any:  # a TypeAdapter
    return TypeAdapter(annotation)


def _options(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(option) for option in get_args(annotation)]
    return [option for part in get_args(annotation) for option in _options(part)]


def describe(annotation: Any) -> str:
    """What a value of this type is, in words.

    >>> describe(float | Literal["auto"])
    'a number or auto'
    """
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text", type(None): "null"}
    if annotation in words:
        return words[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(str(option) for option in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in arguments)
    if origin in (tuple, list):
        plural = {float: "numbers", int: "whole numbers", str: "texts"}.get(arguments[0], "mappings")
        return f"a list of {plural if ... in arguments or origin is list else f'{len(arguments)} {plural}'}"
    return "a mapping" if origin is dict or members_of(annotation) else "a value of its type"


def _kind_in(layers: Sequence[Layer], members: Sequence[type]) -> str:
    """The `kind` in force where there is a choice of members, else nothing."""
    kinds = [layer.value["kind"] for layer in layers if "kind" in layer.value]
    return (str(kinds[-1]) if kinds else kinds_of(members[0])[0]) if len(members) > 1 else ""


def _unknown_key(chosen: type, kind: str, key: str, layer: Layer, path: str) -> str:
    names = [name for name in fields_of(chosen) if name != "kind" or not kind]
    hint = suggestion(key, names) if names else "it has none"
    if hint.startswith("did you mean "):
        hint = f"did you mean {_join(path, hint.removeprefix('did you mean ')[:-1])}?"
    return f"{_join(path, key)} is not a setting{kind and f' of kind {kind}'} ({layer.source}): {hint}"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
