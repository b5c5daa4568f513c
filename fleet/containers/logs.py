"""A container's log: what its driver's options mean, and its lines; following ends when the container does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from fleet.containers.config import LogConfig
from fleet.containers.entry import Entry
from fleet.containers.log_targets import OPTIONS, check_options
from fleet.containers.record import Container
from fleet.errors import UserError
from fleet.model.units import parse_bytes
from fleet.node_runtime.logs import LogLine, read_log

__all__ = ["follow_log", "log_attributes", "log_config"]

_FILES_MAX: Final = 1000
"""What the reader looks for."""

_DEFAULTS: Final = {
    "json-file": LogConfig(),
    "local": LogConfig(driver="local", max_size_bytes=20 << 20, max_files=5),
    "none": LogConfig(driver="none"),
    "syslog": LogConfig(driver="syslog", max_size_bytes=20 << 20, max_files=5),
    "journald": LogConfig(driver="journald", max_size_bytes=20 << 20, max_files=5),
}
_OPTIONS: Final = {
    "json-file": ("env", "labels", "max-file", "max-size"),
    "local": ("max-file", "max-size"),
    "none": (),
    **OPTIONS,
}

_OWN: Final = ("env", "labels", "cache-max-size", "cache-max-file")


def log_config(driver: str, options: Mapping[str, str]) -> LogConfig:
    """What a driver's name and options ask for; no name is json-file. Raises ``UserError``.

    ``max-size=-1`` is Docker's word for no bound, which needs ``max-file=1`` or none given.
    """
    name = "json-file" if driver in ("", "default") else driver
    default = _DEFAULTS.get(name)
    if default is None:
        raise UserError(f"log driver {name!r} is not supported here: use json-file, local, syslog, journald or none")
    known = _OPTIONS[name]
    for option in sorted(options):
        if option not in known:
            has = f"known are {', '.join(known)}" if known else "it has none"
            raise UserError(f"unknown log opt '{option}' for {name} log driver: {has}")
    check_options(name, options)
    prefix = "cache-" if name in OPTIONS else ""
    size, files = options.get(f"{prefix}max-size", ""), options.get(f"{prefix}max-file", "")
    if files and not (files.isascii() and files.isdigit() and len(files) < 5 and 1 <= int(files) <= _FILES_MAX):
        raise UserError(f"log option max-file: {files!r} is not a number from 1 to {_FILES_MAX}")
    size_bytes, count = default.max_size_bytes, int(files) if files else default.max_files
    if size == "-1":
        if count > 1 and files:
            raise UserError("log option max-file: more than one file needs a max-size to be rotated at")
        size_bytes, count = (1 << 63) - 1, 1
    elif size:
        size_bytes = parse_bytes(size, what="log option max-size")
        if not 0 < size_bytes < 1 << 63:
            raise UserError(f"log option max-size: {size!r} is not a positive size")
    return LogConfig(
        driver=name,
        max_size_bytes=size_bytes,
        max_files=count,
        labels=_names(options.get("labels", "")),
        env=_names(options.get("env", "")),
        options={key: value for key, value in options.items() if key not in _OWN} if name in OPTIONS else {},
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def log_attributes(container: Container) -> dict[str, str]:
    """The labels and variables that the log options name, those that the container has. A variable wins, as in Docker."""
    config = container.config
    found = {name: container.labels[name] for name in config.log.labels if name in container.labels}
    variables = dict(text.split("=", 1) for text in container.env if "=" in text)
    found.update({name: variables[name] for name in config.log.env if name in variables})
    return found


async def follow_log(
    path: Path,
    entry: Entry,
    *,
    stdout: bool = True,
    stderr: bool = True,
    since: datetime | None = None,
    until: datetime | None = None,
    tail: int | None = None,
    follow: bool = False,
) -> AsyncIterator[LogLine]:
    """Lines of the wanted streams. ``tail`` counts lines of both, as in Docker. With ``follow`` it goes on until the
    container ends.
    """
    stop = asyncio.Event()
    if follow and (entry.record.is_up or entry.starting):
        entry.next_exit.add_done_callback(lambda _done: stop.set())
    else:
        follow = False
    async for line in read_log(path, since=since, until=until, tail=tail, follow=follow, stop=stop):
        if (stdout and line.stream == "stdout") or (stderr and line.stream == "stderr"):
            yield line
