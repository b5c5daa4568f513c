"""Constraints: what they match, and the sentence for each that can not be meant."""

from __future__ import annotations

import pytest
from support.decision_builders import a_node

from fleet import errors
from fleet.model.node import NodeRole
from fleet.scheduler.constraints import attribute_reader, match_all, parse_constraints

NODE = a_node(
    "Alpha",
    labels={"zone": "EU-west", "Rack": "7"},
    engine_labels={"storage": "ssd"},
    role=NodeRole.MANAGER,
    addr="192.168.4.20",
    architecture="x86_64",
)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("node.id==alpha", True),
        ("node.id != Alpha", False),
        ("node.hostname == ALPHA", True),
        ("node.role==manager", True),
        ("NODE.ROLE==worker", False),
        ("node.ip==192.168.4.20", True),
        ("node.ip==192.168.4.0/24", True),
        ("node.ip!=192.168.4.0/24", False),
        ("node.ip==10.0.0.0/8", False),
        ("node.platform.os==Linux", True),
        ("node.platform.arch==amd64", True),
        ("node.platform.arch==X86_64", True),
        ("node.platform.arch!=arm64", True),
        ("node.labels.zone==eu-WEST", True),
        ("node.labels.Zone==eu-west", False),
        ("node.labels.Rack==7", True),
        ("node.labels.missing!=x", True),
        ("node.labels.missing==x", False),
        ("engine.labels.storage==ssd", True),
        ("engine.labels.storage!=ssd", False),
        ("node.labels.zone in (us, eu-WEST)", True),
        ("node.labels.zone in(us)", False),
        ("node.labels.zone notin (us, asia)", True),
        ("node.labels.missing notin (us)", True),
        ("node.labels.missing in (us)", False),
        ("node.platform.arch in (arm64, amd64)", True),
        ("node.ip in (10.0.0.0/8, 192.168.0.0/16)", True),
        ("node.ip notin (10.0.0.0/8)", True),
        ("node.labels.Rack >= 7", True),
        ("node.labels.Rack<=7", True),
        ("node.labels.Rack > 7", False),
        ("node.labels.Rack < 10", True),
        ("node.labels.Rack > 6.5", True),
        ("node.labels.zone > 1", False),
        ("node.labels.missing < 1", False),
        ("node.hostname =~ al.*", True),
        ("node.hostname =~ al", False),
        ("node.hostname !~ (beta|gamma)", True),
        ("node.labels.zone=~(eu|us)-[a-z]{4}", True),
    ],
)
def test_constraint_matches_node(text: str, holds: bool) -> None:
    assert match_all(parse_constraints([text]), NODE) is holds


def test_all_constraints_must_hold() -> None:
    assert match_all(parse_constraints(["node.role==manager", "node.labels.zone==eu-west"]), NODE)
    assert not match_all(parse_constraints(["node.role==manager", "node.labels.zone==us"]), NODE)
    assert match_all((), NODE)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("node.labels.x=y", "constraint 'node.labels.x=y': expected == or != between key and value"),
        ("node.role", "constraint 'node.role': expected == or != between key and value"),
        ("", "constraint '': expected == or != between key and value"),
        ("node.role==", "constraint 'node.role==': value '' is invalid"),
        ("node.lables.x==y", "constraint 'node.lables.x==y': unknown key 'node.lables.x'; known are node.id, "),
        ("node.labels.==y", "unknown key 'node.labels.'"),
        ("node.ip==10.0.0.0/40", "'10.0.0.0/40' is neither an IP address nor a subnet"),
        ("node.role==<script>", "value '<script>' is invalid"),
        ("node.labels.x in eu", "expected values in brackets, such as (eu, us)"),
        ("node.labels.x in ()", "expected values in brackets"),
        ("node.labels.x in (a,,b)", "expected values in brackets"),
        ("node.ip in (10.0.0.0/8, x)", "'x' is neither an IP address nor a subnet"),
        ("node.labels.x > many", "'many' is not a number"),
        ("node.role > 1", "only labels can be compared with >"),
        ("node.ip =~ 10.*", "node.ip is compared with subnets"),
        ("node.hostname =~ (a+)+", "'+' must follow a single character or set, not close"),
        ("node.hostname =~ a*a*a*b", "too many repetitions"),
        ("node.hostname =~ [a-", "is not supported in a regular expression"),
        ("node.hostname =~ (a", "no regular expression"),
        ("node.hostname =~ (?=a)b", "is not supported in a regular expression"),
        ("node.labels.x==" + "y" * 2000, "longer than 1024 characters"),
    ],
)
def test_wrong_constraint_is_refused_with_its_place(text: str, complaint: str) -> None:
    with pytest.raises(errors.UserError) as caught:
        parse_constraints(["node.role==manager", text])
    assert complaint in str(caught.value)


def test_node_without_address_is_in_no_subnet() -> None:
    assert not match_all(parse_constraints(["node.ip==0.0.0.0/0"]), a_node(addr=""))


def test_only_attributes_can_be_spread_over() -> None:
    assert attribute_reader("node.labels.zone")(NODE) == "EU-west"
    with pytest.raises(errors.UserError, match=r"use node\.labels\.NAME"):
        attribute_reader("zone")
