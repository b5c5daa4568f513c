"""Flags of ``service create`` and ``service update`` become the bodies that Docker's own client sends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fake_engine import DIGEST, FakeEngine, Reply

ID = "7mokx85p9mz3g38nw9s4vqyev"


def created(engine: FakeEngine) -> Any:
    (request,) = engine.sent("POST", "/services/create")
    return request.body


@pytest.fixture(autouse=True)
def _accepts(engine: FakeEngine) -> None:
    engine.on("POST", "/services/create", Reply(201, {"ID": ID}))


@pytest.mark.parametrize(
    ("image", "asked", "sent"),
    [
        ("img", "/distribution/img/json", f"img:latest@{DIGEST}"),
        ("host:5000/a/img", "/distribution/host:5000/a/img/json", f"host:5000/a/img:latest@{DIGEST}"),
        ("host:5000/a/img:2", "/distribution/host:5000/a/img:2/json", f"host:5000/a/img:2@{DIGEST}"),
        (f"img@sha256:{'e' * 64}", None, f"img@sha256:{'e' * 64}"),
    ],
)
def test_an_images_digest_of_now_is_noted(
    fleet: Any, engine: FakeEngine, image: str, asked: str | None, sent: str
) -> None:
    assert fleet("service", "create", "-d", image).err == ""
    assert [request.path for request in engine.sent("GET", ".*")] == ([asked] if asked else [])
    assert created(engine)["TaskTemplate"]["ContainerSpec"]["Image"] == sent


def test_an_image_that_nobody_knows_is_taken_as_it_is_with_a_warning(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/distribution/.*", Reply(404, {"message": "no such image: img"}))
    ran = fleet("service", "create", "-d", "img")
    assert ran.code == 0 and "image img could not be found" in ran.err
    assert created(engine)["TaskTemplate"]["ContainerSpec"]["Image"] == "img"


def test_plain_create_sends_what_docker_sends(fleet: Any, engine: FakeEngine) -> None:
    # docker service create --replicas 3 --name x -p 8080:80 IMAGE CMD, as recorded from the client of 20.10
    ran = fleet(
        "service",
        "create",
        "-d",
        "--no-resolve-image",
        "--replicas",
        "3",
        "--name",
        "x",
        "-p",
        "8080:80",
        "bench/busybox:1",
        "sh",
        "-c",
        "true",
    )
    assert (ran.code, ran.out) == (0, f"{ID}\n")
    assert created(engine) == {
        "Name": "x",
        "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": {"Image": "bench/busybox:1", "Args": ["sh", "-c", "true"], "Init": False, "DNSConfig": {}},
            "Resources": {"Limits": {}, "Reservations": {}},
            "Placement": {},
            "ForceUpdate": 0,
        },
        "Mode": {"Replicated": {"Replicas": 3}},
        "EndpointSpec": {
            "Mode": "vip",
            "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}],
        },
    }


def test_references_are_looked_up_and_sent_as_ids(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/networks/net1", {"Id": "wmy9658zv07onk97zo25snrda", "Name": "net1"})
    engine.on(
        "GET", "/secrets", [{"ID": "other", "Spec": {"Name": "sec12"}}, {"ID": "secid", "Spec": {"Name": "sec1"}}]
    )
    engine.on("GET", "/configs", [{"ID": "cfgid", "Spec": {"Name": "cfg1"}}])
    ran = fleet(
        "service", "create", "--detach", "--no-resolve-image", "--name", "y", "--network", "net1", "--secret", "sec1",
        "--config", "cfg1", "-e", "A=1", "--mount", "type=volume,src=v,dst=/v", "--constraint", "node.role==worker",
        "--limit-memory", "32m", "--mode", "global", "bench/busybox:1",
    )  # fmt: skip
    assert ran.code == 0
    body = created(engine)
    assert body["TaskTemplate"]["ContainerSpec"] == {
        "Image": "bench/busybox:1",
        "Env": ["A=1"],
        "Init": False,
        "Mounts": [{"Type": "volume", "Source": "v", "Target": "/v"}],
        "DNSConfig": {},
        "Secrets": [
            {"File": {"Name": "sec1", "UID": "0", "GID": "0", "Mode": 292}, "SecretID": "secid", "SecretName": "sec1"}
        ],
        "Configs": [
            {"File": {"Name": "cfg1", "UID": "0", "GID": "0", "Mode": 292}, "ConfigID": "cfgid", "ConfigName": "cfg1"}
        ],
    }
    assert body["TaskTemplate"]["Resources"] == {"Limits": {"MemoryBytes": 33554432}, "Reservations": {}}
    assert body["TaskTemplate"]["Placement"] == {"Constraints": ["node.role==worker"]}
    assert body["TaskTemplate"]["Networks"] == [{"Target": "wmy9658zv07onk97zo25snrda"}]
    assert body["Mode"] == {"Global": {}}


@pytest.mark.parametrize(
    ("flags", "path", "expected"),
    [
        (["--limit-cpu", "1.5"], "TaskTemplate.Resources.Limits.NanoCPUs", 1_500_000_000),
        (["--limit-pids", "50"], "TaskTemplate.Resources.Limits.Pids", 50),
        (["--reserve-memory", "1g"], "TaskTemplate.Resources.Reservations.MemoryBytes", 1 << 30),
        (["--reserve-cpu", "0.001"], "TaskTemplate.Resources.Reservations.NanoCPUs", 1_000_000),
        (["--restart-delay", "1m30s"], "TaskTemplate.RestartPolicy.Delay", 90_000_000_000),
        (["--restart-condition", "on-failure"], "TaskTemplate.RestartPolicy.Condition", "on-failure"),
        (["--restart-max-attempts", "3"], "TaskTemplate.RestartPolicy.MaxAttempts", 3),
        (["--restart-window", "2h"], "TaskTemplate.RestartPolicy.Window", 7_200_000_000_000),
        (["--rollback-order", "start-first"], "RollbackConfig.Order", "start-first"),
        (["--update-max-failure-ratio", "0.25"], "UpdateConfig.MaxFailureRatio", 0.25),
        (["--stop-grace-period", "500ms"], "TaskTemplate.ContainerSpec.StopGracePeriod", 500_000_000),
        (["--stop-signal", "SIGINT"], "TaskTemplate.ContainerSpec.StopSignal", "SIGINT"),
        (["--health-cmd", "curl x"], "TaskTemplate.ContainerSpec.Healthcheck.Test", ["CMD-SHELL", "curl x"]),
        (["--health-interval", "5s"], "TaskTemplate.ContainerSpec.Healthcheck.Interval", 5_000_000_000),
        (["--no-healthcheck"], "TaskTemplate.ContainerSpec.Healthcheck.Test", ["NONE"]),
        (["--hostname", "h-{{.Task.Slot}}"], "TaskTemplate.ContainerSpec.Hostname", "h-{{.Task.Slot}}"),
        (["--entrypoint", "sh -c 'a b'"], "TaskTemplate.ContainerSpec.Command", ["sh", "-c", "a b"]),
        (["-u", "1000:10"], "TaskTemplate.ContainerSpec.User", "1000:10"),
        (["-w", "/srv"], "TaskTemplate.ContainerSpec.Dir", "/srv"),
        (["--group", "audio", "--group", "video"], "TaskTemplate.ContainerSpec.Groups", ["audio", "video"]),
        (["--read-only"], "TaskTemplate.ContainerSpec.ReadOnly", True),
        (["-t"], "TaskTemplate.ContainerSpec.TTY", True),
        (["--init"], "TaskTemplate.ContainerSpec.Init", True),
        (["--host", "db:10.0.0.9"], "TaskTemplate.ContainerSpec.Hosts", ["10.0.0.9 db"]),
        (["--dns", "1.1.1.1"], "TaskTemplate.ContainerSpec.DNSConfig.Nameservers", ["1.1.1.1"]),
        (["--dns-search", "lan"], "TaskTemplate.ContainerSpec.DNSConfig.Search", ["lan"]),
        (["--cap-add", "net_admin"], "TaskTemplate.ContainerSpec.CapabilityAdd", ["CAP_NET_ADMIN"]),
        (["--cap-drop", "ALL"], "TaskTemplate.ContainerSpec.CapabilityDrop", ["ALL"]),
        (["--sysctl", "net.core.somaxconn=1024"], "TaskTemplate.ContainerSpec.Sysctls", {"net.core.somaxconn": "1024"}),
        (
            ["--ulimit", "nofile=10:20"],
            "TaskTemplate.ContainerSpec.Ulimits",
            [{"Name": "nofile", "Soft": 10, "Hard": 20}],
        ),
        (
            ["--log-driver", "json-file", "--log-opt", "max-size=1m"],
            "TaskTemplate.LogDriver",
            {"Name": "json-file", "Options": {"max-size": "1m"}},
        ),
        (["--endpoint-mode", "dnsrr"], "EndpointSpec.Mode", "dnsrr"),
        (["--replicas-max-per-node", "2"], "TaskTemplate.Placement.MaxReplicas", 2),
        (
            ["--placement-pref", "spread=node.labels.zone"],
            "TaskTemplate.Placement.Preferences",
            [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}],
        ),
        (["--label", "a=b", "-l", "c"], "Labels", {"a": "b", "c": ""}),
        (["--container-label", "a=b"], "TaskTemplate.ContainerSpec.Labels", {"a": "b"}),
        (
            ["--mode", "replicated-job", "--replicas", "4", "--max-concurrent", "2"],
            "Mode",
            {"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 4}},
        ),
        (
            ["-p", "published=53,target=5353,protocol=udp,mode=host"],
            "EndpointSpec.Ports",
            [{"Protocol": "udp", "TargetPort": 5353, "PublishedPort": 53, "PublishMode": "host"}],
        ),
        (
            ["--mount", "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770"],
            "TaskTemplate.ContainerSpec.Mounts",
            [{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1048576, "Mode": 0o1770}}],
        ),
        (
            ["--mount", "type=bind,source=/a,target=/b,readonly,bind-propagation=rslave"],
            "TaskTemplate.ContainerSpec.Mounts",
            [
                {
                    "Type": "bind",
                    "Source": "/a",
                    "Target": "/b",
                    "ReadOnly": True,
                    "BindOptions": {"Propagation": "rslave"},
                }
            ],
        ),
        (
            ["--mount", "src=v,dst=/v,volume-driver=local,volume-opt=type=nfs,volume-nocopy"],
            "TaskTemplate.ContainerSpec.Mounts",
            [
                {
                    "Type": "volume",
                    "Source": "v",
                    "Target": "/v",
                    "VolumeOptions": {"DriverConfig": {"Name": "local", "Options": {"type": "nfs"}}, "NoCopy": True},
                }
            ],
        ),
        (
            ["--generic-resource", "gpu=2"],
            "TaskTemplate.Resources.Reservations.GenericResources",
            [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 2}}],
        ),
    ],
)
def test_flag_sets_its_place_in_the_spec(
    fleet: Any, engine: FakeEngine, flags: list[str], path: str, expected: Any
) -> None:
    ran = fleet("service", "create", "-d", *flags, "img")
    assert ran.err == ""
    found = created(engine)
    for key in path.split("."):
        found = found[key]
    assert found == expected


def test_update_config_is_filled_with_dockers_defaults_when_one_flag_is_given(fleet: Any, engine: FakeEngine) -> None:
    fleet("service", "create", "-d", "--update-parallelism", "0", "img")
    assert created(engine)["UpdateConfig"] == {
        "Parallelism": 0, "FailureAction": "pause", "Monitor": 5000000000, "MaxFailureRatio": 0, "Order": "stop-first",
    }  # fmt: skip


def test_port_range_makes_one_entry_per_port(fleet: Any, engine: FakeEngine) -> None:
    fleet("service", "create", "-d", "-p", "8000-8002:80-82/udp", "img")
    ports = created(engine)["EndpointSpec"]["Ports"]
    assert [(p["PublishedPort"], p["TargetPort"], p["Protocol"]) for p in ports] == [
        (8000, 80, "udp"), (8001, 81, "udp"), (8002, 82, "udp"),
    ]  # fmt: skip


def test_environment_comes_from_files_then_flags_then_the_caller(fleet: Any, engine: FakeEngine, tmp_path: Any) -> None:
    path = tmp_path / "e"
    path.write_text("# c\nA=file\nB='x y'\nHOMEX\n")
    ran = fleet(
        "service", "create", "-d", "--env-file", str(path), "-e", "A=flag", "-e", "C", "-e", "UNSET", "img",
        environment={"C": "c", "HOMEX": "h"},
    )  # fmt: skip
    assert ran.code == 0
    assert created(engine)["TaskTemplate"]["ContainerSpec"]["Env"] == ["A=flag", "B=x y", "HOMEX=h", "C=c"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--limit-memory", "12x"], ["--limit-memory", "'12x'", "512m"]),
        (["--limit-cpu", "-1"], ["--limit-cpu", "'-1'", "0.5"]),
        (["--restart-delay", "5"], ["--restart-delay", "'5'", "10s"]),
        (["--restart-condition", "sometimes"], ["--restart-condition", "none, on-failure, any"]),
        (["--publish", "target=80,source=me"], ["unknown source 'me'", "client or node"]),
        (["--publish", "99999:80"], ["--publish", "99999", "65535"]),
        (["--publish", "1.2.3.4:80:80"], ["--publish", "every node"]),
        (["--publish", "80-81:80"], ["--publish", "different lengths"]),
        (["--mount", "type=bind,source=rel,target=/x"], ["--mount", "absolute path"]),
        (["--mount", "type=foo,target=/x"], ["--mount", "'foo'", "volume, bind, tmpfs"]),
        (["--mount", "type=volume,source=v"], ["--mount", "target"]),
        (["--mount", "type=tmpfs,dst=/t,volume-nocopy"], ["--mount", "tmpfs"]),
        (["--replicas", "-1"], ["--replicas", "'-1'"]),
        (["--mode", "global", "--replicas", "2"], ["--replicas", "global"]),
        (["--mode", "daemonset"], ["--mode", "global-job"]),
        (["--no-healthcheck", "--health-cmd", "x"], ["--no-healthcheck"]),
        (["--ulimit", "nofile=20:10"], ["--ulimit", "soft"]),
        (["--update-max-failure-ratio", "2"], ["--update-max-failure-ratio", "0 to 1"]),
        (["--placement-pref", "node.labels.zone"], ["--placement-pref", "spread="]),
        (["--secret", "target=x"], ["--secret", "source"]),
        (["--env", "=x"], ["--env", "NAME=VALUE"]),
        (["--oom-score-adj", "5000"], ["--oom-score-adj", "1000"]),
    ],
)
def test_wrong_value_is_named_with_flag_value_and_what_is_accepted(
    fleet: Any, engine: FakeEngine, arguments: list[str], words: list[str]
) -> None:
    ran = fleet("service", "create", "-d", *arguments, "img")
    assert ran.code == 2
    assert ran.err.startswith("Error: ")
    for word in words:
        assert word in ran.err
    assert engine.requests == []


SPEC: dict[str, Any] = {
    "Name": "x",
    "Labels": {"a": "1"},
    "TaskTemplate": {
        "ContainerSpec": {
            "Image": "img:1",
            "Env": ["A=1", "B=2"],
            "Mounts": [{"Type": "volume", "Source": "v", "Target": "/v"}],
            "Secrets": [{"File": {"Name": "s"}, "SecretID": "sid", "SecretName": "s"}],
            "Privileges": {"NoNewPrivileges": True},
            "CapabilityDrop": ["CAP_NET_RAW"],
        },
        "Networks": [{"Target": "netid"}],
        "Placement": {"Constraints": ["node.role==worker"]},
        "ForceUpdate": 2,
        "Runtime": "container",
    },
    "Mode": {"Replicated": {"Replicas": 4}},
    "EndpointSpec": {
        "Mode": "vip",
        "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}],
    },
}


def update(fleet: Any, engine: FakeEngine, *flags: str) -> Any:
    engine.on("GET", "/services/x", {"ID": ID, "Version": {"Index": 957}, "Spec": SPEC})
    engine.on("GET", "/networks/net2", {"Id": "net2id"})
    engine.on("GET", "/networks/net1", {"Id": "netid"})
    engine.on("POST", f"/services/{ID}/update", {"Warnings": None})
    ran = fleet("service", "update", "-d", *flags, "x")
    assert ran.err == ""
    (request,) = engine.sent("POST", f"/services/{ID}/update")
    assert request.query["version"] == "957"
    return request.body


@pytest.mark.parametrize(
    ("flags", "path", "expected"),
    [
        (["--env-add", "B=3", "--env-add", "C=4", "--env-rm", "A"], "TaskTemplate.ContainerSpec.Env", ["B=3", "C=4"]),
        (["--label-add", "b=2", "--label-rm", "a"], "Labels", {"b": "2"}),
        (["--image", "img:2"], "TaskTemplate.ContainerSpec.Image", f"img:2@{DIGEST}"),
        (["--args", "sleep '1 2'"], "TaskTemplate.ContainerSpec.Args", ["sleep", "1 2"]),
        (["--force"], "TaskTemplate.ForceUpdate", 3),
        (["--replicas", "7"], "Mode", {"Replicated": {"Replicas": 7}}),
        (["--secret-rm", "s"], "TaskTemplate.ContainerSpec.Secrets", []),
        (
            ["--mount-rm", "/v", "--mount-add", "dst=/w"],
            "TaskTemplate.ContainerSpec.Mounts",
            [{"Type": "volume", "Target": "/w"}],
        ),
        (["--network-add", "net2", "--network-rm", "net1"], "TaskTemplate.Networks", [{"Target": "net2id"}]),
        (["--constraint-rm", "node.role == worker"], "TaskTemplate.Placement.Constraints", []),
        (["--publish-rm", "80"], "EndpointSpec.Ports", []),
        (
            ["--publish-rm", "80/udp", "--publish-add", "8081:81"],
            "EndpointSpec.Ports",
            [
                SPEC["EndpointSpec"]["Ports"][0],
                {"Protocol": "tcp", "TargetPort": 81, "PublishedPort": 8081, "PublishMode": "ingress"},
            ],
        ),
        (["--cap-add", "NET_RAW"], "TaskTemplate.ContainerSpec.Privileges", {"NoNewPrivileges": True}),
        (["--limit-memory", "1m"], "TaskTemplate.Resources.Limits", {"MemoryBytes": 1048576}),
        (["--no-read-only"], "TaskTemplate.ContainerSpec.ReadOnly", False),
    ],
)
def test_update_flag_changes_its_place_and_nothing_else(
    fleet: Any, engine: FakeEngine, flags: list[str], path: str, expected: Any
) -> None:
    body = update(fleet, engine, *flags)
    found = body
    for key in path.split("."):
        found = found[key]
    assert found == expected
    assert body["TaskTemplate"]["Runtime"] == "container"
    if not any("cap" in flag for flag in flags):
        assert body["TaskTemplate"]["ContainerSpec"]["CapabilityDrop"] == ["CAP_NET_RAW"]


def test_adding_a_dropped_capability_takes_it_off_the_other_list(fleet: Any, engine: FakeEngine) -> None:
    container = update(fleet, engine, "--cap-add", "NET_RAW")["TaskTemplate"]["ContainerSpec"]
    assert container.get("CapabilityAdd", []) == []
    assert "CapabilityDrop" not in container


def test_update_without_change_sends_the_spec_as_it_was(fleet: Any, engine: FakeEngine) -> None:
    assert update(fleet, engine) == SPEC


def test_scale_changes_replicas_alone(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/services/x", {"ID": ID, "Version": {"Index": 5}, "Spec": SPEC})
    engine.on("POST", f"/services/{ID}/update", {})
    ran = fleet("service", "scale", "-d", "x=5")
    assert ran.out == "x scaled to 5\n"
    (request,) = engine.sent("POST", f"/services/{ID}/update")
    expected = json.loads(json.dumps(SPEC))
    expected["Mode"]["Replicated"]["Replicas"] = 5
    assert request.body == expected


def test_global_service_cannot_be_scaled(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/services/x", {"ID": ID, "Version": {"Index": 5}, "Spec": {**SPEC, "Mode": {"Global": {}}}})
    ran = fleet("service", "scale", "-d", "x=5")
    assert ran.code == 2
    assert "global" in ran.err
    assert engine.sent("POST", ".*") == []


def test_rollback_posts_the_current_spec_with_the_rollback_query(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/services/x", {"ID": ID, "Version": {"Index": 1088}, "Spec": SPEC})
    engine.on("POST", f"/services/{ID}/update", {})
    assert fleet("service", "rollback", "-d", "x").code == 0
    (request,) = engine.sent("POST", f"/services/{ID}/update")
    assert request.query == {"version": "1088", "rollback": "previous"}
    assert request.body == SPEC


def test_flags_of_placement_are_labels_and_an_empty_one_takes_its_label_away(fleet: Any, engine: FakeEngine) -> None:
    flags = ("--placement-strategy", "binpack", "--affinity", "cache", "--anti-affinity", "web:5", "--rebalance", "off")
    assert fleet("service", "create", "-d", "--no-resolve-image", "-l", "a=b", *flags, "img").code == 0
    labels = {
        "a": "b",
        "fleet.placement.strategy": "binpack",
        "fleet.placement.affinity": "cache",
        "fleet.placement.anti-affinity": "web:5",
        "fleet.rebalance": "off",
    }
    assert created(engine)["Labels"] == labels
    service = {"ID": ID, "Version": {"Index": 7}, "Spec": {**created(engine), "Name": "x"}}
    engine.on("GET", "/services/.*", service)
    engine.on("POST", "/services/.*/update", {})
    flags = ("--affinity", "", "--placement-prefer", "node.role==worker:3")
    ran = fleet("service", "update", "-d", *flags, "x")
    assert ran.code == 0, ran.err
    (request,) = engine.sent("POST", "/services/.*/update")
    del labels["fleet.placement.affinity"]
    assert request.body["Labels"] == {**labels, "fleet.placement.prefer": "node.role==worker:3"}


def test_tolerations_are_entries_of_one_label(fleet: Any, engine: FakeEngine) -> None:
    flags = ("--toleration", "gpu=a100:no-schedule", "--toleration", "old")
    assert fleet("service", "create", "-d", "--no-resolve-image", *flags, "img").code == 0
    assert created(engine)["Labels"] == {"fleet.placement.toleration": "gpu=a100:no-schedule,old"}
    engine.on("GET", "/services/.*", {"ID": ID, "Version": {"Index": 7}, "Spec": {**created(engine), "Name": "x"}})
    engine.on("POST", "/services/.*/update", {})
    for flags, labels in (
        (
            ("--toleration-rm", "gpu", "--toleration-add", "*:no-execute"),
            {"fleet.placement.toleration": "old,*:no-execute"},
        ),
        (("--toleration-rm", "gpu=a100:no-schedule", "--toleration-rm", "old"), {}),
    ):
        ran = fleet("service", "update", "-d", *flags, "x")
        assert ran.code == 0, ran.err
        assert engine.sent("POST", "/services/.*/update")[-1].body["Labels"] == labels
    assert "the service does not tolerate that" in fleet("service", "update", "-d", "--toleration-rm", "g", "x").err
    ran = fleet("service", "update", "-d", "--toleration-add", "gpu:sometimes", "x")
    assert ran.code == 2 and "effect 'sometimes' is none of no-schedule" in ran.err


def test_a_port_that_shows_its_clients_is_a_label_and_the_label_goes_with_it(fleet: Any, engine: FakeEngine) -> None:
    flags = ["-p", "published=80,target=8080,source=client", "-p", "53:53/udp"]
    assert fleet("service", "create", "-d", *flags, "img").err == ""
    body = created(engine)
    assert body["Labels"] == {"fleet.publish.source.8080/tcp": "client"}
    ports = [(port["TargetPort"], port["PublishedPort"], port["Protocol"]) for port in body["EndpointSpec"]["Ports"]]
    assert ports == [(8080, 80, "tcp"), (53, 53, "udp")] and all(
        "Source" not in p for p in body["EndpointSpec"]["Ports"]
    )


@pytest.mark.parametrize(
    ("flags", "labels"),
    [
        (["--publish-add", "published=81,target=81,source=client"], {"fleet.publish.source.81/tcp": "client"}),
        (["--publish-add", "published=8080,target=80,source=node"], {"fleet.publish.source.80/tcp": "node"}),
        (["--publish-rm", "80"], {}),
        (["--publish-add", "81:81"], {}),
    ],
)
def test_whose_address_is_seen_can_be_changed(
    fleet: Any, engine: FakeEngine, flags: list[str], labels: dict[str, str]
) -> None:
    assert update(fleet, engine, *flags)["Labels"] == {"a": "1", **labels}


def test_labels_of_ports_that_stay_are_left_alone(
    fleet: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"fleet.publish.source": "client", "fleet.publish.source.80": "node"}
    monkeypatch.setitem(SPEC, "Labels", {**kept, "fleet.publish.source.81/tcp": "client"})
    assert update(fleet, engine, "--publish-add", "82:82")["Labels"] == kept
