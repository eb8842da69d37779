"""Reports: from run folders to tables that say what they are worth."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import miniature_runs as miniature
import pytest

from speechbrain_dslstm.evaluation import METRICS, scores
from speechbrain_dslstm.report import (
    DIGITS,
    RULES,
    build_report,
    read_baselines,
    read_runs,
    write_json,
    write_report,
)
from speechbrain_dslstm.report.runs import caveats

REPOSITORY = Path(__file__).resolve().parents[3]

BASELINES = read_baselines(REPOSITORY / "results" / "baselines.yaml")
CHROMIUM = next(
    filter(None, map(shutil.which, ["chromium", "google-chrome", "chrome"])),
    None,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of all kinds: five systems, three protocols, two seeds, partial."""
    runs = tmp_path_factory.mktemp("made") / "runs"
    miniature.write(runs, "dual_level", skill=0.7)
    miniature.write(runs, "ds_lstm", skill=0.6)
    miniature.write(runs, "ds_lstm", skill=0.6, seed=5)
    miniature.write(runs, "mfcc_lstm", skill=0.4, folds=[0, 2])
    miniature.write(runs, "dual_level", "random", skill=0.9)
    miniature.write(runs, "dual_level", "paper", skill=0.9)
    miniature.write(runs, "dual_level", "session", "speaker", skill=0.8)
    return runs


@pytest.fixture(scope="module")
def report(folder):
    """The report of it."""
    return build_report(read_runs(folder), "dual_level", BASELINES, 500)


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    """The written report's HTML file."""
    return write_report(report, tmp_path_factory.mktemp("report"))


class Addresses(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        names = {"src", "href", "action", "srcset", "data", "poster"}
        self.found += [value for name, value in attrs if name in names]


def find(report, system, protocol="session", normalization="training"):
    """The entry of a run."""
    wanted = (system, protocol, normalization)
    (entry,) = (
        one
        for one in report["runs"]
        if (one["system"], one["protocol"], one["normalization"]) == wanted
    )
    return entry


def fold_results(folder, place):
    """results.json of the folds of a run."""
    return [
        json.loads(path.read_text())
        for path in sorted((folder / place).glob("*/results.json"))
    ]


def test_scores_are_those_of_the_folds(folder, report):
    entry = find(report, "dual_level")
    results = fold_results(folder, "dual_level/emodb/session/training")
    rules = entry["rules"]
    for name in METRICS:
        mean = sum(one[name] for one in results) / 3
        found = rules["validation"]["scores"][name]
        assert found["mean"] == pytest.approx(mean, abs=1e-5)
        assert found["n"] == 3 and found["std"] > 0
        assert found["pooled_low"] <= found["pooled"] <= found["pooled_high"]
        best = [one["test_best_epoch"][name]["value"] for one in results]
        found = rules["test"]["scores"][name]
        assert found["mean"] == pytest.approx(sum(best) / 3, abs=1e-5)
    confusion = sum(
        sum(map(sum, one["test"]["fused"]["confusion"])) for one in results
    )
    assert sum(map(sum, rules["validation"]["confusion"])) == confusion == 96
    assert set(rules["validation"]["speaker_ua"]) == {
        f"{speaker:02}" for speaker in range(6)
    }


def test_pooled_score_is_that_of_all_predictions(folder, report):
    truth, predicted = [], []
    place = folder / "dual_level/emodb/session/training"
    for path in place.glob("*/predictions.csv"):
        with open(path, newline="") as stream:
            for row in csv.DictReader(stream):
                truth.append(row["emotion"])
                predicted.append(row["predicted"])
    wanted = scores(truth, predicted, miniature.LABELS)
    found = find(report, "dual_level")["rules"]["validation"]
    for name in METRICS:
        pooled = found["scores"][name]["pooled"]
        assert pooled == pytest.approx(wanted[name], abs=1e-5)
    assert found["confusion"] == wanted["confusion"]


def test_answers_rebuild_the_scores(report):
    """The compact predictions of the JSON are enough to score again."""
    (key,) = report["utterances"]
    truth = [DIGITS.index(digit) for digit in key["truth"]]
    for entry in report["runs"]:
        for rule in entry["rules"]:
            for name in METRICS:
                label = rule if rule == "validation" else f"test {name}"
                found = []
                for seed in entry["rules"][rule]["seeds_pooled"]:
                    line = entry["answers"][str(seed)][label]
                    pairs = [
                        (t, DIGITS.index(digit))
                        for t, digit in zip(truth, line, strict=True)
                        if digit != "-"
                    ]
                    found.append(
                        scores(*zip(*pairs, strict=True), key["labels"])
                    )
                mean = sum(one[name] for one in found) / len(found)
                pooled = entry["rules"][rule]["scores"][name]["pooled"]
                assert pooled == pytest.approx(mean, abs=1e-5)


def test_folds_can_be_told_from_the_answers(report):
    entry = find(report, "dual_level")
    (key,) = report["utterances"]
    for fold in entry["folds"]:
        tested = {
            key["speakers"][key["speaker"][i]]
            for i, digit in enumerate(entry["answers"]["1234"]["fold"])
            if digit == DIGITS[fold["fold"]]
        }
        assert sorted(tested) == fold["speakers"]["test"]
        assert not tested & set(fold["speakers"]["train"])
        assert re.fullmatch("[0-9a-f]{12}", fold["split_hash"])
        assert fold["clips"]["test"] == 32


def test_the_paper_protocol_has_only_the_test_rule(folder, report):
    entry = find(report, "dual_level", "paper")
    assert list(entry["rules"]) == ["test"] == [entry["headline"]]
    results = fold_results(folder, "dual_level/emodb/paper/training")
    for name in METRICS:
        mean = sum(one[name] for one in results) / 3
        found = entry["rules"]["test"]["scores"][name]["mean"]
        assert found == pytest.approx(mean, abs=1e-5)


def test_partial_runs_are_called_partial(report, page):
    entry = find(report, "mfcc_lstm")
    assert not entry["complete"] and entry["status"] == "2 of 3 folds"
    assert any(
        "mfcc_lstm" in note and "2 of 3" in note for note in report["notes"]
    )
    (row,) = [c for c in report["comparisons"] if c["system"] == "mfcc_lstm"]
    assert row["missing"] == "not the same utterances (96 and 64)"
    assert "ua" not in row
    for text in (page.read_text(), page.with_name("report.md").read_text()):
        assert text.count("PARTIAL: 2 of 3 folds") >= 2


def test_seeds_count_together(report):
    entry = find(report, "ds_lstm")
    assert entry["status"] == "2 seeds, 3 of 3 folds each"
    assert entry["rules"]["validation"]["scores"]["ua"]["n"] == 6
    assert entry["rules"]["validation"]["seeds_pooled"] == [5, 1234]


def test_an_incomplete_seed_is_not_pooled(tmp_path):
    miniature.write(tmp_path, "ds_lstm")
    miniature.write(tmp_path, "ds_lstm", seed=5, folds=[1])
    report = build_report(read_runs(tmp_path), "ds_lstm", resamples=200)
    (entry,) = report["runs"]
    assert entry["status"] == "seed 5: 1 of 3 folds, seed 1234: 3 of 3 folds"
    assert entry["rules"]["validation"]["seeds_pooled"] == [1234]
    assert entry["rules"]["validation"]["scores"]["ua"]["n"] == 4
    assert not entry["complete"]


def test_comparison_with_the_reference(report):
    (row,) = [c for c in report["comparisons"] if c["system"] == "ds_lstm"]
    one, two = (
        find(report, system)["rules"]["validation"]["scores"]["ua"]["pooled"]
        for system in ("dual_level", "ds_lstm")
    )
    assert row["ua"]["value"] == pytest.approx(two - one, abs=1e-5)
    assert row["ua"]["low"] <= row["ua"]["value"] <= row["ua"]["high"]
    assert 0 < row["ua"]["p"] <= 1 and 0 < row["mcnemar"]["p"] <= 1


def test_chain_from_flattering_to_honest(report):
    (chain,) = [c for c in report["chains"] if c["system"] == "dual_level"]
    assert [row["key"] for row in chain["rows"]] == [
        "a0",
        "a",
        "b",
        "c'",
        "c",
        "d",
    ]
    pooled = {r["key"]: r["scores"] for r in chain["rows"]}
    steps = {(s["from"], s["to"]): s for s in chain["steps"]}
    assert list(steps) == [("a", "b"), ("b", "c"), ("c", "d"), ("c'", "c")]
    for (one, two), step in steps.items():
        for name in ("wa", "ua"):
            change = pooled[two][name]["pooled"] - pooled[one][name]["pooled"]
            assert step[name]["value"] == pytest.approx(change, abs=1e-5)
            assert step[name]["low"] <= step[name]["high"]
    honest = [r["key"] for r in chain["rows"] if not r["warnings"]]
    assert honest == ["c"]
    # Best test epochs of the same trainings can only be better, fold by fold
    for one, two in (("a", "b"), ("c'", "c")):
        for name in METRICS:
            assert pooled[one][name]["mean"] >= pooled[two][name]["mean"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results.json", "{}"),
        ("results.json", "[]"),
        ("results.json", "{"),
        ("predictions.csv", None),
        ("predictions.csv", ""),
        ("save/test.json", '{"a": {}}'),
        ("save/epochs.jsonl", '{"epoch": 1}\n'),
    ],
)
def test_damaged_fold_is_named(tmp_path, name, text):
    miniature.write(tmp_path, seed=1, folds=[0])
    (results,) = tmp_path.rglob("results.json")
    file = results.parent / name
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    with pytest.raises((ValueError, OSError), match=results.parent.name):
        read_runs(tmp_path)


def test_damaged_run_that_has_not_ended_is_named(tmp_path):
    miniature.write(tmp_path, seed=1, folds=[0])
    (results,) = tmp_path.rglob("results.json")
    results.unlink()
    (results.parent / "save" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged .*train the fold again"):
        read_runs(tmp_path)


def test_chain_of_partial_runs_says_what_is_missing(tmp_path):
    miniature.write(tmp_path, protocol="random")
    miniature.write(tmp_path, protocol="session", folds=[0])
    (chain,) = build_report(read_runs(tmp_path), resamples=200)["chains"]
    steps = {s["from"] + s["to"]: s for s in chain["steps"]}
    assert steps["bc"]["missing"] == "not the same utterances (96 and 32)"
    assert "ua" in steps["ab"] and "ua" in steps["c'c"]


def test_a_chain_is_of_one_normalisation(tmp_path):
    for protocol in ("random", "session"):
        miniature.write(tmp_path, protocol=protocol, normalization="none")
    miniature.write(tmp_path, normalization="training", skill=0.1)
    miniature.write(tmp_path, normalization="speaker")
    (chain,) = build_report(read_runs(tmp_path), resamples=200)["chains"]
    used = [row["normalization"] for row in chain["rows"]]
    assert used == ["none"] * 4 + ["speaker"]


@pytest.mark.parametrize("protocol", ["random", "paper"])
def test_leaky_numbers_say_so_in_every_output(report, page, protocol):
    entry = find(report, "dual_level", protocol)
    for found in entry["rules"].values():
        assert "same speakers in training and test" in found["warnings"]
    if protocol == "paper":
        assert any("test fold" in w for w in found["warnings"])
    lines = page.with_name("report.md").read_text().splitlines()
    rows = [
        one for one in lines if one.startswith(f"| dual_level | {protocol} |")
    ]
    assert rows and all(
        "same speakers in training and test" in row for row in rows
    )
    html = page.read_text()
    for row in re.findall("<tr>.*?</tr>", html):
        if f">{protocol}<" in row and ">dual_level<" in row:
            assert "same speakers in training and test" in row
    captions = re.findall("<figcaption>(.*?)</figcaption>", html)
    some = [one for one in captions if f", {protocol}" in one]
    assert len(some) == 3
    assert all("same speakers in training and test" in one for one in some)


def test_warnings():
    assert caveats("session", "validation", "training") == []
    assert "test fold" in caveats("session", "test", "training")[0]
    assert "unlabelled" in caveats("session", "validation", "speaker")[0]
    assert caveats("text", "validation", "training")
    with pytest.raises(
        ValueError, match="unknown 'sessions'; expected one of speaker"
    ):
        caveats("sessions", "test", "training")


def test_learning_curves_name_the_use_of_the_test_side(report):
    curves = find(report, "dual_level")["curves"]
    for name in ("train_loss", "valid_ua", "test_ua"):
        curve = curves[name]
        assert curve["epoch"] == list(range(1, 7))
        for low, mean, high in zip(
            curve["low"], curve["mean"], curve["high"], strict=True
        ):
            assert low <= mean <= high


def test_page_needs_nothing_else(report, page):
    html = page.read_text()
    # Nothing that a browser would fetch
    parser = Addresses()
    parser.feed(html)
    assert len(parser.found) > 20
    assert not [a for a in parser.found if not a.startswith(("data:", "#"))]
    assert "http://" not in html and "https://" not in html
    assert "@import" not in html and "url(" not in html
    pictures = html.count('src="data:image/png;base64,')
    assert pictures == len(list(page.with_name("pictures").iterdir()))
    titles = re.findall(r"<li><a href=\"#(s\d+)\">(.*?)</a></li>", html)
    assert len(titles) == 3 + len(report["runs"])
    for number, title in titles:
        assert re.search(f'<h[23] id="{number}">{re.escape(title)}</h', html)
    for rule in RULES.values():
        assert rule in html
    for row in BASELINES:
        shown = f"{100 * row['ua']:.1f}</td>"
        assert (shown in html) or row["corpus"] != "emodb"


def test_no_paths_of_the_machine(page, folder):
    for name in ("report.html", "report.md", "report.json"):
        text = page.with_name(name).read_text()
        assert str(folder) not in text and "/somewhere" not in text
        assert "/corpora" not in text
        assert "--data_folder=emodb" in text


def test_json_is_small_and_complete(report, page):
    path = page.with_name("report.json")
    assert json.loads(path.read_text()) == report
    assert path.stat().st_size < 100_000


def test_markdown_tables_line_up(page):
    width = 0
    for line in page.with_name("report.md").read_text().splitlines():
        if line.startswith("|"):
            cells = line.rstrip().count(" |")
            width = width or cells
            assert cells == width, line
        else:
            width = 0
    pictures = re.findall(
        r"\]\((.*?)\)", page.with_name("report.md").read_text()
    )
    assert pictures
    assert all((page.parent / name).exists() for name in pictures)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_page_in_a_browser(page, tmp_path):
    """Headless Chromium: the page lays out, and the console stays empty."""
    shot = tmp_path / "page.png"
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={shot}",
            "--window-size=1250,3000",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    from matplotlib.image import imread

    picture = imread(shot)
    assert picture.shape[:2] == (3000, 1250)
    # Ink down to the lower end of the window
    assert picture[2000:, :, :3].min() < 0.5


def test_baselines_are_checked(tmp_path):
    path = tmp_path / "baselines.yaml"
    path.write_text("- {corpus: emodb, ua: 71.0}\n")
    with pytest.raises(ValueError, match="must have the keys corpus"):
        read_baselines(path)
    row = dict(BASELINES[0])
    path.write_text(json.dumps([row]))
    with pytest.raises(ValueError, match="ua is 0.71, expected per cent"):
        read_baselines(path)


def test_different_splits_are_noted(tmp_path):
    miniature.write(tmp_path, "dual_level")
    place = miniature.write(tmp_path, "ds_lstm")
    path = place / "fold1_seed1234" / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps(results | {"split_hash": "0123456789ab"}))
    notes = build_report(read_runs(tmp_path), resamples=200)["notes"]
    assert len(notes) == 1 and "fold 1: runs have different splits" in notes[0]


def test_without_the_reference_nothing_is_compared(tmp_path):
    miniature.write(tmp_path, "ds_lstm")
    report = build_report(read_runs(tmp_path), resamples=200)
    assert report["comparisons"] == []
    assert "there is no run of dual_level" in report["notes"][0]


def test_a_run_without_test_epochs_has_no_test_rule(tmp_path):
    place = miniature.write(tmp_path, "ds_lstm")
    for path in place.glob("*/save/test_epochs.jsonl"):
        path.unlink()
    (entry,) = build_report(read_runs(tmp_path), resamples=200)["runs"]
    assert list(entry["rules"]) == ["validation"]
    place = miniature.write(tmp_path, "ds_lstm", "paper")
    (place / "fold0_seed1234/save/test_epochs.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="train this fold again"):
        read_runs(place / "fold0_seed1234")


def break_file(name, change):
    """A function that changes a fold's JSON file."""

    def apply(fold):
        path = fold / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return apply


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            break_file("results.json", lambda r: r | {"wa": 0.123}),
            "WA by the rule 'validation' is 0.1230, but the predictions give",
        ),
        (
            break_file("results.json", lambda r: r | {"labels": ["a", "b"]}),
            r"labels is \['a', 'b'\], in other folds",
        ),
        (
            break_file("save/test.json", lambda r: dict(list(r.items())[1:])),
            "32 predictions, not of the 31 clips",
        ),
        (
            break_file("results.json", lambda r: r | {"fold": 0}),
            "hold the same fold",
        ),
        (
            lambda fold: (fold / "save/test_epochs.jsonl").write_text("{\n"),
            "test_epochs.jsonl: Expecting",
        ),
    ],
)
def test_spoilt_folders_are_refused(tmp_path, spoil, message):
    place = miniature.write(tmp_path)
    spoil(place / "fold1_seed1234")
    with pytest.raises(ValueError, match=message):
        read_runs(tmp_path)


def test_folds_that_test_the_same_clip_are_refused(tmp_path):
    place = miniature.write(tmp_path)
    one, two = (place / f"fold{k}_seed1234" for k in (0, 1))
    for name in ("save/test.json", "predictions.csv", "save/test_epochs.jsonl"):
        shutil.copy(one / name, two / name)
    results = json.loads((one / "results.json").read_text())
    (two / "results.json").write_text(json.dumps(results | {"fold": 1}))
    with pytest.raises(ValueError, match="is tested in folds 0 and 1"):
        read_runs(tmp_path)


def test_unfinished_folds_are_counted(tmp_path):
    place = miniature.write(tmp_path)
    (place / "fold2_seed1234" / "results.json").unlink()
    (run,) = read_runs(tmp_path)
    assert run["unfinished"] == 1
    assert [fold["fold"] for fold in run["folds"]] == [0, 1]


def test_json_of_a_large_report_stays_below_300_kb(tmp_path):
    """Eight systems and two chains on a corpus of RAVDESS' size."""
    entries = miniature.corpus(speakers=24, sentences=15)
    runs = tmp_path / "runs"
    for number in range(8):
        miniature.write(runs, f"system_{number}", entries=entries, epochs=15)
    for protocol in ("random", "paper"):
        miniature.write(runs, "system_0", protocol, entries=entries, epochs=15)
    path = tmp_path / "report.json"
    write_json(build_report(read_runs(runs), "system_0", resamples=200), path)
    assert 50_000 < path.stat().st_size < 300_000


def test_runs_without_normalisation_are_compared(tmp_path):
    """`paper` normalises nothing: its own base, but no speaker's audio."""
    miniature.write(tmp_path, "dual_level")
    miniature.write(tmp_path, "paper", "session", "none")
    miniature.write(tmp_path, "paper", "session", "speaker")
    report = build_report(read_runs(tmp_path), resamples=200)
    (row,) = report["comparisons"]
    assert row["system"] == "paper" and row["normalization"] == "none"
    (chain,) = [c for c in report["chains"] if c["system"] == "paper"]
    assert {r["key"]: r["normalization"] for r in chain["rows"]} == {
        "c'": "none",
        "c": "none",
        "d": "speaker",
    }
