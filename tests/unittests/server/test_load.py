"""A real server process under load: answers, statuses, memory, SIGTERM.

A fifth of the requests is bad, 16 are sent at a time, and the queue holds
fewer, so that some are refused with 429 and come again.
"""

import io
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
import pytest
import soundfile
from nightly import NIGHT, at_night
from served import started

from speechbrain_dslstm.inference import load_safe

AT_ONCE, THREADS, WAITING = 16, 2, 8
LIMITS = ("--megabytes=1", "--seconds=15", "--timeout=60")
CLIPS = 8  # different good requests
SOURCE = "pretrained/emotion-dslstm-emodb"
MODEL = f"--model={SOURCE}"


def wav(samples, **options):
    """Samples as the bytes of a WAV file."""
    data = io.BytesIO()
    options = {"format": "WAV", "subtype": "PCM_16", **options}
    soundfile.write(data, samples, 16000, **options)
    return data.getvalue()


def bad_requests(samples):
    """Status -> content of the file, None for no file at all."""
    broken = samples.copy()
    broken[100] = np.nan
    return [
        (415, b"no audio" * 40),
        (422, wav(broken, subtype="FLOAT")),
        (413, wav(np.tile(samples, 20)[: 16000 * 20])),
        (422, None),
        (413, bytes(3_000_000)),
        (415, b""),
        (422, wav(samples)[:9000]),
    ]


class Client:
    """Sends requests, and comes again after a 429."""

    def __init__(self, url):
        self.http = httpx.Client(base_url=url, timeout=120)
        self.refused = 0

    def send(self, content):
        """Post a file until there is a place; the response."""
        files = {"file": ("a.wav", b"" if content is None else content)}
        files = {"other": files["file"]} if content is None else files
        for _ in range(400):
            found = self.http.post("/classify", files=files)
            if found.status_code != 429:
                return found
            self.refused += 1
            time.sleep(float(found.headers["retry-after"]) / 4)
        raise TimeoutError("refused 400 times")


def watch(http, stop):
    """Poll /health; seconds that each answer took."""
    times = []
    while not stop.wait(0.1):
        begun = time.perf_counter()
        assert http.get("/health").json()["status"] == "ok"
        times.append(time.perf_counter() - begun)
    return times


def check_answer(found, expected):
    """A good request has the answer of ``classify_file``."""
    assert found.status_code == 200, found.text
    answer, (label, posteriors) = found.json(), expected
    assert answer["label"] == label
    assert answer["posteriors"] == pytest.approx(posteriors, abs=1e-5)


def answer_of(classifier, path):
    """Label and posteriors of a file."""
    out_prob, _, _, label = classifier.classify_file(path)
    values = out_prob[0].exp().tolist()
    return label[0], dict(zip(classifier.labels, values, strict=True))


@pytest.mark.parametrize("requests", [60, at_night(500)])
def test_load(requests, recordings, tmp_path):
    files = [path.read_bytes() for path in recordings[:CLIPS]]
    classifier = load_safe(SOURCE)
    expected = [answer_of(classifier, path) for path in recordings[:CLIPS]]
    clip = soundfile.read(recordings[0])[0]
    bad, slow = bad_requests(clip), tmp_path / "slow.wav"
    slow.write_bytes(wav(np.tile(clip, 20)[: 16000 * 14]))
    options = (f"--threads={THREADS}", f"--waiting={WAITING}", *LIMITS, MODEL)
    with started(*options) as (server, url):
        client, memory = Client(url), psutil.Process(server.pid).memory_info
        for content in (*files, *(content for _, content in bad)):
            client.send(content)

        def ask(k):
            if k % 5 == 0:
                status, content = bad[k // 5 % len(bad)]
                found = client.send(content)
                assert found.status_code == status, found.text
                assert found.json()["error"]
            else:
                found = client.send(files[k % CLIPS])
                check_answer(found, expected[k % CLIPS])
            return found.status_code

        before, stop, begun = memory().rss, threading.Event(), time.time()
        with ThreadPoolExecutor(AT_ONCE + 1) as pool:
            health = pool.submit(watch, client.http, stop)
            try:
                counts = Counter(pool.map(ask, range(requests)))
            finally:
                stop.set()
            times = sorted(health.result())
        seconds, grown = time.time() - begun, memory().rss - before
        assert counts[200] == requests - len(range(0, requests, 5))
        assert client.refused
        assert times[len(times) // 2] < 0.5 and times[-1] < 5
        # Arenas of glibc's malloc for each thread, and no more with 500 requests
        assert grown < 200e6
        if NIGHT:
            print(
                f"{requests} requests in {seconds:.0f} s, {counts}, "
                f"{client.refused} times 429, /health median "
                f"{times[len(times) // 2]:.3f} s, longest {times[-1]:.3f} s, "
                f"{before / 1e6:.0f} MB and {grown / 1e6:+.0f} MB"
            )
        check_metrics(client, counts, len(files), bad)
        check_drain(server, client, slow, answer_of(classifier, slow))


def read_metrics(client):
    """Value of each series, by its name and labels."""
    lines = client.http.get("/metrics").text.splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


def count_of(status):
    """Name of the number of requests with a status."""
    return f'dslstm_requests_total{{path="/classify",status="{status}"}}'


def check_metrics(client, counts, warm, bad):
    """Prometheus has counted each of them."""
    found = read_metrics(client)
    total = Counter(status for status, _ in bad) + counts
    total += Counter({200: warm, 429: client.refused})
    for status, count in total.items():
        assert found[count_of(status)] == count
    assert found["dslstm_pending"] == 0


def check_drain(server, client, path, expected):
    """SIGTERM: what has arrived is answered, and the server ends."""

    def arrived():
        found = read_metrics(client)
        return found[count_of(200)] + found["dslstm_pending"]

    content, size, before = path.read_bytes(), THREADS + WAITING, arrived()
    with ThreadPoolExecutor(size) as pool:
        jobs = [pool.submit(client.send, content) for _ in range(size)]
        while arrived() < before + size:
            assert not all(job.done() for job in jobs)
        server.send_signal(signal.SIGTERM)
        assert not all(job.done() for job in jobs)
        for job in jobs:
            check_answer(job.result(), expected)
    assert server.wait(30) in (0, -signal.SIGTERM)
