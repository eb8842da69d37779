"""The server over real HTTP: answers and limits."""

import io
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import soundfile
from served import running

from speechbrain_dslstm.server import Limits


@pytest.fixture(scope="module")
def client(classifier):
    """A server with small limits."""
    with running(classifier, Limits(megabytes=1, seconds=15)) as client:
        yield client


def encode(samples, rate=16000, **options):
    """Write samples as the bytes of a file."""
    data = io.BytesIO()
    options = {"format": "WAV", "subtype": "PCM_16", **options}
    soundfile.write(data, samples, rate, **options)
    return data.getvalue()


def send(client, data, name="a.wav", **options):
    """Post a file."""
    return client.post("/classify", files={"file": (name, data)}, **options)


def test_the_answer_is_that_of_the_classifier(client, classifier, recordings):
    path = recordings[3]
    found = send(client, path.read_bytes(), path.name)
    assert found.status_code == 200
    answer = found.json()
    out_prob, _, _, label = classifier.classify_file(path)
    assert (answer["file"], answer["label"]) == (path.name, label[0])
    expected = out_prob[0].exp().tolist()
    assert list(answer["posteriors"].values()) == pytest.approx(
        expected, abs=1e-5
    )
    assert answer["detail"] is None and answer["reason"] is None
    assert [s["label"] for s in answer["segments"]] == label


def test_detail(client, recordings):
    path = recordings[3]
    found = send(client, path.read_bytes(), params={"detail": True}).json()
    detail = found["detail"]
    assert detail["posteriors"][-1] == pytest.approx(
        list(found["posteriors"].values()), abs=1e-4
    )
    assert len(detail["times"]) == len(detail["gate_x"])
    for name, bands in (("mel_x", 128), ("mel_y", 256)):
        picture = detail[name]
        size = picture["frames"] * picture["bands"]
        assert picture["bands"] == bands
        assert len(picture["data"]) == -(-size // 3) * 4


def test_silence_has_a_reason(client):
    found = send(client, encode(np.zeros(32000)))
    assert found.status_code == 200
    assert found.json()["label"] is None
    assert found.json()["reason"] == "silence"


def damaged(samples):
    """A float WAV with a NaN."""
    samples = samples.copy()
    samples[100] = np.nan
    return encode(samples, subtype="FLOAT")


@pytest.mark.parametrize(
    ("make", "status", "words"),
    [
        (lambda s: b"no audio at all" * 9, 415, "a.wav"),
        (lambda s: b"", 415, "a.wav"),
        (damaged, 422, "NaN"),
        (lambda s: encode(s)[:9000], 422, "a.wav"),
        (lambda s: encode(np.tile(s, 9)[: 16000 * 20]), 413, "15"),
        (lambda s: bytes(1_200_000), 413, "1 MB"),
    ],
    ids=["text", "empty", "NaN", "truncated", "too long", "too large"],
)
def test_bad_files(client, recordings, make, status, words):
    samples = soundfile.read(recordings[0])[0]
    found = send(client, make(samples))
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert words in error and "/tmp" not in error
    assert send(client, encode(samples)).status_code == 200


def test_a_body_without_a_length_is_counted(client):
    def pieces():
        for _ in range(40):
            yield bytes(100_000)

    head = {"Content-Type": "multipart/form-data; boundary=x"}
    start = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'

    def body():
        yield start
        yield from pieces()

    try:
        found = client.post("/classify", content=body(), headers=head)
        assert found.status_code == 413
    except httpx.WriteError:
        # The server has answered and closed before everything was sent
        pass
    assert client.get("/health").status_code == 200


def test_no_file(client):
    found = client.post("/classify", data={"other": "1"})
    assert found.status_code == 422 and "file" in found.json()["error"]
    assert client.get("/classify").status_code in (404, 405)


@pytest.mark.parametrize(
    "name", ["../../x.wav", "ä ö.wav", "a" * 300, "<b>.wav"]
)
def test_names_of_files(client, recordings, name):
    found = send(client, recordings[0].read_bytes(), name)
    assert found.status_code == 200
    assert "/" not in found.json()["file"] and "<" not in found.json()["file"]


def test_token(classifier, recordings):
    data = recordings[0].read_bytes()
    with running(classifier, Limits(token="secret")) as client:
        assert client.get("/").status_code == 200
        assert client.get("/health").status_code == 200
        assert client.get("/metrics").status_code == 401
        for given in ({}, {"Authorization": "Bearer other"}):
            found = send(client, data, headers=given)
            assert found.status_code == 401
            assert found.headers["www-authenticate"] == "Bearer"
        head = {"Authorization": "Bearer secret"}
        assert send(client, data, headers=head).status_code == 200


class Slow:
    """A classifier whose windows wait for an event."""

    def __init__(self, classifier, event):
        self.classifier, self.event = classifier, event

    def __getattr__(self, name):
        return getattr(self.classifier, name)

    def classify_long(self, *arguments, **options):
        """Wait, then classify."""
        assert self.event.wait(30)
        return self.classifier.classify_long(*arguments, **options)


def test_a_full_queue_and_a_timeout(classifier, recordings):
    data, event = recordings[0].read_bytes(), threading.Event()
    limits = Limits(waiting=1, timeout=2)
    slow = Slow(classifier, event)
    with running(slow, limits) as client, ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(send, client, data) for _ in range(3)]
        statuses = sorted(job.result().status_code for job in jobs)
        assert statuses == [429, 503, 503]
        busy = next(j.result() for j in jobs if j.result().status_code == 429)
        assert int(busy.headers["retry-after"]) >= 1
        event.set()
        time.sleep(0.5)
        assert send(client, data).status_code == 200


def test_a_slow_request_ends(classifier):
    with running(classifier, Limits(timeout=0.5)) as client:
        where = client.base_url.host, client.base_url.port
        with socket.create_connection(where, timeout=10) as slow:
            slow.sendall(
                b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x"
            )
            assert b" 408 " in slow.recv(1000)


def test_page_and_description(client):
    page = client.get("/")
    assert "Emotion of speech" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("page.js", "page.css", "recorder.js", "icon.svg"):
        assert client.get(f"/{name}").status_code == 200
    assert client.get("/../app.py").status_code == 404
    described = client.get("/openapi.json").json()
    answers = described["paths"]["/classify"]["post"]["responses"]
    assert {"200", "413", "415", "422", "429"} <= set(answers)
    assert "http" not in page.text
