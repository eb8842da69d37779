"""The recipe, started from a model folder: fresh, resumed, on two ranks."""

import json

import processes
import pytest
import torch
from nightly import nightly
from resumed_runs import differences, run, states

from speechbrain_dslstm.inference import load_safe

OPTIONS = ["--init_lr_factor=0.5", "--freeze=cnn_x,mfcc.lstm"]


def finish(corpus, output, *options, code=0):
    """Run all of train.py; return what it printed."""
    line = processes.command_line(corpus, output, options)
    return "".join(processes.call(*line, code=code))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder that the first run fills with the synthetic corpus."""
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def source(corpus, tmp_path_factory):
    """The model folder of a finished run."""
    folder = tmp_path_factory.mktemp("source")
    finish(corpus, folder, "--number_of_epochs=1")
    return folder / "model"


@pytest.fixture(scope="module")
def tuned(corpus, source, tmp_path_factory):
    """A finished run from that model, on another fold."""
    folder = tmp_path_factory.mktemp("tuned")
    finish(corpus, folder, f"--init_from={source}", "--fold=1", *OPTIONS)
    return folder


def weights(folder):
    """State of the model in a folder."""
    return load_safe(folder).mods.embedding_model.state_dict()


def test_frozen_parts_are_those_of_the_source(source, tuned):
    before, after = weights(source), weights(tuned / "model")
    frozen = "branches.spectrogram.cnn_x.", "branches.mfcc.lstm."
    for name, value in after.items():
        same = torch.equal(value, before[name])
        assert same == name.startswith(frozen), name


def test_the_results_name_the_source(source, tuned):
    results = json.loads((tuned / "results.json").read_text())
    assert results["init_from"]["source"] == str(source)
    assert results["init_from"]["kept"] == results["labels"]
    assert "inherited" not in results["init_from"]
    card = (tuned / "model" / "README.md").read_text("utf-8")
    assert results["init_from"]["sha256"] in card


def test_a_killed_run_goes_on(corpus, source, tuned, tmp_path):
    options = [f"--init_from={source}", "--fold=1", *OPTIONS]
    killed = tmp_path / "killed"
    run(corpus, killed, options, ("step", 2, 2))
    run(corpus, killed, options)
    assert differences(states(tuned), states(killed)) == []


@nightly
def test_two_ranks(corpus, source, tuned, tmp_path):
    """The same origin and, frozen, the same parts; no rank waits for another."""
    options = [f"--init_from={source}", "--fold=1", *OPTIONS]
    run(corpus, tmp_path / "two", [*options, "--batch_size=1"], ranks=2)
    one, two = (states(folder)["model"] for folder in (tuned, tmp_path / "two"))
    for name, value in one.items():
        if name.startswith("branches.spectrogram.cnn_x."):
            assert torch.equal(value, two[name])


def test_other_layers_are_one_line(corpus, source, tmp_path):
    options = [f"--init_from={source}", "--hidden_size=9"]
    console = finish(corpus, tmp_path, *options, code=1)
    assert "hidden_size is 8 there and 9 here" in console
    assert not any(tmp_path.iterdir())
