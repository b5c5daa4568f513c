"""Where else lines go: a syslog receiver, or the host's journal. Messages and how they are carried, nothing about when.

syslog: RFC 3164 and RFC 5424, over UDP, TCP, TLS and unix sockets, with Docker's options. journald: the native protocol of
systemd-journald (https://systemd.io/JOURNAL_NATIVE_PROTOCOL), with the fields Docker sets.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from fleet.errors import UserError
from fleet.node_runtime.logs import LogLine

__all__ = ["JOURNAL", "OPTIONS", "Described", "Target", "check_options", "make_target"]

JOURNAL: Final = "/run/systemd/journal/socket"
_LOCAL: Final = ("/dev/log", "/var/run/syslog", "/var/run/log")
_SEND_S: Final = 10.0
_PAUSE_S: Final = 0.02
_COMMON: Final = ("env", "labels", "tag", "cache-max-file", "cache-max-size")
OPTIONS: Final = {
    "syslog": (
        *_COMMON,
        "syslog-address",
        "syslog-facility",
        "syslog-format",
        "syslog-tls-ca-cert",
        "syslog-tls-cert",
        "syslog-tls-key",
        "syslog-tls-skip-verify",
    ),
    "journald": _COMMON,
}
_FACILITIES: Final = (
    "kern",
    "user",
    "mail",
    "daemon",
    "auth",
    "syslog",
    "lpr",
    "news",
    "uucp",
    "cron",
    "authpriv",
    "ftp",
    "ntp",
    "security",
    "console",
    "solaris-cron",
    "local0",
    "local1",
    "local2",
    "local3",
    "local4",
    "local5",
    "local6",
    "local7",
)
_FORMATS: Final = ("", "rfc3164", "rfc5424", "rfc5424micro")
_INFO, _ERROR = 6, 3
_TAG: Final = re.compile(r"\{\{\s*\.(\w+)\s*\}\}")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """The container as its messages name it. ``attributes``: the labels and variables asked for."""

    id: str
    name: str
    image: str
    image_id: str
    hostname: str
    attributes: Mapping[str, str]


class Target(Protocol):
    """An open receiver. ``send`` raises ``OSError``; the line may then have arrived or not."""

    async def send(self, line: LogLine) -> None: ...

    def close(self) -> None: ...


def check_options(driver: str, options: Mapping[str, str]) -> None:
    """Raises ``UserError`` that names what is wrong."""
    _tag(options.get("tag", ""), None)
    if driver != "syslog":
        return
    _address(options)
    if (form := options.get("syslog-format", "")) not in _FORMATS:
        raise UserError(f"invalid syslog format {form!r}: use rfc3164, rfc5424 or rfc5424micro")
    _facility(options.get("syslog-facility", ""))


async def make_target(driver: str, options: Mapping[str, str], container: Described) -> Target:
    """Connect. Raises ``OSError`` (also for TLS files that cannot be read)."""
    tag = _tag(options.get("tag", ""), container)
    if driver == "journald":
        return _Journal(await _datagrams(JOURNAL), container, tag)
    scheme, host, port = _address(options)
    form = options.get("syslog-format", "")
    counted = scheme == "tcp+tls" and form.startswith("rfc5424")
    if scheme == "":
        carrier: _Carrier = await _datagrams(_local_receiver())
    elif scheme == "unixgram":
        carrier = await _datagrams(host)
    elif scheme == "udp":
        carrier = await _udp(host, port)
    elif scheme == "unix":
        async with asyncio.timeout(_SEND_S):
            opened = await asyncio.open_unix_connection(host)
        carrier = _Stream(*opened, counted=counted)
    else:
        tls = await asyncio.to_thread(_tls, options) if scheme == "tcp+tls" else None
        async with asyncio.timeout(_SEND_S):
            opened = await asyncio.open_connection(host, port, ssl=tls)
        carrier = _Stream(*opened, counted=counted)
    return _Syslog(carrier, container, tag, form, _facility(options.get("syslog-facility", "")), is_local=scheme == "")


# -- what is said


class _Syslog:
    def __init__(
        self, carrier: _Carrier, container: Described, tag: str, form: str, facility: int, *, is_local: bool
    ) -> None:
        self._carrier = carrier
        self._hostname = container.hostname
        self._tag = tag
        self._form = form
        self._facility = facility
        self._is_local = is_local

    async def send(self, line: LogLine) -> None:
        text = line.data.rstrip(b"\n").replace(b"\n", b" ")
        await self._carrier.send(self._head(line).encode() + text)

    def _head(self, line: LogLine) -> str:
        priority = self._facility * 8 + (_ERROR if line.stream == "stderr" else _INFO)
        moment = line.time
        if self._form.startswith("rfc5424"):
            digits = "microseconds" if self._form.endswith("micro") else "seconds"
            stamp = moment.isoformat(timespec=digits).replace("+00:00", "Z")
            name = self._tag[:48] or "-"  # APP-NAME, RFC 5424 section 6
            return f"<{priority}>1 {stamp} {self._hostname} {name} - {self._tag} - "
        stamp = f"{_MONTHS[moment.month - 1]} {moment.day:2} {moment:%H:%M:%S}"
        host = "" if self._is_local and not self._form else f"{self._hostname} "
        return f"<{priority}>{stamp} {host}{self._tag}: "

    def close(self) -> None:
        self._carrier.close()


class _Journal:
    def __init__(self, carrier: _Carrier, container: Described, tag: str) -> None:
        self._carrier = carrier
        fields = {
            "CONTAINER_ID": container.id[:12],
            "CONTAINER_ID_FULL": container.id,
            "CONTAINER_NAME": container.name,
            "CONTAINER_TAG": tag,
            "IMAGE_NAME": container.image,
            "SYSLOG_IDENTIFIER": tag,
        }
        fields |= {_field_name(key): value for key, value in container.attributes.items()}
        self._fields = b"".join(_field(name, value.encode()) for name, value in fields.items())

    async def send(self, line: LogLine) -> None:
        message = _field("MESSAGE", line.data.removesuffix(b"\n"))
        message += _field("PRIORITY", b"%d" % (_ERROR if line.stream == "stderr" else _INFO))
        message += _field("SYSLOG_TIMESTAMP", line.time.isoformat().encode())
        if not line.data.endswith(b"\n"):
            message += _field("CONTAINER_PARTIAL_MESSAGE", b"true")
        await self._carrier.send(message + self._fields)

    def close(self) -> None:
        self._carrier.close()


def _field(name: str, value: bytes) -> bytes:
    """Values with newlines carry their length."""
    if b"\n" in value:
        return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
    return name.encode() + b"=" + value + b"\n"


def _field_name(text: str) -> str:
    """As journald takes them: capitals, digits and underscores, and no underscore in front."""
    return re.sub(r"[^A-Z0-9]", "_", text.upper()).lstrip("_0123456789")[:64] or "X"


def _tag(template: str, container: Described | None) -> str:
    """Docker's template for a line's tag; without a container it is only checked."""

    def value(found: re.Match[str]) -> str:
        name = found[1]
        known: dict[str, Callable[[Described], str]] = {
            "ID": lambda c: c.id[:12],
            "FullID": lambda c: c.id,
            "Name": lambda c: c.name,
            "ImageID": lambda c: c.image_id.removeprefix("sha256:")[:12],
            "ImageFullID": lambda c: c.image_id,
            "ImageName": lambda c: c.image,
            "DaemonName": lambda _: "fleet",
        }
        if name not in known:
            raise UserError(f"log option tag: {{{{.{name}}}}} is not known; there is {', '.join(sorted(known))}")
        return known[name](container) if container is not None else ""

    filled = _TAG.sub(value, template or "{{.ID}}")
    if "{{" in filled:
        raise UserError(f"log option tag: {template!r} is not understood; write such as {{{{.Name}}}}/{{{{.ID}}}}")
    return re.sub(r"[\x00-\x20\x7f]", "_", filled)


# -- how it is carried


class _Carrier(Protocol):
    async def send(self, message: bytes) -> None: ...

    def close(self) -> None: ...


class _Datagrams:
    def __init__(self, made: socket.socket) -> None:
        self._socket = made

    async def send(self, message: bytes) -> None:
        async with asyncio.timeout(_SEND_S):
            while True:
                try:
                    self._socket.send(message)
                    return
                except BlockingIOError:  # a receiver that is slow; asyncio has no datagram send that waits
                    await asyncio.sleep(_PAUSE_S)

    def close(self) -> None:
        self._socket.close()


class _Stream:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool) -> None:
        self._reader = reader
        self._writer = writer
        self._counted = counted
        """Octet counting (RFC 5425); else lines."""

    async def send(self, message: bytes) -> None:
        if self._reader.at_eof() or self._writer.is_closing():
            raise ConnectionResetError("the receiver closed the connection")
        self._writer.write(b"%d %b" % (len(message), message) if self._counted else message + b"\n")
        async with asyncio.timeout(_SEND_S):
            await self._writer.drain()

    def close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.close()


def _local_receiver() -> str:
    return next((path for path in _LOCAL if Path(path).is_socket()), _LOCAL[0])


async def _datagrams(path: str) -> _Datagrams:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        made.connect(path)
    except OSError as cause:
        made.close()
        raise OSError(cause.errno, f"{path}: {cause.strerror}") from cause
    return _Datagrams(made)


async def _udp(host: str, port: int) -> _Datagrams:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, kind, protocol, _, address = found[0]
    made = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    try:
        made.connect(address)
    except OSError:
        made.close()
        raise
    return _Datagrams(made)


def _tls(options: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("syslog-tls-ca-cert") or None)
    if options.get("syslog-tls-cert"):
        context.load_cert_chain(options["syslog-tls-cert"], options.get("syslog-tls-key") or None)
    if options.get("syslog-tls-skip-verify") in ("1", "t", "true", "True", "TRUE"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _address(options: Mapping[str, str]) -> tuple[str, str, int]:
    """(scheme, host or path, port); no scheme is this host's receiver."""
    text = options.get("syslog-address", "")
    if not text:
        return "", "", 0
    try:
        parts = urlsplit(text)
        port = parts.port or (6514 if parts.scheme == "tcp+tls" else 514)
    except ValueError as cause:
        raise UserError(f"syslog-address {text!r}: {cause}") from cause
    if parts.scheme in ("unix", "unixgram"):
        if not parts.path.startswith("/"):
            raise UserError(f"syslog-address {text!r}: a path is missing, as in {parts.scheme}:///dev/log")
        return parts.scheme, parts.path, 0
    if parts.scheme not in ("udp", "tcp", "tcp+tls") or not parts.hostname:
        raise UserError(
            f"syslog-address {text!r}: write such as udp://10.0.0.9:514; tcp, tcp+tls, unix and unixgram are known"
        )
    return parts.scheme, parts.hostname, port


def _facility(text: str) -> int:
    if not text:
        return _FACILITIES.index("daemon")
    if text in _FACILITIES:
        return _FACILITIES.index(text)
    if text.isascii() and text.isdigit() and int(text) < len(_FACILITIES):
        return int(text)
    raise UserError(f"invalid syslog facility {text!r}: a number from 0 to 23 or one of {', '.join(_FACILITIES)}")
