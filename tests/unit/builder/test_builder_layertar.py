"""Writable directories as layers."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from fleet.containers.layertar import write_layer
from fleet.errors import RejectedFault


@pytest.mark.skipif(os.geteuid() != 0, reason="not run: overlay's marks need root")
def test_marks_links_and_attributes_become_entries(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    os.setxattr(tmp_path / "d", "trusted.overlay.opaque", b"y")
    (tmp_path / "d/a").write_text("a")
    (tmp_path / "d/b").hardlink_to(tmp_path / "d/a")
    os.setxattr(tmp_path / "d/a", "user.x", b"\xff\x00")
    os.mknod(tmp_path / "gone", 0o020000, os.makedev(0, 0))
    sink = io.BytesIO()
    assert write_layer(tmp_path, sink) == 5
    sink.seek(0)
    with tarfile.open(fileobj=sink) as tar:
        found = {member.name: member for member in tar}
    assert sorted(found) == [".wh.gone", "d", "d/.wh..wh..opq", "d/a", "d/b"]
    assert found["d/b"].islnk() and found["d/b"].linkname == "d/a"
    assert found["d/a"].pax_headers["SCHILY.xattr.user.x"].encode("utf-8", "surrogateescape") == b"\xff\x00"


def test_a_name_that_would_mean_deletion_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".wh.x").write_text("")
    with pytest.raises(RejectedFault, match=r"begin with \.wh\."):
        write_layer(tmp_path, io.BytesIO())
