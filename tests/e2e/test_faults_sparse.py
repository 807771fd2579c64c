"""kill -9 in rounds whose updates and steps are sparse: what was left out, at both ends, is the same after it.

As test_faults_kills.py. From the second round on an update holds what the site left out before, and a step what the
aggregator did; a packing or a merge that is done again must start from the same of both.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.test_faults_kills import Matrix, lose

pytestmark = pytest.mark.faults

CELLS = [
    ("staged, not sent", "agent"),
    ("packed, result not written", "worker"),
    ("merging", "aggregator"),
    ("half way to the base", "agent"),
    ("written, not committed", "aggregator"),
]
WIDE = {"model.width": 64, "model.heads": 4}  # matrices of several blocks of 4,096 values, and tails after them


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Matrix]:
    chosen = sum(item.path == request.path for item in request.session.items)
    made = Matrix(tmp_path_factory.mktemp("sparse-kills"), chosen, CELLS, **{"rounds.encoding": "sparse", **WIDE})
    yield made
    made.federation.stop()


@pytest.mark.parametrize(("phase", "process"), CELLS)
def test_a_killed_process_changes_no_bit_of_a_sparse_round(matrix: Matrix, phase: str, process: str) -> None:
    lose(matrix, phase, process, f"sparse: {phase}")
    steps = [file.stat().st_size for file in matrix.federation.home.checkpoints.glob("step-*")]
    whole = matrix.federation.home.checkpoint(0).stat().st_size
    assert steps and max(steps) < whole / 8, "the step is packed as the updates are"
