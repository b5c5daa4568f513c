"""The OpenAPI document: each of fleet's own operations has an example, and the examples are what the daemon takes and answers."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import MagicMock

import msgspec
import pytest

from fleet.daemon.app import api_routes
from fleet.daemon.http.access import _SignIn
from fleet.daemon.http.moves import MoveBody
from fleet.daemon.openapi import EXAMPLES
from fleet.manager.control.access import TokenWish
from fleet.model.access import UserSpec
from fleet.model.wire import parse_builtins
from tests.support.api_gate import Tls, gated

BODIES = {
    "POST /fleet/v1/session": _SignIn,
    "POST /fleet/v1/users/create": UserSpec,
    "POST /fleet/v1/users/{id_}/update": UserSpec,
    "POST /fleet/v1/tokens/create": TokenWish,
    "POST /fleet/v1/containers/{name}/move": MoveBody,
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    parts = (
        "authenticator", "config", "membership", "engine", "images", "bridge", "locator", "events", "moves", "doctor",
        "exposition", "clock",
    )  # fmt: skip
    app = api_routes(**{part: MagicMock() for part in parts})
    assert app.openapi() is app.openapi(), "made once"
    return app.openapi()


def operations(document: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_each_of_fleets_operations_has_an_example_and_none_is_of_another(document: dict[str, Any]) -> None:
    own = {name for name in operations(document) if " /fleet/v1/" in name}
    assert own == EXAMPLES.keys()
    for name in own:
        operation = operations(document)[name]
        assert operation["description"].endswith("."), name
        (status,) = operation["responses"].keys() - {"default"}
        answer = operation["responses"][status].get("content", {})
        assert bool(answer) is (status != "204" and EXAMPLES[name].answer is not None), name
        assert all("example" in each for each in answer.values()), name
        assert set(EXAMPLES[name].query) <= {each["name"] for each in operation["parameters"]}, name


def test_errors_are_described_as_they_are_answered(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        assert "422" not in operation["responses"], name
        schema = operation["responses"]["default"]["content"]["application/json"]["schema"]
        assert schema["required"] == ["message"], name


@pytest.mark.parametrize("name", sorted(BODIES))
def test_bodies_of_examples_are_read_whole(name: str) -> None:
    body = EXAMPLES[name].body
    kind = BODIES[name]
    parse_builtins(body, kind, what=name)
    known = {each.encode_name for each in msgspec.structs.fields(kind)}
    assert body.keys() <= known


def shape(value: Any) -> Any:
    """Keys and types, of lists those of the first item."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else type(value).__name__


def test_answers_of_examples_have_the_shape_of_real_ones() -> None:
    async def story() -> None:
        async with gated() as world:
            root = {"tls": Tls("root")}

            async def real(name: str, **words: str) -> Any:
                example = EXAMPLES[name]
                method, _, path = name.partition(" ")
                answer = await world.call(method, path.format(**words), json=example.body, **root)
                assert answer.status_code == example.status, (name, answer.text)
                if example.answer is not None:
                    assert answer.json().keys() == example.answer.keys() if isinstance(example.answer, dict) else True
                return answer.json() if answer.content else None

            made = await real("POST /fleet/v1/users/create")
            assert shape(await real("GET /fleet/v1/users")) == shape(EXAMPLES["GET /fleet/v1/users"].answer)
            await real("GET /fleet/v1/users/{id_}", id_=made["ID"])
            token = await real("POST /fleet/v1/tokens/create")
            assert shape(await real("GET /fleet/v1/tokens")) == shape(EXAMPLES["GET /fleet/v1/tokens"].answer)
            assert shape(await real("GET /fleet/v1/whoami")).keys() == EXAMPLES["GET /fleet/v1/whoami"].answer.keys()
            await real("GET /fleet/v1/quotas")
            await real("DELETE /fleet/v1/tokens/{id_}", id_=token["ID"])
            await real("DELETE /fleet/v1/users/{id_}", id_=made["ID"])
            unfit = await world.call("GET", "/fleet/v1/tasks", **root)
            assert (unfit.status_code, unfit.json()) == (400, {"message": "named: field required"})

    asyncio.run(story())
