"""A server in a thread of the test, for real HTTP requests."""

import contextlib
import threading
import time

import httpx
import uvicorn

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
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", timeout=60
    ) as client:
        yield client
    server.should_exit = True
    thread.join()
