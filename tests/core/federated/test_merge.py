"""Merging: shares that add up, every rule against the formula of its paper, the same bytes in any split into pieces."""

import dataclasses

import numpy as np
import pytest

from usfmae.core.config.coordinator import CoordinatorSettings, MergeSettings
from usfmae.core.errors import ConfigError
from usfmae.core.federated import codec, merge
from usfmae.core.federated.merge import shares
from usfmae.core.federated.rules import check_rule, rule_for, rule_of_round
from usfmae.core.tensors import TensorFile, Writer
from usfmae.server.layout import Layout
from usfmae.server.rounds import spool


def test_shares_go_by_images_up_to_the_cap():
    assert shares([1, 1, 2], 1.0) == [0.25, 0.25, 0.5]
    assert shares([5], 0.4) == [1.0]
    capped = shares([20, 20, 20, 40], 0.3)
    assert np.allclose(capped, [0.7 / 3, 0.7 / 3, 0.7 / 3, 0.3]) and np.isclose(sum(capped), 1)
    assert max(shares([1, 2, 3, 1000, 900], 0.3)) <= 0.3 + 1e-9


@pytest.mark.parametrize("images", [[10, 10, 100_000], [10, 100_000], [1, 1, 1, 1, 1, 200_000]], ids=str)
def test_what_a_large_site_loses_to_its_cap_does_not_go_to_tiny_ones(images):
    found = shares(images, 0.4)
    assert found[-1] == max(0.4, 1 / len(images)) and sum(found) < 1
    for count, share in zip(images[:-1], found, strict=False):
        assert share <= 2 * count / sum(images)


def test_a_claim_that_nobody_confirmed_weighs_at_most_the_fair_share():
    assert np.allclose(shares([10, 10, 60], 0.5, [True, True, False]), [0.25, 0.25, 1 / 3])
    assert shares([10, 10**6], 0.5, [True, False])[1] == 0.5
    assert shares([5], 0.4, [False]) == [1.0]


def spooled(home, site, payload):
    with spool.storing(home, 1, site, {name: len(data) for name, data in payload.items()}) as keep:
        for name in sorted(payload):
            keep(name, payload[name])


@pytest.fixture
def updates(tmp_path):
    """A base encoder file, what five sites trained (S, n) and their spooled updates, fp32."""
    home, random = Layout(tmp_path), np.random.default_rng(0)
    base = {"w": random.normal(size=(7, 300)).astype(np.float32), "b": random.normal(size=5).astype(np.float32)}
    target = tmp_path / "base.safetensors"
    with target.open("wb") as file:
        writer = Writer(file, {n: v.shape for n, v in base.items()}, {}, "F32")
        for name in sorted(base):
            writer.begin(name)
            writer.write(base[name])
        writer.finish()
    sites = [{n: (v + random.normal(0, 0.1, v.shape)).astype(np.float32) for n, v in base.items()} for _ in range(5)]
    for number, trained in enumerate(sites):
        spooled(home, f"{number}", codec.pack(base, trained, "fp32").payload)
    return home, base, sites, target


def merged(updates, rule, weights, memory=None, encoding="fp32", scales=None, step=1.0, **settings):
    made = rule_for(MergeSettings(rule=rule, **settings))
    return merged_by(updates, made, weights, memory, encoding, scales, step)


def merged_by(updates, rule, weights, memory=None, encoding="fp32", scales=None, step=1.0):
    home, base, _, target = updates
    files = [TensorFile(spool.path(home, 1, str(i))) for i in range(len(weights))]
    out = home.root / "out.safetensors"
    with TensorFile(target) as opened:
        admitted = merge.Admitted(files, encoding, dataclasses.replace(merge.blended(weights, scales), step=step))
        merge.merge(opened, admitted, rule, merge.MergeFiles(out, {"content": "-"}, memory or {}))
    with TensorFile(out) as result:
        return {name: np.array(result.tensor(name)) for name in base}


def test_fedavg_is_the_weighted_mean(updates):
    weights = [0.1, 0.2, 0.3, 0.25, 0.15]
    for name, got in merged(updates, "fedavg", weights).items():
        wanted = sum(w * s[name].astype(np.float64) for w, s in zip(weights, updates[2], strict=True))
        assert np.array_equal(got, wanted.astype(np.float32))


def test_one_site_gets_its_own_bits_back(updates):
    for name, got in merged(updates, "fedavg", [1.0]).items():
        assert got.tobytes() == updates[2][0][name].tobytes()


def test_fedprox_merges_like_fedavg(updates):
    a, b = merged(updates, "fedavg", [0.5, 0.5]), merged(updates, "fedprox", [0.5, 0.5])
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_median_and_trimmed_mean_ignore_a_wild_value(updates):
    updates[2][0]["w"][0, 0] = 1e9
    spooled(updates[0], "0", codec.pack(updates[1], updates[2][0], "fp32").payload)
    stacked = np.stack([s["w"] for s in updates[2]]).astype(np.float64)
    assert np.allclose(merged(updates, "median", [0.2] * 5)["w"], np.median(stacked, axis=0))
    trimmed = np.sort(stacked, axis=0)[1:4].mean(axis=0)
    assert np.allclose(merged(updates, "trimmed", [0.2] * 5, trim=0.2)["w"], trimmed)


@pytest.mark.parametrize("rule", ["fedavgm", "fedadam"])
def test_rules_with_a_memory_carry_it_from_round_to_round(updates, rule):
    settings = MergeSettings(rule=rule, rate=1.0)
    home, base, sites, _ = updates
    step = sites[0]["b"].astype(np.float64) - base["b"]
    names = rule_for(settings).memory
    first = {name: (None, home.root / f"{name}-1") for name in names}
    second = {name: (home.root / f"{name}-1", home.root / f"{name}-2") for name in names}
    after_one = merged(updates, rule, [1.0], first, rate=1.0)["b"]
    after_two = merged(updates, rule, [1.0], second, rate=1.0)["b"]
    if rule == "fedavgm":
        wanted = [base["b"] + step, base["b"] + 1.9 * step]
    else:
        m, v = 0.1 * step, 0.99 * 1e-6 + 0.01 * step**2
        m2, v2 = 0.9 * m + 0.1 * step, 0.99 * v + 0.01 * step**2
        wanted = [base["b"] + m / (np.sqrt(v) + 1e-3), base["b"] + m2 / (np.sqrt(v2) + 1e-3)]
    assert np.allclose(after_one, wanted[0], atol=1e-6) and np.allclose(after_two, wanted[1], atol=1e-6)


@pytest.mark.parametrize("rule", ["median", "trimmed"])
@pytest.mark.parametrize("sites", [3, 4, 5])
def test_a_poisoned_site_moves_no_weight_beyond_what_the_honest_ones_sent(updates, rule, sites):
    """Yin et al. 2018: with fewer liars than are cut, every value lies between two honest ones. The mean does not."""
    home, base, trained, _ = updates
    wild = {name: (values - 3 * (trained[1][name] - values)).astype(np.float32) for name, values in base.items()}
    wild["w"][0] = 1e6
    spooled(home, "0", codec.pack(base, wild, "fp32").payload)
    honest = np.stack([s["w"] for s in trained[1:sites]])
    inside = lambda got: ((got >= honest.min(axis=0)) & (got <= honest.max(axis=0))).all()  # noqa: E731
    assert inside(merged(updates, rule, [1 / sites] * sites, trim=0.2)["w"])
    assert not inside(merged(updates, "fedavg", [1 / sites] * sites)["w"])


def test_a_trimmed_mean_cuts_the_share_it_is_told_to():
    values = np.arange(15.0)[:, None] ** 3
    for trim, cut in ((0.0, 0), (0.05, 1), (0.2, 3), (0.49, 7)):
        got = rule_for(MergeSettings(rule="trimmed", trim=trim)).merge(np.zeros(1), values, np.ones(15) / 15, {})
        assert np.isclose(got[0], values[cut : 15 - cut].mean())


def test_the_merge_of_quantised_updates_is_as_close_as_its_scales(updates):
    """int8: each site is off by half a step at most, a step being 1/127 of the largest change in its block of 256."""
    home, base, trained, _ = updates
    weights = [0.1, 0.2, 0.3, 0.25, 0.15]
    exact = merged(updates, "fedavg", weights)
    bound = {name: np.zeros(values.size) for name, values in base.items()}
    for number, (weight, site) in enumerate(zip(weights, trained, strict=True)):
        spooled(home, f"{number}", codec.pack(base, site, "int8").payload)
        for name, values in base.items():
            change = np.abs(site[name] - values).reshape(-1)
            steps = [change[at : at + 256].max() / 127 for at in range(0, change.size, 256)]
            bound[name] += weight * 0.5 * np.repeat(steps, 256)[: change.size]
    for name, got in merged(updates, "fedavg", weights, encoding="int8").items():
        error = np.abs(got.astype(np.float64) - exact[name]).reshape(-1)
        assert (error <= bound[name] * (1 + 1e-4) + 2e-7 * np.abs(exact[name]).reshape(-1)).all()
        assert error.max() > 0


def test_the_size_of_pieces_changes_no_bit(updates, monkeypatch):
    whole = merged(updates, "fedavg", [0.3, 0.7])
    monkeypatch.setattr(merge, "PIECE", 256)
    small = merged(updates, "fedavg", [0.3, 0.7])
    assert all(np.array_equal(whole[name], small[name]) for name in whole)


def test_gram_holds_lengths_and_directions(updates):
    home, base, sites, target = updates
    with TensorFile(target) as opened:
        got = merge.gram(opened, [TensorFile(spool.path(home, 1, str(i))) for i in range(3)], "fp32")
    flat = [np.concatenate([(s[n].astype(np.float64) - base[n]).ravel() for n in sorted(base)]) for s in sites[:3]]
    assert np.allclose(got, np.stack(flat) @ np.stack(flat).T)


def test_an_update_is_cut_to_its_scale_and_shares_below_one_shorten_the_step(updates):
    _, base, sites, _ = updates
    change = [s["w"].astype(np.float64) - base["w"] for s in sites[:2]]
    got = merged(updates, "fedavg", [0.5, 0.5], scales=[1.0, 0.25])["w"]
    assert np.allclose(got, base["w"] + 0.5 * change[0] + 0.125 * change[1], atol=1e-6)
    got = merged(updates, "fedavg", [0.1, 0.5])["w"]
    assert np.allclose(got, base["w"] + 0.1 * change[0] + 0.5 * change[1], atol=1e-6)
    got = merged(updates, "median", [0.5, 0.5], step=0.5)["w"]
    assert np.allclose(got, base["w"] + 0.25 * (change[0] + change[1]), atol=1e-6)


@pytest.mark.parametrize("sites", [3, 4])
def test_auto_is_fedavg_for_few_sites_and_trimmed_from_four_on(updates, sites):
    weights, rule = [1 / sites] * sites, rule_for(MergeSettings()).for_sites(sites)
    assert rule.name == ("trimmed" if sites == 4 else "fedavg") and rule.weighted == (sites == 3)
    one, other = merged(updates, rule.name, weights), merged_by(updates, rule, weights)
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("encoding", "name"), [("int8", "trimmed"), ("sparse", "fedavg")])
def test_auto_cuts_no_values_where_each_site_sends_other_ones(encoding, name):
    settings = CoordinatorSettings.model_validate({"rounds": {"encoding": encoding}})
    assert rule_of_round(settings, 5).name == name


@pytest.mark.parametrize("rule", ["trimmed", "median"])
def test_a_rule_that_compares_values_is_refused_for_sparse_updates_because_it_would_learn_nothing(rule):
    settings = CoordinatorSettings.model_validate({"rounds": {"encoding": "sparse"}, "merge": {"rule": rule}})
    with pytest.raises(ConfigError, match="sparse"):
        check_rule(settings)
    # Five sites that learned the same, each with noise of its own: what they sent has hardly a value in common.
    random, block = np.random.default_rng(0), 4096
    learned = random.normal(size=block).astype(np.float32)
    sent = [
        codec.unpack(codec.express(learned + random.normal(size=block).astype(np.float32) * 3, "sparse")[0], learned, "sparse")
        for _ in range(5)
    ]  # fmt: skip
    shares, zeros = np.full(5, 0.2), np.zeros(block)
    cut, mean = (rule_for(MergeSettings(rule=r)).merge(zeros, np.stack(sent), shares, {}) for r in (rule, "fedavg"))
    assert np.count_nonzero(cut) < 0.1 * np.count_nonzero(mean) and cut @ learned < 0.3 * (mean @ learned)


@pytest.mark.parametrize("rule", ["fedavg", "fedavgm", "fedadam", "trimmed", "median"])
def test_a_rules_own_rate_makes_a_step_as_long_as_the_updates(rule):
    """Over rounds in which every site sends the same small step, as AdamW makes it."""
    made, step = rule_for(MergeSettings(rule=rule)), 1e-3 * np.random.default_rng(0).choice([-1.0, 1.0], 500)
    now, memory = np.zeros(500), {name: np.full(500, made.start(name)) for name in made.memory}
    for _ in range(40):
        before = now
        now = made.merge(before, np.stack([before + step] * 3), np.full(3, 1 / 3), memory)
    assert 0.3 < np.linalg.norm(now - before) / np.linalg.norm(step) < 1.5


def test_a_memory_keeps_the_share_of_a_step_that_is_kept(updates):
    home, *_ = updates
    files = {"velocity": (None, home.root / "v-1")}
    merged(updates, "fedavgm", [1.0], files)
    with TensorFile(home.root / "v-1") as file:
        whole = {name: np.array(file.tensor(name)) for name in file.shapes}
    merge.mix_memory(None, home.root / "v-1", 0.25, 0.0)
    with TensorFile(home.root / "v-1") as file:
        assert all(np.allclose(file.tensor(name), 0.25 * values) for name, values in whole.items())
    merged(updates, "fedavgm", [1.0], {"velocity": (home.root / "v-1", home.root / "v-2")})
    merge.mix_memory(home.root / "v-1", home.root / "v-2", 0.0, 0.0)
    with TensorFile(home.root / "v-2") as file:
        assert all(np.allclose(file.tensor(name), 0.25 * values) for name, values in whole.items())
