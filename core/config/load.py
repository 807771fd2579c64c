"""Settings from four places, later ones win: defaults, a YAML file, the environment, `--set key=value`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from usfmae.core.config.base import Options, keys_of, sub_options, validated
from usfmae.core.errors import ConfigError, UsageError

ENVIRONMENT_PREFIX = "USFMAE_"

T = TypeVar("T", bound=Options)


def read_yaml(path: Path, program: str = Options.PROGRAM) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError where it is absent, unreadable or not a mapping."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"config {path}", error.strerror or str(error), "give an existing file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path}", f"not YAML: {error}".replace("\n", " "), "mend the file") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"config {path}", "holds no mapping of keys", f"see '{program} config template'")
    return values


def put(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `values["a"]["b"]` for the key `a.b`."""
    *sections, last = dotted.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"key {dotted}", f"'{section}' holds a value, not a section", "mend the key")
    values[last] = value


def from_environment(environment: Mapping[str, str], options: type[Options]) -> dict[str, str]:
    """`USFMAE_TRAIN__MASK_RATIO=0.25` -> {"train.mask_ratio": "0.25"}.

    A name with `__` is meant for us, so a wrong one is found later. One without counts only where it is a key: others
    share the prefix, such as the USFMAE_SERVER_PORT that Kubernetes sets for a service called `usfmae-server`.
    """
    values = {}
    for name, value in environment.items():
        key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
        if name.startswith(ENVIRONMENT_PREFIX) and ("." in key or key in options.model_fields):
            values[key] = value
    return values


def from_overrides(pairs: Iterable[str]) -> dict[str, str]:
    """`key=value` strings of `--set`."""
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair}", "not of the form key=value", "write for example --set train.lr=1e-4")
        values[key.strip()] = value.strip()
    return values


def load(
    options: type[T],
    file: Path | None = None,
    overrides: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> tuple[T, dict[str, str]]:
    """Settings and, for each key that is not a default, where its value came from."""
    values = read_yaml(file, options.PROGRAM) if file else {}
    origins = {key: str(file) for key in _flat(values)}
    environment = os.environ if environment is None else environment
    for origin, pairs in (
        ("environment", from_environment(environment, options)),
        ("--set", from_overrides(overrides)),
    ):
        for key, text in pairs.items():
            put(values, key, yaml.safe_load(text))
            origins[key] = origin
    return validated(options, values, str(file) if file else "configuration"), origins


def filled(settings: T, origins: Mapping[str, str], *beneath: Mapping[str, Any]) -> T:
    """`settings` with the values of `beneath`, later ones over earlier, wherever nobody has set a key.

    `origins`: where each key that somebody set came from, as `load` gives it. ConfigError where they do not fit.
    """
    values = settings.model_dump()
    for layer in beneath:
        for key in _flat(layer):
            if key not in origins:
                put(values, key, _at(layer, key))
    return validated(type(settings), values, "settings")


def _at(values: Mapping[str, Any], dotted: str) -> Any:
    for part in dotted.split("."):
        values = values[part]
    return values


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in values.items():
        keys += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return keys


def template(options: type[Options], indent: str = "") -> str:
    """A commented YAML file with every key at its default; required keys stand there uncommented and empty."""
    lines: list[str] = []
    for name, field in options.model_fields.items():
        inner = sub_options(field.annotation)
        lines += [f"{indent}# {text}" for text in (field.description or "").split("\n") if text]
        if inner:
            lines += [f"{indent}{name}:", template(inner, indent + "  ")]
        elif field.is_required():
            lines.append(f"{indent}{name}:")
        else:
            default = field.get_default(call_default_factory=True)
            plain = options.model_construct(**{name: default}).model_dump(mode="json", include={name})
            lines.append(indent + yaml.safe_dump(plain, default_flow_style=True, width=999).strip()[1:-1])
    return "\n".join(lines)


def shown(settings: Options, origins: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    """(key, value, origin) of every key, for `config show`."""
    rows = []
    for key in keys_of(type(settings)):
        value: Any = settings
        for part in key.split("."):
            value = getattr(value, part, None)
        rows.append((key, value, origins.get(key, "default")))
    return rows
