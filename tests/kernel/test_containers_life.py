"""Containers with the real supervisor, image store and network."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from containers_host import RealHost, on_real_host

from fleet.containers import Action, ContainerConfig, FileMount, NetworkMode, RestartName, RestartRule, Status
from fleet.errors import RejectedFault
from fleet.model.service import HealthConfig, Mount, TmpfsOptions
from fleet.node_runtime.spec import ResourceLimits

pytestmark = pytest.mark.kernel


def test_exit_code_output_and_files_in_etc(unique: str) -> None:
    async def story(host: RealHost) -> None:
        script = "echo out; echo err >&2; hostname; cat /etc/hostname /etc/hosts /etc/resolv.conf; env; exit 7"
        made, status, output = await host.run("sh", "-c", script, env=("A=b",), extra_hosts=("db:10.1.2.3",))
        assert status.code == 7
        assert "out\n" in output and "err\n" in output
        assert output.count(made.id[:12] + "\n") >= 3  # hostname, /etc/hostname, /etc/hosts
        assert "10.1.2.3\tdb\n" in output
        assert "nameserver 127.0.0.11" in output
        assert {"A=b", f"HOSTNAME={made.id[:12]}", "HOME=/root"} <= set(output.splitlines())
        assert any(line.startswith("PATH=/usr/local/sbin:") for line in output.splitlines())
        streams = {line.stream async for line in host.engine.logs(made.id)}
        assert streams == {"stdout", "stderr"}
        assert [line.data async for line in host.engine.logs(made.id, stdout=False)] == [b"err\n"]

    on_real_host(story, unique=unique)


def test_stop_adds_no_latency_and_kills_after_the_grace(unique: str) -> None:
    async def story(host: RealHost) -> None:
        engine = host.engine
        polite = await engine.create(
            ContainerConfig(
                image="busybox", command=("sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done")
            )
        )
        await engine.start(polite.id)
        async for _line in engine.logs(polite.id, follow=True):
            break
        before = time.monotonic()
        assert await engine.stop(polite.id)
        assert time.monotonic() - before < 0.5
        assert engine.get(polite.id).state.exit.code == 3  # type: ignore[union-attr]
        stubborn = await engine.create(ContainerConfig(image="busybox", command=("sleep", "1000")))
        await engine.start(stubborn.id)
        before = time.monotonic()
        await engine.stop(stubborn.id, grace_s=0.3)
        assert 0.3 <= time.monotonic() - before < 1.5
        assert engine.get(stubborn.id).state.exit.code == 137  # type: ignore[union-attr]

    on_real_host(story, unique=unique)


def test_a_command_that_is_not_there_is_rejected_with_its_name(unique: str) -> None:
    async def story(host: RealHost) -> None:
        made = await host.engine.create(ContainerConfig(image="busybox", command=("no-such-program",)))
        with pytest.raises(RejectedFault, match="no-such-program"):
            await host.engine.start(made.id)
        assert host.engine.get(made.id).state.exit.code == 127  # type: ignore[union-attr]
        assert await host.network.sandboxes() == []
        assert list(await host.runtime.list()) == []

    on_real_host(story, unique=unique)


def test_volumes_binds_and_tmpfs(unique: str) -> None:
    async def story(host: RealHost) -> None:
        await host.add_image(
            "seeded",
            'CMD ["sh"]',
            'VOLUME ["/anon"]',
            extra_files={"data/seed": b"from the image\n", "data/deep/er": b"2\n", "anon/x": b"3\n"},
        )
        source = host.root / "source"
        source.mkdir()
        (source / "file").write_text("from the host\n")
        mounts = (
            Mount(source="named", target="/data"),
            Mount(type="bind", source=str(source), target="/host", read_only=True),
            Mount(type="tmpfs", target="/fast", tmpfs_options=TmpfsOptions(size_bytes=1 << 20, mode=0o700)),
        )
        script = (
            "cat /data/seed /data/deep/er /anon/x /host/file; echo more > /data/more; touch /host/no; "
            "dd if=/dev/zero of=/fast/big bs=1M count=2 2>&1 | head -1; stat -c %a /fast; grep ' /fast ' /proc/mounts"
        )
        made = await host.engine.create(ContainerConfig(image="seeded", command=("sh", "-c", script), mounts=mounts))
        await host.engine.start(made.id)
        await host.engine.wait(made.id)
        output = await host.output(made.id)
        assert "from the image\n2\n3\nfrom the host\n" in output
        assert "Read-only file system" in output
        assert "No space left" in output and "\n700\n" in output and "size=1024k" in output
        volume = host.engine.volumes.path(host.engine.volumes.get("named"))
        assert (volume / "more").read_text() == "more\n"
        await host.engine.remove(made.id, volumes=True)
        assert [v.name for v in host.engine.volumes.all()] == ["named"]
        _, _, again = await host.run("cat", "/v/more", "/v/seed", mounts=(Mount(source="named", target="/v"),))
        assert again == "more\nfrom the image\n"

    on_real_host(story, unique=unique)


def test_secrets_are_on_a_tmpfs_with_owner_and_mode_and_vanish(unique: str) -> None:
    async def story(host: RealHost) -> None:
        files = (
            FileMount(target="/run/secrets/key", data=b"hunter2-hunter2", uid=65534, gid=1, mode=0o440),
            FileMount(target="/app.conf", data=b"setting\n"),
        )
        script = (
            "cat /run/secrets/key; echo; cat /app.conf; stat -c '%u %g %a' /run/secrets/key; "
            "grep -E ' /(run/secrets/key|app.conf) ' /proc/mounts; echo x > /app.conf"
        )
        made, _, output = await host.run("sh", "-c", script, files=files)
        assert "hunter2-hunter2\nsetting\n65534 1 440\n" in output
        assert output.count(" tmpfs ro") == 2
        assert "Read-only file system" in output
        for path in (host.root / "d/containers").rglob("*"):
            if path.is_file() and "log" not in path.parts:
                assert b"hunter2" not in path.read_bytes(), path
        await host.engine.remove(made.id)
        assert not [*(host.exec_root / "files").iterdir()]

    on_real_host(story, unique=unique)


def test_limits_users_read_only_root_and_init(unique: str) -> None:
    async def story(host: RealHost) -> None:
        script = "id -u; id -g; touch /x; cat /proc/1/comm; ls /sys/class/net | wc -l"
        _, _, output = await host.run(
            "sh", "-c", script, user="nobody:33", read_only=True, init=True, network_mode=NetworkMode.NONE
        )
        assert output.startswith("65534\n33\n")
        assert "Read-only file system" in output
        assert output.endswith("\n1\n")
        _, status, _ = await host.run(
            "sh", "-c", "x=x; while :; do x=$x$x; done", resources=ResourceLimits(memory_bytes=16 << 20)
        )
        assert (status.code, status.oom_killed) == (137, True)

    on_real_host(story, unique=unique)


def test_the_default_network_reaches_its_gateway_and_gives_the_address_back(unique: str) -> None:
    async def story(host: RealHost) -> None:
        made = await host.engine.create(ContainerConfig(image="busybox", command=("sleep", "100")))
        await host.engine.start(made.id)
        address = host.engine.get(made.id).networks[0].address
        assert address.startswith("172.29.0.")
        assert os.system(f"busybox ping -c1 -W2 {address} >/dev/null") == 0
        await host.engine.remove(made.id, force=True)
        assert await host.network.sandboxes() == []

    on_real_host(story, unique=unique)


def test_health_checks_run_inside(unique: str) -> None:
    async def story(host: RealHost) -> None:
        check = HealthConfig(test=("CMD-SHELL", "test -e /tmp/ok && echo fine"), interval_ns=50_000_000, retries=2)
        made = await host.engine.create(
            ContainerConfig(
                image="busybox",
                command=("sh", "-c", "touch /tmp/ok; sleep 1; rm /tmp/ok; sleep 100"),
                healthcheck=check,
            )
        )
        await host.engine.start(made.id)
        async with asyncio.timeout(20):
            assert await host.engine.wait_healthy(made.id)
            await host.engine.wait_unhealthy(made.id)
        health = host.engine.get(made.id).state.health
        assert health is not None and health.failing_streak >= 2

    on_real_host(story, unique=unique)


def test_a_restart_rule_starts_it_again_on_the_same_files(unique: str) -> None:
    async def story(host: RealHost) -> None:
        rule = RestartRule(name=RestartName.ON_FAILURE, retries_max=2)
        made = await host.engine.create(
            ContainerConfig(
                image="busybox", command=("sh", "-c", "echo run >> /count; cat /count; exit 1"), restart=rule
            )
        )
        with host.engine.subscribe() as events:
            await host.engine.start(made.id)
            async with asyncio.timeout(20):
                deaths = 0
                async for event in events:
                    deaths += event.action is Action.DIE
                    if deaths == 3:
                        break
        assert host.engine.get(made.id).state.status is Status.EXITED
        assert (await host.output(made.id)).count("run") == 1 + 2 + 3

    on_real_host(story, unique=unique)


def test_thirty_containers_at_once_start_and_leave_nothing(unique: str) -> None:
    async def story(host: RealHost) -> None:
        made = await asyncio.gather(
            *(
                host.engine.create(ContainerConfig(image="busybox", command=("sh", "-c", f"exit {n}")))
                for n in range(30)
            )
        )
        await asyncio.gather(*(host.engine.start(m.id) for m in made))
        codes = await asyncio.gather(*(host.engine.wait(m.id) for m in made))
        assert [status.code for status in codes] == list(range(30))
        await asyncio.gather(*(host.engine.remove(m.id) for m in made))
        assert list(await host.runtime.list()) == []
        assert await host.network.sandboxes() == []
        async with asyncio.timeout(5):
            while [*(host.root / "d/trash").iterdir()]:
                await asyncio.sleep(0.01)
        assert not [*(host.root / "d/containers").iterdir()]
        groups = [p for p in Path("/sys/fs/cgroup").glob(f"*{host.cgroup_parent}/*") if p.is_dir()]
        assert groups == []

    on_real_host(story, unique=unique)
