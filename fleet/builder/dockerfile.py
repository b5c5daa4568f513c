"""A Dockerfile as values: instructions with the line each begins at (Dockerfile reference, "Format"). Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fleet.errors import UserError

__all__ = ["Heredoc", "Instruction", "expand", "parse_dockerfile", "split_words"]

DOCKERFILE_BYTES_MAX: Final = 1 << 20
INSTRUCTIONS_MAX: Final = 10_000
EXPANDED_MAX: Final = 1 << 20
_DEPTH_MAX: Final = 20
_NAMES: Final = frozenset(
    (
        *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER"),
        *("ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
    )
)
_DIRECTIVE: Final = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*")
_HEREDOC: Final = re.compile(r"(?<!<)<<(-?)([\"']?)([A-Za-z_][A-Za-z0-9_]*)\2(?=\s|$)")
_FLAG: Final = re.compile(r"--([a-z][a-z-]*)(?:=(\S*))?(?:\s+|$)")
_FLAGGED: Final = frozenset({"FROM", "COPY", "ADD", "RUN"})
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heredoc:
    """``<<NAME`` and its lines; ``literal``: the name was quoted, nothing in it is expanded."""

    name: str
    text: str
    literal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """``text`` is what follows the name and its flags, continuation lines joined."""

    line: int
    name: str
    text: str
    flags: tuple[tuple[str, str], ...] = ()
    heredocs: tuple[Heredoc, ...] = ()
    escape: str = "\\"

    @property
    def words(self) -> tuple[str, ...] | None:
        """The JSON (exec) form, or None for the shell form."""
        if not self.text.startswith("["):
            return None
        try:
            found = json.loads(self.text)
        except (ValueError, RecursionError):
            return None  # Docker reads `[ -f x ] && y` as shell form as well
        if isinstance(found, list) and all(isinstance(word, str) for word in found):
            return tuple(found)
        return None

    @property
    def shown(self) -> str:
        """As the build's output repeats it."""
        flags = "".join(f"--{name}={value} " if value else f"--{name} " for name, value in self.flags)
        return f"{self.name} {flags}{self.text}".strip()

    def wrong(self, message: str) -> UserError:
        """An error that names the line."""
        return UserError(f"dockerfile line {self.line}: {self.name}: {message}")


def parse_dockerfile(data: bytes) -> tuple[Instruction, ...]:
    """Read a Dockerfile. Raises ``UserError`` with the number of the line that is wrong."""
    if len(data) > DOCKERFILE_BYTES_MAX:
        raise UserError(f"dockerfile: larger than {DOCKERFILE_BYTES_MAX} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise UserError(f"dockerfile line {data.count(10, 0, cause.start) + 1}: not UTF-8") from cause
    if "\0" in text:
        raise UserError(f"dockerfile line {text[: text.index(chr(0))].count(chr(10)) + 1}: holds a NUL")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    escape, at = _directives(lines)
    found: list[Instruction] = []
    while at < len(lines):
        if not lines[at].strip() or lines[at].lstrip().startswith("#"):
            at += 1
            continue
        start = at
        joined, at = _logical_line(lines, at, escape)
        if not joined.strip():
            continue
        instruction = parse_instruction(joined, line=start + 1, escape=escape)
        if instruction.name in ("RUN", "COPY", "ADD") and instruction.words is None:
            heredocs, at = _heredocs(lines, at, instruction)
            instruction = Instruction(
                line=instruction.line,
                name=instruction.name,
                text=instruction.text,
                flags=instruction.flags,
                heredocs=heredocs,
                escape=escape,
            )
        found.append(instruction)
        if len(found) > INSTRUCTIONS_MAX:
            raise UserError(f"dockerfile line {start + 1}: more than {INSTRUCTIONS_MAX} instructions")
    if not found:
        raise UserError("dockerfile: the file is empty (no build instruction)")
    for instruction in found:
        if instruction.name == "FROM":
            break
        if instruction.name != "ARG":
            raise instruction.wrong("no build stage yet: begin with FROM (only ARG may come before it)")
    else:
        raise found[-1].wrong("no build stage: the file has no FROM")
    return tuple(found)


def parse_instruction(text: str, *, line: int, escape: str = "\\") -> Instruction:
    """One logical line: name, flags, the rest. Raises ``UserError``."""
    name, _, rest = text.strip().replace("\t", " ", 1).partition(" ")
    name, rest = name.upper(), rest.strip()
    if name not in _NAMES:
        raise UserError(f"dockerfile line {line}: unknown instruction: {name[:60]}")
    flags: list[tuple[str, str]] = []
    while name in _FLAGGED and (match := _FLAG.match(rest)):
        flags.append((match[1], match[2] or ""))
        rest = rest[match.end() :]
    instruction = Instruction(line=line, name=name, text=rest, flags=tuple(flags), escape=escape)
    if not rest:
        raise instruction.wrong("requires at least one argument")
    return instruction


def _directives(lines: list[str]) -> tuple[str, int]:
    escape = "\\"
    at = 0
    while at < len(lines) and (match := _DIRECTIVE.fullmatch(lines[at].strip())):
        if match[1].lower() == "escape":
            if match[2] not in ("\\", "`"):
                raise UserError(f"dockerfile line {at + 1}: escape must be \\ or `, not {match[2][:20]!r}")
            escape = match[2]
        elif match[1].lower() not in ("syntax", "check"):
            break
        at += 1
    return escape, at


def _logical_line(lines: list[str], at: int, escape: str) -> tuple[str, int]:
    """Joins continuation lines; comments and empty lines between them are left out."""
    parts: list[str] = []
    while at < len(lines):
        line = lines[at]
        at += 1
        if parts and (not line.strip() or line.lstrip().startswith("#")):
            continue
        stripped = line.rstrip()
        if stripped.endswith(escape):
            parts.append(stripped[:-1])
            continue
        parts.append(line)
        break
    return "".join(parts).strip(), at


def _heredocs(lines: list[str], at: int, instruction: Instruction) -> tuple[tuple[Heredoc, ...], int]:
    found: list[Heredoc] = []
    for match in _HEREDOC.finditer(instruction.text):
        body: list[str] = []
        while True:
            if at >= len(lines):
                raise instruction.wrong(f"the heredoc {match[3]} does not end: no line holds {match[3]} alone")
            line = lines[at].lstrip("\t") if match[1] else lines[at]
            at += 1
            if line == match[3]:
                break
            body.append(line + "\n")
        found.append(Heredoc(name=match[3], text="".join(body), literal=bool(match[2])))
    return tuple(found), at


def split_words(text: str, env: Mapping[str, str], *, escape: str = "\\") -> list[str]:
    """Words by blanks outside quotes, each expanded; quotes are taken off. Raises ``UserError`` without a line."""
    words: list[str] = []
    current: list[str] | None = None
    at = 0
    while at < len(text):
        char = text[at]
        if char in " \t\n":
            if current is not None:
                words.append("".join(current))
                current = None
            at += 1
            continue
        piece, at = _piece(text, at, env, escape, 0)
        current = [*(current or []), piece]
    if current is not None:
        words.append("".join(current))
    if sum(map(len, words)) > EXPANDED_MAX:
        raise UserError(f"expands to more than {EXPANDED_MAX} characters")
    return words


def expand(text: str, env: Mapping[str, str], *, escape: str = "\\", depth: int = 0) -> str:
    """``$x``, ``${x}``, ``${x:-y}``, ``${x:+y}`` (and without the colon); quotes are taken off."""
    if depth > _DEPTH_MAX:
        raise UserError(f"variables nested deeper than {_DEPTH_MAX}")
    result: list[str] = []
    at = 0
    while at < len(text):
        piece, at = _piece(text, at, env, escape, depth)
        result.append(piece)
    joined = "".join(result)
    if len(joined) > EXPANDED_MAX:
        raise UserError(f"expands to more than {EXPANDED_MAX} characters")
    return joined


def _piece(text: str, at: int, env: Mapping[str, str], escape: str, depth: int) -> tuple[str, int]:
    char = text[at]
    if char == "'":
        end = text.find("'", at + 1)
        if end < 0:
            raise UserError("a single quote is not closed")
        return text[at + 1 : end], end + 1
    if char == '"':
        result: list[str] = []
        at += 1
        while at < len(text) and text[at] != '"':
            if text[at] == escape and text[at + 1 : at + 2] in ('"', "$", escape):
                result.append(text[at + 1])
                at += 2
            elif text[at] == "$":
                piece, at = _variable(text, at, env, escape, depth)
                result.append(piece)
            else:
                result.append(text[at])
                at += 1
        if at >= len(text):
            raise UserError("a double quote is not closed")
        return "".join(result), at + 1
    if char == escape:
        return text[at + 1 : at + 2], at + 2
    if char == "$":
        return _variable(text, at, env, escape, depth)
    return char, at + 1


def _variable(text: str, at: int, env: Mapping[str, str], escape: str, depth: int) -> tuple[str, int]:
    if text[at + 1 : at + 2] != "{":
        match = _VARIABLE.match(text, at + 1)
        return (env.get(match[0], ""), match.end()) if match else ("$", at + 1)
    match = _VARIABLE.match(text, at + 2)
    if match is None:
        raise UserError("${ needs the name of a variable")
    end, level = match.end(), 1
    while end < len(text):
        if text.startswith("${", end):
            level += 1
        elif text[end] == "}":
            level -= 1
            if not level:
                break
        end += 1
    else:
        raise UserError("${ is not closed by }")
    operator = text[match.end() : end]
    value = env.get(match[0])
    if not operator:
        return value or "", end + 1
    colon = operator.startswith(":")
    kind, word = operator[colon : colon + 1], operator[colon + 1 :]
    present = bool(value) if colon else value is not None
    if kind == "-":
        return (value or "") if present else expand(word, env, escape=escape, depth=depth + 1), end + 1
    if kind == "+":
        return expand(word, env, escape=escape, depth=depth + 1) if present else "", end + 1
    if kind == "?":
        if present:
            return value or "", end + 1
        raise UserError(f"{match[0]}: {expand(word, env, escape=escape, depth=depth + 1) or 'not set'}")
    raise UserError(f"${{{match[0]}{operator[:20]}}}: the modifier is not one of :- - :+ + :? ?")
