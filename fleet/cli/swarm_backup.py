"""``fleet swarm backup`` and ``restore``: the cluster's state as one file."""

from __future__ import annotations

from typing import Any, BinaryIO, Final

import click

from fleet.cli.app import App, pass_app
from fleet.cli.files import write_archive
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
        write_archive(None if file == "-" else file, pieces, secret=True)
    if file != "-":
        echo(f"Backup written to {file}; it holds the secrets of the swarm.")


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
