"""What a tool with network tries: through its proxy, and past it. Carried into a sandbox by value."""

import errno
import socket
import struct
import time
import urllib.error
import urllib.request
from typing import Any

from escape.attempts import stopped


def asks(url: str, fields: dict[str, str] | None = None) -> list[Any]:
    """Status and body, as urllib finds its way."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=fields or {}), timeout=10) as answer:
            return [answer.status, answer.read().decode()]
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode()]


def says(text: str) -> str:
    """To the proxy, byte by byte as it is told; what comes back."""
    with socket.create_connection(("127.0.0.1", 3128), timeout=10) as proxy:
        proxy.sendall(text.encode("latin-1"))
        data = b""
        while more := proxy.recv(65536):
            data += more
    return data.decode("latin-1")


def tunnels(port: int) -> str:
    """What a server says through CONNECT."""
    with socket.create_connection(("127.0.0.1", 3128), timeout=10) as proxy:
        proxy.sendall(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode())
        head = proxy.recv(65536).decode()
        proxy.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        return head + proxy.recv(65536).decode()


def direct(places: list[tuple[str, int]]) -> dict[str, str]:
    def connect(place: tuple[str, int]) -> None:
        with socket.socket() as client:
            client.settimeout(3)
            client.connect(place)

    return {f"{host}:{port}": stopped(lambda place=(host, port): connect(place)) for host, port in places}


def proxy_port_taken() -> str:
    """Listen where the proxy does: with its port reused, too."""

    def take() -> None:
        with socket.socket() as mine:
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            mine.bind(("127.0.0.1", 3128))
            mine.listen()

    return stopped(take)


def own_server() -> str:
    """A server of the tool's own, which only it can reach."""
    with socket.create_server(("127.0.0.1", 8000)) as mine, socket.create_connection(("127.0.0.1", 8000)) as client:
        client.sendall(b"x")
        return mine.accept()[0].recv(1).decode()


def waits_at(port: int, seconds: float) -> str:
    """Listens, for whoever comes."""
    with socket.create_server(("0.0.0.0", port)) as mine:
        mine.settimeout(seconds)
        try:
            mine.accept()
        except TimeoutError:
            return "nobody"
    return "somebody"


def knocks(port: int, seconds: float) -> list[str]:
    """At another call's port, as long as that may be there."""
    until, found = time.monotonic() + seconds, set()
    while time.monotonic() < until:
        found.add(direct([("127.0.0.1", port)])[f"127.0.0.1:{port}"])
        time.sleep(0.02)
    return sorted(found)


def changes_interface() -> dict[str, str]:
    """Give loopback another address, or take it down: with no right to."""
    import fcntl

    def ioctl(request: int, tail: bytes) -> str:
        with socket.socket() as any_socket:
            return stopped(lambda: fcntl.ioctl(any_socket, request, struct.pack("=16s16s", b"lo", tail)))

    return {"flags": ioctl(0x8914, b"\0\0"), "address": ioctl(0x8916, struct.pack("=HH4s", 2, 0, b"\x0a\x00\x00\x01"))}


def option(level: int, name: int) -> str:
    """Set an option that redirects what is sent (SO_BINDTODEVICE, SO_MARK, IP_TRANSPARENT)."""
    with socket.socket() as any_socket:
        return stopped(lambda: any_socket.setsockopt(level, name, 1 if name != 25 else b"eth0\0"))


def keeps_asking(url: str) -> str:
    """In a process that should outlive the call."""
    import os

    if os.fork() == 0:
        os.setsid()
        while True:
            try:
                asks(url)
            except OSError as error:
                if error.errno == errno.ECONNREFUSED:
                    continue
    return "left"
