"""Fetching the published files: by URL, resumed where the server allows, checked by SHA-256.

Code hosts pack archives anew now and then, so their bytes are no fixed thing. What is checked is therefore
the *content digest*: the SHA-256 over the sorted list of the session files' SHA-256 and paths in the archive.
"""

from __future__ import annotations

import hashlib
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path

from fedjax_vp.data.importers import layouts
from fedjax_vp.data.sources import read_files
from fedjax_vp.errors import UserError

_CHUNK = 1 << 16
_TIMEOUT_S = 60
_SCHEMES = ("http://", "https://")


@dataclass(frozen=True)
class Source:
    """Where a data set is published, at one commit, and what its session files must be."""

    url: str
    content_sha256: str


_GITHUB = "https://codeload.github.com/"
_NETLLM = _GITHUB + "duowuyms/NetLLM/tar.gz/ee4d8726898610e4ae7df08bdd26728cafb4701f"
_DAVID = _GITHUB + "Jnlcy/VR-motion-trajectory-correlation/tar.gz/aca2b29fa9988ad4c322568ecfa1904db4ac8629"
_AVTRACK = (
    _GITHUB
    + "Telecommunication-Telemedia-Assessment/AVTrack360/tar.gz/8e48a7c1a0b1461172696c512a01ca22e86cfe07"
)
SOURCES = {
    "wu_mmsys17": Source(_NETLLM, "9f78e0cfa05a7745cc0daebbc846a690638dddf81e7e6b8ce7b4dc0c4c4ca04e"),
    "jin_mmsys22": Source(_NETLLM, "c82a74b15c3b05c42e7c47efa6f86ae32823d41d04b513b4a549d966a5ccdafc"),
    "david_mmsys18": Source(_DAVID, "3459f5b8d721aded05916a3fb743f88d3b6ad0f6344948629710d5cc062c4c8c"),
    "avtrack360": Source(_AVTRACK, "4fb1bf289999bb8a817aa43f30e82fc3d7471cbf3847216c3fc2fd47b314a312"),
}


def download(
    name: str, folder: Path, url: str | None = None, watch: Callable[[int, int], None] | None = None
) -> Path:
    """Fetch a data set's published archive and check its session files.

    Args:
        name: A known data set.
        folder: Where the archive goes; an archive that is there and right is not fetched again.
        url: A mirror, in place of the published address.
        watch: Called with (bytes so far, bytes in all or 0).

    Returns:
        The archive.

    Raises:
        UserError: An unknown name, no answer, or content that is not the published one.
    """
    if name not in SOURCES:
        raise UserError(f"{name!r} has no published address; known: {', '.join(SOURCES)}")
    source = SOURCES[name]
    path = folder / f"{name}.tar.gz"
    if path.exists() and content_sha256(name, path) == source.content_sha256:
        return path
    fetch(url or source.url, path, watch=watch)
    found = content_sha256(name, path)
    if found != source.content_sha256:
        path.unlink()
        raise UserError(
            f"{url or source.url}: not the published {name} (content SHA-256 {found[:16]}..., expected "
            f"{source.content_sha256[:16]}...); it was deleted, fetch the files by hand and import them"
        )
    return path


def content_sha256(name: str, path: Path) -> str:
    """Content digest of the session files of a data set in a folder or archive, whatever its packing."""
    pattern = layouts()[name].pattern
    lines = sorted(
        f"{hashlib.sha256(content).hexdigest()}  {match[0].lstrip('/')}\n"
        for _, match, content in read_files(path, pattern)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def fetch(
    url: str, path: Path, sha256: str | None = None, watch: Callable[[int, int], None] | None = None
) -> None:
    """Fetch one file; an interrupted one goes on where it stopped, if the server allows.

    Args:
        url: http or https address.
        path: Where it goes; until complete it is ``path`` + ".part".
        sha256: What its bytes must hash to.
        watch: Called with (bytes so far, bytes in all or 0).

    Raises:
        UserError: No answer, an answer that is an error, an early end, or other bytes than expected.
    """
    if not url.startswith(_SCHEMES):
        raise UserError(f"{url}: only http and https addresses are fetched")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    resumed = part.exists() and part.stat().st_size > 0
    try:
        _fetch_part(url, part, watch)
    except (urllib.error.URLError, HTTPException, OSError) as error:
        raise UserError(f"{url}: {_reason(error)}; the same command again goes on with {part}") from error
    if sha256 is not None and _file_sha256(part) != sha256:
        part.unlink()
        if resumed:  # the file may have changed at the publisher between the two pieces
            fetch(url, path, sha256, watch)
            return
        raise UserError(f"{url}: its SHA-256 is not the expected {sha256[:16]}...; the file was deleted")
    part.replace(path)


def _fetch_part(url: str, part: Path, watch: Callable[[int, int], None] | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
                raise
            if total and int(total[1]) == have:
                return  # the part was complete already
        part.unlink()
        return _fetch_part(url, part, watch)
    with answer:
        start = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        goes_on = answer.status == HTTPStatus.PARTIAL_CONTENT and start is not None and int(start[1]) == have
        done = have if goes_on else 0
        length = answer.headers.get("Content-Length")
        total_bytes = done + int(length) if length else 0
        with part.open("ab" if goes_on else "wb") as file:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                if watch:
                    watch(done, total_bytes)
    if done < total_bytes:
        raise OSError(f"the connection ended after {done} of {total_bytes} bytes")


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    return str(getattr(error, "reason", error)) or type(error).__name__


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
