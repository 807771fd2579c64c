"""The documentation keeps up with the code: what a person can type, set, scrape or meet is written down."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import yaml

from usfmae.core import errors, metrics
from usfmae.core.cli.examples import EXAMPLES
from usfmae.core.config.base import Options, keys_of
from usfmae.core.federated.messages import VerdictCode

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [page for folder in (DOCS, DOCS / "results") for page in sorted(folder.glob("*.md"))]
TOP = ("README.md", "CONTRIBUTING.md")  # pages that stand beside the folder docs/
TEXT = {str(page.relative_to(DOCS)): page.read_text() for page in PAGES} | {
    name: (ROOT / name).read_text() for name in TOP
}


def _reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE = _reference()
COMMANDS = {name: (command, text) for name, command, text in REFERENCE.every_command()}


def test_every_command_and_option_says_what_it_is_for() -> None:
    for name, (command, text) in COMMANDS.items():
        assert (command.help or text).strip(), f"{name} has no help"
        for option in command.params:
            assert not isinstance(option, click.Option) or option.hidden or option.help, f"{name} {option.opts}"


def _examples() -> dict[str, list[str]]:
    """Lines of each command's help that can be typed as they stand."""
    shown = {}
    for name, (command, text) in COMMANDS.items():
        if not isinstance(command, click.Group):
            program = name.split()[0]
            lines = [line.strip() for line in f"{command.help or text}\n{command.epilog or ''}".splitlines()]
            starts = [line for line in lines if line.removeprefix("Example: ").startswith(f"{program} ")]
            shown[name] = [line.removeprefix("Example: ") for line in starts]
    return shown


def test_every_command_shows_an_example_of_itself() -> None:
    assert [name for name, lines in _examples().items() if not any(line.startswith(name) for line in lines)] == []


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_examples_can_be_typed(line: str) -> None:
    test_every_command_line_in_the_docs_can_be_typed("--help", line.partition(" > ")[0])


def test_every_setting_is_explained() -> None:
    for place, _ in REFERENCE.ROOTS.values():
        module, _, name = place.partition(":")
        root = getattr(importlib.import_module(module), name)
        unexplained = [key for key, field in _fields(root) if not (field.description or "").strip()]
        assert not unexplained


def _fields(options: type[Options], prefix: str = "") -> list[tuple[str, Any]]:
    from usfmae.core.config.base import sub_options

    found: list[tuple[str, Any]] = []
    for name, field in options.model_fields.items():
        inner = sub_options(field.annotation)
        found += _fields(inner, f"{prefix}{name}.") if inner else [(prefix + name, field)]
    return found


def test_every_metric_says_what_it_counts() -> None:
    assert not [name for name, metric in metrics.ALL.items() if len(metric.text) < 10]


def test_every_verdict_of_the_gate_is_explained_under_its_own_name() -> None:
    gate = (ROOT / "docs" / "federation.md").read_text().partition("## The admission gate")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in gate.splitlines() if line.startswith("|")]
    assert [code for code in VerdictCode if not any(f"`{code}`" in row for row in rows)] == []


def test_reference_holds_every_setting_metric_and_exit_code(tmp_path: Path) -> None:
    REFERENCE.write_reference(tmp_path)
    settings = (tmp_path / "settings.md").read_text()
    for place, _ in REFERENCE.ROOTS.values():
        module, _, name = place.partition(":")
        for key in keys_of(getattr(importlib.import_module(module), name)):
            assert f"| `{key}` |" in settings
    shown = (tmp_path / "metrics.md").read_text()
    assert all(f"`{name}`" in shown for name in metrics.ALL)
    codes = {e.exit_code for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.UsfmaeError)}
    assert codes <= set(REFERENCE.EXIT_CODES)
    listed = (tmp_path / "exit-codes.md").read_text()
    assert all(f"| {code} |" in listed for code in codes)


def test_every_threshold_of_cleaning_says_what_it_means_and_none_that_is_gone_is_explained(tmp_path: Path) -> None:
    found = list(REFERENCE.every_threshold())
    assert {"text.SURE_DRAWN", "foreign._FACE", "CleanSettings.most_filled"} <= {
        n for names, *_ in found for n in names
    }
    unexplained = {name for names, _, meaning in found if not meaning for name in names}
    assert unexplained <= {
        f"graphics.{name}" for name in ("_DOT_CONTRAST", "_MAX_CALIPERS", "_MAX_DOTS", "_AS_BRIGHT", "_GAP")
    }
    assert set(REFERENCE.SET_ON) <= {name for names, *_ in found for name in names}
    REFERENCE.write_reference(tmp_path)
    page = (tmp_path / "thresholds.md").read_text()
    assert all(f"`{name}`" in page for names, *_ in found for name in names)


SHELL = re.compile(r"```(console|bash)\n(.*?)```", re.DOTALL)


def _typed() -> list[tuple[str, str]]:
    """(page, command line) of every command of ours in the docs."""
    found = []
    for page, text in TEXT.items():
        for kind, block in SHELL.findall(text):
            lines = [line.strip() for line in re.sub(r"\\\n\s*", "", block).splitlines()]
            if kind == "console":
                lines = [line[2:] for line in lines if line.startswith("$ ")]
            found += [(page, line.removeprefix("sudo ")) for line in lines]
    ours = re.compile(r"(/opt/usfmae/bin/)?usfmae(-\w+)? ")
    return [(page, line) for page, line in found if ours.match(line) and " ..." not in line]


@pytest.mark.parametrize(("page", "line"), _typed(), ids=lambda x: x[:60])
def test_every_command_line_in_the_docs_can_be_typed(page: str, line: str) -> None:
    typed(page, line)


def _called() -> list[tuple[str, str]]:
    """(command, call) of every call that a help text shows: paragraphs that click does not wrap, two columns at most."""
    calls = []
    for name, (command, _) in COMMANDS.items():
        for block in REFERENCE.CALLS.findall(inspect.cleandoc(command.help or "")):
            lines = re.sub(r"\\\n\s*", "", block).splitlines()
            calls += [
                (name, re.sub(r" > .*", "", call)) for line in lines for call in re.split(r"\s{3,}", line.strip())
            ]
    return calls


@pytest.mark.parametrize(("name", "line"), _called(), ids=lambda x: x[:60])
def test_every_call_that_help_shows_can_be_typed(name: str, line: str) -> None:
    assert line.startswith("usfmae")
    typed(f"{name} --help", line)


def test_every_command_shows_a_call_in_its_help_or_in_its_groups() -> None:
    texts = {name: command.help or "" for name, (command, _) in COMMANDS.items()}
    silent = [name for name, text in texts.items() if name not in text + texts[" ".join(name.split()[:2])]]
    assert silent == []


def typed(page: str, line: str) -> None:
    """Parsed by the command itself: a wrong command, option or choice fails, existing paths are not asked for."""
    program, *words = shlex.split(line.removeprefix("/opt/usfmae/bin/"), comments=True)
    if words == ["--version"]:
        return
    name, command = program, None
    while words and f"{name} {words[0]}" in COMMANDS:
        name = f"{name} {words.pop(0)}"
        command = COMMANDS[name][0]
    assert command is not None, f"{page}: {line}"
    if words == ["--help"]:
        return
    for parameter in command.params:
        if isinstance(parameter.type, click.Path):
            parameter.type.exists = False
    known = {o for p in command.params if isinstance(p, click.Option) for o in (*p.opts, *p.secondary_opts)}
    for word in words:
        assert not word.startswith("--") or word.partition("=")[0] in known, f"{page}: {line}: {word}"
    if line.endswith("--month"):
        return
    command.make_context(name, words)


def test_settings_in_snippets_are_real() -> None:
    """Each YAML snippet, and each `--set`, is a site's or an aggregator's."""
    from usfmae.core.config.coordinator import CoordinatorSettings
    from usfmae.core.config.site import SiteSettings

    known = {*keys_of(SiteSettings), *keys_of(CoordinatorSettings)}
    from usfmae.core.config import Settings

    known |= set(keys_of(Settings))
    for page, text in TEXT.items():
        for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
            for section, values in (yaml.safe_load(block) or {}).items():
                keys = [f"{section}.{k}" for k in values] if isinstance(values, dict) else [section]
                assert set(keys) <= known, f"{page}: {keys}"
        for key in re.findall(r"--set '?([a-z_.]+)=", text):
            if key not in ("key", "role"):
                assert key in known, f"{page}: --set {key}"


def test_links_and_pictures_lead_somewhere() -> None:
    for page, text in TEXT.items():
        folder = ROOT if page in TOP else (DOCS / page).parent
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
            if target.startswith("reference/"):
                assert target.removeprefix("reference/").removesuffix(".md") in {
                    "commands", "settings", "metrics", "exit-codes",
                }  # fmt: skip
                continue
            assert (folder / target).exists(), f"{page}: {target}"


IN_THE_TREE = re.compile(r"(?<![\w/.-])(?:core|client|server|tests|benchmarks|deploy|docs)/[\w./-]*\w")
MADE = ("docs/_build", "docs/reference/")  # by `make docs`


@pytest.mark.parametrize("page", TEXT)
def test_every_file_of_the_tree_that_a_page_names_exists(page: str) -> None:
    """Paths below the top folders, and names of test files; an example that says how to add a file makes its own."""
    examples = set(re.findall(r"^# ([\w/]+\.py)$", TEXT[page], re.MULTILINE))
    examples |= {f"tests/{path.rpartition('/')[0]}/test_{path.rpartition('/')[2]}" for path in examples}
    code = " ".join(re.findall(r"`([^`\n]+)`", TEXT[page]))
    named = {path for path in IN_THE_TREE.findall(code) if not path.startswith(MADE)} - examples
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")} | {Path(path).name for path in examples}
    assert set(re.findall(r"\btest_\w+\.py", code)) <= tests


@pytest.mark.parametrize("page", TEXT)
def test_every_target_of_make_that_a_page_names_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    blocks = "\n".join(block for _, block in SHELL.findall(TEXT[page]))
    named = {*re.findall(r"`make ([\w-]+)", TEXT[page]), *re.findall(r"^(?:\$ )?make ([\w-]+)", blocks, re.MULTILINE)}
    assert named <= targets


def test_every_page_is_in_the_table_of_contents() -> None:
    index = TEXT["index.md"]
    for page in PAGES:
        name = str(page.relative_to(DOCS).with_suffix(""))
        assert name == "index" or re.search(rf"^{re.escape(name)}$", index, re.MULTILINE), name


def test_pages_speak_of_released_versions() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for page, text in TEXT.items():
        for named in re.findall(r"usfmae[-:](\d+\.\d+\.\d+)", text):
            assert named == version, page


def test_reference_makes_from_a_plain_checkout(tmp_path: Path) -> None:
    """The script behind the docs runs by itself and writes the same bytes again."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'docs')!r}); import reference, pathlib;"
         f"reference.write_reference(pathlib.Path({str(tmp_path)!r}))"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    REFERENCE.write_reference(tmp_path / "again")
    for file in tmp_path.glob("*.md"):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_the_named_controls_are_named_once() -> None:
    names = re.findall(r"^\| (EG-\d+)", TEXT["egress.md"], re.MULTILINE)
    assert names == [f"EG-{n}" for n in range(1, len(names) + 1)]


def test_grafana_json_is_what_its_script_makes() -> None:
    spec = importlib.util.spec_from_file_location("make", ROOT / "deploy" / "grafana" / "make.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert json.loads((ROOT / "deploy" / "grafana" / "usfmae.json").read_text()) == module.dashboard()
