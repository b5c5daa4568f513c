"""Manifests: types are not guessed, platforms are chosen as Docker chooses them."""

import json
from typing import Any

import pytest

from fleet.errors import RejectedFault
from fleet.images.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ImageIndex,
    ImageManifest,
    Manifest,
    Platform,
    build_manifest,
    choose_platform,
    digest_of,
    parse_manifest,
)

DIGEST = "sha256:" + "1" * 64
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 2}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 3}


def delivered(document: dict[str, Any], media_type: str = OCI_MANIFEST) -> Manifest:
    body = json.dumps(document).encode()
    return Manifest(media_type=media_type, digest=digest_of(body), body=body)


def test_manifest_gives_configuration_and_layers() -> None:
    read = parse_manifest(delivered({"schemaVersion": 2, "config": CONFIG, "layers": [LAYER, LAYER]}))
    assert isinstance(read, ImageManifest)
    assert (read.config.size, [layer.size for layer in read.layers]) == (2, [3, 3])


def test_index_gives_manifests_with_platforms() -> None:
    item = {
        "mediaType": OCI_MANIFEST,
        "digest": DIGEST,
        "size": 9,
        "platform": {"os": "linux", "architecture": "arm64"},
    }
    read = parse_manifest(delivered({"schemaVersion": 2, "manifests": [item]}, OCI_INDEX))
    assert isinstance(read, ImageIndex)
    assert str(read.manifests[0].platform) == "linux/arm64"


@pytest.mark.parametrize(
    ("document", "media_type", "why"),
    [
        ({"schemaVersion": 2, "config": CONFIG, "layers": []}, "text/html", "is not an image"),
        ({"schemaVersion": 1}, "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1 was retired"),
        ({"schemaVersion": 1, "config": CONFIG, "layers": []}, OCI_MANIFEST, "schemaVersion must be 2"),
        ({"schemaVersion": 2, "mediaType": OCI_INDEX, "config": CONFIG}, OCI_MANIFEST, "was delivered as"),
        ({"schemaVersion": 2, "manifests": [], "layers": [LAYER]}, OCI_INDEX, "both an index and a manifest"),
        ({"schemaVersion": 2, "manifests": [], "config": CONFIG}, OCI_MANIFEST, "both an index and a manifest"),
        ({"schemaVersion": 2, "layers": []}, OCI_MANIFEST, "config must be an object"),
        ({"schemaVersion": 2, "config": {**CONFIG, "mediaType": "application/vnd.x"}}, OCI_MANIFEST, "not a container"),
        ({"schemaVersion": 2, "config": {**CONFIG, "digest": "../../x"}}, OCI_MANIFEST, "not a sha256 digest"),
        ({"schemaVersion": 2, "config": {**CONFIG, "size": -1}}, OCI_MANIFEST, "size must be a whole number"),
        ({"schemaVersion": 2, "config": {**CONFIG, "size": True}}, OCI_MANIFEST, "size must be a whole number"),
        ({"schemaVersion": 2, "config": CONFIG, "layers": {}}, OCI_MANIFEST, "layers must be a list"),
        ({"schemaVersion": 2, "config": CONFIG, "layers": [1]}, OCI_MANIFEST, "layers must be a list of objects"),
        ({"schemaVersion": 2, "config": CONFIG, "layers": [LAYER] * 501}, DOCKER_MANIFEST, "500"),
    ],
)
def test_wrong_documents_are_refused_with_the_reason(document: dict[str, Any], media_type: str, why: str) -> None:
    with pytest.raises(RejectedFault, match=why):
        parse_manifest(delivered(document, media_type))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b"\xff\xfe", b'{"schemaVersion": NaN}'])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(RejectedFault):
        parse_manifest(Manifest(media_type=OCI_MANIFEST, digest=digest_of(body), body=body))


def offered(*platforms: str) -> list[Descriptor]:
    result = []
    for number, text in enumerate(platforms):
        system, architecture, variant = (*text.split("/"), "", "")[:3]
        platform = Platform(os=system, architecture=architecture, variant=variant) if text else None
        digest = f"sha256:{number:064x}"
        result.append(Descriptor(media_type=OCI_MANIFEST, digest=digest, size=1, platform=platform))
    return result


@pytest.mark.parametrize(
    ("wanted", "there", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64"], 1),
        ("linux/amd64", ["windows/amd64", "linux/amd64", "linux/amd64"], 1),
        ("linux/arm64/v8", ["linux/arm64", "linux/arm64/v8"], 1),
        ("linux/arm64/v8", ["linux/amd64", "linux/arm64"], 1),
        ("linux/arm64", ["linux/arm64/v8"], 0),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], 1),
        ("linux/amd64", ["unknown/unknown", "linux/amd64"], 1),
        ("linux/amd64", [""], 0),
    ],
)
def test_platform_choice(wanted: str, there: list[str], chosen: int) -> None:
    (platform,) = (item.platform for item in offered(wanted))
    assert platform is not None
    manifests = offered(*there)
    assert choose_platform(manifests, platform) is manifests[chosen]


@pytest.mark.parametrize("there", [["linux/arm64"], ["linux/amd64/v3"], ["unknown/unknown"], [], ["", ""]])
def test_no_matching_platform_says_what_there_is(there: list[str]) -> None:
    with pytest.raises(RejectedFault, match="no matching manifest for linux/amd64"):
        choose_platform(offered(*there), Platform(os="linux", architecture="amd64"))


def test_synthesised_manifest_is_the_same_everywhere() -> None:
    config = Descriptor(media_type=CONFIG["mediaType"], digest=DIGEST, size=2)  # type: ignore[arg-type]
    layer = Descriptor(media_type=LAYER["mediaType"], digest=DIGEST, size=3)  # type: ignore[arg-type]
    made = build_manifest(config=config, layers=[layer])
    assert made == build_manifest(config=config, layers=[layer])
    assert parse_manifest(made) == ImageManifest(config=config, layers=(layer,))
    assert made.digest == "sha256:3b6d1d16b472bdb5a3c44b88a0d68bfaf76cf7bcc6d9a1ef82d29e5bbbcc926d"


def test_docker_list_is_an_index() -> None:
    assert parse_manifest(delivered({"schemaVersion": 2, "manifests": []}, DOCKER_LIST)) == ImageIndex(manifests=())
