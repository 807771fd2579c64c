"""One run of nine minutes on a GPU: is it right, how fast is a step, does a fed run keep up, does it resume, does it learn?

    make gpu                                          or, with what a bare machine has:
    python benchmarks/gpu.py --out OUT [--scans DIR] [--minutes 9]
    python benchmarks/gpu.py --out OUT --dry          every phase on a CPU with toy sizes, as the tests do

`OUT/gpu.json` is written anew after each phase and each program, so that a run which is cut still tells what it knows.
`--scans` holds gray JPEGs SITE/PATIENT/NAME.jpg (224 x 224), packed to a corpus here; simulated speckle without.
Needs PyTorch, NumPy, OpenCV, Pillow and pydantic of this program's packages; transformers and timm for the rivals.
Exit code 1 where something is not right; slow is not wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from gpu_programs import PROGRAMS, Case, Step

from usfmae.core.config import ModelSettings, TrainRecipe, TrainSettings
from usfmae.core.corpus.augment import affine, augment, draws
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.loader import Prepared
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.mae.device import PEAKS, training_flops
from usfmae.core.mae.device_batches import sampled
from usfmae.core.mae.evaluation import evaluate, target_variance
from usfmae.core.mae.model import MaskedAutoencoder, fresh
from usfmae.core.mae.optimizer_step import backward
from usfmae.core.mae.presets import preset
from usfmae.core.mae.train import StepRecord, TrainContext, TrainPlan, train
from usfmae.core.types import content_id

TOY = ModelSettings(
    image_size=32, patch_size=8, width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
)


@dataclass
class Bench:
    """One run of this script: where it computes, what it has time for, and what it has found."""

    out: Path
    scans: Path | None
    dry: bool
    seconds: float
    began: float = field(default_factory=time.perf_counter)
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() and not self.dry else "cpu"

    @property
    def model(self) -> ModelSettings:
        return TOY if self.dry else preset("paper")[0]

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    def save(self, name: str, value: Any) -> None:
        self.results[name] = value
        (self.out / "gpu.json").write_text(json.dumps(self.results, indent=1, default=str))

    def corpus(self) -> Path:
        """The scans as a corpus; packed once."""
        root = self.out / "corpus"
        if root.exists():
            return root
        side = self.model.image_size
        images = [(group, cv2.resize(image, (side, side))) for group, image in self._pictures()]
        items = [
            PackedImage(np.ascontiguousarray(image), content_id(group, str(n)), group, group.split("/")[0])
            for n, (group, image) in enumerate(images)
        ]
        for start in range(0, len(items), 1000):
            write_shard(root, f"part-{start // 1000:03d}", items[start : start + 1000])
        return root

    def _pictures(self) -> Iterator[tuple[str, np.ndarray]]:
        """(group, gray picture)."""
        for path in sorted(self.scans.rglob("*.jpg")) if self.scans else ():
            image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            if image is not None:
                yield str(path.parent.relative_to(self.scans or path)), image
        if self.scans is None:
            random = np.random.default_rng(0)
            for patient in range(16 if self.dry else 200):
                tissue = cv2.resize(random.random((9, 9), np.float32), (160, 160), interpolation=cv2.INTER_CUBIC)
                for _ in range(4):
                    speckle = cv2.GaussianBlur(random.normal(size=(160, 160, 2)).astype(np.float32), (0, 0), 1.5)
                    picture = np.linalg.norm(speckle, axis=2) * np.clip(tissue, 0.1, 1) * 500
                    yield f"simulated/{patient}", np.clip(picture, 0, 255).astype(np.uint8)


def settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# The machine --------------------------------------------------------------------------------------------------------


def machine(bench: Bench) -> dict[str, Any]:
    """What it is, and how fast a large bf16 product and a copy are."""
    facts: dict[str, Any] = {
        "torch": torch.__version__, "python": sys.version.split()[0], "cores": len(os.sched_getaffinity(0)),
        "device": torch.cuda.get_device_name() if bench.device == "cuda" else "cpu",
    }  # fmt: skip
    side = 256 if bench.dry else 8192
    left = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    facts["bf16_tflops"] = round(2 * side**3 / seconds_of(lambda: left @ left) / 1e12, 3)
    block = torch.empty(2**20 if bench.dry else 2**30, dtype=torch.uint8, device=bench.device)
    other = torch.empty_like(block)
    facts["copy_gb_s"] = round(2 * block.numel() / seconds_of(lambda: other.copy_(block)) / 1e9, 1)
    return facts


def seconds_of(work: Callable[[], object], times: int = 20) -> float:
    for _ in range(3):
        work()
    settle()
    began = time.perf_counter()
    for _ in range(times):
        work()
    settle()
    return (time.perf_counter() - began) / times


# Is it right? -------------------------------------------------------------------------------------------------------


def correct(bench: Bench) -> dict[str, Any]:
    """Loss and whole gradient against fp32 on the CPU, the pictures against the host's, bf16's curve against fp32's."""
    small, model = 6, fresh(bench.model)
    random = np.random.default_rng(1)
    side, patches = bench.model.image_size, (bench.model.image_size // bench.model.patch_size) ** 2
    pixels = random.integers(0, 256, (small, side, side, 1), np.uint8)
    batch = Prepared(0, pixels, random.random((small, patches), np.float32), ("",) * small)

    def gradient(device: str, runner: torch.nn.Module | None = None, **changes: Any) -> tuple[float, torch.Tensor]:
        recipe = TrainRecipe(**{"batch_size": small, "micro_batch": small, "precision": "fp32", **changes})
        model.to(device).zero_grad(set_to_none=True)
        loss = backward(runner or model, batch, recipe, torch.device(device))
        assert loss is not None
        return float(loss), torch.cat(
            [p.grad.float().flatten().cpu() for p in model.parameters() if p.grad is not None]
        )

    truth_loss, truth = gradient("cpu")
    ways: dict[str, tuple[dict[str, Any], float]] = {
        "fp32": ({}, 1e-3),
        "fp32 in micro-batches": ({"micro_batch": 2}, 1e-3),
        "bf16": ({"precision": "bf16"}, 2e-2),
        "bf16 in micro-batches": ({"precision": "bf16", "micro_batch": 2}, 2e-2),
    }
    results: dict[str, Any] = {}
    for name, (changes, limit) in ways.items():
        loss, vector = gradient(bench.device, **changes)
        error = float((vector - truth).norm() / truth.norm())
        results[name] = {"loss": abs(loss / truth_loss - 1), "gradient": error, "ok": error < limit}
    if bench.device == "cuda":
        loss, vector = gradient("cuda", torch.compile(model), precision="bf16")
        error = float((vector - truth).norm() / truth.norm())
        results["bf16 compiled"] = {"loss": abs(loss / truth_loss - 1), "gradient": error, "ok": error < 2e-2}
    return {**results, "augmentation": same_pictures(bench), "curve": curve(bench)}


def same_pictures(bench: Bench) -> dict[str, Any]:
    """The device's one sampling of a batch against the host's warps, in gray levels."""
    corpus, settings = Corpus([bench.corpus()]), TrainSettings().augment
    pixels = corpus.fetch(np.arange(min(64, len(corpus)))).pixels
    chosen = draws(len(pixels), corpus.size, settings, 0, 0)
    matrices = np.stack([affine(draw, corpus.size, corpus.size) for draw in chosen]).astype(np.float32)
    there = sampled(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).to(bench.device), torch.from_numpy(matrices).to(bench.device), corpus.size
    )  # fmt: skip
    host = augment(pixels, chosen, corpus.size, settings)
    difference = np.abs(there.permute(0, 2, 3, 1).cpu().numpy() - host)
    share = float((difference > 0.51).mean())
    return {"highest": float(difference.max()), "share_above_half": share, "ok": share < 1e-3}


def curve(bench: Bench) -> dict[str, Any]:
    """The tiny preset in bf16 and in fp32 over the same steps: means of the last tenth."""
    model, settings = preset("tiny")
    model, steps = (TOY, 6) if bench.dry else (model, 500)
    ends = {}
    for precision in ("bf16", "fp32"):
        changed = settings.model_copy(update={"precision": precision, "batch_size": 8 if bench.dry else 64})
        records = trained(fresh(model, settings.mask_ratio, settings.norm_pix).to(bench.device), bench, changed, steps)
        ends[precision] = statistics.mean(r.loss for r in records[-max(1, steps // 10) :])
    return {**ends, "steps": steps, "ok": abs(ends["bf16"] / ends["fp32"] - 1) < 0.01}


def trained(model: MaskedAutoencoder, bench: Bench, settings: TrainSettings, steps: int) -> list[StepRecord]:
    corpus, records = Corpus([bench.corpus()], verify=False), []
    train(model, corpus, settings, TrainPlan(np.arange(len(corpus)), steps), TrainContext(on_step=records.append))
    return records


# How fast is a step? ------------------------------------------------------------------------------------------------


def cases(bench: Bench) -> Iterator[tuple[str, str, Case]]:
    """(name, program, case), those that decide most first."""
    batches = (4,) if bench.dry else (256, 64, 1024)
    for mask_ratio in (0.25, 0.75):
        for batch in batches:
            for compiled in (False,) if bench.dry else (True, False):
                for program in PROGRAMS:
                    name = f"{program}, batch {batch}, {mask_ratio:.0%} masked{', compiled' if compiled else ''}"
                    yield name, program, Case(bench.model, bench.device, batch, mask_ratio, compiled)


def speed(bench: Bench) -> dict[str, Any]:
    """Images a second, MFU and peak memory of each program alone, until this phase's time is up."""
    results: dict[str, Any] = {}
    peak = next((p for part, p in PEAKS.items() if part in bench.results["machine"]["device"]), None)
    for name, program, case in cases(bench):
        if bench.elapsed > 0.6 * bench.seconds:
            results[name] = "no time left"
            continue
        try:
            results[name] = rate(PROGRAMS[program](case), case.batch, 0.1 if bench.dry else 2.5)
            flops = training_flops(case.model, case.mask_ratio)
            results[name]["mfu"] = round(results[name]["images_s"] * flops / peak, 3) if peak else None
        except Exception as error:  # a program that does not run, or does not fit, is a result
            results[name] = f"{type(error).__name__}: {str(error)[:160]}"
        torch._dynamo.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"{bench.elapsed:6.0f} s  {name}: {results[name]}", file=sys.stderr, flush=True)
        bench.save("speed", results)
    return {**results, "best_ratio": ratios(results)}


def rate(step: Step, images: int, seconds: float) -> dict[str, float]:
    """Median of windows that begin and end with an idle device, after a warm-up that compiles."""
    for _ in range(3):
        step()
    settle()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    speeds, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(speeds) < 3:
        steps, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds / 5:
            step()
            steps += 1
        settle()
        speeds.append(steps * images / (time.perf_counter() - began))
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return {"images_s": round(statistics.median(speeds), 1), "peak_gib": round(memory, 2)}


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """For each mask ratio: our best over the best of the rivals, whatever batch and compiled or not."""
    found = {}
    for masked in ("25%", "75%"):
        speeds = [(name, r["images_s"]) for name, r in results.items() if masked in name and isinstance(r, dict)]
        ours = max((s for name, s in speeds if name.startswith("ours")), default=0.0)
        rivals = max((s for name, s in speeds if not name.startswith("ours")), default=0.0)
        if ours and rivals:
            found[masked] = round(ours / rivals, 3)
    return found


# Fed, killed, learning ----------------------------------------------------------------------------------------------


def fed(bench: Bench) -> dict[str, Any]:
    """The product's own `train` on the corpus: images a second and the share of the time that it waited for data."""
    results = {}
    for batch in (8,) if bench.dry else (64, 256):
        settings = TrainSettings(batch_size=batch, micro_batch=batch, checkpoint_steps=10**9)
        records = trained(fresh(bench.model).to(bench.device), bench, settings, 8 if bench.dry else 160)
        tail = records[len(records) // 4 :]
        seconds = sum(r.seconds for r in tail)
        waited = sum(r.data_wait * r.seconds for r in tail) / seconds
        results[f"batch {batch}"] = {"images_s": round(batch * len(tail) / seconds, 1), "data_wait": round(waited, 4)}
    return results


def killed(bench: Bench) -> dict[str, Any]:
    """A run that is killed -9 after its first checkpoint and resumed, against one that was left alone."""
    steps, root = (12, 4) if bench.dry else (60, 20), bench.corpus()
    command = [
        sys.executable, "-c", "from usfmae.core.cli import main; main()", "pretrain", "--preset", "tiny",
        "--device", bench.device, "--json",
    ]  # fmt: skip
    begin = [*command, "--steps", str(steps[0]), "--corpus", str(root), "--set", f"train.checkpoint_steps={steps[1]}"]
    begin += ["--set", "train.batch_size=8"]
    whole = ended([*begin, "--out", str(bench.out / "whole")])
    child = subprocess.Popen(
        [*begin, "--out", str(bench.out / "cut")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.perf_counter() + 60
    while time.perf_counter() < end and not list((bench.out / "cut").glob("**/*.optimizer.safetensors")):
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    again = ended([*command, "--out", str(bench.out / "cut"), "--resume"])
    close = abs(whole["loss"] / again["loss"] - 1) < 0.01
    return {"loss": [whole["loss"], again["loss"]], "same_bits": whole["id"] == again["id"], "ok": close}


def ended(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if done.returncode:
        raise RuntimeError(done.stderr[-600:])
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def learns(bench: Bench) -> dict[str, Any]:
    """One pretraining on the scans with the time that is left: its curve, and the loss on patients it never saw."""
    corpus = Corpus([bench.corpus()], verify=False)
    learned, held = corpus.split(0.15, 0)
    batch = 8 if bench.dry else 512
    settings = TrainSettings(
        batch_size=batch, mask_ratio=0.75, norm_pix=True, lr=6e-4, betas=(0.9, 0.95), weight_decay=0.05,
        checkpoint_steps=10**9,
    )  # fmt: skip
    model = fresh(bench.model, 0.75, True).to(bench.device)
    before, constant = (f(model, corpus, held, settings) for f in (evaluate, target_variance))
    records: list[StepRecord] = []

    def watch(record: StepRecord) -> bool:
        records.append(record)
        return bench.elapsed > 0.95 * bench.seconds

    steps = 10 if bench.dry else 2000
    done = train(model, corpus, settings, TrainPlan(learned, steps), TrainContext(on_step=watch))
    after = evaluate(model, corpus, held, settings)
    picked = records[:: max(1, len(records) // 40)]
    return {
        "images": len(learned), "steps": done.step, "images_s": round(done.images_per_second, 1),
        "data_wait": round(done.data_wait, 4), "held_out_before": before, "held_out_after": after, "constant": constant,
        "curve": [(r.step, round(r.loss, 4), round(r.images_per_second)) for r in picked], "ok": after < before,
    }  # fmt: skip


PHASES: dict[str, tuple[Callable[[Bench], dict[str, Any]], float]] = {  # and the share of the time it needs at least
    "machine": (machine, 0.0), "correct": (correct, 0.1), "speed": (speed, 0.1), "fed": (fed, 0.08),
    "killed": (killed, 0.1), "learns": (learns, 0.1),
}  # fmt: skip


def wrong(value: Any) -> bool:
    """Whether a result holds an `ok` that is not, or a phase that broke."""
    if isinstance(value, dict):
        return value.get("ok") is False or any(wrong(part) for part in value.values())
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scans", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--json", action="store_true", help="print the results too")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.out.absolute(), options.scans, options.dry, options.minutes * 60)
    for name, (phase, share) in PHASES.items():
        if bench.elapsed > (1 - share) * bench.seconds:
            bench.save(name, "no time left")
            continue
        try:
            bench.save(name, phase(bench))
        except Exception:  # the phases after it still tell something
            bench.save(name, {"ok": False, "error": traceback.format_exc()[-1500:]})
        print(f"{name} done at {bench.elapsed:.0f} s", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(bench.results, indent=1, default=str))
    return int(wrong(bench.results))


if __name__ == "__main__":
    sys.exit(main())
