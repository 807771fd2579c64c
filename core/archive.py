"""Zip archives that stay open: reading the directory of a large one takes longer than reading an image from it."""

from __future__ import annotations

import os
import zipfile
from functools import lru_cache
from pathlib import Path


def opened(path: Path) -> zipfile.ZipFile:
    """The archive at `path`, for reading members; not to be closed. Raises OSError, BadZipFile.

    A changed file is opened anew, and a forked process opens its own: a shared file has one position.
    """
    about = path.stat()
    return _opened(path, about.st_mtime_ns, about.st_size, os.getpid())


@lru_cache(maxsize=4)
def _opened(path: Path, _changed: int, _size: int, _process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)
