"""Metrics against scikit-learn and against sums written out by hand."""

import csv
import io
import json
import math

import numpy as np
import pytest
import sklearn.metrics
import torch
import yaml
from hypothesis import given, strategies as st

from speechbrain_dslstm.evaluation import (
    DimensionStats,
    EmotionStats,
    expected_calibration_error,
    format_confusion,
    scores,
    scores_from_confusion,
)
from speechbrain_dslstm.evaluation.metrics import interval
from speechbrain_dslstm.models import concordance

LABELS = ["anger", "happiness", "neutral", "sadness"]
answers = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60
)


def plain(value):
    """Whether a value is made of Python's own types all through."""
    if isinstance(value, dict):
        return all(type(k) is str and plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(plain(v) for v in value)
    return type(value) in (float, int, str, type(None))


@given(answers)
def test_scores_equal_scikit_learn(pairs):
    truth, predicted = (list(x) for x in zip(*pairs, strict=True))
    found = scores(truth, predicted, LABELS)
    present = sorted(set(truth))
    assert found["n"] == len(pairs)
    assert found["wa"] == pytest.approx(
        sklearn.metrics.accuracy_score(truth, predicted)
    )
    recall = sklearn.metrics.recall_score(
        truth, predicted, labels=present, average=None
    )
    assert list(found["recall"]) == [LABELS[k] for k in present]
    assert list(found["recall"].values()) == pytest.approx(recall.tolist())
    assert found["ua"] == pytest.approx(recall.mean())
    assert found["macro_f1"] == pytest.approx(
        sklearn.metrics.f1_score(
            truth, predicted, labels=present, average="macro", zero_division=0
        )
    )
    for i, row in enumerate(found["confusion"]):
        for j, count in enumerate(row):
            assert count == pairs.count((i, j))


@given(answers, st.randoms(use_true_random=False))
def test_order_and_names_do_not_matter(pairs, random):
    found = scores(*zip(*pairs, strict=True), LABELS)
    random.shuffle(pairs)
    truth, predicted = zip(*pairs, strict=True)
    assert scores(truth, predicted, LABELS) == found
    names = [[LABELS[k] for k in part] for part in (truth, predicted)]
    assert scores(*names, LABELS) == found
    tensors = [torch.tensor(part) for part in (truth, predicted)]
    assert scores(*tensors, LABELS) == found
    assert scores_from_confusion(found["confusion"], LABELS) == found


def test_ua_leaves_out_classes_that_do_not_occur():
    """A fold without an emotion is not charged for it."""
    found = scores([0, 0, 1, 1], [0, 3, 1, 1], LABELS)
    assert (found["wa"], found["ua"]) == (0.75, 0.75)
    assert found["recall"] == {"anger": 0.5, "happiness": 1.0}


def test_ua_is_not_wa():
    """Nine of ten are one class: always saying it has WA 0.9, UA 0.5."""
    found = scores([0] * 9 + [1], [0] * 10, LABELS)
    assert (found["wa"], found["ua"]) == (0.9, 0.5)


def test_results_are_plain_and_survive_a_checkpoint():
    """numpy and tensor values would break SpeechBrain's SafeLoader."""
    found = scores(np.array([0, 1, 2]), np.array([0, 1, 1]), LABELS)
    assert plain(found) and plain(interval(np.array([0.5, 0.6])))
    assert yaml.safe_load(yaml.dump(found)) == found
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    "truth, predicted, message",
    [
        ([], [], "no items"),
        ([0, 1], [0], "2 truths, 1 predictions"),
        ([0, 4], [0, 1], "y_true holds 4"),
        ([0, 1], [0, -1], "y_pred holds -1"),
        (["anger"], ["joy"], "y_pred holds joy"),
        ([0.0], [0], "y_true holds 0.0"),
    ],
)
def test_bad_scores(truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        scores(truth, predicted, LABELS)


@pytest.mark.parametrize(
    "confusion, message",
    [
        ([[1, 2]], "do not fit"),
        ([[0, 0], [0, 0]], "must hold counts"),
        ([[2, -1], [0, 1]], "must hold counts"),
    ],
)
def test_bad_confusion(confusion, message):
    with pytest.raises(ValueError, match=message):
        scores_from_confusion(confusion, LABELS[:2])


@pytest.mark.parametrize("n_bins", [1, 10, 15])
def test_calibration_by_hand(n_bins):
    log_probs = torch.randn(200, 4).mul(2).log_softmax(dim=1)
    targets = torch.randint(4, (200,))
    bins = {}
    for row, target in zip(
        log_probs.double().exp().tolist(), targets, strict=True
    ):
        confidence = max(row)
        right = row.index(confidence) == int(target)
        slot = math.ceil(confidence * n_bins)
        bins.setdefault(slot, []).append((confidence, right))
    expected = 0.0
    for items in bins.values():
        confidence, right = (
            sum(x) / len(items) for x in zip(*items, strict=True)
        )
        expected += len(items) / 200 * abs(confidence - right)
    found = expected_calibration_error(log_probs, targets, n_bins)
    assert type(found) is float
    assert found == pytest.approx(expected, abs=1e-9)


def test_calibration_extremes():
    sure = torch.tensor([[0.0, -100.0]] * 4)
    assert expected_calibration_error(sure, [0] * 4) == 0
    assert expected_calibration_error(sure, [1] * 4) == 1


@pytest.mark.parametrize(
    "log_probs, targets, message",
    [
        (torch.zeros(0, 2), torch.zeros(0), "n > 0"),
        (torch.zeros(2), torch.zeros(2), "n > 0"),
        (torch.tensor([[2.0, -1.0]]), [0], "rows 0 do not sum to 1"),
        (torch.tensor([[math.nan, 0.0]]), [0], "rows 0 do not sum to 1"),
        (torch.tensor([[0.5, 0.5]]).log(), [2], "targets holds 2"),
    ],
)
def test_bad_calibration(log_probs, targets, message):
    if isinstance(targets, torch.Tensor):
        targets = targets.long()
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(log_probs, targets)


def test_interval_is_the_t_interval():
    """Against scipy's own interval, and a value from the t table."""
    import scipy.stats

    values = [0.61, 0.64, 0.70, 0.58, 0.66]
    found = interval(values)
    low, high = scipy.stats.t.interval(
        0.95, 4, loc=np.mean(values), scale=scipy.stats.sem(values)
    )
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert found["std"] == pytest.approx(np.std(values, ddof=1))
    half = 2.776 * found["std"] / math.sqrt(5)
    assert found["high"] - found["mean"] == pytest.approx(half, rel=1e-3)


def test_interval_of_one_run_claims_nothing():
    assert interval([0.5]) == {
        "mean": 0.5,
        "std": None,
        "low": None,
        "high": None,
        "n": 1,
    }


@pytest.mark.parametrize("values", [[], [math.nan], [0.5, math.inf]])
def test_bad_interval(values):
    with pytest.raises(ValueError, match="finite numbers"):
        interval(values)


def filled(n=30):
    """An EmotionStats with n utterances, and what went into it."""
    log_probs = torch.randn(n, 4).log_softmax(dim=1)
    targets = torch.randint(4, (n,))
    ids = [f"utterance{i}" for i in range(n)]
    stats = EmotionStats(LABELS)
    for i in range(0, n, 7):
        batch = slice(i, i + 7)
        stats.append(ids[batch], log_probs[batch], targets[batch])
    return stats, ids, log_probs, targets


def test_stats_equal_scores():
    """Batch by batch is the same as all at once; [B, 1] is the same, too."""
    stats, ids, log_probs, targets = filled()
    found = stats.summarize()
    assert found == scores(targets, log_probs.argmax(dim=1), LABELS)
    assert stats.summarize("ua") == found["ua"]
    other = EmotionStats(LABELS)
    log_probs.requires_grad_()
    other.append(ids, log_probs, targets.unsqueeze(1), torch.ones(len(ids)))
    assert other.rows() == stats.rows()


def test_stats_see_what_comes_later_and_forget():
    stats, *_ = filled()
    before = stats.summarize("n")
    stats.append(["more"], torch.zeros(1, 4), torch.tensor([0]))
    assert stats.summarize("n") == before + 1
    stats.clear()
    with pytest.raises(ValueError, match="no items"):
        stats.summarize()


def test_write_predictions_round_trip(tmp_path):
    stats, ids, log_probs, targets = filled()
    path = tmp_path / "predictions.csv"
    path.write_text("old")
    stats.write_predictions(path)
    with open(path, newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = [f"logp_{label}" for label in LABELS]
    assert list(rows[0]) == ["id", "emotion", "predicted", *columns]
    assert [row["id"] for row in rows] == ids
    assert [row["emotion"] for row in rows] == [LABELS[k] for k in targets]
    read = torch.tensor([[float(row[c]) for c in columns] for row in rows])
    torch.testing.assert_close(read, log_probs, rtol=0, atol=0)
    assert [row["predicted"] for row in rows] == [
        LABELS[k] for k in read.argmax(dim=1)
    ]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_write_predictions_is_all_or_nothing(tmp_path, monkeypatch):
    """A crash while writing leaves the old file and no rubbish."""
    stats, *_ = filled()
    path = tmp_path / "predictions.csv"
    path.write_text("old")

    def crash(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError, match="disk full"):
        stats.write_predictions(path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ValueError, match="no predictions"):
        EmotionStats(LABELS).write_predictions(path)


def test_write_stats(capsys):
    stats, *_ = filled()
    stream = io.StringIO()
    stats.write_stats(stream)
    found = stats.summarize()
    assert f"UA: {100 * found['ua']:.2f}%" in stream.getvalue()
    assert format_confusion(found["confusion"], LABELS) in stream.getvalue()
    assert capsys.readouterr().out == ""
    stats.write_stats(stream, verbose=True)
    assert "macro-F1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "log_probs, targets, message",
    [
        ([[0.0] * 4, [math.nan] * 4], [0, 1], "not finite for b$"),
        ([[-math.inf] + [0.0] * 3, [0.0] * 4], [0, 1], "not finite for a$"),
        ([[0.0] * 4] * 2, [0, 4], r"0\.\.3, but are not for b$"),
        ([[0.0] * 4] * 2, [-1, 0], "are not for a$"),
        ([[0.0] * 3] * 2, [0, 1], r"\[2, 4\].*\[2, 3\].* for a, b$"),
        ([[0.0] * 4] * 3, [0, 1], "for a, b$"),
        ([[0.0] * 4] * 2, [0], "for a, b$"),
    ],
)
def test_bad_batch_names_the_utterances(log_probs, targets, message):
    stats = EmotionStats(LABELS)
    with pytest.raises(ValueError, match=message):
        stats.append(["a", "b"], torch.tensor(log_probs), targets)
    assert stats.rows() == []


@pytest.mark.parametrize("labels", [[], ["anger", "anger"]])
def test_bad_labels(labels):
    with pytest.raises(ValueError, match="labels must differ"):
        EmotionStats(labels)


def test_dimension_stats_are_over_all_batches(tmp_path):
    """Not the mean of the batches' concordances."""
    x, y = torch.randn(7, 2), torch.randn(7, 2)
    stats = DimensionStats(["valence", "arousal"])
    stats.append(list("abc"), x[:3], y[:3])
    stats.append(list("defg"), x[3:], y[3:])
    found = stats.summarize()
    expected = concordance(x, y)
    assert found["ccc_valence"] == pytest.approx(expected[0].item(), abs=1e-6)
    assert found["ccc"] == pytest.approx(expected.mean().item(), abs=1e-6)
    assert all(type(value) is float for value in found.values())
    stats.write(tmp_path / "dimensions.csv")
    with open(tmp_path / "dimensions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == list("abcdefg")
    assert float(rows[4]["arousal"]) == pytest.approx(y[4, 1].item(), abs=1e-6)
    predicted = float(rows[4]["arousal_predicted"])
    assert predicted == pytest.approx(x[4, 1].item(), abs=1e-6)
