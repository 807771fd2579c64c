"""The house itself: every package is installed, names are plain and single, rooms stay apart."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS = {"Rule"}  # one class of this name in each file of its room
SOURCES = sorted(p for top in ("core", "client", "server") for p in (ROOT / top).rglob("*.py"))


def test_every_package_folder_is_listed_in_pyproject() -> None:
    folders = {"usfmae." + ".".join(p.parent.relative_to(ROOT).parts) for p in SOURCES if p.name == "__init__.py"}
    assert {"usfmae", *folders} == set(PROJECT["tool"]["setuptools"]["packages"])


def test_version_is_one() -> None:
    from usfmae.core import __version__

    assert PROJECT["project"]["version"] == __version__


BANNED = {"utils", "util", "manager", "helper", "helpers", "common", "misc"}
BANNED |= {"porch", "door", "line", "beside", "trouble", "kept", "look", "standing", "darkroom", "going", "forward"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_have_plain_names(path: Path) -> None:
    assert not BANNED & set(path.relative_to(ROOT).with_suffix("").parts)


def test_no_folder_holds_more_than_a_dozen_modules_or_so() -> None:
    counts = Counter(p.parent for p in SOURCES if p.name not in ("__init__.py", "__main__.py"))
    assert {str(p.relative_to(ROOT)): n for p, n in counts.items() if n > 16} == {}


@pytest.mark.parametrize("side", ["core", "client", "server"])
def test_no_two_classes_of_a_package_share_a_name(side: str) -> None:
    """A class that each file of a room defines by contract (`rules/*.py: Rule`) counts once."""
    places: dict[str, set[str]] = defaultdict(set)
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] == side:
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].add(str(path.parent if node.name in CONTRACTS else path))
    assert {name: sorted(files) for name, files in places.items() if len(files) > 1} == {}


def test_names_that_flower_does_not_publish_stand_in_one_module_a_side() -> None:
    published = {"flwr.app", "flwr.serverapp", "flwr.clientapp"}
    users: dict[str, set[str]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            users.setdefault(str(path.relative_to(ROOT)), set()).update(n for n in names if n.split(".")[0] == "flwr")
    private = {path for path, names in users.items() if names - published}
    assert private == {"client/flower/pinned.py", "server/flower/pinned.py"}


def test_no_python_runs_between_fork_and_exec() -> None:
    """Agent and aggregator have threads: a lock that one of them holds at the fork stays locked in the child."""
    users = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            by_keyword = isinstance(node, ast.keyword) and node.arg == "preexec_fn"
            if by_keyword or (isinstance(node, ast.Attribute) and node.attr in ("fork", "forkpty")):
                users.add(str(path.relative_to(ROOT)))
    assert users == set()


@pytest.mark.parametrize("program", ["core", "client", "server"])
def test_help_imports_nothing_heavy(program: str) -> None:
    code = (
        f"import sys; from usfmae.{program}.cli import group; "
        "group.main(['--help'], standalone_mode=False); "
        "print([m for m in ('torch', 'flwr', 'cv2', 'pydicom', 'numpy') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("program", ["core", "client", "server"])
def test_every_command_named_in_help_exists(program: str) -> None:
    import importlib

    cli = importlib.import_module(f"usfmae.{program}.cli")
    for name in cli.COMMANDS:
        command = cli.group.get_command(None, name)
        assert command is not None and command.name == name


@pytest.mark.parametrize("side", ["core", "client", "server"])
def test_no_process_is_forked(side: str) -> None:
    """A fork of a process with threads may hold a lock for ever: processes are started as programs."""
    forks = re.compile(r"\bos\.fork(pty)?\(|\bmultiprocessing\b|\bProcessPoolExecutor\b|preexec_fn")
    assert [
        str(path) for path in SOURCES if path.relative_to(ROOT).parts[0] == side and forks.search(path.read_text())
    ] == []
