"""Objects of the cluster, filled to the brim and nearly empty, against the facts of the Docker Engine API; and the facts
themselves against what dockerd really answered.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from support.engine_api import VERSIONS, faults, table
from support.objects import NOW, make_config, make_network, make_node, make_secret, make_service, make_task

from fleet.api.render import config_json, network_json, node_json, secret_json, service_json, swarm_json, task_json
from fleet.model.cluster import Cluster, JoinTokens, SwarmSpec
from fleet.model.common import Driver, TlsInfo, Version
from fleet.model.ids import ClusterId, NetworkId
from fleet.model.network import ConfigFrom, Ipam, IpamConfig
from fleet.model.node import ManagerStatus, NodeDescription, Reachability
from fleet.model.service import (
    Endpoint,
    JobStatus,
    PortConfig,
    Protocol,
    PublishMode,
    Service,
    ServiceSpec,
    UpdateStatus,
    VirtualIp,
)
from fleet.model.task import Attachment, ContainerStatus, PortStatus, Task, TaskState
from fleet.model.wire import parse_builtins

replace = msgspec.structs.replace

_SAMPLES: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "control" / "docker_samples.json").read_text()
)

_CONTAINER: Final = {
    "Image": "nginx:1", "Labels": {"a": "b"}, "Command": ["x"], "Args": ["y"], "Hostname": "h", "Env": ["A=1"], "Dir": "/d",
    "User": "1:2", "Groups": ["3"], "TTY": True, "OpenStdin": True, "ReadOnly": True, "StopSignal": "SIGTERM",
    "StopGracePeriod": 1, "Hosts": ["1.2.3.4 x"], "OomScoreAdj": 5, "Isolation": "default", "Init": True,
    "Sysctls": {"net.core.somaxconn": "1"}, "CapabilityAdd": ["CAP_CHOWN"], "CapabilityDrop": ["CAP_KILL"],
    "Privileges": {"NoNewPrivileges": True, "Seccomp": {"Mode": "unconfined"}, "AppArmor": {"Mode": "disabled"}},
    "Mounts": [
        {"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True, "Consistency": "default", "BindOptions": {
            "Propagation": "rprivate", "NonRecursive": True, "CreateMountpoint": True, "ReadOnlyNonRecursive": True}},
        {"Source": "v", "Target": "/v", "VolumeOptions": {
            "NoCopy": True, "Labels": {"a": "b"}, "Subpath": "s", "DriverConfig": {"Name": "local", "Options": {"a": "b"}}}},
        {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1, "Mode": 0o700, "Options": [["noexec"]]}},
    ],
    "Healthcheck": {"Test": ["CMD", "x"], "Interval": 1, "Timeout": 1, "Retries": 1, "StartPeriod": 1, "StartInterval": 1},
    "DNSConfig": {"Nameservers": ["1.1.1.1"], "Search": ["x"], "Options": ["ndots:1"]},
    "Secrets": [{"SecretID": "s", "SecretName": "s", "File": {"Name": "s", "UID": "0", "GID": "0", "Mode": 292}}],
    "Configs": [{"ConfigID": "c", "ConfigName": "c", "File": {"Name": "c"}}],
    "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}, {"Name": "core"}],
}  # fmt: skip

_FULL: Final = {
    "Name": "web",
    "Labels": {"a": "b"},
    "TaskTemplate": {
        "ContainerSpec": _CONTAINER,
        "Resources": {
            "Limits": {"NanoCPUs": 1, "MemoryBytes": 1, "Pids": 1},
            "Reservations": {
                "NanoCPUs": 1,
                "MemoryBytes": 1,
                "GenericResources": [
                    {"NamedResourceSpec": {"Kind": "GPU", "Value": "u"}},
                    {"DiscreteResourceSpec": {"Kind": "SSD", "Value": 3}},
                ],
            },
        },
        "RestartPolicy": {"Condition": "on-failure", "Delay": 1, "MaxAttempts": 2, "Window": 3},
        "Placement": {
            "Constraints": ["node.role==worker"],
            "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}],
            "MaxReplicas": 2,
            "Platforms": [{"Architecture": "amd64", "OS": "linux"}],
        },
        "Networks": [{"Target": "n", "Aliases": ["x"], "DriverOpts": {"a": "b"}}],
        "LogDriver": {"Name": "json-file", "Options": {"max-size": "1m"}},
        "ForceUpdate": 1,
    },
    "Mode": {"Replicated": {"Replicas": 2}},
    "UpdateConfig": {
        "Parallelism": 1,
        "Delay": 1,
        "FailureAction": "rollback",
        "Monitor": 1,
        "MaxFailureRatio": 0.1,
        "Order": "start-first",
        "ProgressDeadline": 9,
    },
    "RollbackConfig": {"Parallelism": 1},
    "Networks": [{"Target": "n"}],
    "EndpointSpec": {"Mode": "vip", "Ports": [{"TargetPort": 80, "PublishedPort": 8080, "Name": "http"}]},
}

_PORT: Final = PortConfig(protocol=Protocol.TCP, target_port=80, published_port=8080, publish_mode=PublishMode.INGRESS)


def _spec(value: Any) -> ServiceSpec:
    return parse_builtins(value, ServiceSpec, what="service")


def _full_service(mode: dict[str, Any] | None = None) -> Service:
    spec = _spec({**_FULL, **({"Mode": mode} if mode else {})})
    vip = VirtualIp(network_id=NetworkId("n"), addr="10.0.0.2/24")
    return make_service(
        "web",
        spec=spec,
        previous_spec=spec,
        endpoint=Endpoint(spec=spec.endpoint_spec, ports=(_PORT,), virtual_ips=(vip,)),
        update_status=UpdateStatus(state="updating", started_at=NOW, message="update in progress"),
        job_status=JobStatus(job_iteration=Version(index=1), last_execution=NOW),
    )


def _network() -> Any:
    network = make_network(
        "net",
        internal=True,
        attachable=True,
        options={"encrypted": ""},
        labels={"a": "b"},
        config_from=ConfigFrom(network="x"),
        ipam=Ipam(options={"a": "b"}),
    )
    pools = (
        IpamConfig(
            subnet="10.0.0.0/24", ip_range="10.0.0.0/25", gateway="10.0.0.1", auxiliary_addresses={"a": "10.0.0.3"}
        ),
        IpamConfig(subnet="fd00::/64", gateway="fd00::1"),
    )
    return replace(network, ipam=Ipam(config=pools), vni=4097)


def _full_task() -> Task:
    task = make_task(
        "t1",
        node_id="n1",
        spec=_spec(_FULL).task_template,
        labels={"a": "b"},
        network_attachments=(
            Attachment(network_id=NetworkId("network-net"), addresses=("10.0.0.9/24", "fd00::9/64")),
            Attachment(network_id=NetworkId("gone")),
        ),
        assigned_generic_resources=_spec(_FULL).task_template.resources.reservations.generic_resources,
        job_iteration=Version(index=1),
    )
    status = replace(
        task.status,
        state=TaskState.RUNNING,
        container_status=ContainerStatus(container_id="c", pid=7),
        port_status=PortStatus(ports=(_PORT,)),
        running_since=NOW + timedelta(seconds=1),
    )
    return replace(task, status=status)


def _cluster() -> Cluster:
    return Cluster(
        id=ClusterId("c"),
        created_at=NOW,
        updated_at=NOW,
        spec=parse_builtins(
            {
                "Name": "default",
                "TaskDefaults": {"LogDriver": {"Name": "json-file"}},
                "CAConfig": {
                    "ForceRotate": 1,
                    "ExternalCAs": [{"Protocol": "cfssl", "URL": "https://x", "CACert": "pem"}, {"URL": "https://y"}],
                },
            },
            SwarmSpec,
            what="swarm",
        ),
        join_tokens=JoinTokens(worker="w", manager="m"),
        tls_info=TlsInfo(trust_root="pem", cert_issuer_subject="AAAA", cert_issuer_public_key="AAAA"),
    )


def _objects() -> list[tuple[str, Any]]:
    network = _network()
    manager = replace(
        make_node("m1"),
        manager_status=ManagerStatus(leader=True, reachability=Reachability.REACHABLE, addr="1.2.3.4:2377"),
        description=parse_builtins(
            {
                "Hostname": "m1",
                "Platform": {"Architecture": "x86_64", "OS": "linux"},
                "Resources": {"NanoCPUs": 1, "MemoryBytes": 1},
                "Engine": {
                    "EngineVersion": "1",
                    "Labels": {"a": "b"},
                    "Plugins": [{"Type": "Volume", "Name": "local"}],
                },
                "TLSInfo": {"TrustRoot": "pem", "CertIssuerSubject": "AAAA"},
            },
            NodeDescription,
            what="node",
        ),
    )
    driver = Driver(name="vault", options={"a": "b"})
    return [
        ("Service", service_json(make_service())),
        ("Service", service_json(make_service(), insert_defaults=True, status=(1, 2, 3))),
        ("Service", service_json(_full_service())),
        ("Service", service_json(_full_service({"Global": {}}))),
        ("Service", service_json(_full_service({"ReplicatedJob": {"TotalCompletions": 3}}), insert_defaults=True)),
        ("Service", service_json(_full_service({"GlobalJob": {}}))),
        ("Task", task_json(make_task(), {})),
        ("Task", task_json(_full_task(), {network.id: network})),
        ("Node", node_json(make_node())),
        ("Node", node_json(manager)),
        ("Secret", secret_json(make_secret())),
        ("Secret", secret_json(make_secret(labels={"a": "b"}, driver=driver, templating=Driver(name="golang")))),
        ("Config", config_json(make_config())),
        ("Config", config_json(make_config(labels={"a": "b"}, templating=Driver(name="golang")))),
        ("Network", network_json(make_network())),
        ("Network", network_json(network, services={})),
        ("Swarm", swarm_json(_cluster())),
    ]


@pytest.mark.parametrize(("kind", "value"), _objects())
def test_objects_of_the_cluster_have_dockers_fields_and_types(kind: str, value: Any) -> None:
    wire = json.loads(msgspec.json.encode(value))
    assert [fault for version in (VERSIONS[0], VERSIONS[-1]) for fault in faults(kind, wire, version=version)] == []


@pytest.mark.parametrize(
    ("kind", "sample"),
    [
        ("Version", "GET /version 200"),
        ("Info", "GET /info 200"),
        ("Swarm", "GET /swarm 200"),
        ("[Node]", "GET /nodes 200"),
        ("Node", "GET /nodes/{id} 200"),
        ("[Service]", "GET /services 200"),
        ("Service", "GET /services/{id} 200"),
        ("Task", "GET /tasks/{id} 200"),
        ("[Secret]", "GET /secrets 200"),
        ("Config", "GET /configs/{id} 200"),
        ("Network", "GET /networks/{id} 200"),
        ("ErrorResponse", "GET /services/{id} 404"),
    ],
)
def test_the_facts_hold_for_what_dockerd_answered(kind: str, sample: str) -> None:
    assert faults(kind, _SAMPLES[sample]["response"], version=(1, 41)) == []


def test_every_type_of_the_facts_is_known() -> None:
    plain = {"string", "integer", "number", "boolean", "time", "bytes", "any", "object"}
    used = {fact.kind.strip("[]{}?") for facts in table().values() for fact in facts.values()}
    assert used - plain <= table().keys()
    assert len(table()) > 100


def test_faults_name_the_place() -> None:
    wrong = {"message": 5, "code": 1}
    assert sorted(faults("ErrorResponse", wrong)) == [
        "ErrorResponse.code is not Docker's",
        "ErrorResponse.message is 5, no string",
    ]
    assert faults("ErrorResponse", {}) == ["ErrorResponse.message is missing"]
    port = {"PrivatePort": 80, "Type": "icmp"}
    assert faults("[Port]", [port]) == ["[Port][0].Type is 'icmp', none of ['sctp', 'tcp', 'udp']"]
    shown = {"Name": "x", "Hard": None, "Soft": True}
    assert faults("Ulimit", shown) == ["Ulimit.Hard is null", "Ulimit.Soft is True, no integer"]
