"""``/containers``: translate, call the engine, answer."""

from __future__ import annotations

import asyncio
import pwd
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from fleet.agent.http.container_body import CreateBody, UpdateBody, config_of, limits_of, restart_of
from fleet.agent.http.container_filters import LIST_FILTERS, PRUNE_FILTERS, matches_labels, parse_moment, select
from fleet.agent.http.container_json import container_inspect, container_summary
from fleet.agent.http.networks import NetworkNames
from fleet.agent.http.older_clients import container_at
from fleet.agent.http.stats_json import host_cpu_ns, stats_json
from fleet.agent.http.streams import MULTIPLEXED, RAW, log_body, log_moment, log_tail
from fleet.api.http import json_response, parse_bool, parse_filters, read_struct, spoken_version
from fleet.containers import Container, ContainerEngine, Status, WaitCondition, without_root
from fleet.containers.changes import changes_of
from fleet.containers.logs import log_attributes
from fleet.containers.volumes import directory_size
from fleet.errors import ConflictError, NotFoundError, UnsupportedError, UserError
from fleet.images import ImageStore
from fleet.node_runtime.events import ContainerProcess

__all__ = ["container_routes"]

_CONDITIONS: Final[dict[str, WaitCondition]] = {
    "": "not-running",
    "not-running": "not-running",
    "next-exit": "next-exit",
    "removed": "removed",
}
_STATS_PERIOD_S: Final = 1.0
_TOP_TITLES: Final = ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD")


def container_routes(engine: ContainerEngine, images: ImageStore, networks: NetworkNames) -> APIRouter:
    """The router of everything below ``/containers``."""
    router = APIRouter()
    _add_looking(router, engine, images, networks)
    _add_making(router, engine, images, networks)
    _add_running(router, engine)
    _add_streams(router, engine)
    return router


def _add_looking(router: APIRouter, engine: ContainerEngine, images: ImageStore, networks: NetworkNames) -> None:
    def image_ids(text: str) -> set[str]:
        try:
            return {images.get(text).id}
        except NotFoundError:
            return set()

    def shown_name(container: Container) -> str:
        try:
            return (
                container.config.image
                if images.get(container.config.image).id == container.image_id
                else container.image_id
            )
        except NotFoundError:
            return container.image_id

    @router.get("/containers/json")
    async def ps(request: Request) -> Response:
        query = request.query_params
        filters = parse_filters(query.get("filters"), known=LIST_FILTERS)
        limit = int(query.get("limit") or 0) if (query.get("limit") or "0").lstrip("-").isdigit() else 0
        every = parse_bool(query.get("all")) or limit > 0 or bool({"status", "exited"} & filters.keys())
        found = [c for c in engine.list() if every or c.is_up or c.state.status is Status.RESTARTING]
        found = select(found, filters, image_ids=image_ids, find=engine.get)
        now = datetime.now(UTC)
        items = [
            container_summary(c, now=now, network_name=networks.name, image_name=shown_name(c))
            for c in (found[:limit] if limit > 0 else found)
        ]
        if parse_bool(query.get("size")):
            for item in items:
                item["SizeRw"], item["SizeRootFs"] = await _sizes(engine, images, engine.get(item["Id"]))
        return json_response(items)

    @router.get("/containers/{name}/json")
    async def inspect(name: str, request: Request) -> Response:
        container = engine.get(name)
        try:
            layer_dirs = images.get(container.image_id).layer_dirs
        except NotFoundError:
            layer_dirs = ()
        value = container_inspect(
            container,
            directory=engine.directory(container.id),
            network_name=networks.name,
            layer_dirs=layer_dirs,
        )
        if parse_bool(request.query_params.get("size")):
            value["SizeRw"], value["SizeRootFs"] = await _sizes(engine, images, container)
        return json_response(container_at(spoken_version(request), value))

    @router.get("/containers/{name}/changes")
    async def changes(name: str) -> Response:
        container = engine.get(name)
        found = await asyncio.to_thread(
            changes_of,
            engine.directory(container.id) / "upper",
            images.get(container.image_id).layer_dirs,
            owners_comparable=container.ids is None,
        )
        return json_response([{"Path": path, "Kind": int(kind)} for path, kind in found] or None)

    @router.get("/containers/{name}/top")
    async def top(name: str) -> Response:
        processes = await engine.processes(name)
        rows = [_process_row(process, datetime.now(UTC)) for process in processes]
        return json_response({"Titles": _TOP_TITLES, "Processes": rows})


def _add_making(router: APIRouter, engine: ContainerEngine, images: ImageStore, networks: NetworkNames) -> None:
    @router.post("/containers/create")
    async def create(request: Request) -> Response:
        body = await read_struct(request, CreateBody, what="container")
        if not body.image:
            raise UserError("config: no image specified")
        try:
            images.get(body.image)
        except NotFoundError:
            raise NotFoundError(f"No such image: {body.image}") from None  # on this text clients pull and try again
        config = await config_of(
            body, name=request.query_params.get("name", ""), networks=networks, free_port=free_port
        )
        container = await engine.create(config)
        warnings = without_root.warnings_of(config, engine.controllers) if engine.rootless else []
        return json_response({"Id": container.id, "Warnings": warnings}, status=201)

    @router.post("/containers/prune")
    async def prune(request: Request) -> Response:
        filters = parse_filters(request.query_params.get("filters"), known=PRUNE_FILTERS)
        until = parse_moment(next(iter(filters.get("until", ())), None), now=datetime.now(UTC))
        removed, freed_bytes = [], 0
        for container in engine.list():
            if container.state.status not in (Status.CREATED, Status.EXITED, Status.DEAD):
                continue
            if (until and container.created_at >= until) or not matches_labels(container.labels, filters):
                continue
            size_bytes = await asyncio.to_thread(directory_size, engine.directory(container.id) / "upper")
            try:
                await engine.remove(container.id)
            except (ConflictError, NotFoundError):
                continue  # started or removed meanwhile
            removed.append(container.id)
            freed_bytes += size_bytes
        return json_response({"ContainersDeleted": removed or None, "SpaceReclaimed": freed_bytes})

    @router.delete("/containers/{name}")
    async def remove(name: str, request: Request) -> Response:
        query = request.query_params
        if parse_bool(query.get("link")):
            raise UserError("links are not supported, so there is none to remove")
        await engine.remove(name, force=parse_bool(query.get("force")), volumes=parse_bool(query.get("v")))
        return Response(status_code=204)

    @router.post("/containers/{name}/rename")
    async def rename(name: str, request: Request) -> Response:
        await engine.rename(name, request.query_params.get("name", ""))
        return Response(status_code=204)

    @router.post("/containers/{name}/update")
    async def update(name: str, request: Request) -> Response:
        body = await read_struct(request, UpdateBody, what="update")
        container = engine.get(name)
        limits = limits_of(body, base=container.config.resources)
        await engine.update(
            name,
            resources=limits,
            restart=restart_of(body.restart_policy) if body.restart_policy and body.restart_policy.name else None,
        )
        discarded = without_root.discard_limits(limits, engine.controllers) if engine.rootless else []
        return json_response({"Warnings": discarded or None})


def _add_running(router: APIRouter, engine: ContainerEngine) -> None:
    @router.post("/containers/{name}/start")
    async def start(name: str) -> Response:
        return Response(status_code=204 if await engine.start(name) else 304)

    @router.post("/containers/{name}/stop")
    async def stop(name: str, request: Request) -> Response:
        query = request.query_params
        stopped = await engine.stop(name, grace_s=_seconds(query.get("t")), signal=query.get("signal") or None)
        return Response(status_code=204 if stopped else 304)

    @router.post("/containers/{name}/restart")
    async def restart(name: str, request: Request) -> Response:
        query = request.query_params
        await engine.restart(name, grace_s=_seconds(query.get("t")), signal=query.get("signal") or None)
        return Response(status_code=204)

    @router.post("/containers/{name}/kill")
    async def kill(name: str, request: Request) -> Response:
        await engine.kill(name, request.query_params.get("signal") or "SIGKILL")
        return Response(status_code=204)

    @router.post("/containers/{name}/pause")
    async def pause(name: str) -> Response:
        await engine.pause(name)
        return Response(status_code=204)

    @router.post("/containers/{name}/unpause")
    async def unpause(name: str) -> Response:
        await engine.unpause(name)
        return Response(status_code=204)

    @router.post("/containers/{name}/wait")
    async def wait(name: str, request: Request) -> Response:
        text = request.query_params.get("condition", "")
        condition = _CONDITIONS.get(text)
        if condition is None:
            raise UserError(f'invalid condition: "{text}": known are not-running, next-exit, removed')
        # Registered before the answer begins: a client that reads our headers may start the container right then.
        ending = asyncio.ensure_future(engine.wait(engine.get(name).id, condition))
        await asyncio.sleep(0)

        async def body() -> AsyncIterator[bytes]:
            try:
                status = await ending
            finally:
                ending.cancel()
            answer: dict[str, Any] = {"StatusCode": status.code}
            if status.error:
                answer["Error"] = {"Message": status.error}
            yield msgspec.json.encode(answer) + b"\n"

        return StreamingResponse(body(), media_type="application/json")


def _add_streams(router: APIRouter, engine: ContainerEngine) -> None:
    @router.get("/containers/{name}/logs")
    async def logs(name: str, request: Request) -> Response:
        query = request.query_params
        stdout, stderr = parse_bool(query.get("stdout")), parse_bool(query.get("stderr"))
        if not (stdout or stderr):
            raise UserError("Bad parameters: you must choose at least one stream")
        now = datetime.now(UTC)
        tail = log_tail(query.get("tail", "all"))
        container = engine.get(name)
        if container.config.log.driver == "none":
            raise UnsupportedError("configured logging driver does not support reading")
        lines = engine.logs(
            container.id,
            stdout=stdout,
            stderr=stderr,
            since=log_moment(query.get("since"), now=now),
            until=log_moment(query.get("until"), now=now),
            tail=tail,
            follow=parse_bool(query.get("follow")),
        )
        tty = container.config.tty
        details = log_attributes(container) if parse_bool(query.get("details")) else None
        return StreamingResponse(
            log_body(lines, multiplexed=not tty, timestamps=parse_bool(query.get("timestamps")), details=details),
            media_type=RAW if tty else MULTIPLEXED,
        )

    @router.get("/containers/{name}/stats")
    async def stats(name: str, request: Request) -> Response:
        query = request.query_params
        container_id = engine.get(name).id
        stream = parse_bool(query.get("stream"), default=True)

        async def read(previous: dict[str, Any] | None) -> dict[str, Any]:
            figures = await engine.stats(container_id)
            return stats_json(engine.get(container_id), figures, system_ns=host_cpu_ns(), previous=previous)

        if not stream:
            first = await read(None)
            if parse_bool(query.get("one-shot")) or not engine.get(container_id).is_up:
                return json_response(first)
            await asyncio.sleep(_STATS_PERIOD_S)  # two readings, so that the client can compute a rate
            return json_response(await read(first))

        async def body() -> AsyncIterator[bytes]:
            previous = None
            while True:
                try:
                    previous = await read(previous)
                except NotFoundError:
                    return  # removed while we looked
                yield msgspec.json.encode(previous) + b"\n"
                await asyncio.sleep(_STATS_PERIOD_S)

        return StreamingResponse(body(), media_type="application/json")


async def _sizes(engine: ContainerEngine, images: ImageStore, container: Container) -> tuple[int, int]:
    """(bytes of the writable layer, the same with the image's)."""
    own = await asyncio.to_thread(directory_size, engine.directory(container.id) / "upper")
    try:
        return own, own + images.get(container.image_id).size_bytes
    except NotFoundError:
        return own, own


def free_port(protocol: str) -> int:
    """A port that is free at this moment; whoever takes it first has it. SCTP ports are looked for as TCP's."""
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


def _seconds(text: str | None) -> float | None:
    """``t`` of stop and restart: whole seconds, -1 for ever; None leaves the container's own."""
    if text is None or text == "":
        return None
    try:
        return float(int(text))
    except ValueError:
        raise UserError(f"invalid timeout t={text!r}: give whole seconds") from None


def _process_row(process: ContainerProcess, now: datetime) -> list[str]:
    try:
        user = pwd.getpwuid(process.uid).pw_name
    except KeyError:
        user = str(process.uid)
    minutes, seconds = divmod(int(process.cpu_time_s), 60)
    hours, minutes = divmod(minutes, 60)
    start = process.start_time.astimezone()
    stime = f"{start:%H:%M}" if (now - process.start_time).days < 1 else f"{start:%b%d}"
    return [
        user,
        str(process.pid),
        str(process.parent_pid),
        "0",
        stime,
        "?",
        f"{hours:02}:{minutes:02}:{seconds:02}",
        process.command,
    ]
