"""The assembled filters, call by call, against the policy they came from and against libseccomp where it is installed."""

from __future__ import annotations

import json
import os
import tempfile

import pytest

from fleet.errors import UserError
from fleet.node_runtime.capabilities import DEFAULT_CAPABILITIES
from fleet.node_runtime.seccomp import assemble, interpret
from fleet.node_runtime.seccomp_profile import (
    ALLOW,
    MaskedEqual,
    Policy,
    Ranges,
    default_policy,
    errno_action,
    parse_profile,
)
from fleet.node_runtime.syscall_tables import AUDIT_ARCH, LAST_KNOWN, SYSCALLS

EPERM, ENOSYS = errno_action(1), errno_action(38)
MACHINES = sorted(SYSCALLS)
ARGUMENTS = ((), (38,), (40,), (2,), (0x10000000,), (8,), (0xFFFFFFFF,), (1 << 40,), (17, 1, 2, 3, 4, 5))


def verdict(policy: Policy, number: int, arguments: tuple[int, ...]) -> int:
    """What the policy says, read the slow way."""
    padded = arguments + (0,) * (6 - len(arguments))
    if number > LAST_KNOWN[policy.machine]:
        return policy.unknown
    for conditions, action in policy.rules.get(number, []):
        if all(
            padded[c.index] & c.mask == c.value
            if isinstance(c, MaskedEqual)
            else any(low <= padded[c.index] <= high for low, high in c.ranges)
            for c in conditions
        ):
            return action
    return policy.plain.get(number, policy.default)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_program_says_what_the_policy_says(machine: str) -> None:
    policy = default_policy(DEFAULT_CAPABILITIES, machine=machine)
    program = assemble(policy)
    for number in [*range(600), 1023, 4000, 0x3FFFFFFF]:
        for arguments in ARGUMENTS:
            got = interpret(program, number=number, arch=AUDIT_ARCH[machine], arguments=arguments)
            assert got == verdict(policy, number, arguments), (number, arguments)


def test_it_is_small_and_shallow() -> None:
    program = assemble(default_policy(DEFAULT_CAPABILITIES, machine="x86_64"))
    assert len(program) // 8 < 250


def test_foreign_entry_points_are_unknown() -> None:
    program = assemble(default_policy(DEFAULT_CAPABILITIES, machine="x86_64"))
    assert interpret(program, number=39, arch=0x40000003) == ENOSYS  # i386
    assert interpret(program, number=0x40000000 + 39, arch=AUDIT_ARCH["x86_64"]) == ENOSYS  # x32


@pytest.mark.parametrize("machine", MACHINES)
def test_the_default_profile_denies_what_breaks_out(machine: str) -> None:
    program = assemble(default_policy(DEFAULT_CAPABILITIES, machine=machine))
    numbers = SYSCALLS[machine]

    def ask(name: str, *arguments: int) -> int:
        return interpret(program, number=numbers[name], arch=AUDIT_ARCH[machine], arguments=arguments)

    for name in [
        "mount",
        "umount2",
        "unshare",
        "setns",
        "pivot_root",
        "keyctl",
        "add_key",
        "request_key",
        "bpf",
        "userfaultfd",
        "io_uring_setup",
        "init_module",
        "kexec_load",
        "reboot",
        "open_by_handle_at",
        "perf_event_open",
        "move_mount",
        "open_tree",
        "fsopen",
        "swapon",
        "settimeofday",
        "quotactl",
        "acct",
        "lookup_dcookie",
    ]:
        if name in numbers:
            assert ask(name) == EPERM, name
    for name in ["read", "write", "execve", "clone", "futex", "openat", "mmap", "socketpair", "chroot", "ptrace"]:
        assert ask(name) == ALLOW, name
    assert ask("clone3") == ENOSYS
    assert ask("clone", 0x10000000) == EPERM
    assert [ask("socket", family) for family in (2, 16, 38, 40, 2 | 1 << 32)] == [ALLOW, ALLOW, EPERM, EPERM, EPERM]


def test_capabilities_open_what_they_stand_for() -> None:
    numbers = SYSCALLS["x86_64"]
    more = assemble(default_policy([*DEFAULT_CAPABILITIES, "SYS_ADMIN", "SYS_TIME"], machine="x86_64"))
    for name in ("mount", "clone3", "unshare", "clock_settime"):
        assert interpret(more, number=numbers[name], arch=AUDIT_ARCH["x86_64"], arguments=(0x10000000,)) == ALLOW
    fewer = assemble(default_policy([], machine="x86_64"))
    assert interpret(fewer, number=numbers["chroot"], arch=AUDIT_ARCH["x86_64"]) == EPERM


PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 13,
    "syscalls": [
        {"names": ["read", "not_a_call"], "action": "SCMP_ACT_ALLOW"},
        {
            "names": ["kill"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 1, "value": 5, "op": "SCMP_CMP_GT"}, {"index": 0, "value": 9, "op": "SCMP_CMP_NE"}],
        },
        {"names": ["write"], "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["open"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
    ],
}


def test_a_profile_of_ones_own() -> None:
    program = assemble(parse_profile(json.dumps(PROFILE), DEFAULT_CAPABILITIES, machine="x86_64"))
    numbers = SYSCALLS["x86_64"]

    def ask(name: str, *arguments: int) -> int:
        return interpret(program, number=numbers[name], arch=AUDIT_ARCH["x86_64"], arguments=arguments)

    assert ask("read") == ALLOW
    assert ask("write") == 0x80000000
    assert [ask("kill", 1, 5), ask("kill", 1, 6), ask("kill", 9, 6)] == [errno_action(13), ALLOW, errno_action(13)]
    assert ask("mount") == ask("open") == errno_action(13)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"defaultAction": "SCMP_ACT_WHAT"}',
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}',
        "x" * (2 << 20),
    ],
)
def test_a_broken_profile_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_profile(text, [], machine="x86_64")


def test_libseccomp_agrees() -> None:
    """The same rules given to libseccomp make a program with the same verdicts."""
    if os.uname().machine != "x86_64":
        pytest.skip("libseccomp is asked about x86_64")
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError):
        pytest.skip("libseccomp is not installed")
    policy = default_policy(DEFAULT_CAPABILITIES, machine="x86_64")
    oracle = pyseccomp.SyscallFilter(pyseccomp.ERRNO(1))
    for number, action in policy.plain.items():
        if action == ALLOW:
            oracle.add_rule(pyseccomp.ALLOW, number)
        elif action != policy.default:
            oracle.add_rule(pyseccomp.ERRNO(action & 0xFFFF), number)
    for number, rules in policy.rules.items():
        for conditions, _ in rules:
            (condition,) = conditions
            if isinstance(condition, Ranges):
                for low, high in condition.ranges:
                    for value in range(low, high + 1):
                        oracle.add_rule(pyseccomp.ALLOW, number, pyseccomp.Arg(condition.index, pyseccomp.EQ, value))
            else:
                oracle.add_rule(
                    pyseccomp.ALLOW,
                    number,
                    pyseccomp.Arg(condition.index, pyseccomp.MASKED_EQ, condition.mask, condition.value),
                )
    with tempfile.TemporaryFile() as file:
        oracle.export_bpf(file)
        file.seek(0)
        theirs = file.read()
    ours = assemble(policy)
    for number in range(LAST_KNOWN["x86_64"] + 1):
        for arguments in ARGUMENTS:
            call = {"number": number, "arch": AUDIT_ARCH["x86_64"], "arguments": arguments}
            assert interpret(ours, **call) == interpret(theirs, **call), (number, arguments)
