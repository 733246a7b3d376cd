"""The pictures of exported pages: one file per digest, in a folder that many exports share.

Knows files, formats and what a browser would show otherwise than a model saw it. A picture that is a plain
JPEG, PNG or WebP of a size worth sending is copied byte for byte; any other is decoded, scaled to at most
`LONGEST` pixels a side, and encoded. One picture is in memory at a time.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.errors import FoveaError, PictureError, StoreError
from harness.pictures import Drawing, Picture, opened
from harness.store import Record
from harness.types import Json
from leaderboard import _web

LONGEST = 1600
"""Pixels of a page's picture on its long side, at most."""
HEAVIEST = 4 * 2**20
"""Bytes of a file that is copied as it is, at most."""

_NAME = re.compile(r"([0-9a-f]{64})-(\d{1,6})x(\d{1,6})\.(?:jpg|png|webp)")
_COPIED = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_ORIENTATION = 0x0112  # EXIF; a browser turns the picture by it, and no model does


@dataclass(frozen=True)
class Shown:
    """A picture's file, named within the album's folder, and its size (width, height) before any scaling."""

    file: str
    size: tuple[int, int]


class Album:
    """A folder of pictures named `<digest>-<width>x<height>.<format>`: what is there is not made again.

    find: the n-th picture of a record; raises FoveaError where it cannot be had.
    """

    def __init__(self, folder: Path, find: Callable[[Record, int], Picture]) -> None:
        self._folder, self._find = folder, find

    @cached_property
    def _there(self) -> dict[str, Shown]:
        """What earlier exports left, by digest."""
        try:
            names = sorted(path.name for path in self._folder.iterdir())
        except FileNotFoundError:
            names = []
        except OSError as error:
            raise StoreError(
                f"{self._folder} cannot be read: {error.strerror}. Choose a folder with --out"
            ) from None
        matched = [match for name in names if (match := _NAME.fullmatch(name))]
        return {found[1]: Shown(found[0], (int(found[2]), int(found[3]))) for found in matched}

    def add(self, record: Record, place: int) -> Shown:
        """The file of a record's picture, written unless it is there. Raises PictureError, and what `find`
        raises, where it cannot be shown; StoreError where it cannot be written."""
        digest = str(record.pictures[place].get("digest"))
        known = self._there.get(digest)
        if known is None:
            picture = self._find(record, place)
            size, content, ending = _encoded(picture)
            known = Shown(f"{digest}-{size[0]}x{size[1]}.{ending}", size)
            if not _NAME.fullmatch(known.file):
                raise PictureError(f"{picture.source.label}: its digest is none, {digest[:80]!r}")
            _web.write(self._folder, {known.file: content})
            self._there[digest] = known
        return known


def _encoded(picture: Picture) -> tuple[tuple[int, int], bytes, str]:
    """Its size, a file of it for a browser, and how the file's name ends. Lossless, unless it is scaled or
    was lossy before."""
    photograph, source = False, picture.source
    if not isinstance(source, Drawing):
        with opened(source) as image:
            ending = _COPIED.get(image.format or "")
            photograph = image.format in ("JPEG", "WEBP")
            if (
                ending
                and not picture.crops
                and max(image.size) <= LONGEST
                and image.mode in ("RGB", "L")
                and getattr(image, "n_frames", 1) == 1
                and image.getexif().get(_ORIENTATION, 1) == 1
                and len(content := source.read()) <= HEAVIEST
            ):
                return image.size, content, ending
    image = picture.open()
    size = image.size
    if max(size) > LONGEST:
        image.thumbnail((LONGEST, LONGEST))
        photograph = True
    out = io.BytesIO()
    if photograph:
        image.save(out, "JPEG", quality=92, subsampling=0)
        return size, out.getvalue(), "jpg"
    image.save(out, "WEBP", lossless=True, method=2)
    return size, out.getvalue(), "webp"


def described(album: Album, record: Record) -> tuple[list[dict[str, Json]], str]:
    """Every picture of a record as a page wants it (its file and size, or why there is none), and the first
    reason that was met. StoreError where the album cannot be written."""
    found: list[dict[str, Json]] = []
    fault = ""
    for place, one in enumerate(record.pictures):
        entry: dict[str, Json] = {"label": str(one.get("source", "")) if isinstance(one, Mapping) else ""}
        try:
            if not isinstance(one, Mapping):
                raise PictureError(f"the record describes it as {str(one)[:80]!r}")
            shown = album.add(record, place)
            entry |= {"file": shown.file, "size": list(shown.size)}
        except StoreError:
            raise
        except FoveaError as error:
            entry["why"] = str(error)
        except (OSError, ValueError, SyntaxError) as error:  # a format that breaks while it is decoded
            entry["why"] = f"{entry['label']} cannot be shown: {error}"
        fault = fault or str(entry.get("why", ""))
        found.append(entry)
    return found, fault
