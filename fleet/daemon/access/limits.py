"""Failed authentications per source address.

Right credentials are never held up, whatever came from the same address before: behind it there may be many. What is limited is
how fast somebody can try wrong ones, and what the log says of strangers (``fleet.daemon.audit``).
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Any, Final

from fleet.clock import Clock

__all__ = ["FailureLimit", "source_of"]

BURST: Final = 10
_EVERY_S: Final = 6.0
"""After the burst one more is answered so often."""

_SOURCES_MAX: Final = 10_000


class FailureLimit:
    """A token bucket a source; those longest not seen are forgotten first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sources: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def note(self, source: str) -> float:
        """A failure. Returns 0, or after how many seconds the next is answered."""
        now = self._clock.monotonic()
        left, seen = self._sources.pop(source, (float(BURST), now))
        left = min(float(BURST), left + (now - seen) / _EVERY_S)
        is_over = left < 1.0
        self._sources[source] = (left if is_over else left - 1.0, now)
        if len(self._sources) > _SOURCES_MAX:
            self._sources.popitem(last=False)
        return (1.0 - left) * _EVERY_S if is_over else 0.0


def source_of(scope: Any) -> str:
    """The address a request came from; for IPv6 the network of 64 bits that one host may choose from."""
    client = scope.get("client")
    text = client[0] if client else ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return str(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return text
