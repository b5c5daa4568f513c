"""The command line on a real cluster beside Docker's client: the same events and formats, the live view, contexts."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.lab import TestLab
from support.terminal import Terminal

pytestmark = pytest.mark.e2e

IDLE = ("sleep", "3600")
FORMATS = [
    ("node", "ls", "table {{.Hostname}}\t{{.Status}}\t{{.Availability}}\t{{.ManagerStatus}}"),
    ("node", "ls", "{{.ID}} {{.Hostname}} {{.Self}} {{upper .Status}}"),
    ("service", "ls", "{{.ID}} {{.Name}} {{.Mode}} {{.Replicas}} {{.Image}} {{.Ports}}"),
    ("service", "ls", '{{if eq .Name "shown"}}{{json .Name}}{{else}}{{printf "%-8s|" .Name}}{{end}}'),
    ("service", "ps", "{{.Name}} {{.Node}} {{.DesiredState}} {{.Image}}", "shown"),
    ("service", "inspect", '{{.Spec.Name}} {{.Spec.Labels}} {{index .Spec.Labels "team"}}', "shown"),
    ("service", "inspect", "{{range .Spec.TaskTemplate.ContainerSpec.Args}}{{.}},{{end}}", "shown"),
    ("service", "inspect", "{{.Spec.Mode.Replicated.Replicas}} {{.Version.Index}} {{len .Spec.Labels}}", "shown"),
    ("network", "ls", "{{.Name}} {{.Driver}} {{.Scope}}"),
    ("network", "ls", "{{.ID}} {{.Internal}} {{.IPv6}}"),
    ("node", "inspect", "{{.Description.Hostname}} {{.Spec.Role}} {{.Status.State}} {{.ID}}", "self"),
    ("ps", "{{.Image}} {{.Names}} {{.State}} {{.Label \"com.docker.swarm.service.name\"}}"),
    ("info", "{{.Swarm.NodeID}} {{.Name}} {{.Swarm.ControlAvailable}}"),
]  # fmt: skip


@pytest.fixture(scope="module")
def shown(lab: TestLab) -> Iterator[str]:
    """A service with labels, a reservation and a task on each node; its beginning as the API tells time."""
    lab.load_hello()
    began = f"{time.time():.3f}"
    lab.fleet("service", "create", "--name", "shown", "--label", "team=red", "--label", "a.b=c", "--replicas", "3",
              "--reserve-memory", "16M", "--reserve-cpu", "0.1", "fleet/hello:1", *IDLE)  # fmt: skip
    lab.fleet("service", "update", "--label-add", "more=1", "shown")
    lab.fleet("network", "create", "-d", "overlay", "told")
    lab.fleet("network", "rm", "told")
    try:
        yield began
    finally:
        lab.fleet("service", "rm", "shown")


def split(form: tuple[str, ...]) -> list[str]:
    noun = [word for word in form[:2] if " " not in word and "{" not in word]
    return [*noun, "--format", form[len(noun)], *form[len(noun) + 1 :]]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: " ".join(form[:2]))
@pytest.mark.usefixtures("shown")
def test_formats_of_both_clients_are_the_same(lab: TestLab, form: tuple[str, ...]) -> None:
    theirs = lab.docker(*split(form)).stdout
    ours = lab.fleet(*split(form)).stdout
    assert theirs.strip()
    assert [line.split() for line in ours.splitlines()] == [line.split() for line in theirs.splitlines()]


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("-f", "type=service"),
        ("-f", "type=network", "-f", "type=service"),
        ("-f", "service=shown"),
        ("-f", "scope=swarm"),
        ("-f", "event=create"),
        ("-f", "event=create", "-f", "type=container"),
        ("-f", "label=com.docker.swarm.service.name=shown"),
        ("-f", "image=fleet/hello"),
        ("-f", "container=shown"),
        ("-f", "node=m1"),
        ("--format", "json"),
        ("--format", "{{.Type}} {{.Action}} {{.Actor.ID}} {{.Actor.Attributes.name}} {{.TimeNano}}"),
    ],
    ids=" ".join,
)
def test_events_of_both_clients_are_the_same(lab: TestLab, shown: str, flags: tuple[str, ...]) -> None:
    asked = ("events", "--since", shown, "--until", f"{time.time():.3f}", *flags)
    theirs, ours = lab.docker(*asked).stdout, lab.fleet(*asked).stdout
    assert ours == theirs
    if "node=m1" not in flags:
        assert ours.strip()


@pytest.mark.usefixtures("shown")
def test_one_snapshot_of_the_cluster(lab: TestLab) -> None:
    counts = "m1: 3/3 nodes, 2 services, 3 tasks, 1 in trouble"
    lab.fleet(
        "service", "create", "-d", "--name", "stuck", "--constraint", "node.labels.nowhere==1", "fleet/hello:1", *IDLE
    )
    try:
        # A task that another test has just scaled away may still be ending.
        lab.wait_until(
            lambda: lab.fleet("top", "--once").stdout.startswith(counts), 60, what=f"the view begins with: {counts}"
        )
        text = lab.fleet("top", "--once").stdout
    finally:
        lab.fleet("service", "rm", "stuck")
    assert re.search(r"^m1 +leader +ready +active ", text, re.MULTILINE)
    assert re.search(r"^shown +replicated +3/3 +0\.3 ", text, re.MULTILINE)
    assert re.search(r"^stuck\.1 .*pending.*node", text, re.MULTILINE)
    assert "service create" in text
    known = re.compile(r"^w2 +worker .*/[0-9.]+ +[0-9.]+ .*\n", re.MULTILINE)
    lab.wait_until(lambda: known.search(lab.fleet("top", "--once").stdout), 60, what="use of another node is told")


@pytest.mark.usefixtures("shown")
def test_live_view_of_the_cluster(lab: TestLab) -> None:
    environment = {key: value for key, value in lab.command_environment("m1").items() if key.startswith("FLEET_")}
    with Terminal("top", "--interval", "1", environment=environment) as term:
        term.wait("q quit")
        lab.fleet("service", "scale", "shown=4")
        term.wait("4/4")
        lab.fleet("service", "scale", "shown=3")
        term.wait("3/3")
        term.type("q")
        assert term.end() == 0
        assert term.settings_now() == term.settings


def test_contexts_name_the_managers_of_a_lab(lab: TestLab, tmp_path: Path) -> None:
    none = {
        "FLEET_HOST": "",
        "DOCKER_HOST": "",
        "FLEET_CONFIG": str(tmp_path / "c"),
        "DOCKER_CONFIG": str(tmp_path / "d"),
    }
    for host in ("m1", "w1"):
        url = lab.env(host)["FLEET_HOST"]
        lab.fleet("context", "create", host, "--docker", f"host={url}", env=none)
    assert lab.fleet("--context", "w1", "info", "--format", "{{.Name}}", env=none).stdout == "w1\n"
    lab.fleet("context", "use", "m1", env=none)
    assert lab.fleet("info", "--format", "{{.Name}}", env=none).stdout == "m1\n"
    assert lab.fleet("info", "--format", "{{.Name}}", env={**none, "FLEET_CONTEXT": "w1"}).stdout == "w1\n"
    if shutil.which("docker"):
        listed = json.loads(lab.fleet("context", "inspect", "w1", env=none).stdout)
        assert listed[0]["Endpoints"]["docker"]["Host"] == lab.env("w1")["FLEET_HOST"]


def test_one_id_follows_a_service_through_the_logs_of_all_parts(lab: TestLab) -> None:
    lab.load_hello()
    body = {
        "Name": "told",
        "Mode": {"Replicated": {"Replicas": 2}},
        "TaskTemplate": {
            "ContainerSpec": {"Image": "fleet/hello:1", "Args": list(IDLE)},
            "Placement": {"Constraints": ["node.role==worker"], "MaxReplicas": 1},
        },
    }
    with lab.client("m1") as client:
        client.request("POST", "/services/create", json_body=body, headers={"X-Request-ID": "story-17"})
    try:
        lab.wait_until(lambda: len(lab.tasks("told")) == 2, 90, what="both tasks run")

        def told(host: str) -> list[str]:
            lines = [json.loads(line) for line in lab.log_path(host).read_text().splitlines() if "story-17" in line]
            return [line["logger"] for line in lines]

        manager = told("m1")
        for part in ("api", "orchestrator", "allocator", "scheduler", "dispatcher"):
            assert part in manager, manager
        assert manager.index("orchestrator") < manager.index("scheduler") < manager.index("dispatcher")
        for host in ("w1", "w2"):
            states = [json.loads(line) for line in lab.log_path(host).read_text().splitlines() if "story-17" in line]
            assert [line["state"].split()[-1] for line in states][-1] == "running"
            assert {line["request"] for line in states} == {"story-17"}
            assert set(told(host)) == {"controller"}
    finally:
        lab.fleet("service", "rm", "told")
