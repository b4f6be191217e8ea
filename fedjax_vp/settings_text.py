"""Settings as text: YAML files, dotted overrides, and plain mappings for both.

YAML is read as version 1.2 has it where 1.1 surprises: `1e-3` is a number, `on` and `no` are text, a date is
text, and a key given twice is an error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedjax_vp.errors import UserError


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 and no repeated keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the base class has it so)
        first: [
            (tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for position, key in enumerate(keys):
            if not isinstance(key, str | int):
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key!r} is not text", problem_mark=node.value[position][0].start_mark
                )
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key!r} is given twice", problem_mark=node.value[position][0].start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$", re.IGNORECASE), "tTfF")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^([-+]?(\d+\.\d*|\.\d+)(e[-+]?\d+)?|[-+]?\d+e[-+]?\d+|[-+]?\.inf|\.nan)$", re.IGNORECASE),
    "-+0123456789.",
)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what `_Loader` would not read as text."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def parse(text: str, source: str) -> Any:
    """The value that a YAML text stands for.

    Raises:
        UserError: The text is no YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark and "\n" in text.strip() else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{source}{line}: not valid YAML ({problem}); mend it there") from error


def read(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds (none for an empty file).

    Raises:
        UserError: The file cannot be read or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"config {path} cannot be read ({reason}): give a file or a shipped name") from error
    mapping = parse(text, str(path))
    if mapping is None:
        return {}
    if not isinstance(mapping, dict):
        raise UserError(f"{path} holds {_kind_of(mapping)}: give a mapping of settings such as 'rounds: 100'")
    return plain(mapping)


def write(mapping: Mapping[str, Any]) -> str:
    """The mapping as YAML text that `parse` reads back."""
    return yaml.dump(plain(mapping), Dumper=_Dumper, sort_keys=False, default_flow_style=None)


def nest(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Dotted keys as nested mappings, later ones on top of earlier ones.

    >>> nest([("model", "gru"), ("model.hidden", 32), ("seed", 1)])
    {'model': {'kind': 'gru', 'hidden': 32}, 'seed': 1}

    Raises:
        UserError: A key has an empty part.
    """
    root: dict[str, Any] = {}
    for key, value in pairs:
        *parents, last = key.split(".")
        if not all([*parents, last]):
            raise UserError(f"override {key!r}: write it as section.setting, such as local.lr")
        node: dict[str, Any] = root
        for parent in parents:
            below = node.get(parent)
            if not isinstance(below, dict):
                node[parent] = {"kind": below} if isinstance(below, str) else {}
            node = node[parent]
        node[last] = plain(value)
    return root


def plain(value: Any) -> Any:
    """Settings as YAML and JSON have them: dataclasses as mappings, tuples as lists, paths as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def _kind_of(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"only {value!r}"
