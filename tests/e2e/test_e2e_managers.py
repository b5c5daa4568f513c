"""Three managers on an etcd that fleet keeps: what is killed, cut off, demoted and left, and what goes on."""

from __future__ import annotations

import json
import os
import signal
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.etcd import has_etcd
from support.lab import TestLab

from fleet.api.client import EngineError
from fleet.store import AesSealer
from fleet.store.backup import BackupReader

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.story,
    pytest.mark.skipif(not has_etcd(), reason="needs etcd (package etcd-server)"),
]

SLEEP = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done")
MANAGERS = ("m1", "m2", "m3")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., TestLab]) -> TestLab:
    made = make_lab(managers=1, workers=1)
    made.load_hello()
    return made


@pytest.fixture(scope="module")
def three(make_lab: Callable[..., TestLab]) -> TestLab:
    made = make_lab(managers=3, workers=2)
    made.load_hello()
    made.fleet("service", "create", "--name", "s", "--replicas", "4", "--restart-delay", "0s", "fleet/hello:1", *SLEEP)
    made.wait_until(lambda: len(made.tasks("s")) == 4, 40, what="four tasks run")
    return made


def standing(lab: TestLab, *, at: str = "m1") -> dict[str, str]:
    """Manager status by host name; empty while the host has not opened the state."""
    result = {}
    try:
        nodes = lab.get("/nodes", host=at)
    except EngineError as cause:
        assert cause.status == 503, cause
        return {}
    for node in nodes:
        status = node.get("ManagerStatus")
        if status:
            result[node["Description"]["Hostname"]] = "leader" if status.get("Leader") else status["Reachability"]
    return result


def leader(lab: TestLab, *, at: str) -> str:
    return next((host for host, status in standing(lab, at=at).items() if status == "leader"), "")


def sealing(lab: TestLab, *, at: str = "m1") -> dict[str, Any]:
    return dict(lab.get("/swarm", host=at)["SealingKey"])


def sealing_keys(lab: TestLab, host: str) -> bytes:
    return (lab.layout.data(host) / "swarm" / "store.key").read_bytes()


def other(than: str) -> str:
    return next(host for host in MANAGERS if host != than)


def containers(lab: TestLab, hosts: tuple[str, ...]) -> set[tuple[str, str]]:
    """Of the service that stays; those of others may be about to end."""
    found = [(host, c) for host in hosts for c in lab.get("/containers/json", host=host)]
    return {(host, c["Id"]) for host, c in found if c["Labels"].get("com.docker.swarm.service.name") == "s"}


def scaled(lab: TestLab, replicas: int, *, at: str) -> bool:
    done = lab.fleet("service", "scale", "--detach", f"s={replicas}", host=at, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode == 0


def test_all_managers_answer_and_write(three: TestLab) -> None:
    assert standing(three) == {"m1": "leader", "m2": "reachable", "m3": "reachable"}
    assert three.get("/info")["Swarm"]["Managers"] == 3
    for host in MANAGERS:
        three.fleet("config", "create", f"from-{host}", "-", host=host, stdin=host)
        taken = three.fleet("config", "create", "from-m1", "-", host=host, stdin="x", check=False)
        assert "already exists" in taken.stderr
    for host in MANAGERS:
        three.wait_until(
            lambda host=host: (
                {c["Spec"]["Name"] for c in three.get("/configs", host=host)} == {f"from-{h}" for h in MANAGERS}
            ),
            10,
            what=f"{host} shows what the others wrote",
        )
    refused = three.fleet("service", "ls", host="w1", check=False)
    assert "not a swarm manager" in refused.stderr


def test_logs_and_events_come_from_any_manager(three: TestLab) -> None:
    began = int(time.time())
    three.fleet(
        "service", "create", "--name", "talk", "--replicas", "3", "fleet/hello:1",
        "sh", "-c", "echo said on $(hostname); trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done", host="m2",
    )  # fmt: skip
    for host in MANAGERS:
        three.wait_until(
            lambda host=host: three.fleet("service", "logs", "talk", host=host).stdout.count("said on") == 3,
            20,
            what=f"{host} shows what all three tasks said",
        )
        with (
            three.client(host) as client,
            client.stream(
                "GET",
                "/events",
                query={"since": began, "until": int(time.time()) + 1, "filters": {"type": ["service"]}},
            ) as pieces,
        ):
            events = [json.loads(line) for line in b"".join(pieces).splitlines()]
        assert ("create", "talk") in {(e["Action"], e["Actor"]["Attributes"].get("name")) for e in events}
    three.fleet("service", "rm", "talk", host="m3")
    three.wait_until(lambda: three.get("/services", filters={"name": ["talk"]}) == [], 30, what="it is gone")


def test_two_managers_cannot_give_one_port_away_twice(three: TestLab) -> None:
    made: list[int] = []

    def create(host: str) -> None:
        done = three.fleet(
            "service", "create", "--detach", "--name", f"port-{host}", "-p", "18080:80", "fleet/hello:1", *SLEEP,
            host=host, check=False,
        )  # fmt: skip
        made.append(done.returncode)

    threads = [threading.Thread(target=create, args=(host,)) for host in MANAGERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [0, 1, 1]
    for host in MANAGERS:
        three.fleet("service", "rm", f"port-{host}", check=False)


def test_a_leader_killed_with_9_is_replaced_and_no_task_notices(three: TestLab) -> None:
    before = containers(three, (*MANAGERS, "w1", "w2"))
    first = leader(three, at="m2")
    three.restart_daemon(first, signum=signal.SIGKILL)
    witness = other(first)
    three.wait_until(lambda: leader(three, at=witness) not in ("", first), 20, what="another leads")
    assert scaled(three, 5, at=witness)
    three.wait_until(lambda: len(three.tasks("s")) == 5, 30, what="the new leader schedules")
    assert before <= containers(three, (*MANAGERS, "w1", "w2"))
    three.wait_until(lambda: "unreachable" not in standing(three).values(), 20, what="all managers are back")


def test_a_leader_whose_host_is_cut_off_is_replaced_and_writes_nothing(three: TestLab) -> None:
    first = leader(three, at="m1")
    rest = [host for host in (*MANAGERS, "w1", "w2") if host != first]
    witness = other(first)
    three.partition([first], rest)
    try:
        three.wait_until(lambda: leader(three, at=witness) not in ("", first), 40, what="another leads")
        three.wait_until(lambda: scaled(three, 6, at=witness), 20, what="the majority takes writes")
        alone = three.fleet("service", "scale", "--detach", "s=1", host=first, check=False)
        assert alone.returncode != 0
        assert "Traceback" not in alone.stderr
    finally:
        three.heal()
    three.wait_until(
        lambda: len(standing(three, at=first)) == 3 and leader(three, at=first) != first, 40, what="it follows"
    )
    for host in MANAGERS:
        three.wait_until(
            lambda host=host: three.get("/services/s", host=host)["Spec"]["Mode"]["Replicated"]["Replicas"] == 6,
            20,
            what=f"{host} has the majority's state",
        )


def test_without_a_majority_reads_are_answered_and_writes_refused_until_it_is_back(three: TestLab) -> None:
    three.wait_until(lambda: scaled(three, 6, at="m1"), 20, what="a write is taken")
    three.wait_until(lambda: len(three.tasks("s")) == 6, 40, what="six tasks run")
    before = containers(three, ("m1", "w1", "w2"))
    for host in ("m2", "m3"):
        three.kill(host)
    # Not yet known to be in vain, so nobody can tell whether it will have happened.
    first = three.fleet("config", "create", "perhaps", "-", stdin="x", check=False)
    assert first.returncode != 0
    assert "etcd" in first.stderr or "no majority" in first.stderr
    three.wait_until(
        lambda: "WARNING: the managers have no majority" in three.fleet("service", "ls").stderr, 20, what="it is said"
    )
    refused = three.fleet("service", "scale", "--detach", "s=1", check=False)
    assert refused.returncode != 0
    assert "nothing can be changed" in refused.stderr
    assert "try again" in refused.stderr
    assert [s["Spec"]["Name"] for s in three.get("/services")] == ["s"]
    assert containers(three, ("m1", "w1", "w2")) == before
    for host in ("m2", "m3"):
        three.start(host)
    three.wait_until(lambda: scaled(three, 6, at="m1"), 60, what="writes are taken again")
    three.wait_until(lambda: len(three.tasks("s")) == 6, 60, what="six tasks run")
    assert before <= containers(three, ("m1", "w1", "w2"))


def test_the_sealing_key_is_replaced_on_all_managers_and_opens_nothing_afterwards(
    three: TestLab, tmp_path: Path
) -> None:
    three.fleet("secret", "create", "password", "-", stdin="hunter2")
    old = sealing_keys(three, "m1")
    assert "the first one" in three.fleet("swarm", "sealing-key").stdout
    down = other(leader(three, at="m1"))
    three.kill(down)
    at = other(down)

    def is_begun() -> bool:
        """The one that went down may have led etcd: a write is not confirmed then, though it may be made."""
        done = three.fleet("swarm", "sealing-key", "--rotate", "--detach", host=at, check=False)
        return done.returncode == 0 or "being rotated already" in done.stderr

    three.wait_until(is_begun, 30, what="the rotation begins")
    three.wait_until(
        lambda: f"down: {down}" in three.fleet("swarm", "sealing-key", host=at).stdout, 30, what="it is waited for"
    )
    again = three.fleet("swarm", "sealing-key", "--rotate", host=at, check=False)
    assert again.returncode == 1 and "being rotated already" in again.stderr
    three.fleet("secret", "create", "other", "-", stdin="hunter3", host=at)
    three.restart_daemon(leader(three, at=at), signum=signal.SIGKILL)
    three.start(down)
    three.wait_until(
        lambda: not sealing(three, at=at)["RotationInProgress"], 60, what="all keep the new key, nothing needs the old"
    )
    for host in MANAGERS:
        three.wait_until(lambda host=host: len(sealing_keys(three, host)) == 32, 30, what=f"{host} forgets the old key")
    new = sealing_keys(three, "m1")
    assert {sealing_keys(three, host) for host in MANAGERS} == {new} and new != old
    assert AesSealer(new).digests == (sealing(three)["Digest"],)
    three.fleet("swarm", "backup", str(tmp_path / "backup"))
    reader = BackupReader()
    reader.feed((tmp_path / "backup").read_bytes())
    header, entries = reader.finish()
    assert header.sealing_key == new
    objects = {key: value for key, value in entries.items() if not key.startswith("/fleet/name/")}
    assert len([key for key in objects if "/secret/" in key]) == 2
    assert {"service", "task", "node", "network", "cluster"} <= {key.split("/")[2] for key in objects}
    sealer = AesSealer(new)
    assert not [key for key, value in objects.items() if not sealer.is_sealed_with("", value)]
    assert not [key for key, value in objects.items() if not sealer.unseal(key, value).startswith(b"{")]
    three.fleet("secret", "rm", "password", "other")


def test_a_demoted_manager_works_and_a_promoted_worker_manages(three: TestLab) -> None:
    three.wait_until(
        lambda: sorted(standing(three).values()) == ["leader", "reachable", "reachable"], 40, what="all well"
    )
    first = leader(three, at="m1")
    witness = other(first)
    three.fleet("node", "demote", first, host=witness)
    three.wait_until(lambda: first not in standing(three, at=witness), 40, what="the leader is a worker")
    three.wait_until(
        lambda: not three.get("/info", host=first)["Swarm"]["ControlAvailable"], 20, what="its daemon knows"
    )
    key = three.layout.data(first) / "swarm" / "store.key"
    three.wait_until(lambda: not key.exists(), 20, what="it has forgotten the key of the state")
    three.fleet("node", "promote", "w1", host=witness)
    three.wait_until(lambda: standing(three, at=witness).get("w1") == "reachable", 60, what="w1 manages")
    three.wait_until(
        lambda: [s["Spec"]["Name"] for s in three.get("/services", host="w1")] == ["s"], 20, what="w1 answers"
    )
    left = three.fleet("swarm", "leave", host="w1", check=False)
    assert "demote" in left.stderr
    three.fleet("swarm", "leave", "--force", host="w1")
    three.wait_until(lambda: "w1" not in standing(three, at=witness), 40, what="w1 is out")
    assert scaled(three, 3, at=witness)
    three.fleet("node", "rm", "--force", "w1", host=witness)


def test_the_second_manager_moves_the_state_and_nobody_notices(lab: TestLab) -> None:
    lab.fleet("service", "create", "--name", "s", "--replicas", "2", "fleet/hello:1", *SLEEP)
    before, version = containers(lab, ("m1", "w1")), lab.get("/services/s")["Version"]["Index"]
    acknowledged: list[str] = []
    stop = threading.Event()
    refusals: list[str] = []

    def write() -> None:
        number = 0
        while not stop.is_set():
            name = f"c{number}"
            try:
                with lab.client("m1") as client:
                    client.post("/configs/create", {"Name": name, "Data": "eA=="})
                acknowledged.append(name)
                number += 1
            except (EngineError, OSError, httpx.HTTPError) as cause:
                refusals.append(str(cause))
                time.sleep(0.05)
                number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        lab.fleet("node", "promote", "w1")
        lab.wait_until(lambda: standing(lab).get("w1") == "reachable", 60, what="w1 manages")
    finally:
        stop.set()
        writer.join()
    assert acknowledged
    missing: set[str] = set()

    def has_all() -> bool:
        """A manager answers from what it has heard, which may be a moment behind what another acknowledged."""
        missing.clear()
        missing.update(set(acknowledged) - {c["Spec"]["Name"] for c in lab.get("/configs", host="w1")})
        return not missing

    lab.wait_until(has_all, 10, what=f"w1 has every acknowledged config; missing: {sorted(missing)[:9]}")
    assert containers(lab, ("m1", "w1")) == before
    assert lab.get("/services/s")["Version"]["Index"] > version
    assert not (lab.layout.data("m1") / "swarm" / "store" / "state.db").exists()
    for refusal in refusals:
        assert "Internal" not in refusal


def etcd_pid(lab: TestLab, host: str) -> int:
    """Of the host's etcd, as the test's own process namespace numbers it; 0 while there is none."""
    wanted = f"--data-dir={lab.layout.data(host) / 'swarm' / 'etcd' / 'data'}".encode()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and wanted in (entry / "cmdline").read_bytes().split(b"\0"):
                return int(entry.name)
        except OSError:
            continue
    return 0


def test_etcd_opens_for_no_nodes_certificate(lab: TestLab) -> None:
    identity = lab.layout.data("m1") / "swarm" / "identity" / "current"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(identity / "node.crt", identity / "node.key")
    with pytest.raises(httpx.HTTPError, match=r"(?i)certificate|closed|reset|disconnected"):
        httpx.get(f"https://{lab.address('m1')}:2378/members", verify=context, timeout=5, trust_env=False)


def test_etcd_killed_with_9_is_started_again(lab: TestLab) -> None:
    first = etcd_pid(lab, "m1")
    lab.fleet("swarm", "update", "--snapshot-interval", "5000", "--max-snapshots", "2")
    settings = lab.layout.data("m1") / "swarm" / "etcd" / "snapshots.json"
    lab.wait_until(settings.exists, 10, what="the settings have come to the manager")
    os.kill(first, signal.SIGKILL)
    lab.wait_until(lambda: etcd_pid(lab, "m1") not in (0, first), 20, what="etcd runs again")
    arguments = Path(f"/proc/{etcd_pid(lab, 'm1')}/cmdline").read_bytes().split(b"\0")
    assert {b"--snapshot-count=5000", b"--max-snapshots=3"} <= set(arguments)
    lab.wait_until(
        lambda: (
            lab.fleet("config", "create", "after", "-", stdin="x", check=False).returncode == 0
            or any(c["Spec"]["Name"] == "after" for c in lab.get("/configs"))
        ),
        40,
        what="writes are taken again",
    )


def test_a_restarted_daemon_takes_its_running_etcd_up(lab: TestLab) -> None:
    before = etcd_pid(lab, "m1")
    lab.restart_daemon("m1", signum=signal.SIGKILL)
    lab.wait_until(lambda: lab.get("/info")["Swarm"]["ControlAvailable"], 40, what="m1 manages again")
    assert etcd_pid(lab, "m1") == before


def test_when_the_majority_is_lost_for_good_one_manager_goes_on_alone(lab: TestLab) -> None:
    before = containers(lab, ("m1",))
    lab.kill("w1")
    lab.wait_until(
        lambda: "no majority" in lab.fleet("config", "create", "x", "-", stdin="x", check=False).stderr,
        30,
        what="refused",
    )
    done = lab.fleet("swarm", "init", "--force-new-cluster")
    assert "is now a manager" in done.stdout
    assert set(standing(lab)) == {"m1"}
    lab.fleet("config", "create", "alone", "-", stdin="x")
    assert before <= containers(lab, ("m1",))
    lab.start("w1")  # it believes to be a manager of a cluster of two, and learns better
    lab.wait_until(lambda: not lab.get("/info", host="w1")["Swarm"]["ControlAvailable"], 40, what="w1 is a worker")
    lab.wait_until(
        lambda: (
            {n["Description"]["Hostname"]: n["Status"]["State"] for n in lab.get("/nodes")}
            == {"m1": "ready", "w1": "ready"}
        ),
        40,
        what="both are ready",
    )
    lab.wait_until(lambda: etcd_pid(lab, "w1") == 0, 20, what="w1 keeps no etcd any more")


def test_a_backup_is_taken_up_again_and_the_workers_find_it(lab: TestLab, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    lab.fleet("secret", "create", "key", "-", stdin="hidden")
    lab.fleet("swarm", "backup", str(file))
    assert file.stat().st_mode & 0o077 == 0
    assert b"hidden" not in file.read_bytes()
    again = lab.fleet("swarm", "backup", str(file), check=False)
    assert "exists already" in again.stderr
    refused = lab.fleet("swarm", "restore", str(file), check=False)
    assert "already part of a swarm" in refused.stderr

    lab.fleet("swarm", "leave", "--force")
    whole = file.read_bytes()
    for name, data, words in (
        ("cut", whole[: len(whole) // 2], "cut off"),
        ("changed", whole.replace(b'"revision":', b'"revision":1', 1), "damaged"),
        ("junk", b"{}\n", "not a backup"),
    ):
        (tmp_path / name).write_bytes(data)
        bad = lab.fleet("swarm", "restore", str(tmp_path / name), check=False)
        assert bad.returncode == 1
        assert words in bad.stderr or "damaged" in bad.stderr, bad.stderr
        assert "Traceback" not in bad.stderr
    assert lab.get("/info")["Swarm"]["LocalNodeState"] == "inactive"

    lab.fleet("swarm", "restore", "--advertise-addr", lab.address("m1"), str(file))
    assert {"alone", "c0"} <= {c["Spec"]["Name"] for c in lab.get("/configs")}
    assert [x["Spec"]["Name"] for x in lab.get("/secrets")] == ["key"]
    lab.wait_until(
        lambda: any(
            n["Description"]["Hostname"] == "w1" and n["Status"]["State"] == "ready" for n in lab.get("/nodes")
        ),
        40,
        what="w1 has found the restored manager",
    )
    lab.wait_until(lambda: len(lab.tasks("s")) == 2, 60, what="the service runs as it did")


def keys_on_disk(lab: TestLab, host: str) -> bytes:
    swarm = lab.layout.data(host) / "swarm"
    files = (swarm / "store.key", swarm / "identity" / "current" / "node.key", swarm / "etcd" / "tls" / "member.key")
    return b"".join(file.read_bytes() for file in files if file.exists())


def test_a_locked_manager_does_nothing_until_it_is_unlocked(lab: TestLab) -> None:
    lab.fleet("node", "promote", "w1")
    lab.wait_until(lambda: standing(lab).get("w1") == "reachable", 60, what="w1 manages again")
    open_key = (lab.layout.data("m1") / "swarm" / "store.key").read_bytes()
    assert "managers are not locked" in lab.fleet("swarm", "unlock-key", check=False).stderr
    assert "SWMKEY-1-" in lab.fleet("swarm", "update", "--autolock=true").stdout
    key = lab.fleet("swarm", "unlock-key", "-q").stdout.strip()
    for host in ("m1", "w1"):
        lab.wait_until(lambda host=host: b"fleet-locked" in keys_on_disk(lab, host), 20, what=f"{host} is locked")
        lab.wait_until(lambda host=host: b"BEGIN PRIVATE" not in keys_on_disk(lab, host), 20, what=f"{host} is locked")
        assert open_key not in keys_on_disk(lab, host)
    lab.wait_until(
        lambda: not sealing(lab)["RotationInProgress"], 40, what="the key that lay open seals nothing any more"
    )
    first = sealing(lab)["Digest"]
    assert first
    assert "swarm is not locked" in lab.fleet("swarm", "unlock", stdin=key, check=False).stderr

    before = containers(lab, ("w1",))
    lab.restart_daemon("w1", signum=signal.SIGKILL)
    assert lab.get("/info", host="w1")["Swarm"]["LocalNodeState"] == "locked"
    refused = lab.fleet("node", "ls", host="w1", check=False)
    assert "needs to be unlocked" in refused.stderr
    wrong = lab.fleet("swarm", "unlock", host="w1", stdin="SWMKEY-1-" + "A" * 43, check=False)
    assert "invalid key" in wrong.stderr
    assert "expected the form" in lab.fleet("swarm", "unlock", host="w1", stdin="nonsense", check=False).stderr
    assert containers(lab, ("w1",)) == before
    lab.fleet("swarm", "unlock", host="w1", stdin=key + "\n")
    lab.wait_until(lambda: set(standing(lab, at="w1")) == {"m1", "w1"}, 40, what="w1 manages again")
    assert containers(lab, ("w1",)) == before

    lab.fleet("swarm", "unlock-key", "--rotate", "-q")
    new = lab.fleet("swarm", "unlock-key", "-q").stdout.strip()
    assert new != key

    def opens_with_new() -> bool:
        lab.restart_daemon("w1", signum=signal.SIGKILL)
        return lab.fleet("swarm", "unlock", host="w1", stdin=new, check=False).returncode == 0

    lab.wait_until(opens_with_new, 40, what="the new key counts")
    lab.wait_until(lambda: not sealing(lab)["RotationInProgress"], 40, what="nor does the one locked with the old")
    assert sealing(lab)["Digest"] != first
    lab.fleet("swarm", "update", "--autolock=false")
    for host in ("m1", "w1"):
        lab.wait_until(lambda host=host: len(sealing_keys(lab, host)) == 32, 20, what=f"{host} is not locked")
    assert sealing_keys(lab, "m1") == sealing_keys(lab, "w1") != open_key
    lab.restart_daemon("w1", signum=signal.SIGKILL)
    lab.wait_until(lambda: set(standing(lab, at="w1")) == {"m1", "w1"}, 40, what="w1 manages without being asked")


def test_the_last_manager_that_is_left_begins_anew(lab: TestLab) -> None:
    lab.fleet("node", "demote", "w1")
    lab.wait_until(lambda: set(standing(lab)) == {"m1"}, 40, what="m1 manages alone")
    lab.wait_until(lambda: etcd_pid(lab, "w1") == 0, 20, what="the worker's etcd is gone")
    lab.fleet("swarm", "leave", "--force")
    assert etcd_pid(lab, "m1") == 0
    assert not (lab.layout.data("m1") / "swarm" / "etcd").exists()
    lab.fleet("swarm", "init", "--advertise-addr", lab.address("m1"))
    assert set(standing(lab)) == {"m1"}


@pytest.fixture(scope="module")
def bare(make_lab: Callable[..., TestLab]) -> TestLab:
    made = make_lab(managers=1, workers=1, swarm=False)
    assert isinstance(made, TestLab)
    return made


@pytest.mark.parametrize("delay_s", [0.0, 0.3, 0.4, 0.5, 0.9])
def test_a_move_that_is_killed_in_the_middle_loses_nothing_and_ends(bare: TestLab, delay_s: float) -> None:
    """The move takes about half a second, of which the last tens of milliseconds count; then the other is let in."""
    for host in ("w1", "m1"):
        bare.fleet("swarm", "leave", "--force", host=host, check=False)
    bare.fleet("swarm", "init", "--advertise-addr", bare.address("m1"))
    token = bare.fleet("swarm", "join-token", "-q", "worker").stdout.strip()
    bare.fleet("swarm", "join", "--token", token, f"{bare.address('m1')}:2377", host="w1")
    names = {f"before-{number}" for number in range(5)}
    for name in names:
        bare.fleet("config", "create", name, "-", stdin="x")
    log = bare.layout.log("m1")
    began = log.stat().st_size
    bare.fleet("node", "promote", "w1")
    bare.wait_until(lambda: b"the state moves to an etcd" in log.read_bytes()[began:], 30, what="the move begins")
    time.sleep(delay_s)
    bare.restart_daemon("m1", signum=signal.SIGKILL)
    bare.wait_until(lambda: standing(bare).get("w1") in ("reachable", "leader"), 90, what="w1 manages all the same")
    for host in ("m1", "w1"):
        assert names <= {c["Spec"]["Name"] for c in bare.get("/configs", host=host)}
    bare.fleet("config", "create", "after", "-", stdin="x", host="w1")
