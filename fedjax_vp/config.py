"""Configs: the settings of every part united, merged from several sources, then validated once.

The strongest last: defaults of the settings classes, the recipe that `algorithm` names, the YAML file, and
overrides (keywords here, `--dotted.key value` on the command line). What is not said keeps its default, so
that a file holds only what it is about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from fedjax_vp import models
from fedjax_vp.algorithms import RECIPES, recipe
from fedjax_vp.data.protocols import Protocol, UnseenUsers
from fedjax_vp.data.store import Named
from fedjax_vp.data.synthetic import Planted, Synthetic
from fedjax_vp.data.table import Table
from fedjax_vp.errors import UserError
from fedjax_vp.federated.arrival import ColdStart
from fedjax_vp.federated.components import Components
from fedjax_vp.federated.settings import (
    Adapt,
    Engine,
    Evaluate,
    Level,
    Local,
    Method,
    Mixing,
    Participation,
    Pooling,
)
from fedjax_vp.merging import Layer, merge
from fedjax_vp.settings_text import nest, plain, read
from fedjax_vp.suggest import nearest, suggestion

DatasetSettings = Named | Table | Synthetic | Planted

# What a file says of these, it says of its own method.
_OWN: dict[str, Any] = dict.fromkeys(
    ("levels", "client", "mixing", "components", "adapt", "compare", "algorithm", "name")
)
_SHARED = ("seed", "rounds", "dataset", "protocol", "engine", "evaluate", "coldstart")
_EXPERTS = "experts"  # their settings in a resolved mapping
_NOT_OWN = (*_SHARED, "compare")  # of an expert: its method's are all else
_FREE = ("name", "seed", "engine", "compare")  # what may differ between runs of one method
_METHOD = Method()


class Config(BaseModel):
    """Everything that decides the outcome of a run; frozen.

    `compare` names recipes, or shipped configs for what they say of their method, that run beside the own
    method, on the same traces and windows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "run"
    seed: int = 0
    rounds: int = 300
    dataset: Annotated[DatasetSettings, Field(discriminator="kind")] = Synthetic()
    protocol: Annotated[Protocol, Field(discriminator="kind")] = UnseenUsers()
    model: Annotated[models.ModelSettings, Field(discriminator="kind")] = models.MLP()
    algorithm: str = "fedavg"
    levels: tuple[Level, ...] = _METHOD.levels
    client: Literal["session", "user", "all"] = _METHOD.client
    local: Local = _METHOD.local
    participation: Annotated[Participation, Field(discriminator="kind")] = _METHOD.participation
    pooling: Pooling = _METHOD.pooling
    mixing: Mixing = _METHOD.mixing
    components: Components = _METHOD.components
    adapt: Adapt = _METHOD.adapt
    starts: int = _METHOD.starts
    engine: Engine = Engine()
    evaluate: Evaluate = Evaluate()
    coldstart: ColdStart = ColdStart()
    compare: tuple[str, ...] = ()

    _beside: dict[str, Config] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}: give at least 1")
        if self.starts > 1 and self.engine.processes > 1:
            raise ValueError(f"starts is {self.starts}, which several processes cannot run: give 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}: give a number from 0 to 2^32 - 1")
        if len(set(self.compare)) != len(self.compare):
            raise ValueError(f"compare names a method twice in {list(self.compare)}: name each once")
        if not self.name or "/" in self.name or "\\" in self.name:
            raise ValueError(f"name is {self.name!r}: give a plain word, it names the run folder")
        self._method(())  # what the levels must be to each other is checked there
        return self

    @property
    def method(self) -> Method:
        """Levels and slots as the engine takes them."""
        # An expert predicts with its whole hierarchy: what it mixes by itself is mixed here.
        return self._method(tuple(replace(one.method, mixing=Mixing()) for one in self.experts.values()))

    def _method(self, experts: tuple[Method, ...]) -> Method:
        return Method(
            levels=self.levels,
            client=self.client,
            local=self.local,
            participation=self.participation,
            pooling=self.pooling,
            mixing=self.mixing,
            components=self.components,
            adapt=self.adapt,
            starts=self.starts,
            experts=experts,
        )

    @property
    def beside(self) -> dict[str, Config]:
        """Configs of the methods in `compare`, by name: this config with another recipe or config's method.

        They share data, protocol, rounds and seed, and take what the file says of training; what it says of
        levels, mixing and adaptation, and of settings that only its own recipe makes, is its own method's.
        What a named config says of model and training comes before what this file says; overrides come first.
        """
        return self._resolved("compare", [name for name in self.compare if name != self.algorithm])

    @property
    def experts(self) -> dict[str, Config]:
        """Configs of the methods in `mixing.experts`, by name, made as those in `beside` are."""
        return self._resolved("mixing.experts", self.mixing.experts)

    def _resolved(self, key: str, names: Sequence[str]) -> dict[str, Config]:
        shared = {key: getattr(self, key) for key in _SHARED}
        others = {name: self._beside.get(name) for name in names}
        unknown = [name for name, other in others.items() if other is None]
        if unknown:
            raise UserError(f"{key}: {unknown[0]} was not resolved; make the config with load_config")
        return {name: other.model_copy(update=shared) for name, other in others.items() if other}

    def to_mapping(self) -> dict[str, Any]:
        """Every setting, resolved, as JSON and YAML have them; those of experts under `experts`."""
        found = {key: plain(getattr(self, key)) for key in type(self).model_fields}
        own = {
            name: {key: value for key, value in one.to_mapping().items() if key not in _NOT_OWN}
            for name, one in self.experts.items()
        }
        return {**found, _EXPERTS: own} if own else found


Config.model_rebuild()


def identity(mapping: Mapping[str, Any]) -> str:
    """What makes two runs, by their resolved settings, runs of one method: equal for equal methods."""
    return json.dumps({key: value for key, value in mapping.items() if key not in _FREE}, sort_keys=True)


def load_config(source: str | Path | Mapping[str, Any] = "quickstart", **overrides: Any) -> Config:
    """Reads a config and lays overrides on top.

    Args:
        source: Path of a YAML file, name of a shipped config, or a mapping.
        overrides: Settings by key, nested (`local={"lr": 0.1}`) or dotted (`**{"local.lr": 0.1}`).

    Returns:
        The validated config.

    Raises:
        UserError: The file is missing or malformed, or a setting is unknown or wrong.
    """
    if isinstance(source, Mapping):
        name, where, given = "run", "mapping", plain(source)
    else:
        path = find_config(source)
        name, where, given = path.stem, str(path), read(path)
    known = _known_experts(given, where)
    layers = [Layer(where, {"name": name, **given}), Layer("overrides", nest(overrides.items()))]
    config = _with_experts(layers, _resolve(layers, _algorithm(layers)), known)
    config._beside.update(
        {other: _resolve_beside(layers, config.algorithm, other) for other in config.compare}
    )
    _require_distinct(config)
    return config


def _require_distinct(config: Config) -> None:
    """Raises UserError where two methods that run beside each other are one under two names."""
    known: dict[str, str] = {}
    for name, one in {config.algorithm: config, **config.beside}.items():
        same = known.setdefault(identity(one.to_mapping()), name)
        if same != name:
            raise UserError(f"compare: {name} is {same} under another name: take it out")


def find_config(source: str | Path) -> Path:
    """Path of a config file that is named by its path or, for shipped ones, by its name.

    Raises:
        UserError: There is no such file.
    """
    path = Path(source)
    if path.is_file():
        return path
    shipped = shipped_configs()
    if str(source) in shipped:
        return shipped[str(source)]
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise UserError(f"config {source} does not exist: give the path of a YAML file or a shipped name")
    raise UserError(
        f"config {str(source)!r} is neither a file nor shipped: {suggestion(str(source), shipped)}"
    )


def shipped_configs() -> dict[str, Path]:
    """Paths of the configs that come with the package, by name."""
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):  # wheel, checkout
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def _algorithm(layers: list[Layer]) -> str:
    named = [layer.value["algorithm"] for layer in layers if "algorithm" in layer.value]
    name = named[-1] if named else Config.model_fields["algorithm"].default
    if not isinstance(name, str):
        raise UserError(f"algorithm is {name!r}: give the name of a recipe such as fedavg")
    return name


def _resolve(layers: list[Layer], algorithm: str) -> Config:
    contribution = Layer(f"recipe {algorithm}", plain(recipe(algorithm).settings), tolerant=True)
    mapping = merge(Config, [contribution, *layers])
    try:
        return Config.model_validate(mapping)
    except ValidationError as error:
        problems = error.errors()
        # Of a union's complaints, the one that a settings class made itself is of the kind asked for.
        problem = next((one for one in problems if one["type"] == "value_error"), problems[0])
        message = problem["msg"].removeprefix("Value error, ")
        raise UserError(f"{layers[0].source}: {message}") from error


def _known_experts(given: dict[str, Any], where: str) -> Mapping[str, Any]:
    """Takes the experts' settings out of a resolved mapping."""
    known = given.pop(_EXPERTS, {})
    if not isinstance(known, Mapping) or not all(isinstance(one, Mapping) for one in known.values()):
        raise UserError(f"{_EXPERTS} is {known!r} ({where}): name methods under mixing.experts")
    return known


def _with_experts(layers: list[Layer], config: Config, known: Mapping[str, Any]) -> Config:
    """The config with what its `mixing.experts` names.

    Args:
        layers: What the config was made of.
        config: The config.
        known: Settings of experts that were resolved before, as `Config.to_mapping` has them.
    """
    key = "mixing.experts"
    for name in config.mixing.experts:
        if name in known:
            usual = plain(recipe(_algorithm([Layer(key, known[name])])).settings)
            over = [_others(layer, plain(recipe(config.algorithm).settings), usual) for layer in layers[1:]]
            before = [Layer(f"{_EXPERTS}.{name}", known[name]), *over]
            config._beside[name] = _resolve(before, _algorithm(before[:1]))
        else:
            config._beside[name] = _resolve_beside(layers, config.algorithm, name, key)
        if config._beside[name].mixing.experts:
            raise UserError(f"{key}: {name} has experts of its own: name a method without")
    try:
        _ = config.method
    except ValueError as error:
        raise UserError(f"{layers[0].source}: {error}") from error
    return config


def _resolve_beside(layers: list[Layer], own: str, other: str, key: str = "compare") -> Config:
    """Config of a recipe, or of a shipped config's method, that a key names."""
    theirs = Layer(key, {"algorithm": other, "name": other})
    if other not in RECIPES:
        shipped = shipped_configs()
        if other not in shipped:
            near = nearest(other, [*RECIPES, *shipped])
            help_ = f"did you mean {near}?" if near else "`fedjax-vp list` shows both"
            raise UserError(f"{key}: {other!r} is neither a recipe nor a shipped config: {help_}")
        file = {key: value for key, value in read(shipped[other]).items() if key not in (*_SHARED, "compare")}
        theirs = Layer(str(shipped[other]), {**file, "name": other})
    algorithm = _algorithm([theirs])
    usual, theirs_usual = (plain(recipe(one).settings) for one in (own, algorithm))
    first, *over = (_others(layer, usual, theirs_usual) for layer in layers)
    layers = [first, theirs, *over]  # overrides come after both files
    return _with_experts(layers, _resolve(layers, algorithm), {})


def _others(layer: Layer, usual: Mapping[str, Any], theirs: Mapping[str, Any]) -> Layer:
    """What a layer says of a method beside the own one, whose recipe says what is `usual`."""
    value = _without(_without(layer.value, _without(usual, theirs)), _OWN)
    # A resolved file repeats what its own recipe says: that is nobody else's.
    return layer._replace(value=_without(value, usual, where_equal=True))


def _without(
    mapping: Mapping[str, Any], taken: Mapping[str, Any], where_equal: bool = False
) -> dict[str, Any]:
    """The mapping without the leaves that `taken` has, all of them or only those that say the same."""
    result: dict[str, Any] = {}
    for key, value in mapping.items():
        below = taken.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[key] = _without(value, below, where_equal)
        elif key not in taken or (value != below if where_equal else isinstance(below, Mapping)):
            result[key] = value
    return result
