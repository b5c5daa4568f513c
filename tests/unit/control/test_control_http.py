"""The routes, against what dockerd answered: recorded requests go in, recorded answers say which keys must come out."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.objects import NOW, make_network, make_node, make_secret, make_service, make_task

from fleet.model.cluster import Cluster, JoinTokens
from fleet.model.common import TlsInfo
from fleet.model.ids import ClusterId, NetworkId
from fleet.model.network import Ipam, IpamConfig
from fleet.model.node import ManagerStatus, NodeRole, NodeSpec, NodeState, NodeStatus, Reachability
from fleet.model.service import Endpoint, VirtualIp
from fleet.model.task import Attachment, ContainerStatus, TaskState
from fleet.store import Transaction

SAMPLES: dict[str, Any] = json.loads(Path(__file__).with_name("docker_samples.json").read_text())
replace = msgspec.structs.replace


def request_of(name: str) -> Any:
    return SAMPLES[name]["request"]


def missing(expected: Any, got: Any, place: str = "$") -> list[str]:
    """Where ``got`` lacks a key of ``expected`` or has another type; lists are compared by their first items."""
    if isinstance(expected, dict) and isinstance(got, dict):
        lacking = [f"{place}.{key} is missing" for key in expected if key not in got]
        return lacking + [
            p for key in expected if key in got for p in missing(expected[key], got[key], f"{place}.{key}")
        ]
    if isinstance(expected, list) and isinstance(got, list):
        return missing(expected[0], got[0], f"{place}[0]") if expected and got else []
    if expected is None or type(expected) is type(got):
        return []
    return [f"{place} is {got!r}, not like {expected!r}"]


def unknown(expected: Any, got: Any, place: str = "$") -> list[str]:
    """Keys of ``got`` that dockerd did not send."""
    if isinstance(expected, dict) and isinstance(got, dict):
        return [f"{place}.{key}" for key in got if key not in expected] + [
            p for key in got if key in expected for p in unknown(expected[key], got[key], f"{place}.{key}")
        ]
    if isinstance(expected, list) and isinstance(got, list) and expected and got:
        return unknown(expected[0], got[0], f"{place}[0]")
    return []


def test_a_recorded_service_comes_back_as_dockerd_showed_it(run) -> None:
    async def body(world) -> None:
        created = await world.call("POST", "/services/create", status=201, json=request_of("POST /services/create 201"))
        assert list(created) == ["ID"]
        await world.store.commit(Transaction().create(make_network("ingress", ingress=True)))
        service = world.api.services.find("x")
        endpoint = Endpoint(
            spec=service.spec.endpoint_spec,
            ports=service.spec.endpoint_spec.ports,
            virtual_ips=(VirtualIp(network_id=NetworkId("network-ingress"), addr="10.0.0.2/24"),),
        )
        await world.store.commit(Transaction().replace(replace(service, endpoint=endpoint)))
        shown = await world.call("GET", "/services/x?insertDefaults=false", status=200)
        recorded = SAMPLES["GET /services/{id} 200"]["response"]
        assert shown["Spec"] == recorded["Spec"]
        assert missing(recorded, shown) == []
        assert unknown(recorded, shown) == []
        assert shown["Endpoint"]["Ports"] == recorded["Endpoint"]["Ports"]
        listed = await world.call("GET", "/services?status=true", status=200)
        assert listed[0]["ServiceStatus"] == {"RunningTasks": 0, "DesiredTasks": 3, "CompletedTasks": 0}
        assert {key: listed[0][key] for key in shown} == shown

    run(body)


def test_what_is_shown_can_be_sent_back_without_changing_anything(run) -> None:
    async def body(world) -> None:
        await world.call("POST", "/services/create", status=201, json=request_of("POST /services/create 201"))
        for defaults in ("false", "true"):
            shown = await world.call("GET", f"/services/x?insertDefaults={defaults}", status=200)
            path = f"/services/x/update?version={shown['Version']['Index']}"
            answer = await world.call("POST", path, status=200, json=shown["Spec"])
            assert answer == {"Warnings": None}
            assert world.api.services.find("x").task_spec_version == 1

    run(body)


def test_scaling_and_rolling_back_with_recorded_bodies(run) -> None:
    async def body(world) -> None:
        await world.call("POST", "/services/create", status=201, json=request_of("POST /services/create 201"))
        version = world.api.services.find("x").version.index
        scale = request_of("POST /services/{id}/update 200")
        await world.call("POST", f"/services/x/update?version={version}", status=200, json=scale)
        assert world.api.services.find("x").spec.replicas == 5
        assert world.api.services.find("x").task_spec_version == 1
        stale = await world.call("POST", f"/services/x/update?version={version}", status=409, json=scale)
        assert "update out of sequence" in stale["message"]
        version = world.api.services.find("x").version.index
        body = request_of("POST /services/{id}/update 200 rollback")
        await world.call("POST", f"/services/x/update?rollback=previous&version={version}", status=200, json=body)
        assert world.api.services.find("x").spec.replicas == 3

    run(body)


def test_an_update_by_a_client_that_knows_no_progress_deadline_leaves_it(run) -> None:
    async def body(world) -> None:
        spec = {
            "Name": "slow",
            "TaskTemplate": {"ContainerSpec": {"Image": "busybox:1"}},
            "UpdateConfig": {"Parallelism": 1, "ProgressDeadline": 60_000_000_000},
        }
        await world.call("POST", "/services/create", status=201, json=spec)

        async def update(config: dict[str, Any]) -> Any:
            version = world.api.services.find("slow").version.index
            changed = {**spec, "UpdateConfig": config}
            await world.call("POST", f"/services/slow/update?version={version}", status=200, json=changed)
            return (await world.call("GET", "/services/slow", status=200))["Spec"]["UpdateConfig"]

        assert (await update({"Parallelism": 2}))["ProgressDeadline"] == 60_000_000_000
        assert "ProgressDeadline" not in await update({"Parallelism": 2, "ProgressDeadline": 0})
        negative = {**spec, "Name": "other", "UpdateConfig": {"ProgressDeadline": -1}}
        answer = await world.call("POST", "/services/create", status=400, json=negative)
        assert "progress deadline" in answer["message"]

    run(body)


def test_docker_pys_lower_case_mode_and_nulls_are_read(run) -> None:
    async def body(world) -> None:
        spec = {
            "Name": "px",
            "TaskTemplate": {"ContainerSpec": {"Image": "busybox:1", "Args": None, "Env": ["A=1"]}},
            "Mode": {"replicated": {"Replicas": 2}},
            "EndpointSpec": {"Ports": [{"Protocol": "tcp", "PublishedPort": 8088, "TargetPort": 80}]},
            "UpdateConfig": {"Parallelism": 1, "FailureAction": "continue"},
        }
        await world.call("POST", "/services/create", status=201, json=spec)
        shown = await world.call("GET", "/services/px?insertDefaults=True", status=200)
        assert shown["Spec"]["Mode"] == {"Replicated": {"Replicas": 2}}
        assert shown["Spec"]["EndpointSpec"]["Mode"] == "vip"
        assert shown["Spec"]["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"] == 10_000_000_000
        policy = {"Condition": "any", "Delay": 5_000_000_000, "MaxAttempts": 0}
        assert shown["Spec"]["TaskTemplate"]["RestartPolicy"] == policy
        assert shown["Spec"]["RollbackConfig"]["FailureAction"] == "pause"

    run(body)


def test_tasks_look_as_dockerds(run) -> None:
    async def body(world) -> None:
        config = IpamConfig(subnet="10.0.0.0/24", gateway="10.0.0.1")
        network = replace(make_network("ingress", ingress=True), ipam=Ipam(config=(config,)), vni=4097)
        task = make_task(
            "t1",
            node_id="n1",
            state=TaskState.RUNNING,
            network_attachments=(Attachment(network_id=NetworkId("network-ingress"), addresses=("10.0.0.9/24",)),),
        )
        task = replace(task, status=replace(task.status, container_status=ContainerStatus(container_id="c", pid=7)))
        await world.store.commit(Transaction().create(network).create(task).create(make_service("web")))
        shown = await world.call("GET", "/tasks/t1", status=200)
        assert missing(drop_args(SAMPLES["GET /tasks/{id} 200"]["response"]), shown) == []
        extra = unknown(SAMPLES["GET /tasks/{id} 200"]["response"], shown)
        assert extra == ["$.Volumes", "$.NetworksAttachments[0].Network.Spec.DriverConfiguration.Name"]
        assert shown["Status"]["State"] == "running"
        assert shown["DesiredState"] == "running"
        assert shown["NetworksAttachments"][0]["Network"]["Spec"]["Name"] == "ingress"
        assert await world.call("GET", "/tasks", status=200) == [shown]

    run(body)


def drop_args(sample: Any) -> Any:
    """The sample without what its particular container set."""
    sample = json.loads(json.dumps(sample))
    for key in ("Args", "Env", "Init"):
        del sample["Spec"]["ContainerSpec"][key]
    del sample["Status"]["Message"]
    return sample


def test_task_bytes_follow_the_task_and_its_networks(run) -> None:
    async def body(world) -> None:
        task = make_task("t1", network_attachments=(Attachment(network_id=NetworkId("network-net")),))
        await world.store.commit(Transaction().create(make_network("net")).create(task))
        first = await world.call("GET", "/tasks", status=200)
        assert await world.call("GET", "/tasks", status=200) == first
        stored = world.store.tasks.find("t1")
        await world.store.commit(Transaction().replace(replace(stored, desired_state=TaskState.SHUTDOWN)))
        network = world.store.networks.find("net")
        await world.store.commit(Transaction().replace(replace(network, vni=4242)))
        shown = (await world.call("GET", "/tasks", status=200))[0]
        assert shown["DesiredState"] == "shutdown"
        assert "4242" in str(shown["NetworksAttachments"][0]["Network"]["DriverState"])

    run(body)


def test_up_to_date_tasks_of_a_service_by_name(run) -> None:
    async def body(world) -> None:
        service = replace(make_service("web"), spec_version=3, task_spec_version=3)
        other = replace(make_task("old"), spec=msgspec.convert({"ForceUpdate": 7}, type(make_task().spec)))
        await world.store.commit(
            Transaction()
            .create(service)
            .create(make_task("new", spec_version=3))
            .create(other)
            .create(make_task("elsewhere", service_id="s2"))
        )
        filters = json.dumps({"_up-to-date": {"true": True}, "service": {"web": True}})
        shown = await world.call("GET", "/tasks", status=200, params={"filters": filters})
        assert [task["ID"] for task in shown] == ["new"]
        shown = await world.call("GET", "/tasks", status=200, params={"filters": '{"service":["web"]}'})
        assert sorted(task["ID"] for task in shown) == ["new", "old"]
        answer = await world.call("GET", "/tasks", status=404, params={"filters": '{"service":["nope"]}'})
        assert answer == {"message": "service nope not found"}

    run(body)


def test_nodes_look_as_dockerds(run) -> None:
    async def body(world) -> None:
        manager = replace(
            make_node("m1"),
            spec=NodeSpec(role=NodeRole.MANAGER),
            status=NodeStatus(state=NodeState.READY, addr="10.77.0.11"),
            manager_status=ManagerStatus(leader=True, reachability=Reachability.REACHABLE, addr="10.77.0.11:2377"),
        )
        await world.store.commit(Transaction().create(manager).create(make_node("w1")))
        shown = await world.call("GET", "/nodes/m1", status=200)
        recorded = json.loads(json.dumps(SAMPLES["GET /nodes/{id} 200"]["response"]))
        for key in ("Platform", "Resources", "Engine", "TLSInfo"):
            recorded["Description"][key] = {}
        assert missing(recorded, shown) == []
        assert "ManagerStatus" not in await world.call("GET", "/nodes/w1", status=200)
        listed = await world.call("GET", "/nodes", status=200, params={"filters": '{"role":{"manager":true}}'})
        assert [node["Description"]["Hostname"] for node in listed] == ["m1"]

    run(body)


def test_a_node_is_drained_with_dockers_body(run) -> None:
    async def body(world) -> None:
        await world.store.commit(Transaction().create(make_node("w1")))
        version = world.store.nodes.find("w1").version.index
        body = request_of("POST /nodes/{id}/update 200")
        assert await world.call("POST", f"/nodes/w1/update?version={version}", status=200, json=body) is None
        assert world.store.nodes.find("w1").spec.availability.value == "drain"
        answer = await world.call("POST", f"/nodes/w1/update?version={version}", status=409, json=body)
        assert "update out of sequence" in answer["message"]
        answer = await world.call("POST", "/nodes/w1/update?version=9", status=400, json={"Availability": "drain"})
        assert "Role must be given" in answer["message"]
        answer = await world.call("POST", "/nodes/w1/update", status=400, json=body)
        assert "version" in answer["message"]

    run(body)


def test_secrets_and_configs_with_recorded_bodies(run) -> None:
    async def body(world) -> None:
        created = await world.call("POST", "/secrets/create", status=201, json=request_of("POST /secrets/create 201"))
        assert list(created) == ["ID"]
        assert world.store.secrets.find("sec1").spec.data == b"data\n"
        shown = await world.call("GET", "/secrets/sec1", status=200)
        assert missing(SAMPLES["GET /secrets/{id} 200"]["response"], shown) == []
        assert unknown(SAMPLES["GET /secrets/{id} 200"]["response"], shown) == []
        filters = {"filters": '{"name":{"sec1":true}}'}
        assert await world.call("GET", "/secrets", status=200, params=filters) == [shown]
        await world.call("POST", "/configs/create", status=201, json=request_of("POST /configs/create 201"))
        shown = await world.call("GET", "/configs/cfg1", status=200)
        assert missing(SAMPLES["GET /configs/{id} 200"]["response"], shown) == []
        assert base64.b64decode(shown["Spec"]["Data"]) == b"data\n"
        # What `stack deploy` sends the second time: the same data, perhaps other labels.
        body = {"Name": "cfg1", "Labels": {"a": "b"}, "Data": "ZGF0YQo="}
        path = f"/configs/cfg1/update?version={shown['Version']['Index']}"
        assert await world.call("POST", path, status=200, json=body) is None
        body["Data"] = "eA=="
        answer = await world.call("POST", "/configs/cfg1/update?version=3", status=400, json=body)
        assert answer == {"message": "only updates to Labels are allowed"}
        assert await world.call("DELETE", "/configs/cfg1", status=204) is None
        assert await world.call("DELETE", "/secrets/sec1", status=204) is None
        answer = await world.call("GET", "/secrets/s_tok", status=404)
        assert answer == SAMPLES["GET /secrets/{id} 404"]["response"]

    run(body)


def cluster() -> Cluster:
    return Cluster(
        id=ClusterId("c1"),
        created_at=NOW,
        updated_at=NOW,
        join_tokens=JoinTokens(worker="SWMTKN-1-w", manager="SWMTKN-1-m"),
        tls_info=TlsInfo(trust_root="PEM", cert_issuer_subject="s", cert_issuer_public_key="k"),
    )


def test_the_swarm_looks_as_dockerds_and_takes_its_update(run) -> None:
    async def body(world) -> None:
        await world.store.commit(Transaction().create(cluster()))
        shown = await world.call("GET", "/swarm", status=200)
        assert missing(SAMPLES["GET /swarm 200"]["response"], shown) == []
        assert unknown(SAMPLES["GET /swarm 200"]["response"], shown) == ["$.SealingKey"], "what Docker does not have"
        path = f"/swarm/update?version={shown['Version']['Index']}&rotateManagerToken=false&rotateWorkerToken=true"
        body = request_of("POST /swarm/update 200")
        assert await world.call("POST", path, status=200, json=body) is None
        assert world.rotated == [NodeRole.WORKER]
        spec = world.api.cluster.find().spec
        assert spec.orchestration.task_history_retention_limit == 4
        assert spec.dispatcher.heartbeat_period_ns == 5_000_000_000
        answer = await world.call("POST", path, status=409, json={**body, "Labels": {"x": "y"}})
        assert "update out of sequence" in answer["message"]

    run(body)


def test_docker_pys_partial_swarm_update_keeps_the_rest(run) -> None:
    async def body(world) -> None:
        await world.store.commit(
            Transaction().create(replace(cluster(), spec=replace(cluster().spec, labels={"a": "b"})))
        )
        body = {
            "Orchestration": {"TaskHistoryRetentionLimit": 7},
            "caconfig": {"NodeCertExpiry": 7776000000000000},
            "Raft": None,
        }
        await world.call("POST", "/swarm/update?version=2&rotateWorkerToken=False", status=200, json=body)
        spec = world.api.cluster.find().spec
        assert (spec.orchestration.task_history_retention_limit, spec.labels) == (7, {"a": "b"})
        assert world.rotated == []

    run(body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"Raft": {"ElectionTick": 5}}, "Raft"),
        ({"TaskDefaults": {"LogDriver": {"Name": "none"}}}, "LogDriver"),
    ],
)
def test_settings_without_effect_are_refused(run, body: Any, words: str) -> None:
    async def test(world) -> None:
        await world.store.commit(Transaction().create(cluster()))
        answer = await world.call("POST", "/swarm/update?version=2", status=501, json=body)
        assert words in answer["message"]

    run(test)


def test_networks_look_as_dockerds(run) -> None:
    async def body(world) -> None:
        body = request_of("POST /networks/create 201")
        from fleet.model import wire
        from fleet.model.network import NetworkSpec

        created = await world.networks.create(wire.parse_builtins(body, NetworkSpec, what="network"))
        assert created == {"Id": world.store.networks.find("net1").id, "Warning": ""}
        stored = world.store.networks.find("net1")
        settled = Ipam(config=(IpamConfig(subnet="10.0.1.0/24", gateway="10.0.1.1"),))
        await world.store.commit(Transaction().replace(replace(stored, ipam=settled, vni=4098)))
        shown = json.loads(msgspec.json.encode(world.networks.inspect("net1")))
        recorded = SAMPLES["GET /networks/{id} 200"]["response"]
        assert missing(recorded, shown) == []
        assert unknown(recorded, shown) == ["$.EnableIPv4"]
        assert shown["Attachable"] is True
        assert shown["Options"] == {"com.docker.network.driver.overlay.vxlanid_list": "4098"}
        assert [n["Name"] for n in world.networks.list({"name": ("et1",), "driver": ("overlay",)})] == ["net1"]
        assert world.networks.list({"name": ("^et1$",)}) == []
        assert [n["Name"] for n in world.networks.list({"dangling": ("true",)})] == ["net1"]
        await world.networks.remove("net1")
        assert world.networks.list() == []

    run(body)


def test_a_network_shows_its_services_and_tasks(run) -> None:
    async def body(world) -> None:
        await world.store.commit(Transaction().create(make_network("net")).create(make_node("n1", id_="n1")))
        spec = {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "a:1"}, "Networks": [{"Target": "net"}]}}
        await world.call("POST", "/services/create", status=201, json=spec)
        attachment = Attachment(network_id=NetworkId("network-net"), addresses=("10.0.1.5/24",))
        task = make_task(
            "t",
            service_id=world.api.services.find("web").id,
            node_id="n1",
            state=TaskState.RUNNING,
            network_attachments=(attachment,),
        )
        await world.store.commit(Transaction().create(task))
        shown = world.networks.inspect("net", verbose=True)
        assert shown["Services"]["web"]["Tasks"][0]["EndpointIP"] == "10.0.1.5"
        assert "Services" not in world.networks.inspect("net")

    run(body)


@pytest.mark.parametrize(
    ("method", "path", "kwargs", "status", "message"),
    [
        ("GET", "/services/nope", {}, 404, "service nope not found"),
        ("DELETE", "/services/nope", {}, 404, "service nope not found"),
        ("GET", "/tasks/nope", {}, 404, "task nope not found"),
        ("GET", "/nodes/nope", {}, 404, "node nope not found"),
        ("DELETE", "/configs/nope", {}, 404, "config nope not found"),
        ("POST", "/services/create", {"content": b"{"}, 400, "not valid JSON"),
        ("POST", "/services/create", {"content": b"[" * 100_000}, 400, "not valid JSON"),
        ("POST", "/services/create", {"content": b"[]"}, 400, "expected object"),
        ("POST", "/services/create", {"json": {"Name": 5}}, 400, "Name: expected str"),
        ("POST", "/services/create", {"json": {"Name": "x"}}, 400, "image reference must be provided"),
        ("POST", "/services/create", {"content": b'"' + b"x" * 5_000_000 + b'"'}, 413, "larger than the limit"),
        ("POST", "/services/x/update?version=abc", {"json": {}}, 400, "invalid version"),
        ("POST", "/services/x/update?rollback=next", {"json": {}}, 400, "rollback"),
        ("GET", '/services?filters={"nope":["x"]}', {}, 400, "invalid filter 'nope'"),
        ("GET", "/tasks?filters=nonsense", {}, 400, "filters"),
        ("GET", '/tasks?filters={"desired-state":["odd"]}', {}, 400, "invalid desired-state"),
        ("GET", "/swarm", {}, 503, "not founded"),
    ],
)
def test_errors_are_docker_messages(run, method: str, path: str, kwargs: Any, status: int, message: str) -> None:
    async def body(world) -> None:
        answer = await world.call(method, path, status=status, **kwargs)
        assert list(answer) == ["message"]
        assert message in answer["message"]

    run(body)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("PluginSpec", {"Name": "x"}),
        ("NetworkAttachmentSpec", {"ContainerID": "x"}),
        ("ContainerSpec.Privileges", {"CredentialSpec": {"Config": "x"}}),
        ("ContainerSpec.Privileges", {"selinuxcontext": {"Type": "x"}}),
        ("ContainerSpec.Privileges", {"Seccomp": {"Mode": "unconfined"}}),
        ("ContainerSpec.Mounts", [{"Type": "volume", "Target": "/x", "ImageOptions": {"Subpath": "x"}}]),
        ("ContainerSpec.Mounts", [{"Type": "npipe", "Target": "/x"}]),
        ("ContainerSpec.Isolation", "hyperv"),
        ("Runtime", "plugin"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(run, place: str, value: Any) -> None:
    async def body(world) -> None:
        template: dict[str, Any] = {"ContainerSpec": {"Image": "a:1"}}
        *parents, last = place.split(".")
        inner = template
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
        answer = await world.call("POST", "/services/create", status=501, json={"Name": "x", "TaskTemplate": template})
        assert "support" in answer["message"] or "for Windows" in answer["message"]

    run(body)


def test_empty_blocks_of_what_cannot_be_done_are_fine(run) -> None:
    async def body(world) -> None:
        privileges = {
            "CredentialSpec": None,
            "SELinuxContext": {"Disable": False, "User": ""},
            "NoNewPrivileges": False,
        }
        container = {"Image": "a:1", "Privileges": privileges}
        await world.call(
            "POST", "/services/create", status=201, json={"Name": "x", "TaskTemplate": {"ContainerSpec": container}}
        )

    run(body)


def test_secret_data_is_never_shown(run) -> None:
    async def body(world) -> None:
        await world.store.commit(Transaction().create(make_secret("s", data=b"hunter2")))
        for path in ("/secrets", "/secrets/s"):
            response = await world.client.get(path)
            assert base64.b64encode(b"hunter2").decode() not in response.text
            assert "Data" not in response.text

    run(body)


def test_rebalancing_is_asked_for_shown_and_taken_back(run) -> None:
    async def body(world) -> None:
        await world.store.commit(Transaction().create(cluster()))
        shown = await world.call("GET", "/fleet/v1/rebalance", status=200)
        assert shown == {"Request": None, "Moves": [], "Stays": {}, "UnderWay": [], "Moved": [], "GivenUp": []}
        answer = await world.call("DELETE", "/fleet/v1/rebalance", status=400)
        assert "no rebalancing is at work" in answer["message"]
        asked = await world.call("POST", "/fleet/v1/rebalance", status=202)
        assert asked["Request"]["RequestedAt"]
        assert "FinishedAt" not in asked["Request"]
        again = await world.call("POST", "/fleet/v1/rebalance", status=202)
        assert again["Request"] == asked["Request"], "one that is at work goes on"
        await world.call("DELETE", "/fleet/v1/rebalance", status=204)
        shown = await world.call("GET", "/fleet/v1/rebalance", status=200)
        assert shown["Request"]["Outcome"] == "cancelled"

    run(body)


def test_swarm_labels_that_fleet_reads_are_checked(run) -> None:
    async def body(world) -> None:
        await world.store.commit(Transaction().create(cluster()))
        shown = await world.call("GET", "/swarm", status=200)
        path = f"/swarm/update?version={shown['Version']['Index']}"
        for label, known in (
            ("rebalance", "off, manual, automatic"),
            ("placement.strategy", "spread, binpack, balanced"),
        ):
            spec = {**shown["Spec"], "Labels": {f"fleet.{label}": "no"}}
            answer = await world.call("POST", path, status=400, json=spec)
            assert answer["message"].endswith(f"label fleet.{label}: 'no' is none of {known}")
        spec = {**shown["Spec"], "Labels": {"fleet.quota.stack=shop": "tasks"}}
        answer = await world.call("POST", path, status=400, json=spec)
        assert "label fleet.quota.stack=shop: 'tasks' is no limit; expected tasks=N, cpu=N" in answer["message"]

    run(body)
