"""What a container sees and may do, read from inside it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from test_runtime_support import Node, eventually, on_node

from fleet.errors import ConflictError, RejectedFault, RuntimeFault, UserError
from fleet.node_runtime.faults import CommandFault
from fleet.node_runtime.spec import DeviceSpec, MountSpec, ProcessSpec, ResourceLimits, Rlimit, RootFs

pytestmark = pytest.mark.kernel

# The host's own tree as image, for probes that need raw system calls: /usr/bin/python3 with ctypes.
PYTHON = "/usr/bin/python3"


def host_root(node: Node, name: str) -> RootFs:
    for kind in ("upper", "work"):
        (node.directory / f"{name}.{kind}").mkdir()
    base = node.directory
    return RootFs(lower_dirs=("/",), upper_dir=f"{base}/{name}.upper", work_dir=f"{base}/{name}.work")


@on_node
async def test_capabilities_are_the_fourteen_and_nothing_is_inheritable(node: Node) -> None:
    _, out = await node.run(node.spec("grep", "-E", "^(Cap|NoNewPrivs|Seccomp:)", "/proc/self/status"))
    facts = dict(line.split(":\t") for line in out.splitlines())
    assert facts == {
        "CapInh": "0000000000000000",
        "CapPrm": "00000000a80425fb",
        "CapEff": "00000000a80425fb",
        "CapBnd": "00000000a80425fb",
        "CapAmb": "0000000000000000",
        "NoNewPrivs": "1",
        "Seccomp": "2",
    }


@on_node
async def test_other_users_have_no_effective_capability(node: Node) -> None:
    _, out = await node.run(node.spec("sh", "-c", "id; grep CapEff /proc/self/status; echo $HOME", user="web"))
    assert out == "uid=1000(web) gid=1001(www) groups=2000(extra)\nCapEff:\t0000000000000000\n/home\n"


@on_node
async def test_user_forms(node: Node) -> None:
    for user, groups, expected in (
        ("1000", (), "uid=1000(web) gid=1001(www) groups=2000(extra)"),
        ("web:ops", (), "uid=1000(web) gid=3000(ops)"),
        ("4242:77", (), "uid=4242 gid=77"),
        ("4242", ("ops", "9"), "uid=4242 gid=0(root) groups=9,3000(ops)"),
    ):
        _, out = await node.run(node.spec("id", user=user, additional_groups=groups))
        got = out.strip().replace("groups=3000(ops),9", "groups=9,3000(ops)")
        assert got == expected or got == expected.replace("gid=0(root)", "gid=0(root)"), user
    for bad in ("nobody-here", "web:", ":", "a:b:c", "99999999999", "-1"):
        with pytest.raises(RejectedFault):
            await node.client.start(node.spec("id", user=bad))


@on_node
async def test_denied_system_calls_are_denied(node: Node) -> None:
    probe = textwrap.dedent("""
        import ctypes, json, os, socket
        libc = ctypes.CDLL(None, use_errno=True)
        def call(number, *args):
            ctypes.set_errno(0)
            result = libc.syscall(number, *args)
            return ctypes.get_errno() if result == -1 else 0
        numbers = {"unshare": (272, 0x10000000), "mount": (165, 0, 0, 0, 0, 0), "setns": (308, 0, 0), "keyctl": (250, 0, 0),
            "io_uring_setup": (425, 1, 0), "bpf": (321, 0, 0, 0), "userfaultfd": (323, 0), "clone3": (435, 0, 0),
            "newer": (4000,),
            "x32": (0x40000000 + 39,), "reboot": (169, 0, 0, 0), "kexec_load": (246, 0, 0, 0, 0), "getpid": (39,),
            "clone_newuser": (56, 0x10000000, 0, 0, 0, 0), "open_by_handle_at": (304, 0, 0, 0), "pivot_root": (155, 0, 0)}
        found = {name: call(*args) for name, args in numbers.items()}
        for family in (38, 40):
            try: socket.socket(family, socket.SOCK_SEQPACKET).close(); found[f"socket{family}"] = 0
            except OSError as error: found[f"socket{family}"] = error.errno
        print(json.dumps(found))
    """)
    if os.uname().machine != "x86_64":
        pytest.skip("numbers of the probe are x86_64's")
    code, out = await node.run(node.spec(PYTHON, "-I", "-S", "-c", probe, root=host_root(node, "host")))
    assert code == 0, out
    found = json.loads(out)
    assert found.pop("getpid") == 0
    assert [found.pop(name) for name in ("clone3", "newer", "x32")] == [38, 38, 38]
    assert set(found.values()) == {1}, found


@on_node
async def test_only_standard_descriptors_are_open(node: Node) -> None:
    _, out = await node.run(node.spec("sh", "-c", "ls /proc/1/fd; true"))
    assert out.split() == ["0", "1", "2"]


@on_node
async def test_masked_paths_are_empty_and_read_only_paths_refuse_writes(node: Node) -> None:
    script = """
        for p in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts /sys/firmware; do
            [ -e $p ] || continue
            if [ -d $p ]; then [ -z "$(ls -A $p)" ] || echo "full $p"; else [ -z "$(head -c1 $p)" ] || echo "full $p"; fi
        done
        for p in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /sys/power/state /sys/kernel/mm/ksm/run; do
            [ -e $p ] && (echo x > $p) 2>/dev/null && echo "wrote $p"
        done
        mount -t tmpfs x /tmp 2>/dev/null && echo mounted
        echo done
    """
    code, out = await node.run(node.spec("sh", "-c", script))
    assert (code, out) == (0, "done\n")


@on_node
async def test_own_namespaces_host_name_and_pid_one(node: Node) -> None:
    _, out = await node.run(
        node.spec(
            "sh", "-c", "echo $$; hostname; ls -l /proc/self/ns | sed 's/.*-> //'; ip -o link | wc -l", hostname="box"
        )
    )
    lines = out.splitlines()
    assert lines[:2] == ["1", "box"]
    own = {os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "pid", "uts", "ipc", "net", "cgroup")}
    assert not own & set(lines), "a namespace is the host's"
    assert lines[-1] == "1"  # only lo


@on_node
async def test_host_network_is_the_hosts(node: Node) -> None:
    spec = node.spec("sh", "-c", "ls -l /proc/self/ns/net | sed 's/.*-> //'", network="host")
    assert (await node.run(spec))[1].strip() == os.readlink("/proc/self/ns/net")


@on_node
async def test_rlimits_are_set_and_clamped(node: Node) -> None:
    limits = (Rlimit(name="nofile", soft=333, hard=444), Rlimit(name="nproc", soft=-1, hard=-1))
    code, out = await node.run(node.spec("sh", "-c", "ulimit -Sn; ulimit -Hn", rlimits=limits))
    assert (code, out) == (0, "333\n444\n")
    huge = (Rlimit(name="nofile", soft=1 << 40, hard=1 << 40),)
    assert (await node.run(node.spec("true", rlimits=huge)))[0] == 0


@on_node
async def test_devices_can_be_made_but_only_allowed_ones_opened(node: Node) -> None:
    script = "mknod /tmp/disk b 254 0 && (cat /tmp/disk >/dev/null) 2>&1; mknod /tmp/null c 1 3 && echo x >/tmp/null && echo opened"  # noqa: E501 - one script
    _, out = await node.run(node.spec("sh", "-c", script))
    assert "not permitted" in out
    assert out.endswith("opened\n")


@on_node
async def test_a_device_given_can_be_opened(node: Node) -> None:
    given = next((path for path in ("/dev/fuse", "/dev/net/tun", "/dev/loop-control") if Path(path).exists()), None)
    if given is None:
        pytest.skip("this host has none of the devices tried")
    script = "exec 3<>/dev/mine && echo opened"
    assert await node.run(node.spec("sh", "-c", script, devices=(DeviceSpec(source=given, target="/dev/mine"),))) == (
        0,
        "opened\n",
    )
    spec = node.spec(
        "sh", "-c", script + " || exit 3", devices=(DeviceSpec(source=given, target="/dev/mine", permissions="m"),)
    )
    assert (await node.run(spec))[0] != 0


@on_node
async def test_limits_are_in_force(node: Node) -> None:
    spec = node.spec(
        "sleep",
        "60",
        resources=ResourceLimits(nano_cpus=500_000_000, memory_bytes=64 << 20, pids_limit=17, cpuset_cpus="0"),
    )
    await node.client.start(spec)
    stats = await node.client.stats(spec.id)
    assert (stats.memory_limit_bytes, stats.pids_limit, stats.pids) == (64 << 20, 17, 1)
    started = next(iter(await node.client.list()))
    assert Path(f"/proc/{started.pid}/status").read_text().split("Cpus_allowed_list:\t")[1].split()[0] == "0"
    await node.client.update(spec.id, ResourceLimits(memory_bytes=128 << 20, pids_limit=20))
    stats = await node.client.stats(spec.id)
    assert (stats.memory_limit_bytes, stats.pids_limit) == (128 << 20, 20)
    await node.client.update(spec.id, ResourceLimits(memory_bytes=32 << 20))
    stats = await node.client.stats(spec.id)
    assert (stats.memory_limit_bytes, stats.pids_limit) == (32 << 20, 0)


@on_node
async def test_pids_limit_stops_forks(node: Node) -> None:
    spec = node.spec(
        "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; wait", resources=ResourceLimits(pids_limit=5)
    )
    code, out = await node.run(spec)
    assert code != 0
    assert "fork" in out


@on_node
async def test_cpu_limit_throttles(node: Node) -> None:
    spec = node.spec("sh", "-c", "while :; do :; done", resources=ResourceLimits(nano_cpus=200_000_000))
    await node.client.start(spec)
    first = await node.client.stats(spec.id)
    await asyncio.sleep(1.0)
    second = await node.client.stats(spec.id)
    used = (second.cpu_usage_ns - first.cpu_usage_ns) / (second.read_at - first.read_at).total_seconds() / 1e9
    assert 0.02 < used < 0.35
    assert second.cpu_throttled_periods > 0


@on_node
async def test_running_out_of_memory_is_reported(node: Node) -> None:
    spec = node.spec(
        "sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1", resources=ResourceLimits(memory_bytes=16 << 20)
    )
    spec = replace(
        spec, process=replace(spec.process, args=("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"))
    )
    await node.client.start(spec)
    event = await node.exited(spec.id)
    assert (event.exit_code, event.oom_killed) == (137, True)
    state = next(iter(await node.client.list()))
    assert state.oom_killed


@on_node
async def test_working_directory_is_made_and_magic_links_are_refused(node: Node) -> None:
    assert await node.run(node.spec("pwd", cwd="/srv/app/deep")) == (0, "/srv/app/deep\n")
    for number in range(3, 21):
        with pytest.raises(RuntimeFault):
            await node.client.start(node.spec("pwd", cwd=f"/proc/self/fd/{number}"))


@on_node
async def test_mounts_read_only_tmpfs_and_files(node: Node) -> None:
    data = node.directory / "data"
    data.mkdir()
    (data / "a").write_text("hello\n")
    mounts = (
        MountSpec(kind="bind", source=str(data), target="/data", read_only=True),
        MountSpec(kind="bind", source=str(data), target="/data/../rw/there"),
        MountSpec(kind="bind", source=str(data / "a"), target="/etc/hosts"),
        MountSpec(kind="tmpfs", target="/scratch", size_bytes=1 << 20, mode=0o700),
    )
    script = """cat /data/a /etc/hosts; (echo x > /data/b) 2>/dev/null && echo bad; echo y > /rw/there/c
        stat -c %a /scratch; dd if=/dev/zero of=/scratch/f bs=64k count=64 2>&1 | grep -o 'No space'"""
    _, out = await node.run(node.spec("sh", "-c", script, mounts=mounts))
    assert out == "hello\nhello\n700\nNo space\n"
    assert (data / "c").read_text() == "y\n"
    with pytest.raises(RejectedFault, match="bind source path does not exist"):
        await node.client.start(node.spec("true", mounts=(MountSpec(kind="bind", source="/no/such", target="/x"),)))


@on_node
async def test_a_link_in_the_image_cannot_lead_a_mount_to_the_host(node: Node) -> None:
    victim = node.directory / "victim"
    victim.mkdir()
    source = node.directory / "source"
    source.mkdir()
    (source / "planted").touch()
    (node.image / "absolute").symlink_to(victim)
    (node.image / "climbing").symlink_to("../../../../../../../.." + str(victim))
    (node.image / "magic").symlink_to("/proc/self/root")
    (node.image / "into-proc").symlink_to("/proc/sys")
    for target in ("/climbing/sub", "/absolute/sub"):
        mount = MountSpec(kind="bind", source=str(source), target=target)
        with pytest.raises(RejectedFault, match="leads nowhere"):
            await node.client.start(node.spec("true", mounts=(mount,)))
    for target in ("/magic", "/into-proc"):
        mount = MountSpec(kind="bind", source=str(source), target=target)
        with pytest.raises(RuntimeFault):
            await node.client.start(node.spec("true", mounts=(mount,)))
    assert list(victim.iterdir()) == []


@on_node
async def test_system_directories_of_an_image_must_not_be_links(node: Node) -> None:
    for name in ("dev", "proc", "sys"):
        (node.image / name).rmdir()
        (node.image / name).symlink_to("/tmp")
        with pytest.raises(RejectedFault, match=f"/{name} is not a directory"):
            await node.client.start(node.spec("true"))
        (node.image / name).unlink()
        (node.image / name).mkdir()


@on_node
async def test_hostile_account_files_are_refused(node: Node) -> None:
    (node.image / "etc/passwd").unlink()
    os.mkfifo(node.image / "etc/passwd")
    with pytest.raises(RejectedFault, match="not a regular file"):
        await node.client.start(node.spec("true"))


@on_node
async def test_command_faults_carry_the_shells_exit_status(node: Node) -> None:
    (node.image / "plain").write_text("not a program")
    for args, code in ((("/nope",), 127), (("nope",), 127), (("/plain",), 126), (("/etc",), 126)):
        with pytest.raises(CommandFault) as caught:
            await node.client.start(node.spec(*args))
        assert caught.value.container_exit_code == code, args
    assert str(caught.value) == "exec /etc: permission denied"
    assert await node.client.list() == []


@on_node
async def test_a_root_of_many_layers(node: Node) -> None:
    base = node.directory / ("layers-" + "x" * 60)
    layers = []
    for number in range(120):
        layer = base / f"{number:03d}"
        layer.mkdir(parents=True)
        (layer / f"file{number}").touch()
        (layer / "top").write_text(f"{number}\n")
        layers.append(str(layer))
    (node.directory / "u").mkdir()
    (node.directory / "w").mkdir()
    root = RootFs(
        lower_dirs=(*layers, str(node.image)), upper_dir=str(node.directory / "u"), work_dir=str(node.directory / "w")
    )
    assert await node.run(node.spec("sh", "-c", "ls -d /file* | wc -l; cat /top", root=root)) == (0, "120\n0\n")


@on_node
async def test_read_only_root_and_plain_directory(node: Node) -> None:
    script = "(touch /x) 2>/dev/null && echo wrote; touch /dev/shm/y && echo ok"
    only_read = node.spec("sh", "-c", script)
    assert await node.run(replace(only_read, root=replace(only_read.root, read_only=True))) == (0, "ok\n")
    assert await node.run(node.spec("sh", "-c", "touch /x", root=RootFs(plain_dir=str(node.image)))) == (0, "")
    assert (node.image / "x").exists()


@on_node
async def test_sysctls_of_own_namespaces_only(node: Node) -> None:
    spec = node.spec(
        "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", sysctls={"net.ipv4.ip_unprivileged_port_start": "81"}
    )
    assert await node.run(spec) == (0, "81\n")
    with pytest.raises(UserError):
        await node.client.start(node.spec("true", sysctls={"kernel.core_pattern": "x"}))
    with pytest.raises(UserError):
        await node.client.start(node.spec("true", sysctls={"net.ipv4.ip_forward": "1"}, network="host"))


@on_node
async def test_privileged_has_everything_the_host_gives(node: Node) -> None:
    script = "grep -E '^(CapEff|Seccomp:)' /proc/self/status; mount -t tmpfs x /tmp && echo mounted; [ -e /dev/kmsg ] && echo device"  # noqa: E501 - one script
    _, out = await node.run(node.spec("sh", "-c", script, privileged=True))
    own = next(
        line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")
    )
    assert out == f"CapEff:\t{own}\nSeccomp:\t0\nmounted\ndevice\n"


@on_node
async def test_the_hosts_interpreter_cannot_be_reached_through_proc(node: Node) -> None:
    """pid 1 with --init, and processes on their way through exec, are the host's python: /proc/PID/exe must stay
    closed.
    """
    interpreter = Path("/usr/bin/python3").resolve()
    before = hashlib.sha256(interpreter.read_bytes()).digest()
    script = """
        for i in $(seq 20); do
            for p in /proc/[0-9]*; do
                [ $p = /proc/$$ ] && continue
                cat $p/exe 2>/dev/null | grep -q Py_InitializeFromConfig && echo leak
            done
        done
        ls -l /proc/1/exe 2>&1 >/dev/null; ls /proc/1/root 2>&1 >/dev/null; ls /proc/1/fd
    """
    spec = node.spec("sh", "-c", script, init=True)
    await node.client.start(spec)
    for _ in range(20):
        with contextlib.suppress(ConflictError):  # it may end meanwhile
            await node.client.wait_exec((await node.client.exec(spec.id, ProcessSpec(args=("true",)))).exec_id)
    await node.exited(spec.id)
    out = await node.log(spec)
    assert "leak" not in out
    assert out.splitlines() == [
        "ls: /proc/1/exe: cannot read link: Permission denied",
        "ls: /proc/1/root: Permission denied",
    ]
    assert hashlib.sha256(interpreter.read_bytes()).digest() == before


@on_node
async def test_init_reaps_forwards_signals_and_passes_the_status_on(node: Node) -> None:
    script = "trap 'exit 9' TERM; (sleep 0.1 & ) ; sh -c 'sleep 0.05 & ' ; echo $$; while :; do sleep 0.05; done"
    spec = node.spec("sh", "-c", script, init=True)
    await node.client.start(spec)

    async def orphans_are_gone() -> bool:
        listed = await node.client.processes(spec.id)
        return not any(process.state == "Z" for process in listed) and len(listed) <= 3

    await asyncio.sleep(0.3)
    await eventually(orphans_are_gone)
    await node.client.signal(spec.id, 15)
    assert (await node.exited(spec.id)).exit_code == 9
    assert (await node.log(spec)).splitlines() == ["2"]


@on_node
async def test_environment_has_path_and_home_and_nothing_of_the_host(node: Node) -> None:
    _, out = await node.run(node.spec("env", env=("A=b=c", "EMPTY=")))
    assert sorted(out.splitlines()) == [
        "A=b=c",
        "EMPTY=",
        "HOME=/root",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ]
