"""Which nodes have which images."""

from __future__ import annotations

from fleet.manager.held_images import HeldImages
from fleet.model.ids import NodeId

A, B = NodeId("a"), NodeId("b")
DIGEST = f"sha256:{'d' * 64}"


def test_images_are_found_by_every_name_that_a_service_may_give_them() -> None:
    held = HeldImages()
    held.set(A, ("docker.io/library/web:1", f"docker.io/library/web@{DIGEST}", "docker.io/library/web:latest"))
    held.set(B, (DIGEST,))
    assert held.holders("web:1") == held.holders("web") == {A}
    assert held.holders(f"web:2@{DIGEST}") == {A, B}
    assert held.holders("web:2") == held.holders("Not A Name") == frozenset()


def test_what_a_node_no_longer_has_is_forgotten() -> None:
    held = HeldImages()
    held.set(A, ("docker.io/library/web:1", "docker.io/library/db:1"))
    held.set(A, ("docker.io/library/db:1",))
    assert held.holders("web:1") == frozenset()
    assert held.named("docker.io/library/db:1") == {A}
