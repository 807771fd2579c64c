"""Stanford's thyroid cine clips: one HDF5 file of 17,412 frames, written out as a volume for each clip.

`dataset.hdf5` holds `image` (N, 802, 1054) uint8, `annot_id` (the clip of each frame, such as `12_`) and `frame_num`;
`mask` is not touched. The file names no patients: 192 clips of 167 patients, so each clip stands for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usfmae.core.errors import SourceError, needs
from usfmae.core.files import put

NEEDED = ("image", "annot_id", "frame_num")


def unpack(source: Path, out: Path, progress: Callable[[int, int], None] = lambda *_: None) -> int:
    """Write `out/CLIP.mha` for each clip, frames in order; clips that are there stay. Returns the number of clips.

    `progress`: clips done, clips in all. Raises SourceError where the file is damaged or laid out otherwise,
    ResourceError without h5py.
    """
    needs("h5py", "bench")
    import h5py

    try:
        with h5py.File(source, "r") as file:
            absent = [name for name in NEEDED if name not in file]
            if absent:
                names_found = ", ".join(sorted(file)) or "nothing"
                raise SourceError(f"{source}", f"holds {names_found}, but no {', '.join(absent)}", "fetch it again")
            clips = np.array([_text(value) for value in file["annot_id"]])
            order = np.array([int(_text(value)) for value in file["frame_num"]])
            names = sorted(set(clips.tolist()))
            out.mkdir(parents=True, exist_ok=True)
            for number, name in enumerate(names, start=1):
                rows = np.flatnonzero(clips == name)
                path = out / f"{name}.mha"
                if not path.exists():
                    _write(path, np.stack([_frame(file["image"][row]) for row in rows[np.argsort(order[rows])]]))
                progress(number, len(names))
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"{source}", f"cannot be read as HDF5: {error}", "fetch it again") from None
    return len(names)


def _text(value: Any) -> str:
    """`12_` as bytes, text or number -> `12`: a file name that holds nothing but letters and digits."""
    text = value.decode() if isinstance(value, bytes) else str(value)
    return "".join(c for c in text if c.isalnum())


def _frame(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W), or (3, H, W) with colour last: (H, W, 3)."""
    if image.ndim == 3 and image.shape[0] == 3:
        return np.moveaxis(image, 0, -1)
    if image.ndim != 2:
        raise ValueError(f"a frame has shape {image.shape}")
    return image


def _write(path: Path, frames: NDArray[np.uint8]) -> None:
    """(T, H, W[, 3]) -> a compressed MetaImage, whole or not at all."""
    import SimpleITK

    partial = path.with_name(f".{path.name}.part.mha")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(frames, isVector=frames.ndim == 4), str(partial), True)
    put(partial, path)
