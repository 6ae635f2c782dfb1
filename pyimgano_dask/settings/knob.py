"""How a knob is declared: one pydantic field carries its type, bounds, default, help, flag and config key."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Block(BaseModel):
    """A group of knobs. The path of field names from the root is the config key of each knob."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


def knob(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    metavar: str | None = None,
    bare: str | None = None,
    **bounds: Any,
) -> Any:
    """Declare a knob.

    `flag` is its command-line spelling (None: config only), `metavar` the placeholder shown in the help, `bare` what
    the flag means without a value (None: it needs one), `bounds` are pydantic constraints such as `ge=0`.
    """
    named = {"flag": flag, "metavar": metavar, "bare": bare}
    extra: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    return Field(default, description=help, json_schema_extra=extra or None, **bounds)
