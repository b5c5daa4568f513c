"""What a spec may not say, and the sentence for it."""

from __future__ import annotations

from typing import Any

import pytest

from fleet import errors
from fleet.manager.control.service_spec import check_service_spec, normal_spec
from fleet.model import wire
from fleet.model.service import ServiceSpec


def parse(body: dict[str, Any]) -> ServiceSpec:
    return normal_spec(wire.parse_builtins(body, ServiceSpec, what="service spec"))


def service(**changes: Any) -> dict[str, Any]:
    """A good body with changes: ``Container__X`` goes into the container spec, ``Task__X`` into the task template."""
    container: dict[str, Any] = {"Image": "nginx:1"}
    template: dict[str, Any] = {"ContainerSpec": container}
    body: dict[str, Any] = {"Name": "web", "TaskTemplate": template}
    for key, value in changes.items():
        place, _, name = key.partition("__")
        {"Container": container, "Task": template}.get(place, body)[name or place] = value
    return body


GOOD = [
    service(Mode={"ReplicatedJob": {"MaxConcurrent": 0, "TotalCompletions": 5}}),
    service(Mode={"GlobalJob": {}}),
    service(),
    service(Name="a" * 63),
    service(Name="a_b-c--D9"),
    service(Mode={"Global": {}}),
    service(Mode={"Replicated": {"Replicas": 0}}),
    service(Container__Image="registry.example:5000/team/app@sha256:" + "0" * 64),
    service(Container__Env=["A=", "B", "C==x"]),
    service(Container__StopSignal="SIGRTMIN+3"),
    service(Container__StopSignal="term"),
    service(Container__StopSignal="9"),
    service(Container__Healthcheck={"Test": ["CMD-SHELL", "true"], "Interval": 1_000_000}),
    service(Container__Mounts=[{"Type": "tmpfs", "Target": "/t"}, {"Type": "bind", "Source": "/x", "Target": "/b"}]),
    service(Container__Mounts=[{"Type": "volume", "Target": "/anonymous"}]),
    service(Container__Privileges={"Seccomp": {"Mode": "default"}, "NoNewPrivileges": True}),
    service(Container__Hosts=["10.0.0.1 db db.local"]),
    service(Task__Resources={"Limits": {"NanoCPUs": 1_000_000, "MemoryBytes": 4 << 20}, "SwapBytes": -1}),
    service(Task__Placement={"Constraints": ["node.role == worker", "node.labels.zone!=eu"]}),
    service(UpdateConfig={"MaxFailureRatio": 1, "FailureAction": "rollback", "Order": "start-first"}),
    service(EndpointSpec={"Mode": "dnsrr", "Ports": [{"TargetPort": 1, "PublishMode": "host", "PublishedPort": 2}]}),
    service(EndpointSpec={"Ports": [{"TargetPort": 53, "PublishedPort": 53, "Protocol": p} for p in ("tcp", "udp")]}),
    service(EndpointSpec={"Ports": [{"TargetPort": 80}, {"TargetPort": 81}]}),
    service(Task__Networks=[{"Target": "a"}], Networks=[{"Target": "a"}]),
]

BAD = [
    (service(Mode={"GlobalJob": {}}, UpdateConfig={"Parallelism": 1}), "update config is not allowed"),
    (service(Mode={"ReplicatedJob": {"TotalCompletions": 1000000}}), "TotalCompletions"),
    (service(Name="a" * 64), "63 characters or fewer"),
    (service(Name="-a"), "DNS name component"),
    (service(Labels={"fleet.publish.source": "me"}), "label fleet.publish.source: 'me' is not client or node"),
    (service(Labels={"fleet.publish.source.0": "client"}), "the port in the container"),
    (service(Labels={"fleet.publish.source.80/tpc": "client"}), "the port in the container"),
    (service(Name="a.b"), "DNS name component"),
    (service(Name="a\n"), "DNS name component"),
    (service(Labels={"": "x"}), "label has an empty name"),
    (service(Mode={"Global": {}, "Replicated": {"Replicas": 1}}), "only one service mode"),
    (service(Mode={"Replicated": {"Replicas": -1}}), "non-negative"),
    (service(Mode={"Replicated": {"Replicas": 100_001}}), "at most 100000"),
    (service(Mode={"Replicated": {"Replicas": "3"}}), "Mode.Replicated.Replicas: expected int | null, got str"),
    (service(Container__Image=""), "image reference must be provided"),
    (service(Container__Image="team/UPPER"), "not a valid repository/tag"),
    (service(Container__Env=["=x"]), "has no name"),
    (service(Container__StopGracePeriod=-1), "StopGracePeriod cannot be negative"),
    (service(Container__StopSignal="SIGNOPE"), "not a signal"),
    (service(Container__StopSignal="65"), "not a signal"),
    (service(Container__Healthcheck={"Interval": -1}), "Interval in Healthcheck"),
    (service(Container__Healthcheck={"Timeout": 999_999}), "Timeout in Healthcheck cannot be less than 1ms"),
    (service(Container__Healthcheck={"Retries": -1}), "Retries"),
    (service(Container__Healthcheck={"Test": ["echo", "x"]}), "NONE, CMD or CMD-SHELL"),
    (service(Container__Hosts=["10.0.0.1"]), "host entry"),
    (service(Container__OomScoreAdj=1001), "between -1000 and 1000"),
    (service(Container__Ulimits=[{"Name": "nofile", "Soft": 2, "Hard": 1}]), "above the hard limit"),
    (
        service(Container__Mounts=[{"Type": "volume", "Target": "/a"}, {"Type": "tmpfs", "Target": "/a/"}]),
        "duplicate mount",
    ),
    (service(Container__Mounts=[{"Type": "bind", "Source": "x", "Target": "/a"}]), "must be absolute"),
    (service(Container__Mounts=[{"Type": "bind", "Source": "/x", "Target": "a"}]), "must be absolute"),
    (service(Container__Mounts=[{"Type": "volume", "Target": "/"}]), "can't be '/'"),
    (service(Container__Mounts=[{"Type": "tmpfs", "Source": "x", "Target": "/a"}]), "tmpfs has no source"),
    (
        service(Container__Mounts=[{"Type": "volume", "Target": "/a", "TmpfsOptions": {"SizeBytes": 5}}]),
        "do not go with type volume",
    ),
    (
        service(Container__Secrets=[{"SecretName": n, "File": {"Name": "same"}} for n in ("a", "b")]),
        "secret references 'a' and 'b' have a conflicting target: 'same'",
    ),
    (service(Container__Secrets=[{"SecretName": "a", "File": {"Name": "../x"}}]), "must not contain '..'"),
    (service(Container__Configs=[{"ConfigName": "a", "File": {"Name": "x", "Mode": 1 << 20}}]), "not permission bits"),
    (service(Task__Resources={"Limits": {"NanoCPUs": 999_999}}), "invalid cpu value"),
    (service(Task__Resources={"Limits": {"NanoCPUs": -5}}), "invalid cpu value"),
    (service(Task__Resources={"Reservations": {"MemoryBytes": 4_194_303}}), "at least 4MiB"),
    (service(Task__Resources={"Limits": {"Pids": -1}}), "pids"),
    (service(Task__RestartPolicy={"Delay": -1}), "restart-delay cannot be negative"),
    (service(Task__RestartPolicy={"MaxAttempts": -1}), "restart-max-attempts"),
    (service(Task__RestartPolicy={"Window": -1}), "restart-window"),
    (service(Task__RestartPolicy={"Condition": "sometimes"}), "Condition: invalid enum value"),
    (service(Task__Placement={"Constraints": ["node.labels.x=y"]}), "node.labels.x=y"),
    (service(Task__Placement={"MaxReplicas": -1}), "MaxReplicas"),
    (service(Task__Placement={"Preferences": [{}]}), "Spread"),
    (service(Task__Networks=[{"Target": "a"}], Networks=[{"Target": "b"}]), "give them once"),
    (service(UpdateConfig={"Parallelism": -1}), "UpdateConfig: parallelism"),
    (service(UpdateConfig={"Delay": -1}), "UpdateConfig: delay"),
    (service(UpdateConfig={"Monitor": -1}), "UpdateConfig: monitor"),
    (service(UpdateConfig={"MaxFailureRatio": 1.01}), "max failure ratio"),
    (service(UpdateConfig={"FailureAction": "explode"}), "failure action must be one of"),
    (service(UpdateConfig={"Order": "random"}), "order must be one of"),
    (
        service(RollbackConfig={"FailureAction": "rollback"}),
        "RollbackConfig: failure action must be one of pause, continue",
    ),
    (service(EndpointSpec={"Mode": "dnsrr", "Ports": [{"TargetPort": 1}]}), "dnsrr"),
    (service(EndpointSpec={"Ports": [{"TargetPort": 0}]}), "target port 0"),
    (service(EndpointSpec={"Ports": [{"TargetPort": 1, "PublishedPort": 65536}]}), "published port 65536"),
    (
        service(EndpointSpec={"Ports": [{"TargetPort": t, "PublishedPort": 80} for t in (1, 2)]}),
        "duplicate published ports provided: 80/tcp",
    ),
    (service(Labels={"x": "y" * 60_000, **{f"l{i}": "y" * 60_000 for i in range(5)}}), "larger than the limit"),
]

UNSUPPORTED = [
    (service(Task__Runtime="plugin"), "runtime"),
    (service(Container__Isolation="process"), "Isolation"),
    (service(Container__Privileges={"AppArmor": {"Mode": "custom"}}), "AppArmor"),
    (service(Container__Mounts=[{"Type": "cluster", "Target": "/a"}]), "type 'cluster'"),
    (service(Container__Configs=[{"ConfigName": "a", "Runtime": {}}]), "credential specs"),
    (service(Task__Resources={"MemorySwappiness": 50}), "Swappiness"),
    (service(Task__Networks=[{"Target": "a", "DriverOpts": {"x": "y"}}]), "driver options"),
]


@pytest.mark.parametrize("body", GOOD)
def test_good_specs_pass(body: dict[str, Any]) -> None:
    check_service_spec(parse(body))


@pytest.mark.parametrize(("body", "sentence"), BAD)
def test_bad_specs_are_the_users_to_mend(body: dict[str, Any], sentence: str) -> None:
    with pytest.raises(errors.UserError) as caught:
        check_service_spec(parse(body))
    assert sentence in str(caught.value)
    assert caught.value.http_status in (400, 413)


@pytest.mark.parametrize(("body", "sentence"), UNSUPPORTED)
def test_unsupported_specs_say_what_is_not_supported(body: dict[str, Any], sentence: str) -> None:
    with pytest.raises(errors.UnsupportedError) as caught:
        check_service_spec(parse(body))
    assert sentence in str(caught.value)


def test_empty_name_is_refused_where_none_is_made_up() -> None:
    with pytest.raises(errors.UserError, match="name must be provided"):
        check_service_spec(parse(service(Name="")))
