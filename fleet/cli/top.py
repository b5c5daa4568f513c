"""``fleet top``: the cluster, live. Two threads read (state, events), the main one draws and listens to keys.

The terminal is left as it was found however this ends: q, ^C, SIGTERM, SIGHUP, an error, or ^Z in between. Only the main thread
touches it. A read that hangs therefore delays neither keys nor the end.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import threading
import tty
from collections import deque
from collections.abc import Iterator
from types import FrameType
from typing import Final

import click

from fleet import errors
from fleet.api.client import EngineClient
from fleet.cli import clock
from fleet.cli.app import App, pass_app
from fleet.cli.events import event_time, event_words, read_events
from fleet.cli.render import echo
from fleet.cli.top_screen import SORTS, VIEWS, Screen, draw, plain
from fleet.cli.top_state import Snapshot, gather

__all__ = ["top"]

_EVENTS_KEPT: Final = 200
_EVENTS_BACK: Final = "10m"
_SETTLE_S: Final = 5.0
_AGAIN_S: Final = 0.5
"""How long one snapshot waits for figures, and how often it looks: agents are asked for them by the first look."""
_ENTER: Final = "\x1b[?1049h\x1b[?25l"  # another screen, no cursor (xterm's control sequences)
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"


class _Ended(Exception):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Watch:
    """What the reading threads found last; ``wake`` is written to whenever that changed."""

    def __init__(self, app: App, first: Snapshot, *, interval_s: float, wake: int) -> None:
        self._app = app
        self._interval_s = interval_s
        self._wake = wake
        self._lock = threading.Lock()
        self._snapshot = first
        self._problem = ""
        self._read_at_s = clock.monotonic()
        self._events: deque[tuple[str, str]] = deque(maxlen=_EVENTS_KEPT)

    def start(self) -> None:
        for work in (self._read_state, self._read_events):
            threading.Thread(target=work, daemon=True).start()

    def now(self) -> tuple[Snapshot, str, list[tuple[str, str]]]:
        """(newest snapshot, why it is old, events)."""
        with self._lock:
            problem = self._problem
            if problem:
                problem = f"{problem} (shown: {clock.monotonic() - self._read_at_s:.0f} s ago)"
            return self._snapshot, problem, list(self._events)

    def _changed(self) -> None:
        with contextlib.suppress(OSError):  # the pipe is full of wakes already, or closed at the end
            os.write(self._wake, b".")

    def _read_state(self) -> None:
        with self._app.streaming_client(timeout_s=30.0) as client:
            while True:
                clock.sleep(self._interval_s)
                try:
                    found = gather(client)
                except (errors.FleetError, OSError, ValueError, KeyError, TypeError) as cause:
                    with self._lock:
                        self._problem = str(cause) or type(cause).__name__
                else:
                    with self._lock:
                        self._snapshot, self._problem, self._read_at_s = found, "", clock.monotonic()
                self._changed()

    def _read_events(self) -> None:
        since: str | None = clock.since_query(_EVENTS_BACK, flag="--since")
        while True:
            with contextlib.suppress(errors.FleetError, OSError, ValueError):
                since = self._follow(since)
            clock.sleep(self._interval_s)

    def _follow(self, since: str | None) -> str | None:
        """Events until the daemon ends the stream; returns where to go on."""
        client = self._app.streaming_client()
        with client, client.stream("GET", "/events", query={"since": since}) as chunks:
            for event in read_events(chunks):
                since = f"{(event.get('timeNano') or 0) / 1e9 + 1e-6:.6f}"
                with self._lock:
                    self._events.append((f"{event_time(event)[0]:%H:%M:%S}", event_words(event)))
                self._changed()
        return since


@click.command()
@click.option("--once", is_flag=True, help="Print one plain snapshot and end; so does a pipe.")
@click.option("--interval", default=2.0, type=click.FloatRange(1, 3600), metavar="SECONDS", help="Between two looks.")
@click.option("--view", default="overview", type=click.Choice(list(VIEWS.values())), help="What to show first.")
@click.option("--sort", default="name", type=click.Choice(SORTS), help="How to sort at first.")
@pass_app
def top(app: App, *, once: bool, interval: float, view: str, sort: str) -> int:
    """Watch the cluster: nodes, services, tasks in trouble and why, events.

    Keys: q quit, s sort, o overview, n nodes, v services, t tasks, e events. CPU counts processors; RES is what tasks
    reserve, USE what they use; of nodes it is what the whole host uses.
    """
    first = gather(app.client)
    live = sys.stdin.isatty() and sys.stdout.isatty() and app.environment.get("TERM", "dumb") != "dumb"
    if once or not live:
        until = clock.monotonic() + _SETTLE_S
        while not first.is_measured and clock.monotonic() < until:
            clock.sleep(_AGAIN_S)
            first = gather(app.client)
        screen = Screen(snapshot=first, events=_recent(app.client), view=view, sort=sort)
        for line in plain(screen):
            echo(line)
        return 0
    colour = not app.environment.get("NO_COLOR")
    try:
        _Terminal(app, first, interval_s=interval, view=view, sort=sort, colour=colour).run()
    except _Ended as cause:
        return 128 + cause.number
    return 0


def _recent(client: EngineClient) -> list[tuple[str, str]]:
    query = {
        "since": clock.since_query(_EVENTS_BACK, flag="--since"),
        "until": clock.since_query("0s", flag="--until"),
    }
    with client.stream("GET", "/events", query=query) as chunks:
        return [(f"{event_time(each)[0]:%H:%M:%S}", event_words(each)) for each in read_events(chunks)][-_EVENTS_KEPT:]


class _Terminal:
    """The screen and the keys."""

    def __init__(self, app: App, first: Snapshot, *, interval_s: float, view: str, sort: str, colour: bool) -> None:
        self._view, self._sort, self._colour = view, sort, colour
        self._interval_s = interval_s
        self._app, self._first = app, first
        self._suspend = False

    def run(self) -> None:
        """Until q. Raises ``KeyboardInterrupt`` for ^C and ``_Ended`` for a signal, with the terminal restored."""
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        try:
            with self._signals(wake), self._screen():
                watch = _Watch(self._app, self._first, interval_s=self._interval_s, wake=wake)
                watch.start()
                while not self._step(watch, woken):
                    pass
        finally:
            os.close(woken)  # the writing end stays open: a thread may still write to it, and must not hit another file

    def _step(self, watch: _Watch, woken: int) -> bool:
        """Draw, wait for a key or news; True when it was q."""
        self._draw(watch)
        ready, _, _ = select.select([0, woken], [], [], self._interval_s)
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
        if self._suspend:
            self._stop()
        if 0 not in ready:
            return False
        keys = os.read(0, 64)
        return not keys or any(self._key(key) for key in keys.decode(errors="replace").lower())

    def _key(self, key: str) -> bool:
        if key in VIEWS:
            self._view = VIEWS[key]
        elif key == "s":
            self._sort = SORTS[(SORTS.index(self._sort) + 1) % len(SORTS)]
        return key == "q"

    def _draw(self, watch: _Watch) -> None:
        snapshot, problem, events = watch.now()
        screen = Screen(
            snapshot=snapshot,
            events=events,
            view=self._view,
            sort=self._sort,
            problem=problem,
            time=f"{clock.now().astimezone():%H:%M:%S}",
            colour=self._colour,
        )
        size = shutil.get_terminal_size()
        lines = draw(screen, width=size.columns, height=size.lines)
        sys.stdout.write("\x1b[H" + "\n".join(f"\x1b[K{line}" for line in lines))
        sys.stdout.flush()

    @contextlib.contextmanager
    def _screen(self) -> Iterator[None]:
        before = termios.tcgetattr(0)
        try:
            self._enter()
            yield
        finally:
            self._leave(before)

    def _enter(self) -> None:
        self._before = termios.tcgetattr(0)
        tty.setcbreak(0, termios.TCSANOW)  # keys come at once and unseen; ^C stays a signal
        sys.stdout.write(_ENTER)
        sys.stdout.flush()

    def _leave(self, before: list[int | list[bytes | int]]) -> None:
        with contextlib.suppress(termios.error):  # the terminal itself may be gone
            termios.tcsetattr(0, termios.TCSADRAIN, before)
        with contextlib.suppress(OSError):
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()

    def _stop(self) -> None:
        """^Z: give the terminal back, sleep until SIGCONT, take it again."""
        self._suspend = False
        self._leave(self._before)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._enter()

    @contextlib.contextmanager
    def _signals(self, wake: int) -> Iterator[None]:
        def end(number: int, _frame: FrameType | None) -> None:
            for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):  # a second one must not disturb the way back
                signal.signal(one, signal.SIG_IGN)
            raise KeyboardInterrupt if number == signal.SIGINT else _Ended(number)

        def news(number: int, _frame: FrameType | None) -> None:
            self._suspend = self._suspend or number == signal.SIGTSTP
            with contextlib.suppress(BlockingIOError):
                os.write(wake, b".")

        ends, others = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT), (signal.SIGWINCH, signal.SIGTSTP)
        handlers = {**dict.fromkeys(ends, end), **dict.fromkeys(others, news)}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
