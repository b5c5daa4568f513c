"""AppArmor profiles of bundles, on machines whose kernel has AppArmor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.apparmor_profiles import needs_apparmor, profile_loaded
from tests.support.oci_bundles import OciCommand, make_bundle

pytestmark = [pytest.mark.kernel, *needs_apparmor]


@pytest.fixture
def oci(tmp_path: Path) -> Iterator[OciCommand]:
    command = OciCommand(tmp_path)
    yield command
    command.delete_all()


@pytest.fixture
def profile(unique: str) -> Iterator[str]:
    with profile_loaded(f"fleet-test-{unique}") as name:
        yield name


def test_a_bundles_profile_confines_its_program_and_what_is_run_in_it(
    oci: OciCommand, tmp_path: Path, profile: str
) -> None:
    script = "cat /proc/self/attr/current; mkdir -p /tmp; echo x > /tmp/open && echo open; echo x > /tmp/closed || echo closed"
    bundle = make_bundle(tmp_path / "b", script, process__apparmorProfile=profile)
    done = oci("run", "--bundle", str(bundle), "t")
    assert done.stdout.splitlines() == [f"{profile} (enforce)", "open", "closed"], done.stderr


def test_a_bundle_with_users_of_its_own_and_one_that_is_joined(oci: OciCommand, tmp_path: Path, profile: str) -> None:
    maps = [{"containerID": 0, "hostID": 500_000, "size": 65_536}]
    spaces = [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup", "user")]
    bundle = make_bundle(
        tmp_path / "b",
        "cat /proc/self/attr/current; sleep 600",
        process__apparmorProfile=profile,
        linux__uidMappings=maps,
        linux__gidMappings=maps,
        linux__namespaces=spaces,
    )
    for path in (bundle / "rootfs", *(bundle / "rootfs").rglob("*")):
        os.lchown(path, 500_000, 500_000)
    tmp_path.chmod(0o755)
    assert oci("run", "--detach", "--bundle", str(bundle), "t").returncode == 0
    pid = oci.state("t")["pid"]
    assert Path(f"/proc/{pid}/attr/current").read_text().strip() == f"{profile} (enforce)"
    for words, label in (((), f"{profile} (enforce)"), (("--apparmor", "unconfined"), "unconfined")):
        joined = oci("exec", *words, "t", "cat", "/proc/self/attr/current")
        assert joined.stdout.strip() == label, joined.stderr


def test_a_profile_that_is_not_loaded_starts_nothing(oci: OciCommand, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "echo started", process__apparmorProfile="fleet-test-nobody-loaded-this")
    done = oci("run", "--bundle", str(bundle), "t")
    assert done.returncode != 0
    assert done.stdout == ""
    assert "AppArmor profile 'fleet-test-nobody-loaded-this' is not loaded on this host" in done.stderr
