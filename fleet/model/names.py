"""What objects of the cluster may be called. The texts are Docker's; each says what is wrong, or nothing."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["data_name_fault", "network_name_fault", "service_name_fault"]

_WORD: Final = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9_-]*[a-zA-Z0-9])?")
_DOTTED: Final = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]*[a-zA-Z0-9])?")
_NETWORK: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_SERVICE_MAX: Final = 63
"""Characters of a label in the DNS."""
_DATA_MAX: Final = 64
_SHOWN_MAX: Final = 80


def service_name_fault(name: str) -> str:
    """Of a service."""
    if not name:
        return "name must be provided"
    if len(name) > _SERVICE_MAX:
        return f"name must be {_SERVICE_MAX} characters or fewer"
    return "" if _WORD.fullmatch(name) else f"name must be valid as a DNS name component, which {name!r} is not"


def data_name_fault(name: str) -> str:
    """Of a secret or a config."""
    if len(name) <= _DATA_MAX and _DOTTED.fullmatch(name):
        return ""
    return (
        f"invalid name, only {_DATA_MAX} [a-zA-Z0-9-_.] characters allowed,"
        " and the start and end character must be [a-zA-Z0-9]"
    )


def network_name_fault(name: str) -> str:
    """Of a network of the cluster."""
    if _NETWORK.fullmatch(name):
        return ""
    return f"invalid network name {name[:_SHOWN_MAX]!r}: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, at most 128 characters"
