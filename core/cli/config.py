"""`usfmae config`: the settings as they are, their JSON Schema, a commented template."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.core.cli.shell import configured, print_json
from usfmae.core.config import Settings, load, shown
from usfmae.core.config import template as template_of


@click.group(help="Settings: what holds now and where from, their JSON Schema, a commented template.")
def config() -> None:
    pass


@config.command(help="Each key with its value and where the value came from.")
@configured
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def show(config_file: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    settings, origins = load(Settings, config_file, overrides)
    if as_json:
        print_json(settings.model_dump(mode="json"))
        return
    for key, value, origin in shown(settings, origins):
        click.echo(f"{key} = {value}  ({origin})")


@config.command(help="JSON Schema of the YAML file, for editors.")
def schema() -> None:
    print_json(Settings.model_json_schema())


@config.command(help="A commented YAML file with every key at its default.")
def template() -> None:
    click.echo(template_of(Settings))
