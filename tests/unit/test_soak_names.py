"""The judge of ``scripts/names`` sees each kind of wrong answer, and none where all is right."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
from soak.name_picture import PORT, Member, Picture, seats, wrong

Answers = dict[str, list[dict[str, Any]]]


def picture() -> Picture:
    """Two tasks of ``web`` on network ``net``, at two hosts, and a stranger on another."""
    one = Member(host="h1", container="a" * 64, pid=1, service="s", addresses={"n": "10.0.1.2"})
    two = Member(host="h2", container="b" * 64, pid=2, service="s", addresses={"n": "10.0.1.3"})
    far = Member(host="h1", container="c" * 64, pid=3, addresses={"o": "10.0.2.2"})
    found = Picture(networks={"n": "net", "o": "other"}, members=[one, two, far])
    found.names["n"] = {"web": {"10.0.1.9"}, "tasks.web": {"10.0.1.2", "10.0.1.3"}, "web.1": {"10.0.1.2"}}
    found.names["o"] = {"box": {"10.0.2.2"}}
    found.reverse["n"] = {"10.0.1.2": "web.1.x.net"}
    found.vips["n"] = {"10.0.1.9": {one.says, two.says}}
    found.published = {9000: {one.says, two.says}}
    return found


def answered(world: Picture, asked: Answers) -> Answers:
    """As a network that works would answer."""
    says = {address: m.says for m in world.members for address in m.addresses.values()}
    answers: Answers = {}
    for host, questions in asked.items():
        for seat in questions:
            member = next((m for m in world.members if m.container == seat["key"]), None)
            tables = {world.networks[n]: world.names[n] for n in member.addresses} if member is not None else {}

            def resolved(name: str, wanted: bool, tables: dict[str, dict[str, set[str]]] = tables) -> object:
                for network, table in tables.items():
                    for text in (name, name.removesuffix(f".{network}")):
                        if wanted and text in table:
                            return sorted(table[text])
                return 3

            def told(address: str, tries: int, member: Member | None = member) -> list[str]:
                if member is None:
                    return sorted(world.published[9000])
                if address in world.vips["n"]:
                    return sorted(world.vips["n"][address])
                near = any(
                    address in m.addresses.values() and m.addresses.keys() & member.addresses for m in world.members
                )
                return [says[address] if near else "!TimeoutError"] * tries

            answers.setdefault(host, []).append(
                {
                    "key": seat["key"],
                    "names": [resolved(name, wanted) for name, wanted in seat["names"]],
                    "reverse": [[world.reverse["n"][address]] for address in seat["reverse"]],
                    "doors": [told(address, tries) for address, _, tries, _ in seat["doors"]],
                }
            )
    return answers


def judged(spoil: Callable[[Answers, Answers], None]) -> list[str]:
    world = picture()
    places = {"h1": "10.9.0.1", "h2": "10.9.0.2"}
    asked: Answers = seats(world, random.Random(1), gone={"old"}, addresses=places)
    answers = copy.deepcopy(answered(world, asked))
    spoil(asked, answers)
    return wrong(world, asked, answers)


def put(what: str, key: object, answer: object, *, seat: str = "a") -> Callable[[Answers, Answers], None]:
    """Replace one answer of a container."""

    def spoil(asked: Answers, answers: Answers) -> None:
        question = next(s for each in asked.values() for s in each if s["key"].startswith(seat))
        reply = next(s for each in answers.values() for s in each if s["key"].startswith(seat))
        index = [q[0] if isinstance(q, tuple) else q for q in question[what]].index(key)
        reply[what][index] = answer

    return spoil


def test_nothing_is_wrong_where_all_is_right() -> None:
    assert judged(lambda asked, answers: None) == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (put("names", "web", ["10.0.1.2"]), "web resolves to ['10.0.1.2'], wanted ['10.0.1.9']"),
        (put("names", "tasks.web", ["10.0.1.2"]), "tasks.web resolves to"),
        (put("names", "web.1.net", ["10.0.1.2", "10.0.1.7"]), "web.1.net resolves to"),
        (put("names", "web.1", "silence"), "web.1 resolves to silence"),
        (put("names", "old", ["10.0.1.5"]), "old is gone or elsewhere"),
        (put("reverse", "10.0.1.2", ["web.9.net"]), "10.0.1.2 is called ['web.9.net']"),
        (put("doors", "10.0.1.9", ["a" * 12, "a" * 12]), "virtual address 10.0.1.9 leads to"),
        (put("doors", "10.0.1.3", ["!TimeoutError"]), "10.0.1.3 answers ['!TimeoutError']"),
        (put("doors", "10.0.2.2", ["c" * 12]), "is on no common network, and answers"),
        (put("doors", "10.9.0.1", ["a" * 12, "a" * 12], seat="h"), "port 9000 of 10.9.0.1"),
        (lambda asked, answers: answers.pop("h2"), "h2: no answers from"),
    ],
)
def test_each_kind_of_wrong_answer_is_seen(spoil: Callable[[Answers, Answers], None], words: str) -> None:
    def everywhere(asked: Answers, answers: Answers) -> None:
        spoil(asked, answers)
        if "port" in words:  # what all who asked a door were told counts together
            for replies in answers.values():
                for reply in replies:
                    if reply["key"].startswith("h"):
                        reply["doors"][0] = ["a" * 12, "a" * 12]

    assert any(words in sentence for sentence in judged(everywhere))


def test_every_container_and_host_is_asked_for_what_it_should_know() -> None:
    asked = seats(picture(), random.Random(1), gone={"old"}, addresses={"h1": "10.9.0.1", "h2": "10.9.0.2"})
    assert [seat["key"][:1] for seat in asked["h1"]] == ["a", "c", "h"]
    (stranger,) = [seat for seat in asked["h1"] if seat["key"].startswith("c")]
    assert ("old", False) in stranger["names"] and ("box", True) in stranger["names"]
    assert {door[0] for door in stranger["doors"]} == {"10.0.2.2", "10.0.1.2", "10.0.1.3"}
    assert {door[:2] for door in asked["h2"][-1]["doors"]} == {("10.9.0.1", 9000), ("10.9.0.2", 9000)}
    assert all(door[1] == PORT for seat in asked["h1"][:2] for door in seat["doors"])
