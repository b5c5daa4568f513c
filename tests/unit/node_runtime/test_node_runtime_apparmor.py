"""fleet's AppArmor profile: what its rules close, read as apparmor_parser reads them, and how a process asks for a profile."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from fleet.node_runtime import apparmor
from fleet.node_runtime.apparmor_profile import other_names, profile_text
from fleet.node_runtime.plan import HostFacts, plan_process
from fleet.node_runtime.spec import ProcessSpec


def as_expression(pattern: str) -> re.Pattern[str]:
    """AppArmor's pattern as the parser translates it: ``*`` stays within a name, ``**`` does not, brackets are as they are."""
    out, inside, position = "", False, 0
    while position < len(pattern):
        char = pattern[position]
        if inside:
            out, inside = out + char, char != "]"
        elif pattern.startswith("**", position):
            out, position = out + ".*", position + 1
        else:
            out += {"*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")", ",": "|", "[": "["}.get(char, re.escape(char))
            inside = char == "["
        position += 1
    return re.compile(out)


def denied(text: str, path: str, access: str) -> bool:
    rules = re.findall(r"^  deny (/\S+) (\w+),$", text, re.MULTILINE)
    assert rules
    return any(as_expression(pattern).fullmatch(path) and access in letters for pattern, letters in rules)


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sysrq-trigger",
        "/proc/acpi/wakeup",
        "/proc/s",
        "/proc/sy",
        "/proc/system",
        "/proc/fs/xfs/xqm",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/shell",
        "/proc/sys/kernel/hostnames",
        "/proc/sys/kernel/semaphore",
        "/proc/sys/kernel/yama/ptrace_scope",
        "/proc/sys/kernel/domain",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sys/fs/file-max",
        "/proc/sys/abi/vsyscall32",
        "/sys/kernel/mm/ksm/run",
        "/sys/f",
        "/sys/fss/x",
        "/sys/power/state",
        "/sys/fs/selinux/enforce",
        "/sys/fs/bpf/x",
        "/sys/fs/cgroups/x",
        "/sys/fs/cg",
        "/sys/module/apparmor/parameters/enabled",
        "/sys/block/vda/queue/scheduler",
    ],
)
def test_what_belongs_to_the_host_is_not_written(path: str) -> None:
    assert denied(profile_text(), path, "w")


@pytest.mark.parametrize(
    "path",
    [
        "/proc/1/attr/current",
        "/proc/4711/oom_score_adj",
        "/proc/1/task/1/comm",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/kernel/shmmax",
        "/proc/sys/kernel/shm_rmid_forced",
        "/proc/sys/kernel/msgmnb",
        "/proc/sys/kernel/sem",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/domainname",
        "/proc/sys/fs/mqueue/msg_max",
        "/sys/fs/cgroup/a/cgroup.procs",
        "/srv/proc/sys/vm/drop_caches",
        "/etc/passwd",
    ],
)
def test_what_is_the_containers_own_is(path: str) -> None:
    assert not denied(profile_text(), path, "w")


@pytest.mark.parametrize("path", ["/proc/kcore", "/proc/mem", "/sys/firmware/efi/x", "/sys/kernel/security/lsm"])
def test_what_tells_of_the_host_is_not_read_either(path: str) -> None:
    assert denied(profile_text(), path, "r")
    assert not denied(profile_text(), "/proc/meminfo", "r")


def test_other_names_are_all_but_the_ones_named() -> None:
    names = ["net", "kernel", "fs", "shm*"]
    patterns = [as_expression(pattern) for pattern in other_names(names)]
    words = {
        "".join(letters) for letters in ("abc", "n", "ne", "nets", "kerne", "kernels", "f", "fsx", "sh", "s", "x", "-")
    }
    for word in words:
        assert any(pattern.fullmatch(word) for pattern in patterns), word
    for word in ("net", "kernel", "fs", "shm", "shmmax", "net/x", ""):
        assert not any(pattern.fullmatch(word) for pattern in patterns), word


def test_signals_and_tracers_are_the_hosts_and_its_own() -> None:
    text = profile_text()
    assert re.findall(r"^  (signal .*),$", text, re.MULTILINE) == [
        "signal (receive) peer=unconfined",
        "signal (send, receive) peer=fleet-default",
    ]
    assert re.findall(r"^  (ptrace .*),$", text, re.MULTILINE) == [
        "ptrace (trace, read, tracedby, readby) peer=fleet-default"
    ]
    assert "  deny mount,\n" in text


def test_a_confined_daemon_may_end_its_containers_and_look_at_them() -> None:
    text = profile_text(daemon='odd "one"')
    assert '  signal (receive) peer="odd \\"one\\"",\n' in text
    assert '  ptrace (readby) peer="odd \\"one\\"",\n' in text
    assert text.count("peer=unconfined") == 1


def test_the_abi_is_named_only_where_there_is_one() -> None:
    assert "\nabi <abi/3.0>,\n" in profile_text()
    assert "abi <" not in profile_text(has_abi=False)


def test_the_plan_hands_the_profile_on() -> None:
    host = HostFacts(machine="x86_64")
    assert plan_process(ProcessSpec(args=("a",)), host=host)["apparmor"] == ""
    assert plan_process(ProcessSpec(args=("a",), apparmor="mine"), host=host, privileged=True)["apparmor"] == "mine"


def test_a_profile_is_asked_for_in_the_kernels_words(tmp_path: Path) -> None:
    place = tmp_path / "exec"
    for kind, line in ((apparmor.AT_EXEC, "exec mine"), (apparmor.NOW, "changeprofile mine")):
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        apparmor.write_profile(fd, kind, "mine")
        os.close(fd)
        assert place.read_text() == line


@pytest.mark.parametrize(("text", "on"), [("Y\n", True), ("N\n", False), (None, False)])
def test_the_kernels_switch_is_looked_up(tmp_path: Path, text: str | None, on: bool) -> None:
    switch = tmp_path / "sys/module/apparmor/parameters/enabled"
    if text is not None:
        switch.parent.mkdir(parents=True)
        switch.write_text(text)
    assert apparmor.is_enabled(str(tmp_path)) is on
