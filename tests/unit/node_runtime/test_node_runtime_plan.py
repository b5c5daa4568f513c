"""Specs, plans, users: everything decided before the kernel is asked."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest

from fleet.errors import RejectedFault, UserError
from fleet.node_runtime.capabilities import DEFAULT_CAPABILITIES, capability_mask
from fleet.node_runtime.plan import HostFacts, plan_container, plan_limits, plan_process
from fleet.node_runtime.spec import (
    ContainerSpec,
    DeviceSpec,
    LogSpec,
    MountSpec,
    ProcessSpec,
    ResourceLimits,
    Rlimit,
    RootFs,
    from_json,
    to_json,
)
from fleet.node_runtime.users import UnknownUserError, resolve_identity

HOST = HostFacts(machine="x86_64", thermal_throttle=("/sys/devices/system/cpu/cpu0/thermal_throttle",))
ROOT = RootFs(lower_dirs=("/l1", "/l0"), upper_dir="/u", work_dir="/w")
SPEC = ContainerSpec(id="web.1", root=ROOT, process=ProcessSpec(args=("sh",)), log=LogSpec(path="/var/log/x"))


def test_a_spec_survives_json() -> None:
    spec = replace(
        SPEC,
        mounts=(MountSpec(kind="tmpfs", target="/t", mode=0o700), MountSpec(kind="bind", target="/b", source="/s")),
        process=ProcessSpec(args=("a", "b"), rlimits=(Rlimit(name="core", soft=0, hard=-1),)),
        sysctls={"net.a": "1"},
        devices=(DeviceSpec(source="/dev/fuse"),),
    )
    assert from_json(ContainerSpec, json.loads(json.dumps(to_json(spec)))) == spec


@pytest.mark.parametrize(
    "change",
    [
        {"unknown": 1},
        {"id": 7},
        {"uts": "bridge"},
        {"mounts": "x"},
        {"sysctls": {"a": 1}},
        {"init": 1},
        {"root": []},
    ],
)
def test_a_malformed_spec_is_refused_by_name(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(change)) if "root" not in change else "RootFs"):
        from_json(ContainerSpec, {**to_json(SPEC), **change})


def test_the_default_plan_has_every_protection() -> None:
    plan = plan_container(SPEC, host=HOST)
    assert plan["process"]["capabilities"] == 0xA80425FB
    assert plan["process"]["no_new_privileges"] is True
    assert len(base64.b64decode(plan["process"]["seccomp"])) > 800
    assert "/proc/kcore" in plan["masked_paths"]
    assert HOST.thermal_throttle[0] in plan["masked_paths"]
    assert "/proc/sys" in plan["read_only_paths"]
    assert ["c", -1, -1, "m"] in plan["device_rules"]
    assert plan["sys_read_only"] is True
    assert plan["hostname"] == "web.1"
    assert plan["cgroup"] == "web.1"
    json.dumps(plan)


def test_privileged_lifts_them_together() -> None:
    plan = plan_container(replace(SPEC, privileged=True), host=HOST)
    assert plan["device_rules"] is None
    assert plan["masked_paths"] == [] == plan["read_only_paths"]
    assert plan["process"]["seccomp"] == ""
    assert plan["process"]["capabilities"] == (1 << 41) - 1


@pytest.mark.parametrize(
    "bad",
    [
        replace(SPEC, id="../x"),
        replace(SPEC, id=""),
        replace(SPEC, cgroup_path="../../etc"),
        replace(SPEC, hostname="x" * 65),
        replace(SPEC, root=RootFs()),
        replace(SPEC, root=RootFs(lower_dirs=("/a:b",), upper_dir="/u", work_dir="/w")),
        replace(SPEC, root=RootFs(lower_dirs=("/a",), upper_dir="/u")),
        replace(SPEC, root=RootFs(lower_dirs=tuple(f"/{n}" for n in range(501)), upper_dir="/u", work_dir="/w")),
        replace(SPEC, process=ProcessSpec(args=())),
        replace(SPEC, process=ProcessSpec(args=("a\0b",))),
        replace(SPEC, process=ProcessSpec(args=("a",), env=("=x",))),
        replace(SPEC, process=ProcessSpec(args=("a",), cwd="relative")),
        replace(SPEC, process=ProcessSpec(args=("a",), capabilities=("CAP_NONSENSE",))),
        replace(SPEC, process=ProcessSpec(args=("a",), rlimits=(Rlimit(name="nofile", soft=5, hard=4),))),
        replace(SPEC, process=ProcessSpec(args=("a",), rlimits=(Rlimit(name="what", soft=1, hard=1),))),
        replace(SPEC, process=ProcessSpec(args=("a",), oom_score_adj=1001)),
        replace(SPEC, mounts=(MountSpec(kind="bind", target="/proc/sys", source="/s"),)),
        replace(SPEC, mounts=(MountSpec(kind="bind", target="/a/../proc", source="/s"),)),
        replace(SPEC, mounts=(MountSpec(kind="bind", target="/", source="/s"),)),
        replace(SPEC, mounts=(MountSpec(kind="bind", target="/a", source="s"),)),
        replace(SPEC, mounts=(MountSpec(kind="bind", target="/a", source="/s", options=("sideways",)),)),
        replace(SPEC, mounts=(MountSpec(kind="tmpfs", target="/a"), MountSpec(kind="tmpfs", target="//a/"))),
        replace(SPEC, sysctls={"kernel.core_pattern": "|/x"}),
        replace(SPEC, sysctls={"net.../../kernel/core_pattern": "|/x"}),
        replace(SPEC, sysctls={"net.ipv4.ip_forward": "1"}, network="host"),
        replace(SPEC, devices=(DeviceSpec(source="/dev/null", permissions="x"),)),
    ],
)
def test_what_cannot_be_meant_is_refused(bad: ContainerSpec) -> None:
    with pytest.raises(UserError):
        plan_container(bad, host=HOST)


def test_a_device_the_host_lacks_is_rejected() -> None:
    for source in ("/dev/not-there", "/etc/passwd"):
        with pytest.raises(RejectedFault):
            plan_container(replace(SPEC, devices=(DeviceSpec(source=source),)), host=HOST)


def test_device_rules_and_nodes_follow_the_device() -> None:
    plan = plan_container(
        replace(SPEC, devices=(DeviceSpec(source="/dev/zero", target="/dev/z", permissions="r"),)), host=HOST
    )
    assert ["c", 1, 5, "r"] in plan["device_rules"]
    assert plan["device_nodes"][0][:4] == ["/dev/z", "c", 1, 5]


@pytest.mark.parametrize(
    "limits",
    [
        ResourceLimits(memory_bytes=1 << 20),
        ResourceLimits(nano_cpus=-1),
        ResourceLimits(memory_swap_bytes=1 << 30),
        ResourceLimits(memory_bytes=1 << 30, memory_swap_bytes=1 << 29),
        ResourceLimits(cpuset_cpus="0;1"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: ResourceLimits) -> None:
    with pytest.raises(UserError):
        plan_limits(limits)


def test_tmpfs_is_restricted_unless_told_otherwise() -> None:
    mounts = (
        MountSpec(kind="tmpfs", target="/a"),
        MountSpec(kind="tmpfs", target="/b", options=("exec",), read_only=True),
    )
    plan = plan_container(replace(SPEC, mounts=mounts), host=HOST)
    assert [mount["set"] for mount in plan["mounts"]] == [14, 7]


def test_capabilities_by_any_spelling() -> None:
    assert capability_mask(["cap_chown", "CAP_KILL", "SETUID"]) == 1 | 1 << 5 | 1 << 7
    assert capability_mask(DEFAULT_CAPABILITIES) == 0xA80425FB
    assert plan_process(ProcessSpec(args=("a",), capabilities=("ALL",)), host=HOST)["capabilities"] == (1 << 41) - 1


PASSWD = b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\nbroken:x:zero:0::/:\nshort:x\n#no:x:1:1\n"
GROUP = b"root:x:0:\nweb:x:34:\nextra:x:50:other,web\nops:x:60:root\n"


@pytest.mark.parametrize(
    ("user", "extra", "expected"),
    [
        ("", [], (0, 0, [60], "/root")),
        ("web", [], (33, 34, [50], "/srv")),
        ("33", [], (33, 34, [50], "/srv")),
        ("web:ops", [], (33, 60, [], "/srv")),
        ("web:77", [], (33, 77, [], "/srv")),
        ("4000", [], (4000, 0, [], "/")),
        ("4000", ["ops", "9", "ops"], (4000, 0, [60, 9], "/")),
    ],
)
def test_users_are_resolved_as_docker_does(user: str, extra: list[str], expected: tuple[object, ...]) -> None:
    found = resolve_identity(user, extra, passwd=PASSWD, group=GROUP)
    assert (found.uid, found.gid, found.groups, found.home) == expected


@pytest.mark.parametrize(
    "user",
    [
        ":",
        "web:",
        ":web",
        "a:b:c",
        "ghost",
        "broken",
        "short",
        "-1",
        "4294967295",
        "2147483648",
        "0x0",
        " 0",
        "\u0660",
        "web:ghost",
        "1e3",
    ],
)
def test_a_malformed_user_never_becomes_root(user: str) -> None:
    with pytest.raises(UnknownUserError):
        resolve_identity(user, [], passwd=PASSWD, group=GROUP)


def test_root_of_a_user_namespace_is_told_what_it_cannot_do() -> None:
    plan = plan_container(SPEC, host=replace(HOST, is_rootless=True, keeps_groups=True, has_single_id=True))
    assert plan["rootless"]
    assert plan["process"]["keeps_groups"]
    assert not plan["terminal_group"], "devpts cannot belong to a group that does not exist"
    ordinary = plan_container(SPEC, host=HOST)
    assert not (ordinary["rootless"] or ordinary["process"]["keeps_groups"])
    assert ordinary["terminal_group"]
