"""The command `usfmae`: the single-site tool. One file per command; nothing heavy is imported for `--help`."""

from __future__ import annotations

import click

from usfmae.core import __version__
from usfmae.core.cli.shell import LazyGroup, run

COMMANDS = {
    "demo": ("usfmae.core.cli.demo:demo", "The whole system on this machine, with real Flower processes."),
    "prepare": ("usfmae.core.cli.prepare:prepare", "Read, clean and pack scans into a corpus."),
    "pretrain": ("usfmae.core.cli.pretrain:pretrain", "Pretrain the masked autoencoder on corpora."),
    "probe": ("usfmae.core.cli.probe:probe", "Frozen encoder: kNN and linear probe on a benchmark."),
    "finetune": ("usfmae.core.cli.finetune:finetune", "Fine-tune an encoder on a benchmark."),
    "reproduce": ("usfmae.core.cli.reproduce:reproduce", "OpenUS-46 to corpus to pretraining to Table 2."),
    "datasets": ("usfmae.core.cli.datasets:datasets", "The registry of public data sets: list, check."),
    "export": ("usfmae.core.cli.export:export", "Write a checkpoint for timm, Hugging Face, MAE or ONNX."),
    "inspect": ("usfmae.core.cli.inspect:inspect", "Show what a checkpoint is."),
    "verify": ("usfmae.core.cli.verify:verify", "Check a checkpoint's or release's hashes and signature."),
    "config": ("usfmae.core.cli.config:config", "Show settings, their JSON Schema or a template."),
}


@click.group(
    cls=LazyGroup,
    commands_at=COMMANDS,
    help="usfmae grows one ultrasound foundation model over many hospitals without moving a scan.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="usfmae")
def group() -> None:
    pass


def main() -> None:
    run(group, "usfmae")
