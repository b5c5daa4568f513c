"""``fleet user``, ``fleet token``, and how the token gets to the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fleet import errors
from fleet.cli.app import App, TlsOptions
from tests.support.fake_engine import FakeEngine

SHOP = {"com.docker.stack.namespace": "shop"}


def user(**spec: Any) -> dict[str, Any]:
    known = {"Name": "anna", "Role": "operator", "Scope": [SHOP], "HostAccess": False, "Disabled": False}
    return {"ID": "u1", "Version": {"Index": 7}, "Spec": {**known, "Description": "", **spec}}


def test_create_sends_role_and_scope(fleet: Any, engine: FakeEngine) -> None:
    engine.on("POST", "/fleet/v1/users/create", {"ID": "u1"})
    ran = fleet("user", "create", "anna", "--role", "operator", "--stack", "shop", "--selector", "team=blue,zone=a")
    assert (ran.code, ran.out) == (0, "u1\n")
    (sent,) = engine.sent("POST", "/fleet/v1/users/create")
    assert sent.body["Scope"] == [SHOP, {"team": "blue", "zone": "a"}]
    assert fleet("user", "create", "anna").code == 2
    assert fleet("user", "create", "anna", "--role", "root").code == 2
    assert "not a selector" in fleet("user", "create", "a", "--role", "viewer", "--selector", "x").err


def test_ls_says_what_each_may_see(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/fleet/v1/users", [user(), user(Name="root", Role="admin", Scope=[], Disabled=True)])
    lines = fleet("user", "ls").out.splitlines()
    assert lines[1].split() == ["u1", "anna", "operator", "stack", "shop", "active"]
    assert lines[2].split() == ["u1", "root", "admin", "everything", "disabled"]


def test_update_changes_what_was_named(fleet: Any, engine: FakeEngine) -> None:
    engine.on("GET", "/fleet/v1/users/anna", user(Description="kept"))
    engine.on("POST", "/fleet/v1/users/u1/update", None)
    assert fleet("user", "update", "anna", "--role", "viewer", "--everything").code == 0
    (sent,) = engine.sent("POST", "/fleet/v1/users/u1/update")
    assert sent.query == {"version": "7"}
    assert (sent.body["Role"], sent.body["Scope"], sent.body["Description"]) == ("viewer", [], "kept")
    assert fleet("user", "update", "anna", "--everything", "--stack", "x").code == 2


def test_a_token_is_printed_alone(fleet: Any, engine: FakeEngine) -> None:
    engine.on("POST", "/fleet/v1/tokens/create", {"ID": "t1", "Token": "FLTK-1-a-b"})
    assert fleet("token", "create", "anna", "--expires", "2w").out == "FLTK-1-a-b\n"
    assert fleet("token", "create", "anna", "--expires", "never").code == 0
    assert fleet("token", "create", "anna").code == 0
    lives = [sent.body["ExpiresIn"] for sent in engine.sent("POST", "/fleet/v1/tokens/create")]
    assert [ns / 86_400e9 for ns in lives] == [14, 0, 90]
    assert "not a time to live" in fleet("token", "create", "anna", "--expires", "soon").err


def test_tokens_are_listed_without_anything_secret(fleet: Any, engine: FakeEngine) -> None:
    row = {"ID": "t1", "User": "anna", "Description": "", "CreatedAt": "2026-01-01T00:00:00Z"}
    ended = "2020-01-01T00:00:00Z"
    engine.on("GET", "/fleet/v1/tokens", [{**row, "ExpiresAt": ended, "LastUsedAt": None}])
    assert fleet("token", "ls", "--user", "anna").out.splitlines()[1].split()[-2:] == ["expired", "never"]
    assert engine.sent("GET", "/fleet/v1/tokens")[0].query["filters"] == {"user": ["anna"]}


def app(host: str, file: Path | None = None, *, tls: TlsOptions | None = None, **environment: str) -> App:
    return App(host=host, tls=tls or TlsOptions(verify=True), environment=environment, token_file=str(file or ""))


def test_a_token_goes_over_verified_tls_alone(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("FLTK-1-x-y\n")
    file.chmod(0o600)
    sent = app("tcp://h:2376", file, FLEET_TOKEN="other").client.credentials
    assert sent == {"Authorization": "Bearer FLTK-1-x-y"}
    assert app("tcp://h:2376", FLEET_TOKEN="FLTK-1-z").client.credentials == {"Authorization": "Bearer FLTK-1-z"}
    assert app("unix:///x", file).client.credentials == {}, "on a unix socket the caller is known"
    for tls in (TlsOptions(), TlsOptions(enabled=True)):
        with pytest.raises(errors.UserError, match="only over TLS"):
            _ = app("tcp://h:2376", file, tls=tls).client


def test_token_files_that_are_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "token"
    for text in ("", "a b", "x" * 5000, "\u00e4"):
        file.write_text(text)
        with pytest.raises(errors.UserError, match="token"):
            _ = app("tcp://h:2376", file).client
    with pytest.raises(errors.UserError, match="No such file"):
        _ = app("tcp://h:2376", tmp_path / "no").client
    with pytest.raises(errors.UserError, match="FLEET_TOKEN"):
        _ = app("tcp://h:2376", FLEET_TOKEN="a\r\nX: y").client
    capsys.readouterr()
    file.write_text("FLTK-1-x-y")
    file.chmod(0o644)
    assert app("tcp://h:2376", file).client.credentials
    assert "chmod 600" in capsys.readouterr().err


def test_the_token_is_no_argument(fleet: Any) -> None:
    assert fleet("--token", "FLTK-1-x-y", "version").code == 2
