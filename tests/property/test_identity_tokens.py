"""Join tokens: made and read alike; any change is noticed."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet import errors
from fleet.identity.authority import create_root, root_digest
from fleet.identity.tokens import check_root, make_token, parse_token, token_matches, token_role
from fleet.model.ids import ClusterId
from fleet.model.node import NodeRole

ROOT = create_root(ClusterId("c" * 25), datetime(2026, 5, 1, tzinfo=UTC)).cert_pem
OTHER = create_root(ClusterId("c" * 25), datetime(2026, 5, 1, tzinfo=UTC)).cert_pem
secrets = st.binary(min_size=16, max_size=16)


@settings(deadline=None)
@given(secrets)
def test_token_parses_to_what_it_was_made_of(secret: bytes) -> None:
    token = make_token(ROOT, secret)
    assert len(token) == len("SWMTKN-1-") + 50 + 1 + 25
    parsed = parse_token(f" {token}\n")
    assert (parsed.digest, parsed.secret) == (root_digest(ROOT), secret)
    check_root(parsed, ROOT)


@settings(deadline=None)
@given(secrets, st.data())
def test_any_changed_character_is_refused(secret: bytes, data: st.DataObject) -> None:
    token = make_token(ROOT, secret)
    at = data.draw(st.integers(0, len(token) - 1))
    character = data.draw(st.characters(min_codepoint=33, max_codepoint=0x2FF).filter(lambda c: c != token[at]))
    changed = token[:at] + character + token[at + 1 :]
    assert not token_matches(changed, token)
    with pytest.raises(errors.FleetError):
        parsed = parse_token(changed)
        check_root(parsed, ROOT)
        token_role(changed, worker=token, manager=make_token(ROOT, bytes(16)) if any(secret) else "")


@settings(deadline=None)
@given(st.text(max_size=120))
def test_any_text_is_parsed_or_refused_with_a_user_error(text: str) -> None:
    with pytest.raises(errors.UserError, match="join token"):
        parse_token(text)


def test_token_of_another_root_is_refused() -> None:
    with pytest.raises(errors.UnauthorizedError, match="does not match the join token"):
        check_root(parse_token(make_token(ROOT, bytes(16))), OTHER)


def test_each_token_admits_to_its_role_and_an_empty_one_to_none() -> None:
    worker, manager = make_token(ROOT, bytes(16)), make_token(ROOT, bytes(15) + b"\1")
    assert token_role(worker, worker=worker, manager=manager) is NodeRole.WORKER
    assert token_role(manager, worker=worker, manager=manager) is NodeRole.MANAGER
    with pytest.raises(errors.UnauthorizedError):
        token_role("", worker="", manager="")


def test_truncated_token_is_told_to_be_copied_whole() -> None:
    with pytest.raises(errors.UserError, match="its secret has 24 digits, expected 25; copy it whole"):
        parse_token(make_token(ROOT, bytes(16))[:-1])
