"""The files of a report: JSON, Markdown and one self-contained HTML page."""

import json
import re
import shutil
from html.parser import HTMLParser

import miniature_runs as miniature
import pytest
from nightly import nightly

from speechbrain_dslstm.report import (
    RULES,
    build_report,
    gather_runs,
    read_baselines,
    write_json,
    write_report,
)
from speechbrain_dslstm.report.tables import FILTERS

CHROMIUM = next(
    filter(None, map(shutil.which, ["chromium", "google-chrome", "chrome"])),
    None,
)
OPEN = "document.querySelectorAll('details').forEach(one => one.open = true)"
FACTS = """(() => {
  const all = name => [...document.querySelectorAll(name)];
  return {
    page: document.documentElement.scrollWidth,
    cut: all(".scroll, figure")
      .filter(one => one.scrollWidth > one.clientWidth + 1).length,
    pictures: all("img").map(one => one.getBoundingClientRect().width),
  };
})()"""


class Addresses(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        names = {"src", "href", "action", "srcset", "data", "poster"}
        self.found += [value for name, value in attrs if name in names]


def test_page_needs_nothing_else(report, page, baselines):
    html = page.read_text()
    # Nothing that a browser would fetch
    parser = Addresses()
    parser.feed(html)
    assert len(parser.found) > 20
    assert not [a for a in parser.found if not a.startswith(("data:", "#"))]
    assert "http://" not in html and "https://" not in html
    assert "@import" not in html and "url(" not in html
    pictures = html.count('src="data:image/svg+xml;base64,')
    assert pictures == len(list(page.with_name("pictures").iterdir()))
    titles = re.findall(r"<li><a href=\"#(s\d+)\">(.*?)</a></li>", html)
    assert [title for _, title in titles] == [
        "emodb: new speakers",
        "emodb: flattered scores",
        "emodb: runs",
    ]
    for number, title in titles:
        assert f'<h2 id="{number}">{title}</h2>' in html
    for rule in RULES.values():
        assert rule in html
    for row in baselines:
        shown = f"{100 * row['ua']:.1f}</td>"
        assert (shown in html) or row["corpus"] != "emodb"


def test_markup_in_names_is_escaped(tmp_path):
    miniature.write(tmp_path / "runs", "dual_level")
    baseline = {"corpus": "emodb", "protocol": "session", "ua": 0.5}
    baseline |= {"normalization": "training", "source": "a|b"}
    report = build_report(
        gather_runs(tmp_path / "runs"),
        baselines=[{**baseline, "system": "<b>SVM</b>"}],
        resamples=200,
    )
    report["command"] = report["notes"] = "<i>"
    page = write_report(report, tmp_path / "report")
    html = page.read_text()
    assert "&lt;b&gt;SVM&lt;/b&gt;" in html
    assert "<b>" not in html and "<i>" not in html
    assert "a\\|b" in page.with_name("report.md").read_text()


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
    # 15 runs, as in results/, stay below 2 MB
    assert page.stat().st_size < 120_000 * len(report["runs"])


def first_table(text):
    """Text before the first table, and its rows without the head."""
    before, _, after = text.partition("| corpus | protocol | system |")
    lines = after.split("\n\n")[0].splitlines()[2:]
    return before, [line.strip("| ").split(" | ") for line in lines]


def test_opening(report, page):
    """Three sentences, and the honest scores in their order, the best first."""
    before, rows = first_table(page.with_name("report.md").read_text())
    paragraph = next(
        one for one in before.split("\n\n") if one.startswith("On emodb")
    )
    assert len(re.findall(r"[a-z%]\.(?: |$)", paragraph)) == 3
    scored = {
        run["system"]: run["rules"]["validation"]["scores"]["ua"]["mean"]
        for run in report["runs"]
        if run["complete"]
        and "validation" in run["rules"]
        and not run["rules"]["validation"]["warnings"]
    }
    best = max(scored, key=scored.get)
    shown = paragraph.replace("\N{NO-BREAK SPACE}", " ")
    assert f"{best}, the best of 3 systems, recognises" in shown
    assert f"a UA of {100 * scored[best]:.1f} ± " in shown
    scores = [float(row[3].split(" ")[0]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    systems = [row[2].split("<br>")[0] for row in rows]
    assert sorted(systems) == [
        *("ds_lstm", "dual_level", "mfcc_lstm"),
        "openSMILE IS09 + linear SVM",
        "openSMILE IS13 + linear SVM",
    ]
    assert [r[-1] for r in rows if r[2] == "mfcc_lstm"] == [
        "PARTIAL: 2 of 3 folds"
    ]


def test_flattered_scores_are_folded_under_their_name(report, page):
    for name in ("report.html", "report.md"):
        text = page.with_name(name).read_text()
        folds = dict(
            re.findall(
                r"<summary>(.*?)</summary>(.*?)</details>", text, re.DOTALL
            )
        )
        rest = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
        for run in report["runs"]:
            for rule, found in run["rules"].items():
                ua = f"{100 * found['scores']['ua']['mean']:.1f} ± "
                if not found["warnings"]:
                    assert ua in rest
                    continue
                assert ua not in rest
                if run["protocol"] in ("random", "paper"):
                    title = f"Protocol {run['protocol']}: "
                elif run["normalization"] == "speaker":
                    title = "Normalised per speaker"
                else:
                    title = "Best epoch on the test fold"
                assert rule in RULES
                [fold] = [v for k, v in folds.items() if k.startswith(title)]
                assert ua in fold


def test_nothing_honest(tmp_path):
    miniature.write(tmp_path / "runs", "dual_level", "random")
    report = build_report(gather_runs(tmp_path / "runs"), resamples=200)
    page = write_report(report, tmp_path / "report")
    text = page.with_name("report.md").read_text()
    assert "no system was scored on new speakers without a caveat." in text
    assert "| corpus | protocol | system |" not in text.split("<details>")[0]


@nightly
def test_json_of_a_large_report_stays_below_300_kb(tmp_path):
    """Eight systems and two chains on a corpus of RAVDESS' size."""
    entries = miniature.corpus(speakers=24, sentences=15)
    runs = tmp_path / "runs"
    for number in range(8):
        miniature.write(runs, f"system_{number}", entries=entries, epochs=15)
    for protocol in ("random", "paper"):
        miniature.write(runs, "system_0", protocol, entries=entries, epochs=15)
    path = tmp_path / "report.json"
    write_json(build_report(gather_runs(runs), "system_0", resamples=200), path)
    assert 50_000 < path.stat().st_size < 300_000


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
def test_page_in_a_browser(page):
    """Chromium: nothing is cut at common widths, and the console stays empty."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        for width in (400, 1200, 1920):
            tab = browser.new_page(viewport={"width": width, "height": 900})
            said = []
            tab.on("console", lambda message, said=said: said.append(message))
            tab.goto(page.as_uri())
            tab.evaluate(OPEN)
            facts = tab.evaluate(FACTS)
            assert not said and facts["page"] == width
            assert facts["pictures"] and min(facts["pictures"]) > 500
            # A phone scrolls its tables and pictures sideways
            assert width == 400 or facts["cut"] == 0
        browser.close()


def test_baselines_are_checked(tmp_path, baselines):
    path = tmp_path / "baselines.yaml"
    path.write_text("- {corpus: emodb, ua: 71.0}\n")
    with pytest.raises(ValueError, match="must have the keys corpus"):
        read_baselines(path)
    row = dict(baselines[0])
    path.write_text(json.dumps([row]))
    with pytest.raises(ValueError, match="ua is 0.71, expected per cent"):
        read_baselines(path)


def test_calibration_in_words():
    """A run without validation has nothing to fit a temperature on."""
    found = {"temperature": 1.0, "ece_before": 0.1, "ece_after": 0.1}
    run = {"headline": "validation", "calibration": [found]}
    found["fitted_on"] = "2 validation speakers"
    words = FILTERS["calibration"](run)
    assert words.startswith("temperature 1.00, fitted on 2 validation speakers")
    found["fitted_on"] = None
    words = FILTERS["calibration"](run)
    assert words == "no temperature: no clips to fit it on; test ECE 0.100"
