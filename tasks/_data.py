"""A task's files: where they come from, whether all are there and can be read, and getting the open ones.

Knows `Source`s, HTTP and archives. Must not know: any benchmark, models. What it is told to load (`make`)
and how it shows its progress belong to the command line (`fovea data`).

A download resumes where it stopped, is checked by its size and sum where they are known, and appears under
its name only when it is whole. An archive is unpacked member by member; none of them can leave its folder.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import lzma
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from harness.errors import DataError, PictureError, SpecError
from harness.pictures import Picture
from harness.types import Retrieval, Task
from tasks._source import Download, Source

Progress = Callable[[str, int, int | None], None]
"""Told what is being done, how much of it is done, and how much there is (None: not known)."""

ATTEMPTS = 5
"""Connections in a row that may bring nothing before a download is given up."""

PAUSE = 1.0
"""Seconds before a second such connection; as many more before each further one."""

TIMEOUT = 60.0
_CHUNK = 1 << 20
_EXPANSION = 200
"""An archive that claims to unpack into more than so many times its size (and a GiB) is refused."""


class Spec(Protocol):
    """What `harness.resolve.parse` makes of a spec."""

    @property
    def name(self) -> str: ...
    @property
    def positional(self) -> Sequence[str]: ...
    @property
    def knobs(self) -> Mapping[str, str]: ...


def data(
    text: str,
    into: Path | None,
    *,
    parse: Callable[[str], Spec],
    make: Callable[[str], Task | Retrieval],
    say: Callable[[str], None],
    progress: Progress,
) -> list[str]:
    """Describe the files of the task that `text` names, fetch them into a folder, check them: the faults.

    text: a name, or a spec with the place of the files, which are then checked. into: fetch what is open
    into this folder, then check it. parse, make: a spec's parts, and its task. Raises SpecError for an
    unknown name.
    """
    spec = parse(text)
    module = _module(spec.name)
    source: Source | None = getattr(module, "SOURCE", None)
    if source is not None:
        say(describe(source))
    if into is not None and "root" not in spec.knobs and not spec.positional:
        text = ",".join([f'{spec.name}:root="{into}"', *text.partition(":")[2:]]).rstrip(",")
    if source is not None and ":" not in text:
        say(f"To check: fovea data {text}:root=DIR. To fetch: fovea data {text} --fetch DIR")
        return []

    def check() -> list[str]:
        try:
            found = make(text)
        except DataError as error:
            return [str(error)]
        return verify(found, say, progress)

    faults = check()
    if not faults or into is None:
        return faults
    if source is None:
        raise SpecError(f"nothing is known of where the files of {spec.name} come from")
    return fetch(source, into, progress) or check()


def _module(name: str) -> Any:
    """tasks/NAME.py, or None where there is none: it may be another package's."""
    if not re.fullmatch(r"[a-z]\w*", name):
        return None
    try:
        return importlib.import_module(f"tasks.{name}")
    except ModuleNotFoundError as error:
        if error.name == f"tasks.{name}":
            return None
        raise


def describe(source: Source) -> str:
    """Title, licence, files with their sizes, what the root must hold, and what needs a form.

    >>> apples = Download("a.json", "http://x/a.json", 2500)
    >>> print(describe(Source("Fruit", "CC0", "a.json", files=(apples,))))
    Fruit
    licence  CC0
    layout   a.json
    file     http://x/a.json (2.5 kB) as a.json
    """
    lines = [source.title, f"licence  {source.licence}", f"layout   {source.layout}"]
    for file in source.files:
        size = f" ({_size(file.size)})" if file.size else ""
        where = f"as {file.name}" if file.unpack is None else f"unpacked into {file.unpack}"
        lines.append(f"file     {file.url}{size} {where}")
    lines += [f"hub      https://huggingface.co/datasets/{name}" for name in source.hub]
    lines += [f"form     {source.form}"] if source.form else []
    return "\n".join(lines)


def _size(number: int) -> str:
    """
    >>> _size(999), _size(1500), _size(6645013297)
    ('999 B', '1.5 kB', '6.6 GB')
    """
    value, unit = float(number), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


# ---------------------------------------------------------------- is it all there


def verify(found: Task | Retrieval, say: Callable[[str], None], progress: Progress) -> list[str]:
    """Decode every picture once: what is wrong with which. Says how many there are."""
    pictures: dict[tuple[str, Any], tuple[str, Picture]] = {}
    for name, picture in _pictures(found):
        pictures.setdefault((picture.source.label, picture.crops), (name, picture))
    faults = []
    for done, (name, picture) in enumerate(pictures.values()):
        progress("pictures", done, len(pictures))
        try:
            picture.open()
        except PictureError as error:
            faults.append(f"{name}: {error}")
    progress("pictures", len(pictures), len(pictures))
    many = f"{len(found.samples):,} samples" if isinstance(found, Task) else f"{len(found.owner):,} captions"
    say(f"{many}, {len(pictures):,} pictures, of which {len(faults):,} cannot be read")
    return faults


def _pictures(found: Task | Retrieval) -> Iterator[tuple[str, Picture]]:
    if isinstance(found, Task):
        for sample in found.samples:
            for picture in sample.images:
                yield sample.id, picture
    else:
        yield from zip(found.ids, found.pool.images, strict=True)


# ---------------------------------------------------------------- fetching


def fetch(source: Source, root: Path, progress: Progress) -> list[str]:
    """Download and unpack what is open of `source` into `root`: what went wrong, and what needs a form.

    What is there already and whole is left alone. One file's fault does not keep the others.
    """
    faults = []
    for file in source.files:
        try:
            _fetch(file, root, progress)
        except DataError as error:
            faults.append(str(error))
        except OSError as error:
            faults.append(f"{file.name}: {error.strerror or error}")
    if not source.files:
        faults.append(f"nothing of {source.title} can be downloaded openly. {source.form}".strip())
    return faults


def _fetch(file: Download, root: Path, progress: Progress) -> None:
    target = _inside(root, file.name)
    unpacked = target.with_name(f"{target.name}.unpacked")  # written last: its presence proves completeness
    if file.unpack is not None and unpacked.exists():
        return
    if target.exists():
        fault = _fault(file, target)
        if fault:
            raise DataError(f"{target} {fault}. Move it away, and it is fetched")
    else:
        download(file, target, progress)
    if file.unpack is not None:
        unpack(target, _inside(root, file.unpack), progress)
        unpacked.write_text(f"{target.stat().st_size}\n", encoding="utf-8")


def download(file: Download, target: Path, progress: Progress) -> None:
    """Get `file.url` into `target`, through `target`.partial, from where that ends.

    Raises DataError for an address that refuses, for too many connections that bring nothing, and for a
    file of another size or sum than is known; the last two are thrown away.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    version = target.with_name(f"{target.name}.version")  # the server's, lest two versions be spliced
    idle = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            if _receive(file, partial, version, progress):
                break
            why = "the connection ended early"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in (408, 429):
                raise DataError(f"{file.name}: {file.url} answers {error.code} {error.reason}") from None
            why = f"{error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            why = str(getattr(error, "reason", error)) or type(error).__name__
        after = partial.stat().st_size if partial.exists() else 0
        idle = 0 if after > before else idle + 1
        if idle >= ATTEMPTS:
            raise DataError(
                f"{file.name}: {file.url} cannot be read ({why}); {_size(after)} are kept. Repeat the "
                "command to go on"
            )
        time.sleep(PAUSE * idle)
    version.unlink(missing_ok=True)
    fault = _fault(file, partial)
    if fault:
        partial.unlink()
        raise DataError(f"{file.name}: what {file.url} sent {fault}; it was thrown away")
    partial.replace(target)


def _receive(file: Download, partial: Path, version: Path, progress: Progress) -> bool:
    """One connection: append what it brings. Whether the file is whole now."""
    offset = partial.stat().st_size if partial.exists() else 0
    known = version.read_text(encoding="utf-8") if version.exists() else ""
    headers = {"User-Agent": "fovea", "Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", **({"If-Range": known} if known else {})}
    try:
        reply = urllib.request.urlopen(urllib.request.Request(file.url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        total = _total(error.headers.get("Content-Range"))
        if total == offset:
            return True
        partial.unlink()  # it is longer than the file, or of another version
        return False
    with reply:
        if reply.status != 206:
            offset = 0
        elif not (reply.headers.get("Content-Range") or "").startswith(f"bytes {offset}-"):
            partial.unlink()  # not what was asked for: from the start again
            return False
        length = reply.headers.get("Content-Length")
        total = offset + int(length) if length is not None else file.size
        version.write_text(_version(reply.headers), encoding="utf-8")
        with partial.open("r+b" if offset else "wb") as out:
            out.seek(offset)
            while chunk := reply.read(_CHUNK):
                out.write(chunk)
                offset += len(chunk)
                progress(file.name, offset, total)
    return total is None or offset >= total


def _total(content_range: str | None) -> int | None:
    number = (content_range or "").rpartition("/")[2]
    return int(number) if number.isdigit() else None


def _version(headers: Any) -> str:
    """A strong validator for If-Range, or nothing."""
    tag = headers.get("ETag") or ""
    return tag if tag.startswith('"') else headers.get("Last-Modified") or ""


def _fault(file: Download, path: Path) -> str | None:
    """What is wrong with a file whose size or sum is known."""
    found = path.stat().st_size
    if file.size is not None and found != file.size:
        return f"has {found:,} bytes; {file.size:,} are expected"
    if file.sha256 is not None:
        with path.open("rb") as data:
            sha256 = hashlib.file_digest(data, "sha256").hexdigest()
        if sha256 != file.sha256:
            return f"is not the known file: its sha256 is {sha256[:16]}..., not {file.sha256[:16]}..."
    return None


# ---------------------------------------------------------------- archives


def unpack(archive: Path, folder: Path, progress: Progress) -> None:
    """Unpack a zip or (compressed) tar archive into `folder`, over what is there.

    Only files and folders are made. Raises DataError at the first member that would lie outside, is a
    link or a device, and for an archive that is damaged, locked by a password or grows beyond all measure.
    """
    limit = _EXPANSION * archive.stat().st_size + (1 << 30)
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, folder, limit, progress)
        else:
            _untar(archive, folder, limit, progress)
    except _DAMAGE as error:
        raise DataError(f"{archive} cannot be unpacked: {error}") from None
    except OSError as error:  # zlib's and gzip's complaints are some too
        if error.errno is not None:
            raise
        raise DataError(f"{archive} cannot be unpacked: {error}") from None


_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,  # a zip with a password
    NotImplementedError,
)


def _unzip(archive: Path, folder: Path, limit: int, progress: Progress) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = [member for member in opened.infolist() if not member.is_dir()]
        _limit(archive, sum(member.file_size for member in members), limit)
        for done, member in enumerate(members):
            progress(f"unpacking {archive.name}", done, len(members))
            target = _inside(folder, member.filename, archive)
            with opened.open(member) as data:
                _write(data, target)


def _untar(archive: Path, folder: Path, limit: int, progress: Progress) -> None:
    size = 0
    with tarfile.open(archive) as opened:
        for done, member in enumerate(opened):
            progress(f"unpacking {archive.name}", done, None)
            target = _inside(folder, member.name, archive)
            if member.isdir():
                continue
            if not member.isreg():
                raise DataError(f"{archive}: {member.name!r} is a link or a device; nothing of it is made")
            size += member.size
            _limit(archive, size, limit)
            data = opened.extractfile(member)
            if data is not None:
                _write(data, target)
        while opened.fileobj and opened.fileobj.read(_CHUNK):
            pass  # to the end, where the sum of what was compressed stands


def _write(data: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        shutil.copyfileobj(data, out, _CHUNK)


def _limit(archive: Path, size: int, limit: int) -> None:
    if size > limit:
        raise DataError(f"{archive} would unpack into over {_EXPANSION} times its size; it was refused")


def _inside(folder: Path, name: str, archive: Path | None = None) -> Path:
    """`name` below `folder`. Raises DataError for one that would lie elsewhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise DataError(f"{archive or folder}: {name!r} would lie outside its folder; it was refused")
    return folder / path
