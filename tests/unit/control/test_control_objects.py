"""Nodes, networks, secrets, configs, tasks: what may be done to them."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from support.objects import make_config, make_network, make_node, make_secret, make_service, make_task

from fleet import errors
from fleet.model.common import Driver
from fleet.model.ids import NetworkId
from fleet.model.network import ConfigFrom, Ipam, IpamConfig, NetworkSpec
from fleet.model.node import Availability, ManagerStatus, NodeRole, NodeSpec, NodeState
from fleet.model.secret import ConfigSpec, SecretSpec
from fleet.model.service import NetworkTarget, ServiceSpec, TaskSpec
from fleet.model.task import Attachment, TaskState
from fleet.store import Transaction

replace = msgspec.structs.replace
MANAGER = NodeSpec(role=NodeRole.MANAGER)


# -- nodes


def test_a_node_is_updated_at_its_version(run) -> None:
    async def body(world) -> None:
        await world.store.commit(Transaction().create(make_node("w1")))
        node = world.api.nodes.find("w1")
        wanted = NodeSpec(labels={"zone": "a"}, availability=Availability.PAUSE)
        updated = await world.api.nodes.update("w1", wanted, version=node.version.index)
        assert updated.spec == wanted
        assert updated.description == node.description
        with pytest.raises(errors.OutOfSequenceError):
            await world.api.nodes.update("w1", wanted, version=node.version.index)

    run(body)


def test_a_taint_that_is_none_is_refused(run) -> None:
    async def body(world) -> None:
        await world.store.commit(Transaction().create(make_node("w1")))
        version = world.api.nodes.find("w1").version.index
        with pytest.raises(errors.UserError, match=r"label fleet\.taint\.gpu: effect 'off' is none of no-schedule"):
            await world.api.nodes.update("w1", NodeSpec(labels={"fleet.taint.gpu": "x:off"}), version=version)

    run(body)


def test_the_last_manager_stays_one(run) -> None:
    async def body(world) -> None:
        await world.store.commit(Transaction().create(replace(make_node("m1"), spec=MANAGER)))
        version = world.api.nodes.find("m1").version.index
        with pytest.raises(errors.UserError, match="demote the last manager"):
            await world.api.nodes.update("m1", NodeSpec(), version=version)

    run(body)


def test_no_more_managers_than_the_engine_serves(run) -> None:
    async def body(world) -> None:
        await world.store.commit(Transaction().create(replace(make_node("m1"), spec=MANAGER)).create(make_node("w1")))
        version = world.api.nodes.find("w1").version.index
        with pytest.raises(errors.UnsupportedError, match="cannot promote node w1"):
            await world.api.nodes.update("w1", MANAGER, version=version)

    run(body)


def test_only_a_node_that_is_down_is_removed_unless_forced(run) -> None:
    async def body(world) -> None:
        await world.store.commit(
            Transaction().create(make_node("up")).create(make_node("down", state=NodeState.DOWN)).create(make_node("w"))
        )
        with pytest.raises(errors.UserError, match="node up is not down and can't be removed"):
            await world.api.nodes.remove("up")
        await world.api.nodes.remove("down")
        await world.api.nodes.remove("w", force=True)
        assert [node.id for node in world.api.nodes.list()] == ["node-up"]
        tombstone = world.store.nodes.get("node-w")
        assert tombstone is not None
        assert (tombstone.removed, tombstone.status.state) == (True, NodeState.DOWN)
        with pytest.raises(errors.NotFoundError):
            await world.api.nodes.remove("w")

    run(body)


def test_a_manager_is_never_removed(run) -> None:
    async def body(world) -> None:
        tx = Transaction().create(replace(make_node("m1", state=NodeState.DOWN), spec=MANAGER))
        tx.create(replace(make_node("m2", state=NodeState.DOWN), manager_status=ManagerStatus()))
        await world.store.commit(tx)
        for name in ("m1", "m2"):
            with pytest.raises(errors.UserError, match="demote it to worker"):
                await world.api.nodes.remove(name, force=True)

    run(body)


# -- networks


def test_a_network_is_made_an_overlay_of_the_swarm(run) -> None:
    async def body(world) -> None:
        network = await world.api.networks.create(NetworkSpec(name="net"))
        assert (network.spec.driver, network.spec.scope, network.vni) == ("overlay", "swarm", 0)
        with pytest.raises(errors.ConflictError, match="network net already exists"):
            await world.api.networks.create(NetworkSpec(name="net"))

    run(body)


def subnet(text: str, **fields) -> Ipam:  # type: ignore[no-untyped-def]
    return Ipam(config=(IpamConfig(subnet=text, **fields),))


@pytest.mark.parametrize(
    ("spec", "kind", "sentence"),
    [
        (NetworkSpec(name=""), errors.UserError, "invalid network name"),
        (NetworkSpec(name="a/b"), errors.UserError, "invalid network name"),
        (NetworkSpec(name="host"), errors.ForbiddenError, "predefined host network"),
        (NetworkSpec(name="n", driver="macvlan"), errors.UnsupportedError, "driver 'macvlan'"),
        (
            NetworkSpec(name="n", ipam=Ipam(config=(IpamConfig(subnet="fd00:9::/64"),))),
            errors.UserError,
            "IPv6 is not enabled: add --ipv6",
        ),
        (
            NetworkSpec(name="n", enable_ipv6=True, ipam=Ipam(config=(IpamConfig(subnet="fe80::/64"),))),
            errors.UserError,
            "link-local",
        ),
        (
            NetworkSpec(
                name="n",
                enable_ipv6=True,
                ipam=Ipam(config=(IpamConfig(subnet="fd00:9::/64"), IpamConfig(subnet="fd00:8::/64"))),
            ),
            errors.UnsupportedError,
            "one subnet of IPv4 and one of IPv6",
        ),
        (
            NetworkSpec(
                name="n", enable_ipv6=True, ipam=Ipam(config=(IpamConfig(subnet="fd00:9::/64", gateway="fd00:8::1"),))
            ),
            errors.UserError,
            "gateway fd00:8::1 is not a host address",
        ),
        (NetworkSpec(name="n", enable_ipv4=False), errors.UnsupportedError, "IPv4"),
        (NetworkSpec(name="n", config_only=True), errors.UnsupportedError, "config-only"),
        (NetworkSpec(name="n", config_from=ConfigFrom(network="x")), errors.UnsupportedError, "config-only"),
        (NetworkSpec(name="n", options={"encrypt": ""}), errors.UnsupportedError, "'encrypt' is not supported"),
        (NetworkSpec(name="n", options={"encrypted": "maybe"}), errors.UserError, "neither true nor false"),
        (
            NetworkSpec(name="n", ingress=True, options={"encrypted": ""}),
            errors.UnsupportedError,
            "ingress network cannot be encrypted",
        ),
        (NetworkSpec(name="n", options={"com.docker.network.driver.mtu": "12"}), errors.UserError, "between 1280"),
        (NetworkSpec(name="n", ipam=Ipam(driver="x")), errors.UnsupportedError, "IPAM driver"),
        (NetworkSpec(name="n", ipam=subnet("10.1.2.3/24")), errors.UserError, "host bits"),
        (NetworkSpec(name="n", ipam=subnet("8.8.8.0/24")), errors.UserError, "not a private one"),
        (NetworkSpec(name="n", ipam=subnet("10.9.0.0/24", gateway="10.8.0.1")), errors.UserError, "not a host address"),
        (
            NetworkSpec(name="n", ipam=subnet("10.9.0.0/24", gateway="10.9.0.255")),
            errors.UserError,
            "not a host address",
        ),
        (NetworkSpec(name="n", ipam=subnet("10.9.0.0/24", gateway="x")), errors.UserError, "gateway 'x'"),
        (NetworkSpec(name="n", ipam=subnet("10.9.0.0/24", ip_range="10.8.0.0/25")), errors.UserError, "not within"),
        (NetworkSpec(name="n", ipam=subnet("", gateway="10.9.0.1")), errors.UserError, "needs a subnet"),
        (
            NetworkSpec(name="n", ipam=subnet("10.7.0.128/25")),
            errors.ConflictError,
            "overlaps 10.7.0.0/24 of network old",
        ),
        (NetworkSpec(name="n", ingress=True), errors.ConflictError, "ingress network .* already present"),
        (NetworkSpec(name="n", ingress=True, attachable=True), errors.UserError, "neither attachable"),
    ],
)
def test_bad_networks_are_refused(run, spec: NetworkSpec, kind: type[errors.FleetError], sentence: str) -> None:
    async def body(world) -> None:
        old = replace(make_network("old"), ipam=subnet("10.7.0.0/24"))
        await world.store.commit(Transaction().create(old).create(make_network("ingress", ingress=True)))
        with pytest.raises(kind, match=sentence) as caught:
            await world.api.networks.create(spec)
        assert type(caught.value) is kind

    run(body)


@pytest.mark.parametrize(
    ("options", "encrypted"),
    [({}, False), ({"encrypted": ""}, True), ({"encrypted": "True"}, True), ({"encrypted": "false"}, False)],
)
def test_a_network_is_encrypted_when_it_is_asked_for(run, options: dict[str, str], encrypted: bool) -> None:
    async def body(world) -> None:
        made = await world.api.networks.create(NetworkSpec(name="n", options=options))
        assert made.spec.is_encrypted is encrypted
        assert made.spec.needed_plugin == ("overlay-encrypted" if encrypted else "overlay")
        assert made.spec.options == options

    run(body)


def test_good_ipam_passes(run) -> None:
    async def body(world) -> None:
        ipam = subnet(
            "10.9.0.0/24", gateway="10.9.0.254", ip_range="10.9.0.0/25", auxiliary_addresses={"r": "10.9.0.2"}
        )
        spec = NetworkSpec(name="n", ipam=ipam, options={"com.docker.network.driver.mtu": "1400"})
        assert (await world.api.networks.create(spec)).spec.ipam == ipam

    run(body)


def on_net(name: str) -> ServiceSpec:
    return ServiceSpec(name=name, task_template=TaskSpec(networks=(NetworkTarget(target="network-net"),)))


def attached(id_: str, **fields):  # type: ignore[no-untyped-def]
    return make_task(id_, network_attachments=(Attachment(network_id=NetworkId("network-net")),), **fields)


def test_a_network_in_use_is_kept(run) -> None:
    async def body(world) -> None:
        await world.store.commit(
            Transaction()
            .create(make_network("net"))
            .create(make_service("b", spec=on_net("b")))
            .create(make_service("a", spec=on_net("a")))
        )
        with pytest.raises(errors.UserError, match="network net is in use by services a, b"):
            await world.api.networks.remove("net")

    run(body)


def test_the_ingress_network_is_kept(run) -> None:
    async def body(world) -> None:
        await world.store.commit(Transaction().create(make_network("ingress", ingress=True)))
        with pytest.raises(errors.ForbiddenError):
            await world.api.networks.remove("ingress")

    run(body)


def test_removal_waits_for_tasks_that_are_being_stopped(run) -> None:
    async def body(world) -> None:
        service = make_service("web", spec=on_net("web"), pending_delete=True)
        task = attached("t", node_id="n1", state=TaskState.RUNNING, desired_state=TaskState.REMOVE)
        node = make_node("n1", id_="n1")
        await world.store.commit(Transaction().create(make_network("net")).create(service).create(task).create(node))
        removal = asyncio.create_task(world.api.networks.remove("net"))
        await asyncio.sleep(0.02)
        assert not removal.done()
        task = world.store.tasks.find("t")
        ended = replace(task, status=replace(task.status, state=TaskState.SHUTDOWN))
        await world.store.commit(Transaction().replace(ended))
        await removal
        assert world.api.networks.list() == []

    run(body)


def test_unwanted_tasks_on_a_lost_node_do_not_hold_a_network(run) -> None:
    async def body(world) -> None:
        lost = attached("lost", node_id="n1", state=TaskState.RUNNING, desired_state=TaskState.SHUTDOWN)
        gone = attached("gone", node_id="n2", state=TaskState.RUNNING, desired_state=TaskState.SHUTDOWN)
        node = make_node("n1", id_="n1", state=NodeState.DOWN)
        await world.store.commit(Transaction().create(make_network("net")).create(lost).create(gone).create(node))
        await world.api.networks.remove("net")

    run(body)


# -- secrets and configs


@pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "a/b", "a" * 65, "ä"])
def test_bad_names_of_data_are_refused(run, name: str) -> None:
    async def body(world) -> None:
        with pytest.raises(errors.UserError, match="invalid name, only 64"):
            await world.api.secrets.create(SecretSpec(name=name, data=b"x"))
        with pytest.raises(errors.UserError, match="invalid name, only 64"):
            await world.api.configs.create(ConfigSpec(name=name, data=b"x"))

    run(body)


def test_data_has_a_size(run) -> None:
    async def body(world) -> None:
        for data in (b"", b"x" * 512_000):
            with pytest.raises(errors.UserError, match="secret data must be larger than 0 and less than 512000 bytes"):
                await world.api.secrets.create(SecretSpec(name="s", data=data))
        for data in (b"", b"x" * 1_024_000):
            with pytest.raises(errors.UserError, match="config data must be larger than 0 and less than 1024000 bytes"):
                await world.api.configs.create(ConfigSpec(name="c", data=data))
        await world.api.secrets.create(SecretSpec(name="s", data=b"x" * 511_999))
        await world.api.configs.create(ConfigSpec(name="c", data=b"x" * 1_023_999))

    run(body)


def test_data_beside_a_secret_driver_and_unknown_template_drivers_are_refused(run) -> None:
    async def body(world) -> None:
        golang, jinja = Driver(name="golang"), Driver(name="jinja")
        with pytest.raises(errors.UserError, match="it must have none"):
            await world.api.secrets.create(SecretSpec(name="s", data=b"x", driver=golang))
        driven = await world.api.secrets.create(SecretSpec(name="driven", driver=Driver(name="vault:latest")))
        assert driven.spec.driver == Driver(name="vault:latest")
        with pytest.raises(errors.UserError, match="template driver 'jinja'"):
            await world.api.secrets.create(SecretSpec(name="s", data=b"x", templating=jinja))
        with pytest.raises(errors.UserError, match="template driver 'jinja'"):
            await world.api.configs.create(ConfigSpec(name="c", data=b"x", templating=jinja))
        config = await world.api.configs.create(ConfigSpec(name="c", data=b"{{.Task.Slot}}", templating=golang))
        assert config.spec.templating == golang
        assert (
            await world.api.secrets.create(SecretSpec(name="s", data=b"x", templating=golang))
        ).spec.templating == golang

    run(body)


def test_labels_of_data_change_and_nothing_else(run) -> None:
    async def body(world) -> None:
        await world.store.commit(Transaction().create(make_secret("s", data=b"x")).create(make_config("c", data=b"x")))
        secret = world.api.secrets.find("s")
        updated = await world.api.secrets.update("s", SecretSpec(labels={"a": "b"}), version=secret.version.index)
        assert (updated.spec.labels, updated.spec.data, updated.spec.name) == ({"a": "b"}, b"x", "s")
        with pytest.raises(errors.OutOfSequenceError):
            await world.api.secrets.update("s", SecretSpec(labels={}), version=secret.version.index)
        for spec in (SecretSpec(name="t"), SecretSpec(name="s", data=b"y")):
            with pytest.raises(errors.UserError, match="only updates to Labels are allowed"):
                await world.api.secrets.update("s", spec, version=updated.version.index)
        assert [item.spec.name for item in world.api.secrets.list({"label": ("a",), "names": ("s",)})] == ["s"]
        assert world.api.configs.list({"id": ("nope",)}) == []

    run(body)


# -- tasks


def test_task_filters(run) -> None:
    async def body(world) -> None:
        tx = Transaction().create(make_node("n1", id_="n1")).create(make_service("web")).create(make_service("db"))
        tx.create(make_task("t1", node_id="n1", service_labels={"stack": "s"}))
        tx.create(make_task("t2", desired_state=TaskState.SHUTDOWN))
        tx.create(make_task("t3", service_id="service-db", service_name="db", desired_state=TaskState.READY))
        await world.store.commit(tx)

        def ids(**filters: str) -> set[str]:
            wanted = {key.replace("_", "-"): tuple(text.split(",")) for key, text in filters.items()}
            return {task.id for task in world.api.tasks.list(wanted)}

        assert ids() == {"t1", "t2", "t3"}
        assert ids(service="web") == {"t1", "t2"}
        assert ids(service="web,db") == {"t1", "t2", "t3"}
        assert ids(node="n1") == {"t1"}
        assert ids(desired_state="running") == {"t1", "t3"}
        assert ids(desired_state="shutdown") == {"t2"}
        assert ids(name="db.") == {"t3"}
        assert ids(id="t1,t2", label="stack=s") == {"t1"}
        with pytest.raises(errors.NotFoundError, match="node nope not found"):
            ids(node="nope")

    run(body)
