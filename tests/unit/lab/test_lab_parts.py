"""The lab's pieces that can be told apart without a kernel: records, mount tables, cgroup hierarchies, process identity."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from fleet import errors
from fleet.cli.lab import lab as lab_command
from fleet.lab import cgroups, hostinit, processes
from fleet.lab.hosts import tail
from fleet.lab.names import Layout
from fleet.lab.record import HostRecord, LabRecord, load, locked, save

MOUNTINFO = """\
22 28 0:21 / /sys rw,relatime shared:7 - sysfs sysfs rw
23 22 0:6 / /sys/kernel/security rw shared:8 - securityfs securityfs rw
25 22 0:25 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs ro
26 25 0:26 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw
27 25 0:27 / /sys/fs/cgroup/cpu rw shared:11 - cgroup cgroup rw,cpu
29 25 0:28 /docker/abc /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
30 22 0:30 / /sys/with\\040space rw - tmpfs tmpfs rw
31 28 0:31 / /system rw - tmpfs tmpfs rw
"""


def record() -> LabRecord:
    return LabRecord(
        name="lab",
        token="0123456789abcdef",
        subnet="10.210.0.0/24",
        daemon=("fleetd",),
        hosts=(HostRecord(name="m1", address="10.210.0.11"), HostRecord(name="w1", address="10.210.0.101", pid=7)),
        cuts=(("m1", "w1"),),
    )


def test_only_the_outermost_mounts_below_sys_are_moved() -> None:
    assert hostinit.mount_points_below("/sys", MOUNTINFO) == [
        "/sys/kernel/security",
        "/sys/fs/cgroup",
        "/sys/with space",
    ]


def test_hierarchies_are_those_mounted_at_their_root() -> None:
    assert cgroups.hierarchies(MOUNTINFO) == [Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/cpu")]


def test_a_record_survives_the_disk(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path, name="lab")
    layout.folder.mkdir()
    assert load(layout) is None
    save(layout, record())
    assert load(layout) == record()
    assert [path.name for path in layout.folder.iterdir()] == ["lab.json"]


@pytest.mark.parametrize("content", ["", "{}", '{"format": 2}', "[]"])
def test_a_record_that_cannot_be_understood_is_named(content: str, tmp_path: Path) -> None:
    layout = Layout(root=tmp_path, name="lab")
    layout.folder.mkdir()
    layout.record.write_text(content)
    with pytest.raises(errors.RuntimeFault, match=r"lab\.json: .*another version"):
        load(layout)


def test_the_lock_is_for_one_at_a_time_and_for_labs_that_exist(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path, name="lab")
    with pytest.raises(errors.NotFoundError, match="no lab is called 'lab'"), locked(layout, say=print):
        pass
    layout.folder.mkdir()
    with pytest.raises(errors.NotFoundError, match="no lab is called 'lab'"), locked(layout, say=print):
        pass
    save(layout, record())
    with locked(layout, say=print) as found:
        assert found == record()


def test_an_error_inside_the_lock_is_not_taken_for_a_missing_lab(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path, name="lab")
    layout.folder.mkdir()
    save(layout, record())
    with pytest.raises(FileNotFoundError, match="elsewhere"), locked(layout, say=print):
        (tmp_path / "elsewhere").read_text()


def test_a_host_is_replaced_in_place_or_added_at_the_end() -> None:
    changed = record().with_host(HostRecord(name="m1", address="10.210.0.11", off="killed"))
    assert [(host.name, host.off) for host in changed.hosts] == [("m1", "killed"), ("w1", "")]
    added = record().with_host(HostRecord(name="w2", address="10.210.0.102"))
    assert [host.name for host in added.hosts] == ["m1", "w1", "w2"]


def test_a_process_is_itself_and_not_a_later_one_of_its_pid() -> None:
    ourselves = processes.identify(os.getpid())
    assert ourselves is not None
    assert processes.is_alive(ourselves)
    assert not processes.is_alive(processes.Identity(os.getpid(), ourselves.started_ticks - 1))
    assert not processes.is_alive(processes.Identity(0, 0))


def test_ending_a_process_that_is_not_the_one_meant_does_nothing() -> None:
    processes.end_all([processes.Identity(os.getpid(), 1)], timeout_s=0.1)


def test_the_end_of_a_log_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log, lines=3) == []
    log.write_text("".join(f"line {number}\n" for number in range(1000)))
    assert tail(log, lines=2) == ["line 998", "line 999"]
    assert tail(log, lines=0) == []
    assert len("\n".join(tail(log, lines=1000, bytes_max=100))) <= 100


def test_only_an_unknown_request_or_a_missing_field_is_refused_by_name() -> None:
    init = hostinit.Init.__new__(hostinit.Init)
    init.programs = {}
    init.ended = {"fleetd": 9}
    assert init.answer({"op": "fly"}) == {"error": "unknown request 'fly'"}
    assert init.answer({"op": "signal", "name": "fleetd", "signal": 9}) == {"error": "fleetd is not running"}
    assert init.answer({"op": "status"}) == {"running": {}, "ended": {"fleetd": 9}}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["restart-daemon", "m1", "--signal", "BOO"], "is no signal"),
        (["partition", ",", "w1"], "names no host"),
        (["env", "--name", "UP"], "lab name"),
    ],
)
def test_wrong_arguments_get_a_sentence(arguments: list[str], complaint: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(lab_command, [arguments[0], "--root", str(tmp_path), *arguments[1:]])
    assert result.exit_code != 0
    assert complaint in (str(result.exception) + result.output)


def test_ls_of_no_labs_is_empty_and_of_a_missing_one_an_error(tmp_path: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(lab_command, ["ls", "--root", str(tmp_path), "--format", "json"]).output == "[]\n"
    assert runner.invoke(lab_command, ["ls", "--root", str(tmp_path), "-q"]).output == ""
    missing = runner.invoke(lab_command, ["ls", "--root", str(tmp_path), "--name", "gone"])
    assert isinstance(missing.exception, errors.NotFoundError)


@pytest.mark.parametrize("text", ["9", "KILL", "SIGKILL", "kill"])
def test_signals_may_be_spelled_in_every_usual_way(text: str) -> None:
    from fleet.cli.lab import _signal_number

    assert _signal_number(None, None, text) == 9  # type: ignore[arg-type]
