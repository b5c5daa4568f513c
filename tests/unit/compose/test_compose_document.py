"""YAML as a tree that knows its lines, within bounds."""

from __future__ import annotations

import pytest

from fleet import errors
from fleet.compose.document import parse


def test_places_count_from_one() -> None:
    root = parse("a: 1\nb:\n  - x\n  - c: true\n", file="f.yml")
    node = root.entries["b"].items[1].entries["c"]
    assert (node.kind, str(node.mark), node.path) == ("boolean", "f.yml:4:8", "b[1].c")


@pytest.mark.parametrize(
    ("text", "kind", "kept"),
    [
        ("no", "string", "no"),
        ("on", "string", "on"),
        ("22:22", "string", "22:22"),
        ("1.10", "number", "1.10"),
        ("0444", "integer", "0444"),
        ("true", "boolean", "true"),
        ("2026-01-02", "string", "2026-01-02"),
        ("~", "null", "~"),
        ('"1"', "string", "1"),
    ],
)
def test_plain_words_are_not_turned_into_surprises(text: str, kind: str, kept: str) -> None:
    node = parse(f"a: {text}", file="f").entries["a"]
    assert (node.kind, node.text) == (kind, kept)


@pytest.mark.parametrize(
    ("text", "number"), [("0444", 0o444), ("0o444", 0o444), ("292", 292), ('"0444"', 0o444), ("-1", -1)]
)
def test_integers_read_octal_as_yaml_writes_it(text: str, number: int) -> None:
    assert parse(f"a: {text}", file="f").entries["a"].integer() == number


def test_merge_keys_and_anchors() -> None:
    root = parse("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: {<<: [*x, {c: 4}]}\n", file="f")
    assert root.plain() == {"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}, "z": {"a": 1, "b": 2, "c": 4}}


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: [1\n", "f:", "not valid YAML"),
        ("a: 1\na: 2\n", "f:2", "'a' was given at f:1:1 already"),
        ("a: !!python/object:os.system x", "f:1", "tag"),
        ("a: *nothing", "f:1", "nothing"),
        ("? [a]\n: b", "f:1", "plain word"),
        ("", "f", "empty"),
        ("a: 1\n---\nb: 2\n", "f:2", "single document"),
        ("a: &a\n  b: *a\n", "f:", "holds itself"),
        ("a: {<<: 1}", "f:1", "mappings only"),
        ("a: \x07", "f", "not valid YAML"),
        ("a:\n  b: !!python/object/apply:os.system [id]", "f:2", "the tag tag:yaml.org,2002:python/object"),
        ("a: !!set {b}", "f:1", "is not known in Compose files"),
        ('a:\n  b: "x\\0y"', "f:2:6: a.b:", "the character U+0000"),
        ('a: "\\ud800"', "f:1:4: a:", "the character U+D800"),
        ('"x\\0": 1', "f:1:1: the document:", "the character U+0000"),
    ],
)
def test_bad_documents_are_told_with_their_line(text: str, place: str, words: str) -> None:
    with pytest.raises(errors.UserError) as caught:
        parse(text, file="f")
    assert str(caught.value).startswith(place)
    assert words in str(caught.value)


def test_alias_bomb_ends_early() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
    with pytest.raises(errors.TooLargeError, match="aliases are counted"):
        parse("\n".join(levels), file="f")


def test_merge_bomb_ends_early() -> None:
    levels = ["a0: &a0 {k: v}"]
    levels += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 20)]
    with pytest.raises(errors.TooLargeError, match="more than"):
        parse("\n".join(levels), file="f")


@pytest.mark.parametrize("depth", [60, 5000])
def test_deep_nesting_is_refused(depth: int) -> None:
    with pytest.raises(errors.UserError, match="nested deeper"):
        parse("a: " + "[" * depth + "]" * depth, file="f")


def test_long_text_is_refused() -> None:
    with pytest.raises(errors.TooLargeError, match="at most"):
        parse("#" * (1024 * 1024 + 1), file="f")


@pytest.mark.parametrize("text", ["9223372036854775808", "0x" + "f" * 5000, "9" * 5000])
def test_a_number_that_fits_nowhere_is_refused_and_can_be_printed(text: str) -> None:
    node = parse(f"a: {text}", file="f").entries["a"]
    with pytest.raises(errors.UserError, match="f:1:4: a: expected a whole number") as caught:
        node.integer()
    assert len(str(caught.value)) < 200
    assert str(node.plain()).startswith(text[:5])
