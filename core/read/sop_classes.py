"""Which DICOM objects are never read, by rule: DICOM PS3.4 B.5 names the SOP classes."""

from __future__ import annotations

from pydicom.dataset import Dataset

from usfmae.core.config.read import ReadSettings
from usfmae.core.read.refusal_codes import RefusedScan

ROOT = "1.2.840.10008.5.1.4.1.1."
# SOP class below ROOT (a trailing dot stands for all below it) -> reason
REFUSED = {
    "88.": "structured-report",
    "104.": "encapsulated-document",
    "11.": "presentation-state",
    "7": "secondary-capture",
    "7.": "secondary-capture",
    "9.": "waveform",
    "66": "raw-data",
    "66.": "derived-object",
    "68.": "derived-object",
    "481.": "radiotherapy-object",
}
ULTRASOUND = ("6", "6.1", "6.2", "6.3", "3", "3.1")  # retired classes included
DIRECTORY = "1.2.840.10008.1.3.10"


def check(ds: Dataset, settings: ReadSettings) -> None:
    """Refused with the rule's reason where this object is not an ultrasound picture."""
    sop = str(ds.get("SOPClassUID") or ds.file_meta.get("MediaStorageSOPClassUID") or "")
    if sop == DIRECTORY:
        raise RefusedScan("dicomdir", "an index of other files")
    below = sop.removeprefix(ROOT)
    for prefix, reason in REFUSED.items():
        if below == prefix or (prefix.endswith(".") and below.startswith(prefix)):
            raise RefusedScan(reason, f"SOP class ...{below:.20}")
    modality = str(ds.get("Modality") or "")
    if modality not in settings.modalities and not (not modality and below in ULTRASOUND):
        raise RefusedScan("modality", "not one of " + ", ".join(settings.modalities))
    if "Rows" not in ds or "Columns" not in ds:
        raise RefusedScan("no-pixels", "the object holds no picture")
