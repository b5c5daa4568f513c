"""The default filter, number by number, against what Docker's default lets a container with the fourteen capabilities
do; and the kernel's own answers.
"""

from __future__ import annotations

import json
import os
import textwrap

import pytest
from test_runtime_isolation import PYTHON, host_root
from test_runtime_support import Node, on_node

from fleet.node_runtime.capabilities import DEFAULT_CAPABILITIES
from fleet.node_runtime.seccomp import assemble, interpret
from fleet.node_runtime.seccomp_profile import ALLOW, default_policy, errno_action
from fleet.node_runtime.syscall_tables import AUDIT_ARCH, SYSCALLS

pytestmark = pytest.mark.kernel

EPERM, ENOSYS = errno_action(1), errno_action(38)
X86_64, I386, X32_BIT = AUDIT_ARCH["x86_64"], 0x40000003, 0x40000000

DENIED_BY_DOCKER = {
    103, 134, 136, 139, 153, 155, 156, 163, 164, 165, 166, 167, 168, 169, 170, 171, 172, 173, 174, 175, 176, 177, 178,
    179, 180, 181, 182, 183, 184, 185, 212, 227, 236, 237, 238, 239, 246, 248, 249, 250, 256, 272, 279, 298, 300, 304,
    308, 312, 313, 320, 321, 323, 425, 426, 427, 428, 429, 430, 431, 432, 433, 435, 438, 440, 442, 443, 450, 459, 460,
    461, 467, 468, 469,
}  # fmt: skip
"""Numbers of x86_64 that moby/profiles (2026-06) does not allow without further capabilities, whatever the arguments."""
UNASSIGNED = set(range(336, 424))
"""Between the old table and the one shared by all architectures there is nothing to allow (335 is uretprobe)."""
NAMESPACES = (1 << 17, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30)
FAMILIES = {*range(12), *range(13, 19), 21, 22, 24, *range(26, 34), 35, 36, 39, *range(41, 46)}


def ask(number: int, *arguments: int, arch: int = X86_64) -> int:
    return interpret(PROGRAM, number=number, arch=arch, arguments=arguments)


PROGRAM = assemble(default_policy(DEFAULT_CAPABILITIES, machine="x86_64"))


def test_no_number_is_allowed_that_docker_denies() -> None:
    arguments = ((), (0xFFFFFFFFFFFFFFFF,) * 6, (1, 2, 3, 4, 5, 6))
    for number in range(601):
        for given in arguments:
            allowed = ask(number, *given) == ALLOW
            if number in DENIED_BY_DOCKER or number in UNASSIGNED or number > max(SYSCALLS["x86_64"].values()):
                assert not allowed, number
    allowed = {number for number in range(601) if ask(number) == ALLOW}
    assert allowed == set(SYSCALLS["x86_64"].values()) - DENIED_BY_DOCKER, "nor is less allowed, or programs break"


def test_other_entries_of_the_kernel_are_closed() -> None:
    for number in range(601):
        assert ask(number, arch=I386) == ENOSYS
        assert ask(X32_BIT + number) == ENOSYS
        assert ask(number, arch=AUDIT_ARCH["aarch64"]) == ENOSYS
    assert ask(-1) == ask(-(1 << 31)) == ENOSYS


def test_arguments_that_matter_are_looked_at() -> None:
    numbers = SYSCALLS["x86_64"]
    assert ask(numbers["clone3"]) == ENOSYS
    for flag in NAMESPACES:
        assert ask(numbers["clone"], flag | 17) == EPERM
    assert ask(numbers["clone"], 0x003D0F00) == ALLOW  # what pthread_create passes
    for family in range(64):
        assert (ask(numbers["socket"], family, 2) == ALLOW) == (family in FAMILIES), family
        assert ask(numbers["socket"], family | 1 << 32) != ALLOW
    for value in (1, 4, 0x40000, 0x400000, 0xFFFFFFFFFFFFFFFF):  # ADDR_NO_RANDOMIZE and READ_IMPLIES_EXEC among them
        assert ask(numbers["personality"], value) == EPERM


@on_node
async def test_the_kernel_answers_as_the_program_says(node: Node) -> None:
    """Every denied number is called for real inside; none does anything else than fail with the filter's error."""
    if os.uname().machine != "x86_64":
        pytest.skip("numbers are x86_64's")
    probe = textwrap.dedent("""
        import ctypes, json, sys
        libc = ctypes.CDLL(None, use_errno=True)
        found = {}
        for number in json.loads(sys.argv[1]):
            ctypes.set_errno(0)
            result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(-1) for _ in range(6)))
            found[number] = ctypes.get_errno() if result == -1 else 0
        print(json.dumps(found))
    """)
    numbers = sorted(DENIED_BY_DOCKER | UNASSIGNED - {336})  # uprobe: the kernel lets it pass any filter since 6.18
    spec = node.spec(PYTHON, "-I", "-S", "-c", probe, json.dumps(numbers), root=host_root(node, "host"))
    code, out = await node.run(spec)
    assert code == 0, out
    answers = {int(number): error for number, error in json.loads(out).items()}
    assert answers == {number: ask(number, *(0xFFFFFFFFFFFFFFFF,) * 6) & 0xFFFF for number in numbers}
    assert set(answers.values()) <= {1, 38}


@on_node
async def test_no_user_namespace_can_be_made_inside(node: Node) -> None:
    for user in ("0", "1000"):
        script = "unshare -U true 2>&1; unshare -r id 2>&1; unshare -m true 2>&1"
        _, out = await node.run(node.spec("sh", "-c", script, user=user))
        assert out.count("Operation not permitted") == 3, out
        assert "uid=" not in out
