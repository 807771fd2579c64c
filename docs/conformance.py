"""Writes docs/dicom-conformance.md from the code: the DICOM conformance statement (PS3.2), nothing kept by hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydicom.uid import UID
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION

from usfmae.client.intake import cstore, dicomweb, dimse_server, pacs, stow
from usfmae.core import __version__
from usfmae.core.config.base import Options
from usfmae.core.config.read import ReadSettings
from usfmae.core.config.sources import CstoreSettings, DicomwebSettings, IntakeSettings, StowSettings
from usfmae.core.read.dicom import REFUSED, ROOT

STATUSES = (
    (cstore.SUCCESS, "Success", "The instance is on disk."),
    (
        cstore.OUT_OF_RESOURCES,
        "Refused: out of resources",
        "Below the disk floor, or the disk failed: send it again later.",
    ),
    (cstore.NOT_SUPPORTED, "Refused: SOP class not supported", "The request names another class than was negotiated."),
    (cstore.CANNOT_UNDERSTAND, "Error: cannot understand", "Larger than `intake.max_instance_gb`, or no data set."),
)
PUSHED = (
    (200, "every instance is on disk"),
    (202, "some are; the Failed SOP Sequence says which are not, and why"),
    (400, "the body is damaged or broke off"),
    (401, "no bearer token, or another one"),
    (409, "none is"),
    (415, "not `multipart/related` of `application/dicom`"),
    (503, "below the disk floor, or the disk failed: again later"),
)
FAILURES = (
    (stow.OUT_OF_RESOURCES, "out of resources"),
    (stow.NOT_SUPPORTED, "SOP class not supported"),
    (stow.CANNOT_UNDERSTAND, "no DICOM file, or larger than `intake.max_instance_gb`"),
)


def write_conformance(file: Path) -> None:
    text = "\n".join(statement()) + "\n"
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


def statement() -> list[str]:
    return [
        "# DICOM conformance statement",
        "",
        f"usfmae-client {__version__}, the agent of a site. Made from the code by `docs/conformance.py`; a test fails where it",
        "differs. Its order is that of PS3.2.",
        "",
        "## What it is",
        "",
        "The agent takes ultrasound in, removes identifiers and annotation, and trains on what is left. It creates no DICOM",
        "objects, sends none, and answers no queries. Four ways in, each switched on by the site: a Storage SCP, a DICOMweb user",
        "agent, a STOW-RS origin server, and files. What came over the network is deleted once it is cleaned, unless",
        "`intake.keep_days` says otherwise.",
        "",
        *storage(),
        *web_client(),
        *web_server(),
        *media(),
        *security(),
    ]


def storage() -> list[str]:
    settings = CstoreSettings()
    return [
        "## Storage SCP (C-STORE)",
        "",
        "### SOP classes",
        "",
        *_table(("SOP class", "UID", "role"), ((_name(u), u, "SCP") for u in cstore.storage_classes(settings))),
        "| Verification | 1.2.840.10008.1.1 | SCP |",
        "",
        "Others, private ones too, by `cstore.sop_classes`. What is offered and not taken is counted and logged with its UID.",
        "",
        "### Associations",
        "",
        *_table(
            ("", ""),
            (
                ("Initiated", "never"),
                ("Application context", cstore.APPLICATION_CONTEXT),
                ("Implementation class UID", PYNETDICOM_IMPLEMENTATION_UID),
                ("Implementation version name", PYNETDICOM_IMPLEMENTATION_VERSION),
                ("At the same time", f"{settings.associations} (`cstore.associations`)"),
                ("Longest P-DATA-TF that is taken", f"{dimse_server.LONGEST_PDU} bytes"),
                ("Longest A-ASSOCIATE-RQ", f"{dimse_server.LONGEST_REQUEST} bytes"),
                ("Presentation contexts", f"at most {dimse_server.MOST_CONTEXTS}"),
                ("Asynchronous operations", "none: one request is answered before the next"),
                ("Time for the association request", f"{dimse_server.ASKING_SECONDS:g} s from the connection"),
                (
                    "Time without an instance",
                    f"{settings.idle_seconds:g} s (`cstore.idle_seconds`); echoes do not count",
                ),
                ("Extended negotiation, user identity", "not answered"),
            ),
        ),
        "",
        "Rejected with its reason, counted and logged:",
        "",
        *_table(
            ("source", "reason", "because"),
            ((source, reason, why) for (source, reason), why in sorted(cstore.REASONS.items(), key=str)),
        ),
        "",
        "### Transfer syntaxes",
        "",
        "Of these the one that stands first in the sender's own list; nothing is converted.",
        "",
        *_table(("transfer syntax", "UID"), ((_name(u), u) for u in cstore.TRANSFER_SYNTAXES)),
        "",
        "### Status of a C-STORE response",
        "",
        *_table(("status", "meaning", "when"), ((f"0x{code:04X}", name, when) for code, name, when in STATUSES)),
        "",
        "### Configuration",
        "",
        *_settings("cstore", CstoreSettings),
        "",
    ]


def web_client() -> list[str]:
    return [
        "## DICOMweb user agent (QIDO-RS, WADO-RS)",
        "",
        *_table(
            ("transaction", "request", "accepts"),
            (
                ("search for studies", "`GET /studies?ModalitiesInStudy=…&StudyDate=…-`", f"`{pacs.JSON[0]}`"),
                ("search for series", "`GET /studies/{study}/series?Modality=…`", f"`{pacs.JSON[0]}`"),
                ("search for instances", "`GET /studies/{study}/series/{series}/instances`", f"`{pacs.JSON[0]}`"),
                (
                    "retrieve an instance",
                    "`GET /studies/{study}/series/{series}/instances/{instance}`",
                    f"`{pacs.DICOM[0]}`",
                ),
            ),
        ),
        "",
        f"Searches carry `limit={pacs.PAGE}` and `offset`, and are asked on to an empty page or to the count that the PACS gave",
        f"({dicomweb.INSTANCES_IN_SERIES}); a `Warning: 299` that promises more is heeded. Where the answer is 406, `{pacs.JSON[1]}`",
        f"or `{pacs.DICOM[1]}` is accepted instead. Redirects are not followed. An instance is stored as it comes.",
        "",
        *_settings("dicomweb", DicomwebSettings),
        "",
    ]


def web_server() -> list[str]:
    return [
        "## STOW-RS origin server",
        "",
        '`POST /studies` and `POST /studies/{study}` take `multipart/related; type="application/dicom"` with a bearer token, of the',
        "SOP classes of the Storage SCP and those of `stow.sop_classes`. The answer is `application/dicom+json`.",
        "",
        *_table(("HTTP status", "when"), PUSHED),
        "",
        *_table(("failure reason", "when"), ((f"0x{code:04X}", when) for code, when in FAILURES)),
        "",
        *_settings("stow", StowSettings),
        "",
        "### For every way in over the network",
        "",
        *_settings("intake", IntakeSettings),
        "",
    ]


def media() -> list[str]:
    return [
        "## Files",
        "",
        "DICOM files (PS3.10) in folders and zip archives are read, never written. A DICOMDIR is not used: the files below its folder",
        "are found themselves. Objects of the ultrasound classes are read whatever their Modality says. Of other objects"
        " than the ultrasound classes those are read whose Modality is one of",
        f"{', '.join(ReadSettings().modalities)} (`read.modalities`). Refused by rule, whatever their Modality:",
        "",
        *_table(
            ("SOP class", "reason"),
            ((f"{ROOT}{below}{'*' if below.endswith('.') else ''}", why) for below, why in REFUSED.items()),
        ),
        "",
    ]


def security() -> list[str]:
    return [
        "## Security and character sets",
        "",
        "TLS 1.2 and later for the Storage SCP (`cstore.certificate`, with `cstore.client_ca` for both sides) and for STOW-RS; HTTPS",
        "towards the PACS. Plain connections are possible inside the hospital. Received files are named by an HMAC under the site's",
        "secret: no UID stands in a file name, a log or a database. No attribute of a scan leaves the site, so no profile of",
        "PS3.15 Annex E is claimed; `docs/cleaning.md` says what happens to pixels. Specific Character Set is not interpreted: no",
        "text of a scan is shown or kept.",
    ]


def _settings(section: str, model: type[Options]) -> list[str]:
    rows = []
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        text = " ".join((field.description or "").split())
        rows.append((f"`{section}.{name}`", f"`{default}`" if default not in ("", (), None) else "", text))
    return _table(("setting", "default", "meaning"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in rows]


def _name(uid: str) -> str:
    return UID(uid).name + (" (retired)" if UID(uid).is_retired else "")


if __name__ == "__main__":
    write_conformance(Path(__file__).parent / "dicom-conformance.md")
