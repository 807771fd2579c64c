"""The same rounds with NVIDIA FLARE: its FedAvg recipe for PyTorch on a provisioned server and sites with mutual TLS.

FLARE lives in an environment of its own (`pip install nvflare torch`), whose Python is named on the command line. Its
server listens on every address, so all of it runs in a network namespace that holds nothing but loopback.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from round_processes import ENVIRONMENT, peak_mb

MODEL = """
import numpy as np
import torch

SHAPES = {shapes}

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        seeded = [np.random.default_rng(i).normal(0, 0.02, s).astype(np.float32) for i, s in enumerate(SHAPES)]
        self.weights = torch.nn.ParameterList([torch.nn.Parameter(torch.from_numpy(values)) for values in seeded])
"""

CLIENT = """
import time
import nvflare.client as flare

flare.init()
name = flare.get_site_name()
factor = 1 + 1e-4 * (1 + int(name.split("-")[-1]) / 97)  # different at each site
while flare.is_running():
    model = flare.receive()
    if model is None:
        break
    with open({out!r} + "/" + name, "a") as file:
        file.write(f"{{time.time()}}\\n")
    params = {{key: value * factor for key, value in model.params.items()}}
    flare.send(flare.FLModel(params=params, meta={{"NUM_STEPS_CURRENT_ROUND": 1000}}))
"""

JOB = """
from model import Model
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import PocEnv

recipe = FedAvgRecipe(name="bench", model=Model(), min_clients={sites}, num_rounds={rounds}, train_script="client.py")
run = recipe.execute(PocEnv(num_clients={sites}))
print("result", run.get_result())
"""

# What FLARE's processes are called on the command line.
PROCESSES = {
    "server_job": r"nvflare\.private\.fed\.app\.server\.runner_process",
    "server": r"nvflare\.private\.fed\.app\.server\.server_train",
    "site_job": r"nvflare\.private\.fed\.app\.client\.worker_process",
}


def run(
    root: Path, python: str, shapes: list[tuple[int, ...]], sites: int, rounds: int, seconds: float = 1500
) -> dict[str, Any]:
    """Seconds from one request's arrival at a site to the next one's, and the peak memory of each kind of process."""
    job, out, workspace = root / "job", root / "out", root / "poc"
    for folder in (job, out, workspace):
        folder.mkdir(parents=True)
    (job / "model.py").write_text(MODEL.format(shapes=repr(shapes)))
    (job / "client.py").write_text(CLIENT.format(out=str(out)))
    (job / "job.py").write_text(JOB.format(sites=sites, rounds=rounds))
    environment = {**ENVIRONMENT, "NVFLARE_POC_WORKSPACE": str(workspace), "HOME": str(root)}
    inside = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
    with (root / "job.log").open("ab") as log:
        process = subprocess.Popen(
            [*inside, f'ip link set lo up && exec "{python}" job.py'], cwd=job, env=environment, stdout=log, stderr=log
        )
        peaks = _watched(process, root, time.monotonic() + seconds)
    arrivals = [[float(line) for line in site.read_text().split()] for site in sorted(out.iterdir())]
    if len(arrivals) < sites or min(map(len, arrivals)) < rounds:
        raise SystemExit(f"NVIDIA FLARE did not end its rounds: {(root / 'job.log').read_text()[-2000:]}")
    starts = [min(each) for each in zip(*arrivals, strict=True)]
    return {
        "seconds": [later - earlier for earlier, later in itertools.pairwise(starts)],
        **{f"{name}_rss_mb": peak for name, peak in peaks.items()},
    }


def _watched(process: subprocess.Popen[bytes], root: Path, end: float) -> dict[str, float]:
    """The peak of each kind of process (the largest where there are several) until the job has ended."""
    peaks: dict[str, float] = defaultdict(float)
    while process.poll() is None and time.monotonic() < end:
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            for name, pattern in PROCESSES.items():
                if str(root) in command and re.search(pattern, command):
                    peaks[name] = max(peaks[name], peak_mb(entry.name))
        time.sleep(0.5)
    process.kill()
    process.wait()
    return dict(peaks)
