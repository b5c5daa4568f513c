"""Registry logins of services: kept, used by later updates, brought back by rollbacks, shown to nobody, gone when unused."""

from __future__ import annotations

import base64
import json
from typing import Any

from fleet.model.secret import Login
from tests.support.objects import make_task

SPEC = {"Name": "x", "TaskTemplate": {"ContainerSpec": {"Image": "a:1"}}}


def login(password: str) -> dict[str, str]:
    header = base64.urlsafe_b64encode(json.dumps({"username": "ann", "password": password}).encode()).decode()
    return {"X-Registry-Auth": header}


def spec(image: str, **more: Any) -> dict[str, Any]:
    return {**SPEC, "TaskTemplate": {"ContainerSpec": {"Image": image}, **more}}


async def update(world: Any, body: dict[str, Any], *, headers: dict[str, str] | None = None, **query: str) -> None:
    seen = await world.call("GET", "/services/x", status=200)
    params = {"version": seen["Version"]["Index"], **query}
    await world.call("POST", "/services/x/update", status=200, json=body, headers=headers, params=params)


def present(world: Any) -> tuple[str, str]:
    """The headers that new tasks of the service, and those of its previous spec, are pulled with."""
    service = world.api.services.find("x")
    specs = (service.spec, service.previous_spec)
    found = [world.store.logins.get(s.task_template.registry_login) if s else None for s in specs]
    return tuple(item.header if item else "" for item in found)  # type: ignore[return-value]


def test_a_login_is_kept_shown_to_nobody_and_replaced_only_by_another(run: Any) -> None:
    one, two = login("hunter2"), login("hunter3")

    async def body(world: Any) -> None:
        answer = await world.call("POST", "/services/create", status=201, json=SPEC, headers=one)
        assert "Warnings" not in answer
        assert present(world) == (one["X-Registry-Auth"], "")
        await update(world, spec("a:2"))
        assert present(world) == (one["X-Registry-Auth"],) * 2, "an update without one keeps it"
        before = world.api.services.find("x")
        await update(world, spec("a:2"), headers=one)
        assert world.api.services.find("x") == before, "the same login again changes nothing"
        await update(world, spec("a:2"), headers=two)
        after = world.api.services.find("x")
        assert present(world) == (two["X-Registry-Auth"], one["X-Registry-Auth"])
        assert after.task_spec_version == before.task_spec_version, "another login replaces no task"
        for path in ("/services", "/services/x"):
            text = (await world.client.get(path)).text
            assert "RegistryLogin" not in text
            assert "X-Registry-Auth" not in text
            assert one["X-Registry-Auth"] not in text
        await update(world, spec("a:3"), registryAuthFrom="previous-spec")
        assert present(world) == (one["X-Registry-Auth"], two["X-Registry-Auth"])
        seen = await world.call("GET", "/services/x", status=200)
        await world.call(
            "POST", "/services/x/update", status=200, json=seen["Spec"],
            params={"version": seen["Version"]["Index"], "rollback": "previous"},
        )  # fmt: skip
        assert present(world) == (two["X-Registry-Auth"], one["X-Registry-Auth"])

    run(body)


def test_logins_that_nothing_is_pulled_with_any_more_are_forgotten(run: Any) -> None:
    async def body(world: Any) -> None:
        await world.call("POST", "/services/create", status=201, json=SPEC, headers=login("1"))
        for number in ("2", "3"):
            await update(world, spec(f"a:{number}"), headers=login(number))
        kept = {item.header for item in world.store.logins.all()}
        assert kept == {login("2")["X-Registry-Auth"], login("3")["X-Registry-Auth"]}

    run(body)


def test_nobody_can_name_the_login_of_another_service(run: Any) -> None:
    async def body(world: Any) -> None:
        await world.call("POST", "/services/create", status=201, json={**SPEC, "Name": "y"}, headers=login("1"))
        (other,) = world.store.logins.all()
        stolen = spec("a:1", RegistryLogin=other.id)
        await world.call("POST", "/services/create", status=201, json=stolen)
        assert present(world) == ("", "")
        await update(world, spec("a:2", RegistryLogin=other.id))
        assert present(world) == ("", "")

    run(body)


def test_what_is_no_login_is_refused_and_an_empty_one_is_none(run: Any) -> None:
    async def body(world: Any) -> None:
        bad = {"X-Registry-Auth": "no json"}
        answer = await world.call("POST", "/services/create", status=400, json=SPEC, headers=bad)
        assert "X-Registry-Auth" in answer["message"]
        await world.call("POST", "/services/create", status=201, json=SPEC, headers={"X-Registry-Auth": "e30="})
        assert list(world.store.logins.all()) == []
        seen = await world.call("GET", "/services/x", status=200)
        query = {"version": seen["Version"]["Index"], "registryAuthFrom": "elsewhere"}
        answer = await world.call("POST", "/services/x/update", status=400, json=SPEC, params=query)
        assert "registryAuthFrom" in answer["message"]

    run(body)


def test_a_login_is_masked_where_objects_are_printed() -> None:
    task = make_task()
    assert "hunter2" not in repr(Login(id="l", created_at=task.created_at, service_id="s", header="hunter2"))
