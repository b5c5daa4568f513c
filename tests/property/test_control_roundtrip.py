"""Clients read a service, change one thing and send all of it back. What they did not touch must stay as it was.

For any spec that is accepted: rendered (with and without defaults), sent back and read again, it is the same to the
orchestrator, and rendering it again gives the same JSON.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from support.objects import NOW

from fleet.api.render import service_json
from fleet.manager.control.service_spec import check_service_spec, normal_spec
from fleet.manager.control.services import makes_tasks_stale
from fleet.model import wire
from fleet.model.ids import ServiceId
from fleet.model.service import Service, ServiceSpec

words = st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True)
labels = st.dictionaries(words, st.text(max_size=5), max_size=2)
durations = st.integers(1_000_000, 10**12)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A JSON object with any of the fields, present, null or absent."""
    return st.fixed_dictionaries({}, optional={key: st.one_of(st.none(), value) for key, value in fields.items()})


mounts = st.lists(
    st.builds(
        lambda t, kind: {"Target": f"/{t}", **kind},
        words,
        st.sampled_from([{}, {"Type": "tmpfs"}, {"Type": "volume", "Source": "v"}]),
    ),
    max_size=2,
    unique_by=lambda mount: mount["Target"],
)
files = some(Name=words, UID=st.just("5"), GID=st.just("0"), Mode=st.integers(0, 0o777))
containers = st.builds(
    lambda rest, image: {**rest, "Image": image},
    some(
        Labels=labels,
        Command=st.lists(words, max_size=2),
        Args=st.lists(words, max_size=2),
        Hostname=words,
        Env=st.lists(words.map(lambda word: f"{word}=1"), max_size=2),
        TTY=st.booleans(),
        ReadOnly=st.booleans(),
        Init=st.booleans(),
        StopSignal=st.sampled_from(["SIGTERM", "9"]),
        StopGracePeriod=durations,
        DNSConfig=some(Nameservers=st.lists(st.just("1.1.1.1"), max_size=1)),
        Isolation=st.sampled_from(["", "default"]),
        Mounts=mounts,
        Secrets=st.lists(st.builds(lambda f: {"SecretID": "i", "SecretName": "n", "File": f}, files), max_size=1),
        Configs=st.lists(st.builds(lambda f: {"ConfigID": "i", "ConfigName": "n", "File": f}, files), max_size=1),
        Healthcheck=some(Test=st.just(["CMD", "x"]), Interval=durations, Retries=st.integers(0, 5)),
        Sysctls=labels,
        Ulimits=st.just([{"Name": "nofile", "Soft": 1, "Hard": 2}]),
        OomScoreAdj=st.integers(-1000, 1000),
    ),
    st.sampled_from(["nginx", "r.example:5000/x:1"]),
)
resources = some(
    Limits=some(NanoCPUs=st.integers(10**6, 10**10), MemoryBytes=st.integers(4 << 20, 1 << 40), Pids=st.integers(0, 9)),
    Reservations=some(
        NanoCPUs=st.integers(10**6, 10**10),
        GenericResources=st.just([{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 2}}]),
    ),
    SwapBytes=st.integers(-1, 5),
)
templates = st.builds(
    lambda rest, container: {**rest, "ContainerSpec": container},
    some(
        Resources=resources,
        RestartPolicy=some(
            Condition=st.sampled_from(["none", "any", "on-failure"]),
            Delay=st.integers(0, 10**10),
            MaxAttempts=st.integers(0, 3),
            Window=st.integers(0, 10**10),
        ),
        Placement=some(
            Constraints=st.just(["node.role==worker"]),
            Preferences=st.just([{"Spread": {"SpreadDescriptor": "node.labels.z"}}]),
            MaxReplicas=st.integers(0, 3),
            Platforms=st.just([{"Architecture": "amd64", "OS": "linux"}]),
        ),
        Networks=st.lists(words.map(lambda word: {"Target": word, "Aliases": [word]}), max_size=2),
        LogDriver=some(Name=words, Options=labels),
        ForceUpdate=st.integers(0, 3),
        Runtime=st.sampled_from(["", "container"]),
    ),
    containers,
)
updates = some(
    Parallelism=st.integers(0, 3),
    Delay=st.integers(0, 10**10),
    FailureAction=st.sampled_from(["pause", "continue"]),
    Monitor=st.integers(0, 10**10),
    MaxFailureRatio=st.sampled_from([0, 0.5, 1]),
    Order=st.sampled_from(["stop-first", "start-first"]),
)
ports = st.lists(
    some(
        Name=words,
        Protocol=st.sampled_from(["tcp", "udp"]),
        PublishedPort=st.integers(0, 65535),
        PublishMode=st.sampled_from(["ingress", "host"]),
    ).map(lambda port: {**port, "TargetPort": 80}),
    max_size=1,
)
bodies = st.builds(
    lambda rest, template: {**rest, "Name": "web", "TaskTemplate": template},
    some(
        Labels=labels,
        Mode=st.sampled_from(
            [{}, {"Global": {}}, {"Replicated": {}}, {"Replicated": {"Replicas": 0}}, {"replicated": {"Replicas": 4}}]
        ),
        UpdateConfig=updates,
        RollbackConfig=updates,
        EndpointSpec=some(Mode=st.just("vip"), Ports=ports),
    ),
    templates,
)


def read(body: Any) -> ServiceSpec:
    spec = normal_spec(wire.parse_builtins(body, ServiceSpec, what="service spec"))
    check_service_spec(spec)
    return spec


def shown(spec: ServiceSpec, *, insert_defaults: bool) -> Any:
    service = Service(id=ServiceId("s"), created_at=NOW, updated_at=NOW, spec=spec)
    return json.loads(msgspec.json.encode(service_json(service, insert_defaults=insert_defaults)))["Spec"]


@settings(max_examples=300, deadline=None)
@given(bodies)
def test_reading_and_sending_back_changes_nothing(body: dict[str, Any]) -> None:
    spec = read(body)
    for insert_defaults in (False, True):
        rendered = shown(spec, insert_defaults=insert_defaults)
        again = read(rendered)
        assert not makes_tasks_stale(spec, again)
        assert shown(again, insert_defaults=insert_defaults) == rendered
        assert (again.replicas, again.is_global, again.labels) == (spec.replicas, spec.is_global, spec.labels)


@settings(max_examples=200, deadline=None)
@given(bodies)
def test_stored_specs_come_back_as_they_were(body: dict[str, Any]) -> None:
    spec = read(body)
    assert wire.decode(wire.encode(spec), ServiceSpec) == spec


@settings(max_examples=200, deadline=None)
@given(bodies)
def test_clients_find_what_they_index_without_asking(body: dict[str, Any]) -> None:
    rendered = shown(read(body), insert_defaults=False)
    assert isinstance(rendered["Labels"], dict)
    assert "Image" in rendered["TaskTemplate"]["ContainerSpec"]
    mode = rendered["Mode"]
    assert mode == {"Global": {}} or isinstance(mode["Replicated"]["Replicas"], int)
    for port in rendered.get("EndpointSpec", {}).get("Ports", ()):
        assert {"Protocol", "TargetPort", "PublishMode"} <= set(port)
    for mount in rendered["TaskTemplate"]["ContainerSpec"].get("Mounts", ()):
        assert {"Type", "Target"} <= set(mount)
