"""Which unnamed images are steps of others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fleet.images.authoring import unnamed_ancestors
from fleet.images.config import HistoryEntry, ImageConfig
from fleet.images.image import Image


def made(name: str, *steps: str, references: tuple[str, ...] = ()) -> Image:
    return Image(
        id=name,
        manifest_digest=name,
        references=references,
        repo_digests=(),
        config=ImageConfig(),
        created=None,
        author="",
        comment="",
        history=tuple(HistoryEntry(created_by=step) for step in steps),
        diff_ids=tuple(f"layer-{step}" for step in steps),
        layer_digests=(),
        layer_sizes=(),
        layer_dirs=(Path("/"),),
        size_bytes=0,
    )


def test_steps_are_unnamed_images_whose_history_others_continue() -> None:
    base = made("base", "a", references=("base:1",))
    step, last = made("step", "a", "b"), made("last", "a", "b", "c", references=("made:1",))
    leaf = made("leaf", "a", "x")
    assert unnamed_ancestors([base, step, last, leaf]) == {"step"}
    assert unnamed_ancestors([base, step, leaf]) == frozenset()


def test_the_same_history_over_other_layers_is_no_child() -> None:
    step, last = made("step", "a", "b"), made("last", "a", "b", "c", references=("made:1",))
    assert unnamed_ancestors([step, replace(last, diff_ids=("other", "layer-b", "layer-c"))]) == frozenset()


def test_images_without_history_are_nobodys_steps() -> None:
    assert unnamed_ancestors([made("bare"), made("last", "a", references=("made:1",))]) == frozenset()
