"""Writes docs/reference/*.md from the code: commands, settings, metrics, exit codes, thresholds of cleaning; nothing is kept by hand."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from usfmae.core import clean, errors, metrics
from usfmae.core.cli.shell import LazyGroup
from usfmae.core.config.base import Options, sub_options
from usfmae.core.config.clean import CleanSettings

PROGRAMS = {"usfmae": "usfmae.core.cli", "usfmae-client": "usfmae.client.cli", "usfmae-server": "usfmae.server.cli"}
ROOTS = {
    "usfmae": ("usfmae.core.config:Settings", "`--config FILE`, `usfmae config template`"),
    "A site": ("usfmae.core.config.site:SiteSettings", "`SITE/site.yaml`"),
    "The aggregator": ("usfmae.core.config.coordinator:CoordinatorSettings", "`DIR/coordinator.yaml`"),
}
CALLS = re.compile(r"\x08\n(.*?)(?=\n\n|\Z)", re.DOTALL)  # a paragraph that click does not wrap: calls, as typed
# What each exit code means and what to do; the classes below it are found in core/errors.py.
EXIT_CODES = {
    0: ("done", "Nothing."),
    1: ("a bug", "Report it with the line printed; `USFMAE_DEBUG=1` shows the traceback."),
    2: ("usage", "The command line asks for something that cannot be: see `--help`."),
    3: ("configuration", "The line names each wrong key and where its value came from."),
    4: ("data source", "A scan, corpus, label or checkpoint cannot be used: the line says which and why."),
    5: ("quarantine limit", "More was kept back than the site allows: look at the reasons before you raise the limit."),
    6: ("network or TLS", "DNS, proxy, TLS, a refused connection or key: run `usfmae-client doctor SITE`."),
    7: ("machine", "Disk, memory, GPU, a taken port, or a missing program such as Tesseract."),
    8: ("policy", "A rule refused it: admission, egress, a broken chain, the forgetting budget."),
    75: ("try later", "Paused, quiet hours, or another run at work: the same command works later."),
    130: ("stopped", "Ctrl-C. The same command goes on."),
}
# On what a threshold of cleaning was set, as far as a page, a comment or a commit says so; nothing is known of the others.
SET_ON = {
    "foreign._FACE": "at most 0.12 on 36 real scans at this size",
    "foreign._LONGEST_TURNED": "60 turned faces, 60 pictures without",
    "foreign._LONGEST_IN_CLIP": "46 clips of the tuning half, at most 0.11 without a face; 184 faces drawn into them",
    "foreign._LONGEST_OF_THREE": "the same clips and faces, at most 0.06 without one",
    "clip._PASSES": "22 clips of the tuning half: names that stand still at most 1.5 in 12 and 2.7 in the rest, dark names that move 2.7 to 3.6",
    "clip._FEW": "48 clips of the tuning half with a moving name, seen in a third of its frames or more but for one out of focus",
    "graphics._MANY": "69 pictures of the tuning half, 123 real stills of four data sets",
    "ocr._STRIP": "80 crops",
    "text.SURE_DRAWN": "40 clean scans tuned on, of which it touches none, and drawn strings",
    "text._DOUBTED_NUMBER": "42 clean stills of STU-Hospital: kept back 9 at .5, 6 at .6, 3 at .7; labelled digits and words of both halves, none lost",
    "CleanSettings.most_filled": "40 drawn pictures dense with print of the tuning half, of which 9 would be filled by 12 % and more, 5 by 15 %",
    "text._SECOND": "144 drawn strings of low and 432 of normal contrast",
    "text._SMALL": "19 drawn strings of low contrast on small pictures of the tuning data",
    "CleanSettings.most_suspected": "66 annotated pictures, 38 clean stills and 8 clips of the tuning half",
    "CleanSettings.inpaint_radius": "40 pictures; 308 strings of the fresh part of 0.1",
}


def write_reference(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    pages = {
        "commands": commands(),
        "settings": settings(),
        "metrics": measured(),
        "exit-codes": exit_codes(),
        "thresholds": thresholds(),
    }
    for name, lines in pages.items():
        text = "\n".join(lines) + "\n"
        file = folder / f"{name}.md"
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def groups() -> Iterator[tuple[str, LazyGroup]]:
    for program, module in PROGRAMS.items():
        yield program, importlib.import_module(module).group


def every_command() -> Iterator[tuple[str, click.Command, str]]:
    """(full name, command, one-line help) of every command and subcommand."""
    for program, group in groups():
        for name in group.commands_at:
            command = group.get_command(click.Context(group), name)
            if command is not None:
                yield from _below(f"{program} {name}", command, group.summary(name))


def _below(name: str, command: click.Command, text: str) -> Iterator[tuple[str, click.Command, str]]:
    yield name, command, text
    if isinstance(command, click.Group):
        for part in command.list_commands(click.Context(command)):
            inner = command.get_command(click.Context(command), part)
            if inner is not None:
                yield from _below(f"{name} {part}", inner, inner.get_short_help_str(200))


def commands() -> Iterator[str]:
    yield "# Commands\n"
    yield "Data goes to stdout, everything else to stderr. Every error is one line: what failed, why, what to do."
    for name, command, text in every_command():
        depth = "##" if name.count(" ") == 1 else "###"
        yield f"\n{depth} {name}\n"
        yield CALLS.sub(r"```bash\n\1\n```", inspect.cleandoc(command.help or text).replace("\f", ""))
        if isinstance(command, click.Group):
            continue
        yield f"\n```text\n{name} {' '.join(command.collect_usage_pieces(click.Context(command)))}\n```"
        options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
        if options:
            yield "\n| option | meaning |\n|---|---|"
        for option in options:
            spelled = ", ".join(f"`{o}`" for o in (*option.opts, *option.secondary_opts))
            yield f"| {spelled} | {_cell(option.help or '')}{_default(option)} |"


def _default(option: click.Option) -> str:
    shown = option.show_default and option.default not in (None, False, ())
    return f" Default: `{option.default}`." if shown else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def settings() -> Iterator[str]:
    yield "# Settings\n"
    yield "Every key, its default and its meaning. `--set key=value` overrides a key for one call,"
    yield "`USFMAE_SECTION__KEY=value` in the environment does the same, `USFMAE_KEY=value` for a key without a section"
    yield "(other names that begin with `USFMAE_` are left alone). Passwords never stand in a configuration: a key that"
    yield "ends in `_file` names the file that holds one."
    for title, (place, where) in ROOTS.items():
        yield f"\n## {title}\n\nIn {where}.\n\n| key | default | meaning |\n|---|---|---|"
        module, _, name = place.partition(":")
        yield from _keys(getattr(importlib.import_module(module), name), "")


def _keys(options: type[Options], prefix: str) -> Iterator[str]:
    for name, field in options.model_fields.items():
        inner = sub_options(field.annotation)
        if inner:
            yield from _keys(inner, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else f"`{_plain(field.get_default(call_default_factory=True))}`"
        yield f"| `{prefix}{name}` | {default} | {_cell(field.description or '')} |"


def _plain(value: Any) -> str:
    """As it stands in YAML."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "null"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(str, value)) + "]"
    return '""' if value == "" else str(value)


def measured() -> Iterator[str]:
    yield "# Metrics\n"
    yield "`metrics.port` switches the Prometheus endpoint on, on loopback unless `metrics.host` says otherwise."
    yield "Values are read from the state on disk, so counters survive a restart. "
    yield "No label carries a patient, path or UID."
    yield "Dashboard and alert rules: `deploy/grafana`, `deploy/prometheus`."
    for title, table in (("At a site", metrics.SITE), ("At the aggregator", metrics.SERVER)):
        yield f"\n## {title}\n\n| metric | kind | label | meaning |\n|---|---|---|---|"
        for metric in table:
            label = f"`{metric.label}`" if metric.label else ""
            yield f"| `{metric.name}` | {metric.kind} | {label} | {metric.text} |"


def exit_codes() -> Iterator[str]:
    yield "# Exit codes\n\n| code | meaning | error classes | what to do |\n|---|---|---|---|"
    classes: dict[int, list[str]] = {}
    for name, found in vars(errors).items():
        if isinstance(found, type) and issubclass(found, errors.UsfmaeError):
            classes.setdefault(found.exit_code, []).append(f"`{name}`")
    for code, (meaning, action) in EXIT_CODES.items():
        yield f"| {code} | {meaning} | {', '.join(classes.get(code, []))} | {action} |"


def thresholds() -> Iterator[str]:
    yield "# Thresholds of cleaning\n"
    yield "Every number that decides what is removed, kept or kept back, where it stands in `core/clean`, and on what it was set."
    yield "\n| threshold | value | meaning | set on |\n|---|---|---|---|"
    for names, value, meaning in every_threshold():
        known = next((SET_ON[name] for name in names if name in SET_ON), "not recorded")
        yield f"| {', '.join(f'`{name}`' for name in names)} | {value} | {_cell(meaning)} | {known} |"


def every_threshold() -> Iterator[tuple[list[str], str, str]]:
    """(names, value, meaning) of every number at the top of a module of `core/clean`, and of every one that can be set."""
    for name, field in CleanSettings.model_fields.items():
        if isinstance(field.default, int | float):
            yield [f"CleanSettings.{name}"], str(field.default), field.description or ""
    for path in sorted(Path(next(iter(clean.__path__))).glob("*.py")):
        source = path.read_text()
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and _is_number(node.value):
                target = node.targets[0]
                names = [ast.unparse(each) for each in (target.elts if isinstance(target, ast.Tuple) else [target])]
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                meaning = " ".join(comments[line] for line in lines if line in comments)
                yield [f"{path.stem}.{name}" for name in names], ast.unparse(node.value), meaning


def _is_number(node: ast.expr) -> bool:
    """Whether a value is a number, or several."""
    if isinstance(node, ast.Tuple):
        return all(map(_is_number, node.elts))
    node = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


if __name__ == "__main__":
    write_reference(Path(__file__).parent / "reference")
