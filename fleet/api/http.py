"""What every engine API route needs: bounded bodies, query spellings, JSON answers, errors as ``{"message"}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from fleet import errors
from fleet.api.client import API_VERSION
from fleet.model import wire

__all__ = [
    "API_VERSION_NEWEST",
    "JSON_BODY_LIMIT",
    "VERSION_KEY",
    "ApiVersion",
    "Filters",
    "install_error_handlers",
    "json_response",
    "mistake",
    "parse_bool",
    "parse_filters",
    "problem",
    "read_body",
    "read_struct",
    "spoken_version",
]

JSON_BODY_LIMIT: Final = 4 * 1024 * 1024
"""Bytes of a JSON body; a secret of 500 KB is 667 KB in base64, a service spec rarely 10 KB."""

ApiVersion = tuple[int, int]
"""Of the engine API, as in a path: ``/v1.41`` is (1, 41)."""

API_VERSION_NEWEST: Final[ApiVersion] = (int(API_VERSION.partition(".")[0]), int(API_VERSION.partition(".")[2]))

VERSION_KEY: Final = "fleet.api_version"
"""Where in an ASGI scope the version is, once it has been taken out of the path."""

Filters = Mapping[str, tuple[str, ...]]
"""Filter name -> accepted values; an absent name does not restrict."""

T = TypeVar("T")


async def read_body(request: Request, *, limit: int = JSON_BODY_LIMIT) -> bytes:
    """The whole body. Raises ``TooLargeError`` as soon as more than ``limit`` bytes are announced or have come."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise errors.TooLargeError(f"request body of {announced} bytes is larger than the limit of {limit}")
    parts: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise errors.TooLargeError(f"request body is larger than the limit of {limit} bytes")
        parts.append(chunk)
    return b"".join(parts)


async def read_struct(request: Request, kind: type[T], *, what: str) -> T:
    """The JSON body as a model value (case-insensitive keys, nulls dropped). Raises ``UserError`` naming the place."""
    return wire.parse_json(await read_body(request) or b"{}", kind, what=what)


def spoken_version(request: Request) -> ApiVersion:
    """The version in the request's path; the newest where there is none, as with dockerd."""
    version: ApiVersion = request.scope.get(VERSION_KEY, API_VERSION_NEWEST)
    return version


def json_response(value: object, *, status: int = 200) -> Response:
    """JSON from model values or builtins; bytes are taken as JSON already encoded."""
    content = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return Response(content, status_code=status, media_type="application/json")


def parse_bool(text: str | None, *, default: bool = False) -> bool:
    """Docker's booleans in queries: ``1``, ``true``, ``True`` ...; empty and absent mean ``default``."""
    if text is None or text == "":
        return default
    return text.strip().lower() not in ("0", "no", "false", "none")


def parse_filters(text: str | None, *, known: frozenset[str]) -> Filters:
    """Both shapes clients send: ``{"name":{"x":true}}`` (docker) and ``{"name":["x"]}`` (docker-py).

    Raises ``UserError`` for text that is neither, and for a filter that is not in ``known``.
    """
    if not text:
        return {}
    try:
        raw: Any = msgspec.json.decode(text)
    except msgspec.DecodeError as cause:
        raise errors.UserError(f"filters: not valid JSON: {cause}") from cause
    if not isinstance(raw, dict):
        raise errors.UserError('filters: expected an object such as {"name": ["x"]}')
    result: dict[str, tuple[str, ...]] = {}
    for name, values in raw.items():
        if name not in known:
            raise errors.UserError(f"invalid filter '{name}': known ones are {', '.join(sorted(known))}")
        if isinstance(values, dict):
            result[name] = tuple(str(v) for v, on in values.items() if on)
        elif isinstance(values, list):
            result[name] = tuple(str(v) for v in values)
        else:
            raise errors.UserError(f"filters: '{name}' must be a list or an object")
    return {name: values for name, values in result.items() if values}


def problem(cause: errors.FleetError) -> Response:
    """The error as Docker's clients expect it."""
    response = json_response({"message": str(cause)}, status=cause.http_status)
    if isinstance(cause, errors.UnavailableError) and cause.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, round(cause.retry_after_s)))
    return response


def mistake() -> Response:
    """What is answered in place of a bug."""
    return json_response({"message": "the daemon made a mistake; its log says which"}, status=500)


def install_error_handlers(app: FastAPI) -> None:
    """Errors of the tree keep their status; unknown paths answer ``page not found`` as Docker does."""

    async def known(_request: Request, cause: Exception) -> Response:
        assert isinstance(cause, errors.FleetError)
        return problem(cause)

    async def http(_request: Request, cause: Exception) -> Response:
        assert isinstance(cause, HTTPException)
        message = "page not found" if cause.status_code == 404 else str(cause.detail)
        return json_response({"message": message}, status=cause.status_code)

    async def gone(_request: Request, _cause: Exception) -> Response:
        return Response(status_code=400)  # in the middle of its body: nobody reads this

    async def unfit(_request: Request, cause: Exception) -> Response:
        assert isinstance(cause, RequestValidationError)
        faults = (f"{each['loc'][-1]}: {str(each['msg']).lower()}" for each in cause.errors())
        return json_response({"message": "; ".join(faults)}, status=400)

    async def bug(_request: Request, _cause: Exception) -> Response:
        return mistake()

    app.add_exception_handler(errors.FleetError, known)
    app.add_exception_handler(Exception, bug)  # which still goes on, to the log
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(RequestValidationError, unfit)
    app.add_exception_handler(HTTPException, http)
