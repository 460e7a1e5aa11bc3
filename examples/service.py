"""A service that draws different people from its threads: a person's file and a prompt in, a PNG out.

    python examples/service.py 8000
    curl --data-binary @anna.safetensors "localhost:8000/?prompt=film+noir&seed=7" -o picture.png

The file is one of ``fast-instantid person make``. It holds all that a request needs, so no face is searched here.
"""

from __future__ import annotations

import sys
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from fast_instantid import FastInstantIDError, InstantID, Person

LARGEST = 32 << 20  # bytes of a person with an identity


def service(instantid: InstantID, port: int = 8000) -> ThreadingHTTPServer:
    class Request(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                status, body = 200, self.picture()
            except (FastInstantIDError, KeyError, ValueError) as error:
                status, body = 400, f"{error}\n".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def picture(self) -> bytes:
            asked = dict(parse_qsl(urlsplit(self.path).query))
            size = int(self.headers["Content-Length"] or 0)
            if not 0 < size <= LARGEST:
                raise ValueError(f"a file of {size} bytes: send a person of at most {LARGEST}")
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "person.safetensors")
                file.write_bytes(self.rfile.read(size))
                person = Person.load(file)
            png = BytesIO()
            instantid(asked["prompt"], person, seed=int(asked.get("seed", 0))).images[0].save(png, "PNG")
            return png.getvalue()

    return ThreadingHTTPServer(("127.0.0.1", port), Request)


if __name__ == "__main__":
    loaded = InstantID.from_pretrained(*sys.argv[2:])
    loaded("warm-up", loaded.identity(None), num_inference_steps=1)
    service(loaded, int(sys.argv[1])).serve_forever()
