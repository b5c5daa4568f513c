"""Variables in Compose text: ``$V``, ``${V}``, ``${V:-d}``, ``${V-d}``, ``${V:?e}``, ``${V?e}``, ``${V:+r}``, ``${V+r}``, ``$$``.

Source: Compose specification, "Interpolation". With a colon an empty value counts as unset. Defaults, messages and
replacements may hold variables themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from fleet import errors

__all__ = ["interpolate"]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR: Final = re.compile(r":?[-?+]")
_DEPTH_MAX: Final = 20
LENGTH_MAX: Final = 1024 * 1024
"""Characters a value may grow to."""


def interpolate(text: str, environment: Mapping[str, str], *, on_unset: Callable[[str], None] | None = None) -> str:
    """``text`` with its variables replaced. ``on_unset`` hears of each name that is unset and has no default.

    Raises ``UserError`` for text like ``${`` that is not a variable, and for ``${V:?message}`` when V is unset.
    """
    if "$" not in text:
        return text
    reader = _Reader(text, environment, on_unset or (lambda _name: None))
    result = reader.read(until="", depth=0)
    if len(result) > LENGTH_MAX:
        raise errors.UserError(f"{text[:40]!r}... grows to {len(result)} characters; at most {LENGTH_MAX}")
    return result


class _Reader:
    def __init__(self, text: str, environment: Mapping[str, str], on_unset: Callable[[str], None]) -> None:
        self.text = text
        self.at = 0
        self.environment = environment
        self.on_unset = on_unset

    def read(self, *, until: str, depth: int, used: bool = True) -> str:
        """Text up to ``until`` (consumed). ``used`` false: the result is thrown away, so nothing is demanded of it."""
        if depth > _DEPTH_MAX:
            raise errors.UserError(f"variables nested deeper than {_DEPTH_MAX} levels in {self.text[:80]!r}")
        parts: list[str] = []
        while self.at < len(self.text):
            character = self.text[self.at]
            if character == until:
                self.at += 1
                return "".join(parts)
            if character != "$":
                parts.append(character)
                self.at += 1
                continue
            parts.append(self._variable(depth=depth, used=used))
        if until:
            raise self._bad("has no closing '}'")
        return "".join(parts)

    def _bad(self, why: str) -> errors.UserError:
        return errors.UserError(f"invalid interpolation {self.text!r}: {why}; write $$ for a literal dollar sign")

    def _variable(self, *, depth: int, used: bool) -> str:
        self.at += 1
        if self.text.startswith("$", self.at):
            self.at += 1
            return "$"
        braces = self.text.startswith("{", self.at)
        self.at += braces
        found = _NAME.match(self.text, self.at)
        if found is None:
            raise self._bad("a '$' must be followed by a name or {NAME}")
        name = found[0]
        self.at = found.end()
        if not braces:
            return self._plain(name, used=used)
        if self.text.startswith("}", self.at):
            self.at += 1
            return self._plain(name, used=used)
        operator = _OPERATOR.match(self.text, self.at)
        if operator is None:
            raise self._bad(f"unexpected text after ${{{name}" if self.at < len(self.text) else "has no closing '}'")
        self.at = operator.end()
        return self._operate(name, operator[0], depth=depth, used=used)

    def _plain(self, name: str, *, used: bool) -> str:
        value = self.environment.get(name)
        if value is None and used:
            self.on_unset(name)
        return value or ""

    def _operate(self, name: str, operator: str, *, depth: int, used: bool) -> str:
        value = self.environment.get(name)
        present = value is not None and (value != "" or not operator.startswith(":"))
        wanted = present if operator.endswith("+") else not present
        operand = self.read(until="}", depth=depth + 1, used=used and wanted)
        if operator.endswith("+"):
            return operand if present else ""
        if present:
            return value or ""
        if operator.endswith("?") and used:
            raise errors.UserError(f"variable {name} is required: {operand or 'it is not set'}")
        return operand
