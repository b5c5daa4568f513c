"""What fleetd as an ordinary user decides before it touches the kernel, and the carrying of bytes."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

from fleet.daemon import config as configuration
from fleet.daemon.config import load_config
from fleet.daemon.rootless.carrying import TcpCarrier, UdpCarrier
from fleet.daemon.rootless.ids import IdMaps, parse_ranges, plan_map, read_maps
from fleet.daemon.rootless.inside import port_error
from fleet.daemon.rootless.outside import why_forbidden
from fleet.daemon.rootless.records import living, write_record
from fleet.errors import ConflictError, RuntimeFault, UserError

USER = {"HOME": "/home/ann", "XDG_RUNTIME_DIR": "/run/user/1000"}


def test_the_ids_of_a_user_are_found_by_name_and_by_number() -> None:
    text = "bob:1:2\nann:100000:65536\n1000:200000:10\nann:bad:1\nann:0:5\n"
    assert parse_ranges(text, name="ann", number=1000) == ((100000, 65536), (200000, 10))


def test_root_inside_is_the_user_and_the_ranges_follow_without_a_gap() -> None:
    assert plan_map(1000, ((100000, 10), (300000, 5))) == ((0, 1000, 1), (1, 100000, 10), (11, 300000, 5))


def test_a_small_range_and_a_missing_one_are_warned_of() -> None:
    assert "/etc/subuid" in IdMaps(plan_map(1, ((9, 99),)), plan_map(1, ((9, 70000),))).warning()
    assert "root" in IdMaps(plan_map(1, ()), plan_map(1, ()), "why").warning()
    assert IdMaps(plan_map(1, ((9, 65536),)), plan_map(1, ((9, 65536),))).warning() == ""


def test_without_the_programs_or_a_range_there_is_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "uidmap" in read_maps(tmp_path).why_single
    for name in ("newuidmap", "newgidmap"):
        (tmp_path / name).touch(mode=0o755)
    assert "/etc/subuid" in read_maps(tmp_path).why_single


def test_a_users_folders_are_where_the_base_directories_are() -> None:
    config = load_config(["--rootless"], USER)
    assert config.rootless
    assert config.data_root == Path("/home/ann/.local/share/fleet")
    assert config.exec_root == Path("/run/user/1000/fleet")
    assert config.hosts == ("unix:///run/user/1000/fleet/fleet.sock",)
    assert load_config(["--rootless"], {**USER, "XDG_DATA_HOME": "/data"}).data_root == Path("/data/fleet")


def test_flags_go_before_a_users_defaults_and_root_keeps_its_own() -> None:
    config = load_config(["--rootless", "--exec-root", "/tmp/x", "--data-root", "/tmp/y"], {"HOME": "/home/ann"})
    assert config.hosts == ("unix:///tmp/x/fleet.sock",)
    if os.geteuid() == 0:
        assert load_config([], USER).data_root == Path("/var/lib/fleet")
        assert load_config(["--rootless-entered"], USER).rootless, "root inside is not root of the machine"


def test_without_a_runtime_folder_it_is_said_what_to_do() -> None:
    with pytest.raises(UserError, match="XDG_RUNTIME_DIR"):
        load_config(["--rootless"], {"HOME": "/home/ann"})


def test_a_users_configuration_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet" / "fleetd.toml").write_text('log_level = "debug"\n')
    assert load_config(["--rootless"], {**USER, "XDG_CONFIG_HOME": str(tmp_path)}).log_level == "debug"
    assert Path("/etc/fleet/fleetd.toml") == configuration.DEFAULT_CONFIG


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EADDRINUSE, ConflictError, "already allocated"),
        (errno.EACCES, UserError, "ip_unprivileged_port_start=80"),
        (errno.EADDRNOTAVAIL, UserError, "not an address of this host"),
        (errno.ENOBUFS, RuntimeFault, "no room"),
    ],
)
def test_why_a_port_was_not_opened(number: int, kind: type[Exception], words: str) -> None:
    answer = {"error": number, "text": "no room", "protocol": "tcp", "port": 80, "address": "192.0.2.1"}
    error = port_error(answer)
    assert type(error) is kind
    assert words in str(error)


def test_what_forbids_user_namespaces_is_named_with_its_remedy(tmp_path: Path) -> None:
    assert "seccomp" in why_forbidden(tmp_path)
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "max_user_namespaces").write_text("0\n")
    assert "sysctl -w user.max_user_namespaces" in why_forbidden(tmp_path)


def test_a_record_tells_of_its_own_process_only(tmp_path: Path) -> None:
    write_record(tmp_path, "anchor.json", more=1)
    record = living(tmp_path, "anchor.json")
    assert record is not None
    assert record["more"] == 1
    text = (tmp_path / "anchor.json").read_text()
    (tmp_path / "anchor.json").write_text(text.replace(str(record["ticks"]), "1"))
    assert living(tmp_path, "anchor.json") is None, "the number is another's now"
    assert living(tmp_path, "outside.json") is None


def test_tcp_is_carried_both_ways_and_half_closed() -> None:
    asyncio.run(_carry_tcp())


async def _carry_tcp() -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    carrier = TcpCarrier(listener, server.sockets[0].getsockname()[1])
    async with server, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"abc" * 100_000)
        writer.write_eof()
        assert await reader.read() == b"ABC" * 100_000
        writer.close()
        address = listener.getsockname()
        await carrier.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)


def test_udp_answers_reach_the_client_that_asked() -> None:
    asyncio.run(_carry_udp())


async def _carry_udp() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
        echo.bind(("127.0.0.1", 0))
        echo.setblocking(False)
        outer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        outer.bind(("127.0.0.1", 0))
        outer.setblocking(False)
        address = outer.getsockname()
        carrier = UdpCarrier(outer, echo.getsockname()[1])
        clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
        async with asyncio.timeout(20):
            for number, client in enumerate(clients):
                client.setblocking(False)
                client.connect(address)
                client.send(b"%d" % number)
                data, sender = await loop.sock_recvfrom(echo, 100)
                await loop.sock_sendto(echo, data * 2, sender)
            assert [await loop.sock_recv(client, 100) for client in clients] == [b"00", b"11"]
        for client in clients:
            client.close()
        await carrier.close()
