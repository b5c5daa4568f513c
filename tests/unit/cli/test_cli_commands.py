"""What commands ask the daemon for, what they print, and how they fail."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fleet.cli.main import run
from tests.support.fake_engine import FakeEngine, Reply

NODE = {
    "ID": "i79sv6oi0dxq4evd725wgg6e7",
    "Version": {"Index": 948},
    "Spec": {"Labels": {"zone": "a"}, "Role": "worker", "Availability": "active"},
    "Description": {"Hostname": "w1", "Engine": {"EngineVersion": "0.1"}},
    "Status": {"State": "ready", "Addr": "10.0.0.2"},
}
TOKENS = {
    "JoinTokens": {"Worker": "SWMTKN-1-w", "Manager": "SWMTKN-1-m"},
    "Version": {"Index": 949},
    "Spec": {"Name": "default"},
}
INFO = {
    "Name": "m1",
    "Swarm": {
        "NodeID": NODE["ID"],
        "NodeAddr": "10.0.0.1",
        "ControlAvailable": True,
        "RemoteManagers": [{"NodeID": NODE["ID"], "Addr": "10.0.0.1:2377"}],
    },
}


# --- failing ----------------------------------------------------------------------------------------------------------


def test_daemon_that_says_no_is_one_line_and_code_1(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/nodes", Reply(503, {"message": "This node is not a swarm manager.\nUse x."}))
    ran = fleet("node", "ls")
    assert (ran.code, ran.out, ran.err) == (1, "", "Error: This node is not a swarm manager. Use x.\n")


def test_daemon_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["service", "ls"], {"FLEET_HOST": "unix:///nonexistent/s"}) == 1
    err = capsys.readouterr().err
    assert err.startswith("Error: cannot reach the fleet daemon at unix:///nonexistent/s: ")
    assert err.count("\n") == 1


def test_answer_cut_short_is_no_traceback(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/services/x/logs", Reply(raw=b"\x01\0\0\0\0\0\0\x0aabc"))
    engine.on("GET", "/services/x", {"ID": "x", "Spec": {"TaskTemplate": {}}})
    ran = fleet("service", "logs", "x")
    assert (ran.code, ran.err) == (1, "Error: the log stream ended in the middle of a line\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["servce", "ls"], "did you mean 'service'"),
        (["service", "frob"], "frob"),
        (["stack", "deploi", "x"], "deploi"),
        (["service", "ls", "--nope"], "--nope"),
        (["service", "create"], "IMAGE"),
        (["service", "scale", "web"], "SERVICE=NUMBER"),
        (["service", "scale", "web=-1"], "SERVICE=NUMBER"),
        (["service", "ls", "--filter", "name"], "NAME=VALUE"),
        (["node", "update", "w1"], "--availability"),
        (["node", "update", "--availability", "off", "w1"], "drain"),
        (["swarm", "join-token", "leader"], "worker"),
        (["swarm", "join", "10.0.0.1"], "--token"),
        (["network", "create", "--gateway", "10.0.0.1", "n"], "--subnet"),
        (["network", "create", "--subnet", "10.0.0.0/24", "--gateway", "10.9.0.1", "n"], "none of the subnets"),
        (["network", "create", "--subnet", "10.0.0.1/24", "n"], "host bits"),
        (["secret", "create", "s", "/nonexistent"], "cannot read /nonexistent"),
        (["service", "inspect", ""], "empty name"),
        (["service", "inspect", "--pretty", "--format", "x", "y"], "--pretty"),
        (["service", "ls", "--format", "{{.X"], "}}"),
        (["service", "logs", "--since", "yesterday", "x"], "yesterday"),
        (["service", "logs", "--tail", "few", "x"], "few"),
        (["stack", "deploy", "s"], "--compose-file"),
        (["stack", "deploy", "-c", "/nonexistent.yml", "s"], "cannot read /nonexistent.yml"),
        (["stack", "ps", "a b"], "not a stack name"),
        (["-H", "ftp://x", "info"], "unknown scheme"),
        (["--tlsverify", "--tlscacert", "/nonexistent", "-H", "tcp://127.0.0.1:1", "info"], "/nonexistent"),
    ],
)
def test_wrong_command_line_is_one_sentence_and_code_2(
    fleet: Any, engine: FakeEngine, arguments: list[str], words: str
) -> None:
    engine.on("GET", "/services", [])
    engine.on("GET", "/services/x", {"ID": "x", "Spec": {"TaskTemplate": {}}})
    ran = fleet(*arguments)
    assert ran.code == 2
    assert ran.err.startswith("Error: ")
    assert words in ran.err.splitlines()[0]
    assert engine.sent("POST", ".*") == []


def test_missing_object_does_not_keep_the_others_from_being_shown(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/services/a", {"ID": "a"})
    engine.on("GET", "/services/b", Reply(404, {"message": "service b not found"}))
    ran = fleet("service", "inspect", "b", "a")
    assert (ran.code, json.loads(ran.out), ran.err) == (1, [{"ID": "a"}], "Error: service b not found\n")


def test_removal_goes_on_after_a_failure(fleet: Any, engine: FakeEngine) -> None:
    engine.on("DELETE", "/services/b", None)
    engine.on("DELETE", "/services/a", Reply(404, {"message": "service a not found"}))
    ran = fleet("service", "rm", "a", "b")
    assert (ran.code, ran.out, ran.err) == (1, "b\n", "Error: service a not found\n")


def test_names_are_quoted_in_paths(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/services/a%3Fb%20c", {"ID": "a"})
    assert fleet("service", "inspect", "a?b c").code == 0


def test_reader_that_goes_away_is_quiet(engine: FakeEngine) -> None:
    engine.on(
        "GET", "/services", [{"ID": "x" * 25, "Spec": {"Name": f"n{i}", "TaskTemplate": {}}} for i in range(5000)]
    )
    program = f"{sys.executable} -m fleet.cli.main -H {engine.url} service ls | head -1; echo ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout.splitlines()[1] == "141"
    assert ran.stderr == ""


def test_full_disk_is_one_line(engine: FakeEngine) -> None:
    engine.on("GET", "/services", [])
    program = [sys.executable, "-m", "fleet.cli.main", "-H", engine.url, "service", "ls"]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    assert (ran.returncode, ran.stderr) == (1, "Error: [Errno 28] No space left on device\n")


def test_host_is_taken_from_the_flag_then_the_environment(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.on("GET", "/services", [])
    assert run(["-H", engine.url, "service", "ls", "-q"], {"FLEET_HOST": "unix:///a", "DOCKER_HOST": "unix:///b"}) == 0
    assert run(["service", "ls", "-q"], {"DOCKER_HOST": engine.url}) == 0
    assert run(["service", "ls", "-q"], {"FLEET_HOST": "unix:///a", "DOCKER_HOST": engine.url}) == 1
    assert "unix:///a" in capsys.readouterr().err


# --- lists ------------------------------------------------------------------------------------------------------------

SERVICES = [
    {
        "ID": "7mokx85p9mz3g38nw9s4vqyev",
        "Spec": {
            "Name": "x",
            "Mode": {"Replicated": {"Replicas": 3}},
            "TaskTemplate": {"ContainerSpec": {"Image": "b:1@sha256:ab"}},
        },
        "Endpoint": {"Ports": [{"TargetPort": 80, "PublishedPort": 8080}]},
        "ServiceStatus": {"RunningTasks": 2, "DesiredTasks": 3},
    },
    {
        "ID": "abokx85p9mz3g38nw9s4vqyev",
        "Spec": {"Name": "g", "Mode": {"Global": {}}, "TaskTemplate": {"ContainerSpec": {"Image": "b:1"}}},
    },
]


@pytest.fixture
def services(engine: FakeEngine) -> None:
    engine.on("GET", "/services", SERVICES)


@pytest.mark.usefixtures("services")
def test_service_ls_has_dockers_columns(fleet: Any, engine: FakeEngine) -> None:
    assert fleet("service", "ls", "-f", "name=x", "-f", "mode=global").out.splitlines() == [
        "ID             NAME   MODE         REPLICAS   IMAGE   PORTS",
        "abokx85p9mz3   g      global       0/0        b:1",
        "7mokx85p9mz3   x      replicated   2/3        b:1     *:8080->80/tcp",
    ]
    assert engine.requests[0].query == {"status": "1", "filters": {"name": ["x"], "mode": ["global"]}}


@pytest.mark.usefixtures("services")
def test_formats_of_lists(fleet: Any) -> None:
    assert fleet("service", "ls", "-q").out == "abokx85p9mz3\n7mokx85p9mz3\n"
    assert fleet("service", "ls", "--format", "{{.Name}}: {{.Replicas}}").out == "g: 0/0\nx: 2/3\n"
    assert (
        fleet("service", "ls", "--format", "table {{.Name}}\\t{{.Mode}}").out
        == "NAME   MODE\ng      global\nx      replicated\n"
    )
    lines = fleet("service", "ls", "--format", "json").out.splitlines()
    assert [json.loads(line)["Name"] for line in lines] == ["g", "x"]


def test_service_ps_indents_history_and_shows_errors(fleet: Any, engine: FakeEngine) -> None:
    def task(number: int, state: str, desired: str, err: str = "") -> dict[str, Any]:
        return {
            "ID": f"task{number}".ljust(25, "0"),
            "ServiceID": "x1",
            "Slot": 1,
            "NodeID": NODE["ID"],
            "CreatedAt": f"2026-01-01T00:00:0{number}Z",
            "DesiredState": desired,
            "Spec": {"ContainerSpec": {"Image": "b:1"}},
            "Status": {"State": state, "Err": err},
        }

    engine.on("GET", "/services/x", {"ID": "x1", "Spec": {"Name": "x"}})
    engine.on("GET", "/services/x1", {"ID": "x1", "Spec": {"Name": "x"}})
    engine.on("GET", "/nodes", [NODE])
    engine.on("GET", "/tasks", [task(1, "failed", "shutdown", "boom"), task(2, "running", "running")])
    lines = fleet("service", "ps", "x").out.splitlines()
    assert lines[1].split() == ["task20000000", "x.1", "b:1", "w1", "Running", "Running"]
    assert lines[2].split() == ["task10000000", "\\_", "x.1", "b:1", "w1", "Shutdown", "Failed", '"boom"']


def test_node_ls_marks_the_daemons_own_node(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/nodes", [{**NODE, "ManagerStatus": {"Leader": True, "Reachability": "reachable"}}])
    engine.on("GET", "/info", INFO)
    assert fleet("node", "ls").out.splitlines()[1].split() == [
        NODE["ID"],
        "*",
        "w1",
        "Ready",
        "Active",
        "Leader",
        "0.1",
    ]


# --- bodies -----------------------------------------------------------------------------------------------------------


def test_node_update_keeps_labels_and_sends_the_version(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/nodes/w1", NODE)
    engine.on("POST", "/nodes/.*/update", None)
    ran = fleet("node", "update", "--availability", "drain", "--label-add", "disk=ssd", "--label-rm", "zone", "w1")
    assert (ran.code, ran.out) == (0, "w1\n")
    (request,) = engine.sent("POST", f"/nodes/{NODE['ID']}/update")
    assert request.query == {"version": "948"}
    assert request.body == {"Labels": {"disk": "ssd"}, "Role": "worker", "Availability": "drain"}


def test_taints_of_a_node_are_written_as_labels_and_taken_away_by_key(fleet: Any, engine: FakeEngine) -> None:
    tainted = {**NODE["Spec"], "Labels": {"fleet.taint.old": "x:no-execute"}}
    engine.on("GET", "/nodes/w1", {**NODE, "Spec": tainted})
    engine.on("POST", "/nodes/.*/update", None)
    ran = fleet(
        "node",
        "update",
        "--taint-add",
        "gpu=a100:no-schedule",
        "--taint-add",
        "k:no-execute",
        "--taint-rm",
        "old",
        "w1",
    )
    assert (ran.code, ran.out) == (0, "w1\n")
    (request,) = engine.sent("POST", f"/nodes/{NODE['ID']}/update")
    assert request.body["Labels"] == {"fleet.taint.gpu": "a100:no-schedule", "fleet.taint.k": ":no-execute"}


@pytest.mark.parametrize(
    ("flag", "text", "said"),
    [
        ("--taint-add", "gpu", "has no effect; expected KEY[=VALUE]:EFFECT, such as gpu:no-schedule"),
        ("--taint-add", "gpu:never", "effect 'never' is none of no-schedule, prefer-no-schedule, no-execute"),
        ("--taint-add", "=x:no-execute", "'' is no key of a taint"),
        ("--taint-add", "a=b c:no-execute", "'b c' is no value of a taint"),
        ("--taint-rm", "gpu", "--taint-rm gpu: node w1 has no such taint"),
    ],
)
def test_a_taint_that_is_none_is_refused(fleet: Any, engine: FakeEngine, flag: str, text: str, said: str) -> None:
    engine.on("GET", "/nodes/w1", NODE)
    ran = fleet("node", "update", flag, text, "w1")
    assert ran.code == 2 and said in ran.err
    assert not engine.sent("POST", ".*")


def test_node_self_is_resolved_by_the_client(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/info", INFO)
    engine.on("GET", f"/nodes/{NODE['ID']}", NODE)
    assert fleet("node", "inspect", "self", "-f", "{{.Description.Hostname}}").out == "w1\n"


def test_promote_asks_for_the_manager_role(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/nodes/w1", NODE)
    engine.on("POST", "/nodes/.*/update", Reply(501, {"message": "a second manager needs the etcd engine"}))
    ran = fleet("node", "promote", "w1")
    assert (ran.code, ran.err) == (1, "Error: a second manager needs the etcd engine\n")
    assert engine.sent("POST", ".*")[0].body["Role"] == "manager"


def test_swarm_init_tells_how_to_join(fleet: Any, engine: FakeEngine) -> None:
    engine.on("POST", "/swarm/init", NODE["ID"])
    engine.on("GET", "/swarm", TOKENS)
    engine.on("GET", "/info", INFO)
    ran = fleet("swarm", "init", "--advertise-addr", "10.0.0.1", "--task-history-limit", "2")
    assert "    fleet swarm join --token SWMTKN-1-w 10.0.0.1:2377\n" in ran.out
    body = engine.sent("POST", "/swarm/init")[0].body
    assert (body["ListenAddr"], body["AdvertiseAddr"], body["SubnetSize"]) == ("0.0.0.0:2377", "10.0.0.1", 24)
    assert body["Spec"]["Orchestration"] == {"TaskHistoryRetentionLimit": 2}


def test_swarm_join_adds_the_port(fleet: Any, engine: FakeEngine) -> None:
    engine.on("POST", "/swarm/join", None)
    engine.on("GET", "/info", {"Swarm": {"ControlAvailable": False}})
    ran = fleet("swarm", "join", "--token", "T", "10.0.0.1")
    assert ran.out == "This node joined a swarm as a worker.\n"
    body = engine.sent("POST", "/swarm/join")[0].body
    assert (body["RemoteAddrs"], body["JoinToken"]) == (["10.0.0.1:2377"], "T")


def test_join_token_rotates_first(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/swarm", TOKENS)
    engine.on("POST", "/swarm/update", None)
    assert fleet("swarm", "join-token", "-q", "--rotate", "worker").out == "SWMTKN-1-w\n"
    (request,) = engine.sent("POST", "/swarm/update")
    assert request.query == {
        "version": "949",
        "rotateWorkerToken": "true",
        "rotateManagerToken": "false",
        "rotateManagerUnlockKey": "false",
    }
    assert [r.method for r in engine.requests] == ["GET", "POST", "GET"]


@pytest.mark.parametrize(("flags", "query"), [([], {}), (["--force"], {"force": "1"})])
def test_swarm_leave(fleet: Any, engine: FakeEngine, flags: list[str], query: dict[str, str]) -> None:
    engine.on("POST", "/swarm/leave", None)
    assert fleet("swarm", "leave", *flags).out == "Node left the swarm.\n"
    assert engine.requests[0].query == query


def test_network_create_sends_what_docker_sends(fleet: Any, engine: FakeEngine) -> None:
    engine.on("POST", "/networks/create", Reply(201, {"Id": "n"}))
    assert fleet("network", "create", "-d", "overlay", "--attachable", "net1").out == "n\n"
    assert engine.requests[0].body == {
        "CheckDuplicate": True,
        "Driver": "overlay",
        "Scope": "",
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": {}, "Config": []},
        "Internal": False,
        "Attachable": True,
        "Ingress": False,
        "ConfigOnly": False,
        "ConfigFrom": None,
        "Options": {},
        "Labels": {},
        "Name": "net1",
    }


def test_network_gateways_go_to_their_subnets(fleet: Any, engine: FakeEngine) -> None:
    engine.on("POST", "/networks/create", Reply(201, {"Id": "n"}))
    fleet("network", "create", "--subnet", "10.1.0.0/24", "--subnet", "10.2.0.0/24", "--gateway", "10.2.0.1", "n")
    assert engine.requests[0].body["IPAM"]["Config"] == [
        {"Subnet": "10.1.0.0/24"},
        {"Subnet": "10.2.0.0/24", "Gateway": "10.2.0.1"},
    ]


@pytest.mark.parametrize("noun", ["secret", "config"])
def test_data_is_read_from_standard_input(
    fleet: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, noun: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"data\n")))
    engine.on("POST", f"/{noun}s/create", Reply(201, {"ID": "id1"}))
    assert fleet(noun, "create", "-l", "a=b", "n1", "-").out == "id1\n"
    assert engine.requests[0].body == {"Name": "n1", "Labels": {"a": "b"}, "Data": "ZGF0YQo="}


def test_secret_larger_than_the_limit_is_refused_here(fleet: Any, engine: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(b"x" * (500 * 1024 + 1))
    ran = fleet("secret", "create", "s", str(path))
    assert (ran.code, engine.requests) == (2, [])
    assert "512000 bytes" in ran.err


def test_registry_login_is_sent_when_asked_for(fleet: Any, engine: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"auths": {"reg.example:5000": {"auth": "dTpwOng="}}}')
    engine.on("POST", "/services/create", Reply(201, {"ID": "i"}))
    environment = {"DOCKER_CONFIG": str(tmp_path)}
    fleet("service", "create", "-d", "--with-registry-auth", "reg.example:5000/a/b:1", environment=environment)
    import base64

    sent = json.loads(base64.urlsafe_b64decode(engine.requests[0].headers["x-registry-auth"]))
    assert sent == {"username": "u", "password": "p:x", "serveraddress": "reg.example:5000"}


def test_volume_commands(fleet: Any, engine: FakeEngine) -> None:
    engine.on("POST", "/volumes/create", Reply(201, {"Name": "v"}))
    engine.on("GET", "/volumes", {"Volumes": [{"Name": "v", "Driver": "local"}]})
    assert fleet("volume", "create", "--label", "a=b", "-o", "type=nfs", "v").out == "v\n"
    assert engine.requests[0].body == {
        "Name": "v",
        "Driver": "local",
        "DriverOpts": {"type": "nfs"},
        "Labels": {"a": "b"},
    }
    assert fleet("volume", "ls").out.splitlines()[1].split() == ["local", "v"]


def test_destructive_commands_ask(fleet: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert fleet("volume", "prune").code == 130
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert fleet("network", "prune").code in (1, 130)
    assert engine.requests == []


# --- streams ----------------------------------------------------------------------------------------------------------


def test_image_import_streams_the_archive_and_prints_the_id(fleet: Any, engine: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "root.tar"
    path.write_bytes(b"tar" * 200_000)
    engine.on("POST", "/images/create", Reply(raw=b'{"status":"sha256:abc"}\n'))
    ran = fleet("image", "import", "-c", "ENV A=1", "-c", 'CMD ["sh"]', str(path), "fleet/hello:1")
    assert (ran.code, ran.out) == (0, "sha256:abc\n")
    (request,) = engine.requests
    assert request.query == {"fromSrc": "-", "repo": "fleet/hello", "tag": "1", "changes": ["ENV A=1", 'CMD ["sh"]']}
    assert request.body == path.read_bytes()


def test_error_in_a_progress_stream_fails_the_command(fleet: Any, engine: FakeEngine) -> None:
    lines = b'{"status":"Pulling from x"}\n{"errorDetail":{"message":"no such manifest"},"error":"no such manifest"}\n'
    engine.on("POST", "/images/create", Reply(raw=lines))
    ran = fleet("pull", "localhost:5000/x:2")
    assert (ran.code, ran.out, ran.err) == (1, "Pulling from x\n", "Error: no such manifest\n")
    assert engine.requests[0].query == {"fromImage": "localhost:5000/x", "tag": "2"}


def test_image_save_writes_the_whole_file_or_none(fleet: Any, engine: FakeEngine, tmp_path: Path) -> None:
    engine.on("GET", "/images/get", Reply(raw=b"archive"))
    assert fleet("image", "save", "-o", str(tmp_path / "a.tar"), "x", "y").code == 0
    assert (tmp_path / "a.tar").read_bytes() == b"archive"
    assert engine.requests[0].query == {"names": ["x", "y"]}
    engine.on("GET", "/images/get", Reply(404, {"message": "no such image: x"}))
    assert fleet("image", "save", "-o", str(tmp_path / "b.tar"), "x").code == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def frame(stream: int, text: str) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(text.encode()).to_bytes(4, "big") + text.encode()


def test_service_logs_name_the_task_and_node_of_each_line(fleet: Any, engine: FakeEngine) -> None:
    details = f"com.docker.swarm.node.id={NODE['ID']},com.docker.swarm.service.id=x1,com.docker.swarm.task.id=t1"
    engine.on("GET", "/services/x", {"ID": "x1", "Spec": {"Name": "x", "TaskTemplate": {}}})
    engine.on("GET", "/services/x1", {"ID": "x1", "Spec": {"Name": "x"}})
    engine.on("GET", "/tasks/t1", {"ID": "t1", "ServiceID": "x1", "Slot": 2})
    engine.on("GET", "/nodes", [NODE])
    stream = frame(1, f"{details} hello world\n") + frame(2, f"{details} oops\n") + frame(1, f"{details} \n")
    engine.on("GET", "/services/x1/logs", Reply(raw=stream))
    ran = fleet("service", "logs", "x")
    assert ran.out.splitlines() == ["x.2.t1@w1    | hello world", "x.2.t1@w1    | "]
    assert ran.err == "x.2.t1@w1    | oops\n"
    assert len(engine.sent("GET", "/tasks/t1")) == 1
    (request,) = engine.sent("GET", "/services/x1/logs")
    assert request.query == {"stdout": "1", "stderr": "1", "details": "1", "tail": "all"}
    engine.on("GET", "/services/x1/logs", Reply(raw=frame(1, "raw line\n")))
    assert fleet("service", "logs", "--raw", "x").out == "raw line\n"


def test_logs_finds_containers_first_and_then_services(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/containers/x/json", Reply(404, {"message": "No such container: x"}))
    engine.on("GET", "/services/x", {"ID": "x1", "Spec": {"Name": "x", "TaskTemplate": {}}})
    engine.on("GET", "/services/x1/logs", Reply(raw=frame(1, "from a service\n")))
    assert fleet("logs", "x").out == "from a service\n"
    engine.on("GET", "/containers/x/json", {"Config": {"Tty": True}})
    engine.on("GET", "/containers/x/logs", Reply(raw=b"from a terminal\r\n"))
    assert fleet("logs", "x").out == "from a terminal\r\n"
    assert fleet("logs", "nothing").err == "Error: no such container, service or task: nothing\n"


def test_events_are_read_without_line_ends(fleet: Any, engine: FakeEngine) -> None:
    event = {
        "Type": "service",
        "Action": "create",
        "Actor": {"ID": "x", "Attributes": {"name": "é"}},
        "timeNano": 1_000_000_000,
    }
    engine.on("GET", "/events", Reply(raw=json.dumps(event, ensure_ascii=False).encode() * 2))
    ran = fleet("events", "--since", "0", "--until", "1")
    assert re.fullmatch(
        r"(1970-01-01T\d\d:00:01\.000000000(Z|[+-]\d\d:\d\d) service create x \(name=é\)\n){2}", ran.out
    )


def test_completion_scripts_are_printed(fleet: Any) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_FLEET_COMPLETE" in fleet("completion", shell).out


def test_noun_without_a_verb_shows_its_help(fleet: Any) -> None:
    for arguments in ([], ["service"], ["stack"]):
        ran = fleet(*arguments)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith("Usage: fleet")
        assert len(ran.err.splitlines()) > 5


def test_help_of_every_command_works(fleet: Any) -> None:
    from fleet.cli.main import _COMMANDS

    for name in _COMMANDS:
        if name != "daemon":
            ran = fleet(name, "--help")
            assert (ran.code, ran.err) == (0, ""), name
            assert ran.out.lower().startswith(f"usage: fleet {name}")


def test_list_of_services_imports_nothing_heavy(engine: FakeEngine) -> None:
    engine.on("GET", "/services", [])
    program = (
        "import sys\nfrom fleet.cli.main import run\n"
        f"run(['service', 'ls'], {{'FLEET_HOST': {engine.url!r}}})\n"
        "heavy = {'httpx', 'fastapi', 'pydantic', 'rich', 'yaml', 'msgspec', 'asyncio', 'fleet.model'}\n"
        "heavy = (heavy | {'fleet.cli.service_flags'}) & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
