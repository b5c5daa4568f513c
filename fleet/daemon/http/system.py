"""``/_ping``, ``/version``, ``/info``, ``/events``, ``/auth``, ``/system/df``."""

from __future__ import annotations

import os
import platform
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from fleet import __version__, errors
from fleet.agent.engine_facts import EngineFacts, backing_filesystem, read_engine_facts
from fleet.agent.http import NetworkNames
from fleet.agent.http.container_json import container_summary
from fleet.agent.http.older_clients import image_summary_at, info_at
from fleet.agent.http.volume_routes import volume_usage
from fleet.agent.node_facts import cpu_count, memory_total_bytes
from fleet.api.http import json_response, parse_filters, read_body, spoken_version
from fleet.api.render import swarm_json
from fleet.clock import Clock
from fleet.containers import cdi
from fleet.containers.engine import ContainerEngine
from fleet.containers.record import Status
from fleet.daemon.config import DaemonConfig
from fleet.daemon.events import EventLog, matches
from fleet.daemon.log_stream import parse_instant
from fleet.daemon.membership import Membership
from fleet.daemon.rootless.inside import Inside
from fleet.daemon.versions import API_VERSION_MAX, API_VERSION_MIN
from fleet.images import Credentials, ImageStore
from fleet.images.inspect import image_summary
from fleet.images.registry import check_login
from fleet.model.node import NodeRole
from fleet.node_runtime.cgroup_layout import NO_CGROUPS, layout_for

__all__ = ["system_routes"]

_EVENT_FILTERS: Final = frozenset(
    {
        "type",
        "event",
        "scope",
        "label",
        "image",
        "container",
        "service",
        "node",
        "network",
        "secret",
        "config",
        "volume",
        "daemon",
        "plugin",
    }
)


_FRESH_S: Final = 1.0
_USAGE_KINDS: Final = frozenset({"container", "image", "volume", "build-cache"})


class _Login(msgspec.Struct):
    """``AuthConfig`` of the engine API; its keys are lower case."""

    username: str = ""
    password: str = ""
    identitytoken: str = ""
    serveraddress: str = ""


def _usage_kinds(asked: list[str]) -> frozenset[str]:
    """What ``GET /system/df?type=`` asks for; all without. Raises ``UserError``."""
    unknown = set(asked) - _USAGE_KINDS
    if unknown:
        raise errors.UserError(f"unknown object type: {min(unknown)[:64]}: known are {', '.join(sorted(_USAGE_KINDS))}")
    return frozenset(asked) or _USAGE_KINDS


def _parse_login(body: bytes) -> _Login:
    try:
        return msgspec.json.decode(body or b"{}", type=_Login)
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise errors.UserError(f"login: {cause}") from cause


def system_routes(
    *,
    config: DaemonConfig,
    membership: Membership,
    engine: ContainerEngine,
    images: ImageStore,
    events: EventLog,
    clock: Clock,
) -> APIRouter:
    """The router."""
    routes = APIRouter()
    facts = _HostFacts(config, clock)
    told: tuple[object, bytes] = (None, b"")

    def line(event: dict[str, Any]) -> bytes:
        """Encoded once for all who listen: they are told one event after the other."""
        nonlocal told
        if told[0] is not event:
            told = event, msgspec.json.encode(event) + b"\n"
        return told[1]

    @routes.get("/_ping")
    @routes.head("/_ping")
    async def ping() -> Response:
        state = membership.state
        swarm = "inactive"
        if state is not None:
            swarm = "active/manager" if state.role is NodeRole.MANAGER else "active/worker"
        headers = {"Swarm": swarm, "Builder-Version": "", "Cache-Control": "no-cache, no-store, must-revalidate"}
        return Response("OK", media_type="text/plain", headers=headers)

    @routes.get("/version")
    async def version() -> Response:
        uname = os.uname()
        details = {
            "ApiVersion": API_VERSION_MAX,
            "Arch": _go_arch(uname.machine),
            "BuildTime": "",
            "Experimental": "false",
            "GitCommit": "",
            "GoVersion": "",
            "KernelVersion": uname.release,
            "MinAPIVersion": API_VERSION_MIN,
            "Os": "linux",
            "PythonVersion": platform.python_version(),
        }
        return json_response(
            {
                "Platform": {"Name": "fleet"},
                "Components": [{"Name": "Engine", "Version": __version__, "Details": details}],
                "Version": __version__,
                **details,
                "Experimental": False,
            }
        )

    @routes.get("/info")
    async def info(request: Request) -> Response:
        shown = _info(config, membership, engine, images, clock, host=facts) | {"NEventsListener": events.listeners}
        return json_response(info_at(spoken_version(request), shown))

    @routes.get("/events")
    async def stream_events(request: Request) -> Response:
        filters = parse_filters(request.query_params.get("filters"), known=_EVENT_FILTERS)
        first = request.query_params.get("since", "")
        since = datetime.fromtimestamp(0, UTC) if first == "0" else parse_instant(first, "since")
        until = parse_instant(request.query_params.get("until", ""), "until")

        async def lines() -> AsyncIterator[bytes]:
            async for event in events.stream(since=since, until=until):
                if matches(event, filters):
                    yield line(event)

        return StreamingResponse(lines(), media_type="application/json")

    @routes.post("/auth")
    async def auth(request: Request) -> Response:
        login = _parse_login(await read_body(request))
        who = Credentials(username=login.username, password=login.password, identity_token=login.identitytoken)
        if not who.username and not who.identity_token:
            raise errors.UserError("no credentials: a username and a password, or an identitytoken, are needed")
        token = await check_login(login.serveraddress, who, options=config.registry_options)
        return json_response({"Status": "Login Succeeded", "IdentityToken": token})

    @routes.get("/system/df")
    async def disk_usage(request: Request) -> Response:
        version = spoken_version(request)
        wanted = _usage_kinds(request.query_params.getlist("type") if version >= (1, 42) else [])
        containers, now, names = engine.list(), clock.now(), NetworkNames(engine)
        users = [container.image_id for container in containers]
        shown: dict[str, Any] = dict.fromkeys(("Images", "Containers", "Volumes", "BuildCache")) | {"LayersSize": 0}
        if "image" in wanted:
            shown["LayersSize"] = sum(image.size_bytes for image in images.list())
            shown["Images"] = [
                image_summary_at(version, image_summary(image, containers=users.count(image.id)))
                for image in images.list()
            ]
        if "container" in wanted:
            shown["Containers"] = [
                container_summary(c, now=now, network_name=names.name, image_name=c.image_name or c.image_id)
                for c in containers
            ]
        if "volume" in wanted:
            shown["Volumes"] = await volume_usage(engine)
        if "build-cache" in wanted:
            shown["BuildCache"] = []
        return json_response(shown)

    return routes


def _registry_config(config: DaemonConfig) -> dict[str, Any]:
    """How registries are reached, in Docker's shape."""
    mirrors = config.registry_options.mirrors
    networks = [item for item in config.insecure_registries if "/" in item]
    hosts = {item for item in config.insecure_registries if "/" not in item}
    return {
        "IndexConfigs": {
            name: {
                "Name": name,
                "Mirrors": [f"{url}/" for url in mirrors.get(name, ())],
                "Secure": name not in hosts,
                "Official": name == "docker.io",
            }
            for name in sorted({"docker.io", *mirrors, *hosts})
        },
        "AllowNondistributableArtifactsCIDRs": None,
        "AllowNondistributableArtifactsHostnames": None,
        "InsecureRegistryCIDRs": ["127.0.0.0/8", *networks],
        "Mirrors": [f"{url}/" for url in mirrors.get("docker.io", ())],
    }


def _go_arch(machine: str) -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _count(engine: ContainerEngine, *wanted: Status) -> int:
    return sum(1 for container in engine.list() if container.state.status in wanted)


class _HostFacts:
    """What the kernel offers and the file system of the data, read again when it is a second old: it is a dozen files, and most
    of the work of an answer."""

    def __init__(self, config: DaemonConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._read_at = float("-inf")
        self._known: tuple[EngineFacts, str] | None = None

    def read(self) -> tuple[EngineFacts, str]:
        now = self._clock.monotonic()
        if self._known is None or now - self._read_at >= _FRESH_S:
            config = self._config
            layout = layout_for(_cgroup_parent(config)) if config.rootless else None
            self._known = read_engine_facts(layout=layout), backing_filesystem(config.data_root)
            self._read_at = now
        return self._known


def _cgroup_parent(config: DaemonConfig) -> str:
    """Where a user's daemon has its groups."""
    return Inside(config.exec_root).cgroup_parent(config.cgroup_parent) if config.rootless else ""


def _info(
    config: DaemonConfig,
    membership: Membership,
    engine: ContainerEngine,
    images: ImageStore,
    clock: Clock,
    *,
    host: _HostFacts,
) -> dict[str, Any]:
    uname = os.uname()
    paused = _count(engine, Status.PAUSED)
    running = _count(engine, Status.RUNNING, Status.RESTARTING)
    total = len(engine.list())
    now: datetime = clock.now()
    cgroup_parent = _cgroup_parent(config)
    facts, backing = host.read()
    return {
        "ID": membership.state.node_id if membership.state else config.hostname,
        "Name": config.hostname,
        "Containers": total,
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": total - running - paused,
        "Images": len(images.list()),
        "Driver": "overlay2",
        "DriverStatus": [["Backing Filesystem", backing]],
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "ipvlan", "macvlan", "null", "overlay"],
            "Authorization": None,
            "Log": ["json-file", "local", "none"],
        },
        "MemoryLimit": facts.memory_limit,
        "SwapLimit": facts.swap_limit,
        "CpuCfsPeriod": facts.cpu_cfs_period,
        "CpuCfsQuota": facts.cpu_cfs_quota,
        "CPUShares": facts.cpu_shares,
        "CPUSet": facts.cpu_set,
        "PidsLimit": facts.pids_limit,
        "IPv4Forwarding": facts.ipv4_forwarding,
        "BridgeNfIptables": facts.bridge_nf_iptables,
        "BridgeNfIp6tables": facts.bridge_nf_ip6tables,
        "Debug": config.log_level == "debug",
        "NFd": 0,
        "OomKillDisable": facts.oom_kill_disable,
        "NGoroutines": 0,
        "SystemTime": now.isoformat().replace("+00:00", "Z"),
        "LoggingDriver": "json-file",
        "CgroupDriver": "none" if cgroup_parent == NO_CGROUPS else "cgroupfs",
        "CgroupVersion": facts.cgroup_version,
        "KernelVersion": uname.release,
        "OperatingSystem": _os_name(),
        "OSVersion": "",
        "OSType": "linux",
        "Architecture": uname.machine,
        "NCPU": cpu_count(),
        "MemTotal": memory_total_bytes(),
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": _registry_config(config),
        "GenericResources": None,
        "DockerRootDir": str(config.data_root),
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Labels": list(config.labels),
        "ExperimentalBuild": False,
        "ServerVersion": __version__,
        "Runtimes": {"fleet": {"path": "fleet-runtime"}},
        "DefaultRuntime": "fleet",
        "Swarm": _swarm(membership),
        "LiveRestoreEnabled": True,
        "Isolation": "",
        "InitBinary": "fleet-runtime",
        **{f"{part}Commit": {"ID": "", "Expected": ""} for part in ("Containerd", "Runc", "Init")},
        "CDISpecDirs": [str(path) for path in cdi.DIRECTORIES],
        "SecurityOptions": _security(facts, engine, rootless=config.rootless),
        "Warnings": [*facts.warnings(), *_userns_warning(config, engine), *_apparmor_warning(engine)] or None,
    }


def _security(facts: EngineFacts, engine: ContainerEngine, *, rootless: bool) -> list[str]:
    kernel = (("name=apparmor", engine.apparmor.by_default), ("name=seccomp,profile=builtin", facts.seccomp))
    users = [*(["name=userns"] if engine.user_namespaces.by_default else []), *(["name=rootless"] if rootless else [])]
    return [*(name for name, there in kernel if there), *users, "name=cgroupns", "name=no-new-privileges"]


def _userns_warning(config: DaemonConfig, engine: ContainerEngine) -> list[str]:
    users = engine.user_namespaces
    if config.rootless:
        return Inside(config.exec_root).warnings()
    if config.userns_remap == "off" or users.by_default:
        return []
    return [f"WARNING: root in a container is root of this host: no user namespaces, for {users.why_not}"]


def _apparmor_warning(engine: ContainerEngine) -> list[str]:
    warning = engine.apparmor.warning()
    return [f"WARNING: {warning}"] if warning else []


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def _swarm(membership: Membership) -> dict[str, Any]:
    state = membership.state
    result: dict[str, Any] = {
        "NodeID": state.node_id if state else "",
        "NodeAddr": state.advertise_address if state else "",
        "LocalNodeState": membership.local_state,
        "ControlAvailable": False,
        "Error": membership.error or (membership.agent.session.last_error if membership.agent else ""),
        "RemoteManagers": None,
    }
    if state is None:
        return result
    result["RemoteManagers"] = [{"NodeID": "", "Addr": address} for address in state.managers]
    if membership.has_control:
        role = membership.manager()
        nodes = [node for node in role.store.nodes.all() if not node.removed]
        cluster = role.admission.cluster()
        rendered = swarm_json(cluster)
        rendered.pop("JoinTokens", None)
        result |= {
            "ControlAvailable": True,
            "RemoteManagers": [{"NodeID": n.id, "Addr": n.manager_status.addr} for n in nodes if n.manager_status],
            "Nodes": len(nodes),
            "Managers": sum(1 for n in nodes if n.spec.role is NodeRole.MANAGER),
            "Cluster": rendered,
        }
    return result
