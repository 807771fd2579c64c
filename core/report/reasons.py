"""What each reason code means, for people."""

from __future__ import annotations

MEANINGS = {
    # cleaning
    "text-left": "text was still found after the last repair",
    "much-suspected": "much of it would have gone on suspicion alone: a person sees whether it is tissue",
    "text-unread": "something is text beyond doubt and no engine reads it: a person sees what it says",
    "much-filled": "much of the tissue would have been filled: a person sees whether enough is left",
    "face-or-photo": "a face in the picture: a photograph or a rendered surface",
    "not-speckle": "a part of the picture is no ultrasound of tissue: a photograph, a rendering, a coloured map",
    "region-small": "no scan region, or one that covers too little of the frame",
    "region-disagrees": "the header and the picture show the scan at different places",
    "cleaning-failed": "cleaning ended with an unforeseen error",
    # reading: damaged or hostile
    "unreadable": "the header is damaged",
    "undecodable": "the pixels are damaged or cut off",
    "bad-header": "the DICOM header is malformed",
    "bad-palette": "the colour table is malformed",
    "bad-archive": "the archive is damaged",
    "empty": "the file has zero bytes",
    "unknown-format": "named or placed like a scan, but its content fits no format that is read",
    "no-pixels": "the object holds no picture",
    "too-large": "larger than the limits in the settings",
    "too-many-frames": "more frames than the limit in the settings",
    "too-many-members": "an archive with more members than the limit in the settings",
    "link-outside": "a link that leads out of the sources: name what it leads to as a source too",
    "link-loop": "a link that leads to itself, or to a folder that the source lies in",
    "nested-archive": "an archive inside an archive is not opened",
    "encrypted-archive": "the archive asks for a password",
    "foreign-data-file": "the header points to a file elsewhere",
    "no-data-file": "the file that the header names is not beside it, or is a link",
    "missing-frame": "the header states more frames than the file holds",
    "interlaced": "interlaced video; it is decoded where the ffmpeg program is installed",
    "unsupported-jpeg-xl": "JPEG XL, which is not decoded",
    "unsupported-syntax": "a DICOM transfer syntax that is not decoded",
    "truncated": "the file ends before its pixels",
    "packed-file": "a packed file that holds no volume",
    "unsupported-pixels": "an arrangement of samples that is not read",
    "too-much-memory": "decoding asked for more memory than the limit",
    "timeout": "the next frame took longer than the limit",
    "crashed": "the decoder crashed on it",
    "bad-answer": "the decoding process answered what it may not: the file may have taken it over",
    "reading-failed": "reading ended with an unforeseen error",
    "packing-failed": "packing ended with an unforeseen error",
    # reading: by rule
    "structured-report": "DICOM structured report, refused by rule",
    "encapsulated-document": "PDF or CDA document in DICOM, refused by rule",
    "presentation-state": "DICOM presentation state, refused by rule",
    "secondary-capture": "secondary capture (report pages, screenshots), refused by rule",
    "waveform": "DICOM waveform, refused by rule",
    "raw-data": "DICOM raw data, refused by rule",
    "derived-object": "segmentation, registration or surface, refused by rule",
    "radiotherapy-object": "radiotherapy object, refused by rule",
    "withdrawn": "taken out of the corpus by a person: one image, or all of a patient",
    "label-mask": "a drawing of a few flat levels, such as a label mask, refused by rule",
    "too-small": "an icon's size, refused by rule",
    "not-a-picture": "numbers that are neither gray nor colour (complex, displacements), refused by rule",
    "radio-frequency": "echoes before a picture was made of them, refused by rule",
    "modality": "not ultrasound, refused by rule",
    "dicomdir": "an index of other files",
    # repeated
    "same-file": "the same bytes as another scan",
    "near-duplicate": "nearly the same picture as an earlier frame of its scan",
}


def meaning(code: str) -> str:
    """A sentence for a reason code, or "" for one that explains itself."""
    if code.startswith("os-"):
        return "the file could not be opened; the next run tries again"
    return MEANINGS.get(code, "")
