"""Who sent a request.

==========================================  ==================================================================
came over                                   is
==========================================  ==================================================================
the unix socket                             admin: its mode says who may open it
TCP in the clear (127.0.0.1 only)           admin, as whoever is on this host; a token is refused there
TLS, with a token                           the token's user
TLS, with a session (``sessions``)          the user of the token that was signed in with
TLS, with a certificate of --tlscacert      the user its common name names; admin if it names none
TLS with neither                            nobody
==========================================  ==================================================================

Only managers know users. Every node is told their names, though, so that a user's certificate does not make an admin of its
holder where nobody can look up what was granted; a removed user's name stays refused for the same reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from fleet import errors
from fleet.clock import Clock
from fleet.daemon.access.limits import FailureLimit, source_of
from fleet.daemon.access.principal import LOCAL, Principal, names_in, principal_of
from fleet.daemon.access.sessions import Sessions, cookie_of, key_of
from fleet.daemon.listeners import TLS_EXTENSION, is_tls, is_unix
from fleet.manager.control import ControlApi
from fleet.model.access import Token
from fleet.model.ids import TokenId

__all__ = ["HOW_TO", "Authenticator"]

HOW_TO: Final = (
    "authentication required: show a token (fleet: FLEET_TOKEN_FILE or --token-file; docker: HttpHeaders with "
    '"Authorization": "Bearer TOKEN" in its config.json), or a client certificate; '
    "an administrator makes tokens with: fleet token create USER"
)
_IN_THE_CLEAR: Final = (
    "a token was sent without TLS and is not accepted: whoever listens on the way may know it now. "
    "Remove it (fleet token rm), and use a listener with TLS"
)


class Authenticator:
    """``control`` gives the control API or raises ``UnavailableError``; ``has_control`` whether it does; ``known`` are the names
    of users as this host was last told; ``note`` counts failed authentications that were not even answered."""

    def __init__(
        self,
        *,
        control: Callable[[], ControlApi],
        has_control: Callable[[], bool],
        known: Callable[[], Container[str]],
        clock: Clock,
        note: Callable[[str], None] = lambda _limit: None,
    ) -> None:
        self._note_limited = note
        self._sessions = Sessions(clock)
        self._limit = FailureLimit(clock)
        self._control = control
        self._has_control = has_control
        self._known = known
        self._noting: set[asyncio.Task[None]] = set()

    def identify(self, scope: Any) -> Principal | None:
        """None for nobody. Raises ``UnauthorizedError`` for credentials that are wrong, ``RateLimitedError`` for too many of
        them, and ``UnavailableError`` where they cannot be looked up."""
        with self._limited(scope):
            return self._identify(scope)

    def sign_in(self, scope: Any, text: str) -> tuple[Principal, str, str]:
        """(who, cookie, key) for a browser that shows a token. Raises as ``identify``, and ``UserError`` without TLS."""
        if is_unix(scope) or not is_tls(scope):
            raise errors.UserError("signing in is for listeners with TLS; here whoever connects is known already")
        with self._limited(scope):
            principal = self.of_token(text.strip())
        cookie, key = self._sessions.open(TokenId(principal.token_id))
        return replace(principal, is_session=True), cookie, key

    def sign_out(self, scope: Any) -> None:
        """End the request's session; idempotent."""
        self._sessions.close(cookie_of(scope))

    @contextmanager
    def _limited(self, scope: Any) -> Iterator[None]:
        try:
            yield
        except errors.UnauthorizedError as refusal:
            wait_s = self._limit.note(source_of(scope))
            if wait_s:
                self._note_limited("authentication")
                raise errors.RateLimitedError(
                    "too many failed authentications from this address: look at the token or certificate, and try again in "
                    f"{max(1, round(wait_s))} s; right ones are not held up",
                    retry_after_s=wait_s,
                ) from refusal
            raise

    def _identify(self, scope: Any) -> Principal | None:
        if is_unix(scope):
            return LOCAL
        given = _bearer(scope)
        tls = scope.get("extensions", {}).get(TLS_EXTENSION)
        if tls is None:
            if given is not None:
                raise errors.UnauthorizedError(_IN_THE_CLEAR)
            return LOCAL
        if given is not None:
            return self.of_token(given)
        signed_in = self._of_session(scope)
        if signed_in is not None:
            return signed_in
        certificate = tls.getpeercert()
        return self._of_certificate(names_in(certificate)) if certificate else None

    def of_token(self, text: str) -> Principal:
        """Raises as ``identify``."""
        try:
            tokens = self._control().tokens
        except errors.UnavailableError as cause:
            raise errors.UnavailableError(f"tokens are known to managers only: {cause}") from cause
        user, token = tokens.owner(text)
        self._note(token)
        return principal_of(user, token_id=token.id)

    def _of_session(self, scope: Any) -> Principal | None:
        """None for a session that is over: then there is just nobody."""
        cookie = cookie_of(scope)
        token_id = self._sessions.token_of(cookie, key_of(scope)) if cookie else None
        if token_id is None or not self._has_control():
            return None
        tokens = self._control().tokens
        token = tokens.get(token_id)
        try:
            user = tokens.check(token) if token is not None else None
        except errors.UnauthorizedError:
            user = None
        if token is None or user is None:
            self._sessions.close(cookie)
            return None
        self._note(token)
        return principal_of(user, token_id=token.id, is_session=True)

    def _note(self, token: Token) -> None:
        tokens = self._control().tokens
        if not tokens.is_use_due(token):
            return
        task = asyncio.create_task(tokens.note_use(token), name="token use")
        self._noting.add(task)
        task.add_done_callback(self._noting.discard)

    def _of_certificate(self, names: tuple[str, ...]) -> Principal:
        for name in names:
            user = self._control().users.named(name) if self._has_control() else None
            if user is not None:
                if user.removed or user.spec.disabled:
                    what = "was removed" if user.removed else "is disabled"
                    raise errors.UnauthorizedError(f"the certificate is of user {name}, who {what}")
                return principal_of(user)
            if not self._has_control() and name in self._known():
                raise errors.UnauthorizedError(
                    f"the certificate is of user {name}, and what that user may do is known to managers only: ask one"
                )
        return LOCAL


def _bearer(scope: Any) -> str | None:
    """The token of ``Authorization``; empty where that is something else. Raises for two of them."""
    found = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
    if not found:
        return None
    if len(found) > 1:
        raise errors.UnauthorizedError("two Authorization headers in one request")
    word, _, rest = found[0].decode("latin-1").strip().partition(" ")
    if word.lower() != "bearer" or not rest.strip():
        raise errors.UnauthorizedError(
            f"Authorization of the kind {word[:20]!r} is not known here: expected Bearer TOKEN"
        )
    return str(rest.strip())
