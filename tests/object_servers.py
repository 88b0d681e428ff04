"""A server on loopback that speaks as much of Google's, Azure's and the Hugging Face Hub's protocols as stores use."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

#: The key of the account that every emulator of Azure has; it is public.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class ObjectServer(http.server.ThreadingHTTPServer):
    """Objects by ``bucket/key``; of the Hub, ``user/name/file``."""

    daemon_threads = True

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.types: dict[str, str] = {}
        #: Method and path of each request.
        self.requests: list[tuple[str, str]] = []
        #: Status that every request gets, where it is set.
        self.status: int | None = None
        #: Called before each piece of content is sent.
        self.before_content: Callable[[], None] = lambda: None
        #: Seconds between two bytes of content.
        self.drip_s = 0.0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def azure(self) -> str:
        """A connection string."""
        return f"DefaultEndpointsProtocol=http;AccountName=it;AccountKey={AZURE_KEY};BlobEndpoint={self.url}/it;"


@contextmanager
def object_server() -> Iterator[ObjectServer]:
    server = ObjectServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:40]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ObjectServer

    def do_GET(self) -> None:
        self._any()

    def do_HEAD(self) -> None:
        self._any()

    def do_POST(self) -> None:
        self._any()

    def do_PUT(self) -> None:
        self._any()

    def do_DELETE(self) -> None:
        self._any()

    def _any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().strip() or b"0", 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.server.requests.append((self.command, self.path))
        if self.server.status is not None:
            self._say(self.server.status, b"no", **{"x-ms-error-code": "Nonsense"})
            return
        parts = urlsplit(self.path)
        path, query = parts.path, parse_qs(parts.query, keep_blank_values=True)
        for pattern, call in (
            (r"/(?:download/)?storage/v1/b/([^/]+)(?:/o)?(?:/([^/]+))?", self._google),
            (r"/upload/storage/v1/b/([^/]+)/o", self._google_upload),
            (r"/it/([^/]+)(?:/(.+))?", self._azure),
            (r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", self._hub_repository),
            (r"/api/models/([^/]+/[^/]+)/paths-info/[^/]+", self._hub_information),
            (r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self._hub_file),
        ):
            if (match := re.fullmatch(pattern, path)) is not None:
                call(*(unquote(one or "") for one in match.groups()), query)
                return
        self._say(404, b"")

    def _google(self, bucket: str, key: str, query: dict[str, list[str]]) -> None:
        name = f"{bucket}/{key}"
        if not key:
            listed = {"items": []} if self.path.partition("?")[0].endswith("/o") else {"name": bucket}
            known = any(one.startswith(f"{bucket}/") for one in self.server.objects)
            self._say(200 if known else 404, json.dumps(listed).encode())
        elif name not in self.server.objects:
            self._say(404, b"")
        elif self.command == "DELETE":
            del self.server.objects[name]
            self._say(204, b"")
        elif "alt" in query:
            self._content(name)
        else:
            data = self.server.objects[name]
            row = {"bucket": bucket, "name": key, "size": str(len(data)), "etag": etag(data), "generation": etag(data)}
            self._say(200, json.dumps(row).encode())

    def _google_upload(self, bucket: str, query: dict[str, list[str]]) -> None:
        whole = b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + self.body
        about, content = (part.get_payload(decode=True) for part in BytesParser().parsebytes(whole).get_payload())
        # Parsers of mail end a part before its last line break, and uploads of gcsfs end theirs with one.
        kind = BytesParser().parsebytes(whole).get_payload()[1].get_content_type()
        name = f"{bucket}/{json.loads(about)['name']}"
        self.server.objects[name], self.server.types[name] = content, kind
        self._say(200, json.dumps({"name": name, "size": len(content), "generation": etag(content)}).encode())

    def _azure(self, container: str, key: str, query: dict[str, list[str]]) -> None:
        name = f"{container}/{key}"
        if not key:
            known = any(one.startswith(f"{container}/") for one in self.server.objects)
            if "list" in query.get("comp", []):
                empty = b'<?xml version="1.0"?><EnumerationResults><Blobs/><NextMarker/></EnumerationResults>'
                self._say(200, empty, **{"Content-Type": "application/xml"})
            elif known:
                self._say(200, b"", ETag='"1"', **{"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"})
            else:
                self._say(404, b"", **{"x-ms-error-code": "ContainerNotFound"})
        elif self.command == "PUT":
            self.server.objects[name] = self.body
            self.server.types[name] = self.headers["x-ms-blob-content-type"]
            modified = {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
            self._say(201, b"", ETag=f'"{etag(self.body)}"', **modified)
        elif name not in self.server.objects:
            self._say(404, b"", **{"x-ms-error-code": "BlobNotFound"})
        elif self.command == "DELETE":
            del self.server.objects[name]
            self._say(202, b"")
        else:
            self._content(name)

    def _hub_repository(self, repository: str, query: dict[str, list[str]]) -> None:
        if not any(name.startswith(f"{repository}/") for name in self.server.objects):
            # Like the Hub without a token, which does not say whether the repository exists.
            self._say(401, b"", **{"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return
        self._say(200, json.dumps({"id": repository, "modelId": repository, "sha": "1" * 40}).encode())

    def _hub_information(self, repository: str, query: dict[str, list[str]]) -> None:
        asked = json.loads(self.body) if self.body[:1] == b"{" else {"paths": parse_qs(self.body.decode())["paths"]}
        paths = asked["paths"] if isinstance(asked["paths"], list) else [asked["paths"]]
        rows: list[dict[str, Any]] = []
        for path in paths:
            data = self.server.objects.get(f"{repository}/{path}")
            if data is not None:
                commit = {"id": "1" * 40, "title": "it", "date": "2026-01-01T00:00:00.000Z"}
                rows.append({"type": "file", "path": path, "size": len(data), "oid": etag(data), "lastCommit": commit})
        self._say(200, json.dumps(rows).encode())

    def _hub_file(self, repository: str, path: str, query: dict[str, list[str]]) -> None:
        if f"{repository}/{path}" not in self.server.objects:
            self._say(404, b"", **{"X-Error-Code": "EntryNotFound"})
        else:
            self._content(f"{repository}/{path}")

    def _content(self, name: str) -> None:
        if self.command == "GET":
            self.server.before_content()
        data = self.server.objects[name]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("x-ms-range") or self.headers.get("Range") or "")
        headers = {
            "ETag": f'"{etag(data)}"',
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
            "x-ms-blob-type": "BlockBlob",
            "Accept-Ranges": "bytes",
        }
        if wanted is None or self.command == "HEAD":
            self._say(200, data, **headers)
            return
        start, end = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        if start >= len(data):
            self._say(416, b"", **{"x-ms-error-code": "InvalidRange"})
            return
        self._say(206, data[start : end + 1], **headers, **{"Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def _say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            if not self.server.drip_s or status != 206:
                self.wfile.write(body)
                return
            for at in range(len(body)):
                self.wfile.write(body[at : at + 1])
                self.wfile.flush()
                time.sleep(self.server.drip_s)
        except OSError:
            pass  # who reads has gone

    def log_message(self, *_: object) -> None:
        pass
