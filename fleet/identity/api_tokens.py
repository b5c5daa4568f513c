"""Tokens for the API: ``FLTK-1-<25 characters: its id>-<50 digits: 256 random bits in base 36>``.

The id is no secret: it finds the token and names it in lists and logs. Of the secret only a digest is kept. One round of SHA-256
is enough there: nobody can guess 256 random bits, which is what slow hashes of passwords guard against.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Final

from fleet import errors
from fleet.identity.tokens import to_base36
from fleet.model.ids import TokenId

__all__ = [
    "API_SECRET_BYTES",
    "PREFIX",
    "ApiToken",
    "make_api_token",
    "parse_api_token",
    "secret_digest",
    "secret_matches",
]

API_SECRET_BYTES: Final = 32
PREFIX: Final = "FLTK"
_SECRET_DIGITS: Final = 50
_FORM: Final = re.compile(rf"{PREFIX}-1-([0-9a-z]{{25}})-([0-9a-z]{{{_SECRET_DIGITS}}})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiToken:
    """A token taken apart."""

    id: TokenId
    secret: str = field(repr=False)


def make_api_token(id_: TokenId, secret: bytes) -> str:
    """The text to give to a person, from 32 random bytes that the caller supplies."""
    if len(secret) != API_SECRET_BYTES:
        raise ValueError(f"a token's secret is {API_SECRET_BYTES} bytes, not {len(secret)}")
    return f"{PREFIX}-1-{id_}-{to_base36(secret, _SECRET_DIGITS)}"


def parse_api_token(text: str) -> ApiToken:
    """Take a token apart. Raises ``UnauthorizedError`` that does not repeat it."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise errors.UnauthorizedError(f"the token does not have the form {PREFIX}-1-...-...; copy it whole")
    return ApiToken(id=TokenId(match[1]), secret=match[2])


def secret_digest(secret: str) -> str:
    """What is kept of a token's secret."""
    return hashlib.sha256(b"fleet api token\n" + secret.encode()).hexdigest()


def secret_matches(secret: str, digest: str) -> bool:
    """Whether the secret is the one of ``digest``, in time that does not tell how much of them agrees."""
    return hmac.compare_digest(secret_digest(secret).encode(), digest.encode())
