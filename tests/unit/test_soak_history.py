"""The judge of histories sees what it should, and nothing where all is well."""

from __future__ import annotations

from soak.history import History, Outcome, Write


def write(version: int, value: str, began: float, ended: float, outcome: Outcome = "acknowledged") -> Write:
    return Write(key="k", version=version, value=value, began=began, ended=ended, outcome=outcome)


def judged(
    *writes: Write, final: str, created: dict[str, Outcome] | None = None, names: set[str] | None = None
) -> list[str]:
    history = History(writes=list(writes), created=created or {})
    return history.problems(final_values={"k": final}, names=names or set())


def test_one_after_the_other_is_well() -> None:
    assert judged(write(1, "a", 0, 1), write(2, "b", 2, 3), final="b") == []
    assert judged(write(1, "a", 0, 5), write(2, "b", 1, 3), final="b") == []


def test_two_on_one_version_are_seen() -> None:
    assert "two writes acknowledged" in judged(write(1, "a", 0, 1), write(1, "b", 0, 1), final="b")[0]


def test_a_write_on_a_version_that_was_over_is_seen() -> None:
    assert "began after" in judged(write(5, "a", 0, 1), write(3, "b", 2, 3), final="a")[0]


def test_a_lost_last_write_is_seen() -> None:
    assert "in the end" in judged(write(1, "a", 0, 1), write(2, "b", 2, 3), final="a")[0]


def test_what_nobody_was_told_of_may_or_may_not_be_there() -> None:
    for final in ("a", "b"):
        assert judged(write(1, "a", 0, 1), write(2, "b", 2, 3, "unknown"), final=final) == []
    assert judged(write(2, "a", 0, 1), write(1, "b", 0, 3, "unknown"), final="b")
    assert judged(write(1, "a", 0, 1), write(2, "b", 2, 3, "refused"), final="b")


def test_a_lost_creation_is_seen() -> None:
    problems = judged(final="", created={"x": "acknowledged", "y": "unknown", "z": "acknowledged"}, names={"x"})
    assert problems == ["created and acknowledged, and not there: z"]
