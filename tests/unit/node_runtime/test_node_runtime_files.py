"""Logs, state records, frames and cgroup files, on ordinary directories."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fleet.errors import NotFoundError
from fleet.node_runtime.cgroup_layout import Layout, detect_layout
from fleet.node_runtime.cgroups import CgroupTree
from fleet.node_runtime.log_writer import LogWriter, timestamp
from fleet.node_runtime.logs import read_log
from fleet.node_runtime.state import StateDir, start_ticks
from fleet.node_runtime.wire import MESSAGE_BYTES_MAX, Channel, ClosedError


def writer(path: Path, *, size: int = 1 << 20, files: int = 3) -> LogWriter:
    return LogWriter(str(path), max_size_bytes=size, max_files=files)


def read(path: Path, **options: object) -> list[bytes]:
    async def collect() -> list[bytes]:
        return [line.data async for line in read_log(path, **options)]  # type: ignore[arg-type]

    return asyncio.run(collect())


def test_a_line_is_what_docker_writes(tmp_path: Path) -> None:
    log = writer(tmp_path / "log")
    log.feed("stdout", b'say "hi"\tto \xff\n', time_ns=1_700_000_000_000_000_042)
    log.close(time_ns=0)
    text = (tmp_path / "log").read_text()
    assert json.loads(text) == {
        "log": 'say "hi"\tto \ufffd\n',
        "stream": "stdout",
        "time": "2023-11-14T22:13:20.000000042Z",
    }
    assert text.startswith('{"log":')


def test_lines_are_joined_across_writes_and_streams_do_not_mix(tmp_path: Path) -> None:
    log = writer(tmp_path / "log")
    for stream, data in (("stdout", b"ab"), ("stderr", b"x\ny"), ("stdout", b"c\nd")):
        log.feed(stream, data, time_ns=1)
    log.close(time_ns=2)
    assert read(tmp_path / "log") == [b"x\n", b"abc\n", b"d", b"y"] or read(tmp_path / "log") == [
        b"x\n",
        b"abc\n",
        b"y",
        b"d",
    ]


def test_long_lines_are_cut_between_characters(tmp_path: Path) -> None:
    log = writer(tmp_path / "log")
    text = "\u20ac" * 10000  # 30,000 bytes; 16,384 is not a multiple of three
    log.feed("stdout", text.encode() + b"\n", time_ns=1)
    log.close(time_ns=1)
    pieces = read(tmp_path / "log")
    assert [len(piece) for piece in pieces] == [16383, 30001 - 16383]
    assert b"".join(pieces).decode() == text + "\n"


def test_rotation_keeps_the_number_of_files_and_their_size(tmp_path: Path) -> None:
    log = writer(tmp_path / "log", size=1000, files=3)
    for number in range(100):
        log.feed("stdout", b"%d\n" % number, time_ns=1)
    log.feed("stdout", b"".join(b"%d\n" % number for number in range(100, 200)), time_ns=1)
    log.close(time_ns=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    lines = [int(line) for line in read(tmp_path / "log")]
    assert lines == list(range(lines[0], 200))


def test_one_file_only_is_emptied(tmp_path: Path) -> None:
    log = writer(tmp_path / "log", size=200, files=1)
    for number in range(20):
        log.feed("stdout", b"%d\n" % number, time_ns=1)
    log.close(time_ns=1)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert read(tmp_path / "log")[-1] == b"19\n"


def test_a_write_that_fails_drops_and_counts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = writer(tmp_path / "file" / "log")
    log.feed("stdout", b"lost\n", time_ns=1)
    assert log.dropped_bytes > 0


def test_a_log_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    log = writer(tmp_path / "log")
    log.feed("stdout", b"x\n", time_ns=1)
    assert not (tmp_path / "elsewhere").exists()


def test_tail_since_and_until(tmp_path: Path) -> None:
    log = writer(tmp_path / "log", size=900, files=5)
    for second in range(30):
        log.feed("stdout", b"%d\n" % second, time_ns=second * 1_000_000_000)
    log.close(time_ns=0)
    path = tmp_path / "log"
    assert read(path, tail=0) == []
    assert read(path, tail=3) == [b"27\n", b"28\n", b"29\n"]
    assert len(read(path, tail=20)) == 20
    assert read(path, tail=1000) == read(path)
    at = lambda second: datetime.fromtimestamp(second, UTC)  # noqa: E731
    assert read(path, since=at(10), until=at(12)) == [b"10\n", b"11\n", b"12\n"]


def test_a_torn_line_is_skipped(tmp_path: Path) -> None:
    log = writer(tmp_path / "log")
    log.feed("stdout", b"a\n", time_ns=1)
    log.close(time_ns=1)
    with (tmp_path / "log").open("a") as file:
        file.write('{"log":"b\n{"log":"c\\n","stream":"stdout","time":"2023-01-01T00:00:00.5Z"}\n')
    assert read(tmp_path / "log") == [b"a\n", b"c\n"]


def test_no_log_is_an_error_unless_one_waits_for_it(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read(tmp_path / "log")

    async def follow() -> list[bytes]:
        stop = asyncio.Event()
        found: list[bytes] = []

        async def collect() -> None:
            async for line in read_log(tmp_path / "log", follow=True, stop=stop):
                found.append(line.data)
                stop.set()

        task = asyncio.create_task(collect())
        await asyncio.sleep(0.05)
        log = writer(tmp_path / "log")
        log.feed("stdout", b"now\n", time_ns=1)
        log.close(time_ns=1)
        await task
        return found

    assert asyncio.run(follow()) == [b"now\n"]


def test_timestamps_have_nine_digits() -> None:
    assert timestamp(1) == "1970-01-01T00:00:00.000000001Z"
    assert timestamp(1_000_000_000) == "1970-01-01T00:00:01.000000000Z"


def test_a_record_cut_short_counts_as_absent(tmp_path: Path) -> None:
    state = StateDir(str(tmp_path / "s"))
    state.create("a", {"cgroup": "x"})
    os.close(state.write_exit("a", {"exit_code": 3}))
    assert state.read("a", "exit") == {"exit_code": 3}
    path = tmp_path / "s" / "a" / "exit"
    for damaged in (b"", b'{"exit_code": 3', b'{"exit_code": 3}', b"[]\n", b"\xff\n"):
        path.write_bytes(damaged)
        assert state.read("a", "exit") is None
    assert state.list() == ["a"]
    with pytest.raises(FileExistsError):
        state.create("a", {})
    state.remove("a")
    state.remove("a")
    assert state.list() == []
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700


def test_a_process_is_known_by_its_start() -> None:
    assert start_ticks(os.getpid()) is not None
    assert start_ticks(1 << 22) is None


def pair() -> tuple[Channel, Channel]:
    one, two = socket.socketpair()
    one.setblocking(False)
    two.setblocking(False)
    return Channel(one), Channel(two)


def test_messages_and_descriptors_arrive_together_and_in_order() -> None:
    here, there = pair()
    reader, writer_fd = os.pipe()
    here.send({"n": 1})
    here.send({"n": 2}, [reader])
    here.send({"n": 3}, [reader, writer_fd])
    got = there.receive()
    assert [message["n"] for message, _ in got] == [1, 2, 3]
    assert [len(fds) for _, fds in got] == [0, 1, 2]
    os.write(got[2][1][1], b"x")
    assert os.read(got[1][1][0], 1) == b"x"
    for fd in [reader, writer_fd, *(fd for _, fds in got for fd in fds)]:
        os.close(fd)
    here.close()
    with pytest.raises(ClosedError):
        there.receive()
    there.close()


def test_a_message_larger_than_the_socket_is_sent_in_pieces() -> None:
    here, there = pair()
    here.send({"text": "x" * (4 << 20)})
    got: list[tuple[dict[str, object], list[int]]] = []
    while not got:
        here.flush()
        got = there.receive()
    assert len(str(got[0][0]["text"])) == 4 << 20
    here.close()
    there.close()


@pytest.mark.parametrize(
    "garbage", [b"\xff\xff\xff\xff", b"\0\0\0\1x", b"\0\0\0\2[]", b'\0\0\0\x0a{"fds": 1}', b'\0\0\0\x0c{"fds": "x"}']
)
def test_garbage_closes_the_channel(garbage: bytes) -> None:
    here, there = pair()
    here.socket.send(garbage)
    with pytest.raises(ClosedError):
        there.receive()
    here.close()
    there.close()


def test_too_large_a_message_is_not_sent() -> None:
    here, there = pair()
    with pytest.raises(ClosedError, match="limit"):
        here.send({"text": "x" * MESSAGE_BYTES_MAX})
    here.close()
    there.close()


HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /nowhere/unified rw - cgroup2 cgroup2 rw
"""


def test_the_mount_table_tells_which_hierarchies_there_are() -> None:
    hybrid = detect_layout(HYBRID)
    assert not hybrid.is_v2
    assert hybrid.v1["cpu"] == hybrid.v1["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct"
    assert hybrid.v1["name=systemd"] == "/sys/fs/cgroup/systemd"
    assert Layout({}, "/sys/fs/cgroup", frozenset({"memory", "cpu"})).is_v2
    assert not detect_layout("").is_v2


def test_a_kernel_with_memory_on_v2_and_the_rest_on_v1_is_used_as_v1_and_refuses_memory_limits(tmp_path: Path) -> None:
    layout = Layout({"pids": str(tmp_path)}, str(tmp_path / "unified"), frozenset({"memory", "cpuset"}))
    assert not layout.is_v2
    tree = CgroupTree(layout, "/fleet")
    tree.create("c", limits={}, devices=None)
    with pytest.raises(OSError, match="no memory controller"):
        tree.apply_limits("c", {"memory_bytes": 1 << 26}, fresh=True)


V2_FILES = [
    "cpu.max",
    "cpu.weight",
    "memory.max",
    "memory.swap.max",
    "memory.low",
    "pids.max",
    "cpuset.cpus",
    "cgroup.freeze",
    "cgroup.procs",
]


def test_v2_limits_are_written_in_its_own_terms(tmp_path: Path) -> None:
    (tmp_path / "fleet/c").mkdir(parents=True)
    for name in V2_FILES:
        (tmp_path / "fleet/c" / name).touch()
    tree = CgroupTree(Layout({}, str(tmp_path), frozenset({"memory", "cpu", "pids"})), "/fleet")
    limits = {
        "nano_cpus": 1_500_000_000,
        "memory_bytes": 1 << 27,
        "pids_limit": 9,
        "cpu_shares": 1024,
        "cpuset_cpus": "0-1",
    }
    tree.apply_limits("c", limits)
    written = {name: (tmp_path / "fleet/c" / name).read_text() for name in V2_FILES}
    assert written["cpu.max"] == "150000 100000"
    assert written["cpu.weight"] == "39"
    assert (written["memory.max"], written["memory.swap.max"]) == (str(1 << 27), str(1 << 27))
    assert (written["pids.max"], written["cpuset.cpus"]) == ("9", "0-1")
    for name in V2_FILES:
        (tmp_path / "fleet/c" / name).write_text("")
    (tmp_path / "fleet/cpuset.cpus.effective").write_text("0-7\n")
    tree.apply_limits("c", {})
    assert (tmp_path / "fleet/c/cpuset.cpus").read_text() == "", (
        "what is not pinned is not pinned by a change of others"
    )
    (tmp_path / "fleet/c/cpuset.cpus").write_text("0-1\n")
    tree.apply_limits("c", {})
    assert (tmp_path / "fleet/c/memory.max").read_text() == "max"
    assert (tmp_path / "fleet/c/cpu.max").read_text() == "max 100000"
    # The kernel refuses an empty set while the group has processes, and a write of nothing changes nothing.
    assert (tmp_path / "fleet/c/cpuset.cpus").read_text().startswith("0-7")
    fds = tree.open_entrances("c")
    assert len(fds) == 1
    os.close(fds[0])


def test_v2_controllers_are_handed_down_from_the_top(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "a", tmp_path / "a/b"):
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.subtree_control").touch()
    CgroupTree(Layout({}, str(tmp_path), frozenset({"memory", "cpu", "pids"})), "/a/b").prepare()
    for directory in (tmp_path, tmp_path / "a", tmp_path / "a/b"):
        assert (directory / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_v2_controllers_are_handed_down_from_where_they_were_given(tmp_path: Path) -> None:
    (tmp_path / "user").mkdir()
    (tmp_path / "user/cgroup.subtree_control").touch()
    layout = Layout({}, str(tmp_path), frozenset({"memory", "pids"}))
    CgroupTree(layout, "/user/fleet").prepare()
    assert (tmp_path / "user/cgroup.subtree_control").read_text() == "+memory +pids"
    assert not (tmp_path / "cgroup.subtree_control").exists()


def test_processes_of_groups_made_inside_a_container_are_the_containers(tmp_path: Path) -> None:
    for directory, pids in (("fleet/c", ""), ("fleet/c/init", "7\n8\n"), ("fleet/c/inner/deep", "9\n")):
        (tmp_path / directory).mkdir(parents=True)
        (tmp_path / directory / "cgroup.procs").write_text(pids)
    (tmp_path / "fleet/c/inner/cgroup.procs").touch()
    tree = CgroupTree(Layout({}, str(tmp_path), frozenset({"memory"})), "/fleet")
    assert sorted(tree.pids("c")) == [7, 8, 9]
    assert tree.pids("gone") == []


def test_the_sheltered_move_only_where_service_managers_look(tmp_path: Path) -> None:
    unified, named, cpu = tmp_path / "unified", tmp_path / "named", tmp_path / "cpu"
    for group in (unified / "fleet/supervisor", named / "fleet", cpu / "fleet"):
        group.mkdir(parents=True)
        (group / "cgroup.procs").touch()
    CgroupTree(Layout({}, str(unified), frozenset({"memory"})), "/fleet").shelter(42)
    assert (unified / "fleet/supervisor/cgroup.procs").read_text() == "42"
    CgroupTree(Layout({"cpu": str(cpu), "name=systemd": str(named)}, "", frozenset()), "/fleet").shelter(43)
    assert (named / "fleet/cgroup.procs").read_text() == "43"
    assert (cpu / "fleet/cgroup.procs").read_text() == ""


def test_with_both_versions_the_sheltered_move_in_both_that_service_managers_look_at(tmp_path: Path) -> None:
    unified, named, cpu = tmp_path / "unified", tmp_path / "named", tmp_path / "cpu"
    for group in (unified / "fleet", named / "fleet", cpu / "fleet"):
        group.mkdir(parents=True)
        (group / "cgroup.procs").touch()
    hybrid = Layout({"cpu": str(cpu), "memory": str(cpu), "name=systemd": str(named)}, str(unified), frozenset())
    CgroupTree(hybrid, "/fleet").shelter(44)
    assert [(root / "fleet/cgroup.procs").read_text() for root in (unified, named, cpu)] == ["44", "44", ""]
    for root in (unified, named, cpu):
        (root / "fleet/cgroup.procs").unlink()
    CgroupTree(hybrid, "/fleet").remove_parent()
    assert not any((root / "fleet").exists() for root in (unified, named, cpu))


def test_v2_figures(tmp_path: Path) -> None:
    group = tmp_path / "fleet/c"
    group.mkdir(parents=True)
    for name, text in {
        "cpu.stat": "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_periods 2\nnr_throttled 1\nthrottled_usec 5\n",
        "memory.current": "4096\n",
        "memory.max": "max\n",
        "memory.stat": "anon 1\nfile 2\ninactive_file 3\n",
        "memory.peak": "8192\n",
        "memory.events": "low 0\noom 2\noom_kill 1\n",
        "pids.current": "3\n",
        "pids.max": "10\n",
        "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2\n8:16 rbytes=1 wbytes=2\n",
    }.items():
        (group / name).write_text(text)
    figures = CgroupTree(Layout({}, str(tmp_path), frozenset({"memory"})), "fleet").figures("c")
    assert figures["cpu_usage_ns"] == 7000
    assert (figures["memory_usage_bytes"], figures["memory_limit_bytes"], figures["oom_kills"]) == (4096, 0, 1)
    assert (figures["block_read_bytes"], figures["block_write_bytes"], figures["pids_limit"]) == (11, 22, 10)
