"""Examples at the end of `--help`, of commands below a group. A test types every one of them."""

from __future__ import annotations

import click

# by the top folder of a command's module
PROGRAMS = {"core": "usfmae", "client": "usfmae-client", "server": "usfmae-server"}

EXAMPLES: dict[str, tuple[str, ...]] = {
    "usfmae datasets list": ("usfmae datasets list --corpus strict42 --licence permissive",),
    "usfmae datasets check": ("usfmae datasets check --root data --missing",),
    "usfmae datasets unpack": ("usfmae datasets unpack --root data",),
    "usfmae config show": ("usfmae config show --set train.lr=1e-4",),
    "usfmae config schema": ("usfmae config schema > usfmae.schema.json",),
    "usfmae config template": ("usfmae config template > usfmae.yaml",),
    "usfmae-client person add": ("usfmae-client person add st-olav anna.berg",),
    "usfmae-client person list": ("usfmae-client person list st-olav",),
    "usfmae-client person remove": ("usfmae-client person remove st-olav anna.berg",),
    "usfmae-client config show": ("usfmae-client config show st-olav",),
    "usfmae-client config schema": ("usfmae-client config schema > site.schema.json",),
    "usfmae-client config template": ("usfmae-client config template > site.example.yaml",),
    "usfmae-server site add": ("usfmae-server site add federation enrol.json --capacity 20000",),
    "usfmae-server site capacity": ("usfmae-server site capacity federation st-olav 20000",),
    "usfmae-server site list": ("usfmae-server site list federation",),
    "usfmae-server site revoke": ("usfmae-server site revoke federation st-olav",),
    "usfmae-server site rotate": ("usfmae-server site rotate federation rotation.json",),
    "usfmae-server campaign end": ("usfmae-server campaign end federation",),
    "usfmae-server campaign list": ("usfmae-server campaign list federation",),
    "usfmae-server campaign rounds": ("usfmae-server campaign rounds federation",),
    "usfmae-server round close": ("usfmae-server round close federation",),
    "usfmae-server person add": ("usfmae-server person add federation anna.berg",),
    "usfmae-server person list": ("usfmae-server person list federation",),
    "usfmae-server person remove": ("usfmae-server person remove federation anna.berg",),
    "usfmae-server notify": ("usfmae-server notify federation --test",),
    "usfmae-server config show": ("usfmae-server config show federation",),
    "usfmae-server config schema": ("usfmae-server config schema > coordinator.schema.json",),
    "usfmae-server config template": ("usfmae-server config template > coordinator.example.yaml",),
}


def with_examples(command: click.Command, name: str) -> click.Command:
    """The command, and the commands below it, with their examples; `name` as it is typed, `usfmae datasets`."""
    for below, sub in command.commands.items() if isinstance(command, click.Group) else ():
        with_examples(sub, f"{name} {below}")
    lines = EXAMPLES.get(name)
    if lines and not command.epilog:
        command.epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
    return command
