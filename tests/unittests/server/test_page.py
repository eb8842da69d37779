"""The page in a real Chromium: files, microphone, errors, narrow, keyboard."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile
from served import running

from speechbrain_dslstm.server import Limits

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed"
)

HELD = []  # requests that a test keeps back


@pytest.fixture(scope="module")
def spoken(recordings, tmp_path_factory):
    """What the fake microphone records, as a WAV file of 48 kHz."""
    path = tmp_path_factory.mktemp("microphone") / "spoken.wav"
    samples = np.repeat(soundfile.read(recordings[0])[0], 3)
    soundfile.write(path, np.tile(samples, 4), 48000)
    return path


@pytest.fixture(scope="module")
def browser(spoken):
    """Chromium with a microphone that plays a file."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--use-fake-ui-for-media-stream",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={spoken}",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(classifier):
    """Address of a server."""
    with running(classifier, Limits(megabytes=2, seconds=30)) as client:
        yield str(client.base_url)


@pytest.fixture
def page(browser, address):
    """Open the page; nothing may be written to the console."""
    context = browser.new_context(
        accept_downloads=True, permissions=["microphone"]
    )
    page = context.new_page()
    lines = []
    page.on("console", lambda message: lines.append(message.text))
    page.on("pageerror", lambda error: lines.append(str(error)))
    page.goto(address)
    yield page
    context.close()
    # A refused file is a line of the browser's own
    assert not [line for line in lines if "Failed to load" not in line]


def labels(page):
    """The classes that the bars show, best first."""
    return page.locator(".bar .name").all_inner_texts()


def test_choose_a_file(page, recordings, classifier):
    page.set_input_files("#file", recordings[0])
    page.wait_for_selector("#answer:visible")
    expected = classifier.classify_file(recordings[0])[3][0]
    assert page.inner_text("#label") == expected == labels(page)[0]
    assert recordings[0].name in page.inner_text("#where")
    # Something is drawn on every canvas
    for name in ("posteriors", "mel_x", "mel_y", "gates"):
        colors = page.evaluate(
            f"""() => {{
              const c = document.getElementById("{name}");
              const d = c.getContext("2d").getImageData(0, 0, c.width, c.height);
              return new Set(new Uint32Array(d.data.buffer)).size;
            }}"""
        )
        assert colors > 2, name


def test_drop_a_file(page, recordings):
    data = list(recordings[0].read_bytes())
    page.evaluate(
        """(data) => {
          const moved = new DataTransfer();
          moved.items.add(new File([new Uint8Array(data)], "dropped.ogg"));
          const drop = document.getElementById("drop");
          for (const kind of ["dragover", "drop"]) drop.dispatchEvent(
            new DragEvent(kind, { dataTransfer: moved, bubbles: true }));
        }""",
        data,
    )
    page.wait_for_selector("#answer:visible")
    assert "dropped.ogg" in page.inner_text("#where")


def test_microphone(page):
    page.click("#record")
    expect(page.locator("#state")).to_have_text(re.compile(r"[2-9]\.\d s"))
    page.click("#record")
    page.wait_for_selector("#answer:visible")
    assert "microphone.wav" in page.inner_text("#where")
    assert labels(page) and page.inner_text("#error") == ""


def test_windows_and_downloads(page, recordings, tmp_path):
    samples = soundfile.read(recordings[0])[0]
    path = tmp_path / 'long "a", b.wav'
    soundfile.write(path, np.tile(samples, 12)[: 16000 * 20], 16000)
    page.set_input_files("#file", path)
    page.wait_for_selector("#parts:visible")
    assert page.locator("#rows tr").count() == 4
    found = {}
    for kind in ("json", "csv"):
        with page.expect_download() as started:
            page.click(f"#{kind}")
        found[kind] = started.value.path().read_text("utf-8")
    answer = json.loads(found["json"])
    assert len(answer["segments"]) == 4
    lines = found["csv"].splitlines()
    assert len(lines) == 6 and lines[0].startswith("file,start,end,label,")


def test_errors(page, recordings, tmp_path):
    page.set_input_files("#file", recordings[0])
    page.wait_for_selector("#answer:visible")
    bad = tmp_path / "notes.txt"
    bad.write_text("no audio " * 50)
    page.set_input_files("#file", bad)
    expect(page.locator("#error")).to_contain_text("notes.txt")
    assert not page.is_visible("#answer") and not page.is_visible("#detail")
    big = tmp_path / "big.wav"
    big.write_bytes(bytes(2_500_000))
    page.set_input_files("#file", big)
    expect(page.locator("#error")).to_contain_text("2 MB")


def test_phone(page, recordings):
    page.set_viewport_size({"width": 360, "height": 700})
    page.set_input_files("#file", recordings[0])
    page.wait_for_selector("#detail:visible")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_keyboard(page, recordings):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(recordings[0])
    page.wait_for_selector("#answer:visible")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "record"


def test_token(browser, classifier, recordings):
    with running(classifier, Limits(token="secret")) as client:
        page = browser.new_page()
        page.goto(str(client.base_url))
        page.set_input_files("#file", recordings[0])
        page.wait_for_selector("#ask:visible")
        assert page.evaluate("document.activeElement.id") == "token"
        page.keyboard.type("wrong\n")
        expect(page.locator("#error")).to_contain_text("token")
        page.fill("#token", "secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#answer:visible")
        assert recordings[0].name in page.inner_text("#where")
        assert not page.is_visible("#ask")
        page.close()


def test_a_recording_ends_before_it_is_too_long(browser, classifier):
    with running(classifier, Limits(seconds=2)) as client:
        context = browser.new_context(permissions=["microphone"])
        page = context.new_page()
        page.goto(str(client.base_url), wait_until="networkidle")
        page.click("#record")
        page.wait_for_selector("#answer:visible")
        assert page.inner_text("#where") == "microphone.wav, 2.0 s"
        assert page.inner_text("#record") == "Record"
        context.close()


def test_the_newest_file_is_shown(page, recordings):
    """Though an older one is answered later."""
    page.route("**/classify*", lambda route: HELD.append(route), times=1)
    page.set_input_files("#file", recordings[0])
    page.wait_for_function("sent !== null")
    page.set_input_files("#file", recordings[1])
    expect(page.locator("#where")).to_contain_text(recordings[1].name)
    with page.expect_response("**/classify*"):
        HELD.pop().continue_()
    page.wait_for_timeout(100)
    assert recordings[1].name in page.inner_text("#where")
