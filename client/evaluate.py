"""How well an encoder fits this hospital: masked loss and reconstructions on held-out scans. Nothing leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from usfmae.client import site_policy
from usfmae.client.rounds.jobs import Job
from usfmae.client.site import Site
from usfmae.core.checkpoint import encoder_of, load
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.files import write_atomic
from usfmae.core.mae.evaluation import evaluate
from usfmae.core.mae.model import MaskedAutoencoder, load_tensors

ROWS = 4  # images in a panel


def evaluated(site: Site, model: Path, panel: Path | None = None) -> dict[str, Any]:
    """`loss`, `images`, `held_out` of a checkpoint at this site, with the site's own decoder where it trained one.

    Raises CheckpointError for a foreign model and CorpusError where the site has no images.
    """
    loaded = load(model)
    own = _latest_decoder(site)
    tensors = {**encoder_of(loaded.tensors), **own} if own else loaded.tensors
    network = MaskedAutoencoder(loaded.model, loaded.train.mask_ratio, loaded.train.norm_pix)
    load_tensors(network, tensors, str(model))
    network.eval().to(_device(site))
    corpus = Corpus([site.corpus])
    trained, held_out = corpus.split(loaded.train.held_out, loaded.train.seed)
    measured = held_out if len(held_out) else trained
    if panel:
        _write_panel(panel, network, corpus, measured[:: max(1, len(measured) // ROWS)][:ROWS], loaded.train)
    return {
        "loss": evaluate(network, corpus, measured, loaded.train),
        "images": len(corpus),
        "held_out": len(held_out),
        "decoder": "this site's" if own else "the checkpoint's",
    }


def _device(site: Site) -> str:
    """The first of the GPUs that the site gives, else the CPU."""
    chosen = site_policy.chosen_gpus(site.settings.device, len(site_policy.gpus()))
    return f"cuda:{chosen[0]}" if chosen and torch.cuda.is_available() else "cpu"


def _latest_decoder(site: Site) -> dict[str, Tensor]:
    """The decoder of the round trained last at this site, or nothing."""
    decoders = [Job(site, place.parent).trained_decoder for place in (site.root / "jobs").glob("*/result.json")]
    decoders = sorted((file for file in decoders if file.exists()), key=lambda file: file.stat().st_mtime)
    return load_file(decoders[-1]) if decoders else {}


def _write_panel(path: Path, network: MaskedAutoencoder, corpus: Corpus, rows: Positions, settings: Any) -> None:
    import cv2

    from usfmae.core.mae.evaluation import panel

    done, png = cv2.imencode(".png", panel(network, corpus, rows, settings)[..., ::-1])
    assert done, "a panel is a valid picture"
    write_atomic(path, png.tobytes())
