"""The search for leftovers (tests/conftest.py) finds each kind of thing a test can leave behind, and no others."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

LEAKS = {
    "links: flableak": "subprocess.run(['ip', 'link', 'add', 'flableak', 'type', 'bridge'], check=True)",
    "mounts: {tmp}": "subprocess.run(['mount', '-t', 'tmpfs', 'none', '{tmp}'], check=True)",
    "netns: {token}": "subprocess.run(['ip', 'netns', 'add', os.environ['FLEET_TEST_RUN']], check=True)",
    "processes: {pid} sleep 605": "note(subprocess.Popen(['sleep', '605'], start_new_session=True))",
    "processes: {pid} sleep 606": "note(subprocess.Popen(['unshare', '-m', 'sleep', '606'], start_new_session=True))",
    "processes: {pid} sleep 607": "note(subprocess.Popen(['sleep', '607'], env={{}}, start_new_session=True))",
    "cgroups: ": "Path(cgroups.hierarchies()[0], 'fleet-test-' + os.environ['FLEET_TEST_RUN']).mkdir()",
}
MODULE = """
import os, subprocess
from pathlib import Path
import pytest
from fleet.lab import cgroups
pytestmark = pytest.mark.kernel

def note(process):
    process.returncode = 0  # not ours to wait for: no warning about a child that still runs
    Path("{tmp}.pid").write_text(str(process.pid))

def test_something():
    Path("{tmp}.token").write_text(os.environ["FLEET_TEST_RUN"])
    {leak}
"""


def run_module(tmp_path: Path, leak: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "tests/kernel").mkdir(parents=True)
    (tmp_path / "mnt").mkdir()
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path / "tests/conftest.py")
    module = tmp_path / "tests/kernel/test_leaky.py"
    module.write_text(MODULE.format(leak=leak.format(tmp=tmp_path / "mnt"), tmp=tmp_path / "mnt"))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    kernel\n    e2e\n")
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "tests"]
    environment = {**os.environ, "FLEET_TEST_ALONE": "0"}
    return subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("sentence", LEAKS)
def test_a_module_that_leaves_something_behind_fails_and_says_what(sentence: str, tmp_path: Path) -> None:
    done = run_module(tmp_path, LEAKS[sentence])
    token = (tmp_path / "mnt.token").read_text()
    pid = (tmp_path / "mnt.pid").read_text() if (tmp_path / "mnt.pid").exists() else ""
    try:
        assert done.returncode == 1, done.stdout
        # A named namespace is a mount too, and the first ever makes /run/netns one.
        assert sentence.startswith("netns") or "left 1 things behind" in done.stdout, done.stdout
        assert sentence.format(tmp=tmp_path / "mnt", token=token, pid=pid) in done.stdout
    finally:
        if pid:
            os.kill(int(pid), signal.SIGKILL)
        if sentence.startswith("netns"):
            Path("/run/netns", token).unlink()
        if sentence.startswith("cgroups"):
            next(
                Path("/sys/fs/cgroup").glob(f"*/fleet-test-{token}"), Path(f"/sys/fs/cgroup/fleet-test-{token}")
            ).rmdir()


def test_a_tidy_module_passes(tmp_path: Path) -> None:
    done = run_module(tmp_path, "subprocess.run(['ip', 'link'], check=True)")
    assert done.returncode == 0, done.stdout
