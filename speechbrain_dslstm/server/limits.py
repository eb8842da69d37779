"""Limits of a server, and the checks that need no audio: size, time, token."""

import asyncio
import hmac
import json
import math
from dataclasses import dataclass

__all__ = ["Limits", "RequestLimits"]

PROTECTED = ("/classify", "/metrics")


@dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Arguments
    ---------
    megabytes
        Largest request.
    seconds
        Longest recording.
    waiting
        Requests that may wait for a free thread; more are refused.
    timeout
        Seconds until a request must have arrived, and again until it must be
        answered.
    token
        What requests must carry as ``Authorization: Bearer TOKEN``; None: all
        are accepted.

    Example
    -------
    >>> Limits(megabytes=0)
    Traceback (most recent call last):
    ValueError: megabytes must be positive, got 0
    """

    megabytes: float = 32.0
    seconds: float = 600.0
    waiting: int = 32
    timeout: float = 60.0
    token: str | None = None

    def __post_init__(self) -> None:
        for name in ("megabytes", "seconds", "timeout"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive, got {value}")
        if self.waiting < 0:
            raise ValueError(f"waiting must be 0 or more, got {self.waiting}")
        if self.token is not None and not (
            self.token and self.token.isascii() and self.token.isprintable()
        ):
            raise ValueError("the token must be printable ASCII")


class _Refused(Exception):
    """A request that is answered before its route sees it."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status


class RequestLimits:
    """ASGI middleware that refuses requests without a token, too large or slow.

    The size is counted while the body arrives, as a header may lie.
    """

    def __init__(self, app: object, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(
        self, scope: dict, receive: object, send: object
    ) -> None:
        """Pass a request on, with a body that is counted."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        refused = []

        def refuse(error: _Refused) -> None:
            refused.append(error)
            raise error

        async def answer(message: dict) -> None:
            # The application answers errors of its body in its own way
            if not refused:
                await send(message)

        try:
            self._check_token(scope["path"], headers)
            self._check_size(_length(headers))
        except _Refused as error:
            await _send_error(send, error)
            return
        try:
            await self.app(scope, self._counted(receive, refuse), answer)
        except Exception:
            if not refused:
                raise
        if refused:
            await _send_error(send, refused[0])

    def _check_token(self, path, headers):
        token = self.limits.token
        if token is None or not path.startswith(PROTECTED):
            return
        given = headers.get(b"authorization", b"")
        if not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise _Refused(
                401, "this server requires a token: Authorization: Bearer TOKEN"
            )

    def _check_size(self, size):
        if size > self.limits.megabytes * 1e6:
            raise _Refused(
                413,
                f"the request has {size / 1e6:.1f} MB; this server accepts "
                f"{self.limits.megabytes:g} MB",
            )

    def _counted(self, receive, refuse):
        """Return ``receive``, which counts bytes until the body is complete."""
        size, complete = 0, False
        deadline = asyncio.get_running_loop().time() + self.limits.timeout

        async def counted():
            nonlocal size, complete
            if complete:
                return await receive()
            left = deadline - asyncio.get_running_loop().time()
            try:
                message = await asyncio.wait_for(receive(), max(left, 0.001))
            except TimeoutError:
                words = f"longer than {self.limits.timeout:g} seconds"
                refuse(_Refused(408, f"the request took {words} to arrive"))
            size += len(message.get("body", b""))
            try:
                self._check_size(size)
            except _Refused as error:
                refuse(error)
            complete = not message.get("more_body")
            return message

        return counted


def _length(headers):
    value = headers.get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0


async def _send_error(send, error):
    status, body = error.status, json.dumps({"error": str(error)}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        # The rest of the body is not read
        (b"connection", b"close"),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send(
        {"type": "http.response.start", "status": status, "headers": headers}
    )
    await send({"type": "http.response.body", "body": body})
