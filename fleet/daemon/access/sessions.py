"""Sign-ins of browsers: a token is shown once, then a cookie stands for it.

A session is two random values. The cookie is kept from scripts, but browsers send it to every port of a host, also to one that a
container publishes; so it is worth nothing without the *key*, which the page keeps where only its own origin (scheme, host and
port) can read it, and sends as a header. A session says no more than which token it stands for: that one is looked up on every
request, so what is removed or changed counts at once.

In memory, on the manager where one signed in: it ends with the daemon.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final

from fleet.clock import Clock
from fleet.model.ids import TokenId

__all__ = ["COOKIE", "KEY_HEADER", "Sessions", "cookie_of", "key_of"]

COOKIE: Final = "__Host-fleet"
"""The prefix makes browsers insist on Secure, on no Domain and on the path / (RFC 6265bis)."""

KEY_HEADER: Final = b"x-fleet-dashboard"
IDLE_S: Final = 8 * 3600.0
_SESSIONS_MAX: Final = 10_000


@dataclass(slots=True)
class _Session:
    token_id: TokenId
    key_digest: bytes
    used_s: float


class Sessions:
    """``random(n)``: n random bytes as text for a header."""

    def __init__(self, clock: Clock, *, random: Callable[[int], str] = secrets.token_urlsafe) -> None:
        self._clock = clock
        self._random = random
        self._open: OrderedDict[bytes, _Session] = OrderedDict()

    def open(self, token_id: TokenId) -> tuple[str, str]:
        """A session for a token that was just shown: (cookie, key)."""
        cookie, key = self._random(32), self._random(32)
        self._open[_digest(cookie)] = _Session(token_id, _digest(key), self._clock.monotonic())
        if len(self._open) > _SESSIONS_MAX:
            self._open.popitem(last=False)
        return cookie, key

    def token_of(self, cookie: str, key: str) -> TokenId | None:
        """What it stands for; None if it is over, or never was."""
        place = _digest(cookie)
        session = self._open.get(place)
        if session is None or not hmac.compare_digest(session.key_digest, _digest(key)):
            return None
        now = self._clock.monotonic()
        if now - session.used_s > IDLE_S:
            del self._open[place]
            return None
        session.used_s = now
        self._open.move_to_end(place)
        return session.token_id

    def close(self, cookie: str) -> None:
        """It is over; idempotent."""
        self._open.pop(_digest(cookie), None)


def cookie_of(scope: Any) -> str:
    """The session's cookie of a request; empty if there is none."""
    for name, value in scope["headers"]:
        if name == b"cookie":
            try:
                found = SimpleCookie(value.decode("latin-1")).get(COOKIE)
            except CookieError:
                continue
            if found is not None:
                return found.value
    return ""


def key_of(scope: Any) -> str:
    """The session's key of a request; empty if there is none."""
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == KEY_HEADER), "")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
