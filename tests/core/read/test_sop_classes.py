"""DICOM objects that are no ultrasound pictures: each is refused by rule, with its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from usfmae.core.config import ReadSettings
from usfmae.core.read import RefusedScan, identify, walk
from usfmae.core.read.discover import Candidate, Identified
from usfmae.core.types import Quarantined

from .conftest import SECRET, speckle


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33"}, "structured-report"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, "encapsulated-document"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1"}, "presentation-state"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary-capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"}, "secondary-capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Modality": "CT"}, "modality"),
    ],
)
def test_what_is_no_ultrasound_picture_is_refused_by_rule(
    make_dicom: Callable[..., Path], elements: dict[str, str], reason: str
) -> None:
    found = identify(Candidate.of(make_dicom(speckle()[None], **elements)), SECRET, ReadSettings())
    assert isinstance(found, RefusedScan)
    assert found.reason == reason


@pytest.mark.parametrize("modality", ["OT", "CT", ""])
def test_an_ultrasound_class_is_read_whatever_its_modality_says(make_dicom: Callable[..., Path], modality: str) -> None:
    found = identify(Candidate.of(make_dicom(speckle()[None], Modality=modality)), SECRET, ReadSettings())
    assert isinstance(found, Identified)


WHEEL = Path(pydicom.__file__).parent / "data" / "test_files"
FOREIGN = {
    "test-SR.dcm": "structured-report",
    "reportsi.dcm": "structured-report",
    "CT_small.dcm": "modality",
    "MR_small_RLE.dcm": "modality",
    "SC_rgb_jpeg.dcm": "secondary-capture",
    "rtplan.dcm": "radiotherapy-object",
    "rtdose_1frame.dcm": "radiotherapy-object",
    "liver_1frame.dcm": "derived-object",
    "waveform_ecg.dcm": "waveform",
    "dicomdirtests/DICOMDIR-implicit": "dicomdir",
}


@pytest.mark.parametrize(("name", "reason"), FOREIGN.items())
def test_real_objects_of_other_kinds_are_refused(name: str, reason: str) -> None:
    found = identify(Candidate.of(WHEEL / name), SECRET, ReadSettings())
    assert isinstance(found, RefusedScan)
    assert found.reason == reason


def test_a_real_dicomdir_leads_to_the_files_of_its_file_set() -> None:
    """All of them CT and MR: each is looked at and refused, none is an accident."""
    files = list(walk([WHEEL / "dicomdirtests" / "DICOMDIR"]))
    ends = [identify(candidate, SECRET, ReadSettings()) for candidate in files]
    reasons = [end.reason for end in ends if isinstance(end, RefusedScan)]
    assert reasons.count("modality") == 81
    assert not [end for end in ends if isinstance(end, (Identified, Quarantined))]
