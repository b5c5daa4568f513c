"""One number from a Prometheus: ``GET /api/v1/query``, with bounds on time and size. Source: Prometheus' HTTP API.

A query of nobody, with no answer, with several or with none that is a number, is a sentence and never a zero: whoever scales by
it must not take a silent Prometheus for an idle service.
"""

from __future__ import annotations

import asyncio
import functools
import math
import ssl
from typing import Any, Final

import msgspec

from fleet import errors

__all__ = ["PATIENCE_S", "query_prometheus", "value_in"]

PATIENCE_S: Final = 5.0
_ANSWER_BYTES_MAX: Final = 64 * 1024
"""One sample with its labels takes a few hundred bytes."""
_SAID_MAX: Final = 200
_PAUSE_S: Final = 10.0
"""One that is not there costs a thread for looking its name up, and patience."""


async def query_prometheus(address: str, query: str) -> float:
    """The finite number that ``query`` gives now. Raises ``UnavailableError`` that says which Prometheus answered what; one that
    did not answer at all should be left alone for ``retry_after_s``.
    """
    import httpx  # only where a service is scaled by one: it costs several MiB

    answer = bytearray()
    try:
        async with (
            asyncio.timeout(PATIENCE_S),
            httpx.AsyncClient(verify=_trust(), trust_env=False, timeout=PATIENCE_S, follow_redirects=False) as client,
            client.stream(
                "GET", f"{address}/api/v1/query", params={"query": query}, headers={"Accept-Encoding": "identity"}
            ) as response,
        ):
            async for piece in response.aiter_raw():  # as it was sent: what unpacks to much more is no answer either
                answer += piece
                if len(answer) > _ANSWER_BYTES_MAX:
                    raise errors.UnavailableError(
                        f"Prometheus at {address}: its answer is longer than {_ANSWER_BYTES_MAX} bytes; "
                        "the query has to give one number, such as sum(...)"
                    )
    except TimeoutError as cause:
        raise errors.UnavailableError(
            f"Prometheus at {address} did not answer within {PATIENCE_S:g} s", retry_after_s=_PAUSE_S
        ) from cause
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, RuntimeError) as cause:
        # The address is a user's: whatever the client makes of it must not end the manager.
        text = str(cause) or type(cause).__name__
        raise errors.UnavailableError(
            f"Prometheus at {address} cannot be asked: {_said(text)}", retry_after_s=_PAUSE_S
        ) from cause
    try:
        return value_in(bytes(answer), status=response.status_code)
    except errors.UnavailableError as cause:
        raise errors.UnavailableError(f"Prometheus at {address}: {cause}") from cause


@functools.lru_cache(maxsize=1)
def _trust() -> ssl.SSLContext:
    """The host's authorities; reading them takes longer than asking."""
    return ssl.create_default_context()


def value_in(answer: bytes, *, status: int) -> float:
    """The number in an answer: a scalar, or a vector of one. Raises ``UnavailableError`` for anything else."""
    try:
        said: Any = msgspec.json.decode(answer)
    except (msgspec.DecodeError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise errors.UnavailableError(f"it answered {status} and no JSON object: is it the address of a Prometheus?")
    if said.get("status") != "success":
        raise errors.UnavailableError(f"it refused the query: {_said(said.get('error') or f'status {status}')}")
    data = said.get("data")
    kind, result = (data.get("resultType"), data.get("result")) if isinstance(data, dict) else (None, None)
    if kind == "vector" and isinstance(result, list):
        if len(result) != 1:
            found = f"{len(result)} series" if result else "nothing"
            raise errors.UnavailableError(f"the query gave {found}, not one number; wrap it in sum(...)")
        result = result[0].get("value") if isinstance(result[0], dict) else None
    elif kind != "scalar":
        raise errors.UnavailableError(f"the query gave a {_said(kind)}, not one number")
    text = result[1] if isinstance(result, list) and len(result) == 2 else None
    try:
        value = float(text) if isinstance(text, str) else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise errors.UnavailableError(f"the query gave {_said(text)}, which is no number")
    return value


def _said(what: object) -> str:
    """As a person may see it on a terminal."""
    return "".join(character if character.isprintable() else "?" for character in str(what)[:_SAID_MAX])
