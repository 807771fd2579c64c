"""Any encoder as an ONNX file: what has no architecture here (USFM, OpenUS, EchoCare, US-JEPA) is exported by its own code.

The file is data, not a program: it is run by ONNX Runtime. Its input is (B, 3, S, S), normalised with ImageNet's statistics
unless the file's metadata `mean` and `std` (JSON lists) say otherwise; its first output is (B, D), tokens (B, L, D) or a map
(B, D, H, W), of which the mean is taken.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from usfmae.core.bench.encoders.base import Encoder
from usfmae.core.errors import CheckpointError, needs

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 224  # where the file leaves it open


class OnnxModule(nn.Module):
    """An ONNX Runtime session as a module; no gradients."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session, self.input = session, session.get_inputs()[0].name

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)."""
        output = self.session.run(None, {self.input: images.cpu().numpy().astype(np.float32)})[0]
        values = torch.from_numpy(np.asarray(output, np.float32))
        if values.ndim == 4:
            values = values.mean(dim=(2, 3))
        return values.mean(dim=1) if values.ndim == 3 else values


def onnx_encoder(spec: str, path: Path) -> Encoder:
    """The encoder of a file. Raises CheckpointError, and ResourceError where ONNX Runtime is absent."""
    needs("onnxruntime", "onnx")
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        module = OnnxModule(session).eval()
        side = session.get_inputs()[0].shape[-1]
        size = side if isinstance(side, int) else SIZE
        width = module(torch.zeros(2, 3, size, size)).shape[1]
        about = session.get_modelmeta().custom_metadata_map
        mean, std = (
            tuple(json.loads(about.get(name, "null")) or usual) for name, usual in (("mean", MEAN), ("std", STD))
        )
    except Exception as error:  # whatever the runtime makes of a foreign file
        first = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise CheckpointError(
            f"model {path}", f"is no encoder of images (B, 3, S, S): {first}", "export it again"
        ) from None
    with path.open("rb") as file:
        id_ = hashlib.file_digest(file, "sha256").hexdigest()
    return Encoder(spec, id_, module, width, size, mean, std)
