"""fleet's AppArmor profile around real containers, on machines whose kernel has AppArmor."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers_host import RealHost, on_real_host

from fleet.containers.apparmor import AppArmor
from fleet.containers.config import ContainerConfig
from fleet.containers.execs import ExecConfig
from fleet.errors import RejectedFault
from fleet.model.service import HealthConfig
from fleet.node_runtime.apparmor_profile import DEFAULT_PROFILE
from tests.support.apparmor_profiles import needs_apparmor, profile_loaded, remove_profile

pytestmark = [pytest.mark.kernel, *needs_apparmor]
CONFINED = f"{DEFAULT_PROFILE} (enforce)"
SECOND_NS = 1_000_000_000


def label(pid: int) -> str:
    return Path(f"/proc/{pid}/attr/current").read_text().strip("\0\n")


async def started(host: RealHost, *command: str, **fields: object) -> tuple[str, int]:
    """(id, pid of the first process)."""
    made = await host.engine.create(ContainerConfig(image="busybox", command=command or ("sleep", "600"), **fields))
    await host.engine.start(made.id)
    return made.id, host.engine.get(made.id).state.pid


async def executed(host: RealHost, name: str, *command: str, **fields: object) -> tuple[int, str]:
    """(exit code, output) of an exec session."""
    exec_id = host.engine.execs.create(host.engine._core.find(name), ExecConfig(args=command, **fields))
    reader, writer = os.pipe()
    try:
        await host.engine.execs.start(exec_id, stdout_fd=writer, stderr_fd=writer)
    finally:
        os.close(writer)
    code = await host.engine.execs.wait(exec_id)
    with open(reader, "rb") as output:
        return code, output.read().decode().strip("\0\n")


def test_every_process_of_a_container_runs_under_it(unique: str) -> None:
    async def story(host: RealHost) -> None:
        plain, pid = await started(host)
        assert label(pid) == CONFINED
        if host.engine.user_namespaces.by_default:
            assert "Uid:\t0" not in Path(f"/proc/{pid}/status").read_text()
        for fields in ({}, {"user": "1000"}, {"tty": True}, {"privileged": True}):
            assert (await executed(host, plain, "cat", "/proc/self/attr/current", **fields))[1] == CONFINED
        _, pid = await started(host, init=True)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert [label(each) for each in (pid, *map(int, children))] == [CONFINED, CONFINED]
        probe = HealthConfig(test=("CMD", "cat", "/proc/self/attr/current"), interval_ns=SECOND_NS, retries=1)
        probed, _ = await started(host, healthcheck=probe)
        async with asyncio.timeout(60):
            while (health := host.engine.get(probed).state.health) is None or not health.log:
                await asyncio.sleep(0.2)
        assert health.log[0].output.strip("\0\n") == CONFINED

    on_real_host(story, unique=unique)


def test_the_kernel_is_closed_even_to_all_capabilities(unique: str) -> None:
    """Privileged, and then the profile by name: it alone stands between root and the host's files."""
    script = """
        mkdir -p /m; mount -t tmpfs none /m && echo mounted
        for file in /proc/sys/vm/swappiness /proc/sys/kernel/printk_delay /sys/kernel/mm/ksm/pages_to_scan; do
            value=$(cat $file) || echo no $file
            (echo $value > $file) && echo wrote $file
        done
        (: > /proc/sysrq-trigger) && echo opened the trigger
        head -c 1 /proc/kcore > /dev/null && echo read the memory
        echo own:
        for file in /proc/sys/kernel/shmmni /proc/sys/kernel/hostname /proc/sys/net/ipv4/ip_default_ttl; do
            value=$(cat $file) || echo no $file
            (echo $value > $file) && echo wrote $file
        done
        umount /m; sh -c 'sleep 600 & kill $! && wait $!; [ $? = 143 ]' && echo signalled
        tr '\\0' '\\n' < /proc/1/environ | grep -c PATH
    """
    own = [
        "wrote /proc/sys/kernel/shmmni",
        "wrote /proc/sys/kernel/hostname",
        "wrote /proc/sys/net/ipv4/ip_default_ttl",
    ]
    own += ["signalled", "1"]

    async def story(host: RealHost) -> None:
        async def said(**fields: object) -> list[str]:
            _, status, output = await host.run("sh", "-c", f"({script}) 2>/dev/null", privileged=True, **fields)
            return output.splitlines() or [str(status)]

        free = await said()
        assert free[0] == "mounted"
        assert len(free[: free.index("own:")]) >= 5, free  # the test tests something
        assert await said(apparmor=DEFAULT_PROFILE) == ["own:", *own]
        assert free[free.index("own:") + 1 :] == own

    on_real_host(story, unique=unique)


def test_processes_outside_are_neither_traced_nor_signalled(unique: str) -> None:
    async def story(host: RealHost) -> None:
        with subprocess.Popen(["sleep", "600"], env={"OF": "the-host"}) as victim:
            script = f"""
                cat /proc/{victim.pid}/environ > /dev/null && echo read
                kill -TERM {victim.pid} && echo killed
                grep -c . /proc/self/status > /dev/null && echo alive
            """
            fields = {"pid_mode": "host", "capabilities_add": ("SYS_PTRACE", "KILL"), "seccomp": "unconfined"}
            _, _, output = await host.run("sh", "-c", f"({script}) 2>/dev/null", **fields)
            assert output.split() == ["alive"]
            assert victim.poll() is None
            _, _, output = await host.run("sh", "-c", f"({script}) 2>/dev/null", apparmor="unconfined", **fields)
            assert output.split() == ["read", "killed", "alive"]
            assert victim.wait(30) == -15

    on_real_host(story, unique=unique)


@pytest.fixture
def profile(unique: str) -> Iterator[str]:
    with profile_loaded(f"fleet-test-{unique}") as name:
        yield name


def test_what_a_container_says_of_profiles_is_honoured(unique: str, profile: str) -> None:
    async def story(host: RealHost) -> None:
        for fields, expected in (
            ({"apparmor": "unconfined"}, "unconfined"),
            ({"privileged": True}, "unconfined"),
            ({"apparmor": profile}, f"{profile} (enforce)"),
            ({"apparmor": profile, "privileged": True}, f"{profile} (enforce)"),
            ({"apparmor": profile, "init": True, "no_new_privileges": False}, f"{profile} (enforce)"),
        ):
            name, pid = await started(host, **fields)
            assert label(pid) == expected
            assert (await executed(host, name, "cat", "/proc/self/attr/current"))[1] == expected
            assert host.engine.get(name).apparmor == expected.removesuffix(" (enforce)")
        made = await host.engine.create(
            ContainerConfig(image="busybox", command=("true",), apparmor="nobody-loaded-this")
        )
        with pytest.raises(RejectedFault, match="AppArmor profile 'nobody-loaded-this' is not loaded on this host"):
            await host.engine.start(made.id)

    on_real_host(story, unique=unique)


def test_stop_and_kill_reach_it(unique: str) -> None:
    async def story(host: RealHost) -> None:
        for fields, code in (({}, 7), ({"init": True}, 7)):
            script = "trap 'exit 7' TERM; while :; do sleep 0.1; done"
            name, _ = await started(host, "sh", "-c", script, **fields)
            await asyncio.sleep(1)
            await host.engine.stop(name, grace_s=60)
            assert (await host.engine.wait(name)).code == code
        name, _ = await started(host)
        await host.engine.kill(name)
        assert (await host.engine.wait(name)).code == 137
        name, _ = await started(host)
        await host.engine.pause(name)
        await host.engine.unpause(name)
        await host.engine.remove(name, force=True)

    on_real_host(story, unique=unique)


def test_it_is_loaded_again_when_it_went_and_its_lack_is_told(unique: str) -> None:
    async def story(host: RealHost) -> None:
        assert host.engine.apparmor.by_default
        remove_profile(DEFAULT_PROFILE)
        async with host.opened() as engine:  # as after a restart of fleetd
            await engine.recover()
            assert engine.apparmor.by_default
            remove_profile(DEFAULT_PROFILE)
            _, pid = await started(host)
            assert label(pid) == CONFINED
        remove_profile(DEFAULT_PROFILE)
        lacking = AppArmor(host.root / "elsewhere", find_parser=lambda: None)
        await lacking.enable()
        assert lacking.warning() == (
            "containers run without an AppArmor profile: apparmor_parser is not installed (package apparmor)"
        )
        assert await lacking.choose(ContainerConfig(image="busybox")) == ""

    on_real_host(story, unique=unique, opened=False)
