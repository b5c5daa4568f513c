"""The functions of ``--format`` templates: those of Go's text/template and those that Docker's client adds.

Sources: Go's text/template and fmt documentation; docker/cli ``templates``. A function that cannot do what is asked raises
``ValueError`` or ``TypeError`` with a sentence. ``and`` and ``or`` are the template's own: they look no further than needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

__all__ = ["FUNCTIONS", "HEADING_FUNCTIONS", "shown"]

_WIDTH_MAX: Final = 10_000
"""Characters that printf and pad fill up to."""
_VERB: Final = re.compile(r"%([-+# 0]*)(\d*)(?:\.(\d*))?(.?)", re.DOTALL)


def shown(value: Any, *, nothing: str = "<no value>") -> str:
    """As Go prints it with %v; ``nothing`` stands for what is not there."""
    match value:
        case None:
            return nothing
        case bool():
            return "true" if value else "false"
        case float():
            return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)
        case dict():
            inside = (
                f"{key}:{shown(item, nothing='<nil>')}" for key, item in sorted(value.items()) if not callable(item)
            )
            return f"map[{' '.join(inside)}]"
        case list() | tuple():
            return f"[{' '.join(shown(item, nothing='<nil>') for item in value)}]"
        case _:
            return str(value)


def _json(value: Any) -> str:
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if not callable(item)}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _index(value: Any, *keys: Any) -> Any:
    """A missing key of a map is the empty text, as in Docker's maps of labels."""
    for key in keys:
        if value is None:
            return ""
        if isinstance(value, dict):
            value = value.get(key, "")
        elif isinstance(value, str | list) and type(key) is int:
            value = list(value.encode()) if isinstance(value, str) else value  # Go's texts are bytes
            if not 0 <= key < len(value):
                raise ValueError(f"index {key} is out of range: there are {len(value)}")
            value = value[key]
        else:
            raise TypeError(f"cannot take {shown(key)!r} of {_kind(value)}")
    return value


def _slice(value: Any, *bounds: Any) -> Any:
    if not isinstance(value, str | list) or len(bounds) > 2 or not all(type(bound) is int for bound in bounds):
        raise TypeError("slice takes a text or a list and up to two numbers")
    start, end = (bounds[0] if bounds else 0), (bounds[1] if len(bounds) > 1 else len(value))
    if not 0 <= start <= end <= len(value):
        raise ValueError(f"slice {start}:{end} is out of range: there are {len(value)}")
    return value[start:end]


def _len(value: Any) -> int:
    if value is None:  # the API leaves empty lists out
        return 0
    if not isinstance(value, str | list | dict):
        raise TypeError(f"{_kind(value)} has no length")
    return len(value.encode()) if isinstance(value, str) else len(value)


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float64"
        case str():
            return "string"
        case dict():
            return "map"
        case list():
            return "list"
        case _:
            return "<nil>"


def _pair(first: Any, second: Any) -> tuple[Any, Any]:
    """Two values that can be compared; what is not there counts as the zero of the other's kind."""
    if first is None or second is None:
        other = second if first is None else first
        zero: Any = type(other)() if isinstance(other, str | int | float | list | dict) else None
        return (zero if first is None else first), (zero if second is None else second)
    numbers = isinstance(first, int | float) and isinstance(second, int | float)
    if (not numbers and type(first) is not type(second)) or isinstance(first, bool) != isinstance(second, bool):
        raise TypeError(f"cannot compare {_kind(first)} with {_kind(second)}")
    return first, second


def _eq(first: Any, *others: Any) -> bool:
    if not others:
        raise TypeError("eq takes two values or more")
    return any(a == b for a, b in (_pair(first, other) for other in others))


def _ordered(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compare(first: Any, second: Any) -> bool:
        a, b = _pair(first, second)
        if not isinstance(a, str | int | float) or isinstance(a, bool):
            raise TypeError(f"{_kind(a)} has no order")
        return test(a, b)

    return compare


def _print(*items: Any) -> str:
    """fmt.Sprint: a space between two operands when neither is a string."""
    out = ""
    for position, item in enumerate(items):
        before = items[position - 1] if position else ""
        out += " " if position and not isinstance(item, str) and not isinstance(before, str) else ""
        out += shown(item, nothing="<nil>")
    return out


def _println(*items: Any) -> str:
    return " ".join(shown(item, nothing="<nil>") for item in items) + "\n"


def _printf(form: Any, *items: Any) -> str:
    if not isinstance(form, str):
        raise TypeError("printf takes a text with verbs such as %s first")
    left = list(items)

    def verb(found: re.Match[str]) -> str:
        flags, width, precision, letter = found.groups()
        if letter == "%":
            return "%"
        if not letter:
            return "%!(NOVERB)"
        if int(width or 0) > _WIDTH_MAX or int(precision or 0) > _WIDTH_MAX:
            raise ValueError(f"printf: more than {_WIDTH_MAX} characters wide")
        if not left:
            return f"%!{letter}(MISSING)"
        text = _verb(letter, left.pop(0), flags=flags, precision=None if precision is None else int(precision or 0))
        if "-" in flags:
            return text.ljust(int(width or 0))
        zeros = "0" in flags and letter in "dfFxXob"
        return text.zfill(int(width or 0)) if zeros else text.rjust(int(width or 0))

    out = _VERB.sub(verb, form)
    extra = ", ".join(f"{_kind(item)}={shown(item, nothing='<nil>')}" for item in left)
    return f"{out}%!(EXTRA {extra})" if extra else out


def _verb(letter: str, value: Any, *, flags: str, precision: int | None) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    plus = "+" if "+" in flags and number and value >= 0 else ""
    if letter == "v" or (letter == "s" and not isinstance(value, bool | int | float | None)):
        text = shown(value, nothing="<nil>")
        return plus + (text if precision is None or letter == "v" else text[:precision])
    if letter == "q" and isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if letter == "t" and isinstance(value, bool):
        return shown(value)
    if letter == "T":
        return _kind(value)
    if letter in "dxXob" and type(value) is int:
        return plus + format(value, letter)
    if letter in "xX" and isinstance(value, str):
        text = value.encode().hex()
        return text.upper() if letter == "X" else text
    if letter in "feEgG" and isinstance(value, float):
        return plus + format(value, f".{6 if precision is None else precision}{letter}")
    return f"%!{letter}({_kind(value)}={shown(value, nothing='<nil>')})"


def _text(value: Any) -> str:
    if not isinstance(value, str | None):
        raise TypeError(f"expected text, not {_kind(value)}")
    return value or ""


def _join(items: Any, separator: Any) -> str:
    if not isinstance(items, list | tuple | None):
        raise TypeError(f"join takes a list, not {_kind(items)}")
    return _text(separator).join(shown(item) for item in items or ())


def _split(text: Any, separator: Any) -> list[str]:
    return _text(text).split(_text(separator)) if _text(separator) else list(_text(text))


def _pad(text: Any, before: Any, after: Any) -> str:
    if not (type(before) is int and type(after) is int and 0 <= before <= _WIDTH_MAX and 0 <= after <= _WIDTH_MAX):
        raise TypeError(f"pad takes a text and two numbers from 0 to {_WIDTH_MAX}")
    return f"{' ' * before}{_text(text)}{' ' * after}" if text else ""


def _truncate(text: Any, length: Any) -> str:
    if type(length) is not int or length < 0:
        raise TypeError("truncate takes a text and a number")
    return _text(text)[:length]


def _title(text: Any) -> str:
    """The first letter of each word; the others stay."""
    return re.sub(r"(^|[\W_])(\w)", lambda found: found[1] + found[2].upper(), _text(text))


def _html(value: Any) -> str:
    import html

    return html.escape(shown(value)).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")


def _urlquery(value: Any) -> str:
    from urllib.parse import quote_plus

    return quote_plus(shown(value))


FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "json": _json,
    "index": _index,
    "slice": _slice,
    "len": _len,
    "upper": lambda text: _text(text).upper(),
    "lower": lambda text: _text(text).lower(),
    "title": _title,
    "join": _join,
    "split": _split,
    "pad": _pad,
    "truncate": _truncate,
    "print": _print,
    "printf": _printf,
    "println": _println,
    "html": _html,
    "urlquery": _urlquery,
    "not": lambda value: not value,
    "eq": _eq,
    "ne": lambda first, second: not _eq(first, second),
    "lt": _ordered(lambda a, b: a < b),
    "le": _ordered(lambda a, b: a <= b),
    "gt": _ordered(lambda a, b: a > b),
    "ge": _ordered(lambda a, b: a >= b),
}


def _itself(value: Any, *_: Any) -> Any:
    return value


HEADING_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    **FUNCTIONS,
    **dict.fromkeys(("json", "split", "join", "title", "lower", "upper", "pad", "truncate"), _itself),
}
"""For the line above a table: what changes values leaves headings as they are."""
