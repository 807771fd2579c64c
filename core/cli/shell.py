"""What every command shares: lazy loading, errors as one line with an exit code, `--config` and `--set`."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from usfmae.core.cli.examples import PROGRAMS, with_examples

F = TypeVar("F", bound=Callable[..., Any])


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called: `--help` reads their docstrings, not their modules."""

    def __init__(self, *args: Any, commands_at: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.commands_at = commands_at  # name -> "module:attribute"

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands_at)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands_at:
            return None
        module, _, attribute = self.commands_at[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        program = PROGRAMS.get(module.split(".")[1], "")
        return with_examples(command, f"{program} {cmd_name}")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with a hint at what was probably meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.commands_at, 1)
            if near:
                raise click.UsageError(f"{error.message} Did you mean '{near[0]}'?", ctx) from None
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.summary(name)) for name in self.commands_at])

    def _help_of(self, name: str) -> str:
        """Of a command that both programs share, and that is made by a call: light enough to import."""
        command = self.get_command(click.Context(self), name)
        return (command.help or "") if command else ""

    def summary(self, name: str) -> str:
        """The first sentence of a command's help, read from its source."""
        module, _, attribute = self.commands_at[name].partition(":")
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return ""
        tree = ast.parse(Path(spec.origin).read_text())
        function = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == attribute), None)
        text = (ast.get_docstring(function) or _help_argument(function)) if function else self._help_of(name)
        sentence = re.match(r".*?\.(?=\s|$)", text, re.DOTALL)
        return " ".join((sentence[0] if sentence else text).split())


def _help_argument(function: ast.FunctionDef) -> str:
    """The text of `@click.command(help=...)`."""
    calls = [d for d in function.decorator_list if isinstance(d, ast.Call)]
    texts = [k.value.value for d in calls for k in d.keywords if k.arg == "help" and isinstance(k.value, ast.Constant)]
    return str(texts[0]) if texts else ""


def run(group: click.Group, program: str) -> None:
    """Run a command line; a UsfmaeError becomes one line on stderr and its exit code, Ctrl-C 130."""
    from usfmae.core import log
    from usfmae.core.account import give_name

    log.setup()
    give_name()
    try:
        result = group.main(prog_name=program, standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("USFMAE_DEBUG"):
            raise
        text, code = explained(error)
        click.echo(f"error: {text}", err=True)
        sys.exit(code)


def explained(error: Exception) -> tuple[str, int]:
    """One line about any error, and the exit code: a person's mistake, this machine, or a bug."""
    from usfmae.core.errors import UsfmaeError

    if isinstance(error, UsfmaeError):
        return str(error), error.exit_code
    if isinstance(error, OSError):  # a folder that is read-only, a disk that is full
        return f"{error.filename or 'this machine'} - {error.strerror or error} - mend it and run the same again", 7
    what = f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
    return f"{what} - a bug - run it again with USFMAE_DEBUG=1 and report what it prints", 1


class _New(click.Path):
    """A place that a command will write to, tried before the work begins. ResourceError where it cannot be written."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, parameter, context)))
        above = path if path.is_dir() else next((p for p in path.absolute().parents if p.exists()), Path("/"))
        try:
            with tempfile.TemporaryDirectory(prefix=".usfmae-", dir=above):
                pass
        except OSError as error:
            from usfmae.core.errors import ResourceError

            where = f"{parameter.opts[0]} {path}" if parameter else str(path)
            raise ResourceError(where, f"cannot be written: {error.strerror or error}", "give another place") from None
        return path


class NewFile(_New):
    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False)


class NewFolder(_New):
    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False)


def configured(command: F) -> F:
    """Adds `--config FILE` and `--set key=value`, handed on as `config_file` and `overrides`."""
    file = click.Path(path_type=Path, dir_okay=False)
    return click.option("--config", "config_file", type=file, help="YAML file of settings.")(overriding(command))


def overriding(command: F) -> F:
    """Adds `--set key=value`, handed on as `overrides`."""
    return click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the settings; repeatable."
    )(command)


def as_json(command: F) -> F:
    """Adds `--json`, handed on as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print as JSON.")(command)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(value, indent=2, default=str))
