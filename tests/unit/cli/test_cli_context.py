"""Contexts: what is kept where, which one is used, what Docker's client makes of them, and hostile archives."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet.cli.context_archive import ARCHIVE_MAX, PEM_MAX
from fleet.cli.main import run
from tests.support.fake_engine import FakeEngine

PEM = b"-----BEGIN CERTIFICATE-----\n"
META = {"Name": "x", "Metadata": {}, "Endpoints": {"docker": {"Host": "tcp://m1:2376", "SkipTLSVerify": False}}}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def ctx(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``fleet context ...`` of somebody whose home is ``home``."""

    def call(*arguments: str, **environment: str) -> tuple[int, str, str]:
        code = run(["context", *arguments], {"HOME": str(home), **environment})
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def pems(home: Path) -> dict[str, Path]:
    """A certificate authority with a certificate and its key, as files."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    texts = {
        "cert": certificate.public_bytes(serialization.Encoding.PEM),
        "ca": certificate.public_bytes(serialization.Encoding.PEM),
        "key": key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    }
    paths = {part: home / f"given-{part}.pem" for part in texts}
    for part, text in texts.items():
        paths[part].write_bytes(text)
    return paths


def endpoint(pems: dict[str, Path], host: str = "tcp://localhost:2376") -> str:
    return ",".join([f"host={host}", *(f"{part}={path}" for part, path in pems.items())])


# --- the store --------------------------------------------------------------------------------------------------------


def test_created_context_is_listed_shown_used_and_removed(ctx: Any) -> None:
    assert ctx("create", "prod", "--docker", "host=tcp://m1:2375", "--description", "the big one")[:2] == (0, "prod\n")
    assert ctx("show")[1] == "default\n"
    assert ctx("use", "prod")[:2] == (0, "prod\n")
    assert ctx("show")[1] == "prod\n"
    assert ctx("ls")[1].splitlines() == [
        "NAME      DESCRIPTION                              DOCKER ENDPOINT                ERROR",
        "default   Current FLEET_HOST based configuration   unix:///run/fleet/fleet.sock",
        "prod *    the big one                              tcp://m1:2375",
    ]
    code, out, err = ctx("rm", "prod")
    assert (code, out) == (1, "")
    assert "is the current one" in err
    assert ctx("rm", "-f", "prod")[:2] == (0, "prod\n")
    assert ctx("show")[1] == "default\n"
    assert ctx("ls", "-q")[1] == "default\n"


def test_certificates_are_copied_where_only_their_owner_reads(ctx: Any, home: Path, pems: dict[str, Path]) -> None:
    assert ctx("create", "prod", "--docker", endpoint(pems))[0] == 0
    for path in pems.values():
        path.unlink()
    store = home / ".config" / "fleet"
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in [store, *store.rglob("*")]}
    assert {modes[path] for path in modes if path.is_dir()} == {0o700}
    assert {modes[path] for path in modes if path.is_file()} == {0o600}
    (shown,) = json.loads(ctx("inspect", "prod")[1])
    assert shown["TLSMaterial"] == {"docker": ["ca.pem", "cert.pem", "key.pem"]}
    assert shown["Endpoints"] == {"docker": {"Host": "tcp://localhost:2376", "SkipTLSVerify": False}}
    assert (Path(shown["Storage"]["TLSPath"]) / "docker" / "key.pem").is_file()
    assert ctx("rm", "prod")[0] == 0
    assert not [path for path in store.rglob("*") if path.is_file()]


def test_update_replaces_the_endpoint_or_the_description_alone(ctx: Any, pems: dict[str, Path]) -> None:
    ctx("create", "prod", "--docker", endpoint(pems), "--description", "old")
    assert ctx("update", "prod", "--description", "new")[0] == 0
    (shown,) = json.loads(ctx("inspect", "prod")[1])
    assert (shown["Metadata"], len(shown["TLSMaterial"]["docker"])) == ({"Description": "new"}, 3)
    assert ctx("update", "prod", "--docker", "host=m2:2375")[0] == 0
    (shown,) = json.loads(ctx("inspect", "prod")[1])
    assert (shown["Metadata"], shown["TLSMaterial"]) == ({"Description": "new"}, {})
    assert shown["Endpoints"]["docker"]["Host"] == "tcp://m2:2375"


def test_context_is_copied_from_another_and_from_the_one_in_use(ctx: Any, pems: dict[str, Path]) -> None:
    ctx("create", "one", "--docker", endpoint(pems), "--description", "d")
    assert ctx("create", "two", "--from", "one")[0] == 0
    assert ctx("create", "three", "--docker", "from=one")[0] == 0
    assert ctx("create", "four", FLEET_HOST="tcp://elsewhere:2375")[0] == 0
    one, two, three, four = json.loads(ctx("inspect", "one", "two", "three", "four")[1])
    assert one["Endpoints"] == two["Endpoints"] == three["Endpoints"]
    assert one["TLSMaterial"] == two["TLSMaterial"] == three["TLSMaterial"]
    assert (two["Metadata"], three["Metadata"]) == ({"Description": "d"}, {})
    assert four["Endpoints"]["docker"]["Host"] == "tcp://elsewhere:2375"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("create", "default", "--docker", "host=a"), 2, "reserved"),
        (("create", "../x", "--docker", "host=a"), 2, "invalid"),
        (("create", "xx", "--docker", "host=ssh://a"), 2, "tcp://HOST:PORT"),
        (("create", "xx", "--docker", "host=tcp://a:99999999"), 2, "tcp://HOST:PORT"),
        (("create", "xx", "--docker", "ca=/x"), 2, "host=URL"),
        (("create", "xx", "--docker", "hots=a"), 2, "hots"),
        (("create", "xx", "--docker", "host=tcp://a:1,ca=/nonexistent"), 2, "/nonexistent"),
        (("create", "xx", "--docker", "host=tcp://a:1,cert=/dev/null"), 2, "key=FILE"),
        (("create", "xx", "--docker", "host=tcp://a:1,ca=/dev/null"), 2, "/dev/null"),
        (("create", "xx", "--docker", "from=one,host=tcp://a:1"), 2, "whole endpoint"),
        (("create", "xx", "--from", "nope"), 1, "not found"),
        (("update", "nope", "--description", "x"), 1, "not found"),
        (("use", "nope"), 1, "not found"),
        (("rm", "nope"), 1, "not found"),
        (("rm", "default"), 1, "reserved"),
        (("inspect", "nope"), 1, "not found"),
        (("export", "nope"), 1, "not found"),
        (("import", "xx", "/nonexistent"), 2, "/nonexistent"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(ctx: Any, arguments: tuple[str, ...], code: int, words: str) -> None:
    found, _, err = ctx(*arguments)
    assert (found, err.startswith("Error: ")) == (code, True), err
    assert words in err.splitlines()[0]


# --- which daemon is asked --------------------------------------------------------------------------------------------


def test_order_of_flag_host_variable_context_variable_current(
    ctx: Any, home: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.on("GET", "/services", [])
    ctx("create", "good", "--docker", f"host={engine.url}")
    ctx("create", "bad", "--docker", "host=unix:///nonexistent/bad")

    def ls(*flags: str, **environment: str) -> int:
        return run([*flags, "service", "ls", "-q"], {"HOME": str(home), **environment})

    assert ls("--context", "good", FLEET_HOST="unix:///nonexistent/x") == 0
    assert ls("-c", "good", DOCKER_CONTEXT="bad") == 0
    assert ls("-H", engine.url, FLEET_CONTEXT="bad") == 0
    assert ls(DOCKER_HOST=engine.url, FLEET_CONTEXT="bad") == 0
    assert ls(FLEET_CONTEXT="good", DOCKER_CONTEXT="bad") == 0
    assert ls(DOCKER_CONTEXT="good") == 0
    ctx("use", "good")
    assert ls() == 0
    assert ls(FLEET_CONTEXT="bad") == 1
    assert ls(FLEET_CONTEXT="default") == 1  # no daemon at the default place in this test
    assert ls(FLEET_CONTEXT="gone") == 1
    assert "context 'gone' not found" in capsys.readouterr().err
    assert ls("-H", engine.url, "--context", "good") == 2


def test_current_context_that_is_gone_is_told_and_can_be_left(ctx: Any, home: Path) -> None:
    ctx("create", "prod", "--docker", "host=tcp://m1:2375")
    ctx("use", "prod")
    shutil.rmtree(home / ".config" / "fleet" / "contexts")
    assert run(["service", "ls"], {"HOME": str(home)}) == 1
    assert "not there" in ctx("ls")[2]
    assert ctx("use", "default")[0] == 0
    assert ctx("show")[1] == "default\n"


def test_tls_flags_beside_a_context_are_refused(ctx: Any, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ctx("create", "prod", "--docker", "host=tcp://m1:2375")
    assert run(["--context", "prod", "--tlsverify", "info"], {"HOME": str(home)}) == 2
    assert "TLS settings of its own" in capsys.readouterr().err


def test_context_verifies_the_daemon_with_its_own_certificates(ctx: Any, home: Path, pems: dict[str, Path]) -> None:
    """A TLS server that asks for the client's certificate; another authority's context is refused."""
    import ssl
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_: object) -> None:
            pass

    class Server(HTTPServer):
        def handle_error(self, *_: object) -> None:  # a client that does not trust it hangs up
            pass

    server = Server(("127.0.0.1", 0), Handler)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pems["cert"], pems["key"])
    tls.load_verify_locations(pems["ca"])
    tls.verify_mode = ssl.CERT_REQUIRED
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        host = f"tcp://localhost:{server.server_port}"
        ctx("create", "good", "--docker", endpoint(pems, host))
        client = {part: pems[part] for part in ("cert", "key")}
        ctx("create", "stranger", "--docker", endpoint(client, host))  # the system's authorities do not know it
        ctx("create", "careless", "--docker", endpoint(client, host) + ",skip-tls-verify=true")
        codes = {
            name: run(["--context", name, "service", "ls", "-q"], {"HOME": str(home)})
            for name in ("good", "stranger", "careless")
        }
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert codes == {"good": 0, "stranger": 1, "careless": 0}


# --- Docker's contexts ------------------------------------------------------------------------------------------------


@pytest.fixture
def docker(home: Path) -> Callable[..., str]:
    if shutil.which("docker") is None:
        pytest.skip("Docker's client is not installed")

    def call(*arguments: str) -> str:
        return subprocess.run(
            ["docker", "context", *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            cwd=home,
        ).stdout

    return call


def test_contexts_of_dockers_client_are_used_but_not_touched(
    ctx: Any, home: Path, engine: FakeEngine, docker: Callable[..., str]
) -> None:
    engine.on("GET", "/services", [])
    docker("create", "theirs", "--docker", f"host={engine.url}", "--description", "of docker")
    assert run(["--context", "theirs", "service", "ls", "-q"], {"HOME": str(home)}) == 0
    assert (
        ctx("ls", "--format", "{{.Name}} {{.Source}} {{.Description}}")[1].splitlines()[1] == "theirs docker of docker"
    )
    for arguments in (("rm", "theirs"), ("update", "theirs", "--description", "x")):
        code, _, err = ctx(*arguments)
        assert (code != 0, "belongs to Docker" in err) == (True, True)
    ctx("create", "theirs", "--docker", "host=unix:///nonexistent/own")  # fleet's goes before
    assert run(["--context", "theirs", "service", "ls", "-q"], {"HOME": str(home)}) == 1


def test_archives_go_both_ways_between_the_two_clients(
    ctx: Any, home: Path, pems: dict[str, Path], docker: Callable[..., str]
) -> None:
    docker("create", "theirs", "--docker", endpoint(pems), "--description", "d")
    docker("export", "theirs", str(home / "theirs.tar"))
    assert ctx("import", "mine", str(home / "theirs.tar"))[:2] == (0, "mine\n")
    (mine,) = json.loads(ctx("inspect", "mine")[1])
    (theirs,) = json.loads(docker("inspect", "theirs"))
    for key in ("Metadata", "Endpoints", "TLSMaterial"):
        assert {k: sorted(v) if isinstance(v, list) else v for k, v in mine[key].items()} == theirs[key]
    assert ctx("export", "mine", str(home / "mine.tar"))[0] == 0
    assert stat.S_IMODE((home / "mine.tar").stat().st_mode) == 0o600
    docker("import", "back", str(home / "mine.tar"))
    (back,) = json.loads(docker("inspect", "back"))
    assert (back["Endpoints"], back["TLSMaterial"]) == (theirs["Endpoints"], theirs["TLSMaterial"])
    key = next((Path(back["Storage"]["TLSPath"])).rglob("key.pem"))
    assert key.read_bytes() == pems["key"].read_bytes()


# --- hostile archives -------------------------------------------------------------------------------------------------


def archive(*members: tuple[str, bytes] | tarfile.TarInfo, form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                entry = tarfile.TarInfo(member[0])
                entry.size = len(member[1])
                tar.addfile(entry, io.BytesIO(member[1]))
    return buffer.getvalue()


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def meta(**changes: Any) -> tuple[str, bytes]:
    return "meta.json", json.dumps({**META, **changes}).encode()


HOSTILE = {
    "parent": archive(meta(), ("../../escaped", b"x")),
    "parent inside": archive(meta(), ("tls/docker/../../../escaped", b"x")),
    "absolute": archive(meta(), ("/tmp/escaped-context", b"x")),
    "symlink": archive(meta(), link("tls/docker/ca.pem", tarfile.SYMTYPE, "/etc/passwd")),
    "hard link": archive(meta(), link("tls/docker/ca.pem", tarfile.LNKTYPE, "/etc/passwd")),
    "linked folder": archive(meta(), link("tls/docker", tarfile.SYMTYPE, "/etc"), ("tls/docker/ca.pem", b"x")),
    "device": archive(meta(), link("tls/docker/ca.pem", tarfile.CHRTYPE, "")),
    "pipe": archive(link("meta.json", tarfile.FIFOTYPE, "")),
    "unknown file": archive(meta(), ("tls/docker/other.pem", b"x")),
    "twice": archive(meta(), meta()),
    "large key": archive(meta(), ("tls/docker/key.pem", bytes(PEM_MAX + 1))),
    "large meta": archive(("meta.json", b" " * 100_000 + meta()[1])),
    "many folders": archive(*[link("tls", tarfile.DIRTYPE, "") for _ in range(100)], meta()),
    "large": bytes(ARCHIVE_MAX + 1),
    "compressed": __import__("gzip").compress(archive(meta())),
    "nothing": b"",
    "no tar": b"hello" * 1000,
    "cut off": archive(meta(), ("tls/docker/ca.pem", b"x" * 4000))[:2000],
    "cut off a little": archive(meta(), ("tls/docker/ca.pem", b"x" * 600))[: 512 * 4 + 50],
    "no meta": archive(("tls/docker/ca.pem", PEM)),
    "no json": archive(("meta.json", b"{")),
    "deep json": archive(("meta.json", b"[" * 60_000)),
    "a list": archive(("meta.json", b"[]")),
    "no endpoint": archive(meta(Endpoints={})),
    "endpoint no text": archive(meta(Endpoints={"docker": {"Host": 7}})),
    "unknown scheme": archive(meta(Endpoints={"docker": {"Host": "file:///etc/passwd"}})),
    "escape in the host": archive(meta(Endpoints={"docker": {"Host": "tcp://\x1b[2Jm1:1"}})),
    "escape in the text": archive(meta(Metadata={"Description": "\x1b]0;title\x07"})),
    "metadata a list": archive(meta(Metadata=[1])),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_archive_is_refused_and_leaves_nothing(ctx: Any, home: Path, what: str) -> None:
    folder = home / "in" / "side"
    folder.mkdir(parents=True)
    (folder / "bad.tar").write_bytes(HOSTILE[what])
    before = sorted(home.rglob("*"))
    code, out, err = ctx("import", "xx", str(folder / "bad.tar"))
    assert (code, out) == (2, ""), err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert "\x1b" not in err
    assert sorted(home.rglob("*")) == before
    assert not Path("/tmp/escaped-context").exists()


def test_import_does_not_replace_a_context(ctx: Any, home: Path) -> None:
    (home / "ok.tar").write_bytes(archive(meta()))
    assert ctx("import", "xx", str(home / "ok.tar"))[0] == 0
    code, _, err = ctx("import", "xx", str(home / "ok.tar"))
    assert (code, "already exists" in err) == (1, True)
