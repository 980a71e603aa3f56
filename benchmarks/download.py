"""Fetching 1 GB from a server on loopback, its MD5 checked: facedata, curl alone, and curl followed by md5sum.

    python benchmarks/download.py [--folder DIR] [--repeats 5] [--connections 4]

The server is a process of its own that does nothing but sendfile from memory, the same for all; a run to /dev/null
shows what it can do. The disk is synced between the runs, so that nobody pays for the one before; facedata also forces
its own file to the disk before it gives it its name, which curl does not.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from measure import Measured, report, run

OURS, CURL, CURL_MD5 = "facedata", "curl", "curl, then md5sum"
SIZE = 1_000_000_000

CATALOGUE = """
[sets.one]
title = "One file"
status = ["free"]
[[sets.one.sources]]
kind = "http"
url = "{url}"
[[sets.one.downloads]]
name = "fetched"
md5 = "{md5}"
"""


def our_command(folder: Path, url: str, md5: str, connections: int) -> list[str]:
    catalogue = folder / "catalogue.toml"
    catalogue.write_text(CATALOGUE.format(url=url, md5=md5))
    facedata = str(Path(sys.executable).with_name("facedata"))
    words = ["download", "one", "--quiet", "--root", str(folder), "--catalogue", str(catalogue)]
    return [facedata, *words, "--connections", str(connections)]


def serve(path: str) -> None:
    """Give the file to whoever asks, whole or a range of it."""
    size = os.path.getsize(path)
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=answer, args=(client, path, size), daemon=True).start()


def answer(client: socket.socket, path: str, size: int) -> None:
    with client, open(path, "rb") as file:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1 << 16)
            if not head:
                return
        asked = [line for line in head.decode().lower().split("\r\n") if line.startswith("range: bytes=")]
        first, last, lines = 0, size - 1, ["HTTP/1.1 200 OK"]
        if asked:
            begin, _, end = asked[0].removeprefix("range: bytes=").partition("-")
            first, last = int(begin), int(end or last)
            lines = ["HTTP/1.1 206 Partial Content", f"Content-Range: bytes {first}-{last}/{size}"]
        lines += [f"Content-Length: {last - first + 1}", 'ETag: "one"', "Connection: close", "\r\n"]
        client.sendall("\r\n".join(lines).encode())
        try:
            while first <= last:
                first += os.sendfile(client.fileno(), file.fileno(), first, min(last - first + 1, 1 << 20))
        except OSError:
            return


def make_file(path: Path) -> str:
    """1 GB that no disk or line can make smaller; returns its MD5."""
    digest = hashlib.md5()
    with open(path, "wb") as file:
        for _ in range(SIZE // 1_000_000):
            block = os.urandom(1_000_000)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def compare(folder: Path, repeats: int, connections: int) -> None:
    source = folder / "source"
    md5 = make_file(source)
    server = subprocess.Popen([sys.executable, __file__, "serve", str(source)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = f"http://127.0.0.1:{server.stdout.readline().strip()}/file"
    curl = shlex.join(["curl", "--silent", "--fail", "--output"])
    commands: dict[str, Callable[[str], list[str]]] = {
        OURS: lambda path: our_command(folder, url, md5, connections),
        CURL: lambda path: ["sh", "-c", f"{curl} {path} {url}"],
        CURL_MD5: lambda path: ["sh", "-c", f"{curl} {path} {url} && echo '{md5}  {path}' | md5sum --check --quiet"],
    }
    try:
        seconds, _, _ = run(["sh", "-c", f"{curl} /dev/null {url}"])
        print(f"the server alone: {SIZE / seconds / 1e9:.1f} GB/s")
        measured = {name: Measured() for name in commands}
        for _ in range(repeats):
            for name, command in commands.items():
                path = folder / "fetched"
                path.unlink(missing_ok=True)
                (folder / "provenance.json").unlink(missing_ok=True)
                os.sync()
                seconds, _, _ = run(command(str(path)), memory=False)
                measured[name].seconds.append(seconds)
        report(measured, OURS)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--connections", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        compare(Path(name), options.repeats, options.connections)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
    else:
        main()
