"""Servers on loopback that a proxy connects to: they keep what they were sent, and answer what they are told to."""

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"


@dataclass
class Upstream:
    """Keeps every request, whole; answers all alike."""

    port: int
    answer: bytes = OK
    heard: list[bytes] = field(default_factory=list)
    echo: bool = False
    """Answer with what was asked, as some servers do for debugging."""
    answering: list[threading.Thread] = field(default_factory=list)

    def settle(self) -> None:
        """Returns when all that was connected before has been heard: connections are taken up in turn."""
        with socket.create_connection(("127.0.0.1", self.port), 20) as last:
            last.shutdown(socket.SHUT_WR)
            last.recv(1)
        for each in list(self.answering):
            each.join(30)


@contextlib.contextmanager
def upstream(answer: bytes = OK, *, echo: bool = False, tls: ssl.SSLContext | None = None) -> Iterator[Upstream]:
    """Serves HTTP, one request a connection, until the end."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        served = Upstream(listener.getsockname()[1], answer, echo=echo)

        def serve() -> None:
            while True:
                try:
                    client = listener.accept()[0]
                except OSError:
                    return
                served.answering.append(threading.Thread(target=_one, args=(client, served, tls), daemon=True))
                served.answering[-1].start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield served
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def _one(client: socket.socket, served: Upstream, tls: ssl.SSLContext | None) -> None:
    with contextlib.suppress(OSError), client:
        client.settimeout(20)
        spoken = tls.wrap_socket(client, server_side=True) if tls else client
        with spoken:
            request = _request(spoken)
            if not request:
                return
            served.heard.append(request)
            if served.echo:
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(request)}\r\nConnection: close\r\n\r\n"
                spoken.sendall(head.encode() + request)
            else:
                spoken.sendall(served.answer)


def _request(client: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(65536)
        if not more:
            return data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lowered = head.lower()
    while b"transfer-encoding: chunked" in lowered and not body.endswith(b"0\r\n\r\n"):
        body += _more(client)
    if b"content-length: " in lowered:
        wanted = int(lowered.split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(body) < wanted:
            body += _more(client)
    return head + b"\r\n\r\n" + body


def _more(client: socket.socket) -> bytes:
    """Raises ConnectionError where a request ends early: who waited on for the rest would turn for ever."""
    more = client.recv(65536)
    if not more:
        raise ConnectionError("the request is cut")
    return more


def certificate(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate for a name, signed by itself: the file that says so, and a server's context with it."""
    key, cert = folder / f"{name}.key", folder / f"{name}.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    subprocess.run([*made, "-keyout", str(key), "-out", str(cert), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context
