"""What lies between a site and its aggregator: a TLS port that can be closed, and an HTTP proxy."""

from __future__ import annotations

import base64
import contextlib
import http.server
import select
import socket
import ssl
import threading
import time
from email.utils import formatdate
from pathlib import Path

import httpx

from usfmae.core import keys

from .conftest import Aggregator


class Port:
    """The aggregator behind a TLS port that can be closed and opened again."""

    def __init__(self, aggregator: Aggregator, folder: Path) -> None:
        from usfmae.server import certificates

        ca_key, key = keys.new_node_key(), keys.new_node_key()
        ca = certificates.authority("test", ca_key)
        self.ca, certificate, private = folder / "ca.pem", folder / "server.pem", folder / "server.key"
        self.ca.write_bytes(ca)
        certificate.write_bytes(certificates.server(("127.0.0.1", "localhost"), key.public_key(), ca, ca_key))
        keys.write_private(private, key)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, private)
        self.aggregator, self.number = aggregator, 0
        self.connections: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        aggregator, lock, self.connections = self.aggregator, threading.Lock(), []
        connections = self.connections

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                connections.append(self.connection)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                request = httpx.Request("POST", f"https://x{self.path}", headers=dict(self.headers), content=body)
                with lock:
                    answer = aggregator(request)
                self.send_response_only(answer.status_code)
                self.send_header("Date", answer.headers["date"])
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            def do_GET(self) -> None:
                self.send_response_only(200)
                self.send_header("Date", formatdate(time.time() + aggregator.clock_offset, usegmt=True))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.number), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.server.socket = self.context.wrap_socket(self.server.socket, server_side=True)
        self.number = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        for connection in self.connections:  # a connection that is kept alive would outlive the port
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Proxy:
    """An HTTP proxy that only knows CONNECT, as a hospital's does."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.targets: list[str] = []
        self.allows = True
        self.needs = ""  # NAME:PASSWORD
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._quietly, args=(client,), daemon=True).start()

    def _quietly(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):  # a caller that hangs up
            self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = client.recv(4096)
            if not piece:
                client.close()
                return
            head += piece
        method, target, _ = head.split(b"\r\n")[0].decode("latin-1").split(" ", 2)
        if method != "CONNECT":
            client.sendall(b"HTTP/1.1 405 No\r\n\r\n")
            client.close()
            return
        if self.needs and b"Basic " + base64.b64encode(self.needs.encode()) not in head:
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            client.close()
            return
        if not self.allows:
            client.sendall(b"HTTP/1.1 403 Filtered\r\n\r\n")
            client.close()
            return
        self.targets.append(target)
        host, number = target.rsplit(":", 1)
        server = socket.create_connection((host, int(number)))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        ends = {client: server, server: client}
        while True:
            for end in select.select(list(ends), [], [])[0]:
                data = end.recv(65536)
                if not data:
                    client.close()
                    server.close()
                    return
                ends[end].sendall(data)
