"""What somebody sent us to run. It does its job, and tries a few things that are none of its business.

Nothing here is written for Understudy: it reads a URL through the proxy that its environment names, as any program
does, and writes a file where it stands.
"""

import json
import os
import socket
import urllib.request


def tried(what):
    try:
        return f"it worked: {what()!r:.60}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def connected(address):
    with socket.create_connection(address, timeout=2):
        return "connected"


with urllib.request.urlopen(f"http://{source}/prices.json", timeout=10) as answer:
    prices = json.load(answer)

with open("report.csv", "w") as report:
    for name, price in sorted(prices.items()):
        report.write(f"{name},{price}\n")

host, _, port = source.partition(":")
mischief = {
    "read the password file": tried(lambda: open("/etc/passwd").read()),
    "read its environment for a token": tried(lambda: os.environ["API_TOKEN"]),
    "read another process's environment": tried(lambda: open(f"/proc/{os.getppid()}/environ").read()),
    "go around the proxy": tried(lambda: connected((host, int(port)))),
    "reach the cloud's metadata": tried(lambda: urllib.request.urlopen("http://169.254.169.254/", timeout=5).read()),
    "reach another port of the same host": tried(
        lambda: urllib.request.urlopen(f"http://{host}:{int(port) + 1}/", timeout=5).read()
    ),
}

result = {"total": sum(prices.values()), "mischief": mischief}
