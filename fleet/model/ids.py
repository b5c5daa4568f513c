"""Identifiers: 25 characters of base 36, as Docker Swarm's, made from 16 random bytes that the caller supplies."""

from __future__ import annotations

import re
from typing import Final, NewType

__all__ = [
    "ClusterId",
    "ConfigId",
    "ID_ENTROPY_BYTES",
    "LoginId",
    "NetworkId",
    "NodeId",
    "SecretId",
    "ServiceId",
    "TaskId",
    "TokenId",
    "UserId",
    "encode_id",
    "is_id",
]

ClusterId = NewType("ClusterId", str)
ServiceId = NewType("ServiceId", str)
TaskId = NewType("TaskId", str)
NodeId = NewType("NodeId", str)
NetworkId = NewType("NetworkId", str)
SecretId = NewType("SecretId", str)
ConfigId = NewType("ConfigId", str)
LoginId = NewType("LoginId", str)
UserId = NewType("UserId", str)
TokenId = NewType("TokenId", str)

ID_ENTROPY_BYTES: Final = 16
_LENGTH: Final = 25
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_PATTERN: Final = re.compile(r"[0-9a-z]{25}")


def encode_id(entropy: bytes) -> str:
    """16 random bytes -> 25 characters ``0-9a-z`` (128 bits fit in 24.8 digits), zero-padded on the left."""
    if len(entropy) != ID_ENTROPY_BYTES:
        raise ValueError(f"an id is made of {ID_ENTROPY_BYTES} bytes, not {len(entropy)}")
    number = int.from_bytes(entropy, "big")
    digits = []
    for _ in range(_LENGTH):
        number, digit = divmod(number, 36)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))


def is_id(text: str) -> bool:
    """Whether ``text`` has the form of a full id."""
    return _PATTERN.fullmatch(text) is not None
