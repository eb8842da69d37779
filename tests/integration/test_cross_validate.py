"""Scheduling of folds: real processes, whose training is a stand-in.

The stand-in takes train.py's options, waits, and leaves the folder that
train.py leaves; test_recipe.py runs the real one.
"""

import itertools
import json
import os
import signal
import time
from pathlib import Path

import miniature_runs as miniature
import processes
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

YAML = """\
seed: 1234
corpus: synthetic
data_folder: {data}
label_set: null
corpus_options: {{speakers: 6, sentences: 1}}
protocol: session
normalization: training
fold: 0
n_folds: 3
valid_speakers: 1
number_of_epochs: 6
lr: 0.01
system: {system}
output_folder: null
model: !new:no.such.Module  # nothing of a YAML is made here
"""
STAND_IN = """\
import json, os, shutil, subprocess, sys, time
from pathlib import Path

options = dict(one[2:].split("=") for one in sys.argv[2:] if "=" in one)
folder = Path(options["output_folder"])


def note(name, *row):
    with open(name, "a") as log:
        log.write(json.dumps(row) + "\\n")


note("started.txt", str(folder), os.getpid(), options.get("device"),
     os.environ["OMP_NUM_THREADS"], time.time())
if os.environ.get("FAIL") == options["fold"]:
    sys.exit("no luck")
seconds = float(os.environ.get("SECONDS_A_FOLD", 0))
if seconds > 60:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    note("children.txt", subprocess.Popen(sleep).pid)
time.sleep(seconds)
shutil.copytree(Path("made", *folder.parts[1:]), folder, dirs_exist_ok=True)
record = json.loads(Path("records.json").read_text())[str(folder)]
(folder / "save" / "settings.json").write_text(json.dumps(record))
note("ended.txt", str(folder), time.time())
"""
# The records are passed on, so that a stand-in imports nothing of ours
CALL = """\
import json
from pathlib import Path

import cross_validate



def run_jobs(jobs, *args):
    records = {{
        str(job.folder): {{"settings": job.record.settings}} for job in jobs
    }}
    Path("records.json").write_text(json.dumps(records))
    return run(jobs, *args)


run, cross_validate.run_jobs = cross_validate.run_jobs, run_jobs
cross_validate.TRAIN = Path({stand_in!r})
cross_validate.main()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the stand-in copies: finished folds of all kinds."""
    folder = tmp_path_factory.mktemp("made")
    for system, protocol, normalization, seed in itertools.product(
        ("dual_level", "ds_lstm"),
        ("session", "random"),
        ("training", "speaker"),
        (1, 2, 1234),
    ):
        miniature.write(
            folder,
            system,
            protocol,
            normalization,
            seed,
            epochs=3,
            corpus_name="synthetic",
        )
    return folder


@pytest.fixture
def place(tmp_path, made):
    """A folder with two YAMLs, the corpus and the stand-in."""
    (tmp_path / "made").symlink_to(made)
    for system in ("dual_level", "ds_lstm"):
        path = tmp_path / f"{system}.yaml"
        path.write_text(YAML.format(data=tmp_path / "data", system=system))
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN)
    call = CALL.format(stand_in=str(stand_in))
    (tmp_path / "call.py").write_text(call)
    return tmp_path


def start(place, *options, **environment):
    """Start the script in the folder."""
    return processes.script(
        place / "call.py", *options, cwd=place, **environment
    )


def run(place, *options, code=0, **environment):
    """Run it to its end; both streams."""
    process = start(place, *options, **environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    return out, err


def lines(place, name):
    """Rows of a log of the stand-in."""
    path = place / name
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def test_a_yaml_that_was_edited_since(place):
    """A finished fold is kept where nothing else counts, else refused."""
    path = place / "dual_level.yaml"
    # Behind the YAML, an option with a blank is no second YAML
    options = [
        "dual_level.yaml",
        "--corpus_options={speakers: 6, sentences: 1}",
    ]
    options.append(f"--data_folder={place}/data")
    run(place, *options, "--resamples", "200")
    folders = {Path(row[0]) for row in lines(place, "started.txt")}
    assert len(folders) == 3
    text = path.read_text()
    path.write_text(text + "num_workers: 2\nnew: null  # nothing\n")
    out, _ = run(place, *options, "--dry_run")
    assert out.count("done") == 3
    path.write_text(text.replace("such.Module", "such.Thing"))
    _, err = run(place, *options, "--dry_run", code=2)
    assert "another model (!new:no.such.Module" in err
    path.write_text(text)
    (place / min(folders) / "save" / "settings.json").write_text("# nothing\n")
    _, err = run(place, *options, "--dry_run", code=2)
    assert "settings.json is damaged" in err and len(err.splitlines()) == 1


def test_more_epochs_train_finished_folds_again(place):
    """They keep their earlier results; fewer epochs are refused."""
    run(place, "dual_level.yaml", "--resamples=200")
    more = ["dual_level.yaml", "--number_of_epochs=7", "--resamples=200"]
    run(place, *more)
    started = [row[0] for row in lines(place, "started.txt")]
    assert len(started) == 6 and len(set(started)) == 3
    assert (place / min(started) / "results_6_epochs.json").exists()
    _, err = run(place, "dual_level.yaml", code=2)
    assert "another number_of_epochs (7, now 6)" in err


def test_everything_that_was_asked_for_once(place):
    """2 protocols x 2 normalisations x 2 seeds x 3 folds."""
    options = ["dual_level.yaml", f"--data_folder={place}/data"]
    options += ["--protocols", "session", "random"]
    options += ["--normalizations", "own", "training", "speaker"]
    options += ["--seeds", "1", "2", "--resamples", "200"]
    out, _ = run(place, *options, "--dry_run")
    assert len(out.splitlines()) == 24 and not lines(place, "started.txt")
    assert all(line.startswith("   0%  runs/") for line in out.splitlines())
    out, err = run(place, *options, "--jobs", "4", "--report", "report")
    started = lines(place, "started.txt")
    assert len({row[0] for row in started}) == len(started) == 24
    assert "24.0/24 folds" in err
    threads = max(1, len(os.sched_getaffinity(0)) // 4)
    assert {row[3] for row in started} == {str(threads)}
    assert "dual_level on synthetic, protocol random" in out
    assert out.count("NOTE: same speakers in training and test") == 2
    assert out.count("NOTE: uses the unlabelled audio of each test") == 2
    report = json.loads((place / "report" / "report.json").read_text())
    assert len(report["runs"]) == 4
    assert all(one["complete"] for one in report["runs"])
    assert (place / "report" / "report.html").exists()
    assert str(place) not in report["command"]
    # Nothing is done again, and the report can be made from the folder alone
    run(place, *options, "--jobs", "4", "--resamples=200")
    _, err = run(place, *options, "--lr=0.1", code=2)
    assert "holds a run with another lr (0.01, now 0.1)" in err
    assert len(lines(place, "started.txt")) == 24
    options = ["--output=again", "--resamples=200", "--results=kept.json"]
    processes.call(processes.RECIPE / "report.py", "runs", *options, cwd=place)
    kept = json.loads((place / "kept.json").read_text())
    assert kept["runs"] == report["runs"]


def test_a_failed_fold_does_not_stop_the_others(place):
    out, err = run(place, "dual_level.yaml", code=1, FAIL="1")
    fold = "runs/dual_level/synthetic/session/training/fold1_seed1234"
    assert "1 of 3 folds failed" in err
    assert f"{fold} failed, see {fold}/console.txt" in err
    assert "no luck" in (place / fold / "console.txt").read_text()
    assert "2 of 3 folds" in out and "NOTE: dual_level on synthetic" in out
    assert len(lines(place, "ended.txt")) == 2
    # The same command goes on with the fold that is missing
    out, _ = run(place, "dual_level.yaml", "--results", "kept.json")
    assert len(lines(place, "started.txt")) == 4
    kept = json.loads((place / "kept.json").read_text())
    assert len(kept["folds"]) == 3
    assert kept["ua"] == kept["runs"][0]["rules"]["validation"]["scores"]["ua"]


def test_a_device_runs_one_fold_at_a_time(place):
    devices = ["cuda:0", "cuda:1"]
    options = ["dual_level.yaml", "ds_lstm.yaml", "--devices", *devices]
    run(place, *options, "--results=kept.json", SECONDS_A_FOLD="0.5")
    kept = json.loads((place / "kept.json").read_text())
    assert len(kept["runs"]) == 2 and len(kept["comparisons"]) == 1
    ended = dict(lines(place, "ended.txt"))
    spans = {device: [] for device in devices}
    for folder, _, device, _, begin in lines(place, "started.txt"):
        spans[device].append((begin, ended[folder]))
    for some in spans.values():
        assert len(some) >= 2
        some.sort()
        for (_, end), (begin, _) in zip(some, some[1:], strict=False):
            assert begin >= end
    first = [some[0] for some in spans.values()]
    assert max(begin for begin, _ in first) < min(end for _, end in first)


def alive(pid):
    """Whether a process runs; one nobody waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1]
    except FileNotFoundError:
        return False
    return state.split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_its_children(place, number):
    process = start(place, "dual_level.yaml", "--jobs=2", SECONDS_A_FOLD="600")
    deadline = time.monotonic() + 120
    while len(lines(place, "children.txt")) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    pids = [row[1] for row in lines(place, "started.txt")]
    pids += [pid for (pid,) in lines(place, "children.txt")]
    assert len(pids) == 4 and all(map(alive, pids))
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_two_calls_do_not_train_the_same_fold(place):
    """The second call, while the first one's fold still runs."""
    first = start(place, "dual_level.yaml", SECONDS_A_FOLD="600")
    deadline = time.monotonic() + 120
    while not lines(place, "children.txt"):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    try:
        _, err = run(place, "dual_level.yaml", code=1)
        assert "fold0_seed1234: another process is training this fold" in err
        assert len(lines(place, "ended.txt")) == 2
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=60)
    run(place, "dual_level.yaml")
    assert len(lines(place, "ended.txt")) == 3


@pytest.mark.parametrize(
    "options, message",
    [
        (["dual_level.yaml", "--fold=1"], "--fold is set by this script"),
        (["no.yaml"], "no file no.yaml"),
        (
            [str(REPOSITORY / "hparams" / "features.yaml")],
            "features.yaml is not the YAML of a system",
        ),
        (
            ["dual_level.yaml", "--seed=1", "--seeds", "1", "2"],
            "give --seed or --seeds, not both",
        ),
        (["dual_level.yaml", "--jobs=0"], "--jobs must be at least 1, got 0"),
        (["dual_level.yaml", "--protocols=weekly"], "invalid choice: 'weekly'"),
        (
            ["dual_level.yaml", "ds_lstm.yaml", "--system=one"],
            "is the folder of two runs",
        ),
    ],
)
def test_bad_options_say_what_is_wrong(place, options, message):
    process = start(place, *options, "--dry_run")
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert message in err


def test_a_report_that_cannot_be_made_is_said_after_the_folds(place):
    options = ["--protocols", "session", "--baselines", "typo.yaml"]
    _, err = run(place, "dual_level.yaml", *options, code=1)
    assert "no report:" in err and "typo.yaml" in err
    assert "Traceback" not in err
    assert lines(place, "started.txt")
