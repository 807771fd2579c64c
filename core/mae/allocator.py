"""jemalloc with huge pages for training on a CPU, where it is installed (Debian: libjemalloc2).

A step allocates and frees gigabytes. glibc hands them back to the kernel and faults them in again, page by page.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from ctypes.util import find_library
from pathlib import Path

TUNING = "dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always"  # keep freed memory; 2 MiB pages

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def environment() -> dict[str, str]:
    """Variables with which a new process uses jemalloc: none where it is not installed or LD_PRELOAD is set already.

    So `LD_PRELOAD= usfmae ...` keeps the system's allocator.
    """
    library = None if "LD_PRELOAD" in os.environ else find_library("jemalloc")
    return {"LD_PRELOAD": library, "MALLOC_CONF": os.environ.get("MALLOC_CONF", TUNING)} if library else {}


def keep() -> None:
    """Have this process, where it runs on glibc, reuse what it frees below 32 MiB instead of handing it back.

    For processes that work on tensor after tensor and must stay small: what is kept is what one tensor takes.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 2**25)
        mallopt(M_TRIM_THRESHOLD, 2**26)


def relaunch() -> None:
    """Begin this very command again under jemalloc; return where that cannot be, or has been done."""
    if more := environment():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **more})  # noqa: S606


def name() -> str:
    """The allocator that this process really runs on."""
    maps = Path("/proc/self/maps")
    if maps.exists() and "jemalloc" in maps.read_text():
        return f"jemalloc ({os.environ.get('MALLOC_CONF', 'its defaults')})"
    return "the system's default"
