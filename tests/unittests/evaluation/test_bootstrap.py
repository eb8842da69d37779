"""Intervals that cover, p-values that are uniform, and pairs that fit."""

import numpy as np
import pytest
from scipy.stats import norm

from speechbrain_dslstm.evaluation import (
    METRICS,
    bootstrap_scores,
    compare,
    mcnemar,
    scores_from_confusion,
)
from speechbrain_dslstm.evaluation.bootstrap import speaker_counts
from speechbrain_dslstm.evaluation.metrics import score_counts

LABELS = ["anger", "happiness", "sadness"]


def simulate(rng, speakers=10, clips=15, spread=0.8, seeds=1, mean=0.7):
    """Counts [seeds, speakers, 3, 3]; speakers differ in how easy they are."""
    counts = np.zeros((seeds, speakers, 3, 3), dtype=int)
    ease = mean + spread * rng.standard_normal((speakers, 1))
    ease = ease + spread / 2 * rng.standard_normal((speakers, 3))
    right = rng.binomial(clips, norm.cdf(ease), (seeds, speakers, 3))
    for k in range(3):
        counts[:, :, k, k] = right[..., k]
        counts[:, :, k, (k + 1) % 3] = clips - right[..., k]
    return counts


def rows(counts, prefix=""):
    """Predictions that have these counts, [speakers, 3, 3]."""
    made = {}
    for speaker, truth, predicted in np.ndindex(counts.shape):
        for _ in range(counts[speaker, truth, predicted]):
            name = f"{prefix}{speaker}_{truth}_"
            number = sum(key.startswith(name) for key in made)
            made[f"{name}{number}"] = {
                "speaker": f"{speaker:02}",
                "emotion": LABELS[truth],
                "predicted": LABELS[predicted],
            }
    return made


def test_scores_are_those_of_the_reference():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 6, (4, 50, 3, 3))
    counts[0, :20, 1] = 0
    counts[1, :20, :, 2] = 0
    found = score_counts(counts)
    assert found.shape == (4, 50, 3)
    for place in np.ndindex(4, 50):
        wanted = scores_from_confusion(counts[place], LABELS)
        assert found[place] == pytest.approx([wanted[m] for m in METRICS])


def test_nothing_scores_nan():
    assert np.isnan(score_counts(np.zeros((2, 2)))).all()


def test_counts_come_back():
    counts = simulate(np.random.default_rng(1), speakers=4, clips=3)
    speakers, again = speaker_counts([rows(counts[0])] * 2, LABELS)
    assert speakers == ["00", "01", "02", "03"]
    assert (again == counts[[0, 0]]).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"predicted": "joy"}, "u: predicted is 'joy', expected one of"),
        ({"emotion": "joy"}, "u: emotion is 'joy'"),
    ],
)
def test_unknown_labels_are_refused(change, message):
    row = {"speaker": "a", "emotion": "anger", "predicted": "anger"}
    with pytest.raises(ValueError, match=message):
        speaker_counts([{"u": row | change}], LABELS)


def test_what_does_not_fit_is_refused():
    row = {"speaker": "a", "emotion": "anger", "predicted": "anger"}
    with pytest.raises(ValueError, match="no predictions"):
        speaker_counts([], LABELS)
    with pytest.raises(ValueError, match="two seeds have different utt"):
        speaker_counts([{"u": row}, {"v": row}], LABELS)
    with pytest.raises(
        ValueError, match="the two systems have different utterances: 1 and"
    ):
        compare([{"u": row}], [{"u": row, "v": row}], LABELS)
    with pytest.raises(ValueError, match="such as v"):
        mcnemar({"u": row}, {"u": row, "v": row})
    other = row | {"emotion": "sadness"}
    with pytest.raises(ValueError, match="disagree on the emotion of u"):
        compare([{"u": row}], [{"u": other}], LABELS)
    with pytest.raises(ValueError, match="expected counts"):
        bootstrap_scores(np.zeros((2, 3, 3)))
    counts = simulate(np.random.default_rng(0))
    with pytest.raises(ValueError, match="confidence must be in"):
        bootstrap_scores(counts, confidence=95)
    with pytest.raises(ValueError, match="at least 100, got 10"):
        bootstrap_scores(counts, resamples=10)


def test_the_bootstrap_is_one():
    """Against a loop that draws speakers and pools their utterances."""
    counts = simulate(np.random.default_rng(2), speakers=12)[0]
    rng = np.random.default_rng(3)
    drawn = []
    for _ in range(4000):
        some = rng.integers(0, 12, 12)
        pooled = sum(counts[speaker] for speaker in some)
        drawn.append(scores_from_confusion(pooled, LABELS)["ua"])
    found = bootstrap_scores(counts[None], confidence=0.9)["ua"]
    # Hesterberg's level for 12 speakers, written out: t = 1.796, 11 d.o.f.
    tail = norm.sf(1.7958848 * (12 / 11) ** 0.5)
    wanted = np.quantile(drawn, [tail, 1 - tail])
    assert [found["low"], found["high"]] == pytest.approx(wanted, abs=0.012)
    assert found["value"] == pytest.approx(score_counts(counts.sum(0))[1])


def test_repeatable():
    counts = simulate(np.random.default_rng(2))
    one, two = (bootstrap_scores(counts, 500) for _ in range(2))
    assert one == two
    assert bootstrap_scores(counts, 500, seed=1) != one


def test_seeds_are_averaged_within_a_resample():
    counts = simulate(np.random.default_rng(4), seeds=3)
    found = bootstrap_scores(counts)["ua"]
    each = [bootstrap_scores(counts[[s]])["ua"]["value"] for s in range(3)]
    assert found["value"] == pytest.approx(np.mean(each))
    # The same training three times is not more sure than once
    once = bootstrap_scores(counts[[0]])
    thrice = bootstrap_scores(counts[[0, 0, 0]])
    for name in METRICS:
        assert thrice[name] == pytest.approx(once[name])


def test_one_speaker_has_no_interval():
    counts = simulate(np.random.default_rng(5), speakers=1)
    found = bootstrap_scores(counts)["wa"]
    assert found["low"] is None and 0 < found["value"] < 1
    one = rows(counts[0])
    assert compare([one], [one], LABELS)["wa"]["p"] is None


@pytest.mark.parametrize("speakers", [6, 10, 24])
def test_intervals_cover(speakers):
    """The truth lies within 95 % of them; by utterances, far more seldom."""
    rng = np.random.default_rng(6)
    many = simulate(rng, speakers=20_000)
    truth = score_counts(many.sum(axis=(0, 1)))[1]
    trials, covered, naive = 300, 0, 0
    for trial in range(trials):
        counts = simulate(rng, speakers=speakers)
        found = bootstrap_scores(counts, 500)["ua"]
        covered += found["low"] <= truth <= found["high"]
        # Every clip a speaker of its own
        total = counts.sum(axis=(0, 1))
        clips = np.repeat(np.eye(9, dtype=int), total.ravel(), axis=0)
        clips = clips.reshape(1, -1, 3, 3)
        if trial < 100:
            wrong = bootstrap_scores(clips, 200)["ua"]
            naive += wrong["low"] <= truth <= wrong["high"]
            assert found["high"] - found["low"] > wrong["high"] - wrong["low"]
    assert 0.91 <= covered / trials <= 0.985
    assert naive / 100 < 0.7


def test_identical_systems_do_not_differ():
    one = rows(simulate(np.random.default_rng(7))[0])
    found = compare([one], [one, one], LABELS)
    for name in METRICS:
        assert found[name] == {"value": 0, "low": 0, "high": 0, "p": 1}
    assert mcnemar(one, one) == {"first_only": 0, "second_only": 0, "p": 1}


def paired(rng, gain):
    """Two systems on the same speakers; the second is better by ``gain``."""
    ease = 0.7 + 0.8 * rng.standard_normal((10, 3))
    runs = []
    for shift in (0, gain):
        own = ease + shift + 0.4 * rng.standard_normal((10, 1))
        right = rng.random((10, 3, 12)) < norm.cdf(own)[..., None]
        answers = {}
        for s, k, i in np.ndindex(right.shape):
            answers[f"{s}_{k}_{i}"] = {
                "speaker": str(s),
                "emotion": LABELS[k],
                "predicted": LABELS[(k + (not right[s, k, i])) % 3],
            }
        runs.append([answers])
    return runs


def test_p_values_are_uniform_when_nothing_differs():
    rng = np.random.default_rng(8)
    p = [compare(*paired(rng, 0), LABELS, 400)["ua"]["p"] for _ in range(250)]
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        off = 3 * (level * (1 - level) / 250) ** 0.5 + 0.01
        assert abs(np.mean(np.array(p) <= level) - level) < off


def test_a_difference_is_found_and_has_its_sign():
    rng = np.random.default_rng(9)
    found = [compare(*paired(rng, 1.0), LABELS, 400)["ua"] for _ in range(30)]
    assert np.mean([one["p"] < 0.05 for one in found]) > 0.9
    assert all(one["value"] > 0 for one in found)


def test_interval_and_p_value_agree():
    """p < 0.05 just where the 95 % interval leaves zero out."""
    rng = np.random.default_rng(10)
    for gain in np.linspace(0, 0.6, 60):
        found = compare(*paired(rng, gain), LABELS, 2000)["wa"]
        outside = found["low"] > 0 or found["high"] < 0
        # At the edge an interpolated quantile may fall on the other side
        if abs(found["p"] - 0.05) > 0.003:
            assert outside == (found["p"] < 0.05)


def test_difference_is_that_of_the_scores():
    one, two = paired(np.random.default_rng(11), 0.3)
    found = compare(one, two, LABELS)
    values = [
        bootstrap_scores(speaker_counts(runs, LABELS)[1]) for runs in (one, two)
    ]
    for name in METRICS:
        wanted = values[1][name]["value"] - values[0][name]["value"]
        assert found[name]["value"] == pytest.approx(wanted)
    assert found["speakers"] == 10 and found["utterances"] == 360


def test_mcnemar_counts_what_one_alone_gets_right():
    one, two = (runs[0] for runs in paired(np.random.default_rng(12), 0.3))
    found = mcnemar(one, two)
    right = [
        {k for k, row in run.items() if row["emotion"] == row["predicted"]}
        for run in (one, two)
    ]
    assert found["first_only"] == len(right[0] - right[1])
    assert found["second_only"] == len(right[1] - right[0])
    swapped = mcnemar(two, one)
    assert swapped["p"] == pytest.approx(found["p"])
