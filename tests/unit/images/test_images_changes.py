"""Dockerfile-like lines that change a configuration."""

from typing import Any

import pytest

from fleet.errors import UserError
from fleet.images.changes import apply_changes


@pytest.mark.parametrize(
    ("lines", "result"),
    [
        (['CMD ["a", "b"]'], {"Cmd": ["a", "b"]}),
        (["CMD a b"], {"Cmd": ["/bin/sh", "-c", "a b"]}),
        (["cmd [ -f x ] && y"], {"Cmd": ["/bin/sh", "-c", "[ -f x ] && y"]}),
        (['SHELL ["/bin/ash", "-c"]', "CMD a"], {"Shell": ["/bin/ash", "-c"], "Cmd": ["/bin/ash", "-c", "a"]}),
        (['ENTRYPOINT ["/init"]'], {"Entrypoint": ["/init"]}),
        (["ENV A=1 B='x y'", "ENV A=2"], {"Env": ["B=x y", "A=2"]}),
        (["ENV A the rest"], {"Env": ["A=the rest"]}),
        (["LABEL a=1 b.c='d e'", "LABEL a=2"], {"Labels": {"a": "2", "b.c": "d e"}}),
        (["EXPOSE 80 53/udp"], {"ExposedPorts": {"80/tcp": {}, "53/udp": {}}}),
        (["EXPOSE 8000-8002"], {"ExposedPorts": {"8000/tcp": {}, "8001/tcp": {}, "8002/tcp": {}}}),
        (["VOLUME /a /b", 'VOLUME ["/c d"]'], {"Volumes": {"/a": {}, "/b": {}, "/c d": {}}}),
        (["WORKDIR /a", "WORKDIR b/../c"], {"WorkingDir": "/a/c"}),
        (["USER 33:33"], {"User": "33:33"}),
        (["STOPSIGNAL SIGQUIT"], {"StopSignal": "SIGQUIT"}),
        (["ONBUILD RUN x"], {"OnBuild": ["RUN x"]}),
        (["HEALTHCHECK NONE"], {"Healthcheck": {"Test": ["NONE"]}}),
        (
            ["HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD wget -q x"],
            {
                "Healthcheck": {
                    "Interval": 90_000_000_000,
                    "Timeout": 500_000_000,
                    "Retries": 3,
                    "Test": ["CMD-SHELL", "wget -q x"],
                }
            },
        ),
        (['HEALTHCHECK CMD ["a"]'], {"Healthcheck": {"Test": ["CMD", "a"]}}),
    ],
)
def test_lines_change_the_configuration(lines: list[str], result: dict[str, Any]) -> None:
    assert apply_changes({}, lines) == result


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("RUN x", "RUN is not one of"),
        ("", "is not one of"),
        ("CMD", "needs an argument"),
        ("CMD [1]", "array of strings"),
        ("ENV A", "NAME=VALUE"),
        ("ENV A=1 B", "NAME=VALUE"),
        ("LABEL 'a=1", "No closing quotation"),
        ("EXPOSE 0", "not a port"),
        ("EXPOSE 70000", "not a port"),
        ("EXPOSE 9-8", "not a port"),
        ("EXPOSE 80/icmp", "not a port"),
        ("USER a b", "exactly one user"),
        ("STOPSIGNAL kill -9", "not a signal"),
        ("SHELL /bin/sh", "must be a JSON array"),
        ("HEALTHCHECK --interval=fast CMD x", "not a duration"),
        ("HEALTHCHECK --often CMD x", "is not one of"),
        ("HEALTHCHECK x", "must be NONE"),
    ],
)
def test_wrong_lines_are_quoted_with_the_reason(line: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        apply_changes({}, [line])
    assert repr(line) in str(caught.value)


def test_the_configuration_given_is_left_alone() -> None:
    config = {"Env": ["A=1"]}
    assert apply_changes(config, ["ENV B=2"]) == {"Env": ["A=1", "B=2"]}
    assert config == {"Env": ["A=1"]}
