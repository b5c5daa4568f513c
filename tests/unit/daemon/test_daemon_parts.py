"""Configuration, versions, addresses, log frames, events, state files: the small parts of the daemon."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from support.memory_engine import MemoryEngine
from support.objects import NOW, make_service

from fleet import errors
from fleet.agent.templates import expand
from fleet.clock import SystemClock
from fleet.containers.events import Action, ContainerEvent, EventHub
from fleet.daemon.addresses import choose_address, split_address
from fleet.daemon.config import load_config
from fleet.daemon.events import EventLog, matches
from fleet.daemon.log_stream import LogFrame, LogQuery, multiplexed, read_frames
from fleet.daemon.swarm_state import SwarmState, SwarmStateFile
from fleet.daemon.versions import VersionPrefix
from fleet.model.autoscale import with_replicas
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeRole
from fleet.model.service import AutoscaleStatus, Scaling
from fleet.model.units import parse_bytes
from fleet.store import Store, Transaction


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "fleetd.toml"
    file.write_text('data_root = "/data"\nlabels = ["zone=a"]\nlog_level = "debug"\n')
    config = load_config(["--config", str(file), "--data-root", "/other", "-H", "unix:///x.sock"])
    assert (str(config.data_root), config.engine_labels, config.log_level) == ("/other", {"zone": "a"}, "debug")
    assert config.hosts == ("unix:///x.sock",)


def test_how_registries_are_reached(tmp_path: Path) -> None:
    file = tmp_path / "fleetd.toml"
    file.write_text('registry_mirrors = ["https://m.example"]\nregistry_certs = "/certs"\n')
    options = load_config(["--config", str(file), "--insecure-registry", "10.0.0.0/8"]).registry_options
    assert options.mirrors == {"docker.io": ("https://m.example",)}
    assert (options.certificates, options.insecure_registries) == (Path("/certs"), ("10.0.0.0/8",))
    flags = ["--registry-mirror", "http://m:5000", "--registry-mirror", "r.example=https://n"]
    options = load_config(["--config", str(file), *flags]).registry_options
    assert options.mirrors == {"docker.io": ("http://m:5000",), "r.example": ("https://n",)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('data_root = "relative"', "absolute"),
        ('registry_mirrors = ["https://m/path"]', r"registry_mirrors: .*without path"),
        ("no_such_key = 1", "no_such_key"),
        ("data_root = [", "fleetd.toml"),
        ('hosts = ["ftp://x"]', "unix:///PATH"),
        ('cgroup_parent = "/a/../b"', "cgroup"),
    ],
)
def test_a_wrong_file_is_refused_naming_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "fleetd.toml"
    file.write_text(text)
    with pytest.raises(errors.UserError, match=says):
        load_config(["--config", str(file)])
    with pytest.raises(errors.UserError, match="not there"):
        load_config(["--config", str(tmp_path / "nope")])


def test_addresses_to_advertise() -> None:
    one = [("eth0", "10.0.0.1"), ("docker0", "172.17.0.1")]
    assert choose_address("", candidates=one, what="--advertise-addr") == "10.0.0.1"
    assert choose_address("eth0", candidates=one, what="--advertise-addr") == "10.0.0.1"
    assert choose_address("192.0.2.7", candidates=one, what="--advertise-addr") == "192.0.2.7"
    with pytest.raises(errors.UserError, match=r"10\.0\.0\.1 \(eth0\), 10\.1\.0\.1 \(eth1\)"):
        choose_address("", candidates=[*one, ("eth1", "10.1.0.1")], what="--advertise-addr")
    with pytest.raises(errors.UserError, match="eth9"):
        choose_address("eth9", candidates=one, what="--advertise-addr")


@pytest.mark.parametrize("text", ["", "host:99999", "a:b:c", "host:", "[::1"])
def test_bad_addresses_are_refused(text: str) -> None:
    with pytest.raises(errors.UserError, match="manager address"):
        split_address(text, default_port=2377, what="manager address")


def test_addresses_split() -> None:
    assert split_address("10.0.0.1", default_port=2377, what="x") == ("10.0.0.1", 2377)
    assert split_address("[::1]:99", default_port=2377, what="x") == ("::1", 99)


async def answer_of(path: str) -> tuple[int, str, dict[bytes, bytes]]:
    sent: list[dict[str, object]] = []
    seen: list[str] = []

    async def app(scope: dict[str, str], receive: object, send: object) -> None:
        seen.append(scope["path"])
        assert callable(send)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    await VersionPrefix(app)({"type": "http", "path": path}, None, send)
    headers = dict(sent[0]["headers"])  # type: ignore[call-overload]
    return int(str(sent[0]["status"])), seen[0] if seen else "", headers


@pytest.mark.parametrize(
    ("path", "status", "inner"),
    [
        ("/v1.41/services", 200, "/services"),
        ("/v1.24", 200, "/"),
        ("/services", 200, "/services"),
        ("/v1.99/services", 400, ""),
        ("/v1.12/services", 400, ""),
        ("/v1.41x/services", 200, "/v1.41x/services"),
    ],
)
def test_versions_are_stripped_or_refused(path: str, status: int, inner: str) -> None:
    got_status, got_path, headers = asyncio.run(answer_of(path))
    assert (got_status, got_path) == (status, inner)
    assert headers[b"api-version"] == b"1.47"


def test_log_lines_as_docker_frames_them() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    query = LogQuery(timestamps=True, details=True)
    framed = multiplexed(LogFrame(2, moment, b"oops"), query, details="a=b")
    assert framed == b"\x02\x00\x00\x00\x00\x00\x00\x28" + b"2026-01-02T03:04:05.678901000Z a=b oops\n"
    assert multiplexed(LogFrame(1, moment, b"x\n"), LogQuery(), raw=True) == b"x\n"


def test_frames_of_a_lying_node_are_refused() -> None:
    async def chunks() -> object:
        yield b"\xff\xff\xff\xff" + bytes(10)

    async def read() -> None:
        async for _ in read_frames(chunks()):  # type: ignore[arg-type]
            pass

    with pytest.raises(errors.RuntimeFault, match="log frame"):
        asyncio.run(read())


@pytest.mark.parametrize(
    "query", [{"tail": "x"}, {"since": "yesterday"}, {"stdout": "0", "stderr": "0"}, {"tail": "9" * 9}]
)
def test_bad_log_queries_are_refused(query: dict[str, str]) -> None:
    with pytest.raises(errors.UserError):
        LogQuery.from_query({"stdout": "1", **query})


def test_log_queries_survive_the_way_to_a_node() -> None:
    query = LogQuery.from_query({"stdout": "1", "since": "1700000000.25", "tail": "7", "follow": "True"})
    assert LogQuery.from_query(query.to_query()) == query


def test_events_are_kept_filtered_and_bounded_in_time() -> None:
    async def main() -> None:
        log = EventLog(SystemClock())
        began = SystemClock().now() - timedelta(seconds=1)
        for number in range(3):
            log.add(
                kind="service", action="create", actor=f"s{number}", scope="swarm", attributes={"name": f"n{number}"}
            )
        until = SystemClock().now() + timedelta(seconds=0.05)
        seen = [event async for event in log.stream(since=began, until=until)]
        assert [event["Actor"]["ID"] for event in seen] == ["s0", "s1", "s2"]
        assert [matches(event, {"service": ("n1",)}) for event in seen] == [False, True, False]
        assert not matches(seen[0], {"type": ("node",)})

    asyncio.run(main())


EVENT = {
    "Type": "container",
    "Action": "exec_start: sh",
    "scope": "local",
    "Actor": {
        "ID": "abcdef",
        "Attributes": {"name": "web.1.xyz", "image": "host:5000/nginx:1", "team": "a", "empty": "", "zone": "b"},
    },
}


@pytest.mark.parametrize(
    ("filters", "shown"),
    [
        ({"container": ("web.1.xyz",)}, True),
        ({"container": ("abc",)}, True),
        ({"container": ("web",)}, True),
        ({"container": ("db", "web")}, True),
        ({"container": ("eb.1",)}, False),
        ({"service": ("web",)}, False),
        ({"daemon": ("abc",)}, False),
        ({"type": ("container", "node")}, True),
        ({"type": ("node",)}, False),
        ({"event": ("exec_start",)}, True),
        ({"event": ("exec",)}, False),
        ({"scope": ("swarm",)}, False),
        ({"label": ("team=a",)}, True),
        ({"label": ("team",)}, True),
        ({"label": ("team=a", "zone=b")}, True),
        ({"label": ("team=a", "zone=c")}, False),
        ({"label": ("none",)}, False),
        ({"label": ("empty=",)}, True),
        ({"label": ("team=",)}, False),
        ({"image": ("host:5000/nginx:1",)}, True),
        ({"image": ("host:5000/nginx",)}, True),
        ({"image": ("host",)}, False),
        ({"image": ("nginx",)}, False),
        ({"container": ("web",), "type": ("node",)}, False),
    ],
)
def test_filters_of_events_are_dockers(filters: dict[str, tuple[str, ...]], shown: bool) -> None:
    assert matches(EVENT, filters) is shown


def test_image_of_a_container_of_a_service_is_found_without_its_digest() -> None:
    attributes = {"image": f"fleet/hello:1@sha256:{'a' * 64}"}
    event = {**EVENT, "Actor": {"ID": "x", "Attributes": attributes}}
    assert matches(event, {"image": ("fleet/hello",)})
    assert matches(event, {"image": (attributes["image"],)})
    assert not matches(event, {"image": ("fleet/hello:1@sha256",)})


def test_kept_events_are_told_up_to_a_time_when_no_beginning_is_given() -> None:
    async def main() -> None:
        log = EventLog(SystemClock())
        log.add(kind="node", action="create", actor="n1", scope="swarm", attributes={})
        until = SystemClock().now() + timedelta(seconds=0.05)
        assert len([event async for event in log.stream(since=None, until=until)]) == 1

    asyncio.run(main())


def test_events_of_scaling_say_what_a_policy_did_and_what_is_in_its_way() -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        log = EventLog(SystemClock())
        began = SystemClock().now() - timedelta(seconds=1)
        following = asyncio.create_task(log.follow_store(store))
        await asyncio.sleep(0)
        await store.commit(Transaction().create(make_service()))
        scalings: tuple[Scaling, ...] = ()
        for held, count in (("", 2), ("no room", 3), ("no room", 4)):
            await asyncio.sleep(0.01)
            service = store.services.find("web")
            scalings += (Scaling(at=NOW, before=count - 1, after=count, reason=f"{count - 1} -> {count}: CPU"),)
            status = AutoscaleStatus(scalings=scalings, held=held)
            spec = with_replicas(service.spec, count)
            await store.commit(Transaction().replace(msgspec.structs.replace(service, spec=spec, autoscale=status)))
        await asyncio.sleep(0.05)
        until = SystemClock().now() + timedelta(seconds=0.05)
        seen = [event async for event in log.stream(since=began, until=until)]
        following.cancel()
        await store.close()
        await engine.close()
        told = [event["Actor"]["Attributes"] for event in seen if event["Action"] == "autoscale"]
        assert [(each.get("replicas.old"), each.get("replicas.new"), each.get("held")) for each in told] == [
            ("1", "2", None),
            ("2", "3", None),
            (None, None, "no room"),
            ("3", "4", None),
        ]
        assert told[0] == {"name": "web", "replicas.old": "1", "replicas.new": "2", "reason": "1 -> 2: CPU"}
        assert sum(event["Action"] == "update" for event in seen) == 3, "as for any change of the number"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("happened", "kind", "action"),
    [(Action.START, "container", "start"), (Action.VOLUME_CREATE, "volume", "create")],
)
def test_events_of_containers_have_docker_s_type_and_action(happened: Action, kind: str, action: str) -> None:
    async def main() -> None:
        log, hub = EventLog(SystemClock()), EventHub()
        following = asyncio.create_task(log.follow_containers(hub))  # type: ignore[arg-type]
        seen = log.stream(since=None, until=None)
        first = asyncio.ensure_future(anext(seen))
        await asyncio.sleep(0)
        hub.send(ContainerEvent(action=happened, id="c", time=SystemClock().now()))
        event = await first
        following.cancel()
        assert (event["Type"], event["Action"]) == (kind, action)

    asyncio.run(main())


def test_membership_is_kept_whole_or_refused(tmp_path: Path) -> None:
    file = SwarmStateFile(tmp_path / "swarm")
    assert file.load() is None
    state = SwarmState(
        cluster_id=ClusterId("c"), node_id=NodeId("n"), role=NodeRole.WORKER, listen_address="0.0.0.0:2377",
        advertise_address="10.0.0.1", cluster_port=2377, managers=("10.0.0.2:2377",),
    )  # fmt: skip
    file.save(state)
    assert file.load() == state
    (tmp_path / "swarm" / "state.json").write_text("{")
    with pytest.raises(errors.UserError, match="does not decode"):
        file.load()


def test_templates() -> None:
    values = {".Task.Slot": "3", ".Service.Labels.team": "x"}
    assert expand("web-{{.Task.Slot}}-{{ .Task.Slot }}", values) == "web-3-3"
    assert expand('{{index .Service.Labels "team"}}', values) == "x"
    assert expand("plain", values) == "plain"
    for bad in ("{{.Task.Nope}}", "{{range .X}}", "{{"):
        with pytest.raises(errors.RejectedFault):
            expand(bad, values)


def test_sizes() -> None:
    assert [parse_bytes(t, what="x") for t in ("4096", "64m", "1.5g", "64KiB", "2kb")] == [
        4096, 64 << 20, 3 << 29, 64 << 10, 2048,
    ]  # fmt: skip
    for bad in ("", "m", "-1", "1x", "1.2.3"):
        with pytest.raises(errors.UserError, match="limit"):
            parse_bytes(bad, what="limit")
