"""How values are spelled on the wire: Docker's field names, and reading what Docker's clients really send.

The model's structs carry the engine API's field names, so a stored object, an API body and a dispatcher message are one
type and no translation layer can drift. ``rename`` derives the name (``nano_cpus`` -> ``NanoCPUs``);
``msgspec.field(name=...)`` spells the exceptions. Durations are nanoseconds (suffix ``_ns``), sizes bytes, times UTC.

Clients differ from the specification in three ways that ``parse_json`` absorbs: keys in any case (docker-py sends
``{"mode": {"replicated": ...}}``), ``null`` for an absent value, and unknown keys (ignored, as the Docker daemon does).
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from fleet import errors

__all__ = ["Value", "decode", "encode", "parse_builtins", "parse_json", "to_builtins"]

_ACRONYMS: Final = {
    "id": "ID", "ids": "IDs", "ip": "IP", "ips": "IPs", "cpus": "CPUs", "dns": "DNS", "tls": "TLS", "tty": "TTY",
    "url": "URL", "uid": "UID", "gid": "GID", "pid": "PID", "ipam": "IPAM", "os": "OS", "ca": "CA", "cas": "CAs",
    "ipv4": "IPv4", "ipv6": "IPv6", "vni": "VNI",
}  # fmt: skip

_UNITS: Final = ("_ns",)
"""Suffixes that name a unit in code and are absent on the wire."""

MAX_DEPTH: Final = 64
"""Deepest nesting accepted in outside JSON; Docker's deepest object has 9 levels."""


def docker_name(name: str) -> str:
    """The engine API's spelling of an attribute name."""
    for unit in _UNITS:
        name = name.removesuffix(unit)
    return "".join(_ACRONYMS.get(word) or word[:1].upper() + word[1:] for word in name.split("_"))


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename=docker_name, gc=False):
    """Base of all model values: immutable, compared by content, encodable."""


T = TypeVar("T")


def encode(value: object) -> bytes:
    """JSON bytes with Docker's field names; the form the store keeps."""
    return msgspec.json.encode(value)


def decode(data: bytes, kind: type[T]) -> T:
    """The inverse of ``encode``: for bytes fleet wrote itself. Raises ``InvariantError`` when they do not fit."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as cause:
        raise errors.InvariantError(f"stored {kind.__name__} does not decode: {cause}") from cause


def to_builtins(value: object) -> Any:
    """Dicts, lists, strings and numbers, named as on the wire."""
    return msgspec.to_builtins(value, str_keys=True)


def parse_json(data: bytes, kind: type[T], *, what: str) -> T:
    """Read a client's JSON body as ``kind``. Raises ``UserError`` that names the place: ``service spec: ...``."""
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as cause:
        raise errors.UserError(f"{what}: the body is not valid JSON: {cause}") from cause
    return parse_builtins(raw, kind, what=what)


def parse_builtins(raw: object, kind: type[T], *, what: str) -> T:
    """Read parsed JSON as ``kind``; see ``parse_json``."""
    try:
        return msgspec.convert(_shape(typing.cast("Any", kind))(raw, 0), type=kind, strict=True)
    except msgspec.ValidationError as cause:
        raise errors.UserError(f"{what}: {_place(str(cause))}") from cause


def _place(text: str) -> str:
    """Msgspec's "Expected `int`, got `str` - at `$.A.B`" as "A.B: expected int, got str"."""
    message, _, path = text.partition(" - at `$")
    message = message.replace("`", "")
    message = message[:1].lower() + message[1:]
    path = path.rstrip("`").lstrip(".")
    return f"{path}: {message}" if path else message


_Shape = Callable[[object, int], object]


def _same(value: object, _depth: int) -> object:
    return value


def _guard(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise msgspec.ValidationError(f"Nested deeper than {MAX_DEPTH} levels")


@functools.cache
def _shape(kind: Any) -> _Shape:
    """A function that respells keys for ``kind`` and drops nulls, built once per type."""
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        known = [a for a in arguments if a is not types.NoneType]
        return _shape(known[0]) if len(known) == 1 else _same
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _struct_shape(kind)
    if origin in (tuple, list):
        return _list_shape(arguments[0])
    if origin is dict:
        return _dict_shape(arguments[1])
    return _same


def _struct_shape(kind: type[msgspec.Struct]) -> _Shape:
    fields: dict[str, tuple[str, _Shape]] | None = None

    def shape(value: object, depth: int) -> object:
        nonlocal fields
        _guard(depth)
        if not isinstance(value, Mapping):
            return value
        if fields is None:
            fields = {f.encode_name.lower(): (f.encode_name, _shape(f.type)) for f in msgspec.structs.fields(kind)}
        result: dict[str, object] = {}
        for key, item in value.items():
            found = fields.get(str(key).lower())
            if found is not None and item is not None:
                result[found[0]] = found[1](item, depth + 1)
        return result

    return shape


def _list_shape(item_kind: Any) -> _Shape:
    item_shape = _shape(item_kind)

    def shape(value: object, depth: int) -> object:
        _guard(depth)
        return [item_shape(item, depth + 1) for item in value] if isinstance(value, list) else value

    return shape


def _dict_shape(item_kind: Any) -> _Shape:
    item_shape = _shape(item_kind)
    empty = "" if item_kind is str else None

    def shape(value: object, depth: int) -> object:
        _guard(depth)
        if not isinstance(value, Mapping):
            return value
        return {str(k): empty if v is None else item_shape(v, depth + 1) for k, v in value.items()}

    return shape
