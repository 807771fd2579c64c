"""One optimizer step of ViT-B (batch 64, bf16, 25 % masked) against Hugging Face ViTMAE.

    python benchmarks/step.py --json

Two comparisons, because the memory allocator alone moves both programs by tens of per cent:
  ratio_vs_hf           both in one process under the same allocator, steps alternated, medians
  ratio_vs_hf_default   each alone in its own process; Hugging Face as a user runs it (default allocator), this
                        program as its documentation launches it (jemalloc with huge pages, where installed)
Peak memory is that of a process in which only one of them has run. On a GPU: SDPA, with and without torch.compile.
The other load of the machine while it ran is reported; ratios of a busy machine are worth little.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

JEMALLOC = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"  # Debian: libjemalloc2
TUNING = "dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always"
Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="measured steps of each program")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--only", nargs="+", choices=["ours", "hf", "ours-compiled"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options)))
        return
    result = compared(options)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            print(f"{name}: {value}")


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """Run every measurement in a process of its own."""
    gpu = _gpu()
    tuned = "" if gpu or not Path(JEMALLOC).exists() else "jemalloc"
    pair = worker(options, ["ours", "hf"], tuned)
    ours = worker(options, ["ours"], tuned)
    theirs = worker(options, ["hf"], "")
    result = {
        "ratio_vs_hf": ratio(pair["hf"], pair["ours"], "seconds"),
        "ratio_vs_hf_cpu_time": None if gpu else ratio(pair["hf"], pair["ours"], "cpu_seconds"),
        "ratio_vs_hf_default": ratio(theirs["hf"], ours["ours"], "seconds"),
        "ratio_vs_hf_default_cpu_time": None if gpu else ratio(theirs["hf"], ours["ours"], "cpu_seconds"),
        "images_per_second": options.batch / statistics.median(ours["ours"]["seconds"]),
        "mfu": ours["ours"]["mfu"],
        "peak_rss_gib": ours["peak_gib"],
        "hf_images_per_second": options.batch / statistics.median(theirs["hf"]["seconds"]),
        "hf_peak_rss_gib": theirs["peak_gib"],
        "allocator": ours["allocator"],
        "allocator_hf_default": theirs["allocator"],
        "device": ours["device"],
        "batch": options.batch,
        "micro_batch": options.micro_batch,
        "load_average": os.getloadavg()[0],
        "runs": {"pair": pair, "ours": ours, "hf": theirs},
    }
    if gpu:
        result["compiled"] = worker(options, ["ours-compiled"], "")
    return result


def ratio(slow: dict[str, Any], fast: dict[str, Any], key: str) -> float:
    return statistics.median(slow[key]) / statistics.median(fast[key])


def worker(options: argparse.Namespace, only: list[str], allocator: str) -> dict[str, Any]:
    """Measure in a new process, under jemalloc if asked for."""
    environment = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "MALLOC_CONF")}
    if allocator:
        environment |= {"LD_PRELOAD": JEMALLOC, "MALLOC_CONF": TUNING}
    command = [sys.executable, __file__, "--only", *only, "--batch", str(options.batch)]
    command += ["--micro-batch", str(options.micro_batch), "--steps", str(options.steps), "--preset", options.preset]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """In this process: one step each to warm up, then alternated steps."""
    import torch

    from usfmae.core.flops import peak_flops, training_flops
    from usfmae.core.presets import preset

    device = "cuda" if _gpu() else "cpu"
    model, train = preset(options.preset)
    train = train.model_copy(update={"batch_size": options.batch, "micro_batch": options.micro_batch})
    peak = peak_flops(device, train.precision)
    builders = {"ours": ours, "hf": hugging_face, "ours-compiled": lambda *a: ours(*a, compiled=True)}
    steps: dict[str, Step] = {name: builders[name](model, train, device) for name in options.only}
    times: dict[str, dict[str, Any]] = {name: {"seconds": [], "cpu_seconds": []} for name in steps}
    for number in range(options.steps + 1):
        for name, step in steps.items():
            wall, cpu = timed(step, device)
            if number:  # the first step warms up
                times[name]["seconds"].append(wall)
                times[name]["cpu_seconds"].append(cpu)
    for values in times.values():
        speed = options.batch / statistics.median(values["seconds"])
        values["mfu"] = speed * training_flops(model, train.mask_ratio) / peak if peak else None
    gpu_peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    return {
        **times,
        "peak_gib": gpu_peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "peak_flops": peak,
        "allocator": allocator_name(device),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
    }


def timed(step: Step, device: str) -> tuple[float, float]:
    """Wall and CPU seconds of a step."""
    import torch

    wall, cpu = time.perf_counter(), time.process_time()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def ours(model: Any, train: Any, device: str, compiled: bool = False) -> Step:
    """The product's own path from uint8 pixels to updated weights."""
    import numpy as np
    import torch

    from usfmae.core.corpus.loader import Prepared
    from usfmae.core.model import fresh
    from usfmae.core.train import backward

    network = fresh(model, train.mask_ratio, train.norm_pix, train.seed).to(device)
    runner = torch.compile(network) if compiled else network
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, train.lr, train.betas, weight_decay=train.weight_decay, fused=True)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (train.batch_size, model.image_size, model.image_size, 1), np.uint8)
    noise = random.random((train.batch_size, (model.image_size // model.patch_size) ** 2), np.float32)
    batch = Prepared(0, pixels, noise, np.arange(train.batch_size))

    def step() -> None:
        backward(runner, batch, train, torch.device(device))
        torch.nn.utils.clip_grad_norm_(trained, train.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def hugging_face(model: Any, train: Any, device: str) -> Step:
    """ViTMAEForPreTraining under bf16 autocast with PyTorch's AdamW, the whole batch at once."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        image_size=model.image_size,
        patch_size=model.patch_size,
        hidden_size=model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        intermediate_size=4 * model.width,
        decoder_hidden_size=model.decoder_width,
        decoder_num_hidden_layers=model.decoder_depth,
        decoder_num_attention_heads=model.decoder_heads,
        decoder_intermediate_size=4 * model.decoder_width,
        mask_ratio=train.mask_ratio,
        norm_pix_loss=train.norm_pix,
        layer_norm_eps=1e-6,
    )
    network = ViTMAEForPreTraining(config).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), train.lr, train.betas, weight_decay=train.weight_decay)
    images = torch.randn(train.batch_size, 3, model.image_size, model.image_size, device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=train.precision == "bf16"):
            loss = network(images).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), train.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def allocator_name(device: str) -> str:
    if device == "cuda":
        return "torch CUDA caching allocator"
    return (
        f"jemalloc ({os.environ['MALLOC_CONF']})" if "jemalloc" in os.environ.get("LD_PRELOAD", "") else "glibc default"
    )


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
