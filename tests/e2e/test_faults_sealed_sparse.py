"""kill -9 in sealed rounds of the sparse form: what waits at both ends for its turn is the same after it.

As test_faults_sealed.py. A sixteenth of the values is in each round; the others wait at the sites, and what the step down
leaves out waits at the aggregator. A packing, a sum or a merge that is done again must start from the same of both.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.test_faults_sealed import SealedMatrix, lose

pytestmark = pytest.mark.faults

CELLS = [
    ("staged, not sent", "", "agent"),
    ("packed, result not written", "", "worker"),
    ("custodian answered", "sum", "custodian"),
    ("sum written", "", "aggregator"),
    ("half way to the base", "", "agent"),
    ("written, not committed", "", "everything"),
]
WIDE = {"model.width": 128, "model.heads": 4}  # a sixteenth must be enough values to hide among


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[SealedMatrix]:
    chosen = sum(item.path == request.path for item in request.session.items)
    made = SealedMatrix(tmp_path_factory.mktemp("kills"), chosen, CELLS, **{"rounds.encoding": "sparse", **WIDE})
    yield made
    made.federation.stop()


@pytest.mark.parametrize(("phase", "message", "process"), CELLS)
def test_a_killed_process_changes_no_bit_of_a_sparse_sealed_round(
    matrix: SealedMatrix, phase: str, message: str, process: str
) -> None:
    lose(matrix, phase, message, process, f"sealed, sparse: {phase} {message}".strip())
    steps = [file.stat().st_size for file in matrix.federation.home.checkpoints.glob("step-*")]
    whole = matrix.federation.home.checkpoint(0).stat().st_size
    assert steps and max(steps) < whole / 8, "the step holds the part in turn alone"
