"""What every test stands on: namespaces of its own, unique names, a reason for each skip, and a search for leftovers.

As root the whole run moves into a fresh network and mount namespace before the first test. So tests may make links and mounts
without disturbing the machine or another run beside this one, everything of the kind found there is ours, and it vanishes with
the run even if the run is killed. (Set ``FLEET_TEST_NAMESPACES=0`` to stay in the machine's.)

After each kernel and e2e module the checker compares links, mounts, named network namespaces, processes, cgroups and runtime
folders with what was there before, waits a moment for what is on its way out, and fails the module with a list of what stayed.
Cgroups, folders and named namespaces are machine-wide, so a stranger's would look like ours: only those that carry this run's
token count, unless ``FLEET_TEST_ALONE=1`` says that nobody else is at work, and no other process of this run is (``-n``).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from fleet.lab import cgroups
from fleet.lab.hostinit import CLONE_NEWNET, CLONE_NEWNS, MS_REC, mount, unshare
from tests.support.pace import stretched

MS_PRIVATE = 1 << 18
TOKEN_VARIABLE = "FLEET_TEST_RUN"
ROOT_MARKS = ("kernel", "e2e")
TOOLS = {"ip": "iproute2", "nft": "nftables", "nsenter": "util-linux", "busybox": "busybox-static"}
_LONGEST_FIRST = ("simulation", "e2e", "kernel", "")
"""Folders of modules by how long one takes."""
GRACE_S = 3.0
"""The kernel frees namespaces, and init collects orphans, shortly after the call that ended them has returned."""


def pytest_configure() -> None:
    os.environ[TOKEN_VARIABLE] = secrets.token_hex(3)
    if os.geteuid() == 0 and os.environ.get("FLEET_TEST_NAMESPACES") != "0":
        unshare(CLONE_NEWNET | CLONE_NEWNS)
        mount("none", "/", "", MS_PRIVATE | MS_REC)
        if shutil.which("ip"):
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # long modules first, so that all processes end at about the same time
        items.sort(key=lambda item: _LONGEST_FIRST.index(_room(item)))
    why = _why_not_real()
    if why:
        for item in items:
            if any(item.get_closest_marker(mark) for mark in ROOT_MARKS):
                item.add_marker(pytest.mark.skip(reason=f"not run: {why}"))


def _room(item: pytest.Item) -> str:
    room = item.path.relative_to(Path(__file__).parent).parts[0]
    return room if room in _LONGEST_FIRST else ""


def _why_not_real() -> str:
    if os.geteuid() != 0:
        return "needs root, for real namespaces, cgroups and mounts"
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            return f"needs {tool} (package {package}; scripts/setup installs it)"
    return ""


_numbers = itertools.count(1)


@pytest.fixture
def unique() -> str:
    """A short name nobody else uses, now or in a run beside this one: 7-10 of [a-z0-9]."""
    return make_unique()


def make_unique() -> str:
    return f"t{os.environ[TOKEN_VARIABLE]}{next(_numbers)}"


@pytest.fixture
def cgroup_parent() -> Iterator[str]:
    """A cgroup path for one test, to hand to whatever makes cgroups; removed in every hierarchy afterwards."""
    path = f"/fleet-test-{make_unique()}"
    yield path
    cgroups.sweep(path)


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """``wait_until(condition, deadline_s, what="...")``: poll until it holds, else fail saying what did not come true."""
    return poll_until


def poll_until(condition: Callable[[], object], deadline_s: float, *, what: str = "", every_s: float = 0.05) -> None:
    end = time.monotonic() + stretched(deadline_s)
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"after {deadline_s:g} s still not: {what or condition}", pytrace=True)
        time.sleep(every_s)


# -- leftovers


@dataclass(frozen=True)
class Traces:
    """What tests could leave behind; each a set of sentences, so that a difference can be shown as it is."""

    links: frozenset[str]
    mounts: frozenset[str]
    netns: frozenset[str]
    processes: frozenset[str]
    cgroups: frozenset[str]
    folders: frozenset[str]

    def beyond(self, before: Traces) -> list[str]:
        return [
            f"{field.name}: {item}"
            for field in fields(self)
            for item in sorted(getattr(self, field.name) - getattr(before, field.name))
        ]


def traces() -> Traces:
    token = os.environ[TOKEN_VARIABLE]
    alone = os.environ.get("FLEET_TEST_ALONE") == "1" and "PYTEST_XDIST_WORKER" not in os.environ
    named = [path for pattern in ("/run/fleet*/*", "/var/lib/fleet*/*") for path in Path("/").glob(pattern[1:])]
    groups = [path for top in cgroups.hierarchies() for path in _groups(top)]
    netns = [path.name for path in Path("/run/netns").glob("*")]
    mine = lambda name: alone or token in name  # noqa: E731
    return Traces(
        links=frozenset(name for _, name in socket.if_nameindex()),
        mounts=frozenset(line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        netns=frozenset(filter(mine, netns)),
        processes=frozenset(_our_processes(token)),
        cgroups=frozenset(filter(mine, groups)),
        folders=frozenset(filter(mine, map(str, named))),
    )


def _groups(top: Path) -> Iterator[str]:
    """Ours and theirs below; others may remove theirs while we look, which ``Path.glob`` does not survive."""
    for folder in top.glob("fleet*/"):
        yield str(folder)
        with contextlib.suppress(FileNotFoundError):
            yield from (entry.path for entry in os.scandir(folder) if entry.is_dir())


def _our_processes(token: str) -> Iterator[str]:
    """Processes that inherited this run's token, or live in this run's own mount namespace; dead ones and ourselves left out."""
    own_mounts = os.readlink("/proc/self/ns/mnt")
    shared = own_mounts == os.readlink(f"/proc/{os.getppid()}/ns/mnt")
    marker = f"{TOKEN_VARIABLE}={token}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        if entry.name == str(os.getpid()):
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace")
            if stat[stat.rindex(")") + 2] in "ZX":
                continue
            here = not shared and os.readlink(entry / "ns/mnt") == own_mounts
            if here or marker in (entry / "environ").read_bytes().split(b"\0"):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                yield f"{entry.name} {words or stat}"
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended while we looked


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a kernel or e2e module that leaves something behind. First to be set up, so last to be torn down."""
    if os.geteuid() != 0 or request.path.relative_to(Path(__file__).parent).parts[0] not in ROOT_MARKS:
        yield
        return
    before = traces()
    yield
    deadline = time.monotonic() + GRACE_S
    while left := traces().beyond(before):
        if time.monotonic() > deadline:
            listing = "\n  ".join(left)
            pytest.fail(f"{request.node.name} left {len(left)} things behind:\n  {listing}", pytrace=False)
        time.sleep(0.05)
