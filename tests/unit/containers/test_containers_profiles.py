"""When fleet's AppArmor profile is loaded, what is said when it cannot be, and which container runs under which."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fleet.containers.apparmor import AppArmor
from fleet.containers.config import ContainerConfig
from fleet.containers.engine import ContainerEngine
from fleet.containers.execs import ExecConfig
from fleet.errors import UnsupportedError


@dataclass
class Kernel:
    """A host's files, and a parser that says what it was told and does what it is told to."""

    root: Path
    has_parser: bool = True

    def __post_init__(self) -> None:
        self.profiles = self.root / "sys/kernel/security/apparmor/profiles"
        self.calls = self.root / "calls"
        self.write("sys/module/apparmor/parameters/enabled", "Y\n")
        self.write("sys/kernel/security/apparmor/profiles", "lsb_release (enforce)\n")
        self.write("proc/self/attr/current", "unconfined\n")
        self.parser = self.write(
            "parser",
            f'#!/bin/sh\necho "$@" >> {self.calls}\necho "fleet-default (enforce)" >> {self.profiles}\n',
        )
        self.parser.chmod(0o755)

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    @property
    def times_loaded(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0

    def apparmor(self) -> AppArmor:
        find = lambda: str(self.parser) if self.has_parser else None  # noqa: E731
        return AppArmor(self.root / "data/apparmor", root=self.root, find_parser=find)

    def choose(self, **fields: object) -> str:
        async def story() -> str:
            apparmor = self.apparmor()
            await apparmor.enable()
            return await apparmor.choose(ContainerConfig(image="app", **fields))  # type: ignore[arg-type]

        return asyncio.run(story())

    def enabled(self) -> AppArmor:
        async def story() -> AppArmor:
            apparmor = self.apparmor()
            await apparmor.enable()
            return apparmor

        return asyncio.run(story())


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_the_profile_is_loaded_from_roots_own_file_and_only_when_it_must_be(kernel: Kernel) -> None:
    first = kernel.enabled()
    assert (first.is_on, first.by_default, first.warning()) == (True, True, "")
    file = kernel.root / "data/apparmor/fleet-default"
    assert kernel.calls.read_text() == f"--replace --skip-cache {file.with_suffix('.new')}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    kernel.enabled()
    assert kernel.times_loaded == 1
    file.write_text(file.read_text().replace("umount,", ""))  # what an earlier fleetd had
    kernel.enabled()
    assert kernel.times_loaded == 2
    kernel.profiles.write_text("lsb_release (enforce)\n")  # as after a boot
    kernel.enabled()
    assert kernel.times_loaded == 3


def test_the_text_follows_the_hosts_abi_and_the_daemons_own_profile(kernel: Kernel) -> None:
    kernel.write("etc/apparmor.d/abi/3.0", "")
    kernel.write("proc/self/attr/apparmor/current", "fleetd (enforce)\n")
    kernel.enabled()
    text = (kernel.root / "data/apparmor/fleet-default").read_text()
    assert "abi <abi/3.0>," in text
    assert 'peer="fleetd",' in text


def test_a_kernel_without_it_is_nothing_to_warn_of(kernel: Kernel) -> None:
    kernel.write("sys/module/apparmor/parameters/enabled", "N\n")
    found = kernel.enabled()
    assert (found.is_on, found.by_default, found.warning()) == (False, False, "")
    assert kernel.choose() == kernel.choose(apparmor="unconfined") == kernel.choose(privileged=True) == ""
    with pytest.raises(UnsupportedError, match="AppArmor profile 'mine': fleetd applies none on this host"):
        kernel.choose(apparmor="mine")
    assert kernel.times_loaded == 0


def test_what_hinders_is_said_and_containers_start_without_a_profile(kernel: Kernel) -> None:
    kernel.has_parser = False
    without = "containers run without an AppArmor profile: "
    assert kernel.enabled().warning() == without + "apparmor_parser is not installed (package apparmor)"
    assert kernel.choose() == ""
    assert kernel.choose(apparmor="mine") == "mine"
    kernel.has_parser = True
    kernel.parser.write_text("#!/bin/sh\necho 'syntax error,' >&2\necho 'line 3' >&2\nexit 1\n")
    failed = f"{kernel.parser} failed with exit code 1: syntax error, line 3"
    assert kernel.enabled().warning() == without + failed
    kernel.profiles.unlink()
    found = kernel.enabled()
    assert found.warning().startswith(without)
    assert found.warning().endswith("mount -t securityfs securityfs /sys/kernel/security")
    assert not found.by_default


def test_an_older_profile_in_the_kernel_is_better_than_none(kernel: Kernel) -> None:
    kernel.enabled()
    (kernel.root / "data/apparmor/fleet-default").write_text("older")
    kernel.has_parser = False
    found = kernel.enabled()
    assert found.by_default
    assert "under an older AppArmor profile fleet-default" in found.warning()
    assert "apparmor_parser is not installed" in found.warning()
    assert kernel.choose() == "fleet-default"


def test_a_parser_installed_later_counts_from_the_next_start(kernel: Kernel) -> None:
    async def story() -> None:
        kernel.has_parser = False
        apparmor = kernel.apparmor()
        await apparmor.enable()
        assert await apparmor.choose(ContainerConfig(image="app")) == ""
        kernel.has_parser = True
        assert await apparmor.choose(ContainerConfig(image="app")) == "fleet-default"
        assert apparmor.warning() == ""
        kernel.profiles.write_text("")  # as after `systemctl stop apparmor`
        assert await apparmor.choose(ContainerConfig(image="app")) == "fleet-default"

    asyncio.run(story())


def test_the_container_says_else_the_host_chooses(kernel: Kernel) -> None:
    assert kernel.choose() == "fleet-default"
    assert kernel.choose(apparmor="mine") == "mine"
    assert kernel.choose(apparmor="unconfined") == "unconfined"
    assert kernel.choose(privileged=True) == "unconfined"
    assert kernel.choose(privileged=True, apparmor="mine") == "mine"


def with_engine(host, kernel: Kernel, story: Callable[[ContainerEngine], Awaitable[None]]) -> None:  # type: ignore[no-untyped-def]
    async def main() -> None:
        engine = await ContainerEngine.open(
            data_root=host.root / "data",
            exec_root=host.root / "exec",
            runtime=host.runtime,
            images=host.images,
            network=host.network,
            clock=host.clock,
            apparmor=kernel.apparmor(),
        )
        try:
            await story(engine)
        finally:
            await engine.close()

    asyncio.run(main())


def test_first_processes_execs_and_probes_run_under_what_the_start_chose(host, kernel: Kernel) -> None:  # type: ignore[no-untyped-def]
    seen = []
    host.runtime.exec_result = lambda process: seen.append(process.apparmor) or 0

    async def story(engine: ContainerEngine) -> None:
        for fields, profile in (
            ({}, "fleet-default"),
            ({"apparmor": "mine"}, "mine"),
            ({"privileged": True}, "unconfined"),
        ):
            made = await engine.create(ContainerConfig(image="app", **fields))  # type: ignore[arg-type]
            assert made.apparmor == ""
            await engine.start(made.id)
            assert host.runtime.specs[-1].process.apparmor == profile
            assert engine.get(made.id).apparmor == profile
            for privileged in (False, True):  # as in Docker, privileges of an exec do not free it
                exec_id = engine.execs.create(
                    engine._core.find(made.id), ExecConfig(args=("true",), privileged=privileged)
                )
                await engine.execs.start(exec_id)
                await engine.execs.wait(exec_id)
            assert seen == [profile, profile]
            seen.clear()

    with_engine(host, kernel, story)


def test_a_profile_this_host_cannot_apply_makes_no_container(host) -> None:  # type: ignore[no-untyped-def]
    async def story(engine: ContainerEngine) -> None:
        with pytest.raises(UnsupportedError, match="AppArmor profile 'mine'"):
            await engine.create(ContainerConfig(image="app", apparmor="mine"))
        assert not engine.list()

    host.run(story)
