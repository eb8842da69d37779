"""The routes of ``dslstm serve``: a page, ``/classify``, ``/health``, ``/metrics``."""

import re
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel, Field

from speechbrain_dslstm import __version__
from speechbrain_dslstm.audio.checks import AudioError
from speechbrain_dslstm.inference.classifier import EmotionClassifier
from speechbrain_dslstm.server.limits import Limits, RequestLimits
from speechbrain_dslstm.server.scoring import Busy, Scorer, TooSlow, score_file

__all__ = ["create_app"]

PAGE = Path(__file__).with_name("page")
# Only the server's own files: the page needs no network
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:"
)
STATUS = {"too long": 413, "unreadable": 415}  # by the kind of an AudioError


class Window(BaseModel):
    """Answer for one window of a recording."""

    start: float = Field(description="seconds")
    end: float = Field(description="seconds")
    label: str | None
    posteriors: dict[str, float] | None
    reason: str | None = Field(description="why there is no label")


class Reply(BaseModel):
    """Answer for a recording."""

    file: str
    seconds: float
    label: str | None
    posteriors: dict[str, float] | None
    reason: str | None = Field(description="silence, noise or too short")
    segments: list[Window]
    detail: dict[str, Any] | None = Field(
        None, description="spectrograms, posteriors and gates over time"
    )


class Problem(BaseModel):
    """Why a request has no answer."""

    error: str


def create_app(
    classifier: EmotionClassifier,
    limits: Limits | None = None,
    threads: int = 1,
    window: float = 6.0,
) -> FastAPI:
    """Make the ASGI application of ``dslstm serve``.

    Arguments
    ---------
    classifier
        The model; several threads use it at a time.
    limits
        Sizes, times and the token; the defaults of ``Limits`` if left out.
    threads
        Recordings that are classified at a time.
    window
        Length of the windows of a long recording, in seconds.

    Example
    -------
    >>> from speechbrain_dslstm import EmotionClassifier
    >>> source = "pretrained/emotion-dslstm-emodb"
    >>> app = create_app(EmotionClassifier.from_hparams(source))
    >>> "/classify" in app.openapi()["paths"]
    True
    """
    limits = limits or Limits()
    scorer = Scorer(threads, limits.waiting, limits.timeout)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        scorer.close()

    app = FastAPI(
        title="speechbrain-dslstm",
        version=__version__,
        description="Emotions of speech recordings.",
        lifespan=lifespan,
        # Their pages load scripts from the network
        docs_url=None,
        redoc_url=None,
    )
    meter = _Meter(scorer)
    app.add_middleware(RequestLimits, limits=limits)

    @app.middleware("http")
    async def finish(request: Request, go_on: Any) -> Response:
        started = time.perf_counter()
        response = await go_on(request)
        meter.count(request, response, time.perf_counter() - started)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    problems = {
        code: {"model": Problem, "description": words}
        for code, words in {
            401: "no token",
            408: "the request came too slowly",
            413: "too large or too long",
            415: "not audio that can be read",
            422: "damaged audio, or no file",
            429: "too many requests; see Retry-After",
            503: "no answer in time",
        }.items()
    }

    @app.post("/classify", response_model=Reply, responses=problems)
    async def classify(file: UploadFile, detail: bool = False) -> Any:
        """Classify an audio file, whole and by windows."""
        name = re.sub(r"[^\w. -]", "_", Path(file.filename or "audio").name)
        name = name[-80:] or "audio"
        with tempfile.TemporaryDirectory(prefix="dslstm-") as folder:
            path = Path(folder, name)
            with open(path, "wb") as copy:
                while piece := await file.read(2**20):
                    copy.write(piece)
            try:
                found = await scorer.run(
                    score_file, classifier, path, limits.seconds, window, detail
                )
            except AudioError as error:
                status = STATUS.get(error.kind, 422)
                return _problem(status, str(error).replace(str(path), name))
            except Busy:
                return _problem(
                    429,
                    "too many requests; try again later",
                    {"Retry-After": "1"},
                )
            except TooSlow:
                return _problem(
                    503, f"no answer within {limits.timeout:g} seconds"
                )
        meter.seconds.inc(found["seconds"])
        return {"file": name, **found}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Report the version, the classes and the limits."""
        return {
            "status": "ok",
            "version": __version__,
            "classes": classifier.labels,
            "limits": {
                "megabytes": limits.megabytes,
                "seconds": limits.seconds,
                "token": limits.token is not None,
            },
        }

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        """Report counts and times for Prometheus."""
        return Response(
            generate_latest(meter.registry),
            media_type="text/plain; version=0.0.4",
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(
        request: Request, error: RequestValidationError
    ) -> Response:
        return _problem(
            422, 'expected an audio file in the form field "file" (multipart)'
        )

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _problem(
    status: int, error: str, headers: dict[str, str] | None = None
) -> Response:
    return JSONResponse({"error": error}, status, headers)


class _Meter:
    """Counts of a server, in a registry of its own."""

    def __init__(self, scorer: Scorer) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dslstm_requests",
            "Requests by path and status",
            ["path", "status"],
            registry=self.registry,
        )
        self.times = Histogram(
            "dslstm_classify_seconds",
            "Seconds from the request to its answer",
            registry=self.registry,
        )
        self.seconds = Counter(
            "dslstm_audio_seconds",
            "Seconds of audio that were classified",
            registry=self.registry,
        )
        pending = Gauge(
            "dslstm_pending",
            "Recordings that are classified or wait",
            registry=self.registry,
        )
        pending.set_function(lambda: scorer.pending)

    def count(
        self, request: Request, response: Response, seconds: float
    ) -> None:
        """Count a request that was answered."""
        path = request.url.path
        if path not in ("/classify", "/health", "/metrics"):
            path = "page"
        self.requests.labels(path, str(response.status_code)).inc()
        if path == "/classify" and response.status_code == 200:
            self.times.observe(seconds)
