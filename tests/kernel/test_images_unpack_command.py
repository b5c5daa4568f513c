"""``fleet image unpack`` leaves in its directory what umoci leaves, or a sentence and nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from fleet.cli.image import image as image_group
from fleet.cli.unpack import unpack_image
from fleet.errors import FleetError, UserError
from fleet.images import Platform
from tests.kernel.test_images_against_umoci import ODD, comparable, unpack_by_umoci
from tests.support.image_layouts import layer_blob, layout_tar, write_layout
from tests.support.image_trees import Entry, describe_tree, make_tar
from tests.support.images import busybox_rootfs_tar

pytestmark = pytest.mark.kernel
needs_umoci = pytest.mark.skipif(shutil.which("umoci") is None, reason="needs umoci (apt install umoci)")
needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo (apt install skopeo)")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Gone after the test: set-uid files are not left lying about."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def layout_of(scratch: Path, layers: list[bytes]) -> Path:
    write_layout(scratch / "layout", [layer_blob(layer) for layer in layers])
    return scratch / "layout"


def small(scratch: Path) -> Path:
    return layout_of(scratch, [make_tar([Entry(name="a", body=b"1")])])


@needs_umoci
@pytest.mark.parametrize("name", ODD)
def test_odd_layers_as_umoci(name: str, tmp_path: Path) -> None:
    layout = layout_of(tmp_path, [make_tar(layer) for layer in ODD[name]])
    theirs = comparable(unpack_by_umoci(layout, tmp_path))
    unpack_image(layout, tmp_path / "ours")
    assert comparable(describe_tree(tmp_path / "ours")) == theirs
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layout", "ours", "rootfs"]


@needs_umoci
@needs_skopeo
@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_busybox_from_archives_as_umoci(form: str, tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs.tar"
    busybox_rootfs_tar(rootfs)
    layout = layout_of(tmp_path, [rootfs.read_bytes(), make_tar([Entry(name="etc/extra", body=b"1")])])
    archive = tmp_path / "a.tar"
    command = ["skopeo", "copy", "--insecure-policy", f"oci:{layout}:tiny", f"{form}:{archive}:app:1"]
    subprocess.run(command, check=True, capture_output=True)
    (tmp_path / "ours").mkdir()
    unpack_image(archive, tmp_path / "ours")
    ours = comparable(describe_tree(tmp_path / "ours"))
    assert ours == comparable(unpack_by_umoci(layout, tmp_path))
    assert len(ours) > 200


def test_the_command_prints_the_id(tmp_path: Path) -> None:
    layout = small(tmp_path)
    done = CliRunner().invoke(image_group, ["unpack", str(layout), str(tmp_path / "out")], catch_exceptions=False)
    assert done.output.startswith("sha256:")
    assert (tmp_path / "out/a").read_bytes() == b"1"


def test_a_tag_chooses_and_is_asked_for(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    for tag in ("one", "two"):
        write_layout(layout, [layer_blob(make_tar([Entry(name=tag, body=b"1")]))], tag=tag)
    with pytest.raises(UserError, match="several images; choose one by --tag: one, two"):
        unpack_image(layout, tmp_path / "out")
    with pytest.raises(UserError, match="no image tagged 'three'"):
        unpack_image(layout, tmp_path / "out", tag="three")
    unpack_image(layout, tmp_path / "out", tag="two")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["two"]


def test_a_platform_chooses(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    for architecture in ("amd64", "s390x"):
        layer = layer_blob(make_tar([Entry(name=architecture, body=b"1")]))
        write_layout(layout, [layer], architecture=architecture)
    unpack_image(layout, tmp_path / "out", platform=Platform(os="linux", architecture="s390x"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s390x"]
    with pytest.raises(FleetError, match="riscv64"):
        unpack_image(layout, tmp_path / "other", platform=Platform(os="linux", architecture="riscv64"))


def refused(layout: Path, scratch: Path, match: str) -> None:
    before = sorted(scratch.iterdir())
    with pytest.raises(FleetError, match=match):
        unpack_image(layout, scratch / "out")
    assert sorted(scratch.iterdir()) == before


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", tmp_path, "not an OCI layout: the folder has no oci-layout")
    (tmp_path / "a.tar").write_bytes(make_tar([Entry(name="etc/passwd", body=b"x")]))
    refused(tmp_path / "a.tar", tmp_path, "not an image archive")
    refused(tmp_path / "absent", tmp_path, "no such file")


def test_a_changed_blob_is_refused(tmp_path: Path) -> None:
    layout = small(tmp_path)
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads((layout / "blobs/sha256" / entry["digest"][7:]).read_text())
    blob = layout / "blobs/sha256" / manifest["layers"][0]["digest"][7:]
    body = bytearray(blob.read_bytes())
    body[-1] ^= 1
    blob.write_bytes(bytes(body))
    refused(layout, tmp_path, "digest|sha256")
    layout_tar(layout, tmp_path / "a.tar")
    refused(tmp_path / "a.tar", tmp_path, "digest|sha256")


def test_a_linked_blob_is_refused(tmp_path: Path) -> None:
    layout = small(tmp_path)
    (layout / "blobs/sha256" / ("0" * 64)).symlink_to("/etc/passwd")
    refused(layout, tmp_path, "cannot read blob 000")


def test_a_directory_with_content_is_left_alone(tmp_path: Path) -> None:
    layout = small(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("kept")
    refused(layout, tmp_path, "is not empty")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_hostile_names_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    low = make_tar([Entry(name="d", kind=b"2", target=str(tmp_path / "victim"))])
    high = make_tar([Entry(name="d/evil", body=b"1"), Entry(name="d/.wh.mine", body=b"")])
    (tmp_path / "victim/mine").write_text("kept")
    unpack_image(layout_of(tmp_path, [low, high]), tmp_path / "out")
    assert [path.name for path in (tmp_path / "victim").iterdir()] == ["mine"]
    assert list((tmp_path / "out").rglob("evil"))
