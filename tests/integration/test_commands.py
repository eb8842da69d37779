"""The recipe by the command ``dslstm``: from a built package, in any folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from nightly import nightly

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = [
    *("--corpus_options={speakers: 6, sentences: 1}", "--hidden_size=8"),
    *("--number_of_epochs=1", "--device=cpu", "--noprogressbar"),
]
DSLSTM = "from speechbrain_dslstm.cli.app import main\n\nmain()\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build the package as a wheel has it."""
    folder = tmp_path_factory.mktemp("built")
    command = ["setup.py", "-q", "build_py", f"--build-lib={folder}"]
    subprocess.run([sys.executable, *command], cwd=REPOSITORY, check=True)
    return folder


def run_built(built, place, *arguments):
    """Run a command of the built package in a folder; its console."""
    done = subprocess.run(
        [sys.executable, "-m", "speechbrain_dslstm.cli", *arguments],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(built), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_empty_folder_and_the_package(built, tmp_path):
    """Train, report and resume, with a YAML of one's own."""
    (tmp_path / "mine.yaml").write_text(
        (REPOSITORY / "hparams" / "mfcc_lstm.yaml")
        .read_text()
        .replace("system: mfcc_lstm", "system: mine")
    )
    console = run_built(built, tmp_path, "train", "mine.yaml", *SMALL)
    folder = tmp_path / "runs/mine/synthetic/session/training/fold0_seed1234"
    assert "Now try:\n" in console
    results = json.loads((folder / "results.json").read_text())
    assert results["command"][:2] == ["dslstm train", "mine.yaml"]
    assert results["settings"]["hidden_size"] == 8
    # A commit is that of a checkout
    assert "commit" not in results["versions"]
    assert results["versions"]["speechbrain_dslstm"][0].isdigit()
    options = ["--output=report", "--resamples=100"]
    run_built(built, tmp_path, "report", "runs", *options)
    assert (tmp_path / "report" / "report.html").exists()


@nightly
def test_all_folds_and_two_ranks_from_the_package(built, tmp_path):
    options = [*SMALL, "--valid_speakers=1", "--report=report"]
    options += ["--resamples=100"]
    run_built(built, tmp_path, "cross-validate", "mfcc_lstm", *options)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["runs"][0]["complete"]
    assert report["command"].startswith("dslstm cross-validate mfcc_lstm ")
    command = ["-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--master_port=29518", "-m", "speechbrain_dslstm.cli"]
    command += ["train", "mfcc_lstm", *SMALL, "--output_folder=two"]
    done = subprocess.run(
        [sys.executable, *command, "--distributed_backend=gloo"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(built), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Now try:") == 1


def dslstm(place, *arguments, code=0):
    """Run a command of the checkout; both streams."""
    script = place / "dslstm.py"
    script.write_text(DSLSTM)
    return processes.call(script, *arguments, code=code, cwd=place)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "name a system, such as dual_level"),
        (["train", "dual_levl"], "unknown system 'dual_levl'; did you mean"),
        (["train", "no.yaml"], "no file no.yaml"),
        (["train", "paper", "--hiden_size=4"], "did you mean hidden_size?"),
        (["train", "paper", "--lr=fast"], "lr is 'fast', expected a number"),
        (["train", "paper", "--protocol=weekly"], "unknown protocol 'weekly'"),
        (["train", "paper", "--corpus=emodb", "--data_folder=no"], "no"),
        (["train", "paper", "--device"], "expected one argument"),
        (["cross-validate", "papr"], "did you mean paper?"),
        (["cross-validate", "paper", "--lr=fast"], "expected a number"),
        (["cross-validate"], "arguments are required"),
        (["report", "nowhere", "--output=o"], "there is no nowhere"),
        (["report"], "arguments are required"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path):
    _, err = dslstm(tmp_path, *arguments, code=2)
    lines = [one for one in err.splitlines() if one.startswith("dslstm")]
    assert len(lines) == 1 and message in lines[0], err
    assert "Traceback" not in err


def test_help_lists_the_keys_with_the_values_of_a_system(tmp_path):
    out, _ = dslstm(tmp_path, "train", "--help")
    assert "  --lr=0.003\n" in out and "groups of similar length" in out
    assert "  mfcc_lstm " in out and "Training\n  --number_of_epochs=30" in out
    out, _ = dslstm(tmp_path, "train", "paper", "--help")
    assert "  --lr=0.001\n" in out and "--hidden_size=200" in out
    # A comment of recipe.yaml, beside the value of paper.yaml
    assert "--average_decay=null            decay of the moving average" in out


def test_the_recipe_is_written_out_and_nothing_overwritten(tmp_path):
    dslstm(tmp_path, "recipe", "mine")
    for name in ("hparams", "recipes/emotion_recognition"):
        written = {
            p.name: p.read_bytes() for p in (tmp_path / "mine" / name).iterdir()
        }
        expected = {
            p.name: p.read_bytes()
            for p in (REPOSITORY / name).iterdir()
            if p.is_file()
        }
        assert written == expected
    (tmp_path / "mine" / "hparams" / "paper.yaml").write_text("mine")
    shutil.rmtree(tmp_path / "mine" / "recipes")
    _, err = dslstm(tmp_path, "recipe", "mine", code=2)
    assert "hparams exists, and nothing is overwritten" in err
    assert [one.name for one in (tmp_path / "mine").iterdir()] == ["hparams"]
    assert (tmp_path / "mine" / "hparams" / "paper.yaml").read_text() == "mine"


SPAWN = """\
import multiprocessing, runpy, sys

if __name__ == "__main__":
    multiprocessing.set_start_method({method!r}, force=True)
    sys.argv[0] = {train!r}
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@nightly
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_run_with_spawned_workers_is_the_same(method, tmp_path):
    """Each worker loads the script as a module, which must not train again."""
    found = []
    for workers in (0, 2):
        place = tmp_path / str(workers)
        place.mkdir()
        script = place / "start.py"
        train = str(processes.RECIPE / "train.py")
        script.write_text(SPAWN.format(method=method, train=train))
        options = [*SMALL, f"--num_workers={workers}", "--output_folder=run"]
        options.append("--number_of_epochs=2")
        command = [sys.executable, str(script), "mfcc_lstm", *options]
        path = f"{REPOSITORY}{os.pathsep}{processes.RECIPE}"
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("Now try:") == 1
        found.append((place / "run" / "save" / "epochs.jsonl").read_text())
    assert found[0] == found[1]
