"""Where this node can get an image it lacks: nodes that have it first, its registry last.

A manager knows which nodes hold which images (their agents say so); asking it costs one request over mutual TLS. Everything
that comes from a peer is checked by digest, so a lying one can only fail.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Sequence
from typing import Final

import httpx

from fleet import errors
from fleet.images.reference import parse_reference
from fleet.images.registry import Credentials, RegistryOptions, registry_sources
from fleet.images.sources import PeerSource, Source
from fleet.logs import get_logger

__all__ = ["ImageLocator"]

log = get_logger("image-sources")

_TIMEOUT_S: Final = 5.0
_PEERS_MAX: Final = 4


class ImageLocator:
    """Makes sources. ``tls`` and ``managers`` are ``None`` and empty while this host is in no cluster."""

    def __init__(self, options: RegistryOptions) -> None:
        self._options = options
        self.tls: Callable[[], ssl.SSLContext] | None = None
        self.managers: Callable[[], Sequence[str]] = tuple
        self.own_address: str = ""

    async def sources_for(self, reference: str, credentials: Credentials | None = None) -> Sequence[Source]:
        """Peers that hold ``reference``, its registry's mirrors, its registry. The caller closes them (``close_all``)."""
        sources: list[Source] = []
        if self.tls is not None:
            context = self.tls()
            sources.extend(
                PeerSource(f"https://{address}", context) for address in await self._holders(reference, context)
            )
        sources += registry_sources(reference, credentials=credentials, options=self._options)
        return sources

    async def _holders(self, reference: str, context: ssl.SSLContext) -> list[str]:
        parsed = parse_reference(reference)
        wanted = parsed.digest or str(parsed)
        async with httpx.AsyncClient(verify=context, timeout=_TIMEOUT_S, trust_env=False) as client:
            for manager in self.managers():
                with contextlib.suppress(httpx.HTTPError, ValueError):
                    answer = await client.get(
                        f"https://{manager}/cluster/v1/images/holders", params={"reference": wanted}
                    )
                    answer.raise_for_status()
                    found = [str(a) for a in answer.json()["addresses"] if a != self.own_address]
                    return found[:_PEERS_MAX]
        log.warning("no manager says which nodes hold the image", reference=wanted)
        return []


async def close_all(sources: Sequence[Source]) -> None:
    """Close every source, whatever the others do."""
    for source in sources:
        with contextlib.suppress(httpx.HTTPError, errors.FleetError, OSError):
            await source.aclose()
