"""A protocol and the one before it, spoken together: each site is asked in the newest version that it speaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from usfmae.core.federated import messages
from usfmae.core.federated.messages import TrainReply, TrainRequest, sign, to_record
from usfmae.server.rounds import loop


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """This program as a later one: version 4 has a field that 3 has not."""
    monkeypatch.setattr(messages, "SPOKEN", (4, 3))
    monkeypatch.setattr(messages, "SINCE", {"min_new": 4})
    monkeypatch.setattr(loop, "VERSION", 4)


def test_an_older_site_is_asked_again_in_its_own_version_and_merged(
    federation: Callable[..., Any], next_version: None
) -> None:
    made = federation(2)
    old, requests = made.hospitals[0], []
    real = old.answer

    def answer(request: TrainRequest, encoder: Any, decoder: Any) -> Any:
        requests.append((request.round, request.version))
        if request.version == 3:
            assert "min_new" not in to_record(request)
            return real(request, encoder, decoder)
        refused = TrainReply(request.campaign, request.round, request.base, declined="refused: protocol version 4")
        addressed = replace(refused, site=old.site, recipient=made.home.fingerprint(), expires=request.expires)
        return to_record(sign(addressed, old.key)), {}

    old.answer = answer
    made.run(2)
    assert [made.verdicts(number) for number in (1, 2)] == [["admitted", "admitted"]] * 2
    assert requests[:2] == [(1, 4), (1, 3)] and (2, 3) in requests


def test_an_update_in_another_version_than_the_requests_is_not_merged(
    federation: Callable[..., Any], next_version: None
) -> None:
    made = federation(2, **{"rounds.quorum": 1})
    hospital, real = made.hospitals[0], made.hospitals[0].answer

    def answer(request: TrainRequest, encoder: Any, decoder: Any) -> Any:
        record, arrays = real(request, encoder, decoder)
        reply = messages.from_record(TrainReply, record)
        return to_record(sign(TrainReply(**{**reply.__dict__, "version": 3}), hospital.key)), arrays

    hospital.answer = answer
    made.run(1)
    assert sorted(made.verdicts(1)) == ["admitted", "bad-record"]
