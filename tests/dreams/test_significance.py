import random

import pytest

from sleep_trl.dreams.significance import paired_gain, sign_test


def test_sign_test_matches_values_by_hand():
    assert sign_test(6, 0) == 2 / 64
    assert sign_test(5, 0) == 2 / 32
    assert sign_test(1, 4) == pytest.approx(2 * (5 + 1) / 32)
    assert sign_test(2, 2) == sign_test(0, 0) == 1.0


def test_no_change_is_uncertain():
    gain = paired_gain([1, 0, 1], [1, 0, 1])
    assert (gain.mean, gain.low, gain.high, gain.items, gain.verdict) == (0, 0, 0, 3, "uncertain")


@pytest.mark.parametrize("test", ["bootstrap", "mcnemar"])
def test_clear_gains_and_losses_have_a_sign(test):
    wrong, right = [0.0] * 12, [1.0] * 10 + [0.0] * 2
    assert paired_gain(wrong, right, test=test).verdict == "better"
    assert paired_gain(right, wrong, test=test).verdict == "worse"
    assert paired_gain(wrong, right).mean == pytest.approx(10 / 12)


def test_one_item_or_few_changes_are_uncertain():
    assert paired_gain([0.0], [1.0]).verdict == "uncertain"
    assert paired_gain([0.0] * 12, [1.0] * 5 + [0.0] * 7, test="mcnemar").verdict == "uncertain"
    assert paired_gain([0.0] * 12, [1.0] * 6 + [0.0] * 6, test="mcnemar").verdict == "better"


def test_the_interval_has_its_nominal_coverage():
    """400 experiments of 40 pairs with a true gain of 0.2; a 90 % interval misses it in about a tenth of them."""
    rng = random.Random(0)
    missed = 0
    for trial in range(400):
        before = [float(rng.random() < 0.4) for _ in range(40)]
        after = [float(rng.random() < 0.6) for _ in range(40)]
        gain = paired_gain(before, after, confidence=0.9, resamples=400, seed=trial)
        missed += not gain.low <= 0.2 <= gain.high
    assert 0.06 <= missed / 400 <= 0.16


def test_false_positives_are_rare():
    rng = random.Random(1)
    verdicts = []
    for trial in range(400):
        before, after = ([float(rng.random() < 0.5) for _ in range(30)] for _ in range(2))
        verdicts.append(paired_gain(before, after, test="mcnemar", resamples=50, seed=trial).verdict)
    assert verdicts.count("uncertain") >= 0.95 * 400


def test_the_sign_rule_accepts_every_difference():
    assert paired_gain([0.0], [1.0], test="sign").verdict == "better"
    assert paired_gain([0.0, 1.0], [0.1, 0.8], test="sign").verdict == "worse"
    assert paired_gain([0.0, 1.0], [1.0, 0.0], test="sign").verdict == "uncertain"


def test_a_seed_gives_reproducible_results():
    before, after = [0.1, 0.5, 0.9, 0.2], [0.2, 0.4, 1.0, 0.6]
    assert paired_gain(before, after, seed=4) == paired_gain(before, after, seed=4)


@pytest.mark.parametrize(("before", "after"), [([], []), ([1.0], [1.0, 0.0])])
def test_scores_that_do_not_pair_up_are_refused(before, after):
    with pytest.raises(ValueError, match="pair up"):
        paired_gain(before, after)
