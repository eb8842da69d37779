"""The registry of recipes, tests/recipes/*.csv, by SpeechBrain's rules.

SpeechBrain lists every hyperparameter file with the script that reads it and
the flags of a short run; its checks want the files to be there, the YAMLs to
load, and the runs to leave the files and scores that the row promises. These
are the same rules, so that its own checks find nothing here.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hyperpyyaml import load_hyperpyyaml
from nightly import nightly
from ruamel.yaml import YAML
from speechbrain.utils.run_opts import RunOptions

REPOSITORY = Path(__file__).resolve().parents[2]
FIELDS = (
    "Task,Dataset,Script_file,Hparam_file,Data_prep_file,Readme_file,"
    "Result_url,HF_repo,test_debug_flags,test_debug_checks,performance"
).split(",")
RUN_OPTIONS = set(RunOptions().as_dict())
INCLUDED = {"recipe.yaml", "features.yaml"}
# Scripts without hyperparameters of their own
NO_RECIPE = {
    "recipes/emotion_recognition/cross_validate.py",
    "recipes/emotion_recognition/report.py",
}


def read_rows(path):
    """Read the rows of a registry."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        rows = list(reader)
    assert reader.fieldnames == FIELDS, f"{path} has other columns"
    return rows


ROWS = [
    row
    for path in sorted(REPOSITORY.glob("tests/recipes/*.csv"))
    for row in read_rows(path)
]
NAMES = [Path(row["Hparam_file"]).stem for row in ROWS]
BY_DAY = ("encoder_ds_lstm",)
each_row = pytest.mark.parametrize("row", ROWS, ids=NAMES)


def test_every_yaml_and_script_is_listed():
    there = {
        path.relative_to(REPOSITORY).as_posix()
        for path in REPOSITORY.glob("hparams/*.yaml")
        if path.name not in INCLUDED
    }
    assert sorted(row["Hparam_file"] for row in ROWS) == sorted(there)
    scripts = {
        path.relative_to(REPOSITORY).as_posix()
        for path in REPOSITORY.glob("recipes/**/*.py")
    }
    assert {row["Script_file"] for row in ROWS} == scripts - NO_RECIPE


@each_row
def test_files_are_there(row):
    for field in ("Script_file", "Hparam_file", "Readme_file"):
        assert row[field], f"no {field}"
    for field in FIELDS[2:6]:
        for name in row[field].split():
            assert (REPOSITORY / name).is_file(), f"{field}: no {name}"


@each_row
def test_readme_names_its_links(row):
    readme = (REPOSITORY / row["Readme_file"]).read_text("utf-8")
    for field in ("Result_url", "HF_repo"):
        for link in row[field].split():
            assert link in readme, f"{row['Readme_file']} lacks {link}"


@each_row
def test_flags_are_keys_or_run_options(row):
    flags = re.findall(r"--(\w+)", row["test_debug_flags"])
    assert flags, "a row without flags is never run"
    known = set(RUN_OPTIONS)
    for name in (row["Hparam_file"], "hparams/recipe.yaml"):
        known |= set(YAML().load((REPOSITORY / name).read_text("utf-8")))
    assert not set(flags) - known


@each_row
def test_checks_can_be_read(row):
    files, *_ = re.findall(r"file_exists=\[(.*?)\]", row["test_debug_checks"])
    assert all(name and " " not in name for name in files.split(","))
    # Without it, a row passes whatever the network answers
    found = re.findall(
        r"performance_check=\[(\S+), ([\w ]+), ([<>=]=?[\d.]+), epoch: -?\d+\]",
        row["test_debug_checks"],
    )
    assert len(found) == 1 and found[0][0] in files.split(",")


@each_row
def test_performance_is_that_of_the_results_page(row):
    """The number stands in the first table of the page, beside its system."""
    page = (REPOSITORY / "docs" / "results.md").read_text("utf-8")
    name = Path(row["Hparam_file"]).stem
    found = re.search(rf"^\| `{name}` \| ([\d.]+) ±", page, re.M)
    expected = f"EMO-DB UA={found[1]}% " if found else ""
    assert row["performance"].startswith(expected)
    assert bool(row["performance"]) == bool(found)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The repository with links, so that what the checks write is removed.

    With an environment of its own, in which this very package is installed.
    """
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("hparams", "recipes", "speechbrain_dslstm"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "tests").mkdir()
    (folder / "tests" / "recipes").symlink_to(REPOSITORY / "tests" / "recipes")
    command = [sys.executable, "-m", "venv", "--without-pip", folder / "venv"]
    subprocess.run(command, check=True)
    library = next((folder / "venv").glob("lib/python*/site-packages"))
    places = [str(REPOSITORY), sysconfig.get_path("purelib")]
    places += [sysconfig.get_path("platlib")]
    (library / "package.pth").write_text("\n".join(places) + "\n")
    return folder


def environment(folder, script):
    """Environment of a run; SpeechBrain sets PYTHONPATH to the script's folder."""
    return {
        **os.environ,
        "PYTHONPATH": str(folder / Path(script).parent),
        "PATH": f"{folder / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }


def set_up(folder, row):
    """Run the set-up script that SpeechBrain would run before the row, if any."""
    script = Path(row["Script_file"]).with_suffix("").as_posix()
    # SpeechBrain drops the first letter of the path of the YAML
    name = row["Hparam_file"][1:-5].replace("/", "_")
    path = folder / "tests/recipes/setup" / script.replace("/", "_") / name
    if not path.exists():
        return
    # Several rows need the same: the last line of their scripts
    needed = path.read_text("utf-8").splitlines()[-1]
    done = folder / f"{re.sub(r'[^a-z]+', '-', needed)}.done"
    if not done.exists():
        subprocess.run(
            [str(path.relative_to(folder))],
            cwd=folder,
            env=environment(folder, row["Script_file"]),
            check=True,
        )
        done.touch()


@each_row
def test_yaml_loads(row, workplace, monkeypatch):
    """The YAML loads in the script's folder, with folders that do not exist."""
    set_up(workplace, row)
    overrides = {"data_folder": "nowhere", "output_folder": "elsewhere"}
    text = (REPOSITORY / row["Hparam_file"]).read_text("utf-8")
    for key, hub in (
        ("ssl_hub", "tiny_encoder"),
        ("encoder_source", "tiny_whisper"),
    ):
        if f"\n{key}:" in text:
            overrides[key] = str(workplace / "tests/tmp" / hub)
    monkeypatch.chdir((workplace / row["Script_file"]).parent)
    with open(REPOSITORY / row["Hparam_file"], encoding="utf-8") as file:
        assert load_hyperpyyaml(file, overrides)["data_folder"] == "nowhere"


def extract(line, name):
    """Read the value of a score from a line of the training log."""
    value = re.search(rf"{re.escape(name)}\s*:\s*([-+]?\d*\.\d+\S*)", line)
    assert value, f"no {name} in: {line}"
    return float(value[1].rstrip(","))


@pytest.mark.parametrize(
    "row",
    # By day one; integration/test_recipe.py trains others
    [
        pytest.param(row, id=name, marks=[] if name in BY_DAY else [nightly])
        for row, name in zip(ROWS, NAMES, strict=True)
    ],
)
def test_row_runs(row, workplace):
    """Run the row as SpeechBrain does, through a shell."""
    set_up(workplace, row)
    output = Path("tests/tmp") / Path(row["Hparam_file"]).stem
    shutil.rmtree(workplace / output, ignore_errors=True)
    done = subprocess.run(
        f"python {row['Script_file']} {row['Hparam_file']} "
        f"{row['test_debug_flags']} --device=cpu --output_folder={output}",
        shell=True,
        cwd=workplace,
        env=environment(workplace, row["Script_file"]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    checks = row["test_debug_checks"]
    for name in re.search(r"file_exists=\[(.*?)\]", checks)[1].split(","):
        assert (workplace / output / name).exists(), f"no {name}"
    inside = re.search(r"performance_check=\[(.*?)\]", checks)[1]
    name, score, threshold, epoch = (s.strip() for s in inside.split(","))
    lines = (workplace / output / name).read_text().splitlines()
    line = next(line for line in lines if epoch in line)
    value = extract(line, score)
    sign, limit = re.fullmatch(r"([<>=]+)(.*)", threshold).groups()
    assert {
        "<=": value <= float(limit),
        ">=": value >= float(limit),
        "<": value < float(limit),
        ">": value > float(limit),
    }[sign], line
