"""``fleet dashboard``: the daemon's page for a browser on this machine, with the rights of whoever runs the command.

Browsers speak no unix sockets and know neither contexts nor tokens; this leads from one to the other, for as long as it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import click

from fleet import errors
from fleet.api.client import EngineClient, EngineError
from fleet.cli.app import App, pass_app
from fleet.cli.render import echo

__all__ = ["can_open", "dashboard", "serve"]

_ADDRESS: Final = "127.0.0.1"


@click.command()
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Of 127.0.0.1; a free one by default.")
@click.option("--no-open", is_flag=True, help="Print the link and open no browser.")
@pass_app
def dashboard(app: App, *, port: int, no_open: bool) -> int:
    """Show the cluster in a browser on this machine, for as long as the command runs.

    The link it prints lets one browser in, which then may what you may: over the unix socket, a context, a token. Nothing else on
    this machine gets in, and nothing beyond it. ^C ends it.

    From elsewhere: ssh -L 8080:127.0.0.1:8080 HOST fleet dashboard --port 8080, and open what it prints.
    """
    app.info()  # what is wrong with the daemon or with who asks is said here rather than in a browser
    _check_page(app.client)

    with tempfile.TemporaryDirectory(prefix="fleet-dashboard-") as folder:

        def started(url: str) -> None:
            echo(url)
            click.echo(f"The dashboard of {app.host}, for one browser, until ^C", err=True)
            if not no_open and can_open(app.environment):
                _open(_signpost(Path(folder), url))

        asyncio.run(serve(app.client, port=port, started=started))
    return 0


def _check_page(client: EngineClient) -> None:
    """Raises ``UserError`` where the daemon keeps its page back."""
    try:
        client.request("HEAD", "/")
    except EngineError as cause:
        if cause.status != 404:
            raise
        raise errors.UserError(
            f"the daemon at {client.url} has no dashboard there: it has one on its unix socket and over TLS; "
            "use one of them, or start fleetd with --dashboard on"
        ) from cause


async def serve(client: EngineClient, *, port: int, started: Callable[[str], None]) -> None:
    """Until SIGINT or SIGTERM, or cancelled. ``started`` gets the link. Raises ``ConflictError`` for a port that is taken."""
    # Here, and not above: together they take half a second to load, which a manual page need not wait for.
    from fleet.cli.dashboard_relay import Door, Relay
    from fleet.daemon.listeners import Listener, tcp_socket

    # A browser that leaves in the middle of an answer is no news for a terminal.
    logging.getLogger("uvicorn.error").addHandler(logging.NullHandler())
    token = secrets.token_urlsafe(32)
    relay = Relay(client)
    socket = tcp_socket(_ADDRESS, port)
    with contextlib.closing(socket):
        listener = Listener(Door(relay, token=token), [socket], name="dashboard")

        def end() -> None:
            relay.end()
            listener.stop()

        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signal_number, end)
        running = asyncio.ensure_future(listener.run())
        try:
            await listener.started()
            started(f"http://{_ADDRESS}:{socket.getsockname()[1]}/#token={token}")
            await running
        finally:
            end()
            await asyncio.gather(running, return_exceptions=True)
            await relay.close()


def can_open(environment: Mapping[str, str]) -> bool:
    """Whether there is a display, and it is this user's: a browser started by sudo would be root's."""
    return bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")) and not environment.get("SUDO_USER")


def _signpost(folder: Path, url: str) -> str:
    """The link as a file of this user that leads there: arguments of a browser can be read by everybody on this machine."""
    path = folder / "dashboard.html"
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={url}">\n')
    return path.as_uri()


def _open(url: str) -> None:
    """In a thread that nobody waits for: some browsers return when they are closed."""
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
