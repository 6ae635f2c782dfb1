"""The catalogue of knobs, read off the settings tree: flags, allowed values and the text of validation errors."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.knob import Block
from pyimgano_dask.settings.run import InferSettings

Path = tuple[str, ...]


@dataclass(frozen=True)
class Knob:
    """One knob: where it lives in the tree (`path`, which is also its config key), and its pydantic field."""

    path: Path
    field: FieldInfo

    @property
    def key(self) -> str:
        """Config key, e.g. `defects.min_area`."""
        return ".".join(self.path)

    @property
    def _extra(self) -> Mapping[str, Any]:
        extra = self.field.json_schema_extra
        return extra if isinstance(extra, Mapping) else {}

    @property
    def flag(self) -> str | None:
        """Command-line spelling, None for knobs that only configs set."""
        return self._extra.get("flag")

    @property
    def metavar(self) -> str | None:
        """Placeholder shown in the help."""
        return self._extra.get("metavar")

    @property
    def bare(self) -> str | None:
        """What the flag means when it is given without a value, None when it needs one."""
        return self._extra.get("bare")

    @property
    def dest(self) -> str:
        """Keyword of the Python API: the flag's name with underscores, else the last part of the key."""
        return self.flag.removeprefix("--").replace("-", "_") if self.flag else self.path[-1]

    @property
    def help(self) -> str:
        """What the knob does."""
        return self.field.description or ""

    @property
    def default(self) -> Any:
        """Built-in default."""
        return self.field.get_default(call_default_factory=True)

    @property
    def kind(self) -> Any:
        """Type without None."""
        options = [option for option in get_args(self.field.annotation) if option is not type(None)]
        is_union = get_origin(self.field.annotation) in (Union, types.UnionType)
        return options[0] if is_union and len(options) == 1 else self.field.annotation

    @property
    def choices(self) -> tuple[str, ...] | None:
        """Allowed words of a choice."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else None

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value."""
        return self.kind is bool

    @property
    def is_repeatable(self) -> bool:
        """Whether the flag may be given several times."""
        return get_args(self.kind)[1:] == (Ellipsis,)

    @property
    def width(self) -> int | None:
        """How many values the flag takes at once, for fixed tuples."""
        return len(get_args(self.kind)) if get_origin(self.kind) is tuple and not self.is_repeatable else None

    @property
    def allowed(self) -> str:
        """Allowed values in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        bounds = _bounds(self.field)
        if self.kind in (int, float):
            noun = "a whole number" if self.kind is int else "a finite number"
            return " ".join([noun, *([" and ".join(bounds)] if bounds else [])])
        if self.width is not None:
            return f"{self.width} numbers"
        words: dict[Any, str] = {bool: "true or false", str: "text"}
        return words.get(self.kind, "a list of texts" if self.is_repeatable else "a JSON object")

    def parse(self, text: str | list[str]) -> Any:
        """Turn the words of a flag into a value; raises ConfigError in words."""
        try:
            if get_origin(self.kind) is dict:
                value = json.loads(str(text))
                if not isinstance(value, dict):
                    raise ValueError("not an object")
                return value
            return TypeAdapter(self.kind).validate_python(text, strict=False)
        except (ValidationError, ValueError):
            shown = " ".join(text) if isinstance(text, list) else text
            requoted = shown.replace("'", '"')
            hint = f"; JSON has double quotes: {self.flag} '{requoted}'" if _is_json_object(requoted) else ""
            raise ConfigError(f"{self.flag}: {shown!r} is not {self.allowed}{hint}") from None


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _bounds(field: FieldInfo) -> list[str]:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return [
        f"{sign} {getattr(constraint, name)}"
        for constraint in field.metadata
        for name, sign in signs.items()
        if hasattr(constraint, name)
    ]


def _walk(block: type[Block], path: Path) -> Iterator[Knob]:
    for name, field in block.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Block):
            yield from _walk(field.annotation, (*path, name))
        else:
            yield Knob((*path, name), field)


@cache
def knobs() -> tuple[Knob, ...]:
    """Every knob of `InferSettings`, in the order of the tree."""
    return tuple(_walk(InferSettings, ()))


def describe_faults(error: ValidationError, name_of: Mapping[Path, str], root: Path = ()) -> list[str]:
    """One line for each fault of a validation error: the knob's name, the value, what is allowed.

    `name_of` tells how the user spelled a knob (a flag); others are named by their JSON path below `root`.
    """
    by_path = {knob.path: knob for knob in knobs()}
    lines = []
    for fault in error.errors(include_url=False):
        location = (*root, *(str(part) for part in fault["loc"]))
        knob = next((by_path[location[:n]] for n in range(len(location), 0, -1) if location[:n] in by_path), None)
        if knob is None:
            name = name_of.get(location) or ".".join(location)
            said = fault["ctx"]["error"] if fault["type"] == "value_error" else f"{fault['input']!r} is not an object"
            lines.append(f"{name}: {said}" if name else str(said))
            continue
        name = name_of.get(knob.path) or ".".join(location)
        if fault["type"] == "value_error":
            lines.append(f"{name}: {fault['ctx']['error']}")
        else:
            value = json.dumps(fault["input"], default=repr)
            none = " or null" if type(None) in get_args(knob.field.annotation) else ""
            lines.append(f"{name}: {value} is not allowed; expected {knob.allowed}{none}")
    return lines
