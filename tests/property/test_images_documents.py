"""Parsers of outside documents: any JSON is read or refused with a FleetError; names round-trip."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import RejectedFault, UserError
from fleet.images.changes import apply_changes
from fleet.images.config import parse_config
from fleet.images.manifest import INDEX_TYPES, MANIFEST_TYPES, Manifest, digest_of, parse_manifest
from fleet.images.reference import parse_reference
from fleet.images.registry import parse_registry_auth

KEYS = st.sampled_from(
    [
        "schemaVersion",
        "mediaType",
        "config",
        "layers",
        "manifests",
        "digest",
        "size",
        "platform",
        "os",
        "architecture",
        "rootfs",
        "diff_ids",
        "type",
        "created",
        "history",
        "empty_layer",
        "Env",
        "Cmd",
        "Labels",
        "ExposedPorts",
        "Healthcheck",
        "Test",
        "Interval",
        "annotations",
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([2, "layers", "sha256:" + "1" * 64, *MANIFEST_TYPES, "application/vnd.oci.image.config.v1+json"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=15
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=6)


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS, st.sampled_from(MANIFEST_TYPES + INDEX_TYPES))
def test_manifests_are_read_or_refused(document: dict[str, Any], media_type: str) -> None:
    body = json.dumps(document).encode()
    try:
        parse_manifest(Manifest(media_type=media_type, digest=digest_of(body), body=body))
    except RejectedFault as fault:
        assert str(fault)


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS)
def test_configurations_are_read_or_refused(document: dict[str, Any]) -> None:
    document.setdefault("rootfs", {"type": "layers", "diff_ids": []})
    try:
        parse_config(json.dumps(document).encode(), what="configuration")
    except RejectedFault as fault:
        assert str(fault).startswith("configuration")


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=40), st.from_regex(r"[a-zA-Z0-9.:@/_\[\]-]{1,60}", fullmatch=True)))
def test_names_round_trip_or_are_refused(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UserError:
        return
    assert parse_reference(str(reference)) == reference
    assert parse_reference(reference.familiar) == reference


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=30).map(lambda rest: rest), max_size=3), KEYS)
def test_change_lines_are_applied_or_refused(lines: list[str], _key: str) -> None:
    for instruction in ("CMD", "ENV", "LABEL", "EXPOSE", "VOLUME", "HEALTHCHECK", "WORKDIR", "SHELL"):
        for line in lines:
            try:
                json.dumps(apply_changes({}, [f"{instruction} {line}"]))
            except UserError as error:
                assert str(error).startswith("change ")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_login_headers_are_read_or_refused(header: str) -> None:
    try:
        parse_registry_auth(header)
    except UserError as error:
        assert "X-Registry-Auth" in str(error)
