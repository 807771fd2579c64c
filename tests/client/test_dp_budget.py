"""A site's privacy budget: the accountant is the library's, nothing is spent twice or not at all, and the limit holds."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys

import pytest

from usfmae.client.dp_budget import Budget, Spending, epsilon, seed
from usfmae.core.errors import PolicyError

dp_accounting = pytest.importorskip("dp_accounting", reason="the extra 'dp' is not installed")

ROUND = Spending("r1", noise=1.0, share=0.02, steps=100)


def test_epsilon_of_a_gaussian_is_the_closed_form():
    """Every patient in every step: n steps with noise z are one with z / sqrt(n); Balle and Wang 2018, arXiv:1805.06530."""
    from dp_accounting.gaussian_mechanism import get_epsilon_gaussian

    ours = epsilon([Spending("a", 4.0, 1.0, 16)], 1e-5)
    assert ours == pytest.approx(get_epsilon_gaussian(1.0, 1e-5), rel=0.01)


def test_epsilon_of_rounds_of_two_campaigns_is_the_librarys():
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    rows = [Spending(f"r{i}", 1.0, 0.02, 100) for i in range(5)] + [Spending("other", 0.8, 0.05, 40)]
    ours, accountant, renyi = epsilon(rows, 1e-5), PLDAccountant(), RdpAccountant()
    for one in (accountant, renyi):
        for row in rows:
            one.compose(PoissonSampledDpEvent(row.share, GaussianDpEvent(row.noise)), row.steps)
    assert ours == pytest.approx(accountant.get_epsilon(1e-5), rel=0.01)
    assert 0.7 * renyi.get_epsilon(1e-5) < ours < renyi.get_epsilon(1e-5)  # an accountant of another kind: looser


def test_a_round_is_spent_once(tmp_path):
    budget = Budget(tmp_path / "dp.sqlite", math.inf, 1e-5)
    first = budget.spend(ROUND)
    assert budget.spend(ROUND) == first == budget.spent()
    assert budget.spend(Spending("r2", 1.0, 0.02, 100)) > first


def test_a_round_beyond_the_budget_is_refused_and_not_written_down(tmp_path):
    free = Budget(tmp_path / "free.sqlite", math.inf, 1e-5)
    one, two = free.spend(ROUND), free.spend(Spending("r2", 1.0, 0.02, 100))
    budget = Budget(tmp_path / "dp.sqlite", (one + two) / 2, 1e-5)
    budget.spend(ROUND)
    with pytest.raises(PolicyError) as caught:
        budget.spend(Spending("r2", 1.0, 0.02, 100))
    assert "would make epsilon" in str(caught.value) and budget.spent() == one


def test_noise_that_protects_nobody_has_no_epsilon():
    assert epsilon([Spending("a", 1e-6, 0.02, 1)], 1e-5) == math.inf


def test_a_ledger_that_cannot_be_read_stops_the_training(tmp_path):
    (tmp_path / "dp.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(PolicyError) as caught:
        Budget(tmp_path / "dp.sqlite", math.inf, 1e-5).spend(ROUND)
    assert "cannot be read" in str(caught.value)


def test_a_kill_after_the_ledger_was_written_has_spent_the_round(tmp_path):
    file = tmp_path / "dp.sqlite"
    code = f"""
import math, pathlib, time
from usfmae.client.dp_budget import Budget, Spending
Budget(pathlib.Path({str(file)!r}), math.inf, 1e-5).spend(Spending("r1", 1.0, 0.02, 100))
print("written", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        os.kill(process.pid, signal.SIGKILL)
    assert Budget(file, math.inf, 1e-5).spent() == epsilon([ROUND], 1e-5) > 0


def test_samples_and_noise_are_others_for_every_training():
    assert seed(5, "a") == seed(5, "a") and len({seed(5, "a"), seed(5, "b"), seed(6, "a")}) == 3
