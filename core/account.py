"""Who runs this program, and where their files lie: also for a container's user without a name or a home."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

from usfmae.core.errors import ConfigError


def person() -> str:
    """The account of this process, "uid-N" where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid-{os.getuid()}"


def give_name() -> None:
    """Libraries ask for the account's name too, and fail where there is none."""
    os.environ.setdefault("LOGNAME", person())


def user_folder(variable: str, below_home: str, instead: str) -> Path:
    """`$variable`, else a folder in the home. ConfigError where there is no home; `instead`: what to do then."""
    named = os.environ.get(variable)
    if named:
        return Path(named)
    try:
        return Path.home() / below_home
    except RuntimeError:
        raise ConfigError("HOME", f"is not set, and {person()} has no entry in /etc/passwd", instead) from None
