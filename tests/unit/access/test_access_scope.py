"""A grant limited to labels: what is outside is not there, and nothing gets out or in."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fleet.model.service import Mount
from fleet.store import Transaction
from tests.support.api_gate import Gated, Tls, gated
from tests.support.objects import make_network, make_node, make_service, make_task

SHOP = {"com.docker.stack.namespace": "shop"}
BLOG = {"com.docker.stack.namespace": "blog"}
DATA = base64.b64encode(b"x").decode()


def run(body: Callable[[Gated, str], Awaitable[None]], **more: Any) -> None:
    """The body gets the token of shop's operator, in a cluster with two stacks of one of each kind."""

    async def main() -> None:
        async with gated() as world:
            await _fill(world)
            await body(world, await world.user("anna", "operator", **{"scope": (SHOP,), **more}))

    asyncio.run(main())


async def _fill(world: Gated) -> None:
    root = {"tls": Tls("root")}
    await world.store.commit(Transaction().create(make_node("n1")))
    for name, labels in (("shop", SHOP), ("blog", BLOG)):
        for kind in ("secrets", "configs"):
            body = {"Name": f"{name}-{kind}", "Labels": labels, "Data": DATA}
            assert (await world.call("POST", f"/{kind}/create", json=body, **root)).status_code == 201
        await world.store.commit(Transaction().create(make_network(f"{name}-net", labels=labels)))
        spec = service(f"{name}-web", labels)
        assert (await world.call("POST", "/services/create", json=spec, **root)).status_code == 201
        found = world.api.services.find(f"{name}-web")
        await world.store.commit(Transaction().create(make_task(f"task-{name}", service_id=found.id)))
        world.host.add(f"{name}-box", labels={"com.docker.swarm.service.id": found.id})
        world.host.volume_labels[f"{name}_data"] = labels


def service(name: str, labels: dict[str, str], **container: Any) -> dict[str, Any]:
    template = {"ContainerSpec": {"Image": "i", **container}}
    return {"Name": name, "Labels": labels, "TaskTemplate": template}


@pytest.mark.parametrize(
    "path", ["/services", "/secrets", "/configs", "/tasks", "/nodes", "/networks", "/volumes", "/containers/json"]
)
def test_lists_hold_what_is_within(path: str) -> None:
    async def body(world: Gated, token: str) -> None:
        text = (await world.call("GET", path, token=token)).text
        assert "blog" not in text
        assert ("shop" in text) is (path != "/nodes")
        unlimited = await world.user("vera", "viewer")
        assert "blog" in (await world.call("GET", path, token=unlimited)).text or path == "/nodes"

    run(body)


def test_events_are_those_of_objects_within() -> None:
    async def body(world: Gated, token: str) -> None:
        lines = (await world.call("GET", "/events", token=token)).text.splitlines()
        assert [json.loads(line)["Actor"]["ID"] for line in lines] == [world.api.services.find("shop-web").id]

    run(body)


def test_changes_that_are_told_are_of_objects_within() -> None:
    async def body(world: Gated, token: str) -> None:
        told = [
            json.loads(line) for line in (await world.call("GET", "/fleet/v1/watch", token=token)).text.splitlines()
        ]
        assert [(line["Type"], line.get("ID")) for line in told] == [
            ("reset", None),
            ("service", world.api.services.find("shop-web").id),
            ("task", "task-shop"),
            ("synced", None),
        ]
        unlimited = await world.user("vera", "viewer")
        text = (await world.call("GET", "/fleet/v1/watch", token=unlimited)).text
        assert "task-blog" in text and '"node"' in text
        assert (await world.call("GET", "/fleet/v1/usage", token=token)).status_code == 403
        assert (await world.call("GET", "/fleet/v1/usage", token=unlimited)).status_code == 200

    run(body)


def test_what_is_outside_answers_like_what_is_not_there() -> None:
    async def body(world: Gated, token: str) -> None:
        task = {
            name: world.store.tasks.by_service(world.api.services.find(f"{name}-web").id)[0].id
            for name in ("shop", "blog")
        }
        paths = [
            ("GET", "/services/{}-web"), ("DELETE", "/services/{}-web"), ("POST", "/services/{}-web/update?version=1"),
            ("GET", "/services/{}-web/logs"), ("GET", "/secrets/{}-secrets"), ("DELETE", "/secrets/{}-secrets"),
            ("POST", "/secrets/{}-secrets/update?version=1"), ("GET", "/configs/{}-configs"), ("DELETE", "/configs/{}-configs"),
            ("GET", "/networks/{}-net"), ("DELETE", "/networks/{}-net"), ("POST", "/networks/{}-net/connect"),
            ("GET", "/containers/{}-box/json"), ("POST", "/containers/{}-box/exec"), ("DELETE", "/containers/{}-box"),
            ("GET", "/containers/{}-box/logs"), ("POST", "/exec/exec-{}-box/start"), ("GET", "/exec/exec-{}-box/json"),
            ("GET", "/volumes/{}_data"), ("DELETE", "/volumes/{}_data"), ("GET", "/tasks?filters={{\"service\":[\"{}-web\"]}}"),
        ]  # fmt: skip
        for method, path in paths:
            answers = {
                name: await world.call(method, path.format(name), token=token, json={} if method == "POST" else None)
                for name in ("blog", "none")
            }
            assert answers["blog"].status_code == answers["none"].status_code == 404, (
                method,
                path,
                answers["blog"].text,
            )
            assert answers["blog"].text.replace("blog", "none") == answers["none"].text, (method, path)
        assert (await world.call("GET", f"/tasks/{task['blog']}", token=token)).status_code == 404
        assert (await world.call("GET", f"/tasks/{task['shop']}", token=token)).status_code == 200
        assert (await world.call("GET", "/services/shop-web", token=token)).status_code == 200
        blog = world.api.services.find("blog-web").id
        assert (await world.call("GET", f"/services/{blog[:-1]}", token=token)).status_code == 404, "nor by a prefix"
        assert [name for _, name in world.reached if "blog" in name and "create" not in name] == []

    run(body)


def test_names_in_paths_become_ids_before_the_route_looks() -> None:
    async def body(world: Gated, token: str) -> None:
        found = world.api.services.find("shop-web").id
        world.reached.clear()
        await world.call("GET", "/containers/shop-box/logs", token=token)
        await world.call("DELETE", "/services/shop-web", token=token)
        assert world.reached == [
            ("GET", "/containers/id-of-shop-box/logs"),
            ("DELETE", f"/services/{found}"),
        ]
        assert world.told[-1]["path"] == "/services/shop-web", "the log has what was asked for"
        assert world.told[-1]["object"].startswith("/services/")

    run(body)


def test_what_is_made_carries_the_labels() -> None:
    async def body(world: Gated, token: str) -> None:
        for path, wish in (
            ("/services/create", service("x", BLOG)), ("/services/create", service("x", {})),
            ("/secrets/create", {"Name": "x", "Data": DATA}), ("/configs/create", {"Name": "x", "Labels": BLOG, "Data": DATA}),
            ("/networks/create", {"Name": "x", "Driver": "overlay"}), ("/volumes/create", {"Name": "shop_x"}),
            ("/containers/create", {"Image": "i"}), ("/volumes/create", {"Name": "blog_x", "Labels": SHOP}),
        ):  # fmt: skip
            answer = await world.call("POST", path, token=token, json=wish)
            assert answer.status_code == 403, (path, wish, answer.text)
        for path, wish in (
            ("/services/create", service("x", SHOP)), ("/secrets/create", {"name": "x", "labels": SHOP, "Data": DATA}),
            ("/configs/create", {"Name": "x", "Labels": SHOP, "Data": DATA}),
            ("/volumes/create", {"Name": "shop_x", "Labels": SHOP}), ("/networks/create", {"Name": "x", "Labels": SHOP}),
            ("/containers/create", {"Image": "i", "Labels": SHOP}),
        ):  # fmt: skip
            answer = await world.call("POST", path, token=token, json=wish)
            assert answer.status_code in (200, 201), (path, wish, answer.text)

    run(body)


def test_what_is_changed_stays_within() -> None:
    async def body(world: Gated, token: str) -> None:
        found = world.api.services.find("shop-web")
        path = f"/services/{found.id}/update?version={found.version.index}"
        assert (await world.call("POST", path, token=token, json=service("shop-web", BLOG))).status_code == 403
        assert (
            await world.call("POST", path, token=token, json=service("shop-web", SHOP, Image="j"))
        ).status_code == 200
        secret = world.api.secrets.find("shop-secrets")
        path = f"/secrets/{secret.id}/update?version={secret.version.index}"
        body = {"Name": "shop-secrets", "Labels": {}}
        assert (await world.call("POST", path, token=token, json=body)).status_code == 403

    run(body)


def test_a_service_refers_to_nothing_outside() -> None:
    async def body(world: Gated, token: str) -> None:
        ids = {name: world.api.secrets.find(f"{name}-secrets").id for name in ("shop", "blog")}

        async def code(**container: Any) -> int:
            spec = service("x", SHOP, **container)
            return (await world.call("POST", "/services/create", token=token, json=spec)).status_code

        file = {"Name": "f", "UID": "0", "GID": "0", "Mode": 292}
        assert await code(Secrets=[{"SecretID": ids["blog"], "File": file}]) == 404
        assert await code(Secrets=[{"SecretName": "blog-secrets", "File": file}]) == 404
        assert await code(Configs=[{"ConfigName": "blog-configs", "File": file}]) == 404
        assert await code(Mounts=[{"Type": "volume", "Source": "blog_data", "Target": "/d"}]) == 403
        spec = service("y", SHOP)
        spec["TaskTemplate"]["Networks"] = [{"Target": "blog-net"}]
        assert (await world.call("POST", "/services/create", token=token, json=spec)).status_code == 404
        spec = service("y", SHOP) | {"networks": [{"target": "blog-net"}]}
        assert (await world.call("POST", "/services/create", token=token, json=spec)).status_code == 404
        mine = {"SecretID": ids["shop"], "SecretName": "shop-secrets", "File": file}
        assert await code(Secrets=[mine], Mounts=[{"Type": "volume", "Source": "shop_d", "Target": "/d"}]) == 201

    run(body)


def test_a_limited_grant_takes_no_room_from_others() -> None:
    async def body(world: Gated, token: str) -> None:
        for priority, code in (("5", 403), ("0", 201), ("-5", 201)):
            spec = service(f"x{priority.replace('-', 'm')}", {**SHOP, "fleet.placement.priority": priority})
            answer = await world.call("POST", "/services/create", token=token, json=spec)
            assert answer.status_code == code, answer.text

    run(body)


def test_what_an_administrator_attached_stays_attached() -> None:
    async def body(world: Gated, token: str) -> None:
        found = world.api.services.find("shop-web")
        spec = service("shop-web", SHOP)
        spec["TaskTemplate"]["Networks"] = [{"Target": "blog-net"}]
        path = f"/services/{found.id}/update?version="
        root = Tls("root")
        assert (await world.call("POST", path + str(found.version.index), tls=root, json=spec)).status_code == 200
        spec["Mode"] = {"Replicated": {"Replicas": 3}}
        version = world.api.services.find("shop-web").version.index
        spec["TaskTemplate"]["Networks"] = [{"Target": world.store.networks.find("blog-net").id}]
        assert (await world.call("POST", path + str(version), token=token, json=spec)).status_code == 200

    run(body)


def test_what_concerns_all_is_refused() -> None:
    async def body(world: Gated, token: str) -> None:
        for method, path in (
            ("GET", "/swarm"), ("GET", "/system/df"), ("GET", "/metrics"), ("GET", "/images/json"), ("POST", "/images/create"),
            ("POST", "/containers/prune"), ("POST", "/networks/prune"), ("POST", "/fleet/v1/rebalance"), ("POST", "/build"),
            ("GET", "/fleet/v1/services/shop-web/placement"),
        ):  # fmt: skip
            assert (await world.call(method, path, token=token)).status_code == 403, path
        for filters in ({"node": ["n1"]}, {"since": ["blog-box"]}):
            answer = await world.call("GET", "/tasks", token=token, params={"filters": json.dumps(filters)})
            assert answer.status_code == 403

    run(body)


@pytest.mark.parametrize(
    "host",
    [
        {"Privileged": True}, {"CapAdd": ["NET_ADMIN"]}, {"Binds": ["/:/h"]},
        {"Mounts": [{"Type": "bind", "Source": "/", "Target": "/h"}]},
        {"NetworkMode": "host"}, {"PidMode": "host"}, {"PidMode": "container:blog-box"}, {"VolumesFrom": ["blog-box"]},
        {"Devices": [{"PathOnHost": "/dev/sda"}]}, {"SecurityOpt": ["seccomp=unconfined"]}, {"CgroupParent": "/x"},
        {"privileged": True}, {"binds": ["/etc:/e:ro"]},
        {"LogConfig": {"Type": "syslog", "Config": {"syslog-address": " UNIX:///run/fleet/fleet.sock"}}},
    ],
)  # fmt: skip
def test_containers_that_reach_their_host_need_host_access(host: dict[str, Any]) -> None:
    async def body(world: Gated, _: str) -> None:
        wish = {"Image": "i", "HostConfig": host}
        plain, trusted = await world.user("otto", "operator"), await world.user("hugo", "operator", host_access=True)
        answer = await world.call("POST", "/containers/create", token=plain, json=wish)
        assert answer.status_code == 403 and "host access" in answer.json()["message"]
        assert (await world.call("POST", "/containers/create", token=trusted, json=wish)).status_code == 200

    run(body)


@pytest.mark.parametrize(
    "container",
    [
        {"Mounts": [{"Type": "bind", "Source": "/", "Target": "/h"}]}, {"CapabilityAdd": ["SYS_ADMIN"]},
        {"Mounts": [{"Source": "v", "Target": "/v", "VolumeOptions": {"DriverConfig": {"Options": {"device": "/"}}}}]},
        {"Privileges": {"Seccomp": {"Mode": "unconfined"}}},
    ],
)  # fmt: skip
def test_services_that_reach_their_hosts_need_host_access(container: dict[str, Any]) -> None:
    async def body(world: Gated, token: str) -> None:
        answer = await world.call("POST", "/services/create", token=token, json=service("x", SHOP, **container))
        assert answer.status_code == 403 and "host access" in answer.json()["message"]

    run(body)


def test_an_administrator_s_service_with_host_access_can_be_scaled_but_not_changed() -> None:
    async def body(world: Gated, token: str) -> None:
        mount = {"Mounts": [{"Type": "bind", "Source": "/srv", "Target": "/srv"}]}
        spec = service("agent", SHOP, **mount)
        assert (await world.call("POST", "/services/create", tls=Tls("root"), json=spec)).status_code == 201

        async def update(changed: dict[str, Any]) -> int:
            version = world.api.services.find("agent").version.index
            path = f"/services/agent/update?version={version}"
            return (await world.call("POST", path, token=token, json=changed)).status_code

        assert await update(spec | {"Mode": {"Replicated": {"Replicas": 5}}}) == 200
        assert await update(service("agent", SHOP, **mount, Image="mine")) == 403
        assert await update(service("agent", SHOP, **mount, Args=["sh"])) == 403
        assert await update(service("agent", SHOP)) == 200

    run(body)


def test_nobody_gets_into_a_container_with_host_access_without_it() -> None:
    async def body(world: Gated, _: str) -> None:
        bind = Mount(type="bind", source="/", target="/h")
        world.host.add("agent", mounts=(bind,))
        plain, trusted = await world.user("otto", "operator"), await world.user("hugo", "operator", host_access=True)
        for method, path in (
            ("POST", "/containers/agent/exec"), ("POST", "/containers/agent/attach"), ("PUT", "/containers/agent/archive"),
            ("POST", "/exec/exec-agent/start"),
        ):  # fmt: skip
            assert (await world.call(method, path, token=plain, json={})).status_code == 403, path
            assert (await world.call(method, path, token=trusted, json={})).status_code == 200, path
        world.host.add("plain")
        for privileged, code in ((False, 200), (True, 403)):
            body = {"Cmd": ["sh"], "Privileged": privileged}
            assert (await world.call("POST", "/containers/plain/exec", token=plain, json=body)).status_code == code
        labels = {"Image": "i", "Labels": {"com.docker.swarm.service.id": "x"}}
        assert (await world.call("POST", "/containers/create", token=plain, json=labels)).status_code == 403

    run(body)


def test_a_viewer_of_a_stack_only_looks() -> None:
    async def body(world: Gated, token: str) -> None:
        assert (await world.call("GET", "/services/shop-web", token=token)).status_code == 200
        assert (await world.call("DELETE", "/services/shop-web", token=token)).status_code == 403
        assert (await world.call("GET", "/services/blog-web", token=token)).status_code == 404

    async def main() -> None:
        async with gated() as world:
            await _fill(world)
            await body(world, await world.user("vera", "viewer", scope=(SHOP,)))

    asyncio.run(main())


def test_service_of_make_service_is_in_no_scope() -> None:
    async def body(world: Gated, token: str) -> None:
        await world.store.commit(Transaction().create(make_service("free")))
        assert (await world.call("GET", "/services/free", token=token)).status_code == 404

    run(body)
