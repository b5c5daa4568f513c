"""What the next engine makes of what the last one left."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from fleet.containers import ContainerConfig, FileMount, RestartName, RestartRule, Status
from fleet.containers.record import Container, ExitStatus, RunState
from fleet.containers.recovery import Step, decide
from fleet.containers.runs import boot_id
from fleet.node_runtime.events import ContainerState, SupervisorRestarted

NOW = datetime(2026, 1, 1, tzinfo=UTC)
APP = ContainerConfig(image="app")


def seen(status: str, code: int | None = None) -> Any:
    return ContainerState("c", status, 9, NOW, code, False, NOW)  # type: ignore[arg-type]


def record(status: Status = Status.CREATED, *, starting: str = "") -> Container:
    return Container(
        id="c",
        name="c",
        created_at=NOW,
        config=APP,
        image_id="i",
        state=RunState(status=status, starting_boot=starting),
    )


@pytest.mark.parametrize(
    ("known", "listed", "step", "code"),
    [
        (record(Status.RUNNING), seen("running"), Step.ADOPT, None),
        (record(Status.RUNNING), seen("paused"), Step.ADOPT, None),
        (record(Status.RUNNING), seen("exited", 4), Step.END, 4),
        (record(Status.RUNNING), seen("exited", None), Step.END, 255),
        (record(Status.RUNNING), None, Step.END, 255),
        (record(starting="b"), seen("running"), Step.ADOPT, None),
        (record(starting="b"), seen("exited", 0), Step.END, 0),
        (record(starting="b"), None, Step.UNSTART, None),
        (record(starting="before the power cut"), None, Step.END, 255),
        (record(), None, Step.KEEP, None),
        (record(), seen("running"), Step.ADOPT, None),
        (record(Status.EXITED), seen("exited", 4), Step.KEEP, None),
        (record(Status.REMOVING), seen("running"), Step.FINISH_REMOVAL, None),
        (record(Status.REMOVING), None, Step.FINISH_REMOVAL, None),
    ],
)
def test_one_decision_for_each_pair_of_record_and_reality(
    known: Container, listed: Any, step: Step, code: int | None
) -> None:
    decision = decide(known, listed, boot_id="b")
    assert decision.step is step
    assert (decision.exit.code if decision.exit else None) == code


def two_engines(host: Any, before: Any, after: Any) -> None:
    """``before`` with one engine, which is then lost without a word; ``after`` with the next one, recovered."""

    async def main() -> None:
        async with asyncio.timeout(20):
            async with host.opened() as engine:
                value = await before(engine)
            async with host.opened() as engine:
                await after(engine, value, await engine.recover())

    asyncio.run(main())


def test_running_containers_are_adopted_with_everything_known(host: Any) -> None:
    async def before(engine: Any) -> str:
        made = await engine.create(ContainerConfig(image="app", name="web", files=(FileMount(target="/s", data=b"x"),)))
        await engine.start(made.id)
        return str(made.id)

    async def after(engine: Any, key: str, _recovered: Any) -> None:
        assert engine.get("web").state.status is Status.RUNNING
        waiting = asyncio.create_task(engine.wait(key))
        await asyncio.sleep(0.01)
        host.runtime.end(key, 5)
        assert (await waiting).code == 5

    two_engines(host, before, after)


def test_an_exit_nobody_was_there_for_is_recorded_and_released(host: Any) -> None:
    async def before(engine: Any) -> str:
        made = await engine.create(APP)
        await engine.start(made.id)
        await engine.close()
        host.runtime.end(made.id, 9)
        return str(made.id)

    async def after(engine: Any, key: str, recovered: Any) -> None:
        assert engine.get(key).state.exit.code == 9
        assert recovered.ended == (key,)
        async with asyncio.timeout(2):
            while host.runtime.runs or host.network.open:
                await asyncio.sleep(0.005)

    two_engines(host, before, after)


def test_addresses_of_a_change_that_was_cut_short_behind_the_kernel_are_recorded(host: Any) -> None:
    async def before(engine: Any) -> str:
        made = await engine.create(APP)
        await engine.start(made.id)
        entry = engine._core.find(made.id)
        assert entry.record.networks
        entry.change(networks=())  # killed after the card was there, before its address was written down
        await engine._core.save(entry)
        return str(made.id)

    async def after(engine: Any, key: str, recovered: Any) -> None:
        assert [card.address for card in engine.get(key).networks] == ["172.17.0.2"]
        assert any("finished the change of its networks" in note for note in recovered.notes)

    two_engines(host, before, after)


def test_what_no_record_knows_is_removed(host: Any) -> None:
    async def before(engine: Any) -> None:
        made = await engine.create(ContainerConfig(image="app", files=(FileMount(target="/s", data=b"x"),)))
        await engine.start(made.id)
        await engine.close()
        engine._core.records.discard(made.id)  # a crash in the middle of a removal
        (host.root / "data/containers/.new-half").mkdir()

    async def after(engine: Any, _value: None, recovered: Any) -> None:
        assert not engine.list()
        assert len(recovered.removed) == 1
        assert not host.runtime.runs and not host.network.open
        assert not [*(host.root / "exec/files").iterdir()]
        assert not [*(host.root / "data/containers").iterdir()] and not [*(host.root / "data/trash").iterdir()]

    two_engines(host, before, after)


def test_an_interrupted_removal_is_finished(host: Any) -> None:
    async def before(engine: Any) -> None:
        made = await engine.create(APP)
        await engine.start(made.id)
        entry = engine._core.find(made.id)
        entry.change_state(status=Status.REMOVING)
        await engine._core.save(entry)

    async def after(engine: Any, _value: None, _recovered: Any) -> None:
        assert not engine.list() and not host.runtime.runs and not host.network.open

    two_engines(host, before, after)


def test_a_start_that_never_reached_the_supervisor_is_taken_back(host: Any) -> None:
    async def before(engine: Any) -> str:
        made = await engine.create(APP)
        entry = engine._core.find(made.id)
        entry.change_state(starting_boot=boot_id())
        await engine._core.save(entry)
        return str(made.id)

    async def after(engine: Any, key: str, _recovered: Any) -> None:
        assert engine.get(key).state.status is Status.CREATED
        assert await engine.start(key)

    two_engines(host, before, after)


def test_after_a_power_cut_restart_rules_decide(host: Any) -> None:
    async def before(engine: Any) -> list[str]:
        keys = []
        for rule in (RestartName.NO, RestartName.ALWAYS, RestartName.UNLESS_STOPPED):
            made = await engine.create(ContainerConfig(image="app", restart=RestartRule(name=rule)))
            await engine.start(made.id)
            keys.append(made.id)
        await asyncio.sleep(0.05)
        await engine.close()
        host.runtime.runs.clear()
        host.network.open.clear()
        return keys

    async def after(engine: Any, keys: list[str], _recovered: Any) -> None:
        async with asyncio.timeout(5):
            while [engine.get(key).state.status for key in keys] != [Status.EXITED, Status.RUNNING, Status.RUNNING]:
                await asyncio.sleep(0.005)
        assert engine.get(keys[0]).state.exit.code == 255

    two_engines(host, before, after)


def test_a_supervisor_that_lost_a_container_is_noticed_without_restarting_the_engine(host: Any) -> None:
    async def story(engine: Any) -> None:
        await asyncio.sleep(0.01)
        made = await engine.create(APP)
        await engine.start(made.id)
        waiting = asyncio.create_task(engine.wait(made.id))
        await asyncio.sleep(0.01)
        host.runtime.runs.clear()
        host.runtime.tell(SupervisorRestarted(1))
        status = await waiting
        assert (status.code, status.error != "") == (255, True)

    host.run(story)


def test_recovering_twice_changes_nothing(host: Any) -> None:
    async def before(engine: Any) -> str:
        made = await engine.create(APP)
        await engine.start(made.id)
        return str(made.id)

    async def after(engine: Any, key: str, _recovered: Any) -> None:
        known = engine.get(key)
        again = await engine.recover()
        assert engine.get(key) == known
        assert not again.notes and not again.ended and not again.removed

    two_engines(host, before, after)


def test_a_damaged_record_is_left_alone_and_does_not_stop_the_rest(host: Any) -> None:
    async def before(engine: Any) -> tuple[str, str]:
        good, bad = await engine.create(APP), await engine.create(APP)
        path = engine.directory(bad.id) / "config.json"
        path.write_bytes(path.read_bytes()[:-10])
        return good.id, bad.id

    async def after(engine: Any, keys: tuple[str, str], _recovered: Any) -> None:
        assert [c.id for c in engine.list()] == [keys[0]]
        assert (engine.directory(keys[1]) / "upper").is_dir()

    two_engines(host, before, after)


def test_records_read_back_as_they_were_written(host: Any) -> None:
    async def before(engine: Any) -> Container:
        made = await engine.create(ContainerConfig(image="app", env=("A=ü\n",), labels={"a": "b"}))
        entry = engine._core.find(made.id)
        entry.change_state(exit=ExitStatus(code=3, finished_at=NOW), status=Status.EXITED)
        await engine._core.save(entry)
        return entry.record

    async def after(engine: Any, known: Container, _recovered: Any) -> None:
        assert engine.get(known.id) == known
        assert msgspec.json.encode(engine.get(known.id)) == msgspec.json.encode(known)

    two_engines(host, before, after)


def test_an_exit_between_the_list_and_the_adoption_is_not_lost(host: Any) -> None:
    async def before(engine: Any) -> str:
        made = await engine.create(APP)
        await engine.start(made.id)
        entry = engine._core.find(made.id)  # as if it had been killed before the record said "running"
        await asyncio.sleep(0.05)
        entry.change_state(status=Status.CREATED, starting_boot=boot_id())
        await engine._core.save(entry)
        real_list = host.runtime.list

        async def list_then_exit() -> Any:
            host.runtime.list = real_list
            listed = await real_list()
            host.runtime.end(made.id, 6)
            await asyncio.sleep(0.01)  # the exit is told before the list is acted upon
            return listed

        host.runtime.list = list_then_exit
        return str(made.id)

    async def after(engine: Any, key: str, _recovered: Any) -> None:
        assert (await engine.wait(key)).code == 6
        assert engine.get(key).state.status is Status.EXITED

    two_engines(host, before, after)


def test_a_stop_of_what_ended_unheard_takes_the_exit_from_the_list(host: Any) -> None:
    async def story(engine: Any) -> None:
        made = await engine.create(APP)
        await engine.start(made.id)
        run = host.runtime.runs[made.id]
        run.status, run.exit_code = "exited", 3  # and nobody was told
        assert await engine.stop(made.id)
        assert engine.get(made.id).state.exit.code == 3
        gone = await engine.create(APP)
        await engine.start(gone.id)
        host.runtime.runs.clear()
        await engine.remove(gone.id, force=True)

    host.run(story)
