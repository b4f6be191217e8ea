"""Downloads against a local server: whole, resumed, broken off, changed, refused."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fedjax_vp.data import download as module
from fedjax_vp.data.download import Source, content_sha256, download, fetch
from fedjax_vp.errors import UserError

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``files``; notes the Range headers it saw; may ignore ranges or break off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/data": CONTENT}
        self.ranges: list[str | None] = []
        self.knows_ranges = True
        self.break_off_after: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if content is None:
            self.send_error(404)
            return
        start = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked and self.server.knows_ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.break_off_after])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_whole_file(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    fetch(
        f"{server.url}/data",
        tmp_path / "new" / "file",
        SHA256,
        lambda done, total: seen.append((done, total)),
    )
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert server.ranges == [None]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_broken_off_and_resumed(server: Server, tmp_path: Path) -> None:
    server.break_off_after = 100_000
    with pytest.raises(UserError, match="the same command again goes on") as caught:
        fetch(f"{server.url}/data", tmp_path / "file", SHA256)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "file").exists()
    assert (tmp_path / "file.part").stat().st_size == 100_000
    server.break_off_after = None
    fetch(f"{server.url}/data", tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


def test_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:5000])
    server.knows_ranges = False
    fetch(f"{server.url}/data", tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_that_was_complete(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    fetch(f"{server.url}/data", tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"x" * 100, b"x" * (len(CONTENT) + 7)])
def test_a_part_of_another_file_is_thrown_away(part: bytes, server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(part)
    fetch(f"{server.url}/data", tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_wrong_hash(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="SHA-256 is not the expected 0000"):
        fetch(f"{server.url}/data", tmp_path / "file", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_no_answer(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the server answers 404"):
        fetch(f"{server.url}/absent", tmp_path / "file")
    with pytest.raises(UserError, match="only http and https"):
        fetch("file:///etc/passwd", tmp_path / "file")
    server.server_close()
    with pytest.raises(UserError, match=r"127\.0\.0\.1"):
        fetch("http://127.0.0.1:1/data", tmp_path / "file")


def _archive(folder: str, text: bytes = b"0.0,1,0,0\n") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in (("sampled_dataset/v/0", text), ("README", b"not a session")):
            member = tarfile.TarInfo(folder + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def test_data_set_is_checked_by_content(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/right"], server.files["/wrong"] = _archive("repo-abc/"), _archive("repo/", b"0.0,0,1,0\n")
    (tmp_path / "other.tar.gz").write_bytes(_archive("packed-differently/deeper/"))
    expected = content_sha256("david_mmsys18", tmp_path / "other.tar.gz")
    monkeypatch.setitem(module.SOURCES, "david_mmsys18", Source(f"{server.url}/right", expected))
    path = download("david_mmsys18", tmp_path / "to")
    assert path == tmp_path / "to" / "david_mmsys18.tar.gz"
    asked = len(server.ranges)
    assert download("david_mmsys18", tmp_path / "to") == path
    assert len(server.ranges) == asked  # there and right: not fetched again
    with pytest.raises(UserError, match="not the published david_mmsys18"):
        download("david_mmsys18", tmp_path / "else", url=f"{server.url}/wrong")
    assert list((tmp_path / "else").iterdir()) == []
    with pytest.raises(UserError, match="'nope' has no published address"):
        download("nope", tmp_path)


def test_digests_are_those_of_the_published_files(shared_data: Path) -> None:
    archives = {"david_mmsys18": "david_mmsys18_sampled.tar.gz", "avtrack360": "avtrack360.tar.gz"}
    for name, archive in archives.items():
        assert content_sha256(name, shared_data / "original" / archive) == module.SOURCES[name].content_sha256
