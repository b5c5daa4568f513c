"""Reading a JSON document of unknown quality: every error names the place, like ``config.json: process.user.uid``."""

from __future__ import annotations

import json
import os
import stat

from fleet.errors import UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = ["Reader", "read_document"]

_BYTES_MAX = 16 << 20


def read_document(path: str) -> Reader:
    """The object in the file. Raises `UserError` when there is none, or it is larger than 16 MiB."""
    name = os.path.basename(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise UserError(f"{path} is a directory, not a file")
        os.set_blocking(fd, True)
        data = file.read(_BYTES_MAX + 1)
    if len(data) > _BYTES_MAX:
        raise UserError(f"{path} is larger than {_BYTES_MAX} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    return Reader(value, f"{name}: ")


class Reader:
    """An object at a place in the document. Absent and null are the same."""

    __slots__ = ("_at", "_values")

    def __init__(self, value: Any, at: str) -> None:
        if not isinstance(value, dict):
            raise UserError(f"{at.rstrip('.: ')} is not an object")
        self._values: dict[str, Any] = value
        self._at = at

    def place(self, name: str) -> str:
        """Where the member is, for a message."""
        return self._at + name

    def has(self, name: str) -> bool:
        """Whether the member is there and not null."""
        return self._values.get(name) is not None

    def refuse(self, name: str, why: str) -> None:
        """Raises `UserError` when the member is there and says anything."""
        if self._values.get(name):
            raise UserError(f"{self.place(name)}: {why}")

    def _get(self, name: str, kind: type, what: str) -> Any:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise UserError(f"{self.place(name)} is not {what}")
        return value

    def text(self, name: str, default: str = "") -> str:
        value = self._get(name, str, "a text")
        if value is None:
            return default
        if "\0" in value:
            raise UserError(f"{self.place(name)} contains a NUL character")
        return str(value)

    def flag(self, name: str) -> bool:
        return bool(self._get(name, bool, "true or false"))

    def number(self, name: str, default: int = 0, *, least: int = -(1 << 63), most: int = (1 << 64) - 1) -> int:
        value = self._get(name, int, "a whole number")
        if value is None:
            return default
        if not least <= value <= most:
            raise UserError(f"{self.place(name)}: {value} is not within {least}..{most}")
        return int(value)

    def object(self, name: str) -> Reader:
        """The member, or an empty object."""
        value = self._values.get(name)
        return Reader({} if value is None else value, f"{self.place(name)}.")

    def objects(self, name: str) -> Iterator[Reader]:
        for index, value in enumerate(self._get(name, list, "a list") or ()):
            yield Reader(value, f"{self.place(name)}[{index}].")

    def texts(self, name: str) -> list[str]:
        values = self._get(name, list, "a list") or []
        for index, value in enumerate(values):
            if not isinstance(value, str) or "\0" in value:
                raise UserError(f"{self.place(name)}[{index}] is not a text")
        return list(values)

    def numbers(self, name: str, *, most: int) -> list[int]:
        values = self._get(name, list, "a list") or []
        for index, value in enumerate(values):
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
                raise UserError(f"{self.place(name)}[{index}] is not a number within 0..{most}")
        return list(values)

    def pairs(self, name: str) -> dict[str, str]:
        values = self._get(name, dict, "an object") or {}
        for key, value in values.items():
            if not isinstance(value, str) or "\0" in key + value:
                raise UserError(f"{self.place(name)}.{key} is not a text")
        return dict(values)

    def raw(self, name: str) -> Any:
        """The member as it was parsed."""
        return self._values.get(name)
