"""What the decoding process gives up before it sees the first byte of a scan, for good.

Landlock (Linux 5.13): it reads the programs' own folders and nothing else of the machine, writes nothing, connects to
nothing. seccomp: it makes no socket and looks into no other process. Scans come as open descriptors. Both are system
calls without a wrapper in the C library, hence `ctypes`. Sources: kernel documentation, userspace-api/landlock and
userspace-api/seccomp_filter; linux/landlock.h, linux/filter.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import site
import struct
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import usfmae.core

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
VERSION = 1  # flag of CREATE_RULESET: ask for the kernel's version of Landlock
PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE, MAKE_REG = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE
# Landlock version -> how many rights over files it knows: 13, then refer, truncate, device ioctl
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
NETWORK_FROM, SCOPES_FROM = 4, 6  # versions that know TCP, and signals and abstract sockets

# The machine's programs and libraries, and what a C library asks the kernel about memory and processors.
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
KERNEL = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm", "/sys/devices/system")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")

# System calls that make a connection or look into another process, by machine
X86_64 = {
    "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "socketpair": 53, "ptrace": 101,
    "open_by_handle_at": 304, "process_vm_readv": 310, "process_vm_writev": 311, "accept4": 288, "bpf": 321,
}  # fmt: skip
AARCH64 = {
    "socket": 198, "socketpair": 199, "bind": 200, "listen": 201, "accept": 202, "connect": 203, "ptrace": 117,
    "open_by_handle_at": 265, "process_vm_readv": 270, "process_vm_writev": 271, "accept4": 242, "bpf": 280,
}  # fmt: skip
ANYWHERE = {"io_uring_setup": 425, "pidfd_getfd": 438}
FILTERS = {"x86_64": (0xC000003E, X86_64), "aarch64": (0xC00000B7, AARCH64)}


def landlock_version() -> int:
    """The kernel's version of Landlock; 0 where it has none, or where a container forbids the call."""
    version: int = ctypes.CDLL(None, use_errno=True).syscall(CREATE_RULESET, None, 0, VERSION)
    return max(0, version)


def confine(writable: Sequence[str] = ()) -> int:
    """Confine this thread and every one it starts. The version of Landlock in force, 0 where there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return 0
    version = landlock_version()
    if version:
        _landlock(libc, version, writable)
    _forbid_sockets(libc)
    return version


def program_folders() -> list[str]:
    """Where this interpreter and its packages lie; not the folder it was started in, nor all of PYTHONPATH."""
    top_level = [module for name, module in list(sys.modules.items()) if "." not in name]
    packages = [module for module in top_level if hasattr(module, "__path__")]
    roots = [*SYSTEM, *KERNEL, sys.prefix, sys.base_prefix, *site.getsitepackages(), *usfmae.core.__path__]
    roots += [path for path in sys.path if "site-packages" in path]
    roots += [str(Path(str(module.__file__)).parent) for module in packages if getattr(module, "__file__", None)]
    return [root for root in dict.fromkeys(map(os.path.realpath, roots)) if root != "/"]


def _landlock(libc: ctypes.CDLL, version: int, writable: Iterable[str]) -> None:
    files = (1 << FILE_RIGHTS.get(version, 16)) - 1
    network = 0b11 if version >= NETWORK_FROM else 0  # binding and connecting TCP: no rule allows either
    scopes = 0b11 if version >= SCOPES_FROM else 0
    attributes = struct.pack("=QQQ", files, network, scopes)
    size = 8 if version < NETWORK_FROM else 16 if version < SCOPES_FROM else 24
    ruleset = _checked(libc.syscall(CREATE_RULESET, attributes, size, 0))
    try:
        for path in program_folders():
            _allow(libc, ruleset, path, EXECUTE | READ_FILE | READ_DIR)
        for path in DEVICES:
            _allow(libc, ruleset, path, READ_FILE | WRITE_FILE)
        for path in writable:
            _allow(libc, ruleset, path, (READ_FILE | WRITE_FILE | READ_DIR | REMOVE_FILE | MAKE_REG | 1 << 14) & files)
        _checked(libc.syscall(RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    """Allow `rights` below a folder, or to a file; what is not there needs no rule."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            rights &= rights if Path(path).is_dir() else OF_FILES
            _checked(libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0))
        finally:
            os.close(descriptor)


def _forbid_sockets(libc: ctypes.CDLL) -> None:
    """A seccomp filter that answers EPERM; where the machine is another, Landlock stands alone."""
    if platform.machine() not in FILTERS:
        return
    architecture, calls = FILTERS[platform.machine()]
    numbers = [*calls.values(), *ANYWHERE.values()]
    count = len(numbers)
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ, BPF_JMP|JGE, BPF_RET
    program = [
        (load, 0, 0, 4),  # the architecture: another one numbers its calls otherwise and is refused whole
        (equal, 0, count + 3, architecture),
        (load, 0, 0, 0),  # the number of the call
        (at_least, count + 1, 0, 0x40000000),  # x32: the same calls once more
        *((equal, count - place, 0, number) for place, number in enumerate(numbers)),
        (answer, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        (answer, 0, 0, 0x00050000 | errno.EPERM),  # SECCOMP_RET_ERRNO: where every taken jump lands
    ]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
