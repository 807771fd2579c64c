"""ONNX: the encoder as `encoder.onnx`, images (B, 3, S, S) normalised -> features (B, 1 + L, D), any batch size."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from usfmae.core.checkpoint import Loaded
from usfmae.core.errors import UsageError, needs
from usfmae.core.export.target import ExportOptions, model_of, probe_images
from usfmae.core.files import replacing
from usfmae.core.mae.model import MaskedAutoencoder

TOLERANCE = 1e-3
USE = 'session = onnxruntime.InferenceSession("encoder.onnx")'
MODEL = "encoder.onnx"
NOISY = ("onnxscript", "onnx_ir", "torch.onnx")  # they tell of every constant they fold


class OnnxEncoder(nn.Module):
    """`features` as `forward`, which is what the exporter calls."""

    def __init__(self, model: MaskedAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.features(images)


@torch.no_grad()
def write(loaded: Loaded, out: Path, options: ExportOptions = ExportOptions()) -> list[Path]:
    needs("onnx", "onnx")
    needs("onnxscript", "onnx")
    with replacing(out / MODEL) as partial:
        write_onnx(OnnxEncoder(model_of(loaded)).eval(), probe_images(loaded), "features", partial, options)
    return [out / MODEL]


def write_onnx(
    module: nn.Module, images: Tensor, output: str, path: Path, options: ExportOptions = ExportOptions()
) -> None:
    """A module of images (B, 3, S, S), any batch size, as one ONNX file. Raises UsageError for an opset it cannot have."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        _write(module, images, output, path, options)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        if options.opset is None and options.ir_version is None:
            raise
        versions = f"opset {options.opset}, IR version {options.ir_version}"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"ONNX with {versions}", f"cannot be written: {reason}", "leave one of them out") from None


def _write(module: nn.Module, images: Tensor, output: str, path: Path, options: ExportOptions) -> None:
    program = torch.onnx.export(
        module,
        (images,),
        input_names=["images"],
        output_names=[output],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
        dynamo=True,
        verbose=False,
        opset_version=options.opset,
    )
    assert program is not None
    if options.ir_version is not None:
        program.model.ir_version = options.ir_version
    program.save(path, external_data=False)


@torch.no_grad()
def difference(loaded: Loaded, out: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(out / MODEL, providers=["CPUExecutionProvider"])
    images = probe_images(loaded, count=3)  # another batch size than the exporter saw
    (theirs,) = session.run(None, {"images": images.numpy()})
    return float((torch.from_numpy(theirs) - model_of(loaded).features(images)).abs().max())
