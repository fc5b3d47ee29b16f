"""What every part of a configuration, and every verb's options, are: frozen and validated. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ditlab.core.errors import ConfigError


class Section(BaseModel):
    """A frozen part of a configuration; it refuses unknown names, NaN and infinity in one line that names the field."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prefix: ClassVar[str] = ""
    first: ClassVar[tuple[str, ...]] = ()  # fields that help begins with

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Bring the fields into the order of help."""
        fields = cls.__pydantic_fields__
        cls.__pydantic_fields__ = {name: fields[name] for name in dict.fromkeys((*cls.first, *fields))}

    @model_validator(mode="wrap")
    @classmethod
    def _say_it_in_one_line(cls, data: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(data)
        except ValidationError as error:
            raise ConfigError("; ".join(cls._describe(problem) for problem in error.errors())) from None

    @classmethod
    def _describe(cls, problem: Any) -> str:
        path = ".".join(str(part) for part in problem["loc"]) or "configuration"
        if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
            return f"{path}: the kind must be one of {problem['ctx'].get('expected_tags', 'those known')}"
        if problem["type"] == "extra_forbidden":
            return f"unknown setting {cls.prefix}{path[:80]}; known here: {', '.join(cls.model_fields)}"
        reason = problem["msg"].removeprefix("Input ").removeprefix("Value error, ")
        return f"{cls.prefix}{path}={str(problem['input'])[:80]}: {reason[:200]}"
