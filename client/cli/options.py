"""Arguments that the site commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def site_directory(command: F) -> F:
    """The site's directory, handed on as `directory`."""
    return click.argument("directory", metavar="SITE", type=click.Path(path_type=Path, file_okay=False))(command)


def overriding(command: F) -> F:
    """`--set key=value` for this call alone, handed on as `overrides`."""
    return click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of site.yaml for this call."
    )(command)


def as_json(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print as JSON.")(command)
