"""How often is answered: failed authentications for each source address, and requests over TCP for each client and address.

Failed authentications are limited hard: how fast somebody can try wrong credentials, and what the log says of strangers
(``fleet.daemon.audit``). Requests are limited generously, against loops and floods. Neither holds up right credentials for what
strangers did from the same address, for behind it there may be many: who shows right ones, and who shows none, have buckets of
their own, and a client that is over its own limit takes nothing from its address.

The unix socket has no limits: who may open it is root here.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from fleet import errors
from fleet.clock import Clock
from fleet.daemon.access.principal import Principal, names_in
from fleet.daemon.listeners import TLS_EXTENSION, is_unix
from fleet.daemon.rates import Rate

__all__ = ["FailureLimit", "RequestLimits", "TokenBuckets", "source_of"]

BURST: Final = 10
_EVERY_S: Final = 6.0
"""After the burst one more is answered so often."""

_KEYS_MAX: Final = 10_000


class TokenBuckets:
    """A bucket a key: ``burst`` at once, then one each ``every_s``. Of more than ``_KEYS_MAX`` those longest not seen are
    forgotten."""

    def __init__(self, clock: Clock, *, burst: int, every_s: float) -> None:
        self._clock = clock
        self._burst = float(burst)
        self._every_s = every_s
        self._keys: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def note(self, key: str) -> float:
        """One more. Returns 0, or after how many seconds the next is answered."""
        now = self._clock.monotonic()
        left, seen = self._keys.pop(key, (self._burst, now))
        left = min(self._burst, left + (now - seen) / self._every_s)
        is_over = left < 1.0
        self._keys[key] = (left if is_over else left - 1.0, now)
        if len(self._keys) > _KEYS_MAX:
            self._keys.popitem(last=False)
        return (1.0 - left) * self._every_s if is_over else 0.0


class FailureLimit(TokenBuckets):
    """Of failed authentications, by source."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, burst=BURST, every_s=_EVERY_S)


class RequestLimits:
    """``client`` and ``address``: None is no limit. ``note`` counts what was refused, by which limit."""

    def __init__(
        self,
        clock: Clock,
        *,
        client: Rate | None = None,
        address: Rate | None = None,
        note: Callable[[str], None] = lambda _limit: None,
    ) -> None:
        self._client, self._address = client, address
        self._clients = _buckets(clock, client)
        self._addresses = _buckets(clock, address)
        self._note = note

    def take(self, scope: Any, principal: Principal | None) -> None:
        """One more request, by whom authentication found. Raises ``RateLimitedError`` that says how long to wait, and who can
        change the limit."""
        if is_unix(scope):
            return
        source = source_of(scope)
        if principal is not None and self._clients is not None:
            key, who = _client_of(scope, principal)
            self._refuse("client", self._clients.note(key), who, self._client)
        if self._addresses is not None:
            key = source if principal is not None else f"stranger {source}"
            self._refuse("address", self._addresses.note(key), f"address {source}", self._address)

    def _refuse(self, limit: str, wait_s: float, who: str, rate: Rate | None) -> None:
        if not wait_s:
            return
        self._note(limit)
        raise errors.RateLimitedError(
            f"too many requests of {who}: {rate} are answered; wait a second and ask again, less often "
            f"(fleetd --api-rate-{limit} changes the limit)",
            retry_after_s=wait_s,
        )


def _buckets(clock: Clock, rate: Rate | None) -> TokenBuckets | None:
    return TokenBuckets(clock, burst=rate.burst, every_s=1.0 / rate.per_s) if rate is not None else None


def _client_of(scope: Any, principal: Principal) -> tuple[str, str]:
    """A key, and words for it: the token, else the user, else the certificate's name, else whoever is on this host."""
    if principal.token_id:
        return f"token {principal.token_id}", f"token {principal.token_id} of user {principal.user}"
    if principal.user:
        return f"user {principal.user}", f"user {principal.user}"
    tls = scope.get("extensions", {}).get(TLS_EXTENSION)
    names = names_in(tls.getpeercert()) if tls is not None else ()
    what = f"certificate {', '.join(names)[:100]}" if names else "this host in the clear"
    return what, what


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
