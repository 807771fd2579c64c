"""What holds on a GPU, as far as it shows without one: PyTorch's fake tensors know their device and refuse to mix."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from usfmae.core.config import ModelSettings, TrainRecipe
from usfmae.core.corpus.loader import Prepared
from usfmae.core.errors import UsageError
from usfmae.core.mae import device, optimizer_step
from usfmae.core.mae.device import PEAKS, peak_flops
from usfmae.core.mae.model import MaskedAutoencoder
from usfmae.core.mae.optimizer_step import Stepper, backward
from usfmae.core.mae.resume_state import moments_of, set_moments

GPU = torch.device("cuda", 0)
MODEL = ModelSettings(
    image_size=32, patch_size=8, width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
)
TRAIN = TrainRecipe(batch_size=6, micro_batch=4)


@pytest.fixture
def stepper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stepper]:
    """A model on a GPU that only pretends."""
    monkeypatch.setattr(device, "multiplies_bf16", lambda kind: kind == "cuda")
    monkeypatch.setattr(optimizer_step, "compiles", lambda settings, place: False)  # a pretended GPU has no compiler
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = MaskedAutoencoder(MODEL)
        for module in model.modules():  # `.to` cannot, with fake tensors
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    module._parameters[name] = nn.Parameter(tensor.detach().to(GPU), tensor.requires_grad)
        yield Stepper(model, TRAIN)


def batch() -> Prepared:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (6, 32, 32, 1), np.uint8)
    return Prepared(0, pixels, random.random((6, 16), np.float32), ("a",) * 6)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_forward_on_a_gpu_mixes_no_devices_and_attends_with_its_kernel(
    stepper: Stepper, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention

    def attention(*qkv: torch.Tensor) -> torch.Tensor:
        seen.append({x.device for x in qkv})
        return real(*qkv)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)  # the engine asks for a driver
    loss = backward(stepper.runner, batch(), TRAIN, GPU)
    assert (loss.device, loss.dtype) == (GPU, torch.float32)
    assert seen == [{GPU}] * 6  # 3 blocks, 2 micro-batches
    assert stepper.model.features(torch.zeros(2, 3, 32, 32, device=GPU)).device == GPU


def test_the_fused_optimizer_takes_back_moments_that_were_kept(stepper: Stepper) -> None:
    """On a GPU it wants its step count there too, in fp32."""
    for parameter in stepper.trained:
        parameter.grad = torch.zeros_like(parameter)
    stepper.optimizer.step()
    moments = moments_of(stepper.model, stepper.optimizer)
    assert {moment.device.type for moment in moments.values()} == {"cpu"}
    set_moments(stepper.model, stepper.optimizer, moments, 1)
    (kinds,) = {tuple((v.device, v.dtype) for v in s.values()) for s in stepper.optimizer.state.values()}
    assert set(kinds) == {(GPU, torch.float32)}
    stepper.optimizer.step()


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_without_bf16_of_its_own_computes_fp32(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or native)
    device.multiplies_bf16.cache_clear()
    assert device.computed("bf16", "cuda") == ("bf16" if native else "fp32")
    device.multiplies_bf16.cache_clear()


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_memory_that_is_full_is_known_from_other_errors(error: Exception, full: bool) -> None:
    assert device.out_of_memory(error) is full


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4080 SUPER", 104e12),
        ("Tesla T4", None),
    ],
)
def test_the_peak_is_that_of_the_card_and_of_no_other(
    monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    peak_flops.cache_clear()
    assert peak_flops("cuda:0", "bf16") == peak and len(PEAKS) >= 8
    peak_flops.cache_clear()


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """torchrun's variables and four GPUs; what is asked of PyTorch, in order."""
    asked: list[tuple[object, ...]] = []
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: asked.append(("set_device", number)))
    monkeypatch.setattr(dist, "init_process_group", lambda kind, **more: asked.append((kind, more)))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: asked.append(("left",)))
    return asked


def test_each_process_takes_its_own_gpu_before_nccl_begins(
    four_gpus: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    with device.joined("cuda") as place:
        assert place == "cuda:3"
    assert four_gpus == [("set_device", 3), ("nccl", {"device_id": torch.device("cuda:3")}), ("left",)]


def test_after_an_error_nobody_waits_for_processes_inside_a_collective(
    four_gpus: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="full"), device.joined("cuda"):
        raise ValueError("full")
    assert ("left",) not in four_gpus


def test_more_processes_than_gpus_are_refused(
    four_gpus: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(UsageError, match=r"process 5 here - this machine shows 4 GPU"), device.joined("cuda"):
        pass
    assert not four_gpus


def test_machines_that_see_different_checkpoints_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """One machine resumes at step 6, another, without the shared folder, at 0: they would wait for each other."""
    monkeypatch.setattr(device, "ranks", lambda: (1, 2))
    monkeypatch.setattr(dist, "all_reduce", lambda found, _: found.copy_(torch.maximum(found, 6 * found.sign() + 6)))
    with pytest.raises(UsageError, match="where all machines see it"):
        device.same_everywhere(0, torch.device("cpu"))
