"""Bundles: what is read, what is refused by name, and that nothing else can come of any document."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.errors import UserError
from fleet.node_runtime.oci.bundle import Bundle, OciMount
from fleet.node_runtime.oci.features import features
from fleet.node_runtime.oci.main import main
from fleet.node_runtime.oci.reading import Reader
from fleet.node_runtime.oci.resources import parse_resources
from tests.support.oci_bundles import CONFIG


def bundle_of(directory: Path, config: Any) -> Bundle:
    (directory / "rootfs").mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return Bundle(str(directory))


def changed(*path: str | int, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    place: Any = config
    for part in path[:-1]:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
    place[path[-1]] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("ociVersion",), "2.0.0", "ociVersion: '2.0.0' is not a version 1.x.y"),
        (("ociVersion",), 1, "ociVersion is not a text"),
        (("process", "args"), [], "process.args is empty"),
        (("process", "args"), ["a", 1], "process.args[1] is not a text"),
        (("process", "cwd"), "relative", "process.cwd: 'relative' is not an absolute path"),
        (("process", "user", "uid"), -1, "process.user.uid: -1 is not within 0..4294967294"),
        (("process", "user", "uid"), True, "process.user.uid is not a whole number"),
        (("process", "rlimits"), [{"type": "RLIMIT_X", "soft": 1, "hard": 1}], "process.rlimits[0].type: 'RLIMIT_X'"),
        (("process", "rlimits"), [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}], "2 is above the hard limit, 1"),
        (("process", "rlimits"), [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2, "RLIMIT_CPU stands there twice"),
        (("process", "ioPriority"), {"class": "FAST"}, "process.ioPriority.class: 'FAST' is not one of"),
        (("root", "path"), "absent", "is not a directory"),
        (("mounts", 0, "destination"), "", "mounts[0].destination is missing"),
        (("mounts", 0, "type"), "", "mounts[0].type is missing"),
        (("mounts", 0, "options"), ["idmap"], "mounts[0].options: ids of /proc can be mapped only where it is a bind"),
        (
            ("mounts", 0, "options"),
            ["bind", "idmap"],
            "idmap without uidMappings needs a container with a user namespace",
        ),
        (("mounts", 0, "options"), ["bind", "idmap=uids=0-1-1"], "option 'idmap=uids=0-1-1' is not supported"),
        (("mounts", 0, "gidMappings"), [{"containerID": 0, "hostID": 1, "size": 0}], "size: 0 is not within 1.."),
        (("linux", "namespaces"), [{"type": "user"}, {"type": "mount", "path": "/x"}], "a new namespace of type mount"),
        (("linux", "namespaces"), [{"type": "user", "path": "/x"}], "joining a user namespace is not supported"),
        (("linux", "namespaces"), [{"type": "mount"}, {"type": "user"}], "linux.uidMappings is missing"),
        (("linux", "uidMappings"), [{"size": 1}], "linux.uidMappings needs a namespace of type user"),
        (("linux", "gidMappings"), [{"size": 0}], "linux.gidMappings[0].size: 0 is not within"),
        (("linux", "namespaces"), [{"type": "mount"}, {"type": "mount"}], "mount stands there twice"),
        (("linux", "namespaces"), [{"type": "mount"}], "hostname would be the host's"),
        (("linux", "sysctl"), {"kernel.panic": "1"}, "kernel.panic would change the host"),
        (("linux", "sysctl"), {"net.a..b": "1"}, "is not a name of a kernel parameter"),
        (("linux", "maskedPaths"), ["proc"], "linux.maskedPaths: 'proc' is not absolute"),
        (("linux", "cgroupsPath"), "/a/../../b", "linux.cgroupsPath: .. leads out of it"),
        (("linux", "devices"), [{"type": "x", "path": "/dev/x"}], "linux.devices[0].type: 'x' is not one of"),
        (("linux", "devices"), [{"type": "c", "path": "/dev/x"}], "linux.devices[0].major and minor are needed"),
        (("linux", "seccomp"), {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}, "listenerPath"),
        (("linux", "resources", "hugepageLimits"), [{"limit": 1}], "hugepageLimits: limits of this kind"),
        (("linux", "resources", "unified"), {"../x": "1"}, "'../x' is not a file of a control group"),
        (("linux", "rootfsPropagation"), "far", "linux.rootfsPropagation: 'far' is not one of"),
        (("hooks",), {"prestart": [{"path": "x"}]}, "hooks.prestart[0].path: 'x' is not absolute"),
        (("hooks",), {"prestart": [{"path": "/x", "timeout": 0}]}, "hooks.prestart[0].timeout: 0 is not within"),
        (("windows",), {"a": 1}, "windows: this is a runtime for Linux"),
    ],
)
def test_refused_by_name(tmp_path: Path, path: tuple[str | int, ...], value: Any, text: str) -> None:
    with pytest.raises(UserError) as caught:
        bundle_of(tmp_path, changed(*path, value=value))
    assert text in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '"x"', '{"process": 1}'])
def test_no_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        Bundle(str(tmp_path))


def test_unknown_capabilities_are_left_out_with_a_warning(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, changed("process", "capabilities", value={"bounding": ["CAP_KILL", "CAP_NEW"]}))
    assert bundle.process.capabilities["bounding"] == 1 << 5
    assert "'CAP_NEW'" in bundle.process.warnings[0]


@pytest.mark.skipif(Path("/sys/fs/selinux/enforce").exists(), reason="this kernel has SELinux")
@pytest.mark.parametrize("path", [("process", "selinuxLabel"), ("linux", "mountLabel")])
def test_labels_are_left_out_with_a_warning_where_nothing_reads_them(tmp_path: Path, path: tuple[str, str]) -> None:
    warnings = bundle_of(tmp_path, changed(*path, value="system_u:object_r:x:s0")).process.warnings
    assert warnings == [f"config.json: {'.'.join(path)}: this kernel has no SELinux; the label is left out"]


def test_options_are_sorted_by_what_takes_them() -> None:
    options = ["rbind", "ro", "rw", "ro", "noatime", "nosuid", "rnoexec", "rslave", "size=1m", "x", "defaults"]
    mount = OciMount(Reader({"destination": "a/../b", "source": "s", "options": options}, "m."), "/bundle")
    assert (mount.target, mount.source, mount.is_bind, mount.recursive) == ("/b", "/bundle/s", True, True)
    assert (mount.set, mount.clear) == (1 | 2 | 0x10, 0x70)
    assert (mount.deep_set, mount.deep_clear) == (8, 0)
    assert mount.propagation == [(1 << 19, True)]
    assert mount.data == [("size", "1m"), ("x", None)]


def test_resources_as_control_groups_take_them() -> None:
    given_ = {
        "devices": [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            {"allow": True, "type": "b", "major": 8, "access": "r"},
            {"allow": False, "type": "b", "major": 8, "access": "r"},
        ],
        "memory": {"limit": 1 << 26, "swap": -1, "reservation": -1},
        "cpu": {"quota": -1, "period": 100000, "cpus": "0-1", "burst": 5000},
        "unified": {"hugetlb.2MB.max": "4M"},
        "pids": {"limit": -1},
        "blockIO": {"weight": 500, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}]},
    }
    limits, rules, files = parse_resources(Reader(given_, "r."), warnings=[])
    assert limits == {
        "memory_bytes": 1 << 26,
        "memory_swap_bytes": -1,
        "memory_reservation_bytes": 0,
        "cpu_quota_us": -1,
        "cpu_period_us": 100000,
        "cpuset_cpus": "0-1",
        "pids_limit": 0,
        "blkio_weight": 500,
        "device_read_bps": [["8:0", 600]],
    }
    assert rules is not None
    assert rules[0] == ("c", 10, 229, "rw")
    assert [(file.place, file.v1, file.v2, file.value) for file in files] == [
        ("r.cpu.burst", "cpu.cfs_burst_us", "cpu.max.burst", "5000"),
        ("r.unified: hugetlb.2MB.max", "", "hugetlb.2MB.max", "4M"),
    ]
    warnings: list[str] = []
    everything = {"devices": [{"allow": True, "access": "rwm"}], "memory": {"kernel": 1 << 20}}
    limits, rules, _ = parse_resources(Reader(everything, "r."), warnings=warnings)
    assert (limits, rules) == ({}, None)
    assert warnings == ["r.memory.kernel: Linux has dropped limits of kernel memory; there is none"]


def test_what_it_can_is_what_it_takes() -> None:
    told = features()
    for option in told["mountOptions"]:
        OciMount(Reader({"destination": "/a", "type": "bind", "source": "/s", "options": [option]}, "m."), "/")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _places(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [at] if at else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _places(inner, (*at, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += _places(inner, (*at, index))
    return found


_ADDED: list[tuple[str | int, ...]] = [
    ("hooks", "prestart"),
    ("linux", "devices"),
    ("linux", "seccomp"),
    ("linux", "sysctl"),
    ("linux", "resources", "memory"),
    ("linux", "resources", "blockIO"),
    ("linux", "resources", "unified"),
    ("linux", "personality"),
    ("process", "ioPriority"),
    ("process", "consoleSize"),
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(_places(CONFIG) + _ADDED), value=_json)
def test_any_value_anywhere_is_read_or_refused(tmp_path: Path, place: tuple[str | int, ...], value: Any) -> None:
    try:
        bundle_of(tmp_path, changed(*place, value=value))
    except UserError as error:
        assert "config.json" in str(error)


def test_the_command_says_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "create" in capsys.readouterr().out
