"""Join tokens: ``SWMTKN-1-<50 digits>-<25 digits>``, both numbers in base 36 (SEC-03; Swarm's form).

The first is the SHA-256 of the root certificate, so a joining node knows the true root before it says the second, the
secret. Whoever holds the token can join; there is one for workers and one for managers, and it says not which.
Swarm digests the PEM text, fleet the DER: tokens are not interchangeable, nor meant to be.
"""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass, field
from typing import Final

from fleet import errors
from fleet.identity.authority import root_digest
from fleet.model.node import NodeRole

__all__ = [
    "SECRET_BYTES",
    "UNLOCK_BYTES",
    "JoinToken",
    "check_root",
    "make_token",
    "make_unlock_key",
    "parse_token",
    "parse_unlock_key",
    "to_base36",
    "token_matches",
    "token_role",
]

SECRET_BYTES: Final = 16
UNLOCK_BYTES: Final = 32
_UNLOCK_PREFIX: Final = "SWMKEY-1-"
_DIGEST_BYTES: Final = 32
_DIGEST_DIGITS: Final = 50
_SECRET_DIGITS: Final = 25
_PREFIX: Final = "SWMTKN"
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_FORM: Final = f"{_PREFIX}-1-<{_DIGEST_DIGITS} digits>-<{_SECRET_DIGITS} digits>"


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinToken:
    """A token taken apart: ``digest`` 32 bytes of the root, ``secret`` 16 bytes."""

    digest: bytes
    secret: bytes = field(repr=False)


def make_token(cert_pem: str, secret: bytes) -> str:
    """The token for the root ``cert_pem`` and 16 random bytes that the caller supplies."""
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a token's secret is {SECRET_BYTES} bytes, not {len(secret)}")
    digest = to_base36(root_digest(cert_pem), _DIGEST_DIGITS)
    return f"{_PREFIX}-1-{digest}-{to_base36(secret, _SECRET_DIGITS)}"


def parse_token(text: str) -> JoinToken:
    """Take a token apart. Raises ``UserError`` that says what is wrong with its form, never repeating the secret."""
    parts = text.strip().split("-")
    if len(parts) != 4 or parts[0] != _PREFIX:
        raise errors.UserError(f"join token: expected the form {_FORM}; copy it whole")
    if parts[1] != "1":
        raise errors.UserError(f"join token: version {parts[1][:8]!r} is not known, expected 1")
    return JoinToken(
        digest=_from_base36(parts[2], digits=_DIGEST_DIGITS, size=_DIGEST_BYTES, what="root digest"),
        secret=_from_base36(parts[3], digits=_SECRET_DIGITS, size=SECRET_BYTES, what="secret"),
    )


def token_matches(presented: str, expected: str) -> bool:
    """Whether the two are the same token, in time that does not tell how much of them agrees."""
    return hmac.compare_digest(presented.strip().encode(), expected.encode())


def token_role(presented: str, *, worker: str, manager: str) -> NodeRole:
    """The role that the presented token admits to, given the cluster's two. Raises ``UnauthorizedError`` for neither."""
    is_worker = token_matches(presented, worker) and bool(worker)
    is_manager = token_matches(presented, manager) and bool(manager)
    if is_manager:
        return NodeRole.MANAGER
    if is_worker:
        return NodeRole.WORKER
    raise errors.UnauthorizedError("a valid join token is necessary to join this cluster: the presented one is not")


def check_root(token: JoinToken, ca_pem: str) -> None:
    """Raises ``UnauthorizedError`` unless ``ca_pem`` is the very root the token was made for (CLI-SW-17)."""
    if not hmac.compare_digest(root_digest(ca_pem), token.digest):
        raise errors.UnauthorizedError(
            "the remote root certificate does not match the join token: the token is of another cluster, "
            "or somebody is in between"
        )


def make_unlock_key(secret: bytes) -> str:
    """``SWMKEY-1-<43 characters>``: base64 of 32 random bytes without padding, Swarm's form."""
    if len(secret) != UNLOCK_BYTES:
        raise ValueError(f"an unlock key is of {UNLOCK_BYTES} bytes, not {len(secret)}")
    return f"{_UNLOCK_PREFIX}{base64.b64encode(secret).decode().rstrip('=')}"


def parse_unlock_key(text: str) -> bytes:
    """The 32 bytes. Raises ``UserError`` that does not repeat them."""
    body = text.strip().removeprefix(_UNLOCK_PREFIX)
    try:
        secret = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except ValueError as cause:
        raise errors.UserError(
            f"unlock key: expected the form {_UNLOCK_PREFIX}<43 characters>; copy it whole"
        ) from cause
    if len(secret) != UNLOCK_BYTES or not text.strip().startswith(_UNLOCK_PREFIX):
        raise errors.UserError(f"unlock key: expected the form {_UNLOCK_PREFIX}<43 characters>; copy it whole")
    return secret


def to_base36(data: bytes, digits: int) -> str:
    """``data`` as a number of so many digits ``0-9a-z``, zeros first."""
    number = int.from_bytes(data, "big")
    text = []
    for _ in range(digits):
        number, digit = divmod(number, 36)
        text.append(_DIGITS[digit])
    return "".join(reversed(text))


def _from_base36(text: str, *, digits: int, size: int, what: str) -> bytes:
    if len(text) != digits:
        raise errors.UserError(f"join token: its {what} has {len(text)} digits, expected {digits}; copy it whole")
    if not all(c in _DIGITS for c in text):
        raise errors.UserError(f"join token: its {what} has characters other than 0-9 and a-z")
    number = int(text, 36)
    if number >= 1 << (8 * size):
        raise errors.UserError(f"join token: its {what} is out of range")
    return number.to_bytes(size, "big")
