"""What a sender asks for and is answered, held against pynetdicom's reading of the same bytes."""

from __future__ import annotations

import random
import time

import pytest
from pydicom.uid import JPEGBaseline8Bit, UltrasoundImageStorage
from pynetdicom import AllStoragePresentationContexts
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.presentation import PresentationContext, build_context

from usfmae.client.intake import negotiation
from usfmae.core.config.sources import CstoreSettings


def request(contexts: list[PresentationContext]) -> bytes:
    ask, longest, implementation = A_ASSOCIATE(), MaximumLengthNotification(), ImplementationClassUIDNotification()
    ask.application_context_name = "1.2.840.10008.3.1.1.1"
    ask.calling_ae_title, ask.called_ae_title = "PACS1", "USFMAE"
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    ask.presentation_context_definition_list = contexts
    longest.maximum_length_received, implementation.implementation_class_uid = 16_382, "1.2.3"
    ask.user_information = [longest, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(ask)
    return pdu.encode()


def test_what_was_asked_is_read_and_answered_as_pynetdicom_reads_it() -> None:
    wanted = [
        build_context(UltrasoundImageStorage, ["1.2.3.4", JPEGBaseline8Bit, "1.2.840.10008.1.2"]),
        build_context(UltrasoundImageStorage, ["1.2.3.4"]),
        build_context("1.2.840.10008.5.1.4.1.2.2.1"),  # a query, which nobody answers here
        build_context("1.2.840.10008.1.1"),
    ]
    asked = negotiation.asked(request(wanted))
    assert (asked.calling, asked.called, asked.longest, asked.protocol) == ("PACS1", "USFMAE", 16_382, 1)
    answer, accepted = negotiation.acceptance(asked)
    read = A_ASSOCIATE_AC()
    read.decode(answer)
    heard = read.to_primitive()
    assert (heard.calling_ae_title, heard.called_ae_title) == ("PACS1", "USFMAE")
    assert heard.maximum_length_received == negotiation.LONGEST_PDU
    results = {context.context_id: context.result for context in heard.presentation_context_definition_results_list}
    assert results == {1: 0, 3: 4, 5: 3, 7: 0}
    assert accepted == {1: JPEGBaseline8Bit, 7: "1.2.840.10008.1.2"}, "not the sender's first choice of what we take"
    assert heard.presentation_context_definition_results_list[0].transfer_syntax == [JPEGBaseline8Bit]


def test_who_may_send() -> None:
    asked, settings = negotiation.asked(request([build_context("1.2.840.10008.1.1")])), CstoreSettings(allow=("PACS1",))
    assert negotiation.rejection(asked, settings) is None
    assert negotiation.rejection(asked, CstoreSettings(allow=("PACS2",))) == (1, 1, 3)
    assert negotiation.rejection(asked._replace(called="OTHER"), settings) == (1, 1, 7)
    assert negotiation.rejection(asked._replace(application=b"1.2.3"), settings) == (1, 1, 2)
    assert negotiation.rejection(asked._replace(protocol=2), settings) == (1, 2, 2)


def test_no_request_however_damaged_does_anything_but_be_read_or_refused() -> None:
    whole, chance = (
        request([build_context(c.abstract_syntax or "") for c in AllStoragePresentationContexts[:40]]),
        random.Random(1),
    )
    until = time.monotonic() + 20
    for _ in range(3000):
        damaged = bytearray(whole[: chance.randrange(len(whole) + 1)])
        for _ in range(chance.randrange(6)):
            if damaged:
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            negotiation.acceptance(negotiation.asked(bytes(damaged)))
        except ValueError:
            continue
        assert time.monotonic() < until


@pytest.mark.parametrize("rubbish", [b"", b"GET / HTTP/1.1", b"\1\0\0\0\0\4abcd", b"\1" * 80])
def test_rubbish_is_no_request(rubbish: bytes) -> None:
    with pytest.raises(ValueError, match=r"short|item"):
        negotiation.asked(rubbish)
