"""Known ways out of a container, each tried. ``fleet/node_runtime/SECURITY.md`` lists which test stands for which attack."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
import time
from pathlib import Path

import pytest
from test_runtime_isolation import PYTHON, host_root
from test_runtime_support import Node, on_node

from fleet.errors import RejectedFault, RuntimeFault, UserError
from fleet.node_runtime.faults import CommandFault
from fleet.node_runtime.spec import MountSpec, ProcessSpec

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.attack_paths import SWAPPER

pytestmark = pytest.mark.kernel

RACE_S = 2.0
ROUNDS_MIN = 20
DEADLINE_S = 120.0


def tree_hash(directory: Path) -> str:
    """Names, links, modes and contents."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        info = path.lstat()
        digest.update(f"{path.relative_to(directory)} {info.st_mode} {info.st_uid}\n".encode())
        if path.is_file() and not path.is_symlink():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def host_mounts() -> list[str]:
    return sorted(line.split(" ", 2)[2] for line in Path("/proc/self/mountinfo").read_text().splitlines())


@on_node
async def test_proc_self_exe_as_interpreter_and_a_writer_of_proc_pid_exe_get_nothing_of_the_host(node: Node) -> None:
    """CVE-2019-5736: the image's command names /proc/self/exe as its interpreter; meanwhile a process inside opens every
    /proc/PID/exe for writing while execs join.
    """
    interpreter = Path(PYTHON).resolve()
    before = hashlib.sha256(interpreter.read_bytes()).digest()
    for name in ("again", "sh2"):
        (node.image / name).write_text("#!/proc/self/exe\n")
        (node.image / name).chmod(0o755)
    with pytest.raises(
        RuntimeFault
    ):  # the kernel finds the very interpreter it runs, and it is not a file of this root
        await node.client.start(node.spec("/again"))
    attacker = """
import os, time
end = time.monotonic() + 2
opened = set()
while time.monotonic() < end:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_PATH):
            try:
                fd = os.open(f"/proc/{pid}/exe", flags)
            except OSError:
                continue
            opened.add(os.readlink(f"/proc/self/fd/{fd}"))
            if flags == os.O_PATH:
                try:
                    os.write(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_TRUNC), b"owned")
                except OSError:
                    pass
            os.close(fd)
print(sorted(opened))
"""
    (node.image / "usr/bin").mkdir(parents=True, exist_ok=True)
    spec = node.spec(PYTHON, "-I", "-S", "-c", attacker, root=host_root(node, "attacker"))
    await node.client.start(spec)
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        with contextlib.suppress(CommandFault):  # once the attacker has overwritten its own copy
            await node.client.wait_exec((await node.client.exec(spec.id, ProcessSpec(args=("/bin/true",)))).exec_id)
    assert (await node.exited(spec.id)).exit_code == 0
    # /bin/true is the container's own by then; the interpreter is never opened by its name on the host.
    assert set(eval(await node.log(spec))) <= {os.path.realpath("/bin/true")}
    assert hashlib.sha256(interpreter.read_bytes()).digest() == before


@on_node
async def test_no_descriptor_of_the_host_as_working_directory_of_an_exec(node: Node) -> None:
    """CVE-2024-21626, the exec side: magic links, and links to them that the container made itself."""
    spec = node.spec("sh", "-c", "for i in $(seq 3 20); do ln -s /proc/self/fd/$i /tmp/fd$i; done; sleep 60")
    await node.client.start(spec)
    await asyncio.sleep(0.2)
    for number in range(3, 21):
        for path in (
            f"/proc/self/fd/{number}",
            f"/tmp/fd{number}",
            f"/proc/1/fd/{number}",
        ):
            with pytest.raises(RuntimeFault):
                await node.client.exec(spec.id, ProcessSpec(args=("pwd",), cwd=path))
                pytest.fail(path)
    for path in ("/proc/1/root", "/proc/self/cwd"):
        with pytest.raises(RuntimeFault):
            await node.client.exec(spec.id, ProcessSpec(args=("pwd",), cwd=path))
    _, out = await node.client.exec_capture(spec.id, ProcessSpec(args=("ls", "/proc/self/fd")), timeout_s=10)
    assert out.split() == [b"0", b"1", b"2", b"3"]  # 3 is the directory being listed


@on_node
async def test_names_swapped_in_a_shared_volume_lead_no_mount_to_the_host(node: Node) -> None:
    """CVE-2021-30465 and its kin: two containers exchange directories for links to the host, /proc and /sys while a third
    mounts beneath them, again and again.
    """
    shared, source, victim = (node.directory / name for name in ("shared", "source", "victim"))
    for directory in (shared, source, victim):
        directory.mkdir()
    (source / "planted").write_text("x")
    (victim / "kept").write_text("y")
    for name in ("a", "b"):
        (shared / name / "inner").mkdir(parents=True)
    (shared / "a-link").symlink_to("../../../../../../../.." + str(victim))
    (shared / "b-link").symlink_to("/proc/sys/kernel")
    volume = MountSpec(kind="bind", source=str(shared), target="/shared")
    before, mounts_before = tree_hash(victim), host_mounts()
    core_pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    for name in ("a", "b"):
        command = (PYTHON, "-I", "-S", "-c", SWAPPER, f"/shared/{name}-link", f"/shared/{name}")
        await node.client.start(node.spec(*command, root=host_root(node, f"swap-{name}"), mounts=(volume,)))
    refused = reached = 0
    begun = time.monotonic()
    while refused + reached <= ROUNDS_MIN or time.monotonic() < begun + RACE_S:
        assert time.monotonic() < begun + DEADLINE_S
        mounts = (
            volume,
            MountSpec(kind="bind", source=str(source), target="/shared/a/inner"),
            MountSpec(kind="bind", source=str(source), target="/shared/b/made"),
            MountSpec(kind="tmpfs", target="/shared/b"),
        )
        spec = node.spec("sh", "-c", "ls /shared/a/inner", mounts=mounts)
        try:
            await node.client.start(spec)
        except RuntimeFault:
            refused += 1
            continue
        reached += 1
        await node.exited(spec.id)
        await node.client.remove(spec.id)
    assert refused, "the swap was never seen, so nothing was proved"
    assert tree_hash(victim) == before
    assert host_mounts() == mounts_before
    assert Path("/proc/sys/kernel/core_pattern").read_text() == core_pattern


@on_node
async def test_dev_null_of_the_image_or_a_volume_is_not_what_masks(node: Node) -> None:
    """CVE-2025-31133: the masking source would be a link to /proc/sys/kernel/core_pattern."""
    (node.image / "dev/null").symlink_to("/proc/sys/kernel/core_pattern")
    devices = node.directory / "devices"
    devices.mkdir()
    (devices / "null").symlink_to("/proc/sys/kernel/core_pattern")
    (devices / "pts").mkdir()
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    names = [name for name in ("kcore", "keys", "timer_list", "interrupts") if Path("/proc", name).exists()]
    script = f"cd /proc; stat -c '%n %F %t:%T' {' '.join(names)}; (echo x >/proc/sys/kernel/core_pattern) 2>&1"
    expected = "".join(f"{name} character special file 1:3\n" for name in names)
    _, out = await node.run(node.spec("sh", "-c", script))
    assert out.startswith(expected)
    assert "Read-only file system" in out
    over = (MountSpec(kind="bind", source=str(devices), target="/dev"),)
    spec = node.spec("sh", "-c", script, mounts=over)
    try:
        _, out = await node.run(spec)
        assert out.startswith(expected)
    except (RuntimeFault, UserError):
        pass
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


@on_node
async def test_the_console_is_the_terminal_made_here(node: Node) -> None:
    """CVE-2025-52565: /dev/pts/N or /dev/console prepared by the image must not decide what is bound."""
    (node.image / "dev/console").symlink_to("/proc/sysrq-trigger")
    (node.image / "dev/pts").mkdir(exist_ok=True)
    (node.image / "dev/pts/0").symlink_to("/proc/sys/kernel/core_pattern")
    spec = node.spec("sh", "-c", "stat -c '%F %t' /dev/console; stat -c '%F %t' /dev/pts/0; tty; sleep 0.1", tty=True)
    started = await node.client.start(spec)
    await node.exited(spec.id)
    assert (await node.log(spec)).split("\r\n")[:3] == [
        "character special file 88",
        "character special file 88",
        "/dev/pts/0",
    ]
    if started.terminal_fd is not None:
        os.close(started.terminal_fd)


@on_node
async def test_nothing_can_be_mounted_into_proc_to_redirect_what_is_written_there(node: Node) -> None:
    """CVE-2025-52881: a volume over /proc/self/attr, /proc/sys or the process's own directory."""
    source = node.directory / "source"
    source.mkdir()
    (node.image / "by-link").symlink_to("/proc/sys")
    for target in ("/proc", "/proc/self/attr", "/proc/sys", "/proc/1", "/proc/sys/net", "/by-link", "/by-link/net"):
        for mount in (
            MountSpec(kind="bind", source=str(source), target=target),
            MountSpec(kind="tmpfs", target=target),
        ):
            with pytest.raises((RejectedFault, RuntimeFault, UserError)):
                await node.client.start(node.spec("true", mounts=(mount,)))


@on_node
async def test_no_malformed_user_of_an_exec_becomes_root(node: Node) -> None:
    """CVE-2026-30892. What is not understood is refused; nothing falls back to uid 0."""
    (node.image / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/:/bin/sh\nbroken:x:x:0::/:/bin/sh\nshort\n"
    )
    spec = node.spec("sleep", "60", user="web")
    await node.client.start(spec)
    for user in (
        ":", "web:", ":0", ":root", "-1", "+0", "0x0", " 0", "0 ", "1e3", "4294967296", "4294967295", "18446744073709551616",
        "web:root:x", "broken", "short", "nobody",
        "web\n", "root\0", "\u0660", "½", "web:-1", "web:nogroup", "%0", "0,0", "root:x:0",
    ):  # fmt: skip
        with pytest.raises((RuntimeFault, UserError)):
            started = await node.client.exec(spec.id, ProcessSpec(args=("true",), user=user))
            pytest.fail(f"{user!r} was accepted: {started}")


@on_node
async def test_supplementary_groups_are_the_users_own(node: Node) -> None:
    """CVE-2022-36109: neither the supervisor's groups nor the primary group's absence opens a file to others."""
    own = os.getgroups()
    await node.client.shutdown()
    os.setgroups([0, 4, 24])
    try:
        await node.connect()
    finally:
        os.setgroups(own)
    (node.image / "secret").write_text("x")
    os.chown(node.image / "secret", 0, 24)
    (node.image / "secret").chmod(0o040)
    _, out = await node.run(node.spec("sh", "-c", "grep Groups /proc/self/status; cat /secret 2>&1", user="web"))
    assert out == "Groups:\t2000 \ncat: can't open '/secret': Permission denied\n"
    _, out = await node.run(node.spec("grep", "Groups", "/proc/self/status", user="4242"))
    assert out == "Groups:\t \n"


@on_node
async def test_the_session_keyring_is_the_containers_own(node: Node) -> None:
    """keyctl is denied inside and /proc/keys is masked, so the host counts: each container brings a keyring."""
    if not Path("/proc/keys").exists():
        pytest.skip("not run: this kernel has no keyrings")

    def sessions() -> int:
        return sum("_ses" in line for line in Path("/proc/keys").read_text().splitlines())

    before = sessions()
    for _ in range(3):
        await node.client.start(node.spec("sleep", "60"))
    assert sessions() >= before + 3


@on_node
async def test_cgroup_release_agent_is_out_of_reach(node: Node) -> None:
    """CVE-2022-0492: no cgroup file system can be mounted, and none that is there can be written."""
    script = """
        mkdir -p /tmp/c
        for kind in cgroup cgroup2; do mount -t $kind none /tmp/c 2>/dev/null && echo "mounted $kind"; done
        mount -t cgroup -o memory none /tmp/c 2>/dev/null && echo mounted memory
        unshare -C true 2>/dev/null && echo unshared
        grep -E ' (cgroup|cgroup2) ' /proc/mounts | grep -v ' ro,' && echo writable
        cd /sys/fs/cgroup
        for f in release_agent */release_agent notify_on_release cgroup.procs; do
            (echo x > $f) 2>/dev/null && echo "wrote $f"
        done
        echo done
    """
    assert await node.run(node.spec("sh", "-c", script)) == (0, "done\n")


@on_node
async def test_processes_of_the_host_cannot_be_traced_or_signalled(node: Node) -> None:
    probe = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for pid in ({os.getpid()}, {node.client.supervisor_pid}, os.getppid()):
    if pid <= 1: continue
    for request in (16, 0x4206):
        if libc.ptrace(request, pid, 0, 0) == 0: print("traced", pid)
    try: os.kill(pid, 0); print("seen", pid)
    except OSError: pass
    if os.path.exists(f"/proc/{{pid}}"): print("listed", pid)
print("done")
"""
    assert await node.run(node.spec(PYTHON, "-I", "-S", "-c", probe, root=host_root(node, "host"))) == (0, "done\n")


@on_node
async def test_the_hosts_network_gives_no_way_to_a_control_socket(node: Node) -> None:
    """CVE-2020-15257: with the host's network namespace a container sees its abstract sockets; there are none of ours, and
    the path is not in its root.
    """
    ours = {str(node.directory / "run/supervisor.sock")}
    _, out = await node.run(node.spec("cat", "/proc/net/unix", network="host"))
    abstract = [line for line in out.splitlines() if "@" in line and "fleet" in line.lower()]
    assert abstract == []
    _, out = await node.run(node.spec("ls", *ours, network="host"))
    assert "No such file" in out


@on_node
async def test_variables_of_the_daemon_and_of_the_container_do_not_reach_our_own_processes(node: Node) -> None:
    """CVE-2025-23266: LD_PRELOAD, PYTHONPATH and their kind, given by an image, are for its own program only."""
    poison = (
        "LD_PRELOAD=/evil.so",
        "LD_LIBRARY_PATH=/evil",
        "PYTHONPATH=/evil",
        "PYTHONSTARTUP=/evil",
        "PYTHONHOME=/evil",
    )
    spec = node.spec("env", env=poison, init=True)
    code, out = await node.run(spec)
    assert code == 0
    assert set(poison) <= set(out.splitlines())
    await node.client.start(sleeper := node.spec("sleep", "60", env=poison))
    started = await node.client.exec(sleeper.id, ProcessSpec(args=("true",), env=poison))
    assert await node.client.wait_exec(started.exec_id) == 0
    assert Path(f"/proc/{node.client.supervisor_pid}/environ").read_bytes() == b""


@on_node
async def test_directories_and_records_of_the_runtime_are_roots_alone(node: Node) -> None:
    """CVE-2021-41091: what containers leave behind, setuid programs too, is not in reach of users of the host."""
    await node.client.start(node.spec("sleep", "60", env=("TOKEN=hunter2",)))
    for path in (node.directory / "run", node.directory / "state"):
        assert path.stat().st_mode & 0o077 == 0, path
        for below in path.rglob("*"):
            info = below.lstat()
            assert info.st_uid == 0
            assert not info.st_mode & 0o077 or below.is_dir(), below
    held = [
        path for path in (node.directory / "state").rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()
    ]
    assert held == [], "variables are in no record"
    assert b"hunter2" not in Path(f"/proc/{node.client.supervisor_pid}/cmdline").read_bytes()
