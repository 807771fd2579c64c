"""The gate's comparison: who is refused when the round's updates stand beside each other, and who never is."""

import numpy as np
import pytest

from usfmae.core.config import TrainRecipe
from usfmae.core.config.coordinator import GateSettings
from usfmae.core.federated.admission import Prior, compare, expected_length


def directions(*updates):
    flat = np.array(updates, dtype=np.float64)
    return flat @ flat.T


def compared(norms, earlier=(), base=1e6, gram=None, expected=0.0, strikes=None, **gate):
    return compare(norms, Prior(expected, earlier), base, gram, GateSettings(**gate), strikes)


def refused(*arguments, **options):
    return {site: refusal.code for site, refusal in compared(*arguments, **options).refused.items()}


def merged_lengths(norms, **options):
    found = compared(norms, **options)
    return {site: norms[site] * scale for site, scale in found.scales.items()}


def test_honest_updates_of_similar_length_all_stay_as_they_are():
    assert compared({"a": 1.0, "b": 1.4, "c": 0.7}).scales == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_a_long_update_is_cut_where_nobody_can_say_which_length_is_the_honest_one():
    assert merged_lengths({"a": 1.0, "b": 1000.0}) == {"a": 1.0, "b": 1.5}
    assert merged_lengths({"a": 1000.0, "b": 1.0}) == {"a": 1.5, "b": 1.0}


def test_a_long_update_goes_where_most_agree_on_a_length():
    assert refused({"a": 1.0, "b": 1.2, "c": 5.0}) == {"c": "norm"}
    assert merged_lengths({"a": 1.0, "b": 1.2, "c": 3.0})["c"] == pytest.approx(1.8)


@pytest.mark.parametrize("norms", [{"a": 1.0, "t": 1 / 28}, {"a": 1.0, "b": 1.1, "t": 1 / 28, "u": 1 / 28}], ids=str)
def test_a_very_small_update_throws_no_honest_one_out(norms):
    """Neither in the first round of all, nor where the learning rate says how long an update is."""
    assert not {"a", "b"} & set(refused(norms))
    known = compared(norms, expected=1.0)
    assert {site: r.code for site, r in known.refused.items()} == {}
    assert known.scales["a"] >= 0.45
    tiny = {**norms, "t": 0.01}
    assert refused(tiny, expected=1.0)["t"] == "too-small" and "a" not in refused(tiny, expected=1.0)


def test_earlier_rounds_set_a_very_small_update_aside():
    found = compared({"a": 1.0, "t": 0.02}, earlier=[1.0, 0.9])
    assert {site: r.code for site, r in found.refused.items()} == {"t": "too-small"}
    assert found.scales == {"a": pytest.approx(0.7125)}, "cut to 1.5 times half the earlier median"


def test_a_learning_rate_that_changes_gets_nobody_refused():
    assert refused({"a": 0.09, "b": 0.1, "c": 0.095}, earlier=[0.0, 0.0, 0.0]) == {}
    assert refused({"a": 0.09, "b": 0.1}, earlier=[0.01, 0.01]) == {}
    assert refused({"a": 0.0, "b": 0.0}, earlier=[1.0]) == {"a": "too-small", "b": "too-small"}
    assert refused({"a": 0.0, "b": 0.0}) == {}, "the rate was 0: nothing was learned, and nobody lied"


def test_an_update_of_length_zero_is_no_yardstick_and_says_nothing():
    assert refused({"a": 0.0, "b": 1.0}) == {"a": "too-small"}
    assert refused({"a": 0.0, "b": 1.0, "c": 1.1, "d": 90.0}) == {"a": "too-small"}
    assert merged_lengths({"b": 1.0, "c": 1.1, "d": 90.0}, norm_limit=1000.0)["d"] == pytest.approx(1.65)


def test_a_site_alone_is_its_own_measure_unless_it_is_far_too_long():
    assert merged_lengths({"a": 3.0}, earlier=[1.0, 1.1, 0.9]) == {"a": 3.0}
    assert merged_lengths({"a": 50.0}, earlier=[1.0, 1.1, 0.9]) == {"a": 1.5}
    assert merged_lengths({"a": 50.0}) == {"a": 50.0}


def test_nothing_may_be_longer_than_the_encoder_itself():
    assert refused({"a": 150.0}, base=100.0) == {"a": "norm"}


def test_the_expected_length_is_that_of_a_random_walk_of_adamw_steps():
    settings = TrainRecipe(lr=1e-3, warmup=0, schedule="infinite", anneal=0, cooldown=0, constant=1)
    assert expected_length(400, settings, 0, 25, 100) == pytest.approx(1e-3 * 5 * 20)
    assert expected_length(400, settings.model_copy(update={"optimizer": "muon"}), 0, 25, 100) == 0.0


def test_an_update_against_agreeing_others_goes():
    gram = directions([1, 0.2, 0], [1, -0.2, 0.1], [-1, 0.1, 0])
    assert refused(dict.fromkeys("abc", 1.0), gram=gram) == {"c": "direction"}


def test_nobody_goes_where_the_others_do_not_agree_either():
    """Near the end of training honest sites pull in different directions."""
    gram = directions([1, 0, 0], [-0.5, 0.8, 0], [-0.5, -0.8, 0])
    assert refused(dict.fromkeys("abc", 1.0), gram=gram) == {}


@pytest.mark.parametrize("liars", [1, 2])
def test_several_liars_go_one_after_the_other(liars):
    random = np.random.default_rng(0)
    common = random.normal(size=50)
    honest = [common + 0.5 * random.normal(size=50) for _ in range(5)]
    lying = [-(common + 0.5 * random.normal(size=50)) for _ in range(liars)]
    names = [f"s{i}" for i in range(5 + liars)]
    found = refused(dict.fromkeys(names, 1.0), gram=directions(*honest, *lying))
    assert found == {f"s{5 + i}": "direction" for i in range(liars)}


def test_a_site_that_points_a_little_against_the_others_is_noted_and_refused_when_it_goes_on():
    gram = directions([1, 0.3, 0], [1, -0.3, 0.1], [-0.3, 1, 1])
    norms = dict.fromkeys("abc", 1.0)
    once = compared(norms, gram=gram)
    assert once.refused == {} and -0.5 < once.against["c"] < -0.1
    assert refused(norms, gram=gram, strikes={"c": 1}) == {}
    assert refused(norms, gram=gram, strikes={"c": 2}) == {"c": "direction"}


def test_two_sites_have_no_direction_to_be_against():
    assert refused({"a": 1.0, "b": 1.0}, gram=None) == {}
