"""What the floor's looks cost beside the smallest round it allows: 20 steps of 32 pictures.

    python benchmarks/floor_cost.py --json [--preset paper|tiny] [--turns 3]

Processor seconds of one process, one thread, the parts of a turn one after the other: reading and inspecting the encoder
that comes in, what it does on eight of the site's pictures, what its gradients come from, the probe of the update before it
leaves; and one optimizer step, of which the smallest round has twenty. Medians of the turns; the overhead is their ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from usfmae.client.rounds import encoder_behaviour, gradient_behaviour, model_inspection, update_probe
from usfmae.client.rounds.trainer import INSPECTED
from usfmae.core.checkpoint import encoder_of, write_tensors
from usfmae.core.config import TrainSettings
from usfmae.core.config.privacy import PrivacySettings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.mae.device_batches import normalise
from usfmae.core.mae.model import fresh
from usfmae.core.mae.presets import preset
from usfmae.core.mae.train import TrainPlan, train
from usfmae.core.phantom import Tissue, simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper", choices=["paper", "tiny"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="usfmae-floor-") as folder:
        report = measured(Path(folder), chosen.preset, chosen.turns)
    print(json.dumps(report, indent=2) if chosen.json else "\n".join(f"{k:24s} {v}" for k, v in report.items()))


def measured(root: Path, name: str, turns: int) -> dict[str, object]:
    model_settings, settings = preset(name)
    floor = PrivacySettings()
    settings = settings.model_copy(update={"batch_size": floor.min_batch, "micro_batch": 8, "precision": "fp32"})
    corpus = pictures(root / "corpus", model_settings.image_size)
    rows = np.arange(len(corpus))
    model = fresh(model_settings, settings.mask_ratio, settings.norm_pix, 1)
    encoder = root / "encoder.safetensors"
    write_tensors(encoder, encoder_of(model.state_dict()), {})
    pixels = normalise(corpus.fetch(rows[:INSPECTED]).pixels, settings, torch.device("cpu"))
    change = update_probe.Change(1e-3 * torch.randn(model.patch_embed.proj.weight.shape).double().numpy())
    seen = update_probe.Round(corpus, rows[::2], rows[1::2], (0, floor.min_steps), model_settings, settings)
    parts: dict[str, Callable[[], object]] = {
        "encoder read": lambda: model_inspection.read(encoder),
        "behaviour": lambda: encoder_behaviour.inspect(model, pixels),
        "gradients": lambda: gradient_behaviour.inspect(model, pixels),
        "probe": lambda: update_probe.probe(change, seen, root / "probe.png"),
        "step": lambda: one_step(model, corpus, settings),
    }
    seconds: dict[str, list[float]] = {part: [] for part in parts}
    for _ in range(turns):
        for part, work in parts.items():
            began = time.process_time()
            work()
            seconds[part].append(time.process_time() - began)
    medians = {part: round(statistics.median(times), 3) for part, times in seconds.items()}
    looks = sum(value for part, value in medians.items() if part != "step")
    smallest = floor.min_steps * medians["step"]
    return {"preset": name, **medians, "smallest_round": round(smallest, 2), "overhead": round(looks / smallest, 4)}


def one_step(model: torch.nn.Module, corpus: Corpus, settings: TrainSettings) -> None:
    train(model, corpus, settings, TrainPlan(np.arange(len(corpus)), 1))  # type: ignore[arg-type]


def pictures(root: Path, size: int) -> Corpus:
    images = []
    for clip in range(16):
        frames, _ = simulate(Tissue(seed=clip, geometry="linear"), frames=4, size=(size, size))
        images += [
            PackedImage(f[..., 0] if f.ndim == 3 else f, f"{clip:060d}-{i:03d}", f"{clip}")
            for i, f in enumerate(frames)
        ]
    write_shard(root, "all", images)
    return Corpus([root], verify=False)


if __name__ == "__main__":
    main()
