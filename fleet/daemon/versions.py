"""Version negotiation: ``/v1.41/services`` is ``/services`` for every version fleet speaks; others are refused in words."""

from __future__ import annotations

import re
from typing import Any, Final

from fleet import __version__
from fleet.api.client import API_VERSION
from fleet.api.http import API_VERSION_NEWEST, VERSION_KEY, ApiVersion

__all__ = ["API_VERSION_MAX", "API_VERSION_MIN", "VersionPrefix"]

API_VERSION_MAX: Final = API_VERSION
API_VERSION_MIN: Final = "1.24"
_OLDEST: Final[ApiVersion] = (1, 24)
_PREFIX: Final = re.compile(r"/v(\d{1,3})\.(\d{1,3})(?=/|$)")
_HEADERS: Final = (
    (b"api-version", API_VERSION_MAX.encode()),
    (b"docker-experimental", b"false"),
    (b"ostype", b"linux"),
    (b"x-content-type-options", b"nosniff"),
    (b"server", f"fleet/{__version__} (linux)".encode()),
)


class VersionPrefix:
    """ASGI middleware: moves the version from the path to ``VERSION_KEY``, refuses versions outside the range, adds Docker's
    headers to every answer."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        match = _PREFIX.match(scope["path"])
        if match is not None:
            version = (int(match[1]), int(match[2]))
            problem = _refusal(version, f"{match[1]}.{match[2]}")
            if problem:
                await _answer(with_headers, problem)
                return
            path = scope["path"][match.end() :] or "/"
            scope = {**scope, "path": path, "raw_path": path.encode(), VERSION_KEY: version}
        await self._app(scope, receive, with_headers)


def _refusal(version: ApiVersion, text: str) -> str:
    if version > API_VERSION_NEWEST:
        return f"client version {text} is too new. Maximum supported API version is {API_VERSION_MAX}"
    if version < _OLDEST:
        return (
            f"client version {text} is too old. Minimum supported API version is {API_VERSION_MIN}, "
            "please upgrade your client to a newer version"
        )
    return ""


async def _answer(send: Any, message: str) -> None:
    body = b'{"message":"' + message.encode() + b'"}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
