"""Compose text -> the values of the model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fleet import errors
from fleet.compose.convert import Sources, Stack, convert
from fleet.compose.load import load
from fleet.model import wire
from fleet.model.autoscale import explain_policy
from fleet.model.service import RestartCondition, ServiceSpec

EXAMPLES = Path(__file__).parents[3] / "compose-examples"


def deploy(
    *texts: str, environment: Mapping[str, str] | None = None, files: Mapping[str, bytes] | None = None
) -> Stack:
    held = files or {}

    def read_file(path: str, _size_max: int) -> bytes:
        if path not in held:
            raise FileNotFoundError(2, "No such file or directory")
        return held[path]

    names = [(f"f{i}.yml" if i else "f.yml", text) for i, text in enumerate(texts)]
    loaded = load(names, environment=environment or {})
    sources = Sources(environment=environment or {}, directory="/srv/app", read_file=read_file)
    return convert(loaded.document, stack="s", sources=sources)


def service(body: str, *, more: str = "", **given: Any) -> ServiceSpec:
    text = "services:\n  web:\n    image: img\n" + "".join(f"    {line}\n" for line in body.splitlines()) + more
    (spec,) = deploy(text, **given).services
    return spec


def builtins_of(value: object) -> Any:
    return json.loads(wire.encode(value))


def as_json(value: object, path: str) -> Any:
    found = builtins_of(value)
    for key in path.split("."):
        found = found[key]
    return found


def test_smallest_stack() -> None:
    stack = deploy("services: {web: {image: img}}")
    (spec,) = stack.services
    assert spec.name == "s_web"
    assert spec.labels == {"com.docker.stack.namespace": "s", "com.docker.stack.image": "img"}
    assert spec.task_template.container_spec.labels == {"com.docker.stack.namespace": "s"}
    assert builtins_of(spec.task_template.networks) == [{"Target": "s_default", "Aliases": ["web"]}]
    assert [(n.name, n.driver, n.labels) for n in stack.networks] == [
        ("s_default", "overlay", {"com.docker.stack.namespace": "s"})
    ]


@pytest.mark.parametrize(
    ("body", "path", "expected"),
    [
        ("command: sh -c 'a b'", "TaskTemplate.ContainerSpec.Args", ["sh", "-c", "a b"]),
        ("command: [sh, -c, a b]", "TaskTemplate.ContainerSpec.Args", ["sh", "-c", "a b"]),
        ("entrypoint: /run me", "TaskTemplate.ContainerSpec.Command", ["/run", "me"]),
        ("environment: {B: 2, A: 1.10, C: no}", "TaskTemplate.ContainerSpec.Env", ["A=1.10", "B=2", "C=no"]),
        ("environment: [B=2, A=1=x]", "TaskTemplate.ContainerSpec.Env", ["A=1=x", "B=2"]),
        (
            "labels: [a=b, c]",
            "TaskTemplate.ContainerSpec.Labels",
            {"a": "b", "c": "", "com.docker.stack.namespace": "s"},
        ),
        (
            "ports: ['8080:80', 53/udp]",
            "EndpointSpec.Ports",
            [{"Protocol": "udp", "TargetPort": 53}, {"TargetPort": 80, "PublishedPort": 8080}],
        ),
        (
            "ports: [{target: 80, published: '8080', mode: host, name: web}]",
            "EndpointSpec.Ports",
            [{"Name": "web", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"}],
        ),
        (
            "ports: [8000-8001:80-81]",
            "EndpointSpec.Ports",
            [{"TargetPort": 80, "PublishedPort": 8000}, {"TargetPort": 81, "PublishedPort": 8001}],
        ),
        (
            "volumes: ['/data:/d:ro']",
            "TaskTemplate.ContainerSpec.Mounts",
            [{"Type": "bind", "Source": "/data", "Target": "/d", "ReadOnly": True}],
        ),
        (
            "volumes: ['./rel:/d']",
            "TaskTemplate.ContainerSpec.Mounts",
            [{"Type": "bind", "Source": "/srv/app/rel", "Target": "/d"}],
        ),
        ("volumes: [/anon]", "TaskTemplate.ContainerSpec.Mounts", [{"Target": "/anon", "VolumeOptions": {}}]),
        (
            "volumes: [{type: tmpfs, target: /t, tmpfs: {size: 1m, mode: 01770}}]",
            "TaskTemplate.ContainerSpec.Mounts",
            [{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1048576, "Mode": 1016}}],
        ),
        (
            "tmpfs: '/t:size=1m'",
            "TaskTemplate.ContainerSpec.Mounts",
            [{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1048576}}],
        ),
        (
            "healthcheck: {test: curl x, interval: 5s, retries: 2}",
            "TaskTemplate.ContainerSpec.Healthcheck",
            {"Test": ["CMD-SHELL", "curl x"], "Interval": 5_000_000_000, "Retries": 2},
        ),
        ("healthcheck: {test: [CMD, a]}", "TaskTemplate.ContainerSpec.Healthcheck.Test", ["CMD", "a"]),
        ("healthcheck: {disable: true}", "TaskTemplate.ContainerSpec.Healthcheck.Test", ["NONE"]),
        ("stop_grace_period: 1m30s", "TaskTemplate.ContainerSpec.StopGracePeriod", 90_000_000_000),
        ("extra_hosts: ['db:10.0.0.1']", "TaskTemplate.ContainerSpec.Hosts", ["10.0.0.1 db"]),
        ("extra_hosts: {db: 10.0.0.1}", "TaskTemplate.ContainerSpec.Hosts", ["10.0.0.1 db"]),
        ("dns: 1.1.1.1", "TaskTemplate.ContainerSpec.DNSConfig", {"Nameservers": ["1.1.1.1"]}),
        (
            "ulimits: {nofile: {soft: 1, hard: 2}, nproc: 3}",
            "TaskTemplate.ContainerSpec.Ulimits",
            [{"Name": "nofile", "Soft": 1, "Hard": 2}, {"Name": "nproc", "Soft": 3, "Hard": 3}],
        ),
        ("sysctls: [net.core.somaxconn=1]", "TaskTemplate.ContainerSpec.Sysctls", {"net.core.somaxconn": "1"}),
        (
            "logging: {driver: json-file, options: {max-size: 1m}}",
            "TaskTemplate.LogDriver",
            {"Name": "json-file", "Options": {"max-size": "1m"}},
        ),
        ("deploy: {mode: global}", "Mode", {"Global": {}}),
        ("deploy: {replicas: 0}", "Mode", {"Replicated": {"Replicas": 0}}),
        ("scale: 4", "Mode", {"Replicated": {"Replicas": 4}}),
        ("deploy: {endpoint_mode: dnsrr}", "EndpointSpec.Mode", "dnsrr"),
        (
            "deploy: {labels: {x: 1}}",
            "Labels",
            {"x": "1", "com.docker.stack.namespace": "s", "com.docker.stack.image": "img"},
        ),
        (
            "deploy: {placement: {constraints: [a==b], preferences: [{spread: node.labels.z}], max_replicas_per_node: 2}}",
            "TaskTemplate.Placement",
            {
                "Constraints": ["a==b"],
                "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.z"}}],
                "MaxReplicas": 2,
            },
        ),
        (
            "deploy: {resources: {limits: {cpus: '0.5', memory: 64M, pids: 9}, reservations: {memory: 1g}}}",
            "TaskTemplate.Resources",
            {
                "Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 64 << 20, "Pids": 9},
                "Reservations": {"MemoryBytes": 1 << 30},
            },
        ),
        (
            "deploy: {restart_policy: {condition: on-failure, delay: 0s, max_attempts: 3, window: 2m}}",
            "TaskTemplate.RestartPolicy",
            {"Condition": "on-failure", "Delay": 0, "MaxAttempts": 3, "Window": 120_000_000_000},
        ),
        ("restart: on-failure:3", "TaskTemplate.RestartPolicy", {"Condition": "on-failure", "MaxAttempts": 3}),
        (
            "deploy: {update_config: {parallelism: 2, order: start-first, failure_action: rollback, max_failure_ratio: 0.5}}",
            "UpdateConfig",
            {"Parallelism": 2, "Order": "start-first", "FailureAction": "rollback", "MaxFailureRatio": 0.5},
        ),
        (
            "deploy: {rollback_config: {x-progress-deadline: 2m}}",
            "RollbackConfig",
            {"MaxFailureRatio": 0.0, "ProgressDeadline": 120_000_000_000},
        ),
        ("init: true", "TaskTemplate.ContainerSpec.Init", True),
        ("user: 1000", "TaskTemplate.ContainerSpec.User", "1000"),
    ],
)
def test_key_becomes_its_place_in_the_spec(body: str, path: str, expected: Any) -> None:
    assert as_json(service(body), path) == expected


def test_restart_no_means_none() -> None:
    policy = service('restart: "no"').task_template.restart_policy
    assert policy is not None
    assert policy.condition is RestartCondition.NONE


def test_environment_without_value_is_taken_from_the_caller_or_left_out() -> None:
    spec = service("environment: [A, B]", environment={"A": "1"})
    assert spec.task_template.container_spec.env == ("A=1",)


def test_env_file_is_under_environment() -> None:
    files = {"a.env": b"A=file\nB=file\n# c\nexport C='q'\n"}
    spec = service("env_file: a.env\nenvironment: {B: own}", files=files)
    assert spec.task_template.container_spec.env == ("A=file", "B=own", "C=q")


def test_optional_env_file_may_be_absent() -> None:
    assert service("env_file: [{path: x.env, required: false}]").task_template.container_spec.env == ()


def test_named_volume_carries_its_definition() -> None:
    more = "volumes: {data: {driver: local, driver_opts: {type: nfs}}, old: {external: true, name: real}}\n"
    spec = service("volumes: ['data:/d', 'old:/o:nocopy']", more=more)
    assert builtins_of(spec.task_template.container_spec.mounts) == [
        {
            "Source": "s_data",
            "Target": "/d",
            "VolumeOptions": {
                "Labels": {"com.docker.stack.namespace": "s"},
                "DriverConfig": {"Name": "local", "Options": {"type": "nfs"}},
            },
        },
        {"Source": "real", "Target": "/o", "VolumeOptions": {"NoCopy": True}},
    ]


def test_networks_have_aliases_names_and_externals() -> None:
    stack = deploy(
        """
services:
  web:
    image: img
    networks:
      front: {aliases: [www]}
      back:
networks:
  front: {name: edge, internal: true, attachable: true, driver_opts: {encrypted: ""}, ipam: {config: [{subnet: 10.9.0.0/24}]}}
  back: {external: true}
  unused: {}
"""
    )
    (spec,) = stack.services
    assert builtins_of(spec.task_template.networks) == [
        {"Target": "back", "Aliases": ["web"]},
        {"Target": "edge", "Aliases": ["web", "www"]},
    ]
    (network,) = stack.networks
    assert (network.name, network.internal, network.attachable, network.options) == (
        "edge",
        True,
        True,
        {"encrypted": ""},
    )
    assert network.ipam is not None
    assert network.ipam.config[0].subnet == "10.9.0.0/24"
    assert stack.external_networks == ("back",)


def test_secrets_and_configs_are_read_and_referred_to() -> None:
    stack = deploy(
        """
services:
  web:
    image: img
    secrets: [tok, {source: ext, target: t, mode: 0400, uid: "5"}]
    configs: [{source: conf, target: /etc/c}]
secrets: {tok: {file: ./tok.txt}, ext: {external: true}}
configs: {conf: {content: "x=${V}"}, e: {environment: V}}
""",
        environment={"V": "1"},
        files={"./tok.txt": b"data"},
    )
    assert [(s.name, s.data) for s in stack.secrets] == [("s_tok", b"data")]
    assert [(c.name, c.data) for c in stack.configs] == [("s_conf", b"x=1"), ("s_e", b"1")]
    (spec,) = stack.services
    assert builtins_of(spec.task_template.container_spec.secrets) == [
        {"File": {"Name": "tok", "Mode": 0o444}, "SecretName": "s_tok"},
        {"File": {"Name": "t", "UID": "5", "Mode": 0o400}, "SecretName": "ext"},
    ]
    assert builtins_of(spec.task_template.container_spec.configs) == [
        {"File": {"Name": "/etc/c", "Mode": 0o444}, "ConfigName": "s_conf"}
    ]


@pytest.mark.parametrize(
    ("body", "line", "words"),
    [
        ("imag: x", 4, "did you mean 'image'"),
        ("deploy: {replica: 1}", 4, "did you mean 'replicas'"),
        ("deploy: {replicas: many}", 4, "services.web.deploy.replicas: expected a whole number"),
        ("deploy: {replicas: -1}", 4, "0 or more"),
        ("deploy: {mode: global, replicas: 2}", 4, "no meaning"),
        ("deploy:\n  resources:\n    limits:\n      memory: 12x", 7, "'12x' is not a size"),
        ("deploy: {update_config: {delay: 5}}", 4, "'5' is not a duration"),
        ("deploy: {restart_policy: {condition: maybe}}", 4, "none, on-failure, any"),
        ("ports: ['80:80:80']", 4, "no host address"),
        ("ports: [{published: 80}]", 4, "target"),
        ("ports: [{target: 80, x-source: me}]", 4, "client or node"),
        ("deploy: {labels: {fleet.publish.source: me}}", 4, "'me' is not client or node"),
        ("volumes: ['data:/d']", 4, "'data' is not defined"),
        ("volumes: ['./a:rel']", 4, "absolute"),
        ("volumes: ['./a:/b:weird']", 4, "'weird'"),
        ("networks: [nope]", 4, "'nope' is not defined"),
        ("secrets: [nope]", 4, "'nope' is not defined"),
        ("environment: [1, {a: b}]", 4, "expected a string"),
        ('command: "sh -c \'a"', 4, "closing quotation"),
        ("user: true", 4, "quotes"),
        ("cap_add: NET_ADMIN: x", 4, "YAML"),
        ("mem_limit: 1g", 4, "deploy.resources.limits.memory"),
        ("extends: {service: x}", 4, "there is no service 'x' in f.yml; known are web"),
        ("env_file: missing.env", 4, "no file missing.env"),
        ("healthcheck: {test: [curl]}", 4, "CMD-SHELL"),
        ("image: ${V:?give V}", 4, "give V"),
    ],
)
def test_mistake_is_told_with_file_line_and_what_is_accepted(body: str, line: int, words: str) -> None:
    text = body if body.startswith("image") else f"image: img\n{body}"
    shift = 1 if body.startswith("image") else 0
    with pytest.raises(errors.UserError) as caught:
        deploy("services:\n  web:\n" + "".join(f"    {part}\n" for part in text.splitlines()))
    assert re.match(rf"f\.yml:{line - shift}:[1-9][0-9]*: ", str(caught.value))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text", ["services: {}", "services:", "version: '3'", "services: {web: {command: x}}", "services: [a]", "[]"]
)
def test_file_without_a_service_that_can_run_is_refused(text: str) -> None:
    with pytest.raises(errors.UserError):
        deploy(text)


def test_key_that_is_not_honoured_is_named_with_its_line() -> None:
    text = "services:\n  web:\n    image: img\n    container_name: x\n    privileged: false\n    ipc: host\n"
    warnings = load([("f.yml", text)], environment={}).warnings
    assert [w.partition(" is not honoured")[0] for w in warnings] == [
        "f.yml:4:5: services.web.container_name",
        "f.yml:6:5: services.web.ipc",
    ]


def test_unset_variable_is_told_once_with_its_line() -> None:
    text = "services:\n  web:\n    image: $IMG\n    command: $IMG\n"
    assert load([("f.yml", text)], environment={}).warnings == (
        "f.yml:3:12: the variable IMG is not set; an empty string is used",
    )


def test_extension_keys_are_free() -> None:
    text = "x-common: &c {image: img}\nservices: {web: {<<: *c, x-note: 1}}\n"
    loaded = load([("f.yml", text)], environment={})
    assert loaded.warnings == ()


def test_later_file_wins_by_the_rules_of_the_specification() -> None:
    base = """
services:
  web:
    image: img:1
    command: [a, b]
    environment: [A=1, B=2]
    ports: ['8080:80']
    volumes: ['/a:/d', '/b:/e']
    deploy: {replicas: 2, labels: {x: 1}}
    networks: [front]
networks: {front: {}}
"""
    override = """
services:
  web:
    image: img:2
    command: [c]
    environment: {B: 3}
    ports: ['8080:80', '9090:90']
    volumes: ['/c:/d']
    deploy: {replicas: 5}
    networks: {front: {aliases: [w]}}
  more: {image: other}
"""
    web, *_ = (s for s in deploy(base, override).services if s.name == "s_web")
    container = web.task_template.container_spec
    assert (container.image, container.args, container.env) == ("img:2", ("c",), ("A=1", "B=3"))
    assert [p.published_port for p in (web.endpoint_spec or pytest.fail("no endpoint")).ports] == [8080, 9090]
    assert [(m.source, m.target) for m in container.mounts] == [("/c", "/d"), ("/b", "/e")]
    assert web.replicas == 5
    assert web.labels["x"] == "1"
    assert web.task_template.networks[0].aliases == ("web", "w")


def test_a_later_file_takes_away_and_replaces_whole() -> None:
    base = "services: {web: {image: i, ports: ['80:80', '81:81'], environment: {A: 1, B: 2}, command: [x], init: true}}"
    middle = "services: {web: {ports: !override ['90:90'], environment: {A: !reset null}, init: !reset true}}"
    (web,) = deploy(base, middle, "services: {web: {ports: ['91:91'], command: !reset []}}").services
    container = web.task_template.container_spec
    assert [p.published_port for p in (web.endpoint_spec or pytest.fail("no endpoint")).ports] == [90, 91]
    assert (container.env, container.args, container.init) == (("B=2",), (), None)


def test_key_of_an_env_file_that_is_not_honoured_is_named() -> None:
    text = "services:\n  web:\n    image: i\n    env_file: [{path: a.env, format: raw}]\n"
    (warning,) = load([("f.yml", text)], environment={}).warnings
    assert warning.startswith("f.yml:4:30: services.web.env_file[0].format is not honoured")
    with pytest.raises(errors.UserError, match="did you mean 'required'"):
        load([("f.yml", text.replace("format", "requird"))], environment={})


def test_files_whose_shapes_differ_are_refused() -> None:
    with pytest.raises(errors.UserError, match=r"f1\.yml:1:\d+: services\.web\.cap_add.*f\.yml:1:\d+"):
        deploy("services: {web: {image: i, cap_add: [A]}}", "services: {web: {cap_add: {a: b}}}")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/stack.yml")), ids=lambda p: p.parent.name)
def test_shipped_example_converts_without_a_warning(path: Path) -> None:
    loaded = load([(str(path), path.read_text())], environment={})
    assert loaded.warnings == ()
    sources = Sources(
        environment={}, directory=str(path.parent), read_file=lambda name, _n: (path.parent / name).read_bytes()
    )
    stack = convert(loaded.document, stack="hello", sources=sources)
    assert all(spec.task_template.container_spec.image for spec in stack.services)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ('{fleet.autoscale.max: "9"}', "give one of fleet.autoscale.cpu"),
        ('{fleet.autoscale.max: "9", fleet.autoscale.memory: "80"}', "service s_web has none; give it one"),
        ('["fleet.autoscale.max=none"]', "label fleet.autoscale.max: 'none' is no number of tasks"),
    ],
)
def test_a_policy_that_is_none_is_refused_with_its_line(labels: str, sentence: str) -> None:
    with pytest.raises(errors.UserError) as refused:
        service(f"deploy:\n  labels: {labels}")
    assert str(refused.value).startswith("f.yml:5:7: services.web.deploy.labels: label fleet.autoscale.")
    assert sentence in str(refused.value)


def test_the_examples_policy_is_one() -> None:
    texts = [(EXAMPLES / "queue" / name).read_text() for name in ("stack.yml", "autoscale.yml")]
    files = {f"./{name}": b"x" for name in ("work.py", "prometheus.yml")}
    environment = {"PROMETHEUS_HOST": "10.0.0.1"}
    worker = next(
        each for each in deploy(*texts, files=files, environment=environment).services if each.name == "s_worker"
    )
    assert explain_policy(worker) == "1 to 6 tasks, 50 a task of 'sum(queue_waiting)' from http://10.0.0.1:9091"


def test_a_port_that_shows_its_clients_is_a_label_of_the_service() -> None:
    spec = service("ports: [{target: 80, published: 8080, x-source: client}, '53:53/udp']")
    assert spec.labels["fleet.publish.source.80/tcp"] == "client"
    assert [(port.target_port, port.published_port) for port in spec.endpoint_spec.ports] == [(53, 53), (80, 8080)]  # type: ignore[union-attr]
