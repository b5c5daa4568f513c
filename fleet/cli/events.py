"""``fleet events``: what happens, as it happens or as it was kept."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import click

from fleet import errors
from fleet.cli import clock
from fleet.cli.app import App, filters_of, pass_app
from fleet.cli.render import FORMATS, echo, formatter
from fleet.cli.widths import clean

__all__ = ["event_text", "event_time", "event_words", "events", "read_events"]

Json = dict[str, Any]

EVENT_MAX: Final = 1024 * 1024
_FIELDS: Final = ("status", "id", "from", "Type", "Action", "Actor", "scope", "time", "timeNano")
_ZEROS: Final = {**dict.fromkeys(("status", "id", "from", "scope", "type", "action"), ""), "time": 0, "timenano": 0}


@click.command()
@click.option("--since", metavar="TIME", help="Events since a time, or a duration back such as 10m.")
@click.option("--until", metavar="TIME", help="Stop at a time.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="NAME=VALUE", help="Show only what matches.")
@click.option("--format", "fmt", metavar="FORMAT", help=FORMATS)
@pass_app
def events(app: App, *, since: str | None, until: str | None, filters: tuple[str, ...], fmt: str | None) -> None:
    """Follow what happens, until interrupted."""
    query = {
        "since": clock.since_query(since, flag="--since"),
        "until": clock.since_query(until, flag="--until"),
        "filters": filters_of(filters),
    }
    show = _shower(fmt)
    with app.streaming_client().stream("GET", "/events", query=query) as chunks:
        for event in read_events(chunks):
            echo(show(event))
            sys.stdout.flush()


def _shower(fmt: str | None) -> Callable[[Json], str]:
    """How an event becomes a line."""
    if not fmt:
        return event_text
    show = formatter(fmt, zeros=_ZEROS)
    return lambda event: show(_ordered(event))


def _ordered(event: Json) -> Json:
    """Its fields, and its attributes, in the order in which Docker's client writes them."""
    actor = event.get("Actor") or {}
    event = {**event, "Actor": {**actor, "Attributes": dict(sorted((actor.get("Attributes") or {}).items()))}}
    return {**{key: event[key] for key in _FIELDS if key in event}, **event}


def read_events(chunks: Iterator[bytes]) -> Iterator[Json]:
    """JSON objects one after another, with or without line ends between them. Raises ``UnavailableError`` for endless ones."""
    decoder = json.JSONDecoder()
    buffer = ""
    pending = b""
    for chunk in chunks:
        pending += chunk
        try:
            buffer += pending.decode()
        except UnicodeDecodeError:  # a character was cut in two; the rest comes with the next chunk
            continue
        pending = b""
        while buffer := buffer.lstrip():
            try:
                event, end = decoder.raw_decode(buffer)
            except ValueError:
                break
            buffer = buffer[end:]
            yield event
        if len(buffer) > EVENT_MAX:
            raise errors.UnavailableError("the daemon sent an event that does not end")


def event_time(event: Json) -> tuple[datetime, int]:
    """When it happened, in this machine's zone, and the nanoseconds of that second."""
    nanoseconds = int(event.get("timeNano") or (event.get("time") or 0) * 1_000_000_000)
    return datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC).astimezone(), nanoseconds % 1_000_000_000


def event_text(event: Json) -> str:
    """A line as ``docker events`` writes it; what could steer the terminal is left out."""
    when, nanoseconds = event_time(event)
    zone = when.strftime("%z")
    zone = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}"
    return f"{when:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}{zone} {event_words(event)}"


def event_words(event: Json) -> str:
    """The same without the time."""
    actor = event.get("Actor") or {}
    attributes = ", ".join(f"{key}={value}" for key, value in sorted((actor.get("Attributes") or {}).items()))
    shown = f" ({attributes})" if attributes else ""
    return clean(f"{event.get('Type', '')} {event.get('Action', '')} {actor.get('ID', '')}{shown}")
