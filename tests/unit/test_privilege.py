"""What root is here."""

from __future__ import annotations

import pytest

from fleet import privilege


@pytest.fixture
def ids(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(privilege, "_own_ids", lambda: privilege.parse_id_map(request.param))


@pytest.mark.parametrize("ids", ["         0          0 4294967295\n"], indirect=True)
@pytest.mark.usefixtures("ids")
def test_the_machines_root_keeps_overlays_marks_in_trusted_attributes() -> None:
    assert privilege.in_initial_user_namespace()
    assert privilege.overlay_attribute("opaque") == "trusted.overlay.opaque"


@pytest.mark.parametrize("ids", ["0 1000 1\n1 100000 65536\n"], indirect=True)
@pytest.mark.usefixtures("ids")
def test_root_of_a_user_namespace_keeps_them_in_user_attributes_and_owns_what_is_mapped() -> None:
    assert privilege.overlay_attribute("opaque") == "user.overlay.opaque"
    assert privilege.may_own(65536)
    assert not privilege.may_own(65537)
    assert not privilege.has_single_id()


@pytest.mark.parametrize("ids", ["0 1000 1\n"], indirect=True)
@pytest.mark.usefixtures("ids")
def test_one_id_alone() -> None:
    assert privilege.has_single_id()
    assert not privilege.may_own(1)
