"""Names as Docker reads them."""

import pytest

from fleet.errors import UserError
from fleet.images.reference import parse_reference

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "complete", "familiar"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("team/app:v1", "docker.io/team/app:v1", "team/app:v1"),
        ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest"),
        ("127.0.0.1:5000/team/app:1", "127.0.0.1:5000/team/app:1", "127.0.0.1:5000/team/app:1"),
        ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
        ("registry.example/app", "registry.example/app:latest", "registry.example/app:latest"),
        ("HOST/app", "HOST/app:latest", "HOST/app:latest"),
        ("a__b-c.d--e", "docker.io/library/a__b-c.d--e:latest", "a__b-c.d--e:latest"),
        (f"app@sha256:{HEX}", f"docker.io/library/app@sha256:{HEX}", f"app@sha256:{HEX}"),
        (f"app:1@sha256:{HEX}", f"docker.io/library/app:1@sha256:{HEX}", f"app:1@sha256:{HEX}"),
    ],
)
def test_names_are_completed_and_shortened(text: str, complete: str, familiar: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == complete
    assert reference.familiar == familiar
    assert parse_reference(familiar) == parse_reference(complete) == reference


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("x" * 2000, "longer than"),
        (HEX, "image id"),
        ("Busybox", "must be lowercase"),
        ("team/App", "must be lowercase"),
        ("app:", "not a tag"),
        ("app:-x", "not a tag"),
        ("app:" + "t" * 129, "not a tag"),
        ("app@sha256:abc", "not a digest"),
        (f"app@sha512:{HEX}", "not a digest"),
        (f"app@sha256:{HEX.upper()}", "not a digest"),
        ("a//b", "not a repository name"),
        ("/app", "not a repository name"),
        ("-app", "not a repository name"),
        ("app/", "not a repository name"),
        ("a b", "not a repository name"),
        ("app\n", "not a repository name"),
        ("host:99999999/app", "not a registry"),
        ("ho_st.x/app", "not a registry"),
        ("a" * 300, "more than 255"),
        ("../../etc", "not a registry"),
    ],
)
def test_bad_names_say_which_part_is_wrong(text: str, why: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)^invalid reference format: .*{why}"):
        parse_reference(text)
