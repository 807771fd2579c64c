"""Zip archives that stay open: reading the directory of a large one takes longer than reading an image from it."""

from __future__ import annotations

import os
import zipfile
from collections import OrderedDict
from pathlib import Path

OPEN = 4  # archives

# (process, device, inode, size, time in ns) -> archive. A changed file is opened anew, and a forked process opens its
# own: a shared file has one position.
_archives: OrderedDict[tuple[int, ...], zipfile.ZipFile] = OrderedDict()


def opened(path: Path) -> zipfile.ZipFile:
    """The archive at `path`, for reading members; not to be closed. Raises OSError, BadZipFile."""
    return opened_at(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def opened_at(descriptor: int) -> zipfile.ZipFile:
    """The archive behind a descriptor, which is taken over. Raises OSError, BadZipFile."""
    file = os.fdopen(descriptor, "rb")
    status = os.fstat(descriptor)
    key = (os.getpid(), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if key in _archives:
        file.close()
    else:
        try:
            _archives[key] = zipfile.ZipFile(file)
        except Exception:
            file.close()
            raise
    _archives.move_to_end(key)
    while len(_archives) > OPEN:
        _archives.popitem(last=False)
    return _archives[key]
