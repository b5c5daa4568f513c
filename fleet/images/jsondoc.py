"""Small typed reads from JSON that a stranger wrote: every wrong shape is an error that names the document and the
field.
"""

from __future__ import annotations

import json
from typing import Any

from fleet.errors import RejectedFault

__all__ = ["Document", "decode_document", "encode_canonical"]

_ITEMS_MAX = 100_000


class Document:
    """One JSON object. Reading a field of the wrong type raises ``RejectedFault`` ("manifest sha256:..: layers:
    ...").
    """

    __slots__ = ("raw", "what")

    def __init__(self, raw: dict[str, Any], what: str) -> None:
        self.raw = raw
        self.what = what

    def __contains__(self, key: str) -> bool:
        return self.raw.get(key) is not None

    def text(self, key: str, default: str | None = None) -> str:
        """A string; absent or null gives ``default``, and without one is an error."""
        value = self.raw.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, "text", value)
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise RejectedFault(f"{self.what}: {key} holds a NUL or an unpaired surrogate")
        return value

    def number(self, key: str) -> int:
        """A whole number, not negative."""
        value = self.raw.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            raise self.wrong(key, "a whole number", value)
        return value

    def child(self, key: str, *, required: bool = False) -> Document:
        """A nested object; absent or null is empty unless ``required``."""
        value = self.raw.get(key)
        if value is None and not required:
            value = {}
        if not isinstance(value, dict):
            raise self.wrong(key, "an object", value)
        return Document(value, f"{self.what}: {key}")

    def children(self, key: str) -> list[Document]:
        """A list of objects; absent or null is empty."""
        items = self._items(key)
        for item in items:
            if not isinstance(item, dict):
                raise self.wrong(key, "a list of objects", items)
        return [Document(item, f"{self.what}: {key}[{index}]") for index, item in enumerate(items)]

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; absent or null is empty, a single string (old images) is a list of one."""
        value = self.raw.get(key)
        holder = Document({key: [value]}, self.what) if isinstance(value, str) else self
        return tuple(Document({key: item}, self.what).text(key) for item in holder._items(key))

    def text_map(self, key: str) -> dict[str, str]:
        """An object of strings; absent or null is empty."""
        child = self.child(key)
        return {name: child.text(name, "") for name in child.raw}

    def keys_of(self, key: str) -> tuple[str, ...]:
        """The keys of an object used as a set (ExposedPorts, Volumes), sorted."""
        return tuple(sorted(self.child(key).raw))

    def wrong(self, key: str, expected: str, value: object) -> RejectedFault:
        """The error for a field of the wrong shape."""
        return RejectedFault(f"{self.what}: {key} must be {expected}, not {type(value).__name__}")

    def _items(self, key: str) -> list[Any]:
        value = self.raw.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(key, "a list", value)
        if len(value) > _ITEMS_MAX:
            raise RejectedFault(f"{self.what}: {key} has {len(value)} items, more than {_ITEMS_MAX}")
        return value


def decode_document(body: bytes, what: str, *, bytes_max: int) -> Document:
    """Parse a JSON object of at most ``bytes_max`` bytes; ``RejectedFault`` says what is wrong with it."""
    if len(body) > bytes_max:
        raise RejectedFault(f"{what}: larger than {bytes_max} bytes")
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RejectedFault(f"{what}: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise RejectedFault(f"{what}: not a JSON object")
    return Document(raw, what)


def encode_canonical(value: dict[str, Any]) -> bytes:
    """Compact JSON with sorted keys: the same value gives the same digest on every node."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
