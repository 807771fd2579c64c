"""One optimizer step of ViT-B (batch 64, bf16, 25 % masked) against Hugging Face ViTMAE.

    python benchmarks/step.py --json

Two comparisons, because the memory allocator alone moves both programs by tens of per cent:
  ratio_vs_hf           both in one process under the same allocator, steps alternated, medians
  ratio_vs_hf_default   each alone in its own process, processes alternated; Hugging Face as a user runs it (default
                        allocator), this program as `usfmae pretrain` starts itself (jemalloc, where installed)
Both are asked for bf16; this program computes what it measures to be faster (`number_type` says what and why), and
`--also ours-bf16 ours-bf16-widened hf-fp32` sets equal types side by side (`widened`: bf16 numbers multiplied by fp32
instructions), `--also hf-eager` the attention written out on either side.
Peak memory is that of a process in which only one of them has run. On a GPU: SDPA, with and without torch.compile.
A step during which other programs took more than 5 % of the machine is measured a second time; `busy` is what
they took in the steps that count. Ratios of a busy machine are worth little; its CPU time with OMP_NUM_THREADS=1 more.
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from step_programs import HF_ATTENTION, PROGRAMS, Step

from usfmae.core.mae import allocator

QUIET = 0.05  # share of the machine that other programs may take during a step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4, help="measured steps of each program")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--parts", nargs="+", choices=["together", "alone"], default=["together", "alone"])
    parser.add_argument("--also", nargs="+", choices=list(PROGRAMS), default=[], help="more programs, alternated")
    parser.add_argument("--type", choices=["bf16", "fp32"], help="what this program computes in; measured without")
    parser.add_argument("--only", nargs="+", choices=list(PROGRAMS), help="measure these in this process")
    options = parser.parse_args()
    result = measure(options) if options.only else compared(options)
    if options.json or options.only:
        print(json.dumps(result, indent=None if options.only else 2))
    else:
        for name, value in result.items():
            print(f"{name}: {value}")


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """Run every measurement in a process of its own."""
    from usfmae.core.mae.number_type import number_type
    from usfmae.core.mae.presets import preset

    gpu = _gpu()
    model, train = preset(options.preset)
    chosen = number_type(model, train, "cuda" if gpu else "cpu")
    options.type = options.type or (None if gpu else chosen.chosen)
    os.environ.pop("LD_PRELOAD", None)  # each program gets the allocator named here
    tuned = {} if gpu else allocator.environment()
    result: dict[str, Any] = {
        "device": torch_device(),
        "batch": options.batch,
        "micro_batch": options.micro_batch,
        "precision": {"ours": options.type or chosen.chosen, "hf": "bf16"},
        "number_type": asdict(chosen),
    }
    if "together" in options.parts:
        result |= together(options, tuned)
    if "alone" in options.parts:
        result |= alone(options, tuned)
    if gpu:
        result["compiled"] = worker(options, ["ours-compiled"], {}, options.steps)
    return result


def together(options: argparse.Namespace, tuned: dict[str, str]) -> dict[str, Any]:
    """Both programs in one process under one allocator."""
    run = worker(options, ["ours", "hf", *options.also], tuned, options.steps)
    return {
        "ratio_vs_hf": ratio(run["hf"], run["ours"]),
        "ratio_vs_hf_cpu_time": ratio(run["hf"], run["ours"], "cpu_seconds"),
        "seconds": {name: statistics.median(run[name]["seconds"]) for name in ("ours", "hf", *options.also)},
        "busy": max(max(run[name]["busy"]) for name in ("ours", "hf")),
        "together": run,
    }


def alone(options: argparse.Namespace, tuned: dict[str, str]) -> dict[str, Any]:
    """Each in a process of its own, in turn: half of the steps in either of two processes, where there are two."""
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "hf": []}
    for _ in range(min(2, options.steps)):
        runs["ours"].append(worker(options, ["ours"], tuned, -(-options.steps // 2)))
        runs["hf"].append(worker(options, ["hf"], {}, -(-options.steps // 2)))
    ours, theirs = (joined(name, runs[name]) for name in ("ours", "hf"))
    return {
        "ratio_vs_hf_default": ratio(theirs, ours),
        "ratio_vs_hf_default_cpu_time": ratio(theirs, ours, "cpu_seconds"),
        "images_per_second": options.batch / statistics.median(ours["seconds"]),
        "mfu": ours["mfu"],
        "peak_rss_gib": ours["peak_gib"],
        "hf_images_per_second": options.batch / statistics.median(theirs["seconds"]),
        "hf_peak_rss_gib": theirs["peak_gib"],
        "hf_attention": runs["hf"][0]["hf_attention"],
        "allocator": runs["ours"][0]["allocator"],
        "allocator_hf_default": runs["hf"][0]["allocator"],
        "busy_alone": max(ours["busy"] + theirs["busy"]),
        "alone": runs,
    }


def ratio(slow: dict[str, Any], fast: dict[str, Any], key: str = "seconds") -> float:
    return statistics.median(slow[key]) / statistics.median(fast[key])


def joined(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The steps of several processes as if of one."""
    values = {key: [x for run in runs for x in run[name][key]] for key in ("seconds", "cpu_seconds", "busy")}
    mfu = [run[name]["mfu"] for run in runs if run[name]["mfu"]]
    return {**values, "mfu": statistics.median(mfu or [0]) or None, "peak_gib": max(run["peak_gib"] for run in runs)}


def worker(options: argparse.Namespace, only: list[str], variables: dict[str, str], steps: int) -> dict[str, Any]:
    """Measure in a new process, under these variables."""
    environment = {**os.environ, **variables}
    command = [sys.executable, __file__, "--only", *only, "--batch", str(options.batch), "--steps", str(steps)]
    command += ["--type", options.type] if options.type else []
    command += ["--micro-batch", str(options.micro_batch), "--preset", options.preset]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """In this process: one step each to warm up, then alternated steps."""
    import torch

    from usfmae.core.mae import device as device_facts
    from usfmae.core.mae.device import peak_flops, training_flops
    from usfmae.core.mae.presets import preset

    device = "cuda" if _gpu() else "cpu"
    model, train = preset(options.preset)
    if options.type:
        device_facts.settled["cpu"] = options.type == "bf16"
    train = train.model_copy(update={"batch_size": options.batch, "micro_batch": options.micro_batch})
    peak = peak_flops(device, train.precision)
    steps: dict[str, Step] = {name: PROGRAMS[name](model, train, device) for name in options.only}
    times: dict[str, dict[str, Any]] = {name: {"seconds": [], "cpu_seconds": [], "busy": []} for name in steps}
    for number in range(options.steps + 1):
        for name, step in steps.items():
            taken = timed(step, device)
            if number and taken["busy"] > QUIET:
                taken = min(taken, timed(step, device), key=lambda times: times["busy"])
            print(f"{name} step {number}:", *(f"{k} {v:.2f}" for k, v in taken.items()), file=sys.stderr, flush=True)
            for key, value in taken.items() if number else ():  # the first step warms up
                times[name][key].append(value)
    for values in times.values():
        speed = options.batch / statistics.median(values["seconds"])
        values["mfu"] = speed * training_flops(model, train.mask_ratio) / peak if peak else None
    gpu_peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    return {
        **times,
        "peak_gib": gpu_peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "peak_flops": peak,
        "hf_attention": HF_ATTENTION[-1] if HF_ATTENTION else None,
        "allocator": "torch CUDA caching allocator" if device == "cuda" else allocator.name(),
    }


def timed(step: Step, device: str) -> dict[str, float]:
    """Wall and CPU seconds of a step, and the share of the machine that other programs took meanwhile."""
    import torch

    wall, own, all_ = time.perf_counter(), time.process_time(), _cpu_seconds()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    wall, own, all_ = time.perf_counter() - wall, time.process_time() - own, _cpu_seconds() - all_
    return {"seconds": wall, "cpu_seconds": own, "busy": max(0.0, all_ - own) / (wall * (os.cpu_count() or 1))}


def _cpu_seconds() -> float:
    """CPU time that all programs of this machine have used; 0 where the kernel does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, stat.read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def torch_device() -> str:
    import torch

    return torch.cuda.get_device_name() if _gpu() else f"cpu, {torch.get_num_threads()} threads"


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
