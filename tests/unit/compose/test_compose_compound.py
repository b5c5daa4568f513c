"""Files that bring others in, and services that are there on request only."""

from __future__ import annotations

from typing import Any

import pytest

from fleet import errors
from fleet.compose.load import load


def loaded(files: dict[str, str], *, main: str = "f.yml", profiles: tuple[str, ...] = (), **environment: str) -> Any:
    def read(path: str) -> str:
        if path not in files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return files[path]

    return load([(main, files[main])], environment=environment, read=read, profiles=profiles)


def document(files: dict[str, str], **more: Any) -> Any:
    return loaded(files, **more).document.plain()


def refused(files: dict[str, str], **more: Any) -> str:
    with pytest.raises(errors.UserError) as caught:
        loaded(files, **more)
    return str(caught.value)


BASE = """
services:
  base:
    image: img:1
    env_file: [base.env, {path: more.env, required: false}]
    environment: {A: "1", B: "1"}
    volumes: [./data:/data, named:/named, /abs:/abs, {type: bind, source: ./x, target: /x}]
    command: [one]
"""


def test_a_service_begins_as_a_copy_of_the_one_it_extends() -> None:
    text = BASE + "  web:\n    extends: base\n    environment: {B: '2'}\n    command: [two]\n    ports: ['80:80']\n"
    web = document({"f.yml": text})["services"]["web"]
    assert "extends" not in web
    assert (web["image"], web["environment"], web["command"], web["ports"]) == (
        "img:1",
        {"A": "1", "B": "2"},
        ["two"],
        ["80:80"],
    )


def test_a_service_of_another_file_keeps_its_paths() -> None:
    files = {
        "f.yml": "services: {web: {extends: {file: sub/common.yml, service: base}, image: img:2}}",
        "sub/common.yml": BASE,
    }
    web = document(files)["services"]["web"]
    assert web["image"] == "img:2"
    assert web["env_file"] == ["sub/base.env", {"path": "sub/more.env", "required": False}]
    assert web["volumes"] == [
        "./sub/data:/data",
        "named:/named",
        "/abs:/abs",
        {"type": "bind", "source": "sub/x", "target": "/x"},
    ]
    assert list(document(files)["services"]) == ["web"], "the other file's services do not come along"


def test_extending_goes_on_through_files_and_ends_when_it_leads_back() -> None:
    files = {
        "f.yml": "services: {a: {extends: {file: d/g.yml, service: b}}}",
        "d/g.yml": "services: {b: {extends: {file: h.yml, service: c}, env_file: b.env}}",
        "d/h.yml": "services: {c: {image: img, env_file: c.env}}",
    }
    assert document(files)["services"]["a"]["env_file"] == ["d/c.env", "d/b.env"]
    files["d/h.yml"] = "services: {c: {extends: {file: ../f.yml, service: a}}}"
    assert "extends itself" in refused(files)
    assert "b extends itself, by way of b" in refused({"f.yml": "services: {b: {extends: b}}"})
    assert "f.yml:1:16: services.b.extends: the key 'service' is missing" in refused(
        {"f.yml": "services: {b: {extends: {file: x}}}"}
    )
    assert "cannot read x.yml: No such file" in refused(
        {"f.yml": "services: {b: {extends: {file: x.yml, service: c}}}"}
    )
    assert "unknown key 'fiel'; did you mean 'file'?" in refused(
        {"f.yml": "services: {b: {extends: {fiel: x.yml, service: c}}}"}
    )


INCLUDED = {
    "f.yml": "include: [db/stack.yml]\nservices: {web: {image: 'web:${TAG}', networks: [inner]}}",
    "db/stack.yml": """
services: {db: {image: "db:${TAG}", env_file: db.env, networks: [inner]}}
networks: {inner: {}}
configs: {conf: {file: ./conf.txt}}
secrets: {token: {file: /abs/token}}
""",
}


def test_an_included_file_brings_its_own_paths_and_variables() -> None:
    found = document(INCLUDED, TAG="3")
    assert set(found["services"]) == {"web", "db"}
    assert "include" not in found
    assert found["services"]["db"]["env_file"] == ["db/db.env"]
    assert (found["configs"]["conf"]["file"], found["secrets"]["token"]["file"]) == ("db/conf.txt", "/abs/token")
    files = {**INCLUDED, "db/.env": "TAG=own"}
    assert loaded(files).document.plain()["services"]["db"]["image"] == "db:own"
    assert document(files, TAG="3")["services"]["db"]["image"] == "db:3", "the caller's variables are the strongest"
    files["f.yml"] = (
        "include: [{path: [db/stack.yml, db/more.yml], project_directory: elsewhere, env_file: e.env}]\nservices: {}"
    )
    files |= {"db/more.yml": "services: {db: {tty: true}}", "e.env": "TAG=e"}
    found = document(files)
    assert (found["services"]["db"]["image"], found["services"]["db"]["tty"]) == ("db:e", True)
    assert found["configs"]["conf"]["file"] == "elsewhere/conf.txt"


def test_variables_of_an_included_file_may_be_absent_but_not_unreadable() -> None:
    def read(path: str) -> str:
        if path == "db/.env":
            raise cause
        return INCLUDED[path]

    def image() -> Any:
        found = load([("f.yml", INCLUDED["f.yml"])], environment={"TAG": "3"}, read=read)
        return found.document.plain()["services"]["db"]["image"]

    cause: OSError = IsADirectoryError(21, "Is a directory")
    assert image() == "db:3"
    cause = PermissionError(13, "Permission denied")
    with pytest.raises(
        errors.UserError, match=r"f\.yml:\d+:\d+: include\[0\]: cannot read db/\.env: Permission denied"
    ):
        image()


def test_what_is_defined_on_both_sides_is_refused_with_both_places() -> None:
    files = {**INCLUDED, "f.yml": "include: [db/stack.yml]\nservices:\n  db: {image: x}\n"}
    assert refused(files) == (
        "f.yml:3:3: services.db: is defined at db/stack.yml:2:12 too, which is included; put what differs into a further -c file"
    )


def test_including_ends() -> None:
    circle = {
        "f.yml": "include: [a.yml]\nservices: {x: {image: i}}",
        "a.yml": "include: [b.yml]",
        "b.yml": "include: [a.yml]",
    }
    assert "a.yml is included by itself" in refused(circle)
    wide = {f"{number}.yml": "services: {}" for number in range(40)}
    wide["f.yml"] = f"include: [{', '.join(sorted(wide))}]\nservices: {{x: {{image: i}}}}"
    assert "more than 32 Compose files" in refused(wide)
    deep = {f"{number}.yml": f"include: [{number + 1}.yml]" for number in range(40)}
    assert "included 8 files deep" in refused(deep, main="0.yml")
    assert "f.yml:1:11: include[0]: cannot read no.yml: No such file or directory" in refused(
        {"f.yml": "include: [no.yml]"}
    )
    assert "the key 'path' is missing" in refused({"f.yml": "include: [{env_file: x}]"})


def test_services_with_profiles_are_there_on_request() -> None:
    files = {
        "f.yml": "services: {web: {image: i}, debug: {image: i, profiles: [dev, test]}, load: {image: i, profiles: [test]}}"
    }
    assert list(document(files)["services"]) == ["web"]
    assert list(document(files, profiles=("dev",))["services"]) == ["web", "debug"]
    assert list(document(files, profiles=("*",))["services"]) == ["web", "debug", "load"]
    assert loaded(files).warnings == ()
    assert "none of them was asked for; use --profile" in refused({"f.yml": "services: {a: {image: i, profiles: [x]}}"})


def test_extending_is_bounded() -> None:
    values = ", ".join(f"V{number}: x" for number in range(20_000))
    copies = "".join(f"  s{number}: {{extends: base}}\n" for number in range(1500))
    assert "more than 50000 values" in refused(
        {"f.yml": f"services:\n  base: {{image: i, environment: {{{values}}}}}\n{copies}"}
    )
    chain = "".join(f"  s{number}: {{extends: s{number + 1}}}\n" for number in range(1500))
    assert "extended 32 services deep" in refused({"f.yml": f"services:\n{chain}  s1500: {{image: i}}\n"})


def test_included_files_may_share_a_third_and_not_contradict_each_other() -> None:
    files = {
        "f.yml": "include: [a.yml, b.yml]\nservices: {web: {image: i}}",
        "a.yml": "include: [c.yml]",
        "b.yml": "include: [c.yml]",
        "c.yml": "services: {db: {image: i}}",
    }
    assert set(document(files)["services"]) == {"web", "db"}
    files["b.yml"] = "services: {db: {image: other}}"
    assert refused(files) == "b.yml:1:12: services.db: is defined differently at c.yml:1:12, which is included too"
