"""Networks that people make on one host: containers meet on them by name, come and go, and nothing forgets them."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.lab import TestLab

pytestmark = pytest.mark.e2e

IMAGE = "fleet/hello:1"
HOST = "m1"


@pytest.fixture(scope="module", autouse=True)
def image(lab: TestLab) -> None:
    lab.load_hello()


@pytest.fixture
def cleared(lab: TestLab) -> Iterator[None]:
    yield
    for container in lab.get("/containers/json", all=True):
        if container["Names"][0].startswith("/net-"):
            lab.fleet("rm", "-f", container["Id"])
    for network in lab.get("/networks"):
        if network["Name"].startswith("net-"):
            lab.fleet("network", "rm", network["Name"])


def run(lab: TestLab, name: str, *flags: str) -> None:
    lab.docker("run", "-d", "--name", name, *flags, IMAGE, "sleep", "1000")


def cards(lab: TestLab, name: str) -> dict[str, str]:
    """Network name -> address, as the record has it."""
    shown = lab.get(f"/containers/{name}/json")["NetworkSettings"]["Networks"]
    return {network: endpoint["IPAddress"] for network, endpoint in shown.items()}


def addresses_inside(lab: TestLab, name: str) -> set[str]:
    out = lab.docker("exec", name, "ip", "-4", "-o", "addr", "show").stdout
    return {line.split()[3].partition("/")[0] for line in out.splitlines()} - {"127.0.0.1"}


def reaches(lab: TestLab, name: str, other: str) -> bool:
    return lab.docker("exec", name, "ping", "-c1", "-W2", other, check=False).returncode == 0


def hosts_file(lab: TestLab, name: str) -> str:
    return lab.docker("exec", name, "cat", "/etc/hosts").stdout


def test_containers_meet_by_name_on_a_network_and_not_from_another(lab: TestLab, cleared: None) -> None:
    lab.docker("network", "create", "net-a")
    lab.docker(
        "network", "create", "--subnet", "10.77.0.0/24", "--gateway", "10.77.0.254", "--ip-range", "10.77.0.128/25",
        "--aux-address", "printer=10.77.0.129", "--label", "purpose=test", "net-b",
    )  # fmt: skip
    run(lab, "net-web", "--network", "net-a")
    run(lab, "net-db", "--network", "net-b", "--network-alias", "database", "--ip", "10.77.0.10")
    run(lab, "net-app", "--network", "net-b")
    assert cards(lab, "net-db") == {"net-b": "10.77.0.10"}
    found = cards(lab, "net-app")["net-b"]
    assert 128 <= int(found.rpartition(".")[2]) < 255 and found != "10.77.0.129"
    assert (
        reaches(lab, "net-app", "database") and reaches(lab, "net-app", "net-db") and reaches(lab, "net-db", "net-app")
    )
    assert not reaches(lab, "net-web", "net-db")
    assert not reaches(lab, "net-web", "10.77.0.10"), "networks do not reach each other"
    shown = json.loads(lab.docker("network", "inspect", "net-b").stdout)[0]
    assert {each["Name"] for each in shown["Containers"].values()} == {"net-db", "net-app"}
    assert shown["IPAM"]["Config"] == [
        {
            "Subnet": "10.77.0.0/24", "IPRange": "10.77.0.128/25", "Gateway": "10.77.0.254",
            "AuxiliaryAddresses": {"printer": "10.77.0.129"},
        }
    ]  # fmt: skip
    assert lab.docker("network", "ls", "-q", "--filter", "label=purpose=test").stdout.strip() == shown["Id"][:12]


def test_a_running_container_joins_and_leaves(lab: TestLab, cleared: None) -> None:
    lab.fleet("network", "create", "net-a")
    lab.fleet("network", "create", "net-b")
    run(lab, "net-web")
    run(lab, "net-db", "--network", "net-a")
    lab.docker("network", "connect", "--alias", "www", "net-a", "net-web")
    lab.fleet("network", "connect", "net-b", "net-web")
    assert set(cards(lab, "net-web")) == {"bridge", "net-a", "net-b"}
    assert addresses_inside(lab, "net-web") == set(cards(lab, "net-web").values())
    assert all(address in hosts_file(lab, "net-web") for address in cards(lab, "net-web").values())
    assert reaches(lab, "net-web", "net-db") and reaches(lab, "net-db", "www")
    before = cards(lab, "net-web")["net-a"]
    lab.docker("network", "disconnect", "net-a", "net-web")
    assert set(cards(lab, "net-web")) == {"bridge", "net-b"}
    assert addresses_inside(lab, "net-web") == set(cards(lab, "net-web").values())
    assert before not in hosts_file(lab, "net-web")
    assert not reaches(lab, "net-db", "www")
    lab.docker("stop", "-t", "0", "net-web")
    lab.docker("network", "connect", "net-a", "net-web")
    lab.docker("network", "disconnect", "bridge", "net-web")
    lab.docker("start", "net-web")
    assert set(cards(lab, "net-web")) == {"net-a", "net-b"}
    assert addresses_inside(lab, "net-web") == set(cards(lab, "net-web").values())


def test_networks_and_their_containers_are_there_after_kill_9_and_power_loss(lab: TestLab, cleared: None) -> None:
    lab.docker("network", "create", "--subnet", "10.78.0.0/24", "net-a")
    run(lab, "net-web", "--network", "net-a", "--ip", "10.78.0.7", "--restart", "always")
    run(lab, "net-db", "--network", "net-a", "--restart", "always")
    id_ = lab.get("/networks/net-a")["Id"]
    lab.restart_daemon(HOST, signum=signal.SIGKILL)
    assert reaches(lab, "net-db", "net-web")
    run(lab, "net-third", "--network", "net-a")
    assert len({address for name in ("net-web", "net-db", "net-third") for address in cards(lab, name).values()}) == 3
    lab.kill(HOST)
    lab.start(HOST)
    assert lab.get("/networks/net-a")["Id"] == id_
    lab.wait_until(
        lambda: len(cards(lab, "net-db")) == 1 and reaches(lab, "net-db", "net-web"), 30, what="they meet again"
    )
    assert cards(lab, "net-web") == {"net-a": "10.78.0.7"}


def uplink(lab: TestLab, host: str) -> str:
    """The host's own card."""
    links = json.loads(lab.exec(host, ["ip", "-j", "addr"]).stdout)
    return str(next(i["ifname"] for i in links if any(a["local"] == lab.address(host) for a in i["addr_info"])))


def test_containers_are_on_the_hosts_own_network_with_macvlan(lab: TestLab, cleared: None) -> None:
    begin = lab.address(HOST).rpartition(".")[0]
    subnet, free = f"{begin}.0/24", f"{begin}.245"
    lan = ("-d", "macvlan", "--subnet", subnet, "--gateway", lab.machine_address(), "--ip-range", f"{begin}.240/29")
    made = lab.docker("network", "create", *lan, "-o", f"parent={uplink(lab, HOST)}", "net-lan", check=False)
    if "has no macvlan" in made.stderr:
        pytest.skip("not run: this kernel has no macvlan")
    assert made.returncode == 0, made.stderr
    shown = json.loads(lab.docker("network", "inspect", "net-lan").stdout)[0]
    assert (shown["Driver"], shown["Scope"], shown["Options"]) == ("macvlan", "local", {"parent": uplink(lab, HOST)})
    run(lab, "net-web", "--network", "net-lan", "--restart", "always")
    run(lab, "net-db", "--network", "net-lan", "--ip", free, "--restart", "always")
    found = cards(lab, "net-web")["net-lan"]
    assert reaches(lab, "net-web", "net-db") and reaches(lab, "net-web", lab.address("w1"))

    def from_elsewhere() -> bool:
        return lab.exec("w1", ["busybox", "ping", "-c1", "-W2", found], check=False).returncode == 0

    assert from_elsewhere(), "as any machine of that network"
    lab.signal_daemon(HOST, signal.SIGKILL)
    assert from_elsewhere()
    lab.start_daemon(HOST)
    assert cards(lab, "net-db") == {"net-lan": free} and reaches(lab, "net-db", "net-web")
    lab.docker("network", "disconnect", "net-lan", "net-web")
    assert not from_elsewhere()
    lab.docker("network", "connect", "--ip", found, "net-lan", "net-web")
    assert from_elsewhere()
    refused = lab.docker("run", "--rm", "-p", "8077:80", "--network", "net-lan", IMAGE, "true", check=False)
    assert refused.returncode != 0 and "ports cannot be published on network net-lan" in refused.stderr
    lab.kill(HOST)
    lab.start(HOST)
    lab.wait_until(lambda: from_elsewhere() and reaches(lab, "net-db", "net-web"), 30, what="they are back")


def test_networks_are_made_from_a_configuration_which_stays_while_they_do(lab: TestLab, cleared: None) -> None:
    lab.docker("network", "create", "--config-only", "--subnet", "10.84.0.0/24", "--gateway", "10.84.0.9", "net-conf")
    shown = json.loads(lab.docker("network", "inspect", "net-conf").stdout)[0]
    assert (shown["ConfigOnly"], shown["Driver"]) == (True, "null")
    lab.fleet("network", "create", "--config-from", "net-conf", "net-a")
    shown = json.loads(lab.docker("network", "inspect", "net-a").stdout)[0]
    assert (shown["ConfigFrom"], shown["Driver"]) == ({"Network": "net-conf"}, "bridge")
    assert shown["IPAM"]["Config"] == [{"Subnet": "10.84.0.0/24", "Gateway": "10.84.0.9"}]
    run(lab, "net-web", "--network", "net-a")
    assert cards(lab, "net-web") == {"net-a": "10.84.0.1"}
    lab.restart_daemon(HOST, signum=signal.SIGKILL)
    for words, args in (
        ("is in use by network net-a", ("network", "rm", "net-conf")),
        ("configuration network", ("run", "--rm", "--network", "net-conf", IMAGE, "true")),
        ("user specified configurations", ("network", "create", "--config-from", "net-conf", "--internal", "net-b")),
    ):
        said = lab.docker(*args, check=False)
        assert said.returncode != 0 and words in said.stderr, said.stderr
    lab.fleet("rm", "-f", "net-web")
    lab.docker("network", "rm", "net-a", "net-conf")


@pytest.mark.parametrize("delay_s", [0.03, 0.1, 0.2])
def test_a_change_that_is_killed_in_the_middle_is_done_or_not(lab: TestLab, cleared: None, delay_s: float) -> None:
    lab.fleet("network", "create", "net-a")
    run(lab, "net-web")
    stopped = threading.Event()
    asked: list[str] = []

    def change() -> None:
        with lab.client(HOST, timeout_s=5) as client:
            while not stopped.is_set():
                for path, body in (
                    ("/networks/net-a/connect", {"Container": "net-web"}),
                    ("/networks/net-a/disconnect", {"Container": "net-web"}),
                    ("/networks/create", {"Name": "net-made", "Driver": "bridge"}),
                    ("/networks/net-made", None),
                ):
                    try:
                        asked.append(path)
                        if body is None:
                            client.delete(path)
                        else:
                            client.post(path, body)
                    except Exception:  # noqa: BLE001 - the daemon is killed under it
                        if stopped.is_set():
                            return

    changing = threading.Thread(target=change)
    changing.start()
    lab.wait_until(lambda: len(asked) > 8, 20, what="changes are under way")
    time.sleep(delay_s)
    lab.restart_daemon(HOST, signum=signal.SIGKILL)
    stopped.set()
    changing.join(20)
    assert not changing.is_alive()
    assert addresses_inside(lab, "net-web") == set(cards(lab, "net-web").values())
    names = [network["Name"] for network in lab.get("/networks")]
    assert names.count("net-a") == 1 and names.count("net-made") <= 1
    if "net-a" not in cards(lab, "net-web"):
        lab.docker("network", "connect", "net-a", "net-web")
    assert reaches(lab, "net-web", cards(lab, "net-web")["net-a"])
    lab.docker("network", "disconnect", "net-a", "net-web")
    if "net-made" not in names:
        lab.docker("network", "create", "net-made")


def test_what_cannot_be_says_why(lab: TestLab, cleared: None) -> None:
    lab.docker("network", "create", "--subnet", "10.79.0.0/24", "net-a")
    run(lab, "net-web", "--network", "net-a", "--ip", "10.79.0.5")
    run(lab, "net-host", "--network", "host")
    run(lab, "net-none", "--network", "none")

    def says(words: str, *args: str, command: Callable[..., Any] = lab.docker) -> None:
        done = command(*args, check=False)
        assert done.returncode != 0 and words in done.stderr, done.stderr

    says("already exists", "network", "create", "net-a")
    says("predefined host network", "network", "create", "host")
    says("overlaps with", "network", "create", "--subnet", "10.79.0.0/16", "net-x")
    says("overlaps with", "network", "create", "--subnet", f"{lab.address(HOST)}/30".replace(".11/", ".8/"), "net-x")
    says(
        "no matching subnet",
        "network",
        "create",
        "--subnet",
        "10.80.0.0/24",
        "--ip-range",
        "10.81.0.0/24",
        "net-x",
        command=lab.docker,
    )
    says("is the gateway", "network", "create", "--subnet", "10.80.0.0/24", "--gateway", "10.80.0.1",
         "--aux-address", "a=10.80.0.1", "net-x")  # fmt: skip
    says("IPv4 or IPv6 must be enabled", "network", "create", "--ipv4=false", "net-x", command=lab.fleet)
    says("add --ipv6", "network", "create", "--subnet", "fd00:80::/64", "net-x")
    says("not known to the bridge driver", "network", "create", "-o", "speed=fast", "net-x")
    says("driver 'magic'", "network", "create", "-d", "magic", "net-x")
    says("macvlan needs --subnet", "network", "create", "-d", "macvlan", "-o", "parent=eth0", "net-x")
    lan = ("network", "create", "-d", "macvlan", "--subnet", "10.83.0.0/24")
    says("-o parent=eth1", *lan, "net-x")
    says("this host has no link eth9", *lan, "-o", "parent=eth9", "net-x")
    says("mode 'loud' of macvlan", *lan, "-o", "parent=eth9", "-o", "macvlan_mode=loud", "net-x")
    says("'ipvlan_mode' is not known to the macvlan driver", *lan, "-o", "ipvlan_mode=l2", "net-x")
    says("no configuration network net-y", "network", "create", "-d", "macvlan", "--config-from", "net-y", "net-x")
    says("has active endpoints: net-web", "network", "rm", "net-a")
    says("address 10.79.0.5 is in use", "run", "--rm", "--network", "net-a", "--ip", "10.79.0.5", IMAGE, "true")
    says("user defined networks only", "run", "--rm", "--ip", "172.29.0.9", IMAGE, "true")
    says("already exists in network net-a", "network", "connect", "net-a", "net-web")
    says("is not connected to network bridge", "network", "disconnect", "bridge", "net-web")
    says("sharing network namespace", "network", "connect", "net-a", "net-host")
    says("private (none) mode", "network", "connect", "net-a", "net-none")
    says("net-nowhere not found", "run", "--rm", "--network", "net-nowhere", IMAGE, "true")
    says("No such container", "network", "connect", "net-a", "net-nobody")
    lab.docker("network", "create", "net-unused")
    assert lab.docker("network", "prune", "-f").stdout.split()[-1] == "net-unused"
    lab.docker("stop", "-t", "0", "net-web")
    lab.docker("network", "rm", "net-a")
    says("is not on this host", "start", "net-web")
