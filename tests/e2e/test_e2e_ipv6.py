"""Networks with IPv6 in a real cluster: created with the words people know, used by containers of three hosts, shown as Docker's.

The hosts' own network has IPv6 too, so that published ports can be tried at their addresses.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.lab import TestLab

pytestmark = pytest.mark.e2e

IMAGE = "fleet/hello:1"
SERVER = (
    "mkdir -p /www; hostname > /www/index.html; httpd -f -h /www -p 80 & "
    "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"
)
HOSTS = {"m1": "2001:db8:1::11", "w1": "2001:db8:1::12", "w2": "2001:db8:1::13"}


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., TestLab]) -> TestLab:
    lab = make_lab(swarm=False)
    for host, address in HOSTS.items():
        links = json.loads(lab.exec(host, ["ip", "-j", "addr"]).stdout)
        card = next(i["ifname"] for i in links if any(a["local"] == lab.address(host) for a in i["addr_info"]))
        lab.exec(host, ["ip", "-6", "addr", "add", f"{address}/64", "dev", card, "nodad"])
    lab.up(managers=1, workers=2)
    for host in HOSTS:
        lab.load_hello(host)
    return lab


@pytest.fixture
def cleared(lab: TestLab) -> Iterator[None]:
    yield
    for service in lab.get("/services"):
        lab.fleet("service", "rm", service["ID"])
    for host in HOSTS:
        for container in lab.get("/containers/json", host=host, all=True):
            if container["Names"][0].startswith("/six-") and "com.docker.swarm.task.id" not in container["Labels"]:
                lab.fleet("rm", "-f", container["Id"], host=host)
    for network in lab.get("/networks"):
        if network["Name"].startswith("six-"):
            gone = ("network", "rm", network["Id"])
            lab.wait_until(
                lambda gone=gone: lab.fleet(*gone, check=False).returncode == 0,
                30,
                what="the network is free to be removed",
            )


def place_of(lab: TestLab, task: dict[str, Any]) -> tuple[str, str]:
    """(host, container id) of a task."""
    names = {node["ID"]: node["Description"]["Hostname"] for node in lab.get("/nodes")}
    return names[task["NodeID"]], task["Status"]["ContainerStatus"]["ContainerID"]


def inside(lab: TestLab, task: dict[str, Any], *argv: str, check: bool = True) -> str:
    host, container = place_of(lab, task)
    done = lab.fleet("exec", container, *argv, host=host, check=False)
    assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return str(done.stdout) + str(done.stderr)


def addresses(task: dict[str, Any], network: str) -> tuple[str, str]:
    """(IPv4, IPv6) of a task on a network."""
    found = next(a for a in task["NetworksAttachments"] if a["Network"]["Spec"]["Name"] == network)
    four, six = found["Addresses"]
    return four.partition("/")[0], six.partition("/")[0]


def global_service(lab: TestLab, name: str, network: str, *flags: str) -> list[dict[str, Any]]:
    lab.fleet(
        "service", "create", "--quiet", "--mode", "global", "--name", name, "--network", network, *flags,
        IMAGE, "sh", "-c", SERVER,
    )  # fmt: skip
    lab.wait_until(lambda: len(lab.tasks(name)) == 3, 60, what=f"{name} runs on every host")
    return lab.tasks(name)


def test_an_overlay_of_both_families_as_people_create_it(lab: TestLab, cleared: None) -> None:
    lab.fleet(
        "network", "create", "-d", "overlay", "--attachable", "--ipv6", "--subnet", "10.9.0.0/24", "--subnet", "fd00:9::/64",
        "--gateway", "fd00:9::1", "--gateway", "10.9.0.1", "--ip-range", "fd00:9::100/120", "--aux-address", "r=fd00:9::101",
        "six-net",
    )  # fmt: skip
    web = global_service(lab, "six-web", "six-net")
    shown = json.loads(lab.fleet("network", "inspect", "six-net").stdout)[0]
    assert shown["EnableIPv6"] is True and shown["EnableIPv4"] is True
    assert shown["IPAM"]["Config"] == [
        {"Subnet": "10.9.0.0/24", "Gateway": "10.9.0.1"},
        {
            "Subnet": "fd00:9::/64",
            "IPRange": "fd00:9::100/120",
            "Gateway": "fd00:9::1",
            "AuxiliaryAddresses": {"r": "fd00:9::101"},
        },
    ]
    given = [addresses(task, "six-net")[1] for task in web]
    part = ipaddress.IPv6Network("fd00:9::100/120")
    assert len(set(given)) == 3 and all(ipaddress.IPv6Address(a) in part for a in given) and "fd00:9::101" not in given
    service = lab.get("/services/six-web")
    net_id = shown["Id"]
    vips = [v["Addr"] for v in service["Endpoint"]["VirtualIPs"] if v["NetworkID"] == net_id]
    assert [":" in vip for vip in vips] == [False, True]
    vip6 = vips[1].partition("/")[0]
    assert vip6 not in given

    # kernel: from each host to each other's container, over both families, by address
    for task in web:
        for other in web:
            four, six = addresses(other, "six-net")
            inside(lab, task, "ping", "-c1", "-W3", four)
            inside(lab, task, "ping6", "-c1", "-W3", six)
    # names, virtual address, reverse
    first = web[0]
    assert vip6 in inside(lab, first, "nslookup", "-type=aaaa", "six-web", "127.0.0.11")
    everybody = inside(lab, first, "nslookup", "-type=aaaa", "tasks.six-web", "127.0.0.11")
    assert all(address in everybody for address in given)
    pointer = ipaddress.IPv6Address(given[1]).reverse_pointer
    assert ".six-net" in inside(lab, first, "nslookup", "-type=ptr", pointer, "127.0.0.11")
    get = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {vip6} 80 | tail -n 1"  # busybox wget crashes at such an address
    answers = {inside(lab, first, "sh", "-c", get).strip() for _ in range(12)}
    assert len(answers) == 3  # all three tasks, on three hosts

    # the container, as Docker shows it
    host, container = place_of(lab, first)
    card = lab.get(f"/containers/{container}/json", host=host)["NetworkSettings"]["Networks"]["six-net"]
    assert (card["GlobalIPv6Address"], card["GlobalIPv6PrefixLen"], card["IPv6Gateway"]) == (given[0], 64, "fd00:9::1")
    on_host = lab.get("/networks/six-net", host="m1")["Containers"]
    assert all(entry["IPv6Address"].endswith("/64") for entry in on_host.values()) and on_host
    assert f"{given[0]}\t" in inside(lab, first, "cat", "/etc/hosts")
    assert inside(lab, first, "cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra").strip() == "0"

    # a container that no service made, with an address of its choice
    lab.docker("run", "-d", "--name", "six-guest", "--network", "six-net", "--ip6", "fd00:9::77", IMAGE, "sleep", "1000",
               host="w2")  # fmt: skip
    inside(lab, first, "ping6", "-c1", "-W3", "fd00:9::77")
    assert "fd00:9::77" in inside(lab, first, "nslookup", "-type=aaaa", "six-guest", "127.0.0.11")
    taken = lab.docker("run", "--rm", "--network", "six-net", "--ip6", "fd00:9::77", IMAGE, "true", check=False)
    assert taken.returncode != 0 and "fd00:9::77 is in use" in taken.stderr


def test_a_subnet_is_chosen_when_none_is_named_and_docker_says_the_same(lab: TestLab, cleared: None) -> None:
    lab.docker("network", "create", "-d", "overlay", "--ipv6", "six-a")
    lab.fleet("network", "create", "-d", "overlay", "--ipv6", "six-b")
    lab.fleet("network", "create", "--ipv6", "six-c")  # of this host

    def subnets() -> list[ipaddress.IPv6Network]:
        found = [json.loads(lab.docker("network", "inspect", name).stdout)[0] for name in ("six-a", "six-b", "six-c")]
        assert all(each["EnableIPv6"] for each in found)
        texts = [c["Subnet"] for each in found for c in each["IPAM"]["Config"] or () if ":" in c["Subnet"]]
        return [ipaddress.IPv6Network(text) for text in texts]

    lab.wait_until(lambda: len(subnets()) == 3, 20, what="each network has a subnet of IPv6")
    found = subnets()
    assert len(set(found)) == 3
    assert all(n.prefixlen == 64 and n.subnet_of(ipaddress.IPv6Network("fd00::/8")) for n in found)
    one, two, three = (n.supernet(new_prefix=48) for n in found)
    assert one == two != three  # the cluster's prefix, and this host's own


def test_a_bridge_network_of_one_host(lab: TestLab, cleared: None) -> None:
    lab.docker("network", "create", "--ipv6", "--subnet", "10.79.0.0/24", "--subnet", "fd00:79::/64", "six-lan")
    lab.docker("run", "-d", "--name", "six-db", "--network", "six-lan", "--ip6", "fd00:79::5", IMAGE, "sleep", "1000")
    lab.docker("run", "-d", "--name", "six-app", "--network", "six-lan", "-p", "8099:80", IMAGE, "sh", "-c", SERVER)
    card = lab.get("/containers/six-db/json")["NetworkSettings"]["Networks"]["six-lan"]
    assert (card["GlobalIPv6Address"], card["IPv6Gateway"]) == ("fd00:79::5", "fd00:79::1")
    assert card["IPAMConfig"] == {"IPv6Address": "fd00:79::5"}
    lab.docker("exec", "six-app", "ping6", "-c1", "-W3", "fd00:79::5")
    assert "fd00:79::5" in lab.docker("exec", "six-app", "nslookup", "-type=aaaa", "six-db", "127.0.0.11").stdout
    # the way out, behind the host's address; and the way in, at every address of the host
    lab.docker("exec", "six-app", "ping6", "-c1", "-W3", HOSTS["w1"])
    for address in (lab.address("m1"), f"[{HOSTS['m1']}]"):
        assert fetch(lab, "w1", f"http://{address}:8099/") != ""
    shown = lab.docker("port", "six-app").stdout.split()
    assert "0.0.0.0:8099" in shown and "[::]:8099" in shown
    twice = lab.docker("network", "create", "--ipv6", "--subnet", "fd00:79::/80", "six-x", check=False)
    assert "overlaps with" in twice.stderr
    odd = lab.docker("network", "create", "--subnet", "fd00:80::/64", "six-x", check=False)
    assert "add --ipv6" in odd.stderr


def test_a_bridge_network_of_ipv6_alone(lab: TestLab, cleared: None) -> None:
    lab.fleet("network", "create", "--ipv4=false", "--ipv6", "--subnet", "fd00:66::/64", "six-only")
    shown = json.loads(lab.docker("network", "inspect", "six-only").stdout)[0]
    assert (shown["EnableIPv6"], shown["IPAM"]["Config"]) == (
        True,
        [{"Subnet": "fd00:66::/64", "Gateway": "fd00:66::1"}],
    )
    assert lab.get("/networks/six-only")["EnableIPv4"] is False
    for name in ("six-one", "six-two"):
        lab.fleet("run", "-d", "--name", name, "--network", "six-only", IMAGE, "sleep", "1000")
    card = lab.get("/containers/six-one/json")["NetworkSettings"]["Networks"]["six-only"]
    assert (card["IPAddress"], card["IPPrefixLen"], card["GlobalIPv6Address"]) == ("", 0, "fd00:66::2")
    lab.docker("exec", "six-two", "ping6", "-c1", "-W3", "fd00:66::2")
    lab.docker("exec", "six-two", "ping6", "-c1", "-W3", HOSTS["w2"])
    swarm = lab.fleet("network", "create", "-d", "overlay", "--ipv4=false", "--ipv6", "six-x", check=False)
    assert swarm.returncode != 0 and "IPv4 cannot be disabled in a Swarm scoped network" in swarm.stderr


def fetch(lab: TestLab, host: str, url: str) -> str:
    """Ask from a host, as a program there would."""
    return str(lab.exec(host, ["curl", "-sg", "-m", "5", url], check=False).stdout).strip()


def test_published_ports_answer_at_ipv6_addresses_of_every_host(lab: TestLab, cleared: None) -> None:
    ingress = lab.get("/networks/ingress")
    assert ingress["EnableIPv6"] is True  # because the founding manager had an IPv6 address
    lab.fleet(
        "service", "create", "--quiet", "--name", "six-web", "-p", "8080:80",
        "-p", "published=8081,target=80,mode=host", IMAGE, "sh", "-c", SERVER,
    )  # fmt: skip
    lab.wait_until(lambda: len(lab.tasks("six-web")) == 1, 60, what="the service runs")
    (task,) = lab.tasks("six-web")
    name = inside(lab, task, "hostname").strip()
    asker = next(host for host in HOSTS if host != place_of(lab, task)[0])
    for host, address in HOSTS.items():
        for where in (f"[{address}]", lab.address(host)):
            url = f"http://{where}:8080/"
            lab.wait_until(lambda url=url: fetch(lab, asker, url) == name, 20, what=f"{url} answers")  # type: ignore[misc]
    assert fetch(lab, asker, f"http://[{HOSTS[place_of(lab, task)[0]]}]:8081/") == name


def ingress_addresses(lab: TestLab) -> set[str]:
    """The hosts' own on the ingress network."""
    cards = [lab.exec(host, ["ip", "-4", "-o", "addr"]).stdout.split() for host in HOSTS]
    subnet = ipaddress.IPv4Network(lab.get("/networks/ingress")["IPAM"]["Config"][0]["Subnet"])
    words = {word.partition("/")[0] for card in cards for word in card if word.endswith(f"/{subnet.prefixlen}")}
    return {word for word in words if ipaddress.IPv4Address(word) in subnet}


def test_a_service_sees_its_clients_addresses_through_every_host(lab: TestLab, cleared: None) -> None:
    tell = (
        "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho; echo $REMOTE_ADDR' > /www/cgi-bin/who; "
        f"chmod +x /www/cgi-bin/who; {SERVER}"
    )
    lab.fleet("network", "create", "-d", "overlay", "six-net")
    lab.fleet(
        "service", "create", "--quiet", "--name", "six-web", "--replicas", "2", "--network", "six-net",
        "-p", "published=8082,target=80,source=client", IMAGE, "sh", "-c", tell,
    )  # fmt: skip
    lab.wait_until(lambda: len(lab.tasks("six-web")) == 2, 60, what="the service runs")

    def seen(asker: str) -> dict[str, set[str]]:
        """Who it says had asked, by the address that was asked; twice, for there are two tasks."""
        ways = {lab.address(host): lab.address(host) for host in HOSTS} | {each: f"[{each}]" for each in HOSTS.values()}
        return {
            to: {fetch(lab, asker, f"http://{url}:8082/cgi-bin/who").strip("[]") for _ in range(2)}
            for to, url in ways.items()
        }

    def shows(asker: str) -> bool:
        own = {False: {f"::ffff:{lab.address(asker)}"}, True: {HOSTS[asker]}}
        return all(answers == own[":" in to] for to, answers in seen(asker).items())

    for asker in HOSTS:
        lab.wait_until(lambda asker=asker: shows(asker), 20, what=f"{asker} is seen as itself")  # type: ignore[misc]
    place = place_of(lab, lab.tasks("six-web")[0])[0]
    lab.signal_daemon(place)
    assert shows("m1") and shows("w2"), "nothing of it needs the daemon"
    lab.start_daemon(place)
    lab.wait_until(lambda: len(lab.tasks("six-web")) == 2 and shows("w1"), 60, what="its host is back")
    before = {task["ID"] for task in lab.tasks("six-web")}
    lab.fleet("service", "update", "-d", "--publish-add", "published=8082,target=80,source=node", "six-web")
    nodes = {f"::ffff:{peer}" for peer in ingress_addresses(lab)}
    lab.wait_until(lambda: seen("w1")[lab.address("m1")] <= nodes, 20, what="m1 is seen")
    lab.docker("service", "update", "-d", "--label-add", "fleet.publish.source.80/tcp=client", "six-web")
    lab.wait_until(lambda: shows("w1"), 20, what="w1 is seen as itself again")
    assert {task["ID"] for task in lab.tasks("six-web")} == before, "no task was replaced for it"


def test_a_name_without_ipv6_exists_and_has_no_such_address(lab: TestLab, cleared: None) -> None:
    lab.fleet("network", "create", "-d", "overlay", "six-four")
    web = global_service(lab, "six-old", "six-four")
    said = inside(lab, web[0], "nslookup", "-type=aaaa", "six-old", "127.0.0.11", check=False)
    assert "NXDOMAIN" not in said and "SERVFAIL" not in said
    assert "can't find" not in said or "No answer" in said
    missing = inside(lab, web[0], "nslookup", "-type=a", "six-old", "127.0.0.11")
    assert "Address" in missing


def test_it_works_without_daemons_and_the_doctor_names_what_was_broken(lab: TestLab, cleared: None) -> None:
    lab.fleet("network", "create", "-d", "overlay", "--ipv6", "--subnet", "fd00:9::/64", "six-net")
    web = global_service(lab, "six-web", "six-net")
    places = [place_of(lab, task) for task in web]
    given = [addresses(task, "six-net")[1] for task in web]

    def wrong() -> list[str]:
        done = lab.fleet("network", "doctor", "--format", "json", check=False)
        return [f["Says"] for f in json.loads(done.stdout)["Findings"] if f["Level"] == "wrong"]

    lab.wait_until(lambda: not wrong(), 30, what="the doctor finds nothing wrong")
    host = next(host for host, _ in places if host != "m1")
    index = [h for h, _ in places].index(host)
    other = given[(index + 1) % 3]
    pid = lab.get(f"/containers/{places[index][1]}/json", host=host)["State"]["Pid"]
    lab.signal_daemon(host)
    # nothing in the kernel needs the daemon
    ping = ["nsenter", "-t", str(pid), "-n", "busybox", "ping6", "-c1", "-W3", other]
    assert lab.exec(host, ping, check=False).returncode == 0
    lab.start_daemon(host)
    lab.wait_until(lambda: len(lab.tasks("six-web")) == 3, 60, what="everything runs again")
    again = {task["ID"] for task in lab.tasks("six-web")}
    assert again == {task["ID"] for task in web}  # nothing was replaced
    container = f"/containers/{places[index][1]}/json"
    lab.wait_until(lambda: lab.get(container, host=host)["State"]["Running"], 30, what="its daemon has adopted it")
    inside(lab, web[index], "ping6", "-c1", "-W3", other)
    lab.wait_until(lambda: not wrong(), 30, what="the doctor finds nothing wrong")
    tables = [line.split() for line in lab.exec(host, ["nft", "list", "tables"]).stdout.splitlines()]
    for _, family, table in tables:
        if family in ("ip6", "bridge"):
            lab.exec(host, ["nft", "flush", "table", family, table])
    assert sum("rules are not as ordered" in sentence for sentence in wrong()) >= 2
