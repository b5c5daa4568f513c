"""Namespaces shared with the host or another container, and the limits that come with them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from test_runtime_support import Node, eventually, on_node

from fleet.errors import ConflictError, UserError
from fleet.node_runtime.cgroup_layout import detect_layout
from fleet.node_runtime.spec import ResourceLimits

pytestmark = pytest.mark.kernel

_KINDS = ("pid", "ipc", "uts", "net", "cgroup")
_READ = "for n in pid ipc uts net cgroup; do readlink /proc/self/ns/$n; done"


def own_namespaces() -> dict[str, str]:
    return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in _KINDS}


async def namespaces(node: Node, **changes: object) -> dict[str, str]:
    code, out = await node.run(node.spec("sh", "-c", _READ, **changes))
    assert code == 0, out
    return dict(zip(_KINDS, out.split(), strict=True))


@on_node
async def test_each_namespace_is_the_hosts_when_asked_and_its_own_otherwise(node: Node) -> None:
    host = own_namespaces()
    mine = await namespaces(node)
    assert not set(mine.values()) & set(host.values())
    for field, kind in (("pid", "pid"), ("ipc", "ipc"), ("uts", "uts"), ("network", "net")):
        found = await namespaces(node, **{field: "host"})
        assert {name for name in _KINDS if found[name] == host[name]} == {kind}
    found = await namespaces(node, cgroup_namespace="host")
    supervisor = os.readlink(f"/proc/{node.client.supervisor_pid}/ns/cgroup")
    assert found["cgroup"] == supervisor


@on_node
async def test_a_container_joins_another_ones_namespaces_and_shared_memory(node: Node) -> None:
    donor = node.spec("sh", "-c", "echo gift > /dev/shm/here; exec sleep 1000", hostname="donor")
    await node.client.start(donor)
    shared = f"container:{donor.id}"
    spec = node.spec("sh", "-c", "cat /dev/shm/here; ps | grep -c 'sleep 1000'", pid=shared, ipc=shared, network=shared)
    pid = next(state.pid for state in await node.client.list() if state.id == donor.id)
    await eventually(lambda: Path(f"/proc/{pid}/root/dev/shm/here").exists())
    code, out = await node.run(spec)
    assert (code, out.splitlines()[0]) == (0, "gift")
    assert int(out.splitlines()[1]) >= 1
    pid = next(state.pid for state in await node.client.list() if state.id == donor.id)
    found = await namespaces(node, pid=shared, ipc=shared, network=shared)
    for kind in ("pid", "ipc", "net"):
        assert found[kind] == os.readlink(f"/proc/{pid}/ns/{kind}")
    assert found["uts"] != os.readlink(f"/proc/{pid}/ns/uts")
    code, out = await node.run(node.spec("sh", "-c", "ls /dev/shm 2>&1; grep -c ' /dev/shm ' /proc/mounts", ipc="none"))
    assert out.splitlines()[-1] == "0"
    none = node.spec("sleep", "1000", ipc="none")
    await node.client.start(none)
    with pytest.raises(Exception, match="no /dev/shm to share"):
        await node.client.start(node.spec("true", ipc=f"container:{none.id}"))


@on_node
async def test_what_cannot_be_joined_is_refused(node: Node) -> None:
    gone = node.spec("true")
    await node.run(gone)
    for changes in ({"pid": f"container:{gone.id}"}, {"ipc": "container:nobody"}, {"network": "container:nobody"}):
        with pytest.raises(
            ConflictError, match=r"cannot join the (pid|ipc|network) namespace of a non running container"
        ):
            await node.client.start(node.spec("true", **changes))
    with pytest.raises(UserError, match="host name"):
        await node.client.start(node.spec("true", uts="host", hostname="x"))
    with pytest.raises(UserError, match=r"kernel\.shmmax"):
        await node.client.start(node.spec("true", ipc="host", sysctls={"kernel.shmmax": "1"}))


@on_node
async def test_with_the_hosts_processes_the_end_of_the_first_is_the_end_of_all(node: Node) -> None:
    script = "sleep 54321 & echo started; exec sh -c 'exit 5'"
    spec = node.spec("sh", "-c", script, pid="host")
    code, out = await node.run(spec)
    assert (code, out) == (5, "started\n")

    def left() -> bool:
        return any(b"54321" in path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())

    await eventually(lambda: not left())


@on_node
async def test_device_rules_and_inline_seccomp(node: Node) -> None:
    make = "mknod /tmp/d c 10 200 && exec 3<>/tmp/d"  # the tunnel device; where it is missing, opening it says so
    _, out = await node.run(node.spec("sh", "-c", make))
    assert "not permitted" in out
    _, out = await node.run(node.spec("sh", "-c", make, device_cgroup_rules=("c 10:* rwm",)))
    assert "not permitted" not in out
    profile = '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}'
    _, out = await node.run(node.spec("sh", "-c", "mkdir /x 2>/dev/null || echo denied", seccomp=profile))
    assert out == "denied\n"


@on_node
async def test_period_quota_and_memory_nodes_reach_the_cgroup(node: Node) -> None:
    layout = detect_layout()
    limits = ResourceLimits(cpu_period_us=50_000, cpu_quota_us=20_000, cpuset_mems="0")
    spec = replace(node.spec("sleep", "1000"), resources=limits)
    await node.client.start(spec)
    base = f"{node.cgroup_parent}/{spec.id}"
    if layout.is_v2:
        assert Path(f"{layout.unified}{base}/cpu.max").read_text() == "20000 50000\n"
        assert Path(f"{layout.unified}{base}/cpuset.mems").read_text() == "0\n"
    else:
        assert Path(f"{layout.v1['cpu']}{base}/cpu.cfs_quota_us").read_text() == "20000\n"
        assert Path(f"{layout.v1['cpu']}{base}/cpu.cfs_period_us").read_text() == "50000\n"
        assert Path(f"{layout.v1['cpuset']}{base}/cpuset.mems").read_text() == "0\n"
