"""What the daemon says while it pulls, pushes, loads or builds: a line for each change, on a terminal a bar for each layer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol, TextIO

import click

from fleet import errors
from fleet.cli import clock
from fleet.cli.widths import clean, columns_of, cut, is_live

__all__ = ["Bars", "follow", "messages"]

Json = dict[str, Any]

LINE_MAX: Final = 1024 * 1024
"""Bytes of one progress message."""
_BAR: Final = 30
_LAYERS_MAX: Final = 1000
"""Bars kept; further layers are told in lines."""


def follow(chunks: Iterable[bytes], *, quiet: bool = False, err: bool = False) -> Json:
    """Print progress, to standard error if ``err``; returns the last message. Raises ``RuntimeFault`` for an error in the
    stream.
    """
    out = sys.stderr if err else sys.stdout
    show: _Show = Bars(out) if is_live(out) and not quiet else _Lines(err=err)
    last: Json = {}
    for message in messages(chunks):
        problem = message.get("error") or (message.get("errorDetail") or {}).get("message")
        if problem:
            raise errors.RuntimeFault(str(problem))
        last = message
        if not quiet:
            show.show(message)
    return last


def messages(chunks: Iterable[bytes]) -> Iterator[Json]:
    """The JSON objects of a progress stream, one a line."""
    buffer = b""
    for chunk in chunks:
        buffer += chunk
        *lines, buffer = buffer.split(b"\n")
        if len(buffer) > LINE_MAX:
            raise errors.UnavailableError("the daemon sent a progress message that does not end")
        yield from (_message(line) for line in lines if line.strip())
    if buffer.strip():
        yield _message(buffer)


def _message(line: bytes) -> Json:
    try:
        found = json.loads(line)
    except ValueError as cause:
        raise errors.UnavailableError(f"the daemon sent a progress message that is not JSON: {line[:80]!r}") from cause
    return found if isinstance(found, dict) else {"status": str(found)}


class _Show(Protocol):
    def show(self, message: Json) -> None: ...


class _Lines:
    """A line when the status of something changes."""

    def __init__(self, *, err: bool) -> None:
        self._err = err
        self._shown: dict[str, str] = {}

    def show(self, message: Json) -> None:
        if "stream" in message:
            click.echo(str(message["stream"]).rstrip("\n"), err=self._err)
            return
        layer, status = str(message.get("id", "")), str(message.get("status", ""))
        if status and self._shown.get(layer) != status:
            self._shown[layer] = status
            click.echo(f"{layer}: {status}" if layer else status, err=self._err)


class Bars:
    """A line for each layer that is written over as it goes on; other messages scroll below. For terminals (ECMA-48)."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._line_of: dict[str, int] = {}
        self._lines = 0

    def show(self, message: Json) -> None:
        layer = str(message.get("id", ""))
        if "stream" in message:
            for line in str(message["stream"]).rstrip("\n").split("\n"):
                self._below(line)
        elif not layer or (layer not in self._line_of and len(self._line_of) >= _LAYERS_MAX):
            self._below(self._text(message))
        elif layer not in self._line_of:
            self._line_of[layer] = self._lines
            self._below(self._text(message))
        else:
            up = self._lines - self._line_of[layer]
            self._out.write(f"\x1b[{up}A\r\x1b[2K{self._cut(self._text(message))}\r\x1b[{up}B")
        self._out.flush()

    def _below(self, text: str) -> None:
        self._out.write(f"{self._cut(text)}\n")
        self._lines += 1

    def _cut(self, text: str) -> str:
        """Without control characters, and short enough not to wrap: a wrapped line would be two to the terminal."""
        return cut(clean(text), max((columns_of(self._out) or 80) - 1, 20))

    @staticmethod
    def _text(message: Json) -> str:
        layer, status = str(message.get("id", "")), str(message.get("status", ""))
        text = f"{layer}: {status}" if layer else status
        detail = message.get("progressDetail")
        current, total = (detail.get("current"), detail.get("total")) if isinstance(detail, dict) else (None, None)
        if not (isinstance(current, int) and isinstance(total, int) and 0 < current <= total):
            return text
        done = _BAR * current // total
        bar = "=" * done + (">" if done < _BAR else "") + " " * (_BAR - done - 1)
        return f"{text} [{bar}] {clock.human_size(current)}/{clock.human_size(total)}"
