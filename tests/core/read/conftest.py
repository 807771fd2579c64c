"""Small files of every format, made here: nothing in them comes from a patient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage

SECRET = b"k" * 32


def speckle(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """(H, W) uint8: smooth enough for lossy codecs, different for each seed."""
    import cv2

    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def make_dicom(tmp_path: Path) -> Callable[..., Path]:
    """`make_dicom(frames, name, **elements)`: an uncompressed ultrasound object of (N, H, W[, 3]) samples."""

    def make(frames: np.ndarray, name: str = "clip", syntax: str = ExplicitVRLittleEndian, **elements: Any) -> Path:
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
        meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        how = meta.TransferSyntaxUID.is_implicit_VR, meta.TransferSyntaxUID.is_little_endian
        ds = FileDataset(name, {}, b"\0" * 128, meta, *how)
        ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        ds.Modality, ds.PatientName, ds.PatientID, ds.StudyDate = "US", "Doe^Jane", "P-4711", "20240131"
        ds.StudyInstanceUID = pydicom.uid.generate_uid()
        ds.NumberOfFrames, ds.Rows, ds.Columns = len(frames), frames.shape[1], frames.shape[2]
        ds.SamplesPerPixel = 3 if frames.ndim == 4 else 1
        ds.PhotometricInterpretation = "RGB" if frames.ndim == 4 else "MONOCHROME2"
        if frames.ndim == 4:
            ds.PlanarConfiguration = 0
        bits = frames.dtype.itemsize * 8
        ds.BitsAllocated = ds.BitsStored = bits
        ds.HighBit, ds.PixelRepresentation = bits - 1, 0
        ds.PixelData = frames.tobytes()
        for key, value in elements.items():
            setattr(ds, key, value)
        path = tmp_path / name
        ds.save_as(path)
        return path

    return make
