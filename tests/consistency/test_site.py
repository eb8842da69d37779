"""The documentation site is built without a warning and leads everywhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site as docs/conf.py says."""
    folder = tmp_path_factory.mktemp("site")
    command = "sphinx -q -W --keep-going -E docs".split()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            *command,
            folder / "html",
            "-d",
            folder / "tree",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_every_page_is_in_the_menu(site):
    menu = (site / "index.html").read_text("utf-8")
    docs = REPOSITORY / "docs"
    for page in (*docs.glob("*.md"), *docs.glob("*.ipynb")):
        assert f'href="{page.stem}.html"' in menu or page.stem == "index"


def test_no_link_leads_nowhere(site):
    for page in site.rglob("*.html"):
        for link in re.findall(r'href="([^"]+)"', page.read_text("utf-8")):
            path = re.split("[?#]", link)[0]
            if path and not re.match(r"\w+:", path):
                assert (page.parent / path).exists(), f"{page.name}: {link}"


def test_exported_classes_are_documented(site):
    page = (site / "generated" / "api" / "ds_lstm.html").read_text("utf-8")
    assert 'id="speechbrain_dslstm.ds_lstm.DSLSTM"' in page
