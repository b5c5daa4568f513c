"""Users and tokens: what may be done to them, what is kept, and whose a token is."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from support.memory_engine import MemoryEngine
from support.objects import NOW

from fleet import errors
from fleet.clock import SystemClock
from fleet.daemon.node_identity import USERS_FILE, _save_names, known_users
from fleet.identity.api_tokens import make_api_token, parse_api_token
from fleet.identity.authority import create_root
from fleet.manager.control import ControlApi
from fleet.manager.control.access import TokenWish
from fleet.manager.root_rotation import trust_of
from fleet.model.access import AccessRole, UserSpec, is_within
from fleet.model.cluster import Authority
from fleet.model.common import SECOND_NS
from fleet.model.ids import ClusterId, TokenId
from fleet.store import Store, Transaction
from fleet.store.backup import BackupReader, backup_lines, put_into

replace = msgspec.structs.replace
SHOP = {"com.docker.stack.namespace": "shop"}


async def made(world: Any, name: str = "anna", role: AccessRole = AccessRole.OPERATOR, **more: Any) -> Any:
    return await world.api.users.create(UserSpec(name=name, role=role, **more))


def test_a_token_is_its_users_until_it_is_removed(run) -> None:
    async def body(world) -> None:
        user = await made(world)
        token = await world.api.tokens.create(TokenWish(user="anna", description="ci"))
        assert world.api.tokens.owner(token.text) == (user, token.token)
        await world.api.tokens.remove(token.token.id)
        with pytest.raises(errors.UnauthorizedError):
            world.api.tokens.owner(token.text)

    run(body)


def test_of_a_token_only_a_digest_is_kept(run) -> None:
    async def body(world) -> None:
        await made(world)
        token = await world.api.tokens.create(TokenWish(user="anna"))
        secret = parse_api_token(token.text).secret
        entries = (await world.engine.list("/fleet/")).entries
        assert entries
        assert not [entry.key for entry in entries if secret.encode() in entry.value]
        for shown in (repr(token), repr(token.token), repr(parse_api_token(token.text))):
            assert secret not in shown
            assert token.token.digest not in shown

    run(body)


def test_another_secret_or_id_is_refused_alike(run) -> None:
    async def body(world) -> None:
        await made(world)
        token = await world.api.tokens.create(TokenWish(user="anna"))
        forged = make_api_token(token.token.id, bytes(32))
        unknown = make_api_token(TokenId("0" * 25), bytes(32))
        said = set()
        for text in (forged, unknown):
            with pytest.raises(errors.UnauthorizedError) as refusal:
                world.api.tokens.owner(text)
            said.add(str(refusal.value))
        assert len(said) == 1, "the answer does not tell which ids there are"
        for text in ("", "x", token.text[:-1], token.text + "0", token.text.upper(), "FLTK-1-\u0130-x"):
            with pytest.raises(errors.UnauthorizedError):
                world.api.tokens.owner(text)

    run(body)


def test_an_expired_token_is_refused(run) -> None:
    async def body(world) -> None:
        await made(world)
        token = await world.api.tokens.create(TokenWish(user="anna", expires_in_ns=60 * SECOND_NS))
        world.api.tokens.owner(token.text)
        for _ in range(60):  # each look at this clock is a second
            world.api.tokens._context.now()
        with pytest.raises(errors.UnauthorizedError, match="has expired"):
            world.api.tokens.owner(token.text)

    run(body)


def test_a_disabled_user_is_refused_and_a_removed_one_takes_the_tokens_along(run) -> None:
    async def body(world) -> None:
        user = await made(world)
        token = await world.api.tokens.create(TokenWish(user="anna"))
        spec = replace(user.spec, disabled=True)
        user = await world.api.users.update("anna", spec, version=user.version.index)
        with pytest.raises(errors.UnauthorizedError, match="disabled"):
            world.api.tokens.owner(token.text)
        await world.api.users.remove("anna")
        assert world.api.tokens.list() == []
        assert world.api.users.list() == []
        assert world.api.users.named("anna").removed, "a certificate in the name must not become an unknown one's"
        with pytest.raises(errors.NotFoundError):
            world.api.users.find("anna")
        again = await made(world)
        assert world.api.users.named("anna") == again
        assert len(world.store.users) == 1, "the name has been given to another: nothing is left of the first"

    run(body)


def test_use_is_written_once_in_a_while(run) -> None:
    async def body(world) -> None:
        await made(world)
        token = (await world.api.tokens.create(TokenWish(user="anna"))).token
        await asyncio.gather(*(world.api.tokens.note_use(token) for _ in range(20)))
        first = world.api.tokens.find(token.id)
        assert first.last_used_at is not None
        for _ in range(20):
            await world.api.tokens.note_use(world.api.tokens.find(token.id))
        assert world.api.tokens.find(token.id).version == first.version
        for _ in range(300):
            world.api.tokens._context.now()
        await world.api.tokens.note_use(first)
        assert world.api.tokens.find(token.id).last_used_at - first.last_used_at >= timedelta(minutes=5)
        await world.api.tokens.remove(token.id)
        await world.api.tokens.note_use(first)
        assert world.api.tokens.list() == [], "a use does not bring it back"

    run(body)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (UserSpec(name=""), "invalid user name"),
        (UserSpec(name="a b"), "invalid user name"),
        (UserSpec(name="a", scope=({},)), "selects nothing"),
        (UserSpec(name="a", scope=({"x": ""},)), "needs a value"),
        (UserSpec(name="a", role=AccessRole.ADMIN, scope=(SHOP,)), "cannot be limited"),
        (UserSpec(name="a", host_access=True), "host access is for operators"),
        (UserSpec(name="a", description="x" * 300), "longer than"),
    ],
)
def test_users_that_make_no_sense_are_refused(run, spec: UserSpec, said: str) -> None:
    async def body(world) -> None:
        with pytest.raises(errors.UserError, match=said):
            await world.api.users.create(spec)

    run(body)


def test_names_are_unique_and_stay(run) -> None:
    async def body(world) -> None:
        user = await made(world)
        with pytest.raises(errors.ConflictError):
            await made(world)
        with pytest.raises(errors.UnsupportedError):
            await world.api.users.update("anna", replace(user.spec, name="bea"), version=user.version.index)

    run(body)


def test_over_http_the_text_of_a_token_is_shown_once(run) -> None:
    async def body(world) -> None:
        spec = {"Name": "anna", "Role": "operator", "Scope": [SHOP]}
        made = await world.call("POST", "/fleet/v1/users/create", status=201, json=spec)
        (listed,) = await world.call("GET", "/fleet/v1/users", status=200)
        assert listed["ID"] == made["ID"]
        assert listed["Spec"] == {**spec, "HostAccess": False, "Disabled": False, "Description": ""}
        wish = {"User": "anna", "ExpiresIn": 5 * SECOND_NS}
        token = await world.call("POST", "/fleet/v1/tokens/create", status=201, json=wish)
        secret = parse_api_token(token["Token"]).secret
        response = await world.client.get("/fleet/v1/tokens")
        assert secret not in response.text
        assert "igest" not in response.text
        assert response.json()[0]["User"] == "anna"
        await world.call("GET", '/fleet/v1/tokens?filters={"user":["bea"]}', status=404)
        await world.call("POST", "/fleet/v1/users/create", status=400, json={"Name": "b", "Role": "root"})
        await world.call("DELETE", f"/fleet/v1/tokens/{token['ID']}", status=204)
        await world.call("DELETE", "/fleet/v1/users/anna", status=204)

    run(body)


def test_a_scope_is_all_labels_of_any_selector() -> None:
    scope = (SHOP, {"team": "blue", "zone": "a"})
    assert is_within((), {})
    assert is_within(scope, {**SHOP, "x": "y"})
    assert is_within(scope, {"team": "blue", "zone": "a"})
    assert not is_within(scope, {"team": "blue"})
    assert not is_within(scope, {})
    assert not is_within(({},), {"a": "b"}), "an empty selector selects nothing rather than everything"


def test_a_backup_brings_users_and_tokens_to_another_cluster_s_managers(run) -> None:
    async def body(world) -> None:
        user = await made(world, scope=(SHOP,))
        token = await world.api.tokens.create(TokenWish(user="anna"))
        lines = backup_lines(world.engine, cluster_id=ClusterId("c" * 25), created_at=NOW, sealing_key=bytes(32))
        reader = BackupReader()
        async for line in lines:
            reader.feed(line)
        engine = MemoryEngine()
        await engine.start()
        await put_into(engine, reader.finish()[1])
        store = await Store.open(engine)
        found, _ = ControlApi(store, SystemClock(), bytes).tokens.owner(token.text)
        assert replace(found, version=user.version) == user
        await store.close()
        await engine.close()

    run(body)


def test_every_node_is_told_the_names_of_users_removed_ones_too(run) -> None:
    async def body(world) -> None:
        await made(world)
        await made(world, "bea")
        await world.api.users.remove("bea")
        root = create_root(ClusterId("c" * 25), NOW)
        authority = Authority(created_at=NOW, updated_at=NOW, certificate_pem=root.cert_pem, key_pem=root.key_pem)
        await world.store.commit(Transaction().create(authority))
        trust = trust_of(world.store)
        assert trust is not None
        assert trust.users == ("anna", "bea")

    run(body)


def test_a_node_keeps_the_names_for_its_next_start(tmp_path) -> None:
    _save_names(tmp_path / USERS_FILE, frozenset({"anna", "bea"}))
    assert known_users(tmp_path) == {"anna", "bea"}
    assert (tmp_path / USERS_FILE).stat().st_mode & 0o077 == 0
    (tmp_path / USERS_FILE).write_text("{")
    assert known_users(tmp_path) == frozenset()
