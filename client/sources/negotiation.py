"""Who may send what: the request for an association and its answer (PS3.8 sections 7.1 and 9.3, PS3.7 Annex D)."""

from __future__ import annotations

from dataclasses import dataclass

from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION, AllStoragePresentationContexts
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext, build_context, negotiate_as_acceptor
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from usfmae.core.config.sources import CstoreSettings

LONGEST_PDU = 1 << 18  # bytes of content that a sender may put into one P-DATA-TF
DICOM = "1.2.840.10008.3.1.1.1"  # the one application context there is
ACCEPTED = 0

# As stored by scanners and archives; the listener takes any of them and converts none (PS3.5 section 10).
TRANSFER_SYNTAXES = [
    "1.2.840.10008.1.2.1",  # explicit little endian
    "1.2.840.10008.1.2",  # implicit little endian
    "1.2.840.10008.1.2.2",  # explicit big endian
    "1.2.840.10008.1.2.1.99",  # deflated
    "1.2.840.10008.1.2.5",  # RLE
    *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 100, 101, 102, 103, 104, 105, 106, 107)),
    *(f"1.2.840.10008.1.2.4.{n}" for n in (108, 201, 202, 203)),
]
OURS = [build_context(context.abstract_syntax or "", TRANSFER_SYNTAXES) for context in AllStoragePresentationContexts]
OURS.append(build_context(Verification))

# (result, source, reason) of a rejection, PS3.8 table 9-21
NOT_SUPPORTED, CALLING_UNKNOWN, CALLED_UNKNOWN, OLD_PROTOCOL, FULL = (
    (1, 1, 2),
    (1, 1, 3),
    (1, 1, 7),
    (1, 2, 2),
    (2, 3, 2),
)
REASONS = {
    NOT_SUPPORTED: "no DICOM application",
    CALLING_UNKNOWN: "not in cstore.allow",
    CALLED_UNKNOWN: "calls another title than cstore.ae_title",
    OLD_PROTOCOL: "another version of the protocol",
    FULL: "as many associations as cstore.associations allows",
}


@dataclass(frozen=True)
class Asked:
    """What a sender asks for."""

    calling: str
    called: str
    application: str
    protocol: int
    longest: int  # bytes of content that it takes in one PDU; 0 is no limit
    contexts: list[PresentationContext]


def asked(pdu: bytes) -> Asked:
    """Reads an A-ASSOCIATE-RQ. ValueError, or another of pynetdicom's many, for what is none."""
    read = A_ASSOCIATE_RQ()
    read.decode(pdu)
    request = read.to_primitive()
    return Asked(
        (request.calling_ae_title or "").strip(),
        (request.called_ae_title or "").strip(),
        str(request.application_context_name),
        read.protocol_version,
        request.maximum_length_received or 0,
        request.presentation_context_definition_list or [],
    )


def rejection(request: Asked, settings: CstoreSettings) -> tuple[int, int, int] | None:
    """Why a sender may not send: result, source and reason; None where it may."""
    if not request.protocol & 1:
        return OLD_PROTOCOL
    if request.application != DICOM:
        return NOT_SUPPORTED
    if request.calling not in settings.allow:
        return CALLING_UNKNOWN
    return None if request.called == settings.ae_title.strip() else CALLED_UNKNOWN


def acceptance(request: Asked) -> tuple[bytes, dict[int, str]]:
    """The A-ASSOCIATE-AC, and the transfer syntax of each presentation context that was accepted."""
    results, _ = negotiate_as_acceptor(request.contexts, OURS)
    answer = A_ASSOCIATE()
    answer.application_context_name = DICOM
    answer.calling_ae_title, answer.called_ae_title = request.calling, request.called
    answer.result, answer.result_source = ACCEPTED, 1
    answer.presentation_context_definition_results_list = results
    longest, implementation, version = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
        ImplementationVersionNameNotification(),
    )
    longest.maximum_length_received = LONGEST_PDU
    implementation.implementation_class_uid = PYNETDICOM_IMPLEMENTATION_UID
    version.implementation_version_name = PYNETDICOM_IMPLEMENTATION_VERSION
    answer.user_information = [longest, implementation, version]
    pdu = A_ASSOCIATE_AC()
    pdu.from_primitive(answer)
    accepted = {cx.context_id or 0: str(cx.transfer_syntax[0]) for cx in results if cx.result == ACCEPTED}
    return pdu.encode(), accepted
