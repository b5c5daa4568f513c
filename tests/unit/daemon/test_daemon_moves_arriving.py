"""Who may send a container here, and what is refused before anything is looked at."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from fleet.clock import SystemClock
from fleet.containers import ContainerConfig
from fleet.daemon.moves.arriving import Arriving
from fleet.daemon.moves.notes import Notes
from fleet.daemon.moves.peers import Peers
from fleet.daemon.moves.words import Expected, Manifest, check_move_id
from fleet.errors import ForbiddenError, NotFoundError, UnavailableError, UserError
from fleet.model.ids import NodeId

MOVE = "ab" * 16
SOURCE = NodeId("s" * 25)
EXPECTED = Expected(source_node=SOURCE, source_name="w1", source_address="10.0.0.1:2377")


@pytest.fixture
def arriving(tmp_path: Path) -> Arriving:
    nothing = cast("Any", None)  # what is tested here asks neither engine nor images
    return Arriving(Notes(tmp_path), engine=nothing, images=nothing, peers=Peers(), clock=SystemClock())


def manifest(container_id: str) -> Manifest:
    return Manifest(
        container_id=container_id,
        name="app",
        config=ContainerConfig(image="x"),
        image_id="i",
        image_digest="d",
        image_reference="x",
        machine="m",
    )


def test_nobody_sends_who_is_not_announced_and_an_announcement_counts_once(arriving: Arriving) -> None:
    with pytest.raises(ForbiddenError):
        asyncio.run(arriving.begin(MOVE, SOURCE, manifest("a" * 64)))
    arriving.expect(MOVE, EXPECTED)
    for _ in range(2):  # the wrong node uses the announcement up, too
        with pytest.raises(ForbiddenError):
            asyncio.run(arriving.begin(MOVE, NodeId("t" * 25), manifest("a" * 64)))


@pytest.mark.parametrize("container_id", ["../../etc", "", "a" * 63, "A" * 64, "a" * 64 + "\n"])
def test_an_id_that_is_no_id_is_refused(arriving: Arriving, container_id: str, tmp_path: Path) -> None:
    arriving.expect(MOVE, EXPECTED)
    with pytest.raises(UserError, match="64 hexadecimal"):
        asyncio.run(arriving.begin(MOVE, SOURCE, manifest(container_id)))
    assert list(tmp_path.iterdir()) == []


def test_too_many_announcements_are_refused_for_now(arriving: Arriving) -> None:
    for number in range(8):
        arriving.expect(f"{number:032x}", EXPECTED)
    with pytest.raises(UnavailableError):
        arriving.expect(MOVE, EXPECTED)


def test_a_source_that_gives_up_takes_its_announcement_along(arriving: Arriving) -> None:
    arriving.expect(MOVE, EXPECTED)
    assert asyncio.run(arriving.settle(MOVE, SOURCE, give_up=False)) is False
    with pytest.raises(ForbiddenError):
        asyncio.run(arriving.begin(MOVE, SOURCE, manifest("a" * 64)))
    with pytest.raises(NotFoundError):
        asyncio.run(arriving.commit(MOVE, SOURCE))


def test_a_start_removes_half_written_notes_and_files_without_a_note(tmp_path: Path) -> None:
    (tmp_path / f"out-{MOVE}.json.tmp").write_text("{")
    (tmp_path / MOVE / "0").mkdir(parents=True)
    assert Notes(tmp_path).open() == ([], [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "../" * 10, "a" * 31, "G" * 32])
def test_a_move_has_an_id_that_can_be_a_file_name(text: str) -> None:
    with pytest.raises(UserError):
        check_move_id(text)
