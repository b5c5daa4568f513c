"""Further processes in running containers: ``docker exec`` and health probes. Nothing of this outlives the engine but
the processes.
"""

from __future__ import annotations

import asyncio
import os
import termios
from typing import Final

import msgspec

from fleet.containers import assemble
from fleet.containers.attach import Attachment
from fleet.containers.config import ContainerConfig
from fleet.containers.core import Core
from fleet.containers.entry import Entry
from fleet.containers.events import Action
from fleet.containers.health import OUTPUT_MAX, ProbeOutcome
from fleet.containers.names import new_container_id
from fleet.containers.record import UNKNOWN_EXIT
from fleet.errors import ConflictError, FleetError, NotFoundError, RuntimeFault, UserError
from fleet.model.wire import Value
from fleet.node_runtime.events import ExecStarted
from fleet.node_runtime.spec import ProcessSpec

__all__ = ["ExecConfig", "Execs", "ExecSession"]

_SESSIONS_MAX: Final = 1000
"""Finished sessions are dropped, oldest first, beyond this many."""


class ExecConfig(Value, frozen=True, kw_only=True):
    """What to run; empty fields are the container's own."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    tty: bool = False
    privileged: bool = False
    attach_stdin: bool = False
    attach_stdout: bool = True
    attach_stderr: bool = True
    detach_keys: str = ""


class ExecSession(Value, frozen=True, kw_only=True):
    """One exec. ``exit_code`` is None until it ended."""

    id: str
    container_id: str
    config: ExecConfig
    running: bool = False
    pid: int = 0
    exit_code: int | None = None


class Execs:
    """Sessions of one engine."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._sessions: dict[str, ExecSession] = {}
        self._endings: dict[str, asyncio.Task[None]] = {}
        self._runtime_ids: dict[str, str] = {}
        self._terminals: dict[str, int] = {}

    def create(self, entry: Entry, config: ExecConfig) -> str:
        """Note an exec to be started; its id. Raises ``ConflictError`` when the container does not run or is paused."""
        if not config.args or not config.args[0]:
            raise UserError("no exec command specified")
        self._check_running(entry)
        finished = [key for key, session in self._sessions.items() if session.exit_code is not None]
        for key in finished[: max(0, len(self._sessions) - _SESSIONS_MAX + 1)]:
            del self._sessions[key]
        if len(self._sessions) >= _SESSIONS_MAX:
            raise ConflictError(f"{_SESSIONS_MAX} exec sessions are waiting or running already")
        session = ExecSession(id=new_container_id(), container_id=entry.id, config=config)
        self._sessions[session.id] = session
        self._core.emit(Action.EXEC_CREATE, entry.record, execID=session.id)
        return session.id

    def inspect(self, exec_id: str) -> ExecSession:
        """Raises ``NotFoundError``."""
        try:
            return self._sessions[exec_id]
        except KeyError:
            raise NotFoundError(f"No such exec instance: {exec_id}") from None

    def check_startable(self, exec_id: str) -> None:
        """Raises ``NotFoundError``, or ``ConflictError`` when it was started before or its container does not run."""
        session = self.inspect(exec_id)
        if session.running or session.exit_code is not None:
            raise ConflictError(f"exec instance {exec_id} has already run")
        self._check_running(self._core.find(session.container_id))

    async def start(
        self, exec_id: str, *, stdin_fd: int | None = None, stdout_fd: int | None = None, stderr_fd: int | None = None
    ) -> ExecStarted:
        """Run it with the given descriptors (the caller closes its copies). With a terminal none is used, and the result's
        ``terminal_fd`` belongs to the caller. Raises ``ConflictError`` when it was
        started before.
        """
        self.check_startable(exec_id)
        session = self.inspect(exec_id)
        entry = self._core.find(session.container_id)
        self._sessions[exec_id] = msgspec.structs.replace(session, running=True)
        try:
            started = await self._core.runtime.exec(
                entry.id,
                process_of(entry, session.config),
                stdin_fd=stdin_fd,
                stdout_fd=stdout_fd,
                stderr_fd=stderr_fd,
                tty=session.config.tty,
                privileged=session.config.privileged,
                seccomp=assemble.seccomp_of(entry.record.config),
            )
        except FleetError as cause:
            code = getattr(cause, "container_exit_code", 128)
            self._sessions[exec_id] = msgspec.structs.replace(session, running=False, exit_code=code)
            raise
        session = msgspec.structs.replace(session, running=True, pid=started.pid)
        self._sessions[exec_id] = session
        self._core.emit(Action.EXEC_START, entry.record, execID=exec_id)
        ending = self._core.spawn(self._await_end(entry, exec_id, started.exec_id), what=f"exec {exec_id[:12]}")
        self._endings[exec_id] = ending
        self._runtime_ids[exec_id] = started.exec_id
        return started

    async def start_detached(self, exec_id: str) -> None:
        """Start it without anybody to talk with; a terminal's output is read and thrown away."""
        started = await self.start(exec_id)
        if started.terminal_fd is None:
            return
        talk = Attachment({started.terminal_fd: None})

        async def drain() -> None:
            try:
                while await talk.read():
                    pass
            finally:
                talk.close()

        self._core.spawn(drain(), what=f"output of exec {exec_id[:12]}")

    async def attach(self, exec_id: str) -> Attachment:
        """Start it and talk with it. Close the attachment; the process goes on until it ends."""
        config = self.inspect(exec_id).config
        if config.tty:
            started = await self.start(exec_id)
            assert started.terminal_fd is not None
            self._terminals[exec_id] = os.dup(started.terminal_fd)
            talk = Attachment({started.terminal_fd: None}, stdin_fd=os.dup(started.terminal_fd))
        else:
            pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
            (stdin_r, stdin_w), (stdout_r, stdout_w), (stderr_r, stderr_w) = pipes
            try:
                await self.start(exec_id, stdin_fd=stdin_r, stdout_fd=stdout_w, stderr_fd=stderr_w)
            except BaseException:
                for fd in (stdin_w, stdout_r, stderr_r):
                    os.close(fd)
                raise
            finally:
                for fd in (stdin_r, stdout_w, stderr_w):
                    os.close(fd)
            if not config.attach_stdin:
                os.close(stdin_w)
            talk = Attachment(
                {stdout_r: "stdout", stderr_r: "stderr"}, stdin_fd=stdin_w if config.attach_stdin else None
            )
        ending = self._endings.get(exec_id)
        if ending is None:
            talk.end()
        else:
            ending.add_done_callback(lambda _task: talk.end())
        return talk

    def resize(self, exec_id: str, *, rows: int, columns: int) -> None:
        """Set the size of its terminal. Raises ``ConflictError`` when it has none or has ended."""
        terminal = self._terminals.get(exec_id)
        if terminal is None:
            raise ConflictError(f"exec instance {exec_id} has no terminal")
        termios.tcsetwinsize(terminal, (rows, columns))

    async def signal(self, exec_id: str, number: int) -> None:
        """Send to a running exec. Raises ``NotFoundError`` when it has ended."""
        runtime_id = self._runtime_ids.get(exec_id)
        if runtime_id is None:
            raise NotFoundError(f"exec instance {exec_id} is not running")
        await self._core.runtime.signal_exec(runtime_id, number)

    async def wait(self, exec_id: str) -> int:
        """The exit code, once it ended."""
        ending = self._endings.get(exec_id)
        if ending is not None:
            await asyncio.shield(ending)
        code = self.inspect(exec_id).exit_code
        return 128 if code is None else code

    def forget_container(self, container_id: str) -> None:
        """Its container ended, and every process with it; sessions never started go away."""
        for key, session in list(self._sessions.items()):
            if session.container_id == container_id and not session.running and session.exit_code is None:
                del self._sessions[key]

    async def probe(self, entry: Entry, args: tuple[str, ...], timeout_s: float) -> ProbeOutcome:
        """Run a health probe: exit code and the first bytes of what it wrote. A probe beyond its time is killed."""
        try:
            code, output = await self._core.runtime.exec_capture(
                entry.id, process_of(entry, ExecConfig(args=args)), timeout_s=timeout_s, output_bytes_max=OUTPUT_MAX
            )
        except TimeoutError:
            return ProbeOutcome(-1, f"Health check exceeded timeout ({timeout_s:g}s)")
        return ProbeOutcome(code, output.decode("utf-8", "replace"))

    async def _await_end(self, entry: Entry, exec_id: str, runtime_id: str) -> None:
        try:
            code = await self._core.runtime.wait_exec(runtime_id)
        except RuntimeFault:
            code = UNKNOWN_EXIT  # the supervisor was replaced meanwhile, and nobody saw the end
        finally:
            self._endings.pop(exec_id, None)
            self._runtime_ids.pop(exec_id, None)
            terminal = self._terminals.pop(exec_id, None)
            if terminal is not None:
                os.close(terminal)
        self._sessions[exec_id] = msgspec.structs.replace(self._sessions[exec_id], running=False, exit_code=code)
        self._core.emit(Action.EXEC_DIE, entry.record, execID=exec_id, exitCode=str(code))

    @staticmethod
    def _check_running(entry: Entry) -> None:
        if not entry.record.is_up:
            raise ConflictError(f"container {entry.id} is not running")
        if entry.record.state.status == "paused":
            raise ConflictError(f"Container {entry.record.name} is paused, unpause the container before exec")


def process_of(entry: Entry, config: ExecConfig) -> ProcessSpec:
    """The process to join, with what the container's own process has where the request says nothing."""
    own = assemble.plan_process(entry.record)
    container: ContainerConfig = entry.record.config
    privileged = config.privileged or container.privileged
    return ProcessSpec(
        args=config.args,
        env=assemble.merge_env(own.env, (*(("TERM=xterm",) if config.tty else ()), *config.env)),
        cwd=config.working_dir or own.cwd,
        user=config.user or own.user,
        additional_groups=own.additional_groups,
        tty=config.tty,
        capabilities=assemble.plan_capabilities(add=(), drop=(), privileged=True) if privileged else own.capabilities,
        no_new_privileges=own.no_new_privileges,
        apparmor=own.apparmor,
        rlimits=own.rlimits,
        oom_score_adj=own.oom_score_adj,
    )
