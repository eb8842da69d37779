"""A server for real HTTP requests: in a thread of the test, or as a process."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time

import httpx
import uvicorn
from processes import REPOSITORY

from speechbrain_dslstm.server import create_app


@contextlib.contextmanager
def running(classifier, limits=None, **options):
    """Serve in a thread; yield a client."""
    app = create_app(classifier, limits, **options)
    config = uvicorn.Config(app, port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=60
        ) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def started(*options):
    """Start ``dslstm serve`` as a user does; yield the process and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "speechbrain_dslstm.cli", "serve"]
    server = subprocess.Popen(
        [*command, f"--port={port}", *map(str, options)],
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        lines = iter(server.stderr.readline, b"")
        assert any(f"{url}/" in line.decode() for line in lines)
        for _ in range(300):
            with contextlib.suppress(httpx.ConnectError):
                assert httpx.get(f"{url}/health").json()["status"] == "ok"
                break
            time.sleep(0.1)
        yield server, url
    finally:
        server.kill()
        server.wait()
        server.stderr.close()
