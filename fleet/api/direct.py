"""Reads that go from their path straight to the function that answers them.

What FastAPI does around a function - trying each route's pattern, exit stacks, dependencies, validation of what it returns - is
more work than most reads are themselves, and is nothing where a function takes the request and a name out of the path and gives
a response. Such GET routes are found among the application's own, by a look-up; all other requests go to the application, which
also keeps the description of them all. Errors are answered as ``install_error_handlers`` does.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.responses import StreamingResponse

from fleet import errors
from fleet.api.http import mistake, problem

__all__ = ["DirectReads"]

_ONE_NAME: Final = re.compile(r"((?:/[^/{}]+)+)/\{(\w+)\}")
_REQUEST: Final = frozenset({Request, "Request"})
_TEXT: Final = frozenset({str, "str"})
_RESPONSES: Final = frozenset({Response, StreamingResponse, "Response", "StreamingResponse"})


@dataclass(frozen=True, slots=True)
class _Read:
    """``name``: the parameter that the last part of the path is given as; empty without one."""

    route: APIRoute
    answer: Callable[..., Awaitable[Response]]
    takes_request: bool
    name: str = ""


class DirectReads:
    """ASGI middleware around an application with ``routes``."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._whole: dict[str, _Read] = {}
        self._named: dict[str, _Read] = {}
        for route in _api_routes(app.routes):
            if route.methods != {"GET"} or route.dependencies:
                continue
            match = _ONE_NAME.fullmatch(route.path)
            read = _read_of(route, name=match[2] if match else "")
            if read is not None and match is not None:
                self._named.setdefault(match[1], read)
            elif read is not None and "{" not in route.path:
                self._whole.setdefault(route.path, read)

    def find(self, path: str) -> tuple[_Read, str] | None:
        """What answers ``GET path``, and the name at its end; None where the application does."""
        read = self._whole.get(path)
        if read is not None:
            return read, ""
        prefix, _, last = path.rpartition("/")
        read = self._named.get(prefix) if last else None
        return None if read is None else (read, last)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        found = self.find(scope["path"]) if scope["type"] == "http" and scope["method"] == "GET" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        read, last = found
        given: dict[str, Any] = {read.name: last} if read.name else {}
        scope["route"], scope["path_params"] = read.route, given
        if read.takes_request:
            given = {**given, "request": Request(scope, receive)}
        try:
            response = await read.answer(**given)
        except errors.FleetError as cause:
            response = problem(cause)
        except Exception:
            await mistake()(scope, receive, send)
            raise
        await response(scope, receive, send)


def _api_routes(routes: Iterable[Any]) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):  # FastAPI keeps an included router as it is
            yield from _api_routes(route.original_router.routes)


def _read_of(route: APIRoute, *, name: str) -> _Read | None:
    """None for a function that takes or gives more than is done here."""
    signature = inspect.signature(route.endpoint)
    if signature.return_annotation not in _RESPONSES or not inspect.iscoroutinefunction(route.endpoint):
        return None
    parameters = dict(signature.parameters)
    request = parameters.pop("request", None)
    if request is not None and request.annotation not in _REQUEST:
        return None
    if name:
        named = parameters.pop(name, None)
        if named is None or named.annotation not in _TEXT:
            return None
    return None if parameters else _Read(route, route.endpoint, takes_request=request is not None, name=name)
