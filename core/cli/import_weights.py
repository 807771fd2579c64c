"""`usfmae import`: weights of other libraries as a checkpoint of ours."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.core.cli.shell import NewFile, print_json


@click.command(
    "import",
    help="""Make a checkpoint of ours from weights that others wrote.

    Read are the published USF-MAE, facebookresearch/mae with or without its training state, timm, Hugging Face ViT and
    ViTMAE, training states of Lightning and others. No code in the file is ever run. Heads show in no shape: where nothing states the decoder's, you do.

    Example: usfmae import USF-MAE_full_pretrain.pt --decoder-heads 16 --out usf-mae.safetensors""",
)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=NewFile(), help="The checkpoint to write.")
@click.option("--decoder-heads", type=click.IntRange(1), help="Decoder heads, where the file does not say (8 or 16).")
@click.option("--heads", type=click.IntRange(1), help="Encoder heads of a model of no published width.")
@click.option("--encoder-only", is_flag=True, help="Leave the decoder out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def import_(
    source: Path, out: Path, decoder_heads: int | None, heads: int | None, encoder_only: bool, as_json: bool
) -> None:
    from usfmae.core.checkpoint import encoder_of, save
    from usfmae.core.cli.inspect import facts_of
    from usfmae.core.errors import UsageError
    from usfmae.core.mae.weights.init_weights import load_any, read

    if out.suffix != ".safetensors":
        raise UsageError(
            f"--out {out}", "our checkpoints are safetensors", f"write --out {out.with_suffix('.safetensors')}"
        )
    start = read(source)
    if "decoder_heads" in start.unstated and decoder_heads is None and not encoder_only:
        raise UsageError(
            f"weights {source}",
            "do not say how many heads their decoder has, and it does not show",
            "name them: --decoder-heads 8 (USF-MAE's paper) or 16 (its notebook, facebookresearch), or --encoder-only",
        )
    loaded = load_any(source, heads, decoder_heads)
    tensors = encoder_of(loaded.tensors) if encoder_only else loaded.tensors
    save(out, tensors, loaded.metadata)
    if as_json:
        print_json(facts_of(out))
    else:
        click.echo(out)
