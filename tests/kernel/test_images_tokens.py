"""docker-registry with ``auth: token``: scopes, renewal, tokens that die on the way, mounts between repositories, logins kept as
refresh tokens."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.errors import UnauthorizedError
from fleet.images import Credentials, Image, ImageStore, RegistrySource, RegistryTarget, fetch
from fleet.images.registry import check_login
from tests.support import image_registry
from tests.support.image_layouts import layer_blob, write_layout
from tests.support.image_trees import Entry, make_tar
from tests.support.registry_tokens import SignedTokens

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not image_registry.available(), reason="needs docker-registry and skopeo (apt install both)"),
]

ANN = Credentials(username="ann", password="sea-shell:7")
USERS = {"ann": "sea-shell:7", "bob": "hill"}
LAYER_BYTES = 12 << 20


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layout") / "oci"
    layers = [make_tar([Entry(name="big", body=os.urandom(LAYER_BYTES))]), make_tar([Entry(name="small", body=b"s")])]
    write_layout(folder, [layer_blob(layer, compression="plain") for layer in layers])
    return folder


async def pulled(root: Path, reference: str, source: RegistrySource) -> Image:
    store = await ImageStore.open(root)
    try:
        return await store.fetch(reference, [source])
    finally:
        await source.aclose()
        await store.close()


def pull(root: Path, reference: str, credentials: Credentials | None) -> Image:
    async def scenario() -> Image:
        return await pulled(root, reference, RegistrySource(reference, credentials=credentials))

    return asyncio.run(scenario())


def test_one_token_with_the_right_scope_serves_a_pull_and_none_without_the_right_password(
    layout: Path, tmp_path: Path
) -> None:
    def allows(user: str, repository: str, action: str) -> bool:
        return action == "pull" and (user == "ann" or repository.startswith("public/"))

    with image_registry.registry(tmp_path / "r") as filling:
        for name in ("team/app", "public/app"):
            image_registry.push(layout, f"{filling}/{name}:1")
    with (
        SignedTokens(tmp_path, users=USERS, allows=allows) as tokens,
        image_registry.registry(tmp_path / "r", auth=tokens.auth) as address,
    ):
        reference = f"{address}/team/app:1"
        image = pull(tmp_path / "a", reference, ANN)
        assert (image.layer_dirs[0] / "small").read_bytes() == b"s"
        assert tokens.asked == [("password", "ann", ("repository:team/app:pull",))]
        assert pull(tmp_path / "b", f"{address}/public/app:1", None).id == image.id
        assert tokens.asked[1:] == [("nobody", "", ("repository:public/app:pull",))]
        for who in (None, Credentials(username="bob", password="hill"), Credentials(username="ann", password="no")):
            with pytest.raises(UnauthorizedError, match=r"HTTP 401"):
                pull(tmp_path / "c", reference, who)
        assert list((tmp_path / "c/blobs/sha256").iterdir()) == []


def test_a_token_that_dies_in_the_middle_of_a_layer_is_replaced_and_the_layer_goes_on(
    layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_PARALLEL_LAYERS", 1)  # two at once may share a token that dies, and its successor
    with image_registry.registry(tmp_path / "r") as filling:
        image_registry.push(layout, f"{filling}/team/app:1")
    with (
        SignedTokens(tmp_path, users=USERS, life_s=1, told_life_s=3600) as tokens,
        image_registry.registry(tmp_path / "r", auth=tokens.auth, logs_access=True) as address,
        # every 256 KiB the connection breaks and a moment passes: far more than a second in all
        image_registry.cutting_proxy(address, cut_bytes=1 << 18) as proxy,
    ):
        image = pull(tmp_path / "a", f"{proxy.address}/team/app:1", ANN)
        assert (image.layer_dirs[1] / "big").stat().st_size == LAYER_BYTES
        statuses = [item.status for item in image_registry.requests_of(tmp_path / "r") if "/blobs/" in item.path]
    assert statuses.count(401) >= 1, "no token died on the way: nothing was shown"
    assert 206 in statuses[statuses.index(401) :]
    assert len(tokens.asked) == 1 + statuses.count(401)


def test_a_token_is_renewed_before_its_end_if_it_tells_it(layout: Path, tmp_path: Path) -> None:
    with image_registry.registry(tmp_path / "r") as filling:
        image_registry.push(layout, f"{filling}/team/app:1")

    async def scenario(address: str) -> None:
        source = RegistrySource(f"{address}/team/app:1", credentials=ANN)
        await source.manifest(f"{address}/team/app:1")
        await asyncio.sleep(4)  # it lives for five seconds
        await source.manifest(f"{address}/team/app:1")
        await source.aclose()

    with (
        SignedTokens(tmp_path, users=USERS, life_s=5) as tokens,
        image_registry.registry(tmp_path / "r", auth=tokens.auth, logs_access=True) as address,
    ):
        asyncio.run(scenario(address))
        assert len(tokens.asked) == 2
        asked = [item.status for item in image_registry.requests_of(tmp_path / "r") if "/manifests/" in item.path]
    assert asked == [401, 200, 200], "the second token came before anybody had to say no"


async def add_image(store: ImageStore, reference: str) -> Image:
    async def chunks() -> AsyncIterator[bytes]:
        yield make_tar([Entry(name="data", body=os.urandom(1 << 20))])

    return await store.import_tar(chunks(), reference=reference, changes=["CMD sh"])


@pytest.mark.parametrize("may_read_the_other", [True, False])
def test_blobs_of_another_repository_are_mounted_where_that_is_allowed(
    may_read_the_other: bool, tmp_path: Path
) -> None:
    def allows(_user: str, repository: str, _action: str) -> bool:
        return may_read_the_other or repository == "team/b" or not first_is_done

    first_is_done: list[bool] = []

    async def scenario(address: str) -> None:
        store = await ImageStore.open(tmp_path / "a")
        try:
            await add_image(store, f"{address}/team/a:1")
            steps: set[tuple[str, str]] = set()
            for name in (f"{address}/team/a:1", f"{address}/team/b:1"):
                await store.tag(f"{address}/team/a:1", name)
                steps.clear()
                target = RegistryTarget(name, credentials=ANN)
                await store.push(name, target, progress=lambda step: steps.add((step.stage, step.detail)))
                await target.aclose()
                first_is_done.append(True)
            assert steps == ({("mounted", "team/a")} if may_read_the_other else {("pushing", ""), ("pushed", "")})
        finally:
            await store.close()

    with (
        SignedTokens(tmp_path, users=USERS, allows=allows) as tokens,
        image_registry.registry(tmp_path / "r", auth=tokens.auth, logs_access=True) as address,
    ):
        asyncio.run(scenario(address))
        assert len(pull(tmp_path / "b", f"{address}/team/b:1", ANN).layer_dirs) == 1
        sent = [
            r for r in image_registry.requests_of(tmp_path / "r") if r.method == "PUT" and "/team/b/blobs" in r.path
        ]
        assert len(sent) == (0 if may_read_the_other else 2)
        assert any("repository:team/a:pull" in scopes for _, _, scopes in tokens.asked)


def test_a_login_is_kept_as_a_refresh_token_and_the_password_is_not_needed_again(layout: Path, tmp_path: Path) -> None:
    with image_registry.registry(tmp_path / "r") as filling:
        image_registry.push(layout, f"{filling}/team/app:1")
    with (
        SignedTokens(tmp_path, users=USERS) as tokens,
        image_registry.registry(tmp_path / "r", auth=tokens.auth) as address,
    ):
        with pytest.raises(UnauthorizedError, match="incorrect username or password"):
            asyncio.run(check_login(address, Credentials(username="ann", password="no")))
        kept = asyncio.run(check_login(address, ANN))
        assert kept
        assert asyncio.run(check_login(address, Credentials(identity_token=kept))) == kept
        tokens.asked.clear()
        pull(tmp_path / "a", f"{address}/team/app:1", Credentials(identity_token=kept))
        assert tokens.asked == [("refresh", "ann", ("repository:team/app:pull",))]
        with pytest.raises(UnauthorizedError, match="no such refresh token"):
            pull(tmp_path / "b", f"{address}/team/app:1", Credentials(identity_token="forged"))
