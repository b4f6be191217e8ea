"""Reading published files from a folder, a .zip or a .tar archive.

Archives are read member by member in memory: nothing is unpacked, so nothing can be written outside a folder.
A member with a path that would leave the archive is refused all the same, since an archive that has one was
not made by the publisher. Links and devices are never followed.
"""

from __future__ import annotations

import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from fedjax_vp.data.resample import BadTrace
from fedjax_vp.errors import UserError

MAX_MEMBER_BYTES = 1 << 28  # a session file is a few megabytes; more is an archive bomb


def read_files(path: Path, pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str], bytes]]:
    """Files whose path matches, wherever they lie below ``path``.

    Args:
        path: Folder, .zip, .tar, .tar.gz, .tgz, .tar.bz2 or .tar.xz.
        pattern: Searched in the path with forward slashes (a folder's own path included).

    Yields:
        The name for messages, the match, and the content.

    Raises:
        UserError: The path is absent, no archive, damaged, or holds an unsafe path.
    """
    if path.is_dir():
        yield from _read_folder(path, pattern)
    elif not path.exists():
        raise UserError(
            f"{path}: no such file or folder; give the folder or archive with the published files"
        )
    elif zipfile.is_zipfile(path):
        yield from _read_zip(path, pattern)
    elif tarfile.is_tarfile(path):
        yield from _read_tar(path, pattern)
    else:
        raise UserError(f"{path}: neither a folder nor a .zip or .tar.gz archive that can be read")


def _read_folder(root: Path, pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str], bytes]]:
    for file in sorted(root.resolve().rglob("*")):
        match = _match(pattern, file.as_posix())
        if match and file.is_file():
            if file.stat().st_size > MAX_MEMBER_BYTES:
                raise UserError(f"{file}: larger than any published session file; is this the right folder?")
            yield str(root / file.relative_to(root.resolve())), match, file.read_bytes()


def _read_zip(path: Path, pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str], bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = _safe_name(path, member.filename)
                match = _match(pattern, name)
                if match and not member.is_dir():
                    _check_size(path, name, member.file_size)
                    yield f"{path.name}:{name}", match, archive.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{path}: damaged or unreadable archive ({error}); fetch it again") from error


def _read_tar(path: Path, pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str], bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = _safe_name(path, member.name)
                match = _match(pattern, name)
                if match and member.isreg():
                    _check_size(path, name, member.size)
                    stream = archive.extractfile(member)
                    yield f"{path.name}:{name}", match, stream.read() if stream else b""
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{path}: damaged or unreadable archive ({error}); fetch it again") from error


def _match(pattern: re.Pattern[str], name: str) -> re.Match[str] | None:
    if "__MACOSX" in name or PurePosixPath(name).name.startswith("."):
        return None
    return pattern.search(name)


def _safe_name(path: Path, name: str) -> str:
    name = name.replace("\\", "/")
    if name.startswith("/") or ".." in PurePosixPath(name).parts or re.match(r"[A-Za-z]:", name):
        raise UserError(
            f"{path}: holds the unsafe path {name!r}; not an archive of the publisher, fetch it again"
        )
    return name


def _check_size(path: Path, name: str, size: int) -> None:
    if size > MAX_MEMBER_BYTES:
        raise UserError(f"{path}: member {name!r} would unpack to {size} bytes; not a published session file")


def read_matrix(source: str, content: bytes, columns: tuple[str, ...]) -> np.ndarray:
    """A comma-separated file of numbers without header, float64 [row, column].

    Args:
        source: Name for messages.
        content: The file.
        columns: Names of the columns it must have.

    Returns:
        The numbers; "nan" stays NaN.

    Raises:
        BadTrace: A row has another number of columns, or a field is no number.
    """
    import polars as pl

    schema = dict.fromkeys(columns, pl.Float64)
    try:
        table = pl.read_csv(content, has_header=False, schema=schema)
    except (pl.exceptions.PolarsError, UnicodeDecodeError):
        raise _first_problem(source, content, columns) from None
    if any(table.null_count().row(0)):
        raise _first_problem(source, content, columns)
    return table.to_numpy()


def _first_problem(source: str, content: bytes, columns: tuple[str, ...]) -> BadTrace:
    """The slow reading, done only when the fast one failed: which row, and why."""
    lines = content.decode("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        fields = line.split(",")
        if len(fields) != len(columns):
            return BadTrace(
                "columns",
                f"{source}: row {number}: {len(fields)} column(s) where "
                f"{len(columns)} are expected ({', '.join(columns)})",
            )
        for name, field in zip(columns, fields, strict=True):
            try:
                float(field)
            except ValueError:
                return BadTrace("format", f"{source}: row {number}: {name} is {field[:40]!r}, not a number")
    return BadTrace("format", f"{source}: not a comma-separated table of {', '.join(columns)}")
