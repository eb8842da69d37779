"""The command ``dslstm serve``: a page and an HTTP interface."""

import click

from speechbrain_dslstm.cli.options import (
    MODEL,
    TRUST,
    Number,
    command,
    load_classifier,
)

EXAMPLES = """
dslstm serve
dslstm serve --port 9000 --megabytes 10 --seconds 120
DSLSTM_TOKEN=secret dslstm serve --host 0.0.0.0
"""
POSITIVE = Number(1e-3)


@command("serve", EXAMPLES)
@MODEL
@TRUST
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 for all machines.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Recordings at a time.  [default: number of CPUs, at most 4]",
)
@click.option("--megabytes", type=POSITIVE, default=32.0, show_default=True)
@click.option("--seconds", type=POSITIVE, default=600.0, show_default=True)
@click.option(
    "--waiting",
    type=click.IntRange(0),
    default=32,
    show_default=True,
    help="Requests that may wait; more are answered 429.",
)
@click.option(
    "--timeout",
    type=POSITIVE,
    default=60.0,
    show_default=True,
    help="Seconds for a request to arrive, and again to be answered.",
)
@click.option(
    "--token",
    envvar="DSLSTM_TOKEN",
    help="Token that requests must carry.  [environment: DSLSTM_TOKEN]",
)
def serve(
    model,
    trusted,
    host,
    port,
    threads,
    megabytes,
    seconds,
    waiting,
    timeout,
    token,
):
    """Serve a page to try the model on, and POST /classify.

    The page takes a file or the microphone. /openapi.json describes the
    interface, /health and /metrics watch it. SIGTERM lets running requests
    finish.
    """
    try:
        import uvicorn

        from speechbrain_dslstm.server import Limits, create_app
    except ImportError as error:
        raise click.ClickException(
            f"{error.name} is missing; install it with "
            'pip install "speechbrain-dslstm[serve]"'
        ) from None
    import torch

    from speechbrain_dslstm.utils.threads import count_workers

    limits = Limits(megabytes, seconds, waiting, timeout, token)
    threads = threads or count_workers()
    # Each recording has a thread of its own
    torch.set_num_threads(1)
    app = create_app(load_classifier(model, trusted), limits, threads)
    click.echo(f"http://{host}:{port}/  Ctrl-C stops the server", err=True)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=int(timeout) + 1,
    )
