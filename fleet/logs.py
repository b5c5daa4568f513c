"""The daemon's log: an event is a short constant phrase plus fields; JSON for machines, one plain line for people.

A few lines of our own because the usual libraries cost every host several MiB for what is used here of them. Anybody may take
a logger at any time; nothing is written before ``configure`` was called, and then by whole lines, from any thread.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

__all__ = ["Level", "Logger", "about_requests", "configure", "get_logger", "request_id"]

Level = Literal["debug", "info", "warning", "error"]

request_id: Final[ContextVar[str]] = ContextVar("request_id", default="")
"""Id of the API request that is being answered here; empty outside of one. What a request writes remembers it, and what comes of
that names it in its log lines, so that one search tells a request's story on all hosts."""

_REQUESTS_MAX: Final = 16
_LEVELS: Final[Mapping[str, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_EVENT_WIDTH: Final = 28
_write: Callable[[str], object] | None = None
_render: Callable[[Mapping[str, object]], str] = str
_least: int = _LEVELS["info"]


def configure(*, level: Level, form: Literal["text", "json"], stream: TextIO | None = None) -> None:
    """Write events of ``level`` and above to ``stream`` (default: standard error) from now on."""
    global _write, _render, _least
    target = stream or sys.stderr

    def write(line: str) -> None:
        target.write(line)
        target.flush()

    _write, _least, _render = write, _LEVELS[level], _as_json if form == "json" else _as_text


class Logger:
    """Says what one part of the program does; ``name`` becomes the field ``logger``."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, event: str, /, **fields: object) -> None:
        """Of interest when looking for a fault."""
        self._say("debug", event, fields, None)

    def info(self, event: str, /, **fields: object) -> None:
        """Something happened as it should."""
        self._say("info", event, fields, None)

    def warning(self, event: str, /, **fields: object) -> None:
        """Something is not as it should be, and is dealt with."""
        self._say("warning", event, fields, None)

    def error(self, event: str, /, *, trace: BaseException | None = None, **fields: object) -> None:
        """Something failed; with ``trace`` its traceback is told too."""
        self._say("error", event, fields, trace)

    def exception(self, event: str, /, **fields: object) -> None:
        """An error, with the traceback of the exception that is being handled."""
        self._say("error", event, fields, sys.exc_info()[1])

    def _say(self, level: Level, event: str, fields: Mapping[str, object], trace: BaseException | None) -> None:
        if _write is None or _LEVELS[level] < _least:
            return
        line: dict[str, object] = {
            "timestamp": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": level,
            "event": event,
            "logger": self._name,
            **fields,
        }
        if trace is not None:
            line["exception"] = "".join(traceback.format_exception(trace)).rstrip()
        try:
            _write(_render(line) + "\n")
        except OSError:
            return  # a full disk, a reader that left: the work goes on, and there is nowhere to tell it


def get_logger(name: str) -> Logger:
    """The logger of the part called ``name``."""
    return Logger(name)


def about_requests(ids: Iterable[str]) -> dict[str, object]:
    """The field of a log line that tells what it is about: ``request``, or ``requests`` for several (the first 16)."""
    known = sorted({each for each in ids if each})
    if not known:
        return {}
    return {"request": known[0]} if len(known) == 1 else {"requests": known[:_REQUESTS_MAX]}


def _as_json(line: Mapping[str, object]) -> str:
    return json.dumps(line, default=str, ensure_ascii=False)


def _as_text(line: Mapping[str, object]) -> str:
    shown = dict(line)
    head = f"{shown.pop('timestamp')} {shown.pop('level')!s:8}{shown.pop('event')!s:{_EVENT_WIDTH}}"
    trace = shown.pop("exception", None)
    pairs = " ".join(f"{key}={_quoted(value)}" for key, value in shown.items())
    return f"{head} {pairs}" + (f"\n{trace}" if trace else "")


def _quoted(value: object) -> str:
    """As it is if it is one plain word, else quoted, so that a line stays a line."""
    text = str(value)
    return text if text.isprintable() and text and not {" ", '"', "="} & set(text) else json.dumps(text)
