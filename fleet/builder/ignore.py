"""``.dockerignore``: which paths of a context are left out, as Docker matches (moby ``patternmatcher``). Pure."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

from fleet.errors import UserError

__all__ = ["Ignore", "glob_pattern", "parse_ignore"]

_BYTES_MAX = 1 << 20
_RULES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Ignore:
    """Rules in order; the last one that matches a path or one of its parents decides."""

    rules: tuple[tuple[bool, re.Pattern[str]], ...] = ()

    def excludes(self, path: str) -> bool:
        """Whether the path (relative, slashes) is left out."""
        parts = path.split("/")
        heads = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        excluded = False
        for keep, pattern in self.rules:
            if keep == excluded and any(pattern.fullmatch(head) for head in heads):
                excluded = not keep
        return excluded


def parse_ignore(data: bytes) -> Ignore:
    """Read the file. Raises ``UserError`` with the line."""
    if len(data) > _BYTES_MAX:
        raise UserError(f".dockerignore: larger than {_BYTES_MAX} bytes")
    rules: list[tuple[bool, re.Pattern[str]]] = []
    for number, raw in enumerate(data.decode("utf-8-sig", "surrogateescape").splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        keep = line.startswith("!")
        line = line.removeprefix("!").strip()
        if not line:
            raise UserError(f'.dockerignore line {number}: illegal exclusion pattern: "!"')
        clean = posixpath.normpath(line).lstrip("/")
        if clean in (".", ""):
            continue
        rules.append((keep, glob_pattern(clean, deep=True, what=f".dockerignore line {number}")))
        if len(rules) > _RULES_MAX:
            raise UserError(f".dockerignore line {number}: more than {_RULES_MAX} patterns")
    return Ignore(tuple(rules))


def glob_pattern(text: str, *, deep: bool = False, what: str = "pattern") -> re.Pattern[str]:
    """Go's ``filepath.Match`` as a regular expression; with ``deep`` also ``**``."""
    result: list[str] = []
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if char == "*":
            if deep and text.startswith("*", at):
                at += 1
                if text.startswith("/", at):
                    at += 1
                    result.append("(?:.*/)?")
                else:
                    result.append(".*")
            else:
                result.append("[^/]*")
        elif char == "?":
            result.append("[^/]")
        elif char == "[":
            end = text.find("]", at + 1)
            if end < 0:
                raise UserError(f"{what}: {text[:100]!r}: [ is not closed")
            inner = text[at:end].replace("\\", "\\\\").replace("[", "\\[").replace("&&", "\\&&").replace("||", "\\||")
            result.append(f"[{inner}]")
            at = end + 1
        elif char == "\\" and at < len(text):
            result.append(re.escape(text[at]))
            at += 1
        else:
            result.append(re.escape(char))
    try:
        return re.compile("".join(result), re.DOTALL)
    except re.error as cause:
        raise UserError(f"{what}: {text[:100]!r}: {cause}") from cause
