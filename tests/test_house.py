"""The house itself: every package is installed, files stay small, names stay sober, rooms stay apart."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = sorted(p for top in ("core", "client", "server") for p in (ROOT / top).rglob("*.py"))


def test_every_package_folder_is_listed_in_pyproject() -> None:
    folders = {"usfmae." + ".".join(p.parent.relative_to(ROOT).parts) for p in SOURCES if p.name == "__init__.py"}
    assert folders == set(PROJECT["tool"]["setuptools"]["packages"])


def test_version_is_one() -> None:
    from usfmae.core import __version__

    assert PROJECT["project"]["version"] == __version__


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 330, "split the file"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1
            assert length <= 50, f"{node.name} has {length} lines"
    assert not {"utils", "manager", "helper", "helpers"} & set(path.with_suffix("").parts)


def test_flower_stands_behind_few_doors() -> None:
    doors = {
        "client/flower/fleet_client.py",
        "client/flower/messages.py",
        "client/flower/supernode_app.py",
        "server/flower/serverapp.py",
    }
    doors |= {"server/flower/link_state.py", "server/flower/fleet_api.py", "server/flower/object_store.py"}
    users = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.split(".")[0] == "flwr" for name in names):
                users.add(str(path.relative_to(ROOT)))
    assert users <= doors


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
