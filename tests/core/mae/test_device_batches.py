"""What a GPU does with a batch, on tensors of the CPU: the same pictures and the same run as the host's own way."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from usfmae.core.config import AugmentSettings, ModelSettings, TrainSettings
from usfmae.core.corpus.augment import affine, augment, draws
from usfmae.core.corpus.batch import Corpus, MixedPixels
from usfmae.core.corpus.loader import Loader
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.errors import UsfmaeError
from usfmae.core.mae import device_batches
from usfmae.core.mae import train as training
from usfmae.core.mae.device_batches import DeviceLoader, ResidentCorpus, normalise, sampled
from usfmae.core.mae.model import fresh
from usfmae.core.mae.train import StepRecord, TrainContext, TrainPlan, train

CPU = torch.device("cpu")
MODEL = ModelSettings(
    image_size=32, patch_size=8, width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
)
TRAIN = TrainSettings(batch_size=8, micro_batch=4, precision="fp32", checkpoint_steps=1000)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Smooth pictures, one in five of them coloured."""
    random = np.random.default_rng(0)
    items = []
    for number in range(20):
        shape = (6, 6, 3) if number % 5 == 0 else (6, 6)
        pixels = cv2.resize(random.integers(0, 256, shape, np.uint8), (48, 48), interpolation=cv2.INTER_CUBIC)
        items.append(PackedImage(pixels, f"{number:064x}", f"{number:064x}", "made"))
    write_shard(tmp_path, "made", items)
    return Corpus([tmp_path])


@pytest.mark.parametrize("size", [32, 48, 64])
def test_one_sampling_on_the_device_is_the_hosts_warp_within_half_a_gray_level(size: int) -> None:
    random, settings = np.random.default_rng(0), AugmentSettings()
    pixels = np.stack([cv2.resize(random.integers(0, 256, (7, 7), np.uint8), (48, 48)) for _ in range(64)])[..., None]
    chosen = draws(64, 48, settings, 0, 0)
    matrices = torch.from_numpy(np.stack([affine(draw, 48, size) for draw in chosen]).astype(np.float32))
    there = sampled(torch.from_numpy(pixels).permute(0, 3, 1, 2), matrices, size)
    host = augment(pixels, chosen, size, settings)
    difference = np.abs(there.permute(0, 2, 3, 1).numpy() - host)
    assert np.quantile(difference, 0.999) <= 0.51 and difference.mean() < 0.26
    assert difference.max() <= 1.0


def test_gray_images_among_coloured_ones_are_warped_to_the_bits_of_three_equal_channels(corpus: Corpus) -> None:
    loader = Loader(corpus, np.arange(20), MODEL, TRAIN)
    drawn = loader.drawn(0)
    wide = augment(corpus.fetch(drawn.positions).pixels, drawn.draws, 32, TRAIN.augment)
    pixels = loader.prepare(0).pixels
    assert isinstance(pixels, MixedPixels) and len(pixels) == 8 and pixels.gray.shape[-1] == 1
    assert wide.shape[-1] == 3 and np.array_equal(pixels.wide(), wide)
    whole = normalise(wide, TRAIN, CPU)
    assert torch.equal(normalise(pixels, TRAIN, CPU), whole)
    for start in range(0, 8, 3):  # micro-batches: of one kind, or of both
        rows = slice(start, start + 3)
        assert torch.equal(normalise(pixels[rows], TRAIN, CPU), whole[rows])


@pytest.mark.parametrize("resident", [True, False])
def test_batches_on_the_device_are_those_of_the_loader(corpus: Corpus, resident: bool) -> None:
    loader = Loader(corpus, np.arange(20), MODEL, TRAIN)
    there = DeviceLoader(loader, CPU, ResidentCorpus(corpus, CPU) if resident else None).batches(3, 7)
    for (ours, _), (host, _) in zip(there, loader.batches(3, 7), strict=True):
        assert (ours.step, ours.ids, len(ours)) == (host.step, host.ids, len(host))
        assert np.array_equal(ours.noise.numpy(), host.noise)
        difference = ours.images(slice(None), TRAIN) - normalise(host.pixels, TRAIN, CPU)
        assert difference.abs().mean() < 0.26 / 255 / 0.22 and difference.abs().max() < 1 / 255 / 0.22


def trained(corpus: Corpus, tmp_path: Path, steps: int = 7) -> tuple[list[StepRecord], dict[str, torch.Tensor]]:
    model, records = fresh(MODEL, seed=1), []
    train(model, corpus, TRAIN, TrainPlan(np.arange(20), steps), TrainContext(on_step=records.append))
    return records, model.state_dict()


def test_losses_read_back_later_are_the_same_losses_and_weights(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, weights = trained(corpus, tmp_path)
    monkeypatch.setattr(training, "steps_unread", lambda settings, device: 3)
    later, same = trained(corpus, tmp_path)
    assert [(r.step, r.loss, r.grad_norm) for r in later] == [(r.step, r.loss, r.grad_norm) for r in records]
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_a_run_whose_images_are_augmented_on_the_device_learns_the_same(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, _ = trained(corpus, tmp_path)
    monkeypatch.setattr(training, "augments", lambda settings, device: True)
    there, _ = trained(corpus, tmp_path)
    assert [r.loss for r in there] == pytest.approx([r.loss for r in records], rel=1e-3)
    assert [r.loss for r in there] != [r.loss for r in records]


def test_a_step_that_is_not_finite_leaves_the_weights_alone_and_is_said_when_it_is_read(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "steps_unread", lambda settings, device: 4)
    model, seen = fresh(MODEL, seed=1), []
    real = training.Stepper.update

    def update(stepper, batch, *rest, **more):  # type: ignore[no-untyped-def]
        if batch.step == 1:
            seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            with torch.no_grad():
                stepper.trained[0].grad = torch.full_like(stepper.trained[0], torch.nan)
        values = real(stepper, batch, *rest, **more)
        if batch.step == 1:
            seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return values

    monkeypatch.setattr(training.Stepper, "update", update)
    with pytest.raises(UsfmaeError, match=r"step 2: .*not finite"):
        train(model, corpus, TRAIN, TrainPlan(np.arange(20), 6))
    before, after = seen
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_corpus_stays_in_the_memory_of_a_gpu_alone_and_only_where_it_is_read_whole(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not device_batches.fits(corpus, CPU, 10**9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * corpus.nbytes, 10**12))
    gpu = torch.device("cuda", 0)
    assert device_batches.fits(corpus, gpu, len(corpus)) and not device_batches.fits(corpus, gpu, len(corpus) - 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (corpus.nbytes, 10**12))
    assert not device_batches.fits(corpus, gpu, len(corpus))
