"""Servers on this machine that speak as the web's do: HTTPS with a certificate of its own, and Google's storage."""

from __future__ import annotations

import datetime
import functools
import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HOST = "127.0.0.1"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a directory, and says nothing of it."""

    def log_message(self, *arguments: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Bears clients that hang up, as those do that do not trust a certificate."""

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def serving(
    handler: Callable[..., http.server.BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None
) -> Iterator[int]:
    """The server's port, while it runs."""
    with Server((HOST, 0), handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextmanager
def secure_server(directory: Path, secrets: Path) -> Iterator[tuple[str, ssl.SSLContext]]:
    """The URL of a directory behind TLS, and a client's context that trusts its certificate, which no other does."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (secrets / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    (secrets / "key.pem").write_bytes(key.private_bytes(pem, *plain))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(secrets / "certificate.pem", secrets / "key.pem")
    client = ssl.create_default_context(cafile=secrets / "certificate.pem")
    with serving(functools.partial(Quiet, directory=str(directory)), server) as port:
        yield f"https://{HOST}:{port}", client


@contextmanager
def google_storage(objects: dict[str, bytes]) -> Iterator[str]:
    """The address of a server with one bucket's objects, which may change meanwhile.

    It speaks as much of Google's JSON interface as readers need: to list, to describe and to read.
    """

    class Storage(Quiet):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
            bucket, _, rest = parts.path.partition("/b/")[2].partition("/")
            name = unquote(rest.removeprefix("o/"))
            if rest == "o":
                self.answer(json.dumps(self.listed(bucket, **asked)).encode())
            elif not rest.startswith("o/") or name not in objects:
                self.send_error(HTTPStatus.NOT_FOUND)
            elif asked.get("alt") == "media" or "/download/" in parts.path:
                self.answer(objects[name])
            else:
                self.answer(json.dumps(described(bucket, name)).encode())

        def listed(self, bucket: str, prefix: str = "", delimiter: str = "", **_: str) -> dict[str, object]:
            below = [name for name in sorted(objects) if name.startswith(prefix)]
            deeper = [name for name in below if delimiter and delimiter in name[len(prefix) :]]
            prefixes = {prefix + name[len(prefix) :].partition(delimiter)[0] + delimiter for name in deeper}
            items = [described(bucket, name) for name in below if name not in deeper]
            return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

        def answer(self, content: bytes) -> None:
            first, last = 0, len(content)
            if span := self.headers.get("Range"):
                first, last = (int(part) for part in span.removeprefix("bytes=").split("-"))
                last = min(last + 1, len(content))
            self.send_response(HTTPStatus.PARTIAL_CONTENT if span else HTTPStatus.OK)
            self.send_header("Content-Length", str(last - first))
            self.send_header("Content-Type", "application/octet-stream")
            self.end_headers()
            self.wfile.write(content[first:last])

    def described(bucket: str, name: str) -> dict[str, str]:
        content = objects[name]
        version = str(hash(content) % 2**60)
        when = "2026-01-01T00:00:00.000Z"
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(content)),
            "generation": version,
            "etag": version,
            "timeCreated": when,
            "updated": when,
        }

    with serving(Storage) as port:
        yield f"http://{HOST}:{port}"
