"""What waits for what: ``depends_on`` as people write it."""

from __future__ import annotations

import pytest

from fleet import errors
from fleet.compose.document import parse
from fleet.compose.order import Condition, Dependency, dependencies, in_order


def found(text: str) -> dict[str, tuple[Dependency, ...]]:
    return dependencies(parse(text, file="f.yml").mapping())


def test_lists_and_conditions() -> None:
    needs = found(
        """
web: {depends_on: [api, cache]}
api: {depends_on: {db: {condition: service_healthy}, migrate: {condition: service_completed_successfully}}}
migrate: {depends_on: {db: {}, ghost: {required: false}}}
cache:
db: {depends_on:}
"""
    )
    assert needs == {
        "web": (Dependency("api", Condition.STARTED), Dependency("cache", Condition.STARTED)),
        "api": (Dependency("db", Condition.HEALTHY), Dependency("migrate", Condition.COMPLETED)),
        "migrate": (Dependency("db", Condition.STARTED),),
        "cache": (),
        "db": (),
    }
    order = in_order(needs)
    for key, wanted in needs.items():
        assert all(order.index(each.service) < order.index(key) for each in wanted)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "web: {depends_on: [bd]}\ndb: {}",
            "f.yml:1:20: web.depends_on[0]: there is no service 'bd'; known are db, web",
        ),
        (
            "web: {depends_on: {db: {condition: ready}}}\ndb: {}",
            "web.depends_on.db.condition: 'ready' is no condition; known are",
        ),
        ("a: {depends_on: [a]}", "a.depends_on: the services wait for each other: a -> a"),
        ("a: {depends_on: [b]}\nb: {depends_on: [c]}\nc: {depends_on: [a]}", "the services wait for each other: "),
        ("a: {depends_on: 5}", "a mapping"),
    ],
)
def test_mistakes_are_told(text: str, words: str) -> None:
    with pytest.raises(errors.UserError) as caught:
        found(text)
    assert words in str(caught.value)


def test_a_long_chain_and_a_dense_mesh_take_no_time() -> None:
    chain = "".join(f"s{n}: {{depends_on: [s{n + 1}]}}\n" for n in range(3000)) + "s3000:\n"
    assert in_order(found(chain))[0] == "s3000"
    mesh = "".join(f"s{n}: {{depends_on: [{', '.join(f's{m}' for m in range(n + 1, 60))}]}}\n" for n in range(60))
    assert in_order(found(mesh))[0] == "s59"
