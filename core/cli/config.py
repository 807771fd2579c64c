"""`config` of the three programs: the settings as they are, their JSON Schema, a commented template."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.core.cli.shell import configured, print_json
from usfmae.core.config import Settings, load, shown
from usfmae.core.config import template as template_of
from usfmae.core.config.base import Options


@click.group(
    help="""Settings: what holds now and where from, their JSON Schema, a commented template.

    \b
    usfmae config show --set train.lr=1e-4
    usfmae config template > settings.yaml
    usfmae config schema > settings.schema.json
    """
)
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


def settings_group(options: type[Options], file_name: str) -> click.Group:
    """`config` of a program whose settings lie in a directory, in the file of this name."""

    @click.group("config")
    def group() -> None:
        """Settings: every key with its default and meaning, or as they are in a directory.

        \b
        usfmae-client config show SITE        usfmae-server config show DIRECTORY
        usfmae-client config template         usfmae-server config template
        usfmae-client config schema           usfmae-server config schema
        """

    @group.command()
    def template() -> None:
        """A commented file with every key at its default; it can be typed over a new one."""
        click.echo(template_of(options))

    @group.command()
    def schema() -> None:
        """JSON Schema of the file, for editors."""
        print_json(options.model_json_schema())

    @group.command()
    @click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
    @click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
    def show(directory: Path, as_json: bool) -> None:
        """Each key of DIRECTORY with its value and where the value came from."""
        settings, origins = load(options, directory / file_name)
        if as_json:
            print_json(settings.model_dump(mode="json"))
            return
        for key, value, origin in shown(settings, origins):
            click.echo(f"{key} = {value}  ({origin})")

    return group
