"""What the Docker Engine API (versions 1.24 to 1.47) says of the objects it answers with, and what an answer gets wrong of it.

The tables beside this file are facts gathered from the published descriptions of the API and from what the daemon of 1.47 does
where those are silent, one field a line:

    Field type [optional] [since=1.40] [from=1.44] [until=1.44] [in=a|b|c]

``type`` is string, integer, number, boolean, time (RFC 3339), bytes (base64), any, object, the name of another object, ``[T]``
(a list) or ``{T}`` (a map by name); with ``?`` it may be null. A field that is not ``optional`` is always there: from version
``since`` on, where it is given (before, nobody expects it, and nobody minds it). ``from`` and ``until`` are versions at which
the daemon really begins to show a field and ceases to.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

__all__ = ["OWN", "VERSIONS", "Fact", "faults", "table"]

OWN: Final = frozenset(
    {
        "Swarm.SealingKey",
        "ClusterInfo.SealingKey",
        "Service.Autoscale",
        "UpdateConfig.ProgressDeadline",
        "Network.EnableIPv4",
        "Version.PythonVersion",
    }
)
"""What fleet adds to Docker's objects (``EnableIPv4`` is Docker's own from 1.48 on)."""

VERSIONS: Final = tuple((1, minor) for minor in range(24, 48))

_PLAIN: Final = {"string": str, "boolean": bool, "object": dict}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One field of one object; see the module."""

    kind: str
    optional: bool = False
    since: tuple[int, int] = (0, 0)
    first: tuple[int, int] = (0, 0)
    end: tuple[int, int] = (9, 9)
    values: frozenset[str] = frozenset()


@cache
def table() -> dict[str, dict[str, Fact]]:
    """Object -> field -> fact."""
    result: dict[str, dict[str, Fact]] = {}
    name = ""
    for path in sorted(Path(__file__).parent.glob("*.facts")):
        for line in path.read_text().splitlines():
            if line.startswith(" "):
                field, kind, *words = line.split()
                result[name][field] = _fact(kind, words)
            elif line and not line.startswith("#"):
                name = line
                assert name not in result, f"{name} is described twice"
                result[name] = {}
    return result


def _fact(kind: str, words: list[str]) -> Fact:
    given = dict(word.partition("=")[::2] for word in words)
    unknown = given.keys() - {"optional", "since", "from", "until", "in"}
    assert not unknown, f"{unknown} in the tables"
    return Fact(
        kind=kind,
        optional="optional" in given,
        since=_version(given.get("since", "0.0")),
        first=_version(given.get("from", "0.0")),
        end=_version(given.get("until", "9.9")),
        values=frozenset(given["in"].split("|")) if "in" in given else frozenset(),
    )


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


def faults(name: str, value: Any, *, version: tuple[int, int] = VERSIONS[-1]) -> list[str]:
    """What is wrong with ``value`` as the object ``name`` of that version, each with its place; fields of ``OWN`` are not."""
    return _faults(name, value, name, version)


def _faults(kind: str, value: Any, place: str, version: tuple[int, int]) -> list[str]:
    if kind.endswith("?"):
        return [] if value is None else _faults(kind[:-1], value, place, version)
    if value is None and kind != "any":
        return [f"{place} is null"]
    if kind[0] in "[{":
        return _many(kind, value, place, version)
    if kind in table():
        return _object(kind, value, place, version)
    return [] if _is_plain(kind, value) else [f"{place} is {value!r}, no {kind}"]


def _many(kind: str, value: Any, place: str, version: tuple[int, int]) -> list[str]:
    expected = list if kind[0] == "[" else dict
    if not isinstance(value, expected):
        return [f"{place} is {value!r}, no {expected.__name__}"]
    items = enumerate(value) if isinstance(value, list) else value.items()
    return [text for key, item in items for text in _faults(kind[1:-1], item, f"{place}[{key}]", version)]


def _object(kind: str, value: Any, place: str, version: tuple[int, int]) -> list[str]:
    if not isinstance(value, dict):
        return [f"{place} is {value!r}, no {kind}"]
    facts = table()[kind]
    found = [f"{place}.{key} is not Docker's" for key in value.keys() - facts.keys() if f"{kind}.{key}" not in OWN]
    for key, fact in facts.items():
        is_shown = fact.first <= version < fact.end
        if key not in value:
            if is_shown and not fact.optional and version >= fact.since:
                found.append(f"{place}.{key} is missing")
            continue
        if not is_shown:
            found.append(f"{place}.{key} is not of this version")
        found += _faults(fact.kind, value[key], f"{place}.{key}", version)
        if fact.values and value[key] not in fact.values:
            found.append(f"{place}.{key} is {value[key]!r}, none of {sorted(fact.values)}")
    return found


def _is_plain(kind: str, value: Any) -> bool:
    match kind:
        case "any":
            return True
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "time":
            return isinstance(value, str) and value.endswith("Z") and _parses(datetime.fromisoformat, value)
        case "bytes":
            return isinstance(value, str) and _parses(lambda text: base64.b64decode(text, validate=True), value)
    return isinstance(value, _PLAIN[kind])


def _parses(parse: Any, text: str) -> bool:
    try:
        parse(text)
    except (ValueError, binascii.Error):
        return False
    return True
