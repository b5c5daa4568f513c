"""`fleet network doctor` says what is wrong: something is broken on a host of the lab, and the sentence names it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from support.lab import TestLab

pytestmark = pytest.mark.e2e

SERVER = "mkdir -p /www; echo hi > /www/index.html; httpd -f -h /www -p 80 & wait"
WALL = "add table ip wall; add chain ip wall in { type filter hook input priority -5; }; add rule ip wall in "


@pytest.fixture(scope="module", autouse=True)
def web(lab: TestLab) -> None:
    lab.load_hello()
    lab.fleet("network", "create", "-d", "overlay", "front")
    lab.fleet(
        "service", "create", "--quiet", "--mode", "global", "--name", "web", "--network", "front", "-p", "8080:80",
        "fleet/hello:1", "sh", "-c", SERVER,
    )  # fmt: skip
    lab.wait_until(lambda: not wrong(lab), 30, what="the doctor finds nothing wrong")


def report(lab: TestLab, *args: str, host: str = "m1") -> dict[str, Any]:
    done = lab.fleet("network", "doctor", "--format", "json", *args, host=host, check=False)
    shown: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if shown["Healthy"] else 1)
    return shown


def wrong(lab: TestLab, *args: str, host: str = "m1") -> list[tuple[str, str, str]]:
    """(host, sentence, remedy) of each thing that is wrong."""
    findings = report(lab, *args, host=host)["Findings"]
    return [(f["Host"], f["Says"], f["Remedy"]) for f in findings if f["Level"] == "wrong"]


def inside(lab: TestLab, host: str, *argv: str) -> str:
    done = lab.exec(host, argv)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@contextmanager
def wall(lab: TestLab, host: str, rule: str) -> Iterator[None]:
    inside(lab, host, "nft", WALL + rule)
    try:
        yield
    finally:
        inside(lab, host, "nft", "delete table ip wall")


def device(lab: TestLab, host: str, kind: str, network: str) -> str:
    """The host's link of that kind (bridge, vxlan) for the network."""
    id_ = lab.get(f"/networks/{network}")["Id"]
    links = json.loads(inside(lab, host, "ip", "-d", "-j", "link", "show"))
    ends = kind if kind == "tunnel" else f"{kind}:{id_}"
    return next(str(link["ifname"]) for link in links if link.get("ifalias", "").endswith(ends))


def test_a_healthy_cluster_gets_a_word_for_each_thing_that_was_looked_at(lab: TestLab) -> None:
    every = {"kernel", "links", "forwarding", "rules", "names", "ports", "path"}

    def looked_at() -> dict[str, set[str]]:
        shown = report(lab)
        assert shown["Healthy"] and {host["Hostname"] for host in shown["Hosts"]} == {"m1", "w1", "w2"}
        return {host: {f["Check"] for f in shown["Findings"] if f["Host"] == host} for host in ("m1", "w1", "w2")}

    # names are asked from inside tasks: a host that was off a moment ago may have none yet
    lab.wait_until(lambda: all(found == every for found in looked_at().values()), 30, what="each host, each thing")
    said = lab.fleet("network", "doctor", "front", "--node", "w1").stdout
    assert said == "w1: all is right\n"


def test_a_firewall_that_takes_the_vxlan_port_is_named_with_its_rule(lab: TestLab) -> None:
    with wall(lab, "w1", "udp dport 4789 drop"):
        found = wrong(lab, "front")
        assert {host for host, _, _ in found} == {"m1", "w2"}, "the ways from w1 are open"
        for _, says, remedy in found:
            assert f"VXLAN packets (UDP port 4789) do not arrive at w1 ({lab.address('w1')})" in says
            assert "on w1, chain in of table ip wall: udp dport 4789 drop" in remedy
        assert [host for host, _, _ in wrong(lab, "front", "--node", "w2")] == ["w2"]
        assert lab.fleet("network", "doctor", "--node", "m1", check=False).returncode == 1
    assert not wrong(lab)


def test_a_link_with_a_smaller_mtu_is_found_and_measured(lab: TestLab) -> None:
    inside(lab, "w1", "ip", "link", "set", "eth0", "mtu", "1400")
    try:
        found = wrong(lab, "front", "--node", "m1")
        ways = [(says, remedy) for _, says, remedy in found if "bytes to w1 are lost on the way" in says]
        assert len(ways) == 1
        assert "packets of 1500 bytes" in ways[0][0] and "the largest that arrived had 1400" in ways[0][0]
        assert "com.docker.network.driver.mtu=1350" in ways[0][1]
        assert any("do not fit this host's link" in says for _, says, _ in wrong(lab, "front", "--node", "w1"))
    finally:
        inside(lab, "w1", "ip", "link", "set", "eth0", "mtu", "1500")
    lab.restart_daemon("w1")  # what followed the smaller link in the meantime is made anew from the larger one
    lab.wait_until(lambda: not wrong(lab), 90, what="the MTU is what it was")


def test_what_was_taken_from_the_kernel_is_missed_and_the_ways_of_others_are_not_blamed(lab: TestLab) -> None:
    def without_bridge() -> bool:  # the upkeep may mend it before the doctor comes
        bridge = device(lab, "w2", "bridge", "front")
        inside(lab, "w2", "ip", "link", "delete", bridge)
        found = wrong(lab, "front")
        return [(host, says) for host, says, _ in found] == [
            ("w2", f"bridge {bridge} is missing: containers of this host reach nothing on this network")
        ]

    lab.wait_until(without_bridge, 20, what="the doctor misses the bridge")
    lab.restart_daemon("w2")
    lab.wait_until(lambda: not wrong(lab), 30, what="the bridge is back")

    def without_entries() -> bool:
        inside(lab, "w2", "bridge", "fdb", "flush", "dev", device(lab, "w2", "vxlan", "front"))
        return any("2 forwarding entries are missing" in says for _, says, _ in wrong(lab, "front", "--node", "w2"))

    lab.wait_until(without_entries, 20, what="the doctor misses forwarding entries")
    table = next(line.split()[2] for line in inside(lab, "w2", "nft", "list tables").splitlines() if "fleet_" in line)

    def without_rule() -> bool:
        inside(lab, "w2", "nft", f"flush chain ip {table} tunnels")
        return any("rules are not as ordered" in says for _, says, _ in wrong(lab, "front", "--node", "w2"))

    lab.wait_until(without_rule, 20, what="the doctor misses a rule")
    lab.restart_daemon("w2")
    lab.wait_until(lambda: not wrong(lab), 30, what="all is there again")


def test_a_resolver_that_is_silent_inside_a_task_is_heard_of(lab: TestLab) -> None:
    task = next(task for task in lab.tasks("web") if task["NodeID"] == lab.get("/info")["Swarm"]["NodeID"])
    container = task["Status"]["ContainerStatus"]["ContainerID"]
    pid = str(lab.get(f"/containers/{container}/json")["State"]["Pid"])
    into = ("nsenter", "-t", pid, "-n", "nft")
    inside(lab, "m1", *into, "add table ip wall; add chain ip wall out { type filter hook output priority -200; }; "
           "add rule ip wall out udp dport 53 drop")  # fmt: skip
    try:
        found = wrong(lab, "front", "--node", "self")
        assert [says for _, says, _ in found] == [
            f"name web asked inside container {container[:12]} gets no answer: the resolver at 127.0.0.11 is silent there"
        ]
    finally:
        inside(lab, "m1", *into, "delete table ip wall")


def test_published_ports_that_lead_nowhere_are_told_apart(lab: TestLab) -> None:
    try:
        lab.fleet("service", "create", "--quiet", "--name", "deaf", "-p", "8081:81", "fleet/hello:1", "sleep", "1000")
        says = "does not listen on port 81, so published port 8081/tcp of service deaf fails"
        lab.wait_until(lambda: any(says in each for _, each, _ in wrong(lab)), 20, what="the deaf task is named")
        lab.fleet("service", "scale", "deaf=0")
        says = "published port 8081/tcp of service deaf is closed: no task of the service is ready"
        lab.wait_until(lambda: any(says == each for _, each, _ in wrong(lab)), 20, what="nobody is there")
    finally:
        lab.fleet("service", "rm", "deaf")
    lab.wait_until(lambda: not wrong(lab), 20, what="the port is gone")


SNIFFER = """
import socket, sys, time
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
sock.bind(("eth0", 0))
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
sock.settimeout(0.1)
print("ready", flush=True)
marker, seen, sealed, began = sys.argv[1].encode(), 0, 0, time.monotonic()
least_s, most_s, enough = map(float, sys.argv[2:])
while time.monotonic() < began + (least_s if sealed > enough else most_s):
    try:
        frame = sock.recv(65535)
    except TimeoutError:
        continue
    seen += marker in frame
    sealed += frame[23:24] == b"\\x11" and frame[36:38] == (4790).to_bytes(2, "big")
print(seen, sealed)
"""


def on_the_wire(
    lab: TestLab, host: str, task: dict[str, Any], target: str, *, is_sealed: bool = True
) -> tuple[int, int]:
    """While ``task`` on ``host`` reads the page of ``target``: frames with its text in them, and packets of the tunnel. For some
    seconds, and where it is sealed until there are enough packets: a busy machine reads few pages in that time."""
    with ThreadPoolExecutor(1) as pool:
        limits = ("6", "40", "10") if is_sealed else ("6", "6", "0")
        listening = pool.submit(inside, lab, host, sys.executable, "-c", SNIFFER, "marker-of-the-page", *limits)
        pages = 0
        while not listening.done():
            container = task["Status"]["ContainerStatus"]["ContainerID"]
            get = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {target} 80"
            got = lab.fleet("exec", container, "sh", "-c", get, host=host, check=False)
            pages += "marker-of-the-page" in got.stdout
        assert pages, "the page was read meanwhile"
        seen, sealed = map(int, listening.result().split()[1:])
    return seen, sealed


def test_an_encrypted_network_is_encrypted_examined_and_mended(lab: TestLab) -> None:
    lab.fleet("network", "create", "-d", "overlay", "--opt", "encrypted", "--ipv6", "sealed")
    lab.fleet("network", "create", "-d", "overlay", "-o", "encrypted=false", "open")
    assert lab.get("/networks/sealed")["Options"]["encrypted"] == ""
    done = lab.fleet("network", "create", "-d", "overlay", "-o", "encrypted=perhaps", "odd", check=False)
    assert done.returncode != 0 and "'perhaps' is neither true nor false" in done.stderr
    server = SERVER.replace("echo hi", "echo marker-of-the-page")
    try:
        lab.fleet(
            "service", "create", "--quiet", "--mode", "global", "--name", "safe", "--network", "sealed", "--network", "open",
            "fleet/hello:1", "sh", "-c", server,
        )  # fmt: skip
        lab.wait_until(lambda: not wrong(lab), 60, what="the doctor finds nothing wrong")
        said = [f["Says"] for f in report(lab, "sealed")["Findings"] if f["Check"] == "tunnel"]
        assert said == ["the encrypted tunnel to 2 hosts is up"] * 3
        nodes = {node["ID"]: node["Description"]["Hostname"] for node in lab.get("/nodes")}
        tasks = {nodes[task["NodeID"]]: task for task in lab.tasks("safe") if task["Status"]["State"] == "running"}
        cards = {
            (a["Network"]["Spec"]["Name"], ":" in text): text.partition("/")[0]
            for a in tasks["w2"]["NetworksAttachments"]
            for text in a["Addresses"]
        }
        seen, sealed = on_the_wire(lab, "w1", tasks["w1"], cards["sealed", False])
        assert seen == 0 and sealed > 10
        seen, sealed = on_the_wire(lab, "w1", tasks["w1"], cards["sealed", True])
        assert seen == 0 and sealed > 10
        seen, _ = on_the_wire(lab, "w1", tasks["w1"], cards["open", False], is_sealed=False)
        assert seen > 0, "the same on a network that is not encrypted"

        with wall(lab, "w1", "udp dport 4790 drop"):
            found = [says for _, says, _ in wrong(lab, "sealed")]
            assert any("packets of encrypted networks (UDP port 4790) do not arrive at w1" in says for says in found)
        lab.wait_until(lambda: not wrong(lab), 60, what="packets of the tunnel pass again")

        device_ = device(lab, "w1", "tunnel", "sealed")
        inside(lab, "w1", "ip", "link", "delete", device_)
        lab.wait_until(lambda: not wrong(lab), 30, what="the tunnel's device is back")
    finally:
        lab.fleet("service", "rm", "safe", check=False)
        for name in ("sealed", "open"):
            lab.wait_until(
                lambda name=name: lab.fleet("network", "rm", name, check=False).returncode == 0,
                30,
                what="the network is free to be removed",
            )


def test_a_host_by_itself_examines_itself_and_bad_names_are_refused(lab: TestLab) -> None:
    shown = report(lab, host="w1")
    assert {finding["Host"] for finding in shown["Findings"]} == {"w1"}
    assert any("only a manager can ask the others" in finding["Says"] for finding in shown["Findings"])
    for args, host, words in (
        (("nowhere",), "m1", "nowhere not found"),
        (("nowhere",), "w1", "is not on this host"),
        (("--node", "w9"), "m1", "w9 not found"),
        (("host",), "m1", "nothing that could be examined"),
        (("--format", "yaml"), "m1", "only 'json' is possible"),
    ):
        done = lab.fleet("network", "doctor", *args, host=host, check=False)
        assert done.returncode != 0 and words in done.stderr, done.stderr


def test_a_host_that_is_off_is_said_to_be(lab: TestLab) -> None:
    lab.kill("w2")
    try:
        said = ("w2", "w2 is down, so it was not looked at")
        lab.wait_until(lambda: said in [each[:2] for each in wrong(lab)], 30, what="w2 is missed")
    finally:
        lab.start("w2")
    lab.wait_until(lambda: not wrong(lab), 60, what="w2 is back")
