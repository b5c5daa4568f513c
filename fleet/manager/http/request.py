"""What several routes read from a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import Request

from fleet import errors
from fleet.api.http import Filters, parse_filters, read_body
from fleet.manager.control import ControlApi

__all__ = ["Control", "filters_of", "lookup", "read_json", "version_of"]

Control = Callable[[], ControlApi]


def filters_of(request: Request, known: frozenset[str]) -> Filters:
    """``?filters=``; see ``parse_filters``."""
    return parse_filters(request.query_params.get("filters"), known=known)


def version_of(request: Request) -> int | None:
    """``?version=``: None if absent. Raises ``UserError`` if it is not a number."""
    text = request.query_params.get("version")
    if text is None or text == "":
        return None
    if not text.isdigit() or len(text) > 19:
        raise errors.UserError(f"invalid version {text!r}: it must be a number")
    return int(text)


def lookup(raw: Any, *path: str) -> Any:
    """A value deep in parsed JSON by Docker's names in any case; None where the path ends."""
    for word in path:
        if not isinstance(raw, dict):
            return None
        raw = next((value for key, value in raw.items() if str(key).lower() == word.lower()), None)
    return raw


async def read_json(request: Request, *, what: str) -> Any:
    """The body as builtins. Raises ``UserError`` if it is not JSON."""
    try:
        return msgspec.json.decode(await read_body(request) or b"{}")
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as cause:
        raise errors.UserError(f"{what}: the body is not valid JSON: {cause}") from cause
