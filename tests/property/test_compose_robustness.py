"""Whatever the text: a value, or a ``UserError`` - never another exception, never a hang."""

from __future__ import annotations

import contextlib
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from fleet import errors
from fleet.compose import values
from fleet.compose.convert import Sources, convert
from fleet.compose.interpolate import interpolate
from fleet.compose.load import load
from fleet.compose.schema import DOCUMENT, Keys

NAMES = st.sampled_from(["A", "B", "EMPTY", "UNSET"])
ENVIRONMENT = {"A": "1", "B": "two", "EMPTY": ""}
PIECES = st.sampled_from(
    ["$", "{", "}", ":-", "-", ":?", "?", ":+", "+", "A", "UNSET", "EMPTY", "$$", "${", "${A", "x", " ", "é"]
)


@given(st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=24).map("".join)))
def test_interpolation_gives_text_or_a_user_error(text: str) -> None:
    with contextlib.suppress(errors.UserError):
        assert isinstance(interpolate(text, ENVIRONMENT), str)


@given(st.text(alphabet=st.characters(exclude_characters="$", codec="utf-8"), max_size=80))
def test_text_without_dollars_and_escaped_text_stay_themselves(text: str) -> None:
    assert interpolate(text, ENVIRONMENT) == text
    assert interpolate(f"{text}$$", ENVIRONMENT) == f"{text}$"


@given(NAMES, st.text(alphabet="abc:/.-_ ", max_size=12))
def test_default_is_used_exactly_when_the_variable_is_unset_or_empty(name: str, default: str) -> None:
    assert interpolate(f"${{{name}:-{default}}}", ENVIRONMENT) == (ENVIRONMENT.get(name) or default)
    assert interpolate(f"${{{name}-{default}}}", ENVIRONMENT) == ENVIRONMENT.get(name, default)


def _keys(keys: Keys) -> list[str]:
    found = list(keys)
    for key in keys.values():
        if key.below is not None:
            found += _keys(key.below)
    return found


KNOWN = sorted({*_keys(DOCUMENT), "web", "default", "x-y"})
WORDS = ["", "a=b", "8080:80", "./a:/b", "data:/d", "10s", "1g", "overlay", "global", "CMD", "$A", "${", "0444", "any"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 70000),
    st.floats(allow_nan=True),
    st.sampled_from(WORDS),
    st.text(max_size=8),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KNOWN), inner, max_size=4)),
    max_leaves=12,
)
SERVICES = st.dictionaries(
    st.sampled_from(["web", "db"]),
    st.dictionaries(st.sampled_from(KNOWN), TREES, max_size=4).map(lambda d: {"image": "i", **d}),
    max_size=2,
)
DOCUMENTS = st.one_of(
    TREES,
    st.fixed_dictionaries({"services": SERVICES}, optional={"networks": TREES, "volumes": TREES, "secrets": TREES}),
)


def _deploy(text: str) -> None:
    def read_file(_path: str, _size_max: int) -> bytes:
        raise FileNotFoundError(2, "no such file")

    loaded = load([("f.yml", text)], environment=ENVIRONMENT)
    convert(loaded.document, stack="s", sources=Sources(environment=ENVIRONMENT, directory="/", read_file=read_file))


@given(DOCUMENTS)
def test_any_document_gives_a_stack_or_a_user_error_with_its_file(document: Any) -> None:
    try:
        _deploy(yaml.safe_dump(document))
    except errors.UserError as cause:
        assert str(cause).startswith("f.yml"), cause


@given(DOCUMENTS, DOCUMENTS)
def test_any_two_documents_merge_or_give_a_user_error(first: Any, second: Any) -> None:
    with contextlib.suppress(errors.UserError):
        load([("a", yaml.safe_dump(first)), ("b", yaml.safe_dump(second))], environment=ENVIRONMENT)


PATHS = st.sampled_from(["a.yml", "b/c.yml", "b/../a.yml", "../a.yml", "/etc/passwd", "", "no.yml", "${A}.yml", "."])
REFERENCES = st.one_of(
    PATHS,
    st.lists(PATHS, max_size=2),
    st.fixed_dictionaries(
        {}, optional={"path": st.one_of(PATHS, TREES), "env_file": PATHS, "project_directory": PATHS}
    ),
    TREES,
)
EXTENSIONS = st.one_of(
    st.sampled_from(["web", "db", "no"]),
    st.fixed_dictionaries({}, optional={"file": PATHS, "service": st.sampled_from(["web", "db", "no"])}),
    TREES,
)
COMPOUND = st.fixed_dictionaries(
    {
        "services": st.dictionaries(
            st.sampled_from(["web", "db"]),
            st.fixed_dictionaries(
                {"image": st.just("i")},
                optional={
                    "extends": EXTENSIONS,
                    "depends_on": st.one_of(st.lists(st.sampled_from(["web", "db"])), TREES),
                    "profiles": TREES,
                    "volumes": TREES,
                    "env_file": TREES,
                },
            ),
            max_size=2,
        )
    },
    optional={"include": st.one_of(st.lists(REFERENCES, max_size=2), TREES), "configs": TREES},
)


@given(COMPOUND, COMPOUND, COMPOUND, st.text(max_size=20))
def test_any_files_that_bring_each_other_in_give_a_stack_or_a_user_error(
    main: Any, first: Any, second: Any, variables: str
) -> None:
    files = {"a.yml": yaml.safe_dump(first), "b/c.yml": yaml.safe_dump(second), "b/.env": variables}

    def read(path: str) -> str:
        if path not in files:
            raise FileNotFoundError(2, "no such file")
        return files[path]

    def read_file(_path: str, _size_max: int) -> bytes:
        raise FileNotFoundError(2, "no such file")

    with contextlib.suppress(errors.UserError):
        loaded = load([("f.yml", yaml.safe_dump(main))], environment=ENVIRONMENT, read=read, profiles=["*"])
        sources = Sources(environment=ENVIRONMENT, directory="/", read_file=read_file)
        convert(loaded.document, stack="s", sources=sources)


@given(st.one_of(st.text(max_size=60), st.text(alphabet="abc:-[]{}&*!|>%@'\"# \n\t,?<", max_size=60)))
def test_any_text_gives_a_stack_or_a_user_error(text: str) -> None:
    with contextlib.suppress(errors.UserError):
        _deploy(text)


PARSERS = [
    values.parse_duration_ns,
    values.parse_bytes,
    values.parse_nano_cpus,
    values.parse_ports,
    values.parse_mount,
    values.parse_file_reference,
    values.parse_network,
    values.parse_preference,
    values.parse_ulimit,
    values.parse_host,
    values.parse_bool,
]


@given(
    st.sampled_from(PARSERS),
    st.one_of(st.text(max_size=30), st.text(alphabet="0123456789.:-/,=kmgsh\"'typeab", max_size=30)),
)
def test_any_flag_value_is_read_or_refused(parse: Any, text: str) -> None:
    with contextlib.suppress(errors.UserError):
        parse(text)


@given(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 999))
def test_durations_add_up(hours: int, minutes: int, milliseconds: int) -> None:
    expected = (hours * 3600 + minutes * 60) * 10**9 + milliseconds * 10**6
    assert values.parse_duration_ns(f"{hours}h{minutes}m{milliseconds}ms") == expected
