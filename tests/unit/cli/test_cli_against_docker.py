"""The same flags and the same Compose files through Docker's own client and through fleet give the same specs.

Both clients talk to the same fake daemon. What one spells out and the other leaves to the default counts as equal.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleet.cli.stack_plan import comparable, differences, spelled_out
from fleet.model import wire
from fleet.model.network import NetworkSpec
from fleet.model.service import HealthConfig, ReplicatedMode, ServiceMode, ServiceSpec
from tests.support.fake_engine import FakeEngine, Reply

pytestmark = pytest.mark.skipif(shutil.which("docker") is None, reason="Docker's client is not installed")


@pytest.fixture
def docker(engine: FakeEngine, tmp_path: Path) -> Any:
    engine.on("HEAD", "/_ping", None)
    engine.on("GET", "/info", {"Swarm": {"LocalNodeState": "active", "ControlAvailable": True}})
    for kind in ("services", "networks", "secrets", "configs"):
        engine.on("GET", f"/{kind}", [])
    engine.on("POST", "/services/create", Reply(201, {"ID": "s"}))
    engine.on("POST", "/networks/create", Reply(201, {"Id": "front-id"}))

    def run(*arguments: str) -> None:
        environment = {"PATH": os.environ["PATH"], "DOCKER_HOST": engine.url, "HOME": str(tmp_path), "OWN": "1"}
        ran = subprocess.run(
            ["docker", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        if "unknown flag" in ran.stderr:
            pytest.skip(f"not run: this docker client is too old: {ran.stderr.splitlines()[0]}")
        assert ran.returncode == 0, ran.stderr

    return run


def specs(engine: FakeEngine) -> list[ServiceSpec]:
    found = [parse(r.body) for r in engine.sent("POST", "/services/create")]
    engine.requests.clear()
    return sorted(found, key=lambda spec: spec.name)


def parse(body: Any) -> ServiceSpec:
    """As the daemon reads it; empty parts are dropped, because Docker's client sends some for nothing."""
    spec = comparable(wire.parse_builtins(body, ServiceSpec, what="spec"))
    container = spec.task_template.container_spec
    mode = spec.mode
    if mode.replicated is not None and mode.replicated.replicas is None:
        spec = msgspec.structs.replace(spec, mode=ServiceMode(replicated=ReplicatedMode(replicas=1)))
    if container.healthcheck == HealthConfig():
        container = msgspec.structs.replace(container, healthcheck=None)
    if container.init is False:
        container = msgspec.structs.replace(container, init=None)
    mounts = tuple(
        msgspec.structs.replace(
            mount,
            volume_options=None if mount.volume_options == type(mount.volume_options)() else mount.volume_options,
        )
        if mount.volume_options is not None
        else mount
        for mount in container.mounts
    )
    container = msgspec.structs.replace(container, mounts=mounts)
    return msgspec.structs.replace(
        spec, task_template=msgspec.structs.replace(spec.task_template, container_spec=container)
    )


def unlike(theirs: object, ours: object) -> list[str]:
    return list(differences(spelled_out(theirs), spelled_out(ours)))


FLAGS = [
    ["--replicas", "3", "-p", "8080:80", "-p", "published=53,target=53,protocol=udp,mode=host"],
    ["--mode", "global", "-e", "A=1", "--env", "B=x y", "--label", "a=b", "--container-label", "c=d"],
    [
        "--limit-cpu",
        "1.5",
        "--limit-memory",
        "64m",
        "--limit-pids",
        "9",
        "--reserve-cpu",
        ".5",
        "--reserve-memory",
        "1g",
    ],
    [
        "--restart-condition",
        "on-failure",
        "--restart-delay",
        "1m30s",
        "--restart-max-attempts",
        "3",
        "--restart-window",
        "2h",
    ],
    [
        "--update-parallelism",
        "2",
        "--update-delay",
        "1s",
        "--update-order",
        "start-first",
        "--update-failure-action",
        "rollback",
    ],
    [
        "--update-monitor",
        "2s",
        "--update-max-failure-ratio",
        ".25",
        "--rollback-parallelism",
        "0",
        "--rollback-order",
        "start-first",
    ],
    [
        "--mount",
        "type=bind,source=/a,target=/b,readonly,bind-propagation=rslave",
        "--mount",
        "type=volume,dst=/anonymous",
    ],
    ["--mount", "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770"],
    [
        "--mount",
        "src=v,dst=/v,volume-driver=local,volume-opt=type=nfs,volume-opt=o=addr=x,volume-nocopy,volume-label=a=b",
    ],
    [
        "--mount",
        '"type=volume",src=v,dst=/v',
        "--constraint",
        "node.role==worker",
        "--placement-pref",
        "spread=node.labels.z",
    ],
    [
        "--hostname",
        "h",
        "-u",
        "1000:10",
        "-w",
        "/srv",
        "--group",
        "audio",
        "--read-only",
        "-t",
        "--init",
        "--stop-signal",
        "SIGINT",
    ],
    [
        "--stop-grace-period",
        "500ms",
        "--entrypoint",
        "sh -c 'a b'",
        "--host",
        "db:10.0.0.9",
        "--dns",
        "1.1.1.1",
        "--dns-search",
        "lan",
    ],
    [
        "--dns-option",
        "ndots:2",
        "--cap-add",
        "net_admin",
        "--cap-drop",
        "ALL",
        "--sysctl",
        "a.b=1",
        "--ulimit",
        "nofile=10:20",
    ],
    [
        "--health-cmd",
        "curl x",
        "--health-interval",
        "5s",
        "--health-retries",
        "2",
        "--health-timeout",
        "1s",
        "--health-start-period",
        "1m",
    ],
    [
        "--no-healthcheck",
        "--endpoint-mode",
        "dnsrr",
        "--replicas-max-per-node",
        "2",
        "--log-driver",
        "json-file",
        "--log-opt",
        "max-size=1m",
    ],
    ["--generic-resource", "gpu=2", "--mode", "replicated-job", "--replicas", "4", "--max-concurrent", "2"],
    ["-p", "8000-8002:80-82/udp", "--oom-score-adj", "100"],
    ["--cap-add", "SYS_TIME", "--cap-drop", "SYS_TIME", "--cap-drop", "CAP_CHOWN"],
]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: " ".join(flags)[:60])
def test_service_create(fleet: Any, docker: Any, engine: FakeEngine, flags: list[str]) -> None:
    arguments = ["service", "create", "-d", "--no-resolve-image", "--name", "x", *flags, "img:1", "sh", "-c", "true"]
    docker(*arguments)
    (theirs,) = specs(engine)
    assert fleet(*arguments).err == ""
    (ours,) = specs(engine)
    assert unlike(_sorted(theirs), _sorted(ours)) == []


STACK = """
version: "3.9"
x-env: &env
  COMMON: "1"
services:
  web:
    image: img:${TAG:-1}
    command: sh -c 'a b'
    entrypoint: [/entry, "x y"]
    environment:
      <<: *env
      B: "2"
      OWN:
    env_file: ./e.env
    labels: [a=b]
    hostname: h
    user: "1000"
    working_dir: /srv
    tty: true
    stdin_open: true
    read_only: true
    init: true
    stop_signal: SIGINT
    stop_grace_period: 1m30s
    cap_add: [NET_ADMIN]
    cap_drop: [ALL]
    dns: 1.1.1.1
    dns_search: [lan]
    extra_hosts: ["db:10.0.0.9"]
    sysctls: {net.core.somaxconn: 1024}
    ulimits: {nofile: {soft: 10, hard: 20}, nproc: 5}
    healthcheck: {test: curl x, interval: 5s, timeout: 1s, retries: 2, start_period: 1m}
    logging: {driver: json-file, options: {max-size: 1m}}
    ports: ["8080:80", "53/udp", {target: 443, published: 8443, protocol: tcp, mode: host}]
    volumes: ["/data:/d:ro", "named:/n", {type: tmpfs, target: /t, tmpfs: {size: 1048576}}]
    networks: {front: {aliases: [www]}, back: {}}
    deploy:
      replicas: 3
      labels: {x: y}
      endpoint_mode: vip
      placement: {constraints: [node.role == worker], preferences: [{spread: node.labels.z}], max_replicas_per_node: 2}
      resources: {limits: {cpus: "0.5", memory: 64M, pids: 9}, reservations: {cpus: "0.1", memory: 1G}}
      restart_policy: {condition: on-failure, delay: 0s, max_attempts: 3, window: 2m}
      update_config: {parallelism: 2, delay: 1s, order: start-first, failure_action: rollback, monitor: 3s}
      rollback_config: {parallelism: 1, order: stop-first}
  agent:
    image: agent:1
    deploy: {mode: global}
networks:
  front: {driver: overlay, internal: true, attachable: true, labels: {l: m}, driver_opts: {k: v}}
  back: {name: real, ipam: {config: [{subnet: 10.9.0.0/24}]}}
volumes:
  named: {labels: {v: w}}
"""


def networks(engine: FakeEngine) -> list[NetworkSpec]:
    found = [wire.parse_builtins(r.body, NetworkSpec, what="network") for r in engine.sent("POST", "/networks/create")]
    found = [
        msgspec.structs.replace(n, enable_ipv6=None, ipam=n.ipam and msgspec.structs.replace(n.ipam, driver="default"))
        for n in found
    ]
    return sorted(found, key=lambda n: n.name)


def test_stack_deploy(fleet: Any, docker: Any, engine: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "stack.yml"
    path.write_text(STACK)
    (tmp_path / "e.env").write_text("FROM_FILE=1\nB=overridden\n")
    engine.on("POST", "/networks/create", lambda request: Reply(201, {"Id": request.body["Name"]}))
    docker("stack", "deploy", "--resolve-image", "never", "--detach", "-c", str(path), "s")
    their_networks, theirs = networks(engine), specs(engine)
    ran = fleet("stack", "deploy", "-d", "--resolve-image=never", "-c", str(path), "s", environment={"OWN": "1"})
    assert (ran.code, ran.err) == (0, "")
    our_networks, ours = networks(engine), specs(engine)
    for mine, other in zip(our_networks, their_networks, strict=True):
        assert unlike(other, mine) == []
    for our, their in zip(ours, theirs, strict=True):
        assert unlike(_sorted(their), _sorted(our)) == []


def _sorted(spec: ServiceSpec) -> ServiceSpec:
    """The order of networks, aliases, ports and variables says nothing (Docker's client gives them in any)."""
    template = spec.task_template
    targets = tuple(
        msgspec.structs.replace(target, aliases=tuple(sorted(target.aliases)))
        for target in sorted(template.networks, key=lambda target: target.target)
    )
    endpoint = spec.endpoint_spec
    if endpoint is not None:
        ports = tuple(sorted(endpoint.ports, key=lambda port: (port.target_port, port.protocol)))
        endpoint = msgspec.structs.replace(endpoint, ports=ports)
    container = msgspec.structs.replace(template.container_spec, env=tuple(sorted(template.container_spec.env)))
    template = msgspec.structs.replace(template, networks=targets, container_spec=container)
    return msgspec.structs.replace(spec, endpoint_spec=endpoint, task_template=template)


CURRENT: dict[str, Any] = {
    "Name": "x",
    "Labels": {"a": "1"},
    "TaskTemplate": {
        "ContainerSpec": {
            "Image": "img:1",
            "Env": ["A=1", "B=2"],
            "Labels": {"c": "1"},
            "Mounts": [{"Type": "volume", "Source": "v", "Target": "/v"}],
            "Secrets": [
                {"File": {"Name": "s", "UID": "0", "GID": "0", "Mode": 292}, "SecretID": "sid", "SecretName": "s"}
            ],
            "Hosts": ["10.0.0.1 db", "10.0.0.2 web"],
            "Groups": ["audio"],
            "DNSConfig": {"Nameservers": ["1.1.1.1"], "Search": ["lan"]},
            "CapabilityAdd": ["CAP_NET_ADMIN"],
            "CapabilityDrop": ["CAP_NET_RAW"],
            "Healthcheck": {"Test": ["CMD-SHELL", "a"], "Interval": 1000000000},
            "Sysctls": {"a.b": "1"},
            "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}],
        },
        "Resources": {"Limits": {"MemoryBytes": 1048576, "NanoCPUs": 1000000000}, "Reservations": {}},
        "RestartPolicy": {"Condition": "any", "Delay": 5000000000, "MaxAttempts": 0},
        "Networks": [{"Target": "net1id"}],
        "Placement": {
            "Constraints": ["node.role==worker"],
            "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.z"}}],
        },
        "ForceUpdate": 2,
        "Runtime": "container",
    },
    "Mode": {"Replicated": {"Replicas": 4}},
    "EndpointSpec": {
        "Mode": "vip",
        "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}],
    },
}

CHANGES = [
    ["--env-add", "B=3", "--env-add", "C=4", "--env-rm", "A"],
    ["--label-add", "b=2", "--label-rm", "a", "--container-label-add", "c=2", "--container-label-rm", "d"],
    ["--image", "img:2", "--args", "sleep '1 2'", "--force", "--replicas", "7"],
    ["--secret-rm", "s", "--secret-add", "source=t,target=tt,mode=0400"],
    ["--mount-rm", "/v", "--mount-add", "type=volume,dst=/w"],
    ["--mount-add", "type=volume,src=other,dst=/v"],
    ["--network-add", "net2", "--network-rm", "net1"],
    ["--network-add", "name=net2,alias=a"],
    ["--constraint-rm", "node.role==worker", "--constraint-add", "node.id==x"],
    ["--placement-pref-add", "spread=node.labels.y", "--placement-pref-rm", "spread=node.labels.z"],
    ["--publish-rm", "80"],
    ["--publish-add", "8081:81", "--publish-rm", "81"],
    ["--publish-add", "published=8081,target=80"],
    ["--host-rm", "db:10.0.0.1", "--host-add", "new:10.0.0.3"],
    ["--group-add", "video", "--group-rm", "audio"],
    ["--dns-rm", "1.1.1.1", "--dns-add", "9.9.9.9", "--dns-search-rm", "lan", "--dns-option-add", "ndots:1"],
    ["--cap-add", "NET_RAW", "--cap-drop", "NET_ADMIN"],
    ["--health-cmd", "b"],
    ["--no-healthcheck"],
    ["--limit-memory", "0", "--limit-cpu", "2", "--reserve-memory", "4m"],
    ["--restart-condition", "none", "--restart-delay", "1s"],
    ["--update-delay", "2s", "--update-order", "start-first"],
    ["--rollback-parallelism", "3"],
    ["--sysctl-add", "c.d=2", "--sysctl-rm", "a.b", "--ulimit-add", "nproc=5", "--ulimit-rm", "nofile"],
    [
        "--entrypoint",
        "sh -c",
        "--workdir",
        "/w",
        "--user",
        "5",
        "--hostname",
        "h",
        "--read-only",
        "--stop-signal",
        "INT",
    ],
    ["--endpoint-mode", "dnsrr", "--publish-rm", "80", "--stop-grace-period", "3s", "--init"],
    ["--log-driver", "json-file", "--log-opt", "max-size=1m", "--replicas-max-per-node", "3"],
]


@pytest.mark.parametrize("flags", CHANGES, ids=lambda flags: " ".join(flags)[:60])
def test_service_update(fleet: Any, docker: Any, engine: FakeEngine, flags: list[str]) -> None:
    engine.on("GET", "/services/x", {"ID": "x", "Version": {"Index": 5}, "Spec": CURRENT})
    engine.on("POST", "/services/x/update", {})
    for name in ("net1", "net2", "net1id"):
        engine.on("GET", f"/networks/{name}", {"Id": f"{name.removesuffix('id')}id", "Name": name.removesuffix("id")})
    engine.on("GET", "/networks", [{"Id": f"{name}id", "Name": name} for name in ("net1", "net2")])
    engine.on("GET", "/secrets", [{"ID": "tid", "Spec": {"Name": "t"}}])
    docker("service", "update", "-d", "--no-resolve-image", *flags, "x")
    theirs = parse(engine.sent("POST", "/services/x/update")[0].body)
    engine.requests.clear()
    assert fleet("service", "update", "-d", "--no-resolve-image", *flags, "x").err == ""
    ours = parse(engine.sent("POST", "/services/x/update")[0].body)
    assert unlike(_sorted(theirs), _sorted(ours)) == []
