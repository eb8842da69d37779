"""Predictions of a cross-validation, as what a temperature is fitted on."""

import json

import pytest
import torch

from speechbrain_dslstm.evaluation import EmotionStats
from speechbrain_dslstm.evaluation.held_out import read_held_out

LABELS = ["anger", "sadness"]


@pytest.fixture
def fold(tmp_path):
    """Write a finished fold with three predictions; return them."""

    def write(number, seed=1, labels=LABELS, **run):
        folder = tmp_path / run.get("system", "s") / f"fold{number}_seed{seed}"
        folder.mkdir(parents=True)
        run = {"system": "s", "corpus": "c", "protocol": "session"} | run
        run |= {"normalization": "training", "fold": number, "seed": seed}
        text = json.dumps({**run, "labels": labels})
        (folder / "results.json").write_text(text)
        stats = EmotionStats(labels)
        scores = torch.randn(3, 2).log_softmax(1)
        targets = torch.tensor([0, 1, 1])
        stats.append(["a", "b", "c"], scores, targets)
        stats.write_predictions(folder / "predictions.csv")
        return scores, targets

    return write


def test_a_group_is_a_fold_with_all_its_seeds(fold, tmp_path):
    second = fold(1), fold(1, seed=2)
    first = fold(0)
    name, found = read_held_out(tmp_path, LABELS)
    assert name == "s/c/session/training"
    assert len(found) == 2
    assert torch.equal(found[0][0], first[0])
    for place in range(2):
        expected = torch.cat([one[place] for one in second])
        assert torch.equal(found[1][place], expected)


@pytest.mark.parametrize("protocol", ["random", "paper", "all", "split"])
def test_speakers_that_were_heard_are_refused(fold, tmp_path, protocol):
    fold(0, protocol=protocol)
    with pytest.raises(ValueError, match=f"its protocol is {protocol}"):
        read_held_out(tmp_path, LABELS)


def test_a_run_of_some_of_the_classes(fold, tmp_path):
    """Corpora that share two classes calibrate a model of three."""
    scores, targets = fold(0)
    _, [found] = read_held_out(tmp_path, ["joy", *LABELS])
    assert torch.equal(found[0], scores) and torch.equal(found[1], targets)


def test_other_classes_are_refused(fold, tmp_path):
    fold(0)
    with pytest.raises(ValueError, match="expected those of the model: joy"):
        read_held_out(tmp_path, ["joy"])


def test_several_runs_are_refused(fold, tmp_path):
    fold(0)
    fold(0, system="other")
    with pytest.raises(ValueError, match="folds of several runs: other/c"):
        read_held_out(tmp_path, LABELS)


def test_a_folder_without_folds_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished fold below"):
        read_held_out(tmp_path, LABELS)
