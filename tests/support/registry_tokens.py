"""A token service for docker-registry's ``auth: token``: real signed tokens, scopes by a rule, refresh tokens, short lives.

Source: docker/distribution, docs/spec/auth/{token,jwt,oauth}. The registry accepts a token for 60 s beyond its end (its leeway
for clocks), which is taken off here, so that a life of a second is one.
"""

from __future__ import annotations

import base64
import datetime
import json
import secrets
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

__all__ = ["SignedTokens"]

ISSUER, SERVICE = "tokens under test", "registry under test"
_LEEWAY_S = 60


class SignedTokens:
    """``auth`` is the piece of the registry's configuration that trusts it. ``asked``: method, user, scopes of each request."""

    def __init__(
        self,
        scratch: Path,
        *,
        users: dict[str, str],
        allows: Callable[[str, str, str], bool] = lambda _user, _repository, _action: True,
        life_s: float = 300,
        told_life_s: int | None = None,
    ) -> None:
        """``allows(user, repository, action)``; the user is empty for nobody. ``told_life_s``: what ``expires_in`` claims."""
        self._users, self._allows = users, allows
        self._life_s, self._told_life_s = life_s, told_life_s if told_life_s is not None else int(life_s)
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._certificate = self._certify()
        self._refresh: dict[str, str] = {}
        self.asked: list[tuple[str, str, tuple[str, ...]]] = []
        scratch.mkdir(parents=True, exist_ok=True)
        bundle = scratch / "tokens.pem"
        bundle.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_args: Any) -> None:
                pass

            def do_GET(self) -> None:
                owner._by_password(self, parse_qs(urlsplit(self.path).query))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                owner._by_refresh_token(self, parse_qs(body))

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        url = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        self.auth = (
            f"auth: {{token: {{realm: '{url}', service: '{SERVICE}', issuer: '{ISSUER}', rootcertbundle: {bundle}}}}}\n"
        )

    def __enter__(self) -> SignedTokens:
        self._thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _by_password(self, request: BaseHTTPRequestHandler, query: dict[str, list[str]]) -> None:
        said = request.headers.get("Authorization", "").removeprefix("Basic ")
        user, _, password = base64.b64decode(said).decode().partition(":")
        scopes = tuple(query.get("scope", ()))
        self.asked.append(("password" if user else "nobody", user, scopes))
        if user and self._users.get(user) != password:
            _answer(request, 401, {"details": "wrong name or password"})
            return
        more: dict[str, Any] = {}
        if "offline_token" in query:
            more["refresh_token"] = secrets.token_urlsafe()
            self._refresh[more["refresh_token"]] = user
        _answer(request, 200, {"token": self._sign(user, scopes), "expires_in": self._told_life_s, **more})

    def _by_refresh_token(self, request: BaseHTTPRequestHandler, form: dict[str, list[str]]) -> None:
        user = self._refresh.get(form["refresh_token"][0], "")
        scopes = tuple(form.get("scope", [""])[0].split())
        self.asked.append(("refresh", user, scopes))
        if not user or form["grant_type"] != ["refresh_token"] or form["service"] != [SERVICE]:
            _answer(request, 401, {"details": "no such refresh token"})
            return
        _answer(request, 200, {"access_token": self._sign(user, scopes), "expires_in": self._told_life_s})

    def _sign(self, user: str, scopes: tuple[str, ...]) -> str:
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            granted = [action for action in actions.split(",") if self._allows(user, name, action)]
            access.append({"type": kind, "name": name, "actions": granted})
        now = time.time()
        claims = {
            "iss": ISSUER, "sub": user, "aud": SERVICE, "jti": secrets.token_hex(8), "access": access,
            "iat": int(now), "nbf": int(now) - 5, "exp": int(now + self._life_s) - _LEEWAY_S,
        }  # fmt: skip
        chain = base64.b64encode(self._certificate.public_bytes(serialization.Encoding.DER)).decode()
        signed = f"{_packed({'typ': 'JWT', 'alg': 'RS256', 'x5c': [chain]})}.{_packed(claims)}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"

    def _certify(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, ISSUER)])
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )


def _packed(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _answer(request: BaseHTTPRequestHandler, status: int, body: dict[str, Any]) -> None:
    raw = json.dumps(body).encode()
    request.send_response(status)
    request.send_header("Content-Length", str(len(raw)))
    request.end_headers()
    request.wfile.write(raw)
