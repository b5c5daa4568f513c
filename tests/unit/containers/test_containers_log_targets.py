"""What syslog receivers and the journal are sent, on real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest

from fleet.containers import log_targets
from fleet.containers.log_targets import Described, make_target
from fleet.containers.logs import log_config
from fleet.errors import UserError
from fleet.node_runtime.logs import LogLine

WEB = Described(
    id="0123456789abcdef" * 4,
    name="web",
    image="app:1",
    image_id="sha256:" + "f" * 64,
    hostname="host1",
    attributes={"tier.name": "front"},
)
AT = datetime(2026, 2, 3, 4, 5, 6, 789000, tzinfo=UTC)


def line(data: bytes, stream: Literal["stdout", "stderr"] = "stdout") -> LogLine:
    return LogLine(stream, AT, data)


def sent_to(folder: Path, driver: str, options: Mapping[str, str], *lines: LogLine) -> list[bytes]:
    """What arrives at a unix datagram socket."""
    path = str(folder / "receiver")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.settimeout(20)

        async def main() -> None:
            target = await make_target(driver, {"syslog-address": f"unixgram://{path}", **options}, WEB)
            for each in lines:
                await target.send(each)
            target.close()

        asyncio.run(main())
        return [receiver.recv(1 << 20) for _ in lines]


@pytest.mark.parametrize(
    ("options", "head"),
    [
        ({}, b"<30>Feb  3 04:05:06 host1 0123456789ab: "),
        (
            {"syslog-facility": "local3", "tag": "{{.Name}}/{{.ImageID}}"},
            b"<158>Feb  3 04:05:06 host1 web/ffffffffffff: ",
        ),
        ({"syslog-format": "rfc3164", "syslog-facility": "0"}, b"<6>Feb  3 04:05:06 host1 0123456789ab: "),
        ({"syslog-format": "rfc5424"}, b"<30>1 2026-02-03T04:05:06Z host1 0123456789ab - 0123456789ab - "),
        ({"syslog-format": "rfc5424micro", "tag": "a b"}, b"<30>1 2026-02-03T04:05:06.789000Z host1 a_b - a_b - "),
    ],
)
def test_a_line_has_the_head_that_was_asked_for(tmp_path: Path, options: dict[str, str], head: bytes) -> None:
    assert sent_to(tmp_path, "syslog", options, line(b"hello\n")) == [head + b"hello"]


def test_standard_error_is_of_a_higher_severity(tmp_path: Path) -> None:
    (found,) = sent_to(tmp_path, "syslog", {}, line(b"oh\n", "stderr"))
    assert found.startswith(b"<27>")


def test_the_journal_gets_fields_and_a_message_with_newlines_cannot_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_targets, "JOURNAL", str(tmp_path / "receiver"))
    first, second = sent_to(
        tmp_path, "journald", {"tag": "{{.Name}}"}, line(b"hello\n"), line(b"a\nPRIORITY=0\n\n", "stderr")
    )
    fields = first.decode().splitlines()
    assert {"MESSAGE=hello", "PRIORITY=6", "CONTAINER_NAME=web", "SYSLOG_IDENTIFIER=web"} <= set(fields)
    assert f"CONTAINER_ID_FULL={WEB.id}" in fields
    assert "TIER_NAME=front" in fields
    assert not any(field.startswith("CONTAINER_PARTIAL") for field in fields)
    text = b"a\nPRIORITY=0\n"
    assert second.startswith(b"MESSAGE\n" + len(text).to_bytes(8, "little") + text + b"\nPRIORITY=3\n")


def test_a_piece_of_a_long_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_targets, "JOURNAL", str(tmp_path / "receiver"))
    (found,) = sent_to(tmp_path, "journald", {}, line(b"x" * 16384))
    assert b"CONTAINER_PARTIAL_MESSAGE=true\n" in found


def test_lines_travel_over_tcp_and_a_closed_connection_is_noticed() -> None:
    async def main() -> None:
        got: list[bytes] = []
        closed = asyncio.Event()

        async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got.append(await reader.readline())
            writer.close()
            closed.set()

        server = await asyncio.start_server(receive, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        target = await make_target("syslog", {"syslog-address": f"tcp://127.0.0.1:{port}"}, WEB)
        await target.send(line(b"one\n"))
        await closed.wait()
        with pytest.raises(OSError):
            async with asyncio.timeout(20):
                while True:
                    await target.send(line(b"two\n"))
                    await asyncio.sleep(0.01)
        target.close()
        server.close()
        assert got[0].endswith(b": one\n")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"syslog-address": "10.0.0.1:514"}, "write such as udp://"),
        ({"syslog-address": "http://10.0.0.1"}, "write such as udp://"),
        ({"syslog-address": "udp://h:99999"}, "syslog-address"),
        ({"syslog-address": "unix://"}, "a path is missing"),
        ({"syslog-facility": "loud"}, "invalid syslog facility 'loud'"),
        ({"syslog-format": "json"}, "invalid syslog format 'json'"),
        ({"tag": "{{.Nmae}}"}, "{{.Nmae}} is not known"),
        ({"tag": "{{ upper .Name }}"}, "is not understood"),
        ({"max-size": "1m"}, "unknown log opt 'max-size' for syslog log driver"),
        ({"cache-max-size": "huge"}, "cache-max-size|max-size"),
    ],
)
def test_options_that_mean_nothing_are_refused_when_the_container_is_made(options: dict[str, str], told: str) -> None:
    with pytest.raises(UserError, match=told.replace("{", r"\{").replace("}", r"\}").replace(".N", r"\.N")):
        log_config("syslog", options)


def test_the_copy_kept_here_has_bounds_of_its_own() -> None:
    config = log_config("journald", {"cache-max-size": "1m", "cache-max-file": "2", "tag": "x", "labels": "tier"})
    assert (config.max_size_bytes, config.max_files, config.labels, config.options) == (
        1 << 20,
        2,
        ("tier",),
        {"tag": "x"},
    )
