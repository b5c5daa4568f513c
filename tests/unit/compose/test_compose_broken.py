"""Files that are broken in the ways files are: each is answered with one sentence that begins with file, line and column."""

from __future__ import annotations

import re

import pytest

from fleet import errors
from fleet.compose.convert import Sources, convert
from fleet.compose.load import load
from fleet.model.names import data_name_fault, network_name_fault, service_name_fault

WEB = "services:\n  web:\n    image: x\n"
LONG = "a" * 70
BOMB = "".join(f"{to}: &{to} [{','.join([f'*{of}'] * 10)}]\n" for of, to in zip("abcdefg", "bcdefgh", strict=True))


def sentence(text: str) -> str:
    """What deploying the file is answered with."""

    def read_file(_path: str, _size_max: int) -> bytes:
        raise FileNotFoundError(2, "No such file or directory")

    with pytest.raises(errors.UserError) as caught:
        loaded = load([("f.yml", text)], environment={})
        convert(loaded.document, stack="s", sources=Sources(environment={}, directory="/d", read_file=read_file))
    said = str(caught.value)
    assert "\n" not in said and len(said) < 1000
    return said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("services:\n\tweb: {image: x}\n", "2:1: not valid YAML: a tab is here where spaces belong"),
        ("services:\n  web:\n    image: x\n\t tty: true\n", "4:1: not valid YAML: a tab is here"),
        (f"{WEB}    image: y\n", "4:5: services.web: the key 'image' was given at f.yml:3:5 already"),
        ("services:\n  web: {image: x}\n  web: {image: y}\n", "3:3: services: the key 'web' was given at f.yml:2:3"),
        (f"{WEB}    environment: 5\n", "4:18: services.web.environment: expected a mapping, got an integer '5'"),
        (f"{WEB}    deploy: [a]\n", "4:5: services.web.deploy: expected a mapping, got a list"),
        (f"{WEB}    deploy: {{replicas: 1.5}}\n", "4:24: services.web.deploy.replicas: expected a whole number"),
        (f"{WEB}    tty: maybe\n", "4:10: services.web.tty: expected true or false, got a string 'maybe'"),
        (f"{WEB}    environment: {{'A=B': 1}}\n", "4:26: services.web.environment.A=B: the name of a variable"),
        (f"{WEB}    environment: ['=1']\n", "4:19: services.web.environment[0]: a variable has no name"),
        ("services:\n  web: nginx\n", "2:8: services.web: expected a mapping, got a string 'nginx'"),
        (f"a: &a [{','.join('xxxxxxxxxx')}]\n{BOMB}{WEB}", "1:24: more than 50000 values"),
        ("services:\n  web: {image: x, extends: {service: web}}\n", "2:19: services.web.extends: web extends itself"),
        (
            "services:\n  a: {extends: {service: b}}\n  b: {extends: {service: a}}\n",
            "2:7: services.a.extends: a extends itself, by way of a, b",
        ),
        (
            "services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x, depends_on: [a]}\n",
            "2:17: services.a.depends_on: the services wait for each other: a -> b -> a",
        ),
        (
            f"{WEB}    stop_grace_period: 10 parsecs\n",
            "4:24: services.web.stop_grace_period: '10 parsecs' is not a duration",
        ),
        (
            f"{WEB}    deploy: {{resources: {{limits: {{memory: 1 x}}}}}}\n",
            "4:43: services.web.deploy.resources.limits.memory:",
        ),
        (
            f"{WEB}    deploy: {{resources: {{limits: {{cpus: '-1'}}}}}}\n",
            "4:41: services.web.deploy.resources.limits.cpus:",
        ),
        (f"{WEB}    ports: ['99999:80']\n", "4:13: services.web.ports[0]: '99999:80': '99999' is not a port"),
        (f"services:\n  {LONG}: {{image: x}}\n", f"2:3: services.{LONG}: its full name is 's_{LONG}': name must be 63"),
        ("services:\n  wéb: {image: x}\n", "2:3: services.wéb: its full name is 's_wéb': name must be valid as a"),
        (
            f"{WEB}secrets:\n  {LONG}: {{external: true}}\n",
            f"5:3: secrets.{LONG}: its full name is '{LONG}': invalid name",
        ),
        (f"{WEB}networks:\n  n: {{name: a b}}\n", "5:3: networks.n: its full name is 'a b': invalid network name"),
        (f"{WEB}    im\U0001f600: x\n", "4:5: services.web: unknown key 'im\U0001f600'; known are"),
        ('services:\n  web: {image: "x\x01"}\n', "2:18: not valid YAML: the character U+0001"),
        ('services:\n  web: {image: "x\\0"}\n', "2:16: services.web.image: the character U+0000 cannot be part"),
        ("services:\n  web: {image: x\n", "3:1: not valid YAML: while parsing a flow mapping, expected ',' or '}'"),
        ("services:\n  web: {image: 'x}\n", "3:1: not valid YAML: while scanning a quoted scalar"),
        ("services:\n  web: *nope\n", "2:8: not valid YAML: found undefined alias 'nope'"),
        (f"{WEB}---\n{WEB}", "4:1: not valid YAML: expected a single document"),
        ("services:\r\n  web:\r\n    imag: x\r\n", "3:5: services.web: unknown key 'imag'; did you mean 'image'?"),
        (f"{WEB}    depends-on: [a]\n", "4:5: services.web: unknown key 'depends-on'; did you mean 'depends_on'?"),
        (
            f"{WEB}    networks: [frnt]\nnetworks: {{front: {{}}}}\n",
            "4:5: services.web.networks: the network 'frnt' is not",
        ),
        ("service: {}\n", "1:1: the top level: unknown key 'service'; did you mean 'services'?"),
    ],
)
def test_what_is_broken_is_said_with_file_line_and_column(text: str, says: str) -> None:
    assert sentence(text).startswith(f"f.yml:{says}")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (f"{WEB}    networks: [frnt]\nnetworks: {{front: {{}}}}\n", "front"),
        (f"{WEB}    volumes: ['dta:/d']\nvolumes: {{data: {{}}}}\n", "data"),
        (f"{WEB}    configs: [pge]\nconfigs: {{page: {{external: true}}}}\n", "page"),
        (f"{WEB}    depends_on: [datbase]\n  database: {{image: x}}\n", "database"),
        ("services:\n  web: {extends: {service: bse}}\n  base: {image: x}\n", "base"),
        (f"{WEB}    depends_on: {{db: {{condition: service_helthy}}}}\n  db: {{image: x}}\n", "service_healthy"),
    ],
)
def test_the_nearest_name_is_suggested(text: str, meant: str) -> None:
    assert sentence(text).endswith(f"; did you mean {meant!r}?")


def test_ten_megabytes_are_not_read() -> None:
    assert sentence("x" * (10 << 20)) == "f.yml: 10485760 characters; a Compose file has at most 1048576"


def test_every_broken_file_names_a_place() -> None:
    for text in ("- x\n", "services: [web]\n", "%YAML 9.9\n---\n", "? [a]\n: b\n", "services:\n  web:\n", "\x00"):
        assert re.match(r"f\.yml:\d+:\d+: ", sentence(text)), text


@pytest.mark.parametrize("fault_of", [service_name_fault, data_name_fault, network_name_fault])
def test_a_name_is_judged_in_no_time_whatever_it_is(fault_of) -> None:
    """A pattern that tries each way to part a name hangs on sixty letters and a mark."""
    assert fault_of("a" * 61 + "!")
    assert fault_of("a-_" * 20 + "!")
    assert fault_of("") and fault_of("-a") and fault_of("é")
    assert not fault_of("a") and not fault_of("a-b_c") and not fault_of("a--b")
