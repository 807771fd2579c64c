"""What a curious coordinator reads out of an update, with a site's floor off and on.

    python benchmarks/leak.py --json [--quick] [--out FILE]

With --out the report so far is written after each form.

A real `usfmae-client run` answers over TLS (curious.py has the coordinator). Its pictures are simulated tissue. An
update of one optimizer step, with a clip far below AdamW's epsilon, is the gradient itself; two attacks read it:

    plain     fresh weights. The gradient of the patch projection is a sum of one outer product a visible patch, so that
              its bias and its weight give the patch in closed form where only one is visible
    crafted   the first block's units answer to one direction of their input and cut it into a thousand bins by their
              bias (Fowl et al. 2022, arXiv:2110.13057), hidden under 1 % of noise: the unit that only one patch reaches
              has that patch, after layer normalisation, as its gradient

Both with 1 to 8 images and 1 to 16 visible patches in a step. The site's secret decides which images these are, so the
attacks cannot choose: a picture counts by the patch of the site that is most like it. PSNR is of that patch, 32 x 32
pixels of 255 gray levels, the best of the patches that an attack gives.

"off": every bound of `privacy` lowered, fp32, inspection off. "on": the default floor, where a campaign within it is
agreed to by settings, so that crafted weights in a request that keeps every bound reach the inspection. The last line is
a request that keeps every bound, with fresh weights, answered as any other: what the closed form makes of it.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from curious import CuriousCoordinator, Reply
from numpy.typing import NDArray
from PIL import Image

from tests.floors import LOWERED
from usfmae.core.config import AugmentSettings, ModelSettings, TrainSettings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import PackedImage
from usfmae.core.phantom import Tissue, simulate

SIDE, PATCH = 160, 32  # pixels
GRID = SIDE // PATCH
PIXELS = PATCH**2
FORMS = [(1, 1), (2, 1), (8, 1), (1, 16), (4, 4), (8, 16)]  # images in a step, visible patches of each
OFF: dict[str, Any] = {
    **LOWERED,
    "encodings": list(LOWERED["encodings"]),
    "max_lr": 1e9,
    "min_clip": 0.0,
    "augmentation": False,
    "inspection": False,
}
ON = {"new_campaigns": "auto", "campaigns_a_day": 1000}
QUIET = AugmentSettings(rotation=0, flips=False, zoom_min=1, zoom_max=1)
MEAN, STD = 0.449, 0.226  # one for all channels: the pictures are gray
SMALL = ModelSettings(
    image_size=SIDE, patch_size=PATCH, width=64, depth=1, heads=2, decoder_width=32, decoder_depth=1, decoder_heads=2
)
# Room for every pixel of a gray patch, two constants, and what is left over.
WIDE = SMALL.model_copy(update={"width": PIXELS + 8, "heads": 4})
FINE = SMALL.model_copy(update={"patch_size": 16})  # 100 patches: what the floor wants of a picture
GAIN, SHARP, SPAN = 10.0, 300.0, 6.0  # of the copied pixels, of the bins' edges, and how far the bins reach
Patch = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two forms alone: does the benchmark itself work?")
    parser.add_argument("--out", type=Path, help="write what is measured so far after each form")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="usfmae-leak-") as folder:
        report = measure(Path(folder), FORMS[:: len(FORMS) - 1] if chosen.quick else FORMS, chosen.out)
    report["seconds"] = round(time.monotonic() - began)
    print(json.dumps(report, indent=2) if chosen.json else "\n".join(f"{k:24s} {v}" for k, v in report.items()))


def measure(root: Path, forms: list[tuple[int, int]], out: Path | None = None) -> dict[str, Any]:
    images = pictures(clips=80)
    off: list[dict[str, Any]] = []
    on: list[dict[str, Any]] = []

    def row(side: list[dict[str, Any]], *form: Any) -> None:
        side.append(attacked(*form))
        if out:
            out.write_text(json.dumps({"off": off, "on": on}, indent=2))

    for attack in ("plain", "crafted"):  # a clinic each: another model would wait for a person
        with CuriousCoordinator(root / f"off-{attack}", free_port(), images, OFF) as coordinator:
            for form in forms:
                row(off, coordinator, attack, *form)
    with CuriousCoordinator(root / "on", free_port(), images, ON) as coordinator:
        for attack in ("plain", "crafted"):
            for form in forms:
                row(on, coordinator, attack, *form)
        row(on, coordinator, "crafted weights, every bound kept")
        refusals = coordinator.audited().count("request.refused") + coordinator.audited().count("training.refused")
        honest = attacked(coordinator, "every bound kept")
    return {
        "off": off,
        "on": on,
        "off_best_psnr_db": max(row["psnr_db"] for row in off),
        "off_worst_crafted_psnr_db": min(row["psnr_db"] for row in off if row["attack"] == "crafted"),
        "on_refused": sum(row["refused"] for row in on),
        "on_audited": refusals,
        "on_forms": len(on),
        "on_best_psnr_db": max((row["psnr_db"] for row in on if not row["refused"]), default=None),
        "every_bound_kept": honest,
        "mean_patch_psnr_db": {side: mean_psnr(patches_of(coordinator, side)) for side in (PATCH, FINE.patch_size)},
    }


def attacked(coordinator: CuriousCoordinator, attack: str, batch: int = 0, visible: int = 0) -> dict[str, Any]:
    """One request, and what can be read of the answer. Without `batch` and `visible` it keeps every bound."""
    crafted = attack.startswith("crafted")
    if batch:
        model, train, fields = (WIDE if crafted else SMALL), greedy(batch, visible, crafted), {"encoding": "fp32"}
    else:
        train, fields = modest(), {"steps": 20}
        model = FINE.model_copy(update={"width": 16**2 + 8, "heads": 4}) if crafted else FINE
    name = f"{attack.split(',')[0].replace(' ', '-')}-{batch}-{visible}"
    weights = coordinator.weights(name, model, craft if crafted else None)
    request = coordinator.request(model, train, weights, f"study-{name}", **fields)
    reply = coordinator.ask(request, weights)
    row: dict[str, Any] = {"attack": attack, "images": batch or train.batch_size, "visible_patches": visible or None}
    if reply is None or reply.declined:
        said = reply.declined if reply else "no answer in time"
        return {**row, "refused": said.startswith("refused"), "said": said, "psnr_db": 0.0}
    patches = list(crafted_patches(reply) if crafted else plain_patches(reply, model.patch_size))
    true = patches_of(coordinator, model.patch_size)
    return {**row, "refused": False, "psnr_db": round(best_psnr(patches, true), 1)}


def greedy(batch: int, visible: int, crafted: bool) -> TrainSettings:
    """One step that is the gradient itself, on as few images and patches as are asked for.

    Crafted weights are large, so that a change of them must be as well to outlast float32.
    """
    return TrainSettings(
        mask_ratio=1 - (visible + 0.5) / GRID**2,
        batch_size=batch,
        micro_batch=batch,
        lr=1e6 if crafted else 1e4,
        warmup=0,
        weight_decay=0,
        clip=1e-9,
        precision="fp32",
        held_out=0.0,
        augment=QUIET,
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        steps=1,
    )


def modest() -> TrainSettings:
    """As much as the default floor allows of the same."""
    return TrainSettings(
        mask_ratio=0.6,
        batch_size=32,
        micro_batch=32,
        lr=1e-2,
        warmup=0,
        weight_decay=0,
        clip=1e-2,
        precision="fp32",
        held_out=0.0,
        steps=20,
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        augment=AugmentSettings(rotation=1, flips=False, zoom_min=1, zoom_max=1),
    )


# --- reading a picture out of an update


def plain_patches(reply: Reply, side: int) -> Iterator[Patch]:
    """The closed form for one visible patch: its projection's weight changes by it times what its bias changes by."""
    weight, bias = reply.changes["patch_embed.proj.weight"], reply.changes["patch_embed.proj.bias"]
    rows = weight.reshape(len(bias), 3, side**2).mean(1)  # gray: every channel says the same
    yield as_gray(bias @ rows / max(float(bias @ bias), 1e-300), side)


def craft(tensors: dict[str, torch.Tensor]) -> None:
    """Weights that hand pixels on and cut one direction of them into bins; every copy is hidden under 1 % of noise."""
    random = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    # Patch projection: one unit a gray pixel, then a constant and a zero.
    projection, bias = tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"]
    width, side = projection.shape[0], projection.shape[2]
    projection.copy_(1e-6 * noise(*projection.shape))
    for pixel in range(side**2):
        projection[pixel, :, pixel // side, pixel % side] = GAIN / 3
    bias[side**2] = GAIN

    # First block: attention next to nothing, units along one direction, a thousand biases.
    tensors["blocks.0.attn.proj.weight"].copy_(1e-6 * noise(width, width))
    direction = noise(width)
    direction /= direction.norm()
    units = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    copies = direction + 0.01 * noise(units, width) / width**0.5
    tensors["blocks.0.mlp.fc1.weight"].copy_(SHARP * copies)
    tensors["blocks.0.mlp.fc1.bias"].copy_(-SHARP * torch.linspace(-SPAN, SPAN, units))
    tensors["blocks.0.mlp.fc2.weight"].copy_(0.3 * noise(width, units) / units**0.5)
    tensors["cls_token"].copy_(-50 * GAIN * direction[None, None])  # the class token reaches no bin


def crafted_patches(reply: Reply) -> Iterator[Patch]:
    """The input of the bins that were reached: the highest was reached by one patch alone."""
    weight, bias = reply.changes["blocks.0.mlp.fc1.weight"], reply.changes["blocks.0.mlp.fc1.bias"]
    reached = np.flatnonzero(np.abs(bias) > 1e-6 * np.abs(bias).max())
    side = round((weight.shape[1] - 8) ** 0.5)
    table = positions(weight.shape[1])
    for unit in reached[::-1][:40]:
        normalised = weight[unit] / bias[unit]
        # Layer normalisation is undone by the constant and the zero, once for each place the patch may come from.
        for place in table:
            constant, zero = side**2, side**2 + 1
            scale = (normalised[constant] - normalised[zero]) / (GAIN + place[constant] - place[zero])
            values = (normalised[: side**2] - normalised[zero]) / scale + place[zero] - place[: side**2]
            yield as_gray(values / GAIN, side)


def positions(width: int) -> Patch:
    """The fixed table of positions, which every coordinator knows: (patches, width)."""
    from usfmae.core.mae.model import sincos

    table: Patch = sincos(width, GRID)[0, 1:].numpy().astype(np.float64)
    return table


def as_gray(values: Patch, side: int) -> Patch:
    """Normalised pixels of a patch as gray levels of 0 to 255."""
    return np.clip((values.reshape(side, side) * STD + MEAN) * 255, 0, 255)


def best_psnr(patches: list[Patch], true: Patch) -> float:
    """PSNR in dB of the best among `patches` (side, side) against the patch of `true` (N, side, side) it is most like."""
    given = np.array([patch.reshape(-1) for patch in patches if np.isfinite(patch).all()])
    if not len(given):
        return 0.0
    # Squared distances by inner products: (found, true).
    flat = true.reshape(len(true), -1)
    squares = (given**2).sum(1)[:, None] - 2 * given @ flat.T + (flat**2).sum(1)
    return min(99.0, float(10 * np.log10(255**2 / max(float(squares.min()) / flat.shape[1], 1e-9))))


def mean_psnr(true: Patch) -> float:
    """What the mean of all patches is worth, which tells about nobody."""
    return round(best_psnr([true.mean(0)], true), 1)


def patches_of(coordinator: CuriousCoordinator, side: int = PATCH) -> Patch:
    """Every patch of the hospital's corpus, flat black ones left out: (N, side, side)."""
    pixels = Corpus([coordinator.site.corpus], verify=False)
    images = pixels.fetch(np.arange(len(pixels))).pixels[..., 0].astype(np.float64)
    grid = SIDE // side
    cut = images.reshape(-1, grid, side, grid, side).swapaxes(2, 3).reshape(-1, side, side)
    return cut[cut.std((1, 2)) > 4]


def pictures(clips: int) -> list[PackedImage]:
    """Four frames of each of so many simulated patients."""
    images = []
    for clip in range(clips):
        frames, _ = simulate(Tissue(seed=clip, geometry="linear"), frames=4, size=(200, 200))
        for index, frame in enumerate(frames):
            plain = np.asarray(Image.fromarray(frame).convert("L").resize((SIDE, SIDE)), np.float32)
            gray = np.clip((plain - plain.mean()) * 2.5 + 110, 0, 255).astype(np.uint8)  # tells patches apart
            images.append(PackedImage(gray, f"{clip:060d}-{index:03d}", f"patient-{clip}"))
    return images


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
