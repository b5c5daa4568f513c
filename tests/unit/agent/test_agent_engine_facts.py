"""What /info says of the kernel is looked up."""

from __future__ import annotations

from pathlib import Path

from fleet.agent.engine_facts import backing_filesystem, read_engine_facts
from fleet.node_runtime.cgroup_layout import Layout


def a_host(root: Path, *, forwarding: str = "1") -> Path:
    for name, text in {
        "proc/sys/net/ipv4/ip_forward": forwarding,
        "proc/sys/kernel/seccomp/actions_avail": "kill allow",
        "proc/swaps": "Filename",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_a_v1_host_has_what_its_hierarchies_have(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    (memory / "memory.limit_in_bytes").touch()
    facts = read_engine_facts(
        layout=Layout({"memory": str(memory), "pids": "/x"}, "", frozenset()), root=a_host(tmp_path)
    )
    assert (facts.cgroup_version, facts.memory_limit, facts.swap_limit, facts.pids_limit) == ("1", True, False, True)
    assert not facts.cpu_shares
    assert "WARNING: No swap limit support" in facts.warnings()
    assert "WARNING: No memory limit support" not in facts.warnings()


def test_a_v2_host_goes_by_its_controllers(tmp_path: Path) -> None:
    layout = Layout({}, "/sys/fs/cgroup", frozenset({"memory", "cpu"}))
    facts = read_engine_facts(layout=layout, root=a_host(tmp_path))
    assert (facts.cgroup_version, facts.memory_limit, facts.swap_limit) == ("2", True, True)
    assert (facts.cpu_cfs_quota, facts.cpu_set, facts.pids_limit, facts.oom_kill_disable) == (True, False, False, False)


def test_forwarding_switched_off_is_warned_of(tmp_path: Path) -> None:
    layout = Layout({}, "/sys/fs/cgroup", frozenset({"memory"}))
    assert not read_engine_facts(layout=layout, root=a_host(tmp_path, forwarding="0")).ipv4_forwarding
    facts = read_engine_facts(layout=layout, root=tmp_path / "nothing")
    assert "WARNING: IPv4 forwarding is disabled" in facts.warnings()
    assert "WARNING: No seccomp support: containers will not start" in facts.warnings()


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    table = f"1 0 0:900 / / rw - ext4 /dev/a rw\n2 1 0:901 / {tmp_path} rw - xfs /dev/b rw\n"
    assert backing_filesystem(tmp_path, mountinfo=table) == "xfs"
    assert backing_filesystem(tmp_path.parent, mountinfo=table) == "ext4"
    assert backing_filesystem(tmp_path / "absent", mountinfo=table) == "unknown"
