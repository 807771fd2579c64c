"""The loop: cut anywhere it goes on bit for bit, processes share a batch, failures stop it without loss."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from usfmae.core.checkpoint import read_tensors, tensors_id
from usfmae.core.config import AugmentSettings, ModelSettings, TrainRecipe, TrainSettings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.loader import Loader
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.errors import ConfigError, ResourceError, UsfmaeError
from usfmae.core.mae import device, train_log
from usfmae.core.mae.device import micro_batch
from usfmae.core.mae.evaluation import Stopped, evaluate, target_variance
from usfmae.core.mae.model import MaskedAutoencoder, fresh
from usfmae.core.mae.optimizer_step import backward
from usfmae.core.mae.train import StepRecord, TrainContext, TrainPlan, TrainResult, call_id, learning_rate, train

MODEL = ModelSettings(
    image_size=32, patch_size=8, width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
)
SETTINGS = TrainSettings(batch_size=6, micro_batch=4, lr=1e-3, checkpoint_steps=2, keep=2)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (32, 32), np.uint8) for _ in range(20)]
    write_shard(tmp_path / "corpus", "a", [PackedImage(x, f"id{i}", f"g{i // 2}") for i, x in enumerate(images)])
    return Corpus([tmp_path / "corpus"])


def new() -> MaskedAutoencoder:
    return fresh(MODEL, 0.25, seed=1)


def weights(model: MaskedAutoencoder) -> str:
    return tensors_id(model.state_dict())


def go(model: MaskedAutoencoder, corpus: Corpus, steps: int, settings: TrainSettings = SETTINGS, **more) -> TrainResult:  # type: ignore[no-untyped-def]
    placed = {name: more.pop(name) for name in ("start_step", "total_steps") if name in more}
    return train(model, corpus, settings, TrainPlan(np.arange(len(corpus)), steps, **placed), TrainContext(**more))


class Killed(BaseException):
    """Stands for kill -9 inside one process: nothing after it runs."""


def kill_after(step: int):  # type: ignore[no-untyped-def]
    def on_step(record: StepRecord) -> None:
        if record.step == step:
            raise Killed

    return on_step


@pytest.mark.parametrize(("cut", "precision"), [*((cut, "fp32") for cut in range(1, 8)), (3, "bf16"), (6, "bf16")])
def test_killed_at_any_step_the_same_call_gives_the_same_bits(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int, precision: str
) -> None:
    monkeypatch.setattr(device, "multiplies_bf16", lambda _: True)  # also on a CPU where it does not pay
    settings = SETTINGS.model_copy(update={"precision": precision})
    straight = new()
    go(straight, corpus, 7, settings)
    with pytest.raises(Killed):
        go(new(), corpus, 7, settings, state=tmp_path / "s", log=tmp_path / "log", on_step=kill_after(cut))
    again = new()
    result = go(again, corpus, 7, settings, state=tmp_path / "s", log=tmp_path / "log")
    assert weights(again) == weights(straight)
    assert result.finished and result.step == 7
    assert [entry["step"] for entry in train_log.read(tmp_path / "log")] == list(range(1, 8))


def test_a_finished_call_repeated_gives_its_weights_without_training(corpus: Corpus, tmp_path: Path) -> None:
    first, second = new(), new()
    go(first, corpus, 4, state=tmp_path, log=tmp_path / "log")
    result = go(second, corpus, 4, state=tmp_path, log=tmp_path / "log", on_step=kill_after(4))
    assert weights(second) == weights(first)
    assert (result.steps, result.finished) == (4, True) and math.isfinite(result.loss)


def test_a_release_that_knows_one_more_setting_goes_on_with_the_checkpoints_of_this_one(corpus: Corpus) -> None:
    class Later(TrainRecipe):
        one_more: int = 3
        """A setting that this release has not."""

    plan, now = TrainPlan(np.arange(len(corpus)), 7), TrainRecipe.of(SETTINGS)
    later = Later(**now.model_dump())
    assert call_id(new(), corpus, now, plan) == call_id(new(), corpus, later, plan)
    assert call_id(new(), corpus, now, plan) != call_id(new(), corpus, later.model_copy(update={"one_more": 4}), plan)


def test_checkpoints_that_are_not_gone_on_with_are_said(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go(new(), corpus, 2, state=tmp_path / "s")
    assert "begun anew" not in caplog.text
    go(new(), corpus, 2, SETTINGS.model_copy(update={"lr": 0.5}), state=tmp_path / "s")
    assert "are of other settings or images: begun anew" in caplog.text


def test_two_calls_in_a_row_equal_one(corpus: Corpus, tmp_path: Path) -> None:
    whole, parts = new(), new()
    go(whole, corpus, 9, total_steps=12)
    go(parts, corpus, 4, total_steps=12, state=tmp_path)
    go(parts, corpus, 5, start_step=4, total_steps=12, state=tmp_path)
    assert weights(parts) == weights(whole)


def test_a_second_call_killed_and_repeated_still_equals_one(corpus: Corpus, tmp_path: Path) -> None:
    whole, parts = new(), new()
    go(whole, corpus, 9, total_steps=12)
    go(parts, corpus, 4, total_steps=12, state=tmp_path)
    begun = {name: tensor.clone() for name, tensor in parts.state_dict().items()}
    for cut in (5, 7, 9):
        parts.load_state_dict(begun)
        with pytest.raises(Killed):
            go(parts, corpus, 5, start_step=4, total_steps=12, state=tmp_path, on_step=kill_after(cut))
    parts.load_state_dict(begun)
    go(parts, corpus, 5, start_step=4, total_steps=12, state=tmp_path)
    assert weights(parts) == weights(whole)


def test_a_round_asked_again_from_other_weights_begins_with_the_moments_it_had(corpus: Corpus, tmp_path: Path) -> None:
    """A coordinator that takes a round back sends another base for the same global step."""
    base = new()
    go(base, corpus, 4, total_steps=12, state=tmp_path)
    begun = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    go(base, corpus, 4, start_step=4, total_steps=12, state=tmp_path)
    other = {name: tensor * 1.01 for name, tensor in begun.items()}
    after_discarded, direct = new(), new()
    after_discarded.load_state_dict(other)
    go(after_discarded, corpus, 4, start_step=4, total_steps=12, state=tmp_path)
    fresh_state = tmp_path / "other"
    prepared = new()
    go(prepared, corpus, 4, total_steps=12, state=fresh_state)
    direct.load_state_dict(other)
    go(direct, corpus, 4, start_step=4, total_steps=12, state=fresh_state)
    assert weights(after_discarded) == weights(direct)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(corpus: Corpus, tmp_path: Path) -> None:
    straight, again = new(), new()
    go(straight, corpus, 7)
    with pytest.raises(Killed):
        go(new(), corpus, 7, state=tmp_path, on_step=kill_after(7))
    newest = tmp_path / "step-000000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    go(again, corpus, 7, state=tmp_path)
    assert weights(again) == weights(straight)


def test_the_last_k_checkpoints_are_kept(corpus: Corpus, tmp_path: Path) -> None:
    go(new(), corpus, 9, state=tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == [
        "step-000000008.optimizer.safetensors",
        "step-000000008.safetensors",
        "step-000000009.optimizer.safetensors",
        "step-000000009.safetensors",
    ]


def test_stopping_by_callback_saves_and_goes_on_later(corpus: Corpus, tmp_path: Path) -> None:
    straight, parts = new(), new()
    go(straight, corpus, 7)
    stopped = go(parts, corpus, 7, state=tmp_path, on_step=lambda record: record.step == 3)
    assert (stopped.finished, stopped.step) == (False, 3)
    again = new()
    assert go(again, corpus, 7, state=tmp_path).finished
    assert weights(again) == weights(straight)


def test_a_wish_to_stop_is_heard_between_two_micro_batches_and_the_step_is_given_up(
    corpus: Corpus, tmp_path: Path
) -> None:
    straight, cut = new(), new()
    small = SETTINGS.model_copy(update={"micro_batch": 2})
    go(straight, corpus, 3, small)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 7  # two passes in the first step and the question after it; then within the second

    done = go(cut, corpus, 3, small, state=tmp_path, stop=stop)
    assert not done.finished and done.step < 3
    fresh_one = new()
    again = go(fresh_one, corpus, 3, small, state=tmp_path)
    assert again.finished and weights(fresh_one) == weights(straight)
    with pytest.raises(Stopped):
        evaluate(fresh_one, corpus, np.arange(4), small, lambda: True)


def test_checkpoints_come_by_the_clock_unless_steps_are_named(corpus: Corpus, tmp_path: Path) -> None:
    by_clock = SETTINGS.model_copy(update={"checkpoint_steps": None, "checkpoint_minutes": 1e-9, "keep": 9})
    seen: list[int] = []
    go(new(), corpus, 3, by_clock, state=tmp_path / "a", on_checkpoint=seen.append)
    assert seen == [1, 2, 3] and len(list((tmp_path / "a").glob("*.optimizer.safetensors"))) == 3
    rarely = by_clock.model_copy(update={"checkpoint_minutes": 1e9})
    seen.clear()
    go(new(), corpus, 3, rarely, state=tmp_path / "b", on_checkpoint=seen.append)
    assert seen == [3]


def test_a_gpu_takes_whole_batches_where_a_cpu_takes_few_images(corpus: Corpus) -> None:
    settings = SETTINGS.model_copy(update={"micro_batch": None})
    assert (micro_batch(settings, torch.device("cpu")), micro_batch(settings, torch.device("cuda"))) == (12, 256)
    assert micro_batch(settings.model_copy(update={"micro_batch": 5}), torch.device("cuda")) == 5


def test_changed_settings_are_checked_as_those_of_a_file() -> None:
    with pytest.raises(ConfigError, match="mask_ratio"):
        SETTINGS.model_copy(update={"mask_ratio": 25})
    with pytest.raises(ConfigError, match="unknown key"):
        SETTINGS.model_copy(update={"mask_rate": 0.5})


def test_micro_batches_change_memory_not_the_gradients(corpus: Corpus) -> None:
    found = []
    for size in (6, 4, 1):
        settings = SETTINGS.model_copy(update={"precision": "fp32", "micro_batch": size})
        model = new()
        batch = Loader(corpus, np.arange(20), MODEL, settings).prepare(3)
        loss = backward(model, batch, settings, torch.device("cpu"))
        found.append((float(loss), [p.grad for p in model.parameters() if p.grad is not None]))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        for one, other in zip(found[0][1], gradients, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)


def test_a_loss_that_is_not_finite_stops_with_the_batch_named_and_the_checkpoint_kept(
    corpus: Corpus, tmp_path: Path
) -> None:
    model = new()

    def spoil(record: StepRecord) -> None:
        if record.step == 4:
            model.decoder_pred.bias.data[0] = math.nan

    with pytest.raises(UsfmaeError, match=r"step 5.*not finite.*id\d+") as caught:
        go(model, corpus, 9, state=tmp_path, on_step=spoil)
    assert "checkpoint is kept" in str(caught.value)
    assert (tmp_path / "step-000000002.safetensors").exists()


def test_out_of_memory_says_which_batch_to_try(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(MaskedAutoencoder, "forward", full)
    with pytest.raises(ResourceError, match=r"train\.micro_batch=2"):
        go(new(), corpus, 1)


def test_a_full_disk_is_said_and_the_run_goes_on_from_the_last_checkpoint(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import usfmae.core.checkpoint as checkpoint

    straight, again = new(), new()
    go(straight, corpus, 7)
    real, calls = checkpoint.save_file, []

    def full(*args: object) -> None:
        calls.append(1)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        real(*args)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ResourceError, match="is full"):
        go(new(), corpus, 7, state=tmp_path)
    monkeypatch.setattr(checkpoint, "save_file", real)
    assert not list(tmp_path.glob("*.partial"))
    go(again, corpus, 7, state=tmp_path)
    assert weights(again) == weights(straight)


def test_an_error_while_reading_images_reaches_the_caller(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(corpus, "images", broken)
    with pytest.raises(OSError, match="disk gone"):
        go(new(), corpus, 2)


def test_held_out_loss_is_deterministic_and_does_not_depend_on_order_or_batch(corpus: Corpus) -> None:
    model = new()
    settings = SETTINGS.model_copy(update={"precision": "fp32"})
    loss = evaluate(model, corpus, np.arange(20), settings)
    assert loss == evaluate(model, corpus, np.arange(20), settings)
    assert loss == pytest.approx(evaluate(model, corpus, np.arange(20)[::-1], settings), rel=1e-5)
    assert loss == pytest.approx(evaluate(model, corpus, np.arange(20), settings.model_copy(update={"micro_batch": 3})))


def test_target_variance_is_the_error_of_the_best_constant(corpus: Corpus) -> None:
    pixels = corpus.fetch(np.arange(20)).pixels.astype(np.float64) / 255
    wanted = np.mean([(pixels / std).var() for std in SETTINGS.std])
    assert target_variance(new(), corpus, np.arange(20), SETTINGS) == pytest.approx(wanted, rel=1e-5)
    # Of patches that are each brought to mean 0 and variance 1 there is no more to say than 1, whatever the images.
    normalised = fresh(MODEL, 0.25, norm_pix=True)
    assert target_variance(normalised, corpus, np.arange(20), SETTINGS) == pytest.approx(1, abs=0.02)


def test_the_rate_rises_linearly_from_zero_and_falls_by_half_a_cosine() -> None:
    settings = TrainRecipe(lr=1.0, min_lr=0.1, warmup=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(101)]
    assert rates[:11] == pytest.approx([s / 10 for s in range(11)])
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


def test_gradients_are_clipped_to_the_global_norm(corpus: Corpus, tmp_path: Path) -> None:
    records: list[StepRecord] = []
    go(new(), corpus, 1, SETTINGS.model_copy(update={"clip": 0.01}), state=tmp_path, on_step=records.append)
    moments, _ = read_tensors(tmp_path / "step-000000001.optimizer.safetensors")
    first = torch.cat([t.flatten() for name, t in moments.items() if name.startswith("exp_avg/")]).norm()
    assert float(first) == pytest.approx(0.1 * 0.01, rel=1e-3)  # (1 - beta1) * clipped gradient
    assert records[0].grad_norm > 0.1  # logged as it was


def test_weight_decay_acts_on_every_trained_tensor_and_on_no_frozen_one(corpus: Corpus) -> None:
    model = new()
    frozen = model.pos_embed.clone()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.fill_(1.0)
    settings = SETTINGS.model_copy(update={"weight_decay": 0.5, "lr": 1e-2, "warmup": 0.0, "clip": 1e-12})
    go(model, corpus, 1, settings)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(parameter, torch.tensor(1 - 1e-2 * 0.5), atol=1e-4), name
    assert torch.equal(model.pos_embed, frozen)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_a_compiled_model_trains_like_the_plain_one(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: made.append(real(model)) or made[-1])
    settings = SETTINGS.model_copy(update={"precision": "fp32", "batch_size": 4})
    found = []
    for compiled in (False, True):
        records: list[StepRecord] = []
        go(new(), corpus, 2, settings.model_copy(update={"compile": compiled}), on_step=records.append)
        found.append([(record.loss, record.grad_norm) for record in records])
    assert np.allclose(*found, rtol=1e-4) and len(found[0]) == 2 and len(made) == 1


def test_augmentation_can_be_switched_off(corpus: Corpus) -> None:
    still = AugmentSettings(rotation=0, flips=False, zoom_min=1, zoom_max=1)
    one, two = new(), new()
    go(one, corpus, 2, SETTINGS.model_copy(update={"augment": still}))
    go(two, corpus, 2)
    assert weights(one) != weights(two)
