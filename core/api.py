"""The commands as calls: prepare, pretrain, load an encoder, features, probe, fine-tune, import, export.

`import usfmae` gives these by name (`usfmae.prepare`, ...). Each does what the command of its name does, with the same
defaults; `settings` are the keys of `--set`, such as {"train.lr": 1e-4}. Nothing heavy is imported before a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from usfmae.core import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from usfmae.core.bench.encoders.base import Encoder
    from usfmae.core.export import Exported
    from usfmae.core.mae.pretrain import PretrainSummary
    from usfmae.core.mae.train import StepRecord
    from usfmae.core.prepare import PrepareSummary
    from usfmae.core.types import Pixels

__all__ = [
    "__version__",
    "export",
    "features",
    "finetune",
    "import_weights",
    "load_encoder",
    "prepare",
    "pretrain",
    "probe",
]

AnyPath = str | PathLike[str]
Changes = Mapping[str, Any]  # dotted keys of settings to values


def prepare(
    sources: AnyPath | Iterable[AnyPath],
    corpus: AnyPath,
    *,
    profile: Literal["safe", "paper"] = "safe",
    workers: int = 1,
    secret: AnyPath | None = None,
    settings: Changes | None = None,
) -> PrepareSummary:
    """`usfmae prepare`: read, clean and pack every scan below `sources` into the folder `corpus`.

    Called again it reads what is new. Raises SourceError, UsageError, ResourceError.
    """
    from usfmae.core.cli.prepare import complain_if_empty, site_secret
    from usfmae.core.config import Settings, load
    from usfmae.core.prepare import Parallel, Sources
    from usfmae.core.prepare import prepare as run

    places = [Path(p) for p in ([sources] if isinstance(sources, str | PathLike) else sources)]
    chosen, _ = load(Settings, None, _pairs({"clean.profile": profile, **(settings or {})}))
    key = site_secret(Path(secret) if secret else None)
    summary = run(Sources(places), Path(corpus), chosen, key, Parallel(workers))
    complain_if_empty(summary.scans, [str(place) for place in places])
    return summary


def pretrain(
    corpus: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    *,
    preset: Literal["paper", "official-notebook", "best", "tiny"] | None = None,
    init: AnyPath | None = None,
    decoder_heads: int | None = None,
    device: str | None = None,
    resume: bool = False,
    on_step: Callable[[StepRecord, int], bool | None] | None = None,
    settings: Changes | None = None,
) -> PretrainSummary:
    """`usfmae pretrain`: train the masked autoencoder on corpora in the folder `out`; `resume` goes on with a run.

    `on_step(record, steps)` may return True to stop after this step. Raises UsageError, CorpusError, CheckpointError.
    """
    from usfmae.core.mae.presets import configure
    from usfmae.core.mae.pretrain import Hooks, InitFile, free_device, new_run, open_run

    hooks, place = Hooks(on_step), free_device(device)
    if resume:
        steps = (settings or {}).get("train.steps")
        return open_run(Path(out), int(steps) if steps else None).go(place, hooks)
    corpora = [Path(p) for p in ([corpus] if isinstance(corpus, str | PathLike) else corpus)]
    heads = {"model.decoder_heads": decoder_heads} if decoder_heads is not None else {}
    start = InitFile(Path(init) if init else None, bool(heads))
    chosen = configure(preset, None, _pairs({**heads, **(settings or {})}))
    return new_run(corpora, Path(out), chosen, start).go(place, hooks)


def load_encoder(
    model: AnyPath, *, pooling: Literal["mean", "cls"] = "mean", weights: AnyPath | None = None
) -> Encoder:
    """A frozen encoder: a checkpoint, any file that `usfmae import` reads, timm:NAME, random:CHECKPOINT, ...

    Raises CheckpointError, UsageError.
    """
    from usfmae.core.bench.encoders import load

    return load(str(model), pooling, Path(weights) if weights else None)


def features(encoder: Encoder, images: Sequence[AnyPath | Pixels], *, size: int | None = None) -> NDArray[np.float32]:
    """(N, D) features of pictures: paths of PNG, JPEG, TIFF or BMP files, or arrays (H, W) or (H, W, 3) uint8.

    Pictures become squares as the encoder's own did, `size` pixels wide (the encoder's size). Raises SourceError.
    """
    import numpy as np

    from usfmae.core.bench.features import compute
    from usfmae.core.bench.tasks.base import picture_at
    from usfmae.core.corpus.shard import square
    from usfmae.core.types import CleanImage

    side = size or encoder.size
    squares = []
    for image in images:
        pixels = picture_at(Path(image)) if isinstance(image, str | PathLike) else np.asarray(image)
        clean = CleanImage(pixels, np.zeros(pixels.shape[:2], bool))
        packed = square(clean, side, "", aspect=encoder.aspect).pixels
        squares.append(np.broadcast_to(packed if packed.ndim == 3 else packed[..., None], (side, side, 3)))
    return compute(encoder, np.stack(squares))


def probe(
    model: Encoder | AnyPath, task: str, data: AnyPath, *, cache: AnyPath | None = None, settings: Changes | None = None
) -> dict[str, Any]:
    """`usfmae probe`: kNN and logistic regression on frozen features of a benchmark; scores with intervals.

    Raises SourceError, UsageError, CheckpointError.
    """
    from usfmae.core.bench.encoders.base import Encoder
    from usfmae.core.bench.evaluate import probed
    from usfmae.core.bench.tasks import load

    chosen = _bench(settings)
    encoder = model if isinstance(model, Encoder) else load_encoder(model, pooling=chosen.pooling)
    report, _ = probed(load(task, Path(data), chosen.seed), encoder, chosen, Path(cache) if cache else None)
    return report


def finetune(
    model: AnyPath,
    task: str,
    data: AnyPath,
    out: AnyPath,
    *,
    recipe: Literal["good", "paper"] = "good",
    settings: Changes | None = None,
) -> dict[str, Any]:
    """`usfmae finetune`: train encoder and head on a benchmark; the best weights are `out`/classifier.safetensors.

    Raises SourceError, UsageError, CheckpointError, ResourceError.
    """
    from usfmae.core.bench.evaluate import finetuned
    from usfmae.core.bench.tasks import load

    chosen = _bench({"bench.finetune.recipe": recipe, **(settings or {})})
    loaded = load(task, Path(data), chosen.seed)
    return finetuned(loaded, lambda: load_encoder(model, pooling=chosen.pooling), chosen, Path(out))


def import_weights(source: AnyPath, out: AnyPath, *, decoder_heads: int | None = None) -> Path:
    """`usfmae import`: a checkpoint of ours at `out` from others' weights. Without heads only the encoder is taken.

    Raises CheckpointError.
    """
    from usfmae.core.checkpoint import save
    from usfmae.core.mae.weights.init_weights import load_any

    loaded = load_any(Path(source), decoder_heads=decoder_heads)
    return save(Path(out), loaded.tensors, loaded.metadata).path


def export(model: AnyPath, target: str, out: AnyPath) -> Exported:
    """`usfmae export`: files for another library in the folder `out`, read back and compared where it is installed.

    `target`: timm, hf, hf-mae, mae, onnx, or another of `usfmae.core.export.TARGETS`.

    Raises CheckpointError where the other library's output differs.
    """
    from usfmae.core.export import export as write
    from usfmae.core.mae.weights.init_weights import load_any

    return write(load_any(Path(model)), target, Path(out))


def _bench(settings: Changes | None) -> Any:
    from usfmae.core.config import Settings, load

    return load(Settings, None, _pairs(settings or {}))[0].bench


def _pairs(settings: Changes) -> list[str]:
    """Keys and values as `--set` takes them; values as YAML in one line."""
    import yaml

    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()}
    return [
        f"{k}={yaml.safe_dump(v, default_flow_style=True, width=10**6).removesuffix('...' + chr(10)).strip()}"
        for k, v in plain.items()
    ]
