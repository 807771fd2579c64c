"""The gate's comparison: who is refused when the round's updates stand beside each other, and who never is."""

import numpy as np
import pytest

from usfmae.core.config.coordinator import GateSettings
from usfmae.core.federated.admission import compare


def directions(*updates):
    flat = np.array(updates, dtype=np.float64)
    return flat @ flat.T


def refused(norms, earlier=(), base=100.0, gram=None, **gate):
    return {site: r.code for site, r in compare(norms, earlier, base, gram, GateSettings(**gate)).items()}


def test_honest_updates_of_similar_length_all_stay():
    assert refused({"a": 1.0, "b": 2.0, "c": 0.7}) == {}


def test_a_long_update_goes_also_when_there_is_only_one_other():
    assert refused({"a": 1.0, "b": 1000.0}, base=1e6) == {"b": "norm"}
    assert refused({"a": 1000.0, "b": 1.0}, base=1e6) == {"a": "norm"}


def test_a_learning_rate_that_warms_up_gets_nobody_refused():
    assert refused({"a": 0.09, "b": 0.1, "c": 0.095}, earlier=[0.0, 0.0, 0.0], base=1e6) == {}
    assert refused({"a": 0.09, "b": 0.1}, earlier=[0.01, 0.01], base=1e6) == {}


def test_an_update_of_length_zero_is_no_yardstick():
    assert refused({"a": 0.0, "b": 1.0}, base=1e6) == {}
    assert refused({"a": 0.0, "b": 1.0, "c": 1.1, "d": 90.0}, base=1e6) == {"d": "norm"}


def test_earlier_rounds_count_when_a_site_is_alone():
    assert refused({"a": 50.0}, earlier=[1.0, 1.1, 0.9], base=1e6) == {"a": "norm"}


def test_nothing_may_be_longer_than_the_encoder_itself():
    assert refused({"a": 150.0}, base=100.0) == {"a": "norm"}


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


def test_two_sites_have_no_direction_to_be_against():
    assert refused({"a": 1.0, "b": 1.0}, gram=None) == {}
