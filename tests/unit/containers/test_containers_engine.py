"""The life of containers, against fakes that remember what the real packages remember."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from fleet.containers import (
    Action,
    ContainerConfig,
    ContainerEngine,
    FileMount,
    NetworkMode,
    RestartName,
    RestartRule,
    Status,
)
from fleet.containers.config import LogConfig
from fleet.containers.execs import ExecConfig
from fleet.errors import ConflictError, NotFoundError, RejectedFault, RuntimeFault, StorageFullError, UserError
from fleet.model.service import BindOptions, HealthConfig, Mount
from fleet.network.topology import AttachmentSpec
from fleet.node_runtime.events import Oom
from fleet.node_runtime.faults import CommandFault


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


def config(**fields: Any) -> ContainerConfig:
    return ContainerConfig(image="app", **fields)


def test_a_container_is_created_started_ends_and_is_removed(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        with engine.subscribe() as events:
            made = await engine.create(config(name="web"))
            assert made.state.status is Status.CREATED
            assert await engine.start("web")
            assert engine.get("web").state.status is Status.RUNNING
            waiting = asyncio.create_task(engine.wait("web"))
            await asyncio.sleep(0)
            host.runtime.end(made.id, 3)
            assert (await waiting).code == 3
            await until(lambda: made.id not in host.runtime.runs)
            assert made.id not in host.network.open
            await engine.remove("web")
            assert not engine.list()
        assert [e.action for e in [e async for e in events]] == [
            Action.CREATE,
            Action.START,
            Action.DIE,
            Action.DESTROY,
        ]
        await until(lambda: not [*(host.root / "data/trash").iterdir()])
        assert not [*(host.root / "data/containers").iterdir()]

    host.run(story)


def test_stop_returns_as_soon_as_the_container_ends(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        made = await engine.create(config())
        await engine.start(made.id)
        async with asyncio.timeout(1):
            assert await engine.stop(made.id, grace_s=3600)
        assert host.runtime.signals == [(made.id, 15)]
        assert engine.get(made.id).state.exit.code == 143
        assert not await engine.stop(made.id)

    host.run(story)


def test_stop_kills_after_the_grace_period(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        host.runtime.on_signal = lambda key, number: None
        made = await engine.create(config(stop_signal="SIGUSR1"))
        await engine.start(made.id)
        await engine.stop(made.id, grace_s=0.05)
        assert [number for _, number in host.runtime.signals] == [10, 9]
        assert engine.get(made.id).state.exit.code == 137

    host.run(story)


def test_an_exit_told_before_the_start_returned_is_not_lost(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        await asyncio.sleep(0.01)  # let the engine listen
        host.runtime.exit_at_start = 7
        made = await engine.create(config())
        with engine.subscribe() as events:
            await engine.start(made.id)
            assert (await engine.wait(made.id)).code == 7
        assert [e.action async for e in events] == [Action.START, Action.DIE]

    host.run(story)


def test_a_failed_start_leaves_nothing_and_says_why(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        host.runtime.fail_start = CommandFault(
            'exec: "foo": executable file not found in $PATH', container_exit_code=127
        )
        made = await engine.create(config(command=("foo",)))
        with pytest.raises(RejectedFault, match="executable file not found"):
            await engine.start(made.id)
        state = engine.get(made.id).state
        assert (state.status, state.exit.code) == (Status.CREATED, 127)
        assert not host.network.open
        host.runtime.fail_start = None
        await engine.start(made.id)
        assert engine.get(made.id).state.error == ""

    host.run(story)


def test_a_network_without_addresses_fails_the_start_cleanly(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        host.network.fail = True
        made = await engine.create(config())
        with pytest.raises(RuntimeFault, match="addresses"):
            await engine.start(made.id)
        assert not host.runtime.runs

    host.run(story)


def test_unknown_image_and_missing_bind_source_are_rejected_and_free_the_name(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        with pytest.raises(RejectedFault, match="no such image: nope"):
            await engine.create(ContainerConfig(image="nope", name="xx"))
        missing = Mount(type="bind", source="/nowhere/at/all", target="/x")
        with pytest.raises(RejectedFault, match="bind source path does not exist: /nowhere/at/all"):
            await engine.create(config(name="xx", mounts=(Mount(target="/v"), missing)))
        assert not engine.volumes.all()
        assert (await engine.create(config(name="xx"))).name == "xx"

    host.run(story)


def test_a_bind_source_that_vanished_is_noticed_at_start(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        source = host.root / "source"
        mount = Mount(type="bind", source=str(source), target="/x", bind_options=BindOptions(create_mountpoint=True))
        made = await engine.create(config(mounts=(mount,)))
        source.rmdir()
        with pytest.raises(RejectedFault, match="does not exist"):
            await engine.start(made.id)

    host.run(story)


def test_names_are_unique_and_can_be_changed(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        first = await engine.create(config(name="one"))
        with pytest.raises(ConflictError, match='name "/one" is already in use'):
            await engine.create(config(name="one"))
        second = await engine.create(config(name="two"))
        with pytest.raises(ConflictError):
            await engine.rename("two", "one")
        await engine.rename("one", "uno")
        assert engine.get("/uno").id == first.id
        await engine.rename("two", "one")
        assert engine.get("one").id == second.id
        assert engine.get(first.id[:7]).id == first.id
        with pytest.raises(NotFoundError, match="No such container: two"):
            engine.get("two")

    host.run(story)


def test_a_running_container_is_removed_by_force_only(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        made = await engine.create(config(volume_targets=("/data",)))
        await engine.start(made.id)
        with pytest.raises(ConflictError, match="container is running"):
            await engine.remove(made.id)
        removed = asyncio.create_task(engine.wait(made.id, "removed"))
        await asyncio.sleep(0)
        await engine.remove(made.id, force=True, volumes=True)
        assert (await removed).code == 137
        assert not engine.volumes.all()
        assert not host.runtime.runs and not host.network.open

    host.run(story)


def test_two_removals_at_once_one_is_told_so(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        made = await engine.create(config())
        results = await asyncio.gather(engine.remove(made.id), engine.remove(made.id), return_exceptions=True)
        assert [type(r) for r in results] == [type(None), ConflictError]

    host.run(story)


def test_a_volume_in_use_is_kept(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        made = await engine.create(config(mounts=(Mount(source="data", target="/data"),)))
        with pytest.raises(ConflictError, match="volume is in use"):
            await engine.volumes.remove("data")
        await engine.remove(made.id, volumes=True)
        assert [v.name for v in engine.volumes.all()] == ["data"]
        await engine.volumes.remove("data")
        assert not engine.volumes.all()

    host.run(story)


def test_secret_data_is_in_no_record_and_goes_with_the_container(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        secret = FileMount(target="/run/secrets/key", data=b"hunter2hunter2", uid=0, mode=0o400)
        assert "hunter2" not in repr(secret)
        made = await engine.create(config(files=(secret,)))
        await engine.start(made.id)
        mount = next(m for m in host.runtime.specs[0].mounts if m.target == "/run/secrets/key")
        assert mount.read_only and Path(mount.source).read_bytes() == b"hunter2hunter2"
        on_disk = b"".join(p.read_bytes() for p in (host.root / "data").rglob("*") if p.is_file())
        assert b"hunter2" not in on_disk
        assert b"/run/secrets/key" in on_disk
        await engine.remove(made.id, force=True)
        assert not [*(host.root / "exec").rglob(made.id)]

    host.run(story)


def test_files_lost_in_a_reboot_can_be_given_again_at_start(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        file = FileMount(target="/run/secrets/key", data=b"x")
        made = await engine.create(config(files=(file,)))
        engine._core.files.remove(made.id)
        with pytest.raises(RuntimeFault, match="lost with the host's memory"):
            await engine.start(made.id)
        assert await engine.start(made.id, files=(file,))

    host.run(story)


def test_a_restart_rule_brings_it_back_and_a_stop_by_hand_ends_that(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        rule = RestartRule(name=RestartName.ON_FAILURE, retries_max=2)
        made = await engine.create(config(restart=rule))
        await engine.start(made.id)
        for count in (1, 2):
            host.runtime.end(made.id, 1)
            await until(lambda count=count: engine.get(made.id).state.restart_count == count)
            await until(lambda: engine.get(made.id).state.status is Status.RUNNING)
        host.runtime.end(made.id, 1)
        await until(lambda: engine.get(made.id).state.status is Status.EXITED)
        await engine.update(made.id, restart=RestartRule(name=RestartName.ALWAYS))
        await engine.start(made.id)
        await engine.stop(made.id)
        await asyncio.sleep(0.02)
        assert engine.get(made.id).state.status is Status.EXITED

    host.run(story)


def test_a_hundred_starts_at_once_are_bounded(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        made = [await engine.create(config()) for _ in range(100)]
        await asyncio.gather(*(engine.start(m.id) for m in made))
        assert all(c.state.status is Status.RUNNING for c in engine.list())
        assert 1 < host.runtime.starts_in_flight_max <= 8

    host.run(story)


def test_pause_and_unpause(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        made = await engine.create(config())
        with pytest.raises(ConflictError, match="not running"):
            await engine.pause(made.id)
        await engine.start(made.id)
        await engine.pause(made.id)
        with pytest.raises(ConflictError, match="already paused"):
            await engine.pause(made.id)
        assert engine.get(made.id).state.status is Status.PAUSED
        await engine.unpause(made.id)
        await engine.pause(made.id)
        await engine.stop(made.id)
        assert engine.get(made.id).state.status is Status.EXITED

    host.run(story)


def test_networks_and_names_reach_the_sandbox(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        spec = AttachmentSpec(network_id="net1", address="10.0.1.5", mac="02:42:0a:00:01:05")
        made = await engine.create(
            config(name="web.1.x", network_mode=NetworkMode.NETWORKS, networks=(spec,), network_names=("web.1",))
        )
        await engine.start(made.id)
        sandbox = host.network.open[made.id]
        assert sandbox.attachments == (spec,)
        assert sandbox.names == ("web.1.x", "web.1", made.id[:12])
        hosts = (engine.directory(made.id) / "hosts").read_text()
        assert f"10.0.1.5\t{made.id[:12]}\n" in hosts
        assert engine.get(made.id).networks[0].address == "10.0.1.5"

    host.run(story)


def test_input_that_ends_before_the_start_is_at_its_end_in_that_run_alone(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        made = await engine.create(config(open_stdin=True, stdin_once=True))
        early = await engine.attach(made.id, stdin=True)
        early.close_stdin()
        await engine.start(made.id)
        assert host.runtime.given_input[made.id] == b""
        early.close()
        await engine.kill(made.id)
        host.runtime.end(made.id, 137)
        await engine.wait(made.id)
        gone = await engine.attach(made.id, stdin=True)
        gone.close()  # a client that leaves has not said that its input is over
        await engine.start(made.id)
        assert made.id not in host.runtime.given_input

    host.run(story)


@pytest.mark.parametrize("mode", [NetworkMode.NONE, NetworkMode.HOST])
def test_modes_without_a_sandbox_make_none(host: Any, mode: NetworkMode) -> None:
    async def story(engine: ContainerEngine) -> None:
        made = await engine.create(config(network_mode=mode))
        await engine.start(made.id)
        assert not host.network.open
        assert host.runtime.specs[0].network == str(mode)

    host.run(story)


def test_health_turns_unhealthy_after_the_retries_and_is_told(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        codes = [1, 0, 1, 1]
        host.runtime.exec_result = lambda _process: codes.pop(0) if codes else 1
        check = HealthConfig(test=("CMD", "check"), interval_ns=10**9, retries=3)
        made = await engine.create(config(healthcheck=check))
        with engine.subscribe() as events:
            await engine.start(made.id)
            assert await engine.wait_healthy(made.id)
            await engine.wait_unhealthy(made.id)
            health = engine.get(made.id).state.health
            assert health.failing_streak >= 3
            assert "said something" in health.log[-1].output
            await engine.stop(made.id)
        told = [e.attributes["status"] async for e in events if e.action is Action.HEALTH_STATUS]
        assert told == ["healthy", "unhealthy"]

    host.run(story)


def test_waiting_for_health_ends_when_the_container_does(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        host.runtime.exec_result = lambda _process: 1
        check = HealthConfig(test=("CMD", "check"), interval_ns=10**9, retries=10**6)
        made = await engine.create(config(healthcheck=check))
        await engine.start(made.id)
        waiting = asyncio.create_task(engine.wait_healthy(made.id))
        await asyncio.sleep(0.01)
        host.runtime.end(made.id, 0)
        assert not await waiting

    host.run(story)


def test_exec_sessions_run_once_and_give_their_exit_code(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        made = await engine.create(config(env=("B=2",), user="app"))
        with pytest.raises(ConflictError, match="not running"):
            engine.execs.create(engine._core.find(made.id), ExecConfig(args=("ls",)))
        await engine.start(made.id)
        seen: list[Any] = []
        host.runtime.exec_result = lambda process: seen.append(process) or 5
        session_id = engine.exec_create(made.id, ExecConfig(args=("ls",), env=("C=3",)))
        await engine.execs.start(session_id)
        assert await engine.execs.wait(session_id) == 5
        assert {"A=1", "B=2", "C=3", "PATH=/bin"} <= set(seen[0].env) and seen[0].user == "app"
        with pytest.raises(ConflictError, match="already run"):
            await engine.execs.start(session_id)

    host.run(story)


def test_a_log_that_is_not_kept_cannot_be_read(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        made = await engine.create(config(log=LogConfig(driver="none")))
        with pytest.raises(UserError, match="does not support reading"):
            engine.logs(made.id)

    host.run(story)


def test_oom_is_told(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        await asyncio.sleep(0.01)
        made = await engine.create(config())
        await engine.start(made.id)
        with engine.subscribe() as events:
            host.runtime.tell(Oom(made.id))
            await asyncio.sleep(0.01)
            host.runtime.end(made.id, 137, oom=True)
            assert (await engine.wait(made.id)).oom_killed
        assert [e.action async for e in events] == [Action.OOM, Action.DIE]

    host.run(story)


def test_the_record_on_disk_is_json_that_names_the_state(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        made = await engine.create(config(name="web"))
        record = json.loads((engine.directory(made.id) / "config.json").read_text())
        assert record["Name"] == "web" and record["ImageID"] == made.image_id

    host.run(story)


def test_a_container_made_to_vanish_does_so_when_it_ends(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        made = await engine.create(config(auto_remove=True, volume_targets=("/v",)))
        await engine.start(made.id)
        removed = asyncio.create_task(engine.wait(made.id, "removed"))
        await asyncio.sleep(0)
        host.runtime.end(made.id, 4)
        assert (await removed).code == 4
        await until(lambda: not engine.volumes.all())
        assert not engine.list()

    host.run(story)


def test_a_failed_start_wakes_who_waits_and_takes_a_vanishing_container_away(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        host.runtime.fail_start = CommandFault("exec: no", container_exit_code=126)
        made = await engine.create(config(auto_remove=True))
        waits = [asyncio.create_task(engine.wait(made.id, condition)) for condition in ("next-exit", "removed")]
        await asyncio.sleep(0)
        with pytest.raises(RejectedFault):
            await engine.start(made.id)
        assert [status.code for status in await asyncio.gather(*waits)] == [126, 126]
        assert not engine.list()

    host.run(story)


def test_a_start_that_cannot_be_noted_durably_does_not_happen(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(engine: ContainerEngine) -> None:
        made = await engine.create(config())
        whole_disk = engine._core.records.save

        def full(_record: Any) -> None:
            raise StorageFullError("write config.json: no space left on device")

        monkeypatch.setattr(engine._core.records, "save", full)
        with pytest.raises(StorageFullError, match="no space"):
            await engine.start(made.id)
        assert not host.runtime.specs
        monkeypatch.setattr(engine._core.records, "save", whole_disk)
        assert await engine.start(made.id)

    host.run(story)


def test_a_start_that_is_cancelled_half_way_leaves_nothing(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        made = await engine.create(config())
        host.runtime.hold_start = asyncio.Event()
        starting = asyncio.create_task(engine.start(made.id))
        await until(lambda: host.runtime.starts_in_flight == 1)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not host.runtime.runs and not host.network.open
        host.runtime.hold_start = None
        assert await engine.start(made.id)

    host.run(story)
