"""The command that prints leaks and writes folds."""

import json
from pathlib import Path

import miniature_runs as miniature
import pytest
from click.testing import CliRunner
from nightly import at_night

from speechbrain_dslstm.corpora.__main__ import command as write_manifest
from speechbrain_dslstm.splits import PROTOCOLS, write_folds
from speechbrain_dslstm.splits.__main__ import command
from speechbrain_dslstm.splits.leaks import format_leak_summary, leak_summary

RESULTS = Path(__file__).resolve().parents[3] / "results"


@pytest.fixture
def manifests(tmp_path):
    """A manifest in two parts, and its entries."""
    entries = miniature.corpus()
    entries["00_0_a"]["audio_hash"] = entries["01_1_n"]["audio_hash"]
    paths = [tmp_path / f"{n}.json" for n in range(2)]
    for n, path in enumerate(paths):
        some = dict(list(entries.items())[n::2])
        path.write_text(json.dumps(some), encoding="utf-8")
    return [str(path) for path in paths], entries


def run(*arguments, code=0, command=command):
    """Output of a command."""
    found = CliRunner().invoke(command, list(map(str, arguments)))
    assert found.exit_code == code, found.output
    return found.output


def test_leaks(manifests):
    paths, entries = manifests
    out = run(*paths, "--seed=7", "--n_folds=3", "--valid_speakers=1")
    table = format_leak_summary(leak_summary(entries, None, 7, 3, 1))
    same = "identical recordings: 00_0_a, 01_1_n"
    assert out == f"{table}\n\n{same}\n"
    out = run(*paths, "--protocol=text", "--protocol=session")
    rows = [line.split(" | ")[0] for line in out.splitlines()[2:4]]
    assert rows == ["| `text`", "| `session`"]


@pytest.mark.parametrize("protocols", [["session", "random"], []])
def test_folds(manifests, tmp_path, protocols):
    paths, entries = manifests
    chosen = [f"--protocol={name}" for name in protocols]
    run(*paths, *chosen, "--folds", tmp_path / "found.csv")
    write_folds(tmp_path / "made.csv", entries, protocols or PROTOCOLS, 1234)
    found, made = (tmp_path / f"{n}.csv" for n in ("found", "made"))
    assert found.read_bytes() == made.read_bytes()


def test_errors_are_one_line(manifests, tmp_path):
    paths, _ = manifests
    bad = tmp_path / "bad.json"
    for text, message in (
        ("[1]", "Error: "),
        ('{"a": {}}', "bad.json is no manifest: a: no emotion"),
        ('{"a": 1}', "Error: "),
        ("{", "Error: Expecting"),
    ):
        bad.write_text(text)
        assert message in run(bad, code=1)
    first = json.loads(Path(paths[0]).read_text())
    key = next(iter(first))
    bad.write_text(json.dumps({key: first[key] | {"emotion": "other"}}))
    assert f"{key} differs" in run(paths[0], bad, code=1)
    assert "nowhere.json" in run(tmp_path / "nowhere.json", code=1)
    out = run(*paths, "--n_folds=1", code=1)
    assert out.startswith("Error: n_folds is 1, expected 2")


@pytest.mark.parametrize("name", ["emodb", "ravdess", at_night("nemo")])
def test_published_folds_are_written_again(name, speech_data, tmp_path):
    """The two commands of docs/results.md give results/NAME_folds.csv, byte by byte."""
    if not (speech_data / name).is_dir():
        pytest.skip(f"{name} is not here")
    manifest, table = tmp_path / "manifest.json", tmp_path / "folds.csv"
    run(name, speech_data / name, manifest, command=write_manifest)
    published = RESULTS / f"{name}_folds.csv"
    head = published.read_text(encoding="utf-8").splitlines()[0]
    names = dict.fromkeys(part.split()[0] for part in head.split(",")[3:])
    options = [f"--protocol={protocol}" for protocol in names]
    run(manifest, *options, "--folds", table)
    assert table.read_bytes() == published.read_bytes()
