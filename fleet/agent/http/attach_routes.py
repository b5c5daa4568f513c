"""Attach, exec and resize: translate, call the engine, pump bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from fastapi import APIRouter, Request, Response

from fleet.agent.http.container_body import Words, words_of
from fleet.agent.http.hijack import Connection, Hijacked
from fleet.agent.http.streams import MULTIPLEXED, RAW, both_ways, log_body
from fleet.api.http import json_response, parse_bool, read_struct
from fleet.containers import Attachment, ContainerEngine, ExecConfig
from fleet.containers.attach import frame
from fleet.errors import FleetError, UserError
from fleet.model.wire import Value

__all__ = ["ExecBody", "StartBody", "Talker", "attach_routes", "exec_routes", "talk_exec"]


class Talker(Protocol):
    """Who is at the other end of an exec: bytes both ways. See ``Connection``."""

    async def receive(self) -> bytes: ...

    async def send(self, data: bytes) -> None: ...

    async def wait_lost(self) -> None: ...


class ExecBody(Value, frozen=True, kw_only=True):
    """The body of ``POST /containers/{id}/exec``."""

    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    tty: bool = False
    cmd: Words | None = None
    env: tuple[str, ...] = ()
    privileged: bool = False
    user: str = ""
    working_dir: str = ""


class StartBody(Value, frozen=True, kw_only=True):
    """The body of ``POST /exec/{id}/start``."""

    detach: bool = False
    tty: bool = False


def attach_routes(engine: ContainerEngine) -> APIRouter:
    """The router of attach, exec and resize."""
    router = APIRouter()
    _add_attach(router, engine)
    router.include_router(exec_routes(engine))
    return router


def _add_attach(router: APIRouter, engine: ContainerEngine) -> None:
    @router.post("/containers/{name}/attach")
    async def attach(name: str, request: Request) -> Response:
        query = request.query_params
        container = engine.get(name)
        stream = parse_bool(query.get("stream"))
        wanted = {kind: parse_bool(query.get(kind)) for kind in ("stdin", "stdout", "stderr")}
        since = datetime.now(UTC)
        talk = await engine.attach(name, stdin=wanted["stdin"]) if stream else None

        async def run(connection: Connection) -> None:
            try:
                if parse_bool(query.get("logs")):
                    lines = engine.logs(container.id, stdout=wanted["stdout"], stderr=wanted["stderr"], until=since)
                    async for piece in log_body(lines, multiplexed=not container.config.tty, timestamps=False):
                        await connection.send(piece)
                if talk is not None:
                    await pump(connection, talk, keep=None if container.config.tty else _filter(wanted))
            finally:
                if talk is not None:
                    talk.close()

        try:
            return Hijacked(request, run, content_type=RAW if container.config.tty else MULTIPLEXED)
        except BaseException:
            if talk is not None:
                talk.close()
            raise

    @router.post("/containers/{name}/resize")
    async def resize(name: str, request: Request) -> Response:
        rows, columns = _size(request)
        await engine.resize(name, rows=rows, columns=columns)
        return Response(status_code=200)


def exec_routes(engine: ContainerEngine) -> APIRouter:
    """Those of exec alone."""
    router = APIRouter()

    @router.post("/containers/{name}/exec")
    async def create(name: str, request: Request) -> Response:
        body = await read_struct(request, ExecBody, what="exec")
        config = ExecConfig(
            args=words_of(body.cmd),
            env=body.env,
            working_dir=body.working_dir,
            user=body.user,
            tty=body.tty,
            privileged=body.privileged,
            attach_stdin=body.attach_stdin,
            attach_stdout=body.attach_stdout,
            attach_stderr=body.attach_stderr,
        )
        return json_response({"Id": engine.exec_create(name, config)}, status=201)

    @router.post("/exec/{exec_id}/start")
    async def start(exec_id: str, request: Request) -> Response:
        body = await read_struct(request, StartBody, what="exec start")
        session = engine.execs.inspect(exec_id)
        if body.detach:
            await engine.execs.start_detached(exec_id)
            return Response(status_code=200)
        engine.execs.check_startable(exec_id)

        async def run(connection: Connection) -> None:
            await talk_exec(engine, exec_id, connection)

        return Hijacked(request, run, content_type=RAW if session.config.tty else MULTIPLEXED)

    @router.get("/exec/{exec_id}/json")
    async def inspect(exec_id: str) -> Response:
        session = engine.execs.inspect(exec_id)
        config = session.config
        return json_response(
            {
                "ID": session.id,
                "ContainerID": session.container_id,
                "Running": session.running,
                "ExitCode": session.exit_code,
                "Pid": session.pid,
                "OpenStdin": config.attach_stdin,
                "OpenStdout": config.attach_stdout,
                "OpenStderr": config.attach_stderr,
                "CanRemove": False,
                "DetachKeys": None,
                "ProcessConfig": {
                    "tty": config.tty,
                    "entrypoint": config.args[0],
                    "arguments": list(config.args[1:]),
                    "privileged": config.privileged,
                    "user": config.user,
                },
            }
        )

    @router.post("/exec/{exec_id}/resize")
    async def resize(exec_id: str, request: Request) -> Response:
        rows, columns = _size(request)
        engine.execs.resize(exec_id, rows=rows, columns=columns)
        return Response(status_code=200)

    return router


async def talk_exec(engine: ContainerEngine, exec_id: str, connection: Talker) -> None:
    """Start the session and be its streams until it has ended, or the other side has gone."""
    try:
        talk = await engine.execs.attach(exec_id)
    except FleetError as cause:  # as Docker: the stream says why, the exit code (126, 127) is in the inspection
        text = f"{cause}\r\n".encode()
        await connection.send(text if engine.execs.inspect(exec_id).config.tty else frame("stderr", text))
        return
    try:
        await pump(connection, talk, keep=None)
        # Clients ask for the exit code as soon as the connection closes, so it closes when that is known.
        ending = asyncio.ensure_future(engine.execs.wait(exec_id))
        leaving = asyncio.ensure_future(connection.wait_lost())
        await asyncio.wait((ending, leaving), return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        leaving.cancel()
    finally:
        talk.close()


async def pump(connection: Talker, talk: Attachment, *, keep: Callable[[bytes], bytes] | None) -> None:
    """Bytes both ways until the output ends or the client leaves. The client's end of input becomes the process's."""

    async def outwards() -> None:
        while piece := await talk.read():
            kept = keep(piece) if keep else piece
            if kept:
                await connection.send(kept)

    async def inwards() -> None:
        with contextlib.suppress(BrokenPipeError, UserError):  # it reads no more, or never did
            while data := await connection.receive():
                await talk.write(data)
        talk.close_stdin()
        while await connection.receive():
            pass
        await connection.wait_lost()

    await both_ways(outwards(), inwards())


def _filter(wanted: dict[str, bool]) -> Callable[[bytes], bytes] | None:
    """Lets frames of the wanted streams through; pieces may be cut anywhere."""
    if wanted["stdout"] and wanted["stderr"]:
        return None
    allowed = {1: wanted["stdout"], 2: wanted["stderr"]}
    buffer = bytearray()

    def keep(piece: bytes) -> bytes:
        buffer.extend(piece)
        result = bytearray()
        while len(buffer) >= 8:
            end = 8 + int.from_bytes(buffer[4:8], "big")
            if len(buffer) < end:
                break
            if allowed.get(buffer[0]):
                result += buffer[:end]
            del buffer[:end]
        return bytes(result)

    return keep


def _size(request: Request) -> tuple[int, int]:
    values: list[Any] = [request.query_params.get(key, "") for key in ("h", "w")]
    if not all(value.isdigit() and int(value) <= 65535 for value in values):
        raise UserError("resize: h and w must be whole numbers up to 65535")
    return int(values[0]), int(values[1])
