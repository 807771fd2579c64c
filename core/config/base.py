"""The base of every settings class, and pydantic's complaints turned into lines a person can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from usfmae.core.errors import ConfigError

T = TypeVar("T", bound="Options")


class Options(BaseModel):
    """Frozen, refuses unknown keys, checks its own defaults. The docstring under a field is its documentation."""

    PROGRAM: ClassVar[str] = "usfmae"  # whose 'config template' shows every key

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some values changed, checked as if it were read from a file. Raises ConfigError."""
        if not update:
            return super().model_copy(deep=deep)
        return validated(type(self), {**self.model_dump(), **update}, "changed settings")


def sub_options(annotation: Any) -> type[Options] | None:
    """The Options class inside an annotation, if there is one (`X`, `X | None`)."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Options):
            return candidate
    return None


def keys_of(options: type[Options], prefix: str = "") -> list[str]:
    """Every dotted key below an Options class."""
    keys: list[str] = []
    for name, field in options.model_fields.items():
        inner = sub_options(field.annotation)
        keys += keys_of(inner, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return keys


def _one_problem(error: Any, options: type[Options]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        # Same last word first (a key in the wrong section), then the nearest spelling.
        leaves = keys_of(options)
        keys = leaves + sorted({key.rpartition(".")[0] for key in leaves} - {""})
        same = [k for k in keys if k.rsplit(".", 1)[-1] == where.rsplit(".", 1)[-1]]
        close = same or difflib.get_close_matches(where, keys, n=1, cutoff=0.75)
        return f"{where}: unknown key" + (f"; did you mean '{close[0]}'?" if close else "")
    if error["type"] == "missing":
        return f"{where}: required, but absent"
    message = error["msg"][:1].lower() + error["msg"][1:]
    return f"{where}: {message}, got {error['input']!r}"


def problems(error: ValidationError, options: type[Options]) -> Iterable[str]:
    return (_one_problem(e, options) for e in error.errors())


def validated(options: type[T], values: dict[str, Any], origin: str) -> T:
    """Build settings, or raise ConfigError naming every wrong key at once."""
    try:
        return options.model_validate(values)
    except ValidationError as error:
        all_problems = list(problems(error, options))
        raise ConfigError(
            f"{origin} has {len(all_problems)} problem(s): " + "; ".join(all_problems),
            "",
            f"see '{options.PROGRAM} config template' for every key",
        ) from None
