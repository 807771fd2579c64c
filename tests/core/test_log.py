"""No identifier reaches a log line."""

from __future__ import annotations

import logging

import pytest

from usfmae.core import log


@pytest.mark.parametrize("secret", ["1.2.840.113619.2.55.3.604688119", "MUELLER^HANNA", "/data/pacs/mueller/img1.dcm"])
def test_identifiers_are_scrubbed(secret: str) -> None:
    assert secret not in log.scrub(f"failed on {secret} today")


def test_ordinary_words_and_versions_stay() -> None:
    line = "round 3: loss 0.4321, usfmae 0.1.0, https://host:8443/v1"
    assert log.scrub(line) == line


@pytest.mark.parametrize("as_json", [True, False])
def test_fields_and_tracebacks_are_scrubbed_too(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        log.setup(as_json)
        log.note(logging.getLogger("x"), "read", scan="DOE^JANE")
        try:
            raise ValueError("/data/a/b.dcm")
        except ValueError:
            logging.getLogger("x").exception("broken")
    finally:
        root.handlers[:], root.level = before
    said = capsys.readouterr().err
    assert "read" in said and "DOE" not in said and "b.dcm" not in said


def test_what_a_peer_wrote_is_one_line_and_no_command_to_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        log.setup(False)
        logging.getLogger("x").warning("refused: %s", "no\n2026-01-01 info round committed")
        log.note(logging.getLogger("x"), "verdict", detail="\x1b[2Jgone\r\nforged")
    finally:
        root.handlers[:], root.level = before
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 2 and "\x1b" not in said
