"""The process that holds the namespaces, and carries the bytes of published ports into them.

Run as ``python -m fleet.daemon.rootless.anchor FOLDER SAY``, as the first process of the namespaces; SAY is a descriptor to tell
``here`` on once they are ready, or what is wrong. A socket belongs to the namespace it was made in: the listening ones come from
``outside``, so clients of the host reach them; the ones to the containers are made here, to 127.0.0.1 and the same port,
from where fleet's own rules lead on. Kept by sandbox, for the daemon to take up again:

    {"op": "open", "id": SANDBOX, "ports": [[PROTOCOL, ADDRESS, PORT], ...]}    all or none; replaces what the sandbox had
    {"op": "close", "id": SANDBOX}    {"op": "list"}
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any, Final

from fleet.daemon.rootless.carrying import Carrier, TcpCarrier, UdpCarrier
from fleet.daemon.rootless.records import ANCHOR, OUTSIDE_SOCKET, PORTS_SOCKET, RESOLV_CONF, ask, write_record
from fleet.node_runtime import syscalls

__all__ = ["main"]

_REQUEST_BYTES_MAX: Final = 1 << 20
_RESOLV_CONF: Final = Path("/etc/resolv.conf")


def main(arguments: list[str]) -> int:
    """See the module."""
    folder, say = Path(arguments[0]), int(arguments[1])
    syscalls.set_name(b"fleet-anchor")
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    try:
        prepare(folder)
        asyncio.run(_serve(folder, say))
    except OSError as cause:
        with contextlib.suppress(OSError):
            os.write(say, f"{cause.strerror}{f' ({cause.filename})' if cause.filename else ''}".encode()[:4000])
        return 1
    return 0


def prepare(folder: Path) -> None:
    """Loopback up, and the name server of the way out in place of the host's. Raises ``OSError``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, 0x8914, struct.pack("16sh22x", b"lo", 0x41))  # SIOCSIFFLAGS: IFF_UP | IFF_RUNNING
    syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)
    own = folder / RESOLV_CONF
    if own.exists():
        with contextlib.suppress(FileNotFoundError):  # a host without the file asks nobody
            syscalls.mount(str(own), str(_RESOLV_CONF.resolve(strict=True)), "", syscalls.MS_BIND)


async def _serve(folder: Path, say: int) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    carriers = _Carriers(folder)
    path = folder / PORTS_SOCKET
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(carriers.answer, path, limit=_REQUEST_BYTES_MAX)
    write_record(folder, ANCHOR)
    os.write(say, b"here")
    os.close(say)
    async with server:
        await ended.wait()
        await carriers.close_all()


class _Carriers:
    """What is open, by sandbox."""

    def __init__(self, folder: Path) -> None:
        self._outside = folder / OUTSIDE_SOCKET
        self._open: dict[str, list[Carrier]] = {}

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            try:
                result = await self._handle(json.loads(await reader.readline()))
            except (ValueError, KeyError, TypeError) as cause:
                result = {"error": 22, "text": f"{type(cause).__name__}: {cause}", "port": 0}
            writer.write(json.dumps(result).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def _handle(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["op"]:
            case "list":
                return {"ids": sorted(self._open)}
            case "close":
                await self._close(str(request["id"]))
                return {}
            case "open":
                return await self._open_all(str(request["id"]), request["ports"])
            case other:
                raise ValueError(f"unknown request {other!r}")

    async def _open_all(self, sandbox: str, ports: list[list[Any]]) -> dict[str, Any]:
        await self._close(sandbox)
        made: list[Carrier] = []
        for protocol, address, port in ports:
            question = {"op": "bind", "protocol": protocol, "address": address, "port": port}
            try:
                found, descriptors = await asyncio.to_thread(ask, self._outside, question)
            except OSError:
                found, descriptors = {"error": 111, "text": "fleet-outside does not answer; start fleetd again"}, []
            if not descriptors:
                for carrier in made:
                    await carrier.close()
                return {**found, "protocol": protocol, "address": address, "port": port}
            sock = socket.socket(fileno=descriptors[0])
            sock.setblocking(False)
            made.append(TcpCarrier(sock, port) if protocol == "tcp" else UdpCarrier(sock, port))
        self._open[sandbox] = made
        return {}

    async def _close(self, sandbox: str) -> None:
        for carrier in self._open.pop(sandbox, ()):
            await carrier.close()

    async def close_all(self) -> None:
        """At the end."""
        for sandbox in list(self._open):
            await self._close(sandbox)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
