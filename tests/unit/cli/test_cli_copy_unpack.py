"""What an archive from a container may do to this machine, with the tarfile of every Python that fleet runs on."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fleet.cli.copy import _unpack
from fleet.errors import RuntimeFault


@pytest.fixture(params=["this Python's", "Debian 12's"], autouse=True)
def tarfile_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Debian 12's" and hasattr(tarfile, "data_filter"):
        monkeypatch.delattr(tarfile, "data_filter")
        monkeypatch.setattr(
            tarfile.TarFile, "extraction_filter", staticmethod(lambda member, _where: member), raising=False
        )


def archive(*members: tuple[str, Callable[[tarfile.TarInfo], None]]) -> list[bytes]:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, change in members:
            member = tarfile.TarInfo(name)
            change(member)
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return [file.getvalue()]


def file(member: tarfile.TarInfo) -> None:
    member.size, member.mode = 3, 0o4777


def link(target: str, kind: bytes = tarfile.SYMTYPE) -> Callable[[tarfile.TarInfo], None]:
    def change(member: tarfile.TarInfo) -> None:
        member.type, member.linkname, member.mode = kind, target, 0o4777

    return change


def folder(member: tarfile.TarInfo) -> None:
    member.type, member.mode = tarfile.DIRTYPE, 0o755


def pipe(member: tarfile.TarInfo) -> None:
    member.type = tarfile.FIFOTYPE


def test_files_links_and_folders_arrive_under_the_new_name(tmp_path: Path) -> None:
    chunks = archive(("d", folder), ("d/f", file), ("d/l", link("f")), ("d/h", link("d/f", tarfile.LNKTYPE)))
    assert _unpack(iter(chunks), str(tmp_path), old="d", new="n", archive=False) == 3
    assert (tmp_path / "n/f").read_text() == (tmp_path / "n/l").read_text() == (tmp_path / "n/h").read_text() == "xxx"
    assert (tmp_path / "n/f").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    "members",
    [
        (("../f", file),),
        (("l", link("/etc")),),
        (("l", link("../..")),),
        (("h", link("../secret", tarfile.LNKTYPE)),),
        (("p", pipe),),
    ],
)
def test_what_leads_out_is_refused(
    tmp_path: Path, members: tuple[tuple[str, Callable[[tarfile.TarInfo], None]], ...]
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(RuntimeFault, match="cannot unpack"):
        _unpack(iter(archive(*members)), str(place), old="", new="", archive=False)
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert list(place.iterdir()) == []
