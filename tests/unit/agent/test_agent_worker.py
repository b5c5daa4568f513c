"""Assignment sets, the reports they cause, and what is kept on disk."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import pytest
from support.objects import make_task

from fleet.agent.controller import Exit, Progress
from fleet.agent.dialer import Connection
from fleet.agent.local_state import LocalState
from fleet.agent.network_sync import NetworkSync
from fleet.agent.reporter import Reporter
from fleet.agent.session import Session
from fleet.agent.worker import OutOfStepError, Worker
from fleet.api import dispatch
from fleet.clock import SystemClock
from fleet.errors import UnavailableError
from fleet.model.ids import LoginId, SecretId, TaskId
from fleet.model.node import NodeDescription
from fleet.model.task import ContainerStatus, Task, TaskState, TaskStatus
from fleet.network.topology import NetworkSpec, NetworkState, PublishedPort


class Host:
    """Containers that start at once and run until stopped."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.removed: list[str] = []

    async def fetch_data(self, task: Task, progress: Progress) -> None:
        progress("copied data", True)

    async def prepare(self, task: Task) -> str:
        return f"c-{task.id}"

    async def start(self, task: Task) -> ContainerStatus:
        self.running.add(task.id)
        return ContainerStatus(container_id=f"c-{task.id}", pid=1)

    async def wait_healthy(self, task: Task) -> bool:
        return True

    async def watch(self, task: Task) -> Exit:
        await asyncio.Event().wait()
        raise AssertionError

    async def stop(self, task: Task) -> Exit | None:
        self.running.discard(task.id)
        return Exit(code=0)

    async def remove(self, task: Task) -> None:
        self.removed.append(task.id)


class NoNetwork:
    async def ensure_network(self, network: NetworkSpec) -> None: ...
    async def remove_network(self, network_id: str) -> None: ...
    async def apply_state(self, state: NetworkState) -> None: ...
    async def apply_published(self, ports: tuple[PublishedPort, ...]) -> None: ...


def make_worker(folder: Path, host: Host, reporter: Reporter) -> Worker:
    clock = SystemClock()
    return Worker(
        runtime=lambda _worker: host,
        network_sync=NetworkSync(NoNetwork(), clock),
        reporter=reporter,
        local_state=LocalState(folder),
        clock=clock,
    )


def assigned(task_id: str) -> dispatch.TaskItem:
    return dispatch.TaskItem(task=make_task(task_id, node_id="n1", state=TaskState.ASSIGNED))


async def until(condition: object, *, deadline_s: float = 5) -> None:
    assert callable(condition)
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.002)


def test_tasks_come_change_and_go_with_the_set(tmp_path: Path) -> None:
    async def main() -> None:
        host = Host()
        worker = make_worker(tmp_path, host, Reporter(SystemClock()))
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0.05)
        worker.apply(dispatch.Assign(complete=True, results_in=4, items=(assigned("a"), assigned("b"))))
        await until(lambda: host.running == {"a", "b"})
        stopped = dispatch.TaskItem(task=msgspec.structs.replace(assigned("a").task, desired_state=TaskState.SHUTDOWN))
        worker.apply(dispatch.Assign(applies_to=4, results_in=5, items=(stopped,), removed=("task/b",)))
        await until(lambda: host.running == set() and host.removed == ["b"])
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_an_increment_that_does_not_follow_is_refused_whole(tmp_path: Path) -> None:
    async def main() -> None:
        host = Host()
        worker = make_worker(tmp_path, host, Reporter(SystemClock()))
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0.05)
        worker.apply(dispatch.Assign(complete=True, results_in=1))
        with pytest.raises(OutOfStepError):
            worker.apply(dispatch.Assign(applies_to=2, results_in=3, items=(assigned("a"),)))
        assert worker.task("a") is None
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_without_a_manager_the_next_daemon_takes_up_what_was_kept(tmp_path: Path) -> None:
    async def main() -> None:
        first = make_worker(tmp_path, Host(), Reporter(SystemClock()))
        running = asyncio.create_task(first.run())
        await asyncio.sleep(0.05)
        secret = dispatch.SecretItem(secret_id=SecretId("s"), data=b"hidden")
        login = dispatch.LoginItem(login_id=LoginId("l"), header="hidden")
        first.apply(dispatch.Assign(complete=True, results_in=1, items=(assigned("a"), secret, login)))
        assert first.login("l") is login
        await until(lambda: any(b"running" in p.read_bytes() for p in tmp_path.glob("*.msgpack")))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert not any(b"hidden" in p.read_bytes() for p in tmp_path.iterdir())

        host = Host()
        second = make_worker(tmp_path, host, Reporter(SystemClock()))
        running = asyncio.create_task(second.run())
        await until(lambda: second.task("a") is not None)
        with pytest.raises(UnavailableError, match="login l is not here yet"):
            second.login("l")
        await asyncio.sleep(0.05)
        assert host.running == set(), "a running task is watched, not started again"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_a_worker_is_ready_for_assignments_once_what_was_kept_is_taken_up(tmp_path: Path) -> None:
    """A slow disk must not let the manager's set be replaced by the older one from the file."""

    class SlowDisk(LocalState):
        read = threading.Event()

        def load(self) -> tuple[list[dispatch.Item], dict[TaskId, TaskStatus]]:
            assert self.read.wait(20)
            return super().load()

    async def main() -> None:
        clock, disk = SystemClock(), SlowDisk(tmp_path)
        reporter = Reporter(clock)
        worker = Worker(
            runtime=lambda _worker: Host(),
            network_sync=NetworkSync(NoNetwork(), clock),
            reporter=reporter,
            local_state=disk,
            clock=clock,
        )
        dialled: list[str] = []

        def dial(address: str) -> AbstractAsyncContextManager[Connection]:
            dialled.append(address)
            raise ConnectionRefusedError(address)

        session = Session(
            worker=worker,
            reporter=reporter,
            clock=clock,
            dial=dial,
            managers=["m1:1"],
            managers_changed=lambda _: None,
            trust_changed=lambda _: None,
            hello=lambda: dispatch.Hello(description=NodeDescription(), address="10.0.0.1", cluster_port=1),
        )
        running = [asyncio.create_task(worker.run()), asyncio.create_task(session.run())]
        await asyncio.sleep(0.1)
        assert not dialled
        disk.read.set()
        await until(lambda: dialled)
        assert worker.ready.is_set()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    asyncio.run(main())


def test_a_kept_file_that_does_not_decode_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "assignments.msgpack").write_bytes(b"\x93garbage")
    assert LocalState(tmp_path).load() == ([], {})
    assert (tmp_path / "assignments.unreadable").exists()


def status(state: TaskState) -> TaskStatus:
    return make_task(state=state).status


def test_reports_are_coalesced_and_repeated_until_acknowledged() -> None:
    async def main() -> None:
        reporter = Reporter(SystemClock())
        sent: list[dispatch.Report] = []

        async def send(report: dispatch.Report) -> None:
            sent.append(report)

        running = asyncio.create_task(reporter.run(send))
        for state in (TaskState.ACCEPTED, TaskState.PREPARING, TaskState.RUNNING):
            reporter.note(TaskId("a"), status(state))
        await until(lambda: sent)
        assert [(r.task_id, r.status.state) for r in sent[0].tasks] == [("a", TaskState.RUNNING)]
        reporter.note(TaskId("b"), status(TaskState.RUNNING))
        await until(lambda: len(sent) == 2)
        reporter.acknowledge(sent[1].number)
        reporter.rewind()
        await until(lambda: len(sent) == 3)
        assert [r.task_id for r in sent[2].tasks] == ["a"], "only what was not acknowledged is said again"
        running.cancel()

    asyncio.run(main())


def test_a_newer_status_is_not_overwritten_by_a_rewind() -> None:
    async def main() -> None:
        reporter = Reporter(SystemClock())
        sent: list[dispatch.Report] = []

        async def send(report: dispatch.Report) -> None:
            sent.append(report)
            await asyncio.Event().wait()

        running = asyncio.create_task(reporter.run(send))
        reporter.note(TaskId("a"), status(TaskState.STARTING))
        await until(lambda: sent)
        running.cancel()
        reporter.note(TaskId("a"), status(TaskState.RUNNING))
        reporter.rewind()
        again = asyncio.create_task(reporter.run(send))
        await until(lambda: len(sent) == 2)
        assert [r.status.state for r in sent[1].tasks] == [TaskState.RUNNING]
        again.cancel()

    asyncio.run(main())
