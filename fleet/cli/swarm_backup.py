"""``fleet swarm backup`` and ``restore``: the cluster's state as one file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from fleet import errors
from fleet.cli.app import App, pass_app
from fleet.cli.render import echo

_PIECE: Final = 1 << 18


@click.command()
@click.argument("file", metavar="FILE")
@pass_app
def backup(app: App, file: str) -> None:
    """Write the state of the swarm to FILE ("-": standard output).

    Whoever has the file has every secret of the swarm: it is made readable to you alone. FILE must not exist.
    """
    with app.streaming_client() as client, client.stream("GET", "/fleet/v1/swarm/backup") as pieces:
        if file == "-":
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        _write(Path(file), pieces)
    echo(f"Backup written to {file}; it holds the secrets of the swarm.")


def _write(path: Path, pieces: Iterator[bytes]) -> None:
    aside = path.with_name(f".{path.name}.part")
    try:
        if path.exists():
            raise FileExistsError(17, "exists already", str(path))
        aside.unlink(missing_ok=True)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as target:
            for piece in pieces:
                target.write(piece)
            target.flush()
            os.fsync(descriptor)
        aside.rename(path)
    except OSError as cause:
        aside.unlink(missing_ok=True)
        raise errors.UserError(f"backup to {path}: {cause.strerror or cause}") from cause


@click.command()
@click.option(
    "--advertise-addr", metavar="IP|INTERFACE[:PORT]", default="", help="Address the others reach this node at."
)
@click.option("--listen-addr", metavar="IP[:PORT]", default="", help="Where to listen (default 0.0.0.0:2377).")
@click.argument("file", metavar="FILE", type=click.File("rb"))
@pass_app
def restore(app: App, *, file: BinaryIO, **flags: Any) -> None:
    """Take a swarm up again from a backup, with this host as its only manager.

    Nodes of the swarm find this host if it is at the address of one of their managers; others join again.
    """
    query = {"advertiseAddr": flags["advertise_addr"], "listenAddr": flags["listen_addr"]}
    answer = app.client.request(
        "POST", "/fleet/v1/swarm/restore", query=query, body=iter(lambda: file.read(_PIECE), b"")
    )
    echo(f"Swarm restored: current node ({answer['NodeID']}) is now its only manager.")
