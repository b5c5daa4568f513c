"""One number from a Prometheus: ``GET /api/v1/query``, with bounds on time and size. Source: Prometheus' HTTP API.

The address is whoever's who may write a service. So its name is resolved first, what it leads to is judged, and the connection
goes to the address that was judged, whatever the name leads to by then; redirections are not followed and proxies not used.

A query of nobody, with no answer, with several or with none that is a number, is a sentence and never a zero: whoever scales by
it must not take a silent Prometheus for an idle service.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import math
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from fleet import errors
from fleet.model.prometheus_access import Address

__all__ = ["PATIENCE_S", "ExplainRefusal", "query_prometheus", "value_in"]

PATIENCE_S: Final = 5.0
_ANSWER_BYTES_MAX: Final = 64 * 1024
"""One sample with its labels takes a few hundred bytes."""
_SAID_MAX: Final = 200
_PAUSE_S: Final = 10.0
"""One that is not there costs a thread for looking its name up, and patience."""
_PORTS: Final = {"http": 80, "https": 443}

ExplainRefusal = Callable[[str, Address, int], str]
"""(host as it was written, address it was resolved to, port) -> why that is not asked; empty when it is."""


async def query_prometheus(address: str, query: str, *, explain_refusal: ExplainRefusal) -> float:
    """The finite number that ``query`` gives now. Raises ``UnavailableError`` that says which Prometheus answered what, or why it
    is not asked; one that did not answer at all should be left alone for ``retry_after_s``.
    """
    import httpx  # only where a service is scaled by one: it costs several MiB

    try:
        async with asyncio.timeout(PATIENCE_S):
            port, judged = await _resolve(address, explain_refusal)
            for place in judged[:-1]:
                try:
                    return await _ask(address, query, place, port)
                except httpx.ConnectError:
                    continue  # the name has another address
            return await _ask(address, query, judged[-1], port)
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


async def _resolve(address: str, explain_refusal: ExplainRefusal) -> tuple[int, list[Address]]:
    """Its port, and where it is, as far as that may be asked; at least one. Raises ``UnavailableError`` for none, and what
    resolving does."""
    parts = urlsplit(address)
    host, port = parts.hostname or "", _PORTS[parts.scheme] if parts.port is None else parts.port
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    places = [ipaddress.ip_address(each[4][0]) for each in found]
    refusals = {place: explain_refusal(host, place, port) for place in places}
    judged = [place for place, refusal in refusals.items() if not refusal]
    if not judged:
        raise errors.UnavailableError(
            f"Prometheus at {address} is not asked: {next(iter(refusals.values()))}", retry_after_s=_PAUSE_S
        )
    return port, judged


async def _ask(address: str, query: str, place: Address, port: int) -> float:
    """The answer of the one at ``place``, whatever the client would read out of ``address``. Raises ``UnavailableError``, and
    what httpx does."""
    import httpx

    answer = bytearray()
    url = httpx.URL(f"{address}/api/v1/query")
    async with (
        httpx.AsyncClient(verify=_trust(), trust_env=False, timeout=PATIENCE_S, follow_redirects=False) as client,
        client.stream(
            "GET",
            url.copy_with(host=str(place), port=port),
            params={"query": query},
            headers={"Accept-Encoding": "identity", "Host": url.netloc.decode("ascii")},
            extensions={"sni_hostname": url.host},  # the certificate is judged by the name, too
        ) as response,
    ):
        async for piece in response.aiter_raw():  # as it was sent: what unpacks to much more is no answer either
            answer += piece
            if len(answer) > _ANSWER_BYTES_MAX:
                raise errors.UnavailableError(
                    f"Prometheus at {address}: its answer is longer than {_ANSWER_BYTES_MAX} bytes; "
                    "the query has to give one number, such as sum(...)"
                )
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
