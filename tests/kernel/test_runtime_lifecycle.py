"""Starting, signalling, joining, pausing, logging, and what the death of any part leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_runtime_support import Node, eventually, on_node

from fleet.errors import ConflictError, NotFoundError, RuntimeFault
from fleet.node_runtime.cgroup_layout import detect_layout
from fleet.node_runtime.client import RuntimeClient
from fleet.node_runtime.events import Exited, Oom, SupervisorRestarted
from fleet.node_runtime.faults import CommandFault
from fleet.node_runtime.logs import read_log
from fleet.node_runtime.spec import ContainerSpec, LogSpec, MountSpec, ProcessSpec, ResourceLimits, RootFs

pytestmark = pytest.mark.kernel


async def killed_supervisor(node: Node) -> SupervisorRestarted:
    """kill -9 the supervisor and wait for its successor."""
    os.kill(node.client.supervisor_pid, signal.SIGKILL)
    event = await node.event(lambda event: isinstance(event, SupervisorRestarted))
    assert isinstance(event, SupervisorRestarted)
    node.supervisors.add(event.pid)
    return event


@on_node
async def test_exit_codes_and_signals_are_reported(node: Node) -> None:
    assert (await node.run(node.spec("sh", "-c", "exit 42")))[0] == 42
    assert (await node.run(node.spec("sh", "-c", "kill -9 $$; exec sleep 0.1")))[
        0
    ] == 0  # pid 1 is immune to its own SIGKILL
    spec = node.spec("sleep", "60")
    await node.client.start(spec)
    await node.client.signal(spec.id, signal.SIGTERM)  # pid 1 without a handler ignores it
    await asyncio.sleep(0.1)
    assert (await node.client.list())[-1].status == "running"
    await node.client.signal(spec.id, signal.SIGKILL)
    assert (await node.exited(spec.id)).exit_code == 137
    with pytest.raises(ConflictError):
        await node.client.signal(spec.id, signal.SIGTERM)
    with pytest.raises(NotFoundError):
        await node.client.signal("nobody", signal.SIGTERM)


@on_node
async def test_a_handler_gets_the_signal_and_its_grace(node: Node) -> None:
    spec = node.spec("sh", "-c", "trap 'sleep 0.2; echo bye; exit 5' TERM; while :; do sleep 0.02; done")
    await node.client.start(spec)
    await asyncio.sleep(0.1)
    await node.client.signal(spec.id, signal.SIGTERM)
    assert (await node.exited(spec.id)).exit_code == 5
    assert await node.log(spec) == "bye\n"


@on_node
async def test_an_id_is_taken_until_removed(node: Node) -> None:
    spec = node.spec("true")
    await node.run(spec)
    with pytest.raises(ConflictError):
        await node.client.start(spec)
    await node.client.remove(spec.id)
    await node.client.remove(spec.id)  # idempotent
    assert (await node.run(spec))[0] == 0


@on_node
async def test_remove_kills_everything_and_leaves_no_cgroup(node: Node) -> None:
    spec = node.spec("sh", "-c", "for i in 1 2 3; do setsid sleep 99 & done; sleep 99")
    await node.client.start(spec)

    async def all_there() -> bool:
        return len(await node.client.processes(spec.id)) == 4

    await eventually(all_there)
    pids = [process.pid for process in await node.client.processes(spec.id)]
    await node.client.pause(spec.id)
    await node.client.remove(spec.id)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    layout = detect_layout()
    roots = {*layout.v1.values(), layout.unified} - {""}
    assert roots
    assert not [root for root in roots if Path(f"{root}{node.cgroup_parent}/{spec.id}").exists()]


@on_node
async def test_exec_joins_with_the_same_restrictions(node: Node) -> None:
    spec = node.spec("sleep", "60", hostname="inside")
    await node.client.start(spec)
    script = "hostname; id -u; pwd; echo $A; grep -E '^(CapBnd|CapInh|NoNewPrivs|Seccomp:)' /proc/self/status; ls /proc/self/ns >/dev/null; exit 3"  # noqa: E501 - one script
    process = ProcessSpec(args=("sh", "-c", script), user="web", cwd="/tmp", env=("A=1",))
    code, out = await node.client.exec_capture(spec.id, process, timeout_s=5)
    assert code == 3
    assert out.decode().split() == (
        [
            "inside",
            "1000",
            "/tmp",
            "1",
            "CapInh:",
            "0000000000000000",
            "CapBnd:",
            "00000000a80425fb",
            "NoNewPrivs:",
            "1",
            "Seccomp:",
            "2",
        ]
    )
    _, same = await node.client.exec_capture(
        spec.id, ProcessSpec(args=("ls", "-l", "/proc/1/ns", "/proc/self/ns")), timeout_s=5
    )
    links = [line.split("-> ")[1] for line in same.decode().splitlines() if "->" in line]
    assert sorted(links[: len(links) // 2]) == sorted(links[len(links) // 2 :])
    code, out = await node.client.exec_capture(spec.id, ProcessSpec(args=("ls", "/proc/self/fd")), timeout_s=5)
    assert out.split() == [b"0", b"1", b"2", b"3"]  # 3 is the directory ls reads


@on_node
async def test_the_supervisors_own_oom_score_is_not_inherited(node: Node) -> None:
    # Service managers lower the daemon's; raised here, because raising needs no capability.
    Path(f"/proc/{node.client.supervisor_pid}/oom_score_adj").write_text("300")
    script = "cat /proc/self/oom_score_adj; exec sleep 60"
    for wanted in (0, 17):
        spec = node.spec("sh", "-c", script, oom_score_adj=wanted)
        started = await node.client.start(spec)
        assert Path(f"/proc/{started.pid}/oom_score_adj").read_text() == f"{wanted}\n"
        own = ProcessSpec(args=("cat", "/proc/self/oom_score_adj"), oom_score_adj=wanted)
        assert await node.client.exec_capture(spec.id, own, timeout_s=5) == (0, f"{wanted}\n".encode())


@on_node
async def test_exec_counts_in_the_containers_group(node: Node) -> None:
    spec = node.spec("sleep", "60")
    await node.client.start(spec)
    started = await node.client.exec(spec.id, ProcessSpec(args=("sleep", "30")))
    listed = {process.pid: process.command for process in await node.client.processes(spec.id)}
    assert listed[started.pid] == "sleep 30"
    assert len(listed) == 2
    await node.client.signal_exec(started.exec_id, signal.SIGKILL)
    assert await node.client.wait_exec(started.exec_id) == 137
    with pytest.raises(NotFoundError):
        await node.client.signal_exec(started.exec_id, signal.SIGKILL)


@on_node
async def test_exec_faults(node: Node) -> None:
    spec = node.spec("sleep", "60")
    await node.client.start(spec)
    with pytest.raises(CommandFault) as caught:
        await node.client.exec(spec.id, ProcessSpec(args=("nope",)))
    assert caught.value.container_exit_code == 127
    with pytest.raises(RuntimeFault):
        await node.client.exec(spec.id, ProcessSpec(args=("true",), user="ghost"))
    with pytest.raises(RuntimeFault):
        await node.client.exec(spec.id, ProcessSpec(args=("true",), cwd="/proc/self/fd/3"))
    with pytest.raises(TimeoutError):
        await node.client.exec_capture(spec.id, ProcessSpec(args=("sleep", "30")), timeout_s=0.2)

    async def timed_out_one_is_dead() -> bool:
        return len(await node.client.processes(spec.id)) == 1

    await eventually(timed_out_one_is_dead)
    await node.client.pause(spec.id)
    with pytest.raises(ConflictError):
        await node.client.exec(spec.id, ProcessSpec(args=("true",)))


@on_node
async def test_exec_output_of_any_size_arrives(node: Node) -> None:
    spec = node.spec("sleep", "60")
    await node.client.start(spec)
    code, out = await node.client.exec_capture(
        spec.id, ProcessSpec(args=("dd", "if=/dev/zero", "bs=64k", "count=64")), timeout_s=10, output_bytes_max=8 << 20
    )
    assert code == 0
    assert len(out) > 4 << 20


@on_node
async def test_pause_stops_time_and_resume_continues(node: Node) -> None:
    spec = node.spec("sh", "-c", "while :; do :; done")
    await node.client.start(spec)
    await node.client.pause(spec.id)
    assert (await node.client.list())[0].status == "paused"
    first = (await node.client.stats(spec.id)).cpu_usage_ns
    await asyncio.sleep(0.2)
    assert (await node.client.stats(spec.id)).cpu_usage_ns - first < 5_000_000
    await node.client.resume(spec.id)

    async def runs_on() -> bool:
        return (await node.client.stats(spec.id)).cpu_usage_ns - first > 20_000_000

    await eventually(runs_on)  # how soon is for the machine's load to say
    await node.client.pause(spec.id)
    await node.client.signal(spec.id, signal.SIGKILL)
    assert (await node.exited(spec.id)).exit_code == 137


@on_node
async def test_stats_count_processor_memory_and_processes(node: Node) -> None:
    spec = node.spec("sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null; sleep 60 & sleep 60")
    await node.client.start(spec)

    async def grown() -> bool:
        stats = await node.client.stats(spec.id)
        return stats.memory_usage_bytes > 20 << 20 and stats.pids >= 2 and stats.cpu_usage_ns > 0

    await eventually(grown)
    together, alone = await node.client.stats_of_all(), await node.client.stats(spec.id)
    assert together.memory_usage_bytes > 20 << 20
    await node.client.signal(spec.id, signal.SIGKILL)
    await node.exited(spec.id)
    assert (await node.client.stats_of_all()).cpu_usage_ns >= alone.cpu_usage_ns, "what ended ones used is kept"


@on_node
async def test_an_early_notice_tells_of_a_killed_child(node: Node) -> None:
    script = "dd if=/dev/zero of=/dev/null bs=200M count=1; echo survived; sleep 60"
    spec = node.spec("sh", "-c", script, resources=ResourceLimits(memory_bytes=16 << 20))
    await node.client.start(spec)
    await node.event(lambda event: event == Oom(spec.id))
    assert (await node.client.list())[0].status == "running"


@on_node
async def test_log_lines_carry_stream_time_and_long_lines_are_cut(node: Node) -> None:
    script = "echo out; echo err >&2; head -c 40000 /dev/zero | tr '\\0' x; printf 'no newline'"
    (node.image / "bin/tr").symlink_to("/bin/busybox")
    before = time.time()
    spec = node.spec("sh", "-c", script)
    await node.run(spec)
    assert spec.log is not None
    records = [json.loads(line) for line in Path(spec.log.path).read_text().splitlines()]
    assert {"log": "out\n", "stream": "stdout"}.items() <= records[0].items() or {
        "log": "out\n",
        "stream": "stdout",
    }.items() <= records[1].items()
    pieces = [record["log"] for record in records if record["log"].startswith("x")]
    assert [len(piece) for piece in pieces] == [16384, 16384, 40000 - 32768 + len("no newline")]
    lines = [line async for line in read_log(spec.log.path)]
    assert any(line.stream == "stderr" and line.data == b"err\n" for line in lines)
    assert all(before - 1 < line.time.timestamp() < time.time() + 1 for line in lines)


@on_node
async def test_logs_rotate_and_a_follower_misses_nothing(node: Node) -> None:
    spec = node.spec("sh", "-c", "for i in $(seq 20000); do echo line-$i; done")
    assert spec.log is not None
    spec = replace(spec, log=LogSpec(path=spec.log.path, max_size_bytes=200_000, max_files=4))
    seen: list[bytes] = []
    stop = asyncio.Event()

    async def follow() -> None:
        assert spec.log is not None
        async for line in read_log(spec.log.path, follow=True, stop=stop):
            seen.append(line.data)  # noqa: PERF401 - one by one, as they come

    follower = asyncio.create_task(follow())
    await node.client.start(spec)
    await node.exited(spec.id)
    stop.set()
    await follower
    names = sorted(path.name for path in node.directory.glob(f"{spec.id}.log*"))
    assert names == [f"{spec.id}.log", f"{spec.id}.log.1", f"{spec.id}.log.2", f"{spec.id}.log.3"]
    assert all(path.stat().st_size <= 200_000 for path in node.directory.glob(f"{spec.id}.log*"))
    numbers = [int(data.split(b"-")[1]) for data in seen]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 20000
    tail = [line.data async for line in read_log(spec.log.path, tail=7)]  # type: ignore[union-attr]
    assert tail == [b"line-%d\n" % number for number in range(19994, 20001)]


@on_node
async def test_a_full_pipe_without_a_reader_does_not_kill(node: Node) -> None:
    """The supervisor is stopped (not dead): the container waits, and carries on."""
    spec = node.spec("sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' y; echo end; exit 4")
    (node.image / "bin/tr").symlink_to("/bin/busybox")
    os.kill(node.client.supervisor_pid, signal.SIGCONT)
    await node.client.start(spec)
    os.kill(node.client.supervisor_pid, signal.SIGSTOP)
    await asyncio.sleep(0.3)
    os.kill(node.client.supervisor_pid, signal.SIGCONT)
    assert (await node.exited(spec.id)).exit_code == 4
    text = await node.log(spec)
    assert text.count("y") == 3000000
    assert text.endswith("end\n")


@on_node
async def test_attached_output_is_framed_and_ends_with_the_container(node: Node) -> None:
    ours, theirs = socket.socketpair()
    spec = node.spec("sh", "-c", "echo one; sleep 0.1; echo two >&2")
    await node.client.start(spec, attach_fd=theirs.fileno())
    theirs.close()
    ours.setblocking(False)
    data = b""
    while chunk := await asyncio.get_running_loop().sock_recv(ours, 4096):
        data += chunk
    ours.close()
    assert data == b"\x01\0\0\0\0\0\0\x04one\n\x02\0\0\0\0\0\0\x04two\n"


@on_node
async def test_standard_input_comes_from_the_caller(node: Node) -> None:
    reader, writer = os.pipe()
    spec = node.spec("cat")
    await node.client.start(spec, stdin_fd=reader)
    os.close(reader)
    os.write(writer, b"hello\n")
    os.close(writer)
    assert (await node.exited(spec.id)).exit_code == 0
    assert await node.log(spec) == "hello\n"


@on_node
async def test_a_terminal_works_and_outlives_the_supervisor(node: Node) -> None:
    spec = node.spec("sh", "-c", "tty; stty size; read a; echo got $a; read b; echo then $b; exit 6", tty=True)
    started = await node.client.start(spec)
    assert started.terminal_fd is not None
    await node.client.resize(spec.id, rows=33, columns=101)
    assert termios.tcgetwinsize(started.terminal_fd) == (33, 101)
    os.write(started.terminal_fd, b"first\n")

    async def logged(text: str) -> bool:
        return text in await node.log(spec)

    await eventually(lambda: logged("got first"))
    await killed_supervisor(node)
    os.write(started.terminal_fd, b"second\n")
    assert (await node.exited(spec.id)).exit_code == 6
    assert "/dev/pts/0" in await node.log(spec)
    assert "then second" in await node.log(spec)
    os.close(started.terminal_fd)


@on_node
async def test_exec_with_a_terminal(node: Node) -> None:
    spec = node.spec("sleep", "60")
    await node.client.start(spec)
    started = await node.client.exec(spec.id, ProcessSpec(args=("sh", "-c", "tty; exit 2")), tty=True)
    assert started.terminal_fd is not None
    assert await node.client.wait_exec(started.exec_id) == 2
    assert os.read(started.terminal_fd, 100) == b"/dev/pts/0\r\n"
    os.close(started.terminal_fd)


@on_node
async def test_a_container_survives_kill_9_of_the_supervisor_and_its_exit_code_is_recovered(node: Node) -> None:
    flags = node.directory / "flags"
    flags.mkdir()
    mounts = (MountSpec(kind="bind", source=str(flags), target="/flags"),)
    spec = node.spec(
        "sh", "-c", "i=0; while [ ! -e /flags/go ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 7", mounts=mounts
    )
    started = await node.client.start(spec)
    first = await killed_supervisor(node)
    state = (await node.client.list())[0]
    assert (state.status, state.pid) == ("running", started.pid)
    await killed_supervisor(node)
    (flags / "go").touch()
    event = await node.exited(spec.id)
    assert (event.exit_code, event.lost) == (7, False)
    numbers = [int(line) for line in (await node.log(spec)).split()]
    assert numbers == list(range(len(numbers))), "no line of the log is lost"
    assert first.pid != node.client.supervisor_pid


@on_node
async def test_an_exit_while_no_supervisor_lives_is_recovered(node: Node) -> None:
    flags = node.directory / "flags"
    flags.mkdir()
    mounts = (MountSpec(kind="bind", source=str(flags), target="/flags"),)
    spec = node.spec(
        "sh", "-c", "while [ ! -e /flags/go ]; do sleep 0.01; done; echo last words; exit 11", mounts=mounts
    )
    started = await node.client.start(spec)
    await asyncio.sleep(0.1)
    # The client notices at once and starts a successor, so stop it from connecting until the container is dead.
    pid = node.client.supervisor_pid
    os.kill(pid, signal.SIGSTOP)
    (flags / "go").touch()
    await eventually(lambda: _is_dead(started.pid))
    os.kill(pid, signal.SIGKILL)
    event = await node.exited(spec.id)
    assert (event.exit_code, event.lost) == (11, False)
    node.supervisors.add(node.client.supervisor_pid)
    assert await node.log(spec) == "last words\n"


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@on_node
async def test_an_exit_code_is_on_disk_when_it_is_told(node: Node) -> None:
    spec = node.spec("sh", "-c", "exit 13")
    await node.client.start(spec)
    await node.exited(spec.id)
    record = json.loads((node.directory / "state" / spec.id / "exit").read_text())
    assert record["exit_code"] == 13
    await killed_supervisor(node)
    state = (await node.client.list())[0]
    assert (state.status, state.exit_code) == ("exited", 13)


@on_node
async def test_a_client_can_come_and_go(node: Node) -> None:
    running, ending = node.spec("sleep", "60"), node.spec("sh", "-c", "sleep 0.2; exit 3")
    await node.client.start(running)
    await node.client.start(ending)
    supervisor = node.client.supervisor_pid
    await node.client.close()
    await asyncio.sleep(0.4)
    await node.connect()
    assert node.client.supervisor_pid == supervisor
    states = {state.id: (state.status, state.exit_code) for state in await node.client.list()}
    assert states == {running.id: ("running", None), ending.id: ("exited", 3)}


@on_node
async def test_kill_9_of_the_client_changes_nothing(node: Node) -> None:
    spec = node.spec("sh", "-c", "while :; do echo tick; sleep 0.05; done")
    await node.client.start(spec)
    await node.client.close()
    program = f"""
import asyncio, os, signal
from pathlib import Path
from fleet.node_runtime.client import RuntimeClient
async def main():
    home = Path({str(node.directory)!r})
    client = await RuntimeClient.open(state_dir=home / "state", run_dir=home / "run", cgroup_parent={node.cgroup_parent!r})
    await client.list()
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    assert await process.wait() == -signal.SIGKILL
    await node.connect()
    assert (await node.client.list())[0].status == "running"
    before = (await node.log(spec)).count("tick")

    async def more() -> bool:
        return (await node.log(spec)).count("tick") > before

    await eventually(more)


@on_node
async def test_many_starts_at_once(node: Node) -> None:
    specs = [node.spec("sh", "-c", f"exit {number}") for number in range(24)]
    await asyncio.gather(*(node.client.start(spec) for spec in specs))
    codes = [(await node.exited(spec.id)).exit_code for spec in specs]
    assert codes == list(range(24))
    await asyncio.gather(*(node.client.remove(spec.id) for spec in specs))
    assert await node.client.list() == []


@on_node
async def test_a_supervisor_killed_during_starts_leaves_nothing_unfound(node: Node) -> None:
    for delay in (0.0, 0.002, 0.005, 0.01, 0.02):
        specs = [node.spec("sleep", "60") for _ in range(6)]
        starts = [asyncio.create_task(node.client.start(spec)) for spec in specs]
        await asyncio.sleep(delay)
        await killed_supervisor(node)
        results = await asyncio.gather(*starts, return_exceptions=True)
        known = {state.id for state in await node.client.list()}
        for spec, result in zip(specs, results, strict=True):
            if not isinstance(result, BaseException):
                assert spec.id in known, "a start that was answered is known to the successor"
        for spec in specs:
            await node.client.remove(spec.id)
    assert await node.client.list() == []


@on_node
async def test_two_clients_share_one_supervisor(node: Node) -> None:
    other = await RuntimeClient.open(
        state_dir=node.directory / "state", run_dir=node.directory / "run", cgroup_parent=node.cgroup_parent
    )
    assert other.supervisor_pid == node.client.supervisor_pid
    events = other.subscribe()
    spec = node.spec("sh", "-c", "exit 5")
    await node.client.start(spec)
    event = await anext(events)
    assert isinstance(event, Exited)
    assert event.exit_code == 5
    with pytest.raises(ConflictError, match="remove them first"):
        await other.shutdown()
    await other.close()


@on_node
async def test_the_socket_is_private_and_garbage_does_no_harm(node: Node) -> None:
    run = node.directory / "run"
    assert run.stat().st_mode & 0o777 == 0o700
    assert (run / "supervisor.sock").stat().st_mode & 0o777 == 0o600
    for garbage in (b"\xff\xff\xff\xff", b"\0\0\0\2{}", b"\0\0\0\1x", b'\0\0\0\x0a{"fds": 9}'):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(run / "supervisor.sock"))
            raw.sendall(garbage)
            raw.settimeout(2)
            raw.recv(4096)
    assert (await node.run(node.spec("true")))[0] == 0
    abstract = subprocess.run(["grep", "-c", "@.*fleet", "/proc/net/unix"], capture_output=True, text=True, check=False)
    assert abstract.stdout.strip() in ("0", "")


@on_node
async def test_the_supervisor_keeps_no_descriptor_of_a_container_that_is_gone(node: Node) -> None:
    await node.run(node.spec("true"))
    await node.client.remove("c1")
    before = len(os.listdir(f"/proc/{node.client.supervisor_pid}/fd"))
    for _ in range(10):
        spec = node.spec("sh", "-c", "echo x")
        await node.run(spec)
        with contextlib.suppress(CommandFault):
            await node.client.start(node.spec("/nope"))
        await node.client.remove(spec.id)
    assert len(os.listdir(f"/proc/{node.client.supervisor_pid}/fd")) == before


@on_node
async def test_sigterm_ends_the_supervisor_and_spares_the_container(node: Node) -> None:
    spec = node.spec("sleep", "60")
    started = await node.client.start(spec)
    os.kill(node.client.supervisor_pid, signal.SIGTERM)
    event = await node.event(lambda event: isinstance(event, SupervisorRestarted))
    assert isinstance(event, SupervisorRestarted)
    node.supervisors.add(event.pid)
    assert [(state.status, state.pid) for state in await node.client.list()] == [("running", started.pid)]


@on_node
async def test_a_container_can_be_removed_while_it_is_being_started(node: Node) -> None:
    for delay in (0.0, 0.001, 0.004):
        spec = node.spec("sleep", "60")
        starting = asyncio.create_task(node.client.start(spec))
        await asyncio.sleep(delay)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await node.client.remove(spec.id)
        assert await node.client.list() == []


@on_node
async def test_hundreds_of_containers_fit_one_supervisor(node: Node) -> None:
    root = RootFs(plain_dir=str(node.image))
    specs = [node.spec("sleep", "300", root=root) for _ in range(230)]
    limit = asyncio.Semaphore(4)

    async def start(spec: ContainerSpec) -> None:
        async with limit:
            await node.client.start(spec)

    await asyncio.gather(*(start(spec) for spec in specs))
    assert len(await node.client.list()) == 230
    assert (await node.client.exec_capture(specs[-1].id, ProcessSpec(args=("true",)), timeout_s=10))[0] == 0
    await killed_supervisor(node)
    assert {state.status for state in await node.client.list()} == {"running"}
    await asyncio.gather(*(node.client.remove(spec.id) for spec in specs))
