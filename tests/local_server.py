"""Servers on this machine: for the files of a folder, or for one answer byte by byte."""

import socket
import threading
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextmanager
def serve_folder(folder):
    """Serve the files of a folder; yield the address of the folder."""
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serve_answers(*answers):
    """Answer one request after another, each by a function of a socket; yield the address."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(10)

    def run():
        for answer in answers:
            with suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(10)
                    connection.recv(10_000)
                    answer(connection)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/tiny.tsv"
    finally:
        server.close()
        thread.join()
