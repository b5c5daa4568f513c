"""``--format``: the forms people use, what they give, and that Docker's client gives the same for the same daemon."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet import errors
from fleet.cli.template import Template
from tests.support.fake_engine import FakeEngine, Reply

VALUE = {
    "Name": "web",
    "Count": 3,
    "Ratio": 0.5,
    "On": True,
    "Off": False,
    "Empty": "",
    "Nothing": None,
    "Labels": {"b.c": "two", "a": "one"},
    "List": ["x", "y", "z"],
    "Ports": [{"P": 80, "T": "tcp"}, {"P": 53, "T": "udp"}],
    "Spec": {"Inner": {"Id": "deep"}},
}

FORMS = [
    ("{{.Name}}", "web"),
    ("{{ .Name }}", "web"),
    ("{{.Spec.Inner.Id}} {{.Spec.Inner.ID}}", "deep deep"),
    ("{{json .Labels}}", '{"b.c":"two","a":"one"}'),
    ("{{json .Nothing}}{{json .Absent}}", "nullnull"),
    ("{{.Labels}} {{.List}}", "map[a:one b.c:two] [x y z]"),
    ("{{.On}} {{.Count}} {{.Ratio}} {{.Absent}}", "true 3 0.5 <no value>"),
    ('{{index .Labels "b.c"}}-{{index .Labels "no"}}-{{index .List 1}}', "two--y"),
    ('{{(index .Ports 1).P}} {{index .Ports 0 "T"}}', "53 tcp"),
    ("{{range .List}}[{{.}}]{{end}}", "[x][y][z]"),
    ("{{range .Absent}}x{{else}}none{{end}}", "none"),
    ("{{range $i, $p := .Ports}}{{if $i}}, {{end}}{{$p.P}}/{{$p.T}}{{end}}", "80/tcp, 53/udp"),
    ("{{range $k, $v := .Labels}}{{$k}}={{$v}};{{end}}", "a=one;b.c=two;"),
    ("{{range .Ports}}{{$.Name}}:{{.P}} {{end}}", "web:80 web:53 "),
    ('{{range .List}}{{if eq . "y"}}{{continue}}{{end}}{{.}}{{end}}', "xz"),
    ('{{range .List}}{{if eq . "y"}}{{break}}{{end}}{{.}}{{end}}', "x"),
    ("{{if .On}}yes{{else}}no{{end}}{{if .Empty}}yes{{else}}no{{end}}", "yesno"),
    ("{{if .Off}}a{{else if .On}}b{{else}}c{{end}}", "b"),
    ("{{if .Off}}a{{else if .Empty}}b{{else if .Nothing}}d{{else}}c{{end}}!", "c!"),
    ("{{with .Spec}}{{.Inner.Id}}{{end}}{{with .Absent}}x{{else}}{{.Name}}{{end}}", "deepweb"),
    ("{{with $x := .Name}}{{$x}}{{end}}", "web"),
    ('{{if and .On (eq .Count 3)}}1{{end}}{{if or .Off (ne .Name "db")}}2{{end}}{{if not .Off}}3{{end}}', "123"),
    ('{{and .Off (index .List 9)}}{{or .Name (index .List 9)}}', "falseweb"),
    ("{{lt 1 2}} {{gt .Count 5}} {{le 2 2}} {{ge 1 2}}", "true false true false"),
    ('{{eq .Name "a" "web"}} {{eq .Absent ""}} {{ne .Absent 0}}', "true true false"),
    ('{{join .List ", "}}', "x, y, z"),
    ('{{upper .Name}} {{lower "ABC"}} {{title "hello big World"}}', "WEB abc Hello Big World"),
    ("{{len .List}} {{len .Name}} {{len .Absent}} {{len .Labels}}", "3 3 0 2"),
    ('{{printf "%s: %d %5.1f|%-5s|%5s|%05d %v %q %t %%" .Name .Count .Ratio "a" "b" 42 .On "q" .Off}}', None),
    ('{{printf "%d" .Name}} {{printf "%s"}} {{printf "a" 1}}', "%!d(string=web) %!s(MISSING) a%!(EXTRA int=1)"),
    ('{{println "a" 1 2}}{{print "a" 1 2 "b"}}', "a 1 2\na1 2b"),
    ("{{.Name | upper | printf \"%s-%s\" \"x\"}}", "x-WEB"),
    ('{{.Name | len}} {{"quoted" | printf "%q"}}', '3 "quoted"'),
    ('{{split "a,b" ","}} {{pad .Name 1 2}}| {{truncate .Name 2}}', "[a b]  web  | we"),
    ("{{slice .Name 1 2}} {{slice .List 1}}", "e [y z]"),
    ("a  {{- .Name -}}  b", "awebb"),
    ("{{- /* nothing */ -}} x {{/* }} */}}y", "x y"),
    ('{{"}}"}} {{`a\\b`}} {{"\\t|"}}', "}} a\\b \t|"),
    ("{{$x := 1}}{{if .On}}{{$x = 2}}{{end}}{{$x}}", "2"),
    ("{{-1}} {{- 2}} {{ -3 -}} ", "-12 -3"),
    ("plain { text } }}", "plain { text } }}"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text"), FORMS)
def test_forms_people_use(form: str, text: str | None) -> None:
    expected = 'web: 3   0.5|a    |    b|00042 true "q" false %' if text is None else text
    assert Template(form).render(VALUE) == expected


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("{{.Name", "without '}}'"),
        ("{{if .On}}x", "'if' has no {{end}}"),
        ("{{range .List}}x", "'range' has no {{end}}"),
        ("{{end}}", "outside"),
        ("{{break}}", "outside of range"),
        ("{{range .Absent}}{{else}}{{break}}{{end}}", "outside of range"),
        ("{{frob .Name}}", "unknown function 'frob'"),
        ("{{define \"x\"}}{{end}}", "'define' is not supported"),
        ("{{}}", "empty action"),
        ("{{.Name | }}", "empty action"),
        ("{{(.Name}}", "'(' without ')'"),
        ("{{.Name)}}", "unexpected ')'"),
        ("{{$y}}", "no variable $y"),
        ("{{$y = 1}}", "no variable $y"),
        ("{{range $x := .List}}{{end}}{{$x}}", "no variable $x"),
        ("{{.Name .Count}}", "takes no arguments"),
        ("{{.Name.More}}", "no field .More"),
        ("{{index .List 7}}", "out of range"),
        ("{{index .List -1}}", "out of range"),
        ("{{eq .Name .Count}}", "cannot compare string with int"),
        ("{{len .Count}}", "no length"),
        ("{{join .Name}}", "cannot evaluate"),
        ("{{range .Count}}{{end}}", "can't iterate"),
        ('{{printf "%999999999s" .Name}}', "wide"),
        ('{{pad .Name 999999999 1}}', "pad takes"),
        ('{{"\\x"}}', "escape"),
        ("{{if .On}}{{else range .List}}{{end}}", "does not follow"),
        ("{{if}}{{end}}", "empty action"),
        ("{{(" * 40, "without"),
        ("{{" + "(" * 40 + ".Name" + ")" * 40 + "}}", "nested deeper"),
        ("{{if .On}}" * 40 + "{{end}}" * 40, "nested deeper"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(form: str, words: str) -> None:
    with pytest.raises(errors.UserError, match="--format") as caught:
        Template(form).render(VALUE)
    assert words in str(caught.value)


def test_row_without_the_field_is_a_mistake_and_an_object_without_it_is_not(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/services", SERVICES)
    engine.on("GET", "/services/web", SERVICES[0])
    ran = fleet("service", "ls", "--format", "{{.Nmae}}")
    assert (ran.code, "there is no field .Nmae; known: .ID" in ran.err) == (2, True)
    assert fleet("service", "inspect", "--format", "{{.Nope}}", "web").out == "<no value>\n"


# --- beside Docker's client -------------------------------------------------------------------------------------------

SERVICES = [
    {
        "ID": "7mokx85p9mz3g38nw9s4vqyev",
        "Version": {"Index": 12},
        "CreatedAt": "2026-01-02T03:04:05.000000006Z",
        "UpdatedAt": "2026-01-02T03:04:05.000000006Z",
        "Spec": {
            "Name": "web",
            "Labels": {"a.b": "one", "team": "x"},
            "Mode": {"Replicated": {"Replicas": 3}},
            "TaskTemplate": {
                "ContainerSpec": {"Image": "nginx:1", "Env": ["A=1", "B=2"], "Init": False},
                "ForceUpdate": 0,
                "Runtime": "container",
            },
            "EndpointSpec": {"Mode": "vip", "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080}]},
        },
        "Endpoint": {
            "Spec": {"Mode": "vip"},
            "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}],
        },
        "ServiceStatus": {"RunningTasks": 2, "DesiredTasks": 3, "CompletedTasks": 0},
    },
    {
        "ID": "abokx85p9mz3g38nw9s4vqyev",
        "Version": {"Index": 13},
        "CreatedAt": "2026-01-02T03:04:05Z",
        "UpdatedAt": "2026-01-02T03:04:05Z",
        "Spec": {
            "Name": "agent",
            "Labels": {},
            "Mode": {"Global": {}},
            "TaskTemplate": {"ContainerSpec": {"Image": "b:1"}, "ForceUpdate": 0, "Runtime": "container"},
        },
        "Endpoint": {"Spec": {}},
        "ServiceStatus": {"RunningTasks": 1, "DesiredTasks": 1, "CompletedTasks": 0},
    },
]
CONTAINERS = [
    {
        "Id": "ab" * 32,
        "Names": ["/web.1.x"],
        "Image": "nginx:1",
        "ImageID": "sha256:" + "cd" * 32,
        "Command": "nginx -g",
        "Created": 1767323045,
        "Ports": [],
        "Labels": {"com.docker.swarm.service.name": "web", "role": "front"},
        "State": "running",
        "Status": "Up 2 hours",
        "HostConfig": {"NetworkMode": "default"},
        "NetworkSettings": {"Networks": {"net": {}}},
        "Mounts": [],
    }
]

LISTS = [
    "{{.Name}}",
    "{{.ID}} {{.Mode}} {{.Replicas}}",
    "table {{.Name}}\t{{.Mode}}\t{{.Replicas}}",
    "table {{.ID}}\\t{{.Name}}",
    "table {{.Name}} is {{upper .Mode}}",
    "table {{printf \"%s/%s\" .Name .Mode}}\t{{.Image}}",
    "{{upper .Name}} {{.Image | lower}} {{title .Mode}}",
    "{{if eq .Mode \"global\"}}{{.Name}}{{else}}-{{end}}",
    "{{if and (eq .Mode \"global\") (ne .Name \"web\")}}{{.Name}}{{end}}",
    "{{range split .Replicas \"/\"}}<{{.}}>{{end}}",
    "{{with .Ports}}{{.}}{{else}}none{{end}}",
    "{{pad .Name 2 3}}|{{truncate .ID 5}}|{{len .Name}}",
    "{{printf \"%-10s|%6s|\" .Name .Mode}}{{println}}",
    "{{join (split .Name \"\") \"-\"}}",
    "{{- .Name -}}  x",
    "{{$n := .Name}}{{$n}}{{/* c */}}",
    "{{slice .Name 1 3}} {{index .Name 0}}",
    "{{not .Name}} {{or .Ports \"none\"}} {{lt (len .Name) 4}}",
    "{{json .Name}}",
]  # fmt: skip
CONTAINER_LISTS = [
    "{{.Names}} {{.Image}} {{.Label \"com.docker.swarm.service.name\"}} {{.Label \"no\"}}",
    "{{.ID}} {{.Command}} {{.State}} {{.Status}}",
    "table {{.Names}}\t{{.Image}}\t{{.Status}}",
    "{{if .Label \"role\"}}{{.Label \"role\"}}{{end}}",
]  # fmt: skip
OBJECTS = [
    "{{.Spec.Name}}",
    "{{json .Spec.Labels}}",
    "{{.Spec.Labels}}",
    "{{index .Spec.Labels \"a.b\"}}",
    "{{index .Spec.Labels \"nope\"}}.",
    "{{range .Spec.TaskTemplate.ContainerSpec.Env}}{{.}};{{end}}",
    "{{range $k, $v := .Spec.Labels}}{{$k}}={{$v}} {{end}}",
    "{{join .Spec.TaskTemplate.ContainerSpec.Env \"+\"}}",
    "{{range .Endpoint.Ports}}{{.TargetPort}}/{{.Protocol}}{{end}}",
    "{{(index .Endpoint.Ports 0).PublishedPort}}",
    "{{with .Spec.Mode.Replicated}}{{.Replicas}}{{end}}",
    "{{if .Spec.Mode.Global}}global{{else}}replicated{{end}}",
    "{{len .Spec.TaskTemplate.ContainerSpec.Env}} {{printf \"%T\" .Spec.Name}}",
    "{{.Version.Index}} {{eq .ID \"x\"}} {{html \"<a>\"}} {{urlquery \"a b\"}}",
    "{{println .Spec.Name 1}}{{print 1 2}}",
    "{{printf \"%v %q %5d|%-4d|%x\" .Spec.Name .Spec.Name 7 7 255}}",
]  # fmt: skip


@pytest.fixture
def docker(engine: FakeEngine, tmp_path: Path) -> Callable[..., str]:
    if shutil.which("docker") is None:
        pytest.skip("not run: Docker's client is not installed")
    engine.on("HEAD", "/_ping", None)
    engine.on("GET", "/services", SERVICES)
    engine.on("GET", "/services/web", SERVICES[0])
    engine.on("GET", "/containers/json", CONTAINERS)

    def call(*arguments: str, **more: str) -> str:
        environment = {"PATH": os.environ["PATH"], "DOCKER_HOST": engine.url, "HOME": str(tmp_path), **more}
        ran = subprocess.run(
            ["docker", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return call


def same(ours: str, theirs: str) -> bool:
    """Equal but for the room between columns: Docker's are ten wide at least."""
    return [re.sub("  +", "  ", line.rstrip()) for line in ours.splitlines()] == [
        re.sub("  +", "  ", line.rstrip()) for line in theirs.splitlines()
    ]


@pytest.mark.parametrize("form", LISTS)
def test_lists_as_dockers_client_formats_them(fleet: Any, docker: Callable[..., str], form: str) -> None:
    theirs = docker("service", "ls", "--format", form)
    ours = fleet("service", "ls", "--format", form)
    assert ours.err == ""
    assert same(ours.out, theirs), (ours.out, theirs)


@pytest.mark.parametrize("form", CONTAINER_LISTS)
def test_containers_as_dockers_client_formats_them(fleet: Any, docker: Callable[..., str], form: str) -> None:
    theirs = docker("ps", "--format", form)
    ours = fleet("ps", "--format", form)
    assert ours.err == ""
    assert same(ours.out, theirs), (ours.out, theirs)


@pytest.mark.parametrize("form", OBJECTS)
def test_objects_as_dockers_client_formats_them(fleet: Any, docker: Callable[..., str], form: str) -> None:
    theirs = docker("service", "inspect", "--format", form, "web")
    ours = fleet("service", "inspect", "--format", form, "web")
    assert ours.err == ""
    assert ours.out == theirs


NODE = {
    "ID": "i79sv6oi0dxq4evd725wgg6e7",
    "Spec": {"Role": "manager", "Availability": "active", "Labels": {}},
    "Description": {"Hostname": "m1", "Engine": {"EngineVersion": "1"}},
    "Status": {"State": "ready", "Addr": "1.2.3.4"},
    "ManagerStatus": {"Leader": True, "Reachability": "reachable", "Addr": "1.2.3.4:2377"},
}
TASK = {
    "ID": "t" * 25,
    "ServiceID": SERVICES[0]["ID"],
    "Slot": 1,
    "NodeID": NODE["ID"],
    "CreatedAt": "2026-01-02T03:04:05Z",
    "Spec": {"ContainerSpec": {"Image": "n:1"}},
    "Status": {"State": "running", "Timestamp": "2026-01-02T03:04:05Z"},
    "DesiredState": "running",
}
SECRET = {
    "ID": "s" * 25,
    "CreatedAt": "2026-01-02T03:04:05Z",
    "UpdatedAt": "2026-01-02T03:04:05Z",
    "Spec": {"Name": "s1", "Labels": {"a": "b"}},
}
NETWORK = {
    "Name": "n",
    "Id": "x" * 25,
    "Driver": "overlay",
    "Scope": "swarm",
    "Created": "2026-01-02T03:04:05.6789Z",
    "Labels": {"a": "b"},
    "Internal": False,
    "EnableIPv4": True,
    "EnableIPv6": False,
}
IMAGE = {"Id": f"sha256:{'ab' * 32}", "RepoTags": ["a:1"], "RepoDigests": [], "Created": 1767323045, "Size": 1000,
         "Containers": -1, "SharedSize": -1}  # fmt: skip
OURS_ALONE = {"CreatedSince", "Driver", "TLSStatus"}
"""Fields that fleet has beside Docker's, or that it tells the truth of where Docker's client does not know."""


@pytest.mark.parametrize(
    "command",
    ["service ls", "service ps web", "node ls", "network ls", "volume ls", "images", "secret ls", "config ls", "ps"],
)
def test_rows_have_dockers_fields_and_values(
    fleet: Any, engine: FakeEngine, docker: Callable[..., str], command: str
) -> None:
    engine.on("GET", "/info", {"Swarm": {"NodeID": NODE["ID"], "LocalNodeState": "active", "ControlAvailable": True}})
    engine.on("GET", "/nodes", [NODE])
    engine.on("GET", "/nodes/.*", NODE)
    engine.on("GET", f"/services/{SERVICES[0]['ID']}", SERVICES[0])
    engine.on("GET", "/tasks", [TASK])
    engine.on("GET", "/networks", [NETWORK])
    engine.on("GET", "/secrets", [SECRET])
    engine.on("GET", "/configs", [SECRET])
    engine.on("GET", "/images/json", [IMAGE])
    engine.on("GET", "/volumes", {"Volumes": [{"Name": "v", "Driver": "local", "Mountpoint": "/m", "Scope": "local"}]})
    theirs = json.loads(docker(*command.split(), "--format", "json").splitlines()[0])
    ours = json.loads(fleet(*command.split(), "--format", "json").out.splitlines()[0])
    theirs.pop("Platform", None)  # newer clients; null where the daemon does not tell
    assert {k: v for k, v in ours.items() if k not in OURS_ALONE} == {
        k: v for k, v in theirs.items() if k not in OURS_ALONE
    }


EVENTS = (
    b'{"status":"start","id":"abc","from":"nginx:1","Type":"container","Action":"start","Actor":{"ID":"abc",'
    b'"Attributes":{"name":"web.1","image":"nginx:1","a":"<b>"}},"scope":"local","time":1767323045,'
    b'"timeNano":1767323045000000123}\n'
    b'{"Type":"node","Action":"update","Actor":{"ID":"n1","Attributes":{"name":"m1","state.new":"down"}},'
    b'"scope":"swarm","time":1767323046,"timeNano":1767323046500000000,"status":"up","id":"n1"}\n'
    b'{"Type":"network","Action":"create","Actor":{"ID":"x","Attributes":{}},"scope":"swarm","time":1767323047}\n'
)
EVENT_FORMS = [
    "",
    "json",
    "{{.Type}} {{.Action}} {{.Actor.ID}}",
    "{{.Time}} {{.TimeNano}} {{.Scope}}",
    "{{.Actor.Attributes.name}}",
    "{{index .Actor.Attributes \"image\"}}|{{json .Actor}}",
    "{{.Status}}:{{.ID}}:{{.From}}",
    "{{json .}}",
    "{{with .Actor.Attributes}}{{range $k, $v := .}}{{$k}}={{$v}} {{end}}{{end}}",
    "{{if eq .Type \"node\"}}{{.Actor.Attributes.name}}{{end}}",
]  # fmt: skip


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/St_Johns"])
@pytest.mark.parametrize("form", EVENT_FORMS)
def test_events_as_dockers_client_writes_them(
    engine: FakeEngine, docker: Callable[..., str], form: str, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.on("GET", "/events", Reply(raw=EVENTS))
    monkeypatch.setenv("TZ", zone)
    arguments = ["events", "--since", "0", "--until", "2000000000", *(["--format", form] if form else [])]
    theirs = docker(*arguments, TZ=zone)
    ours = subprocess.run(
        [sys.executable, "-m", "fleet.cli.main", "-H", engine.url, *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ours.stderr == ""
    assert ours.stdout == theirs


@pytest.mark.parametrize(
    "flags",
    [
        ("--since", "2026-01-02T03:04:05Z", "--until", "2026-01-02T03:04:06.5+01:00"),
        ("--since", "2026-01-02", "--until", "2026-01-02T03:04"),
        ("--since", "1767323045.25", "--until", "1767323046"),
        ("--since", "1", "--until", "2", "--filter", "type=node", "-f", "type=service", "-f", "label=a=b"),
    ],
)
def test_events_are_asked_for_as_dockers_client_does(
    engine: FakeEngine, docker: Callable[..., str], flags: tuple[str, ...]
) -> None:
    engine.on("GET", "/events", Reply(raw=EVENTS))
    zone = "America/St_Johns"
    docker("events", *flags, TZ=zone)
    command = [sys.executable, "-m", "fleet.cli.main", "-H", engine.url, "events", *flags]
    subprocess.run(command, capture_output=True, timeout=60, check=True, env={**os.environ, "TZ": zone})
    theirs, ours = (request.query for request in engine.sent("GET", "/events"))
    assert [float(ours[key]) for key in ("since", "until")] == [float(theirs[key]) for key in ("since", "until")]
    wanted = {key: sorted(values) for key, values in (theirs.get("filters") or {}).items()}
    assert {key: sorted(values) for key, values in (ours.get("filters") or {}).items()} == wanted


# --- YAML -------------------------------------------------------------------------------------------------------------


def test_yaml_of_lists_and_objects(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/services", SERVICES)
    engine.on("GET", "/services/web", SERVICES[0])
    engine.on("GET", "/info", {"Name": "m1", "Swarm": {"NodeID": "x"}})
    rows = yaml.safe_load(fleet("service", "ls", "--format", "yaml").out)
    assert [row["Name"] for row in rows] == ["agent", "web"]
    assert yaml.safe_load(fleet("service", "inspect", "--format", "yaml", "web").out) == [SERVICES[0]]
    assert yaml.safe_load(fleet("info", "--format", "yaml").out) == {"Name": "m1", "Swarm": {"NodeID": "x"}}
    assert fleet("service", "inspect", "--format", "yaml", "web").out.startswith("- ID: 7mok")
    engine.on("GET", "/services", [])
    assert yaml.safe_load(fleet("service", "ls", "--format", "yaml").out) == []


def test_yaml_of_events_is_a_stream_of_documents(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/events", Reply(raw=b'{"Type":"node","time":1}{"Type":"service","time":2}'))
    found = list(yaml.safe_load_all(fleet("events", "--since", "0", "--until", "3", "--format", "yaml").out))
    assert [(event["Type"], event["time"]) for event in found] == [("node", 1), ("service", 2)]
