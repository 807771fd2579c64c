"""Two hospitals and an aggregator as real processes: TLS, node authentication, rounds, what status says."""

import pytest

pytestmark = pytest.mark.e2e


def test_two_rounds_are_trained_merged_and_committed(federate):
    federation = federate(sites=2)
    server = federation.start_server(2)
    federation.start_sites()
    status = federation.wait_rounds(2)
    assert server.process.wait(30) == 0
    assert [r["state"] for r in status["rounds"]] == ["committed", "committed"]
    for found in status["rounds"]:
        assert {v["name"]: v["verdict"] for v in found["verdicts"]} == {
            "hospital-1": "admitted",
            "hospital-2": "admitted",
        }
        assert found["summary"]["sites"] == 2
    assert status["rounds"][1]["base"] == status["rounds"][0]["result"] != status["hash"]
