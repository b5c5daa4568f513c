"""AppArmor profiles of bundles, on machines whose kernel has AppArmor."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.agent.engine_facts import read_engine_facts
from tests.support.oci_bundles import OciCommand, make_bundle

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not read_engine_facts().apparmor, reason="not run: this kernel's AppArmor is off or missing"),
    pytest.mark.skipif(not shutil.which("apparmor_parser"), reason="not run: needs apparmor_parser (package apparmor)"),
]


@pytest.fixture
def oci(tmp_path: Path) -> Iterator[OciCommand]:
    command = OciCommand(tmp_path)
    yield command
    command.delete_all()


@pytest.fixture
def profile(unique: str) -> Iterator[str]:
    """The name of one under which everything is allowed but to write /tmp/closed."""
    name = f"fleet-test-{unique}"
    rules = "file, capability, network, signal, ptrace, unix, mount, umount, pivot_root, deny /tmp/closed w,"
    text = f"profile {name} flags=(attach_disconnected,mediate_deleted) {{ {rules} }}\n"
    subprocess.run(["apparmor_parser", "--add", "--skip-cache"], input=text, text=True, check=True, capture_output=True)
    yield name
    subprocess.run(["apparmor_parser", "--remove"], input=text, text=True, check=True, capture_output=True)


def test_a_bundles_profile_confines_its_program_and_what_is_run_in_it(
    oci: OciCommand, tmp_path: Path, profile: str
) -> None:
    script = "cat /proc/self/attr/current; mkdir -p /tmp; echo x > /tmp/open && echo open; echo x > /tmp/closed || echo closed"
    bundle = make_bundle(tmp_path / "b", script, process__apparmorProfile=profile)
    done = oci("run", "--bundle", str(bundle), "t")
    assert done.stdout.splitlines() == [f"{profile} (enforce)", "open", "closed"], done.stderr


def test_a_profile_that_is_not_loaded_starts_nothing(oci: OciCommand, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "echo started", process__apparmorProfile="fleet-test-nobody-loaded-this")
    done = oci("run", "--bundle", str(bundle), "t")
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr
