"""``login``, ``logout`` and ``push``: what is sent, and what Docker's file and credential helpers hold afterwards."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_engine import FakeEngine, Reply

HUB = "https://index.docker.io/v1/"
GOOD = {"Status": "Login Succeeded", "IdentityToken": ""}
HELPER = """#!/bin/sh
cd "$HELPER_HOME" || exit 2
case "$1" in
store) cat > kept ;;
get) test -f kept || { echo "credentials not found in native keychain"; exit 1; }; cat kept ;;
erase) cat > erased; rm kept ;;
esac
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO("sea:shell\n"))
    (tmp_path / "docker-credential-test").write_text(HELPER)
    (tmp_path / "docker-credential-test").chmod(0o755)
    return {"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin", "HELPER_HOME": str(tmp_path)}


def sent_auth(engine: FakeEngine) -> Any:
    return json.loads(base64.urlsafe_b64decode(engine.requests[-1].headers["x-registry-auth"]))


def test_login_is_kept_for_its_owner_alone_and_forgotten(
    fleet: Any, engine: FakeEngine, home: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"detachKeys": "ctrl-e", "auths": {"other:1": {"auth": "YTpi"}}}')
    path.chmod(0o644)
    engine.on("POST", "/auth", GOOD)
    ran = fleet("login", "-u", "ann", "--password-stdin", "https://reg.example:5000/v2/", environment=home)
    assert (ran.code, ran.out) == (0, "Login Succeeded\n")
    assert "sea:shell" not in ran.err
    assert engine.requests[-1].body == {
        "username": "ann", "password": "sea:shell", "serveraddress": "reg.example:5000"
    }  # fmt: skip
    assert path.stat().st_mode & 0o777 == 0o600
    kept = json.loads(path.read_text())
    assert kept["detachKeys"] == "ctrl-e"
    assert kept["auths"] == {
        "other:1": {"auth": "YTpi"},
        "reg.example:5000": {"auth": base64.b64encode(b"ann:sea:shell").decode()},
    }
    assert fleet("logout", "reg.example:5000", environment=home).out.startswith("Removing login credentials")
    assert list(json.loads(path.read_text())["auths"]) == ["other:1"]
    assert fleet("logout", "reg.example:5000", environment=home).out == "Not logged in to reg.example:5000\n"


def test_a_refused_login_is_not_kept(fleet: Any, engine: FakeEngine, home: dict[str, str], tmp_path: Path) -> None:
    engine.on("POST", "/auth", Reply(401, {"message": "incorrect username or password"}))
    ran = fleet("login", "-u", "ann", "--password-stdin", environment=home)
    assert ran.code == 1
    assert "incorrect username or password" in ran.err
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("settings", [{"credsStore": "test"}, {"credsStore": "no", "credHelpers": {HUB: "test"}}])
def test_a_credential_helper_keeps_the_login(
    settings: dict[str, Any], fleet: Any, engine: FakeEngine, home: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings))
    engine.on("POST", "/auth", GOOD)
    engine.on("POST", "/images/.*/push", {"status": "ok"})
    assert fleet("push", "team/app", environment=home).code == 0
    assert sent_auth(engine) == {}
    assert fleet("login", "-u", "ann", "--password-stdin", environment=home).code == 0
    assert json.loads((tmp_path / "kept").read_text()) == {"ServerURL": HUB, "Username": "ann", "Secret": "sea:shell"}
    assert json.loads((tmp_path / "config.json").read_text()) == settings
    assert fleet("push", "docker.io/team/app:2", environment=home).code == 0
    assert sent_auth(engine) == {"username": "ann", "password": "sea:shell", "serveraddress": HUB}
    (tmp_path / "kept").write_text('{"Username": "<token>", "Secret": "t0"}')
    assert fleet("push", "team/app", environment=home).code == 0
    assert sent_auth(engine) == {"identitytoken": "t0", "serveraddress": HUB}
    assert fleet("logout", environment=home).out == "Removing login credentials for Docker Hub\n"
    assert (tmp_path / "erased").read_text() == HUB


def test_identity_tokens_take_the_place_of_the_password(
    fleet: Any, engine: FakeEngine, home: dict[str, str], tmp_path: Path
) -> None:
    engine.on("POST", "/auth", {"Status": "Login Succeeded", "IdentityToken": "t1"})
    engine.on("POST", "/images/.*/push", {"status": "ok"})
    assert fleet("login", "-u", "ann", "--password-stdin", "r:1", environment=home).code == 0
    assert "sea:shell" not in (tmp_path / "config.json").read_text()
    assert fleet("push", "r:1/app", environment=home).code == 0
    assert sent_auth(engine) == {"username": "ann", "identitytoken": "t1", "serveraddress": "r:1"}


@pytest.mark.parametrize("name", ["../evil", "-x", "a b"])
def test_a_helper_is_a_name_and_no_path(name: str, fleet: Any, home: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": name}))
    ran = fleet("push", "app", environment=home)
    assert ran.code == 2
    assert "cannot be one" in ran.err


def test_push_shows_progress_and_fails_with_the_stream(fleet: Any, engine: FakeEngine, home: dict[str, str]) -> None:
    lines = [{"id": "abc", "status": "Pushing"}, {"id": "abc", "status": "Pushed"}, {"status": "1: digest: sha256:0"}]
    engine.on("POST", "/images/.*/push", Reply(raw=b"".join(json.dumps(line).encode() + b"\r\n" for line in lines)))
    ran = fleet("image", "push", "r:1/app:1", environment=home)
    assert (ran.code, ran.out) == (0, "abc: Pushing\nabc: Pushed\n1: digest: sha256:0\n")
    assert (engine.requests[-1].path, engine.requests[-1].query) == ("/images/r:1/app/push", {"tag": "1"})
    engine.on("POST", "/images/.*/push", Reply(raw=b'{"errorDetail": {"message": "denied"}, "error": "denied"}\r\n'))
    ran = fleet("push", "r:1/app", environment=home)
    assert ran.code == 1
    assert "denied" in ran.err
    assert fleet("push", "app@sha256:" + "1" * 64, environment=home).code == 2
