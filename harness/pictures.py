"""Pictures as references: where the pixels are, and which part of them. Nothing decodes until asked.

A thousand waiting requests hold no pixels. A picture knows its size (from the header alone) and its
digest (from the bytes and the crop chain), so that caches and records can name it. It knows nothing of
models or tasks.

Errors are `PictureError`s that name the picture, what is wrong and the limit.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

from harness.errors import PictureError
from harness.types import Box, Json

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 89_478_485
"""Pixels at most before a crop: Pillow's own bomb limit. An 8K photograph has 33 million."""


@dataclass(frozen=True)
class File:
    """Bytes in a file."""

    path: Path

    def read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            raise PictureError(f"{self.path} does not exist", "missing_picture") from None
        except OSError as error:
            raise PictureError(
                f"{self.path} cannot be read: {error.strerror}", "unreadable_picture"
            ) from None

    @property
    def label(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Member:
    """Bytes in a member of a zip archive."""

    archive: Path
    member: str

    def read(self) -> bytes:
        try:
            with zipfile.ZipFile(self.archive) as archive:
                return archive.read(self.member)
        except KeyError:
            raise PictureError(f"{self.archive} has no member {self.member}", "missing_picture") from None
        except (OSError, zipfile.BadZipFile) as error:
            raise PictureError(
                f"{self.archive} cannot be read ({error}): replace it, or leave the sample out",
                "unreadable_picture",
            ) from None

    @property
    def label(self) -> str:
        return f"{self.archive}/{self.member}"


@dataclass(frozen=True)
class Memory:
    """Encoded bytes in memory, called `label` in messages and records."""

    data: bytes
    label: str

    def read(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class Deferred:
    """Encoded bytes that `load` brings when they are needed: a cell of a table, say. `label` names them."""

    label: str
    load: Callable[[], bytes]

    def read(self) -> bytes:
        return self.load()


@dataclass(frozen=True)
class Refused:
    """A picture that must not be read, and why."""

    label: str
    why: str

    def read(self) -> bytes:
        raise PictureError(self.why, "refused_picture")


Encoded: TypeAlias = File | Member | Memory | Deferred | Refused


@dataclass(frozen=True)
class Drawing:
    """A picture that is drawn when asked: `label` names its recipe completely and stands for its bytes."""

    label: str
    size: tuple[int, int]
    draw: Callable[[], Image.Image]


@dataclass(frozen=True)
class Picture:
    """A reference to pixels: a source, and a chain of crops, each in the coordinates of the one before.

    A crop may reach over the edge; what lies outside is black (as `PIL.Image.crop`). Orientation tags
    are not applied: no reference code applies them.
    """

    source: Encoded | Drawing
    crops: tuple[tuple[int, int, int, int], ...] = ()

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels after the crops, read from the header."""
        if self.crops:
            x1, y1, x2, y2 = self.crops[-1]
            return (x2 - x1, y2 - y1)
        if isinstance(self.source, Drawing):
            return self.source.size
        return _header_size(self.source)

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the bytes and the crops: equal digests, equal pixels."""
        base = _source_digest(self.source)
        if not self.crops:
            return base
        return hashlib.sha256(f"{base}{self.crops}".encode()).hexdigest()

    def crop(self, box: Box) -> Picture:
        """The part inside `box` (x1, y1, x2, y2), rounded to whole pixels. It must not be empty."""
        x1, y1, x2, y2 = (round(edge) for edge in box)
        if x2 <= x1 or y2 <= y1:
            raise ValueError(f"the crop {box} of {self.source.label} is empty")
        return replace(self, crops=(*self.crops, (x1, y1, x2, y2)))

    def open(self) -> Image.Image:
        """Decode: a `PIL.Image` in RGB with the crops applied."""
        source = self.source
        image = source.draw() if isinstance(source, Drawing) else _decode(source)
        for crop in self.crops:
            image = image.crop(crop)
        return image

    def describe(self) -> dict[str, Json]:
        """Where it is, for records and pages: source, digest and crops."""
        where: dict[str, Json] = {"source": self.source.label, "digest": self.digest}
        if self.crops:
            where["crops"] = [list(crop) for crop in self.crops]
        return where


def picture_in(root: Path, name: str) -> Picture:
    """The picture that a dataset's record calls `name`, below `root`.

    A record is not trusted with a path: a name that leaves `root` gives a picture that fails on its own
    record when it is read. (Symbolic links below `root` are the user's and are followed.)

    >>> picture_in(Path("/data"), "a/b.jpg").source.label
    '/data/a/b.jpg'
    >>> picture_in(Path("/data"), "../secret.jpg").open()
    Traceback (most recent call last):
        ...
    harness.errors.PictureError: the picture '../secret.jpg' lies outside its folder /data
    """
    plain = PurePosixPath(os.path.normpath(name.replace("\\", "/")))
    if plain.is_absolute() or plain.parts[:1] in ((), ("..",)) or "\0" in name:
        return Picture(Refused(name, f"the picture {name!r} lies outside its folder {root}"))
    return Picture(File(root / plain))


def _source_digest(source: Encoded | Drawing) -> str:
    if isinstance(source, Drawing):
        return hashlib.sha256(f"drawing {source.label}".encode()).hexdigest()
    if isinstance(source, File):
        try:
            stat = source.path.stat()
        except OSError:
            return hashlib.sha256(source.read()).hexdigest()  # raises, saying what is wrong
        return _file_digest(source.path, stat.st_size, stat.st_mtime_ns)
    return hashlib.sha256(source.read()).hexdigest()


@lru_cache(maxsize=100_000)
def _file_digest(path: Path, size: int, mtime_ns: int) -> str:
    """Of a file's bytes, once per version of the file: the rows of a benchmark share images."""
    return hashlib.sha256(File(path).read()).hexdigest()


def _header_size(source: Encoded) -> tuple[int, int]:
    with opened(source) as image:
        return image.size


def _decode(source: Encoded) -> Image.Image:
    try:
        with opened(source) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise PictureError(
            f"{source.label} is damaged ({error}): replace it, or leave the sample out", "damaged_picture"
        ) from None


def opened(source: Encoded) -> Image.Image:
    """A source's image, its header read and its size checked, not decoded. Raises PictureError."""
    from PIL import Image, UnidentifiedImageError

    data: Path | io.BytesIO
    data = source.path if isinstance(source, File) else io.BytesIO(source.read())
    try:
        image = Image.open(data)
    except FileNotFoundError:
        raise PictureError(f"{source.label} does not exist", "missing_picture") from None
    except Image.DecompressionBombError:
        raise PictureError(_too_large(source.label), "oversized_picture") from None
    except UnidentifiedImageError:
        raise PictureError(f"{source.label} is not a picture that Pillow knows", "not_a_picture") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise PictureError(
            f"{source.label} cannot be read ({error}): replace it, or leave the sample out",
            "unreadable_picture",
        ) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise PictureError(_too_large(source.label, width, height), "oversized_picture")
    return image


def _too_large(label: str, width: int = 0, height: int = 0) -> str:
    found = f"{width} x {height}, " if width else ""
    return f"{label} is too large ({found}over {MAX_PIXELS:,} pixels); scale it down before the run"
