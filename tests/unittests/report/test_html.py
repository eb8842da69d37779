"""The files of a report: JSON, Markdown and one self-contained HTML page."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import miniature_runs as miniature
import pytest

from speechbrain_dslstm.report import (
    RULES,
    build_report,
    gather_runs,
    read_baselines,
    write_json,
    write_report,
)

CHROMIUM = next(
    filter(None, map(shutil.which, ["chromium", "google-chrome", "chrome"])),
    None,
)


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
    pictures = html.count('src="data:image/png;base64,')
    assert pictures == len(list(page.with_name("pictures").iterdir()))
    titles = re.findall(r"<li><a href=\"#(s\d+)\">(.*?)</a></li>", html)
    assert len(titles) == 3 + len(report["runs"])
    for number, title in titles:
        assert re.search(f'<h[23] id="{number}">{re.escape(title)}</h', html)
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


def test_baselines_are_checked(tmp_path, baselines):
    path = tmp_path / "baselines.yaml"
    path.write_text("- {corpus: emodb, ua: 71.0}\n")
    with pytest.raises(ValueError, match="must have the keys corpus"):
        read_baselines(path)
    row = dict(baselines[0])
    path.write_text(json.dumps([row]))
    with pytest.raises(ValueError, match="ua is 0.71, expected per cent"):
        read_baselines(path)
