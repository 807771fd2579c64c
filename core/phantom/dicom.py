"""Write simulated screens as DICOM ultrasound: stills and cines, with region tags, rates and fake identifiers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, UltrasoundMultiFrameImageStorage, generate_uid

from usfmae.core.phantom.screen import Screen, draw_screen
from usfmae.core.phantom.tissue import Tissue, simulate

FRAME_RATE = 12.0  # frames per second of a simulated cine


def write_still(path: Path, tissue: Tissue) -> Screen:
    """One simulated image as Ultrasound Image Storage (PS3.3 A.6); returns the truth about it."""
    (image,), _ = simulate(tissue)
    screen = draw_screen(image, tissue.seed)
    _write(path, [screen], tissue)
    return screen


def write_cine(path: Path, tissue: Tissue, frames: int = 24) -> list[Screen]:
    """A simulated clip as Ultrasound Multi-frame Image Storage (PS3.3 A.7) with the same overlay on each frame."""
    images, _ = simulate(tissue, frames)
    screens = [draw_screen(image, tissue.seed) for image in images]
    _write(path, screens, tissue)
    return screens


def _write(path: Path, screens: list[Screen], tissue: Tissue) -> None:
    first = screens[0]
    entropy = [f"usfmae phantom {tissue}"]  # the same tissue gets the same UIDs, so a demo can be repeated
    data = Dataset()
    data.SOPClassUID = UltrasoundMultiFrameImageStorage if len(screens) > 1 else UltrasoundImageStorage
    data.SOPInstanceUID = generate_uid(entropy_srcs=[*entropy, "instance"])
    data.StudyInstanceUID = generate_uid(entropy_srcs=[*entropy, "study"])
    data.SeriesInstanceUID = generate_uid(entropy_srcs=[*entropy, "series"])
    data.Modality = "US"
    data.PatientName, data.PatientID = first.name, first.patient
    data.StudyDate = data.ContentDate = first.date
    data.Manufacturer, data.ManufacturerModelName = "usfmae", "phantom"
    data.InstitutionName = "DEMO HOSPITAL"
    data.BurnedInAnnotation = "YES"
    data.SequenceOfUltrasoundRegions = Sequence([_region(first, tissue)])
    pixels = np.stack([s.pixels for s in screens])
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.Rows, data.Columns = pixels.shape[1:3]
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    if len(screens) > 1:
        data.NumberOfFrames = len(screens)
        data.FrameTime = f"{1000 / FRAME_RATE:.3f}"
        data.FrameIncrementPointer = 0x00181063  # FrameTime
    data.PixelData = pixels.tobytes()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def _region(screen: Screen, tissue: Tissue) -> Dataset:
    """One item of the US Region Calibration module (PS3.3 C.8.5.5); max coordinates are inclusive there."""
    x0, y0, x1, y1 = screen.region
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = x0, y0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = x1 - 1, y1 - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3  # centimetres
    region.PhysicalDeltaX = region.PhysicalDeltaY = tissue.depth / (y1 - y0)
    return region
