"""What the console says of a finished run, in all cases."""

from pathlib import Path

import pytest

from speechbrain_dslstm.evaluation import summary
from speechbrain_dslstm.evaluation.summary import (
    commands_to_try,
    describe_calibration,
    describe_speakers,
)


@pytest.mark.parametrize(
    ("speakers", "train", "valid", "origin", "words"),
    [
        (2, 0, 0, None, "on 2 speakers that the model never heard"),
        (1, 0, 0, None, "on 1 speaker that the model never heard"),
        (10, 10, 10, None, "on 10 speakers, all of them in training as well"),
        (10, 3, 0, None, "on 10 speakers, 3 of them in training as well"),
        (2, 0, 2, None, "on 2 speakers, not in training, but in validation"),
        (2, 0, 0, {"source": "a"}, "on 2 speakers, not in this training; "),
        (None, 0, 0, None, "on speakers that are not known, so the model may"),
    ],
)
def test_only_what_is_true_is_said_of_speakers(
    speakers, train, valid, origin, words
):
    shared = {"train": train, "valid": valid}
    leaks = {name: {"speaker": {"count": n}} for name, n in shared.items()}
    results = {"test_speakers": speakers, "leaks": leaks, "init_from": origin}
    said = describe_speakers(results)
    assert said.startswith(words)
    assert ("never heard" in said) == (words.endswith("never heard"))


@pytest.mark.parametrize(
    ("after", "verdict"),
    [(0.1, "better"), (0.3, "worse"), (0.2001, "the same")],
)
def test_calibration_claims_no_improvement_that_is_none(after, verdict):
    found = {"temperature": 1.5, "ece_before": 0.2, "ece_after": after}
    found["fitted_on"] = "3 validation speakers"
    assert f"({verdict})" in describe_calibration(found)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["a b.yaml", "--fold=1", "--output_folder=x", "--noprogressbar"],
            "cross-validate 'a b.yaml' --report=report",
        ),
        # Values behind blanks are none of the script's
        (["dual_level", "--fold", "1"], "report 'my run' --output=report"),
        (["dual_level", "--protocol=all"], "report 'my run' --output=report"),
    ],
)
def test_the_longer_command(arguments, expected):
    found = commands_to_try(arguments, "train.py", Path("my run"), "a.wav")
    assert found[1].endswith(expected)


def test_commands_where_nothing_is_installed(monkeypatch, tmp_path):
    """Without dslstm on the path and without the libraries of the server."""
    monkeypatch.setattr(summary.shutil, "which", lambda name: None)
    monkeypatch.setattr(summary.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(summary.sys, "executable", "/my python")
    script = tmp_path / "recipes" / "emotion_recognition" / "train.py"
    monkeypatch.chdir(tmp_path)
    classify, _, serve = commands_to_try(["a"], script, Path("run"), "a.wav")
    start = "'/my python' -m speechbrain_dslstm.cli"
    assert classify == f"{start} classify -m run/model a.wav"
    pip = "pip install 'speechbrain-dslstm[serve]' && "
    assert serve == f"{pip}{start} serve -m run/model"
    (tmp_path / "setup.py").touch()
    serve = commands_to_try(["a"], script, Path("run"), "a.wav")[2]
    assert serve.startswith("pip install '.[serve]' && ")
