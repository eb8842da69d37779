"""The recipe as a user runs it: real processes on a small synthetic corpus."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import torch
from nightly import nightly
from PIL import Image

from speechbrain_dslstm import EmotionClassifier

REPOSITORY = Path(__file__).resolve().parents[2]
YAML = str(REPOSITORY / "hparams" / "dual_level.yaml")
SMALL = [
    "--corpus=synthetic",
    "--corpus_options={speakers: 6, sentences: 1}",
    "--channels=[2, 2]",
    "--hidden_size=8",
    "--batch_size=4",
    "--device=cpu",
    "--noprogressbar",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder that the first run fills with the synthetic corpus."""
    return tmp_path_factory.mktemp("corpus")


def command(corpus, output, *options, script="train.py"):
    """The command line of a run."""
    folders = [f"--data_folder={corpus}", f"--output_folder={output}"]
    python = [str(processes.RECIPE / script), YAML]
    given = {option.split("=")[0] for option in options}
    small = [one for one in SMALL if one.split("=")[0] not in given]
    return [*python, *small, *folders, *options]


def run(*args, **kwargs):
    """Run to the end; what it printed."""
    return processes.call(*command(*args, **kwargs))[0]


def epochs(output):
    """Epochs that were validated, in the order of the log."""
    lines = (output / "save" / "epochs.jsonl").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """Output folder and console of a finished run."""
    output = tmp_path_factory.mktemp("trained")
    return output, run(corpus, output, "--number_of_epochs=2")


def test_nothing_to_test_is_said_at_once(corpus, tmp_path):
    line = command(corpus, tmp_path, "--test_only")
    console = "".join(processes.call(*line, code=1))
    assert f"no checkpoint to test in {tmp_path / 'save'}" in console
    # Reading all audio for the statistics can take minutes
    assert "collecting feature statistics" not in console


def test_results_are_complete(trained):
    output, console = trained
    results = json.loads((output / "results.json").read_text())
    assert results["labels"] == ["anger", "happiness", "neutral", "sadness"]
    assert results["protocol"] == "session" and results["fold"] == 0
    assert results["note"] == ""
    assert epochs(output) == [1, 2]
    assert results["leaks"]["train"]["speaker"]["count"] == 0
    assert f"WA {results['wa']:.1%}  UA {results['ua']:.1%}" in console
    assert "truth \\ predicted" in console
    assert "on 2 speakers that the model never heard" in console
    assert results["settings"]["batch_size"] == 4
    assert results["settings"]["grad_accumulation_factor"] == 1
    versions = results["versions"]
    assert versions["speechbrain_dslstm"][0].isdigit()
    if (REPOSITORY / ".git").exists():
        assert len(versions["commit"].split()[0]) == 40
    assert (output / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_console(trained):
    """A line for each epoch, no log line, and commands that can be pasted."""
    output, console = trained
    lines = console.splitlines()
    assert len(lines) < 40 and max(map(len, lines[:4])) < 80
    form = r"epoch {}/2  train loss \d\.\d{{3}}  valid WA [\d.]+%  UA [\d.]+%  \d+ s"
    for epoch in (1, 2):
        assert re.fullmatch(form.format(epoch), lines[1 + epoch])
    assert " - " not in console and "INFO" not in console
    log = (output / "log.txt").read_text()
    assert "speechbrain.core - INFO - Beginning experiment!" in log
    begin = next(
        k for k, one in enumerate(lines) if one.startswith("The first")
    )
    answers = [one.split() for one in lines[begin + 1 : begin + 5]]
    labels = [name for _, name, *_ in answers]
    assert labels == ["anger", "happiness", "neutral", "sadness"]
    assert all(name.startswith("spk") for name, *_ in answers)
    assert lines[begin + 5 : begin + 7] == ["", "Now try:"]
    classify, longer, serve = map(shlex.split, lines[begin + 7 :])
    run = ["-m", "speechbrain_dslstm.cli", *classify[-4:]]
    done = subprocess.run(
        [sys.executable, *run], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # The same answer, in the form of the command
    name, label, _, answer, _, posterior = answers[0]
    found = done.stdout.split()
    assert Path(found[0]).name == name and found[1] == answer.rstrip(",")
    assert posterior in done.stdout
    assert longer[longer.index("cross-validate") + 1] == YAML
    assert longer[-1] == "--report=report" and SMALL[1] in longer
    assert not any("output_folder" in one for one in longer)
    assert serve[-3:] == ["serve", "-m", str(output / "model")]


def test_predictions_agree_with_scores_and_saved_model(trained, corpus):
    output, _ = trained
    results = json.loads((output / "results.json").read_text())
    with open(output / "predictions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    right = sum(row["emotion"] == row["predicted"] for row in rows)
    assert results["wa"] == pytest.approx(right / len(rows))
    classifier = EmotionClassifier.from_hparams(output / "model")
    manifest = json.loads((output / "save" / "test.json").read_text())
    assert len(rows) == len(manifest) == 8
    for row in rows:
        wav = manifest[row["id"]]["wav"].format(data_root=corpus)
        out_prob, _, _, text_lab = classifier.classify_file(
            wav, speech_only=False
        )
        written = [float(row[f"logp_{name}"]) for name in results["labels"]]
        # The model is calibrated, the predictions are not
        temperature = results["calibration"]["temperature"]
        expected = (torch.tensor(written) / temperature).log_softmax(-1)
        torch.testing.assert_close(out_prob[0], expected, atol=1e-4, rtol=0)
        assert text_lab == [row["predicted"]]


def test_selection_never_sees_the_test_log(corpus, trained, tmp_path):
    """Without the log the same epochs, choice and predictions come out."""
    output, _ = trained
    run(corpus, tmp_path, "--number_of_epochs=2", "--test_every_epoch=False")
    assert not (tmp_path / "save" / "test_epochs.jsonl").exists()
    found = [
        [(folder / name).read_text() for name in ("save/epochs.jsonl",)]
        + [(folder / "predictions.csv").read_text()]
        for folder in (output, tmp_path)
    ]
    assert found[0] == found[1]
    without = json.loads((tmp_path / "results.json").read_text())
    assert without["test_best_epoch"] == {}
    rows = (output / "save" / "test_epochs.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in rows]
    results = json.loads((output / "results.json").read_text())
    assert [row["epoch"] for row in rows] == [1, 2]
    for name in ("wa", "ua", "macro_f1"):
        best = results["test_best_epoch"][name]
        assert best["value"] == max(row[name] for row in rows)
    # The chosen epoch's row is what the test at the end found
    chosen = rows[results["best_epoch"] - 1]
    assert chosen["ua"] == results["ua"]
    with open(output / "predictions.csv", newline="") as stream:
        final = {r["id"]: r["predicted"] for r in csv.DictReader(stream)}
    assert chosen["predicted"] == final


def test_cached_features_give_the_same_run(corpus, trained, tmp_path):
    """Another fold and seed then write nothing: every entry is found."""
    output, _ = trained
    options = ["--number_of_epochs=2", f"--feature_cache={tmp_path / 'cache'}"]
    run(corpus, tmp_path / "run", *options)
    found = []
    for folder in (output, tmp_path / "run"):
        rows = (folder / "save" / "epochs.jsonl").read_text().splitlines()
        found.append([json.loads(row)["train_loss"] for row in rows])
    assert found[0] == pytest.approx(found[1], abs=1e-4)
    entries = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "cache").rglob("*.safetensors")
    }
    sizes = [
        len(json.loads((output / "save" / f"{subset}.json").read_text()))
        for subset in ("train", "valid", "test")
    ]
    # Three features of each clip, and those at the other speeds that were drawn
    assert 3 * sum(sizes) < len(entries) < 3 * (sum(sizes) + 4 * sizes[0])
    options += ["--seed=5", "--fold=1", "--speeds=null"]
    run(corpus, tmp_path / "more", *options)
    again = (tmp_path / "cache").rglob("*.safetensors")
    assert entries == {path: path.stat().st_mtime_ns for path in again}


def test_normalisation_by_speaker_is_labelled(corpus, trained, tmp_path):
    options = ["--number_of_epochs=1", "--normalization=speaker"]
    console = run(corpus, tmp_path, *options)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["normalization"] == "speaker"
    for text in (console, results["note"]):
        assert "all audio of each test speaker" in text
    with open(tmp_path / "predictions.csv", newline="") as stream:
        speakers = {row["speaker"] for row in csv.DictReader(stream)}
    assert speakers == {"spk01", "spk02"}


def test_second_run_only_evaluates_again(trained, corpus):
    output, console = trained
    again = run(corpus, output, "--number_of_epochs=2")
    assert epochs(output) == [1, 2]
    lines = console.splitlines()
    begin = next(k for k, line in enumerate(lines) if line.startswith("epoch"))
    same = lines[:begin] + ["resumed after epoch 2 of 2"] + lines[begin + 2 :]
    assert again.splitlines() == same


def test_another_split_in_the_same_folder_is_refused(trained, corpus):
    output, _ = trained
    _, err = processes.call(*command(corpus, output, "--fold=1"), code=1)
    assert "holds a run with another fold (0, now 1)" in err


def contents(folder):
    """Contents of all files of a folder."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_other_settings_are_refused_before_anything_is_written(trained, corpus):
    output, _ = trained
    before = contents(output)
    for options, message in {
        ("--lr=1",): "another lr (0.003, now 1)",
        ("--weight_decay=0.1",): "another weight_decay (0.0001, now 0.1)",
        ("--number_of_epochs=1",): "another number_of_epochs (2, now 1)",
        (
            "--batch_size=2",
            "--seed=1",
        ): "another batch_size (4, now 2), seed (1234, now 1)",
    }.items():
        given = {one.split("=")[0] for one in options}
        same = [] if "--number_of_epochs" in given else ["--number_of_epochs=2"]
        line = command(corpus, output, *same, *options)
        out, err = processes.call(*line, code=1)
        assert message in out + err
    assert contents(output) == before


def test_its_own_hyperparameters_run_again(trained, corpus, tmp_path):
    """With an override, in another folder; refused in its own."""
    output, _ = trained
    line = [processes.RECIPE / "train.py", output / "hyperparams.yaml"]
    line += ["--device=cpu", "--noprogressbar", "--lr=0.5"]
    out, err = processes.call(*line, code=1)
    assert "another lr (0.003, now 0.5)" in out + err
    options = ["--output_folder=1234", "--number_of_epochs=1"]
    processes.call(*line, *options, cwd=tmp_path)
    rows = (tmp_path / "1234" / "save" / "epochs.jsonl").read_text()
    assert json.loads(rows)["train_loss"] > 0
    results = json.loads((tmp_path / "1234" / "results.json").read_text())
    assert results["settings"]["lr"] == 0.5
    assert results["settings"]["channels"] == [2, 2]


def test_more_epochs_follow_a_plan_of_the_new_length(trained, corpus, tmp_path):
    """The rates, and the epochs to choose from, are those of a new run."""
    output = tmp_path / "run"
    shutil.copytree(trained[0], output)
    run(corpus, output, "--number_of_epochs=4")
    assert epochs(output) == [1, 2, 3, 4]
    run(corpus, tmp_path / "new", "--number_of_epochs=4")
    rates = [
        [json.loads(line)["lr"] for line in rows.read_text().splitlines()]
        for rows in (
            output / "save" / "epochs.jsonl",
            tmp_path / "new" / "save" / "epochs.jsonl",
        )
    ]
    assert rates[0][2:] == pytest.approx(rates[1][2:])
    assert rates[0][:2] != pytest.approx(rates[1][:2])
    results = json.loads((output / "results.json").read_text())
    assert results["epochs"] == 4 and results["best_epoch"] == 4
    assert results["settings"]["number_of_epochs"] == 4
    change = {"key": "number_of_epochs", "before": 2, "now": 4}
    assert change in results["setting_changes"]
    before = json.loads((output / "results_2_epochs.json").read_text())
    assert before["epochs"] == 2


def test_without_validation(corpus, trained, tmp_path):
    """Everything but the test is trained on, and the last epoch is kept."""
    options = ["--valid_speakers=0", "--normalization=speaker"]
    console = run(corpus, tmp_path, *options, "--number_of_epochs=1")
    assert ", 0 for validation, " in console and "valid WA" not in console
    results = json.loads((tmp_path / "results.json").read_text())
    usual = json.loads((trained[0] / "save" / "run.json").read_text())
    clips = usual["clips"]
    assert results["clips"] == clips | {
        "train": clips["train"] + clips["valid"],
        "valid": 0,
    }
    assert results["best_epoch"] == 1
    # As a run that resumes: the second epoch follows the first
    run(corpus, tmp_path, *options, "--number_of_epochs=2")
    assert epochs(tmp_path) == [1, 2]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["best_epoch"] == 2
    assert results["selection"] == "last, without validation"
    # A stop by validation is refused before the data are written
    call = command(corpus, tmp_path / "new", *options, "--patience=2")
    _, err = processes.call(*call, code=1)
    assert "patience waits for a better validation UA" in err
    assert not (tmp_path / "new" / "save" / "run.json").exists()


@pytest.mark.parametrize("speakers", [2, pytest.param(0, marks=nightly)])
def test_killed_in_mid_epoch_goes_on(corpus, trained, tmp_path, speakers):
    """SIGKILL after a checkpoint inside an epoch; the same command ends."""
    options = ["--number_of_epochs=3", "--ckpt_interval_steps=1"]
    options.append(f"--valid_speakers={speakers}")
    options.append("--ckpt_interval_minutes=0")
    process = processes.script(*command(corpus, tmp_path, *options))

    def inside_second_epoch():
        log = tmp_path / "save" / "epochs.jsonl"
        if not log.exists() or not log.read_text():
            return False
        for meta in (tmp_path / "save").glob("CKPT*/CKPT.yaml"):
            newer = meta.stat().st_mtime_ns > log.stat().st_mtime_ns
            if newer and "intra" in meta.read_text().lower():
                return True
        return False

    deadline = time.monotonic() + 120
    while not inside_second_epoch():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint inside an epoch"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "results.json").exists()
    run(corpus, tmp_path, *options)
    assert epochs(tmp_path) == [1, 2, 3]
    log = (tmp_path / "log.txt").read_text()
    assert "Loading a checkpoint from" in log
    assert EmotionClassifier.from_hparams(tmp_path / "model")


def test_paper_protocol_says_so_everywhere(corpus, trained, tmp_path):
    console = run(corpus, tmp_path, "--protocol=paper", "--number_of_epochs=2")
    results = json.loads((tmp_path / "results.json").read_text())
    for text in (console, results["note"]):
        assert "same speakers in training and test" in text
        assert "best epoch chosen on the test fold" in text
    with Image.open(tmp_path / "confusion.png") as picture:
        assert "same speakers in training and test" in picture.text["Title"]
    rows = (tmp_path / "save" / "epochs.jsonl").read_text().splitlines()
    scores = [json.loads(row)["valid"] for row in rows]
    for name in ("wa", "ua"):
        assert results[name] == max(score[name] for score in scores)


@nightly
def test_two_ranks(corpus, trained, tmp_path):
    """torchrun with gloo: one set of results, written once."""
    options = ["--number_of_epochs=1", "--distributed_backend=gloo"]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2"]
    launcher += ["--master_port=29517", *command(corpus, tmp_path, *options)]
    done = subprocess.run(
        [sys.executable, *launcher],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nepoch 1/1 ") == 1
    assert done.stdout.count("\nNow try:\n") == 1
    assert epochs(tmp_path) == [1]


@nightly
def test_cross_validation_resumes(corpus, trained, tmp_path):
    """A second call runs only the fold whose results are gone."""
    # Two sessions, so two folds
    options = ["--corpus_options={speakers: 4, sentences: 1}"]
    options += ["--number_of_epochs=1", "--valid_speakers=1"]
    options += ["--results=summary.json", "--resamples=200"]
    call = command(
        tmp_path / "corpus", None, *options, script="cross_validate.py"
    )
    call = [one for one in call if not one.startswith("--output_folder")]
    for _ in range(2):
        out, _err = processes.call(*call, cwd=tmp_path)
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert len(summary["folds"]) == 2
        assert sum(map(sum, summary["pooled"]["confusion"])) == 16
        folder = tmp_path / "runs/dual_level/synthetic/session/training"
        times = {
            path.parent.name: path.stat().st_mtime_ns
            for path in folder.glob("*/results.json")
        }
        if _ == 0:
            before = times
            (folder / "fold1_seed1234" / "results.json").unlink()
    assert times.keys() == before.keys()
    changed = [name for name in times if times[name] != before[name]]
    assert changed == ["fold1_seed1234"]
    found = summary["ua"]["mean"]
    assert f"UA: {found:.1%}" in out


def test_bad_options_say_what_is_wrong(corpus, trained, tmp_path):
    for option, message in {
        "--corpus=imocap": "unknown corpus 'imocap'; expected one of iemocap",
        "--protocol=leave-one-out": "unknown protocol 'leave-one-out'",
        "--fold=7": "fold is 7, but protocol 'session' has 3 folds",
        "--label_set=9class": "unknown label set '9class'",
    }.items():
        said = processes.call(*command(corpus, tmp_path, option), code=1)
        assert message in "".join(said), said
