"""Pictures as the bytes that a provider accepts: the original ones wherever that is possible.

Knows the formats and limits that providers document, and keeps what it encoded in a bounded store. What is
sent decodes to what local models see (`harness/pictures.py`: the first frame, no alpha, no orientation tag
applied), so a file whose bytes say more than that is encoded anew. Must not know requests, endpoints or
event loops' owners. Raises `PictureError` for a picture that cannot be sent.
"""

from __future__ import annotations

import asyncio
import base64
import io
import math
import threading
import zlib
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.errors import PictureError
from harness.pictures import Drawing, Memory, Picture, opened

if TYPE_CHECKING:
    from PIL.Image import Image as Pixels

STORE_BYTES = 64 * 2**20
"""Base64 text kept for requests that show the same picture again."""

_MEDIA = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp"}
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Limits:
    """What a provider takes. `None` is no limit.

    formats: by Pillow's names. image_bytes, request_bytes: of base64 text. side: pixels of the longer side.
    crowd, crowd_side: with more than `crowd` pictures in a request, the longer side of each. images: in a
    request.
    """

    formats: tuple[str, ...]
    image_bytes: int
    request_bytes: int
    side: int | None = None
    crowd: int | None = None
    crowd_side: int | None = None
    images: int | None = None

    def among(self, images: int) -> Limits:
        """The limits of each of a request's `images` pictures; a tenth of the request is left for the text.

        >>> ANTHROPIC_LIMITS.among(1).side, ANTHROPIC_LIMITS.among(21).side
        (8000, 2000)
        """
        if self.images is not None and images > self.images:
            raise PictureError(
                f"{images} pictures in a request; the endpoint takes {self.images} at most",
                "too_many_pictures",
            )
        crowded = self.crowd is not None and images > self.crowd
        sides = [side for side in (self.side, self.crowd_side if crowded else None) if side is not None]
        share = self.request_bytes * 9 // 10 // max(images, 1)
        return replace(self, image_bytes=min(self.image_bytes, share), side=min(sides, default=None))


ANTHROPIC_LIMITS = Limits(
    formats=("JPEG", "PNG", "GIF", "WEBP"),
    image_bytes=5 * 2**20,
    request_bytes=32 * 10**6,
    side=8000,
    crowd=20,
    crowd_side=2000,
    images=100,
)
"""platform.claude.com, "Vision", general limits and FAQ: JPEG, PNG, GIF and WebP; 5 MB an image, which the
server measures in base64; 8000 x 8000 pixels, 2000 x 2000 with more than 20 images; 100 images (600 for
models with longer contexts); 32 MB a request. The server itself scales what is longer than 1568 pixels
(2576 for later models): that is the model's eye, and nothing is done about it here."""

OPENAI_LIMITS = Limits(
    formats=("JPEG", "PNG", "GIF", "WEBP"),
    image_bytes=20 * 10**6,
    request_bytes=50 * 10**6,
    images=500,
)
"""developers.openai.com, "Images and vision", image input requirements: PNG, JPEG, WEBP and GIF without
animation; 20 MB an image, 50 MB and 500 images a request. The server scales by `detail`."""

GENERIC_LIMITS = Limits(formats=("JPEG", "PNG", "WEBP"), image_bytes=20 * 10**6, request_bytes=20 * 10**6)
"""For endpoints that speak Chat Completions: what vLLM, SGLang and `transformers serve` (Pillow decodes) and
Gemini (ai.google.dev, "Image understanding": PNG, JPEG, WEBP, HEIC; 20 MB inline a request) all take."""


@dataclass(frozen=True)
class Encoded:
    """A picture ready to be sent. data: base64. size: (width, height) as sent. note: None for original bytes,
    otherwise why and how they were replaced."""

    media_type: str
    data: str
    size: tuple[int, int]
    note: str | None = None


def encoded(picture: Picture, limits: Limits) -> Encoded:
    """`picture` within `limits`: its own bytes if they are acceptable, PNG otherwise, JPEG (quality 95) where
    PNG is too large, and scaled down (Lanczos) only where that is too large still or the side is too long.

    What is truncated or no picture fails here, as it fails for a local model: it is decoded to see, but for a
    JPEG that has its end (of what is wrong inside one libjpeg makes grey, and decoding would cost more than
    all else together). Colour profiles are left to the provider. The note says why other bytes were sent.
    """
    source = picture.source
    if isinstance(source, Drawing):
        return _anew(picture.open(), limits, "cropped" if picture.crops else "drawn")
    data = source.read()
    held = Memory(data, source.label)
    whole = Picture(held, picture.crops)
    with opened(held) as image:
        why = "cropped" if picture.crops else _unacceptable(image, len(data), limits)
        if why is None:
            if not (image.format == "JPEG" and data.endswith(b"\xff\xd9")):
                whole.open()
            return Encoded(_MEDIA[image.format or ""], base64.b64encode(data).decode("ascii"), image.size)
    return _anew(whole.open(), limits, why)


def _unacceptable(image: Pixels, size: int, limits: Limits) -> str | None:
    """Why a whole picture's `size` bytes cannot be sent as they are; None if they can."""
    if image.format not in limits.formats:
        return f"{image.format} is not accepted"
    if getattr(image, "n_frames", 1) > 1:
        return "the first frame"
    if image.has_transparency_data:
        return "without its transparency"
    if image.mode not in ("RGB", "L", "P", "1"):
        return f"{image.mode} pixels"
    if image.getexif().get(_ORIENTATION, 1) != 1:
        return "without its orientation tag"
    if limits.side is not None and max(image.size) > limits.side:
        return f"over {limits.side} pixels a side"
    if _base64_size(size) > limits.image_bytes:
        return f"over {limits.image_bytes:,} bytes in base64"
    return None


def _anew(image: Pixels, limits: Limits, why: str) -> Encoded:
    original = image
    if limits.side is not None and max(image.size) > limits.side:
        image = _scaled(original, limits.side / max(image.size))
    kind, data = "PNG", _written(image, "PNG")
    while _base64_size(len(data)) > limits.image_bytes:
        if kind == "JPEG":
            if max(image.size) <= 64:
                raise PictureError(f"no picture fits into {limits.image_bytes:,} bytes", "oversized_picture")
            # A JPEG's bytes grow about as its pixels; a twentieth less, so that one step mostly suffices.
            smaller = math.sqrt(limits.image_bytes / _base64_size(len(data))) * 0.95
            image = _scaled(original, max(image.size) / max(original.size) * smaller)
        kind, data = "JPEG", _written(image, "JPEG")
    scaled = f", scaled from {original.width} x {original.height}" if image.size != original.size else ""
    note = f"{why}: sent as {kind}, {image.width} x {image.height}{scaled}"
    return Encoded(_MEDIA[kind], base64.b64encode(data).decode("ascii"), image.size, note)


def _scaled(image: Pixels, factor: float) -> Pixels:
    from PIL import Image

    width, height = (max(1, int(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _written(image: Pixels, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "JPEG":
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        # What PNG's filters leave of a photograph has runs and no words: looking for runs alone takes three
        # fifths of the time of level 3 and makes a smaller file.
        image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def _base64_size(count: int) -> int:
    """Characters of `count` bytes in base64."""
    return (count + 2) // 3 * 4


class Images:
    """What was encoded lately, shared by all requests of an adapter: each picture is encoded once while it
    lasts, on a few threads, so that no event loop waits and no more than a few are ever decoded at once."""

    def __init__(self, limits: Limits, *, store_bytes: int = STORE_BYTES, threads: int = 4) -> None:
        self.limits = limits
        self._store_bytes = store_bytes
        self._pool = ThreadPoolExecutor(threads, "fovea-images")
        self._lock = threading.Lock()
        self._stored: OrderedDict[tuple[str, Limits], Encoded] = OrderedDict()
        self._held = 0
        self._making: dict[tuple[str, Limits], Future[Encoded]] = {}

    async def get(self, picture: Picture, among: int = 1) -> Encoded:
        """`picture` as it goes into a request of `among` pictures. Raises `PictureError`."""
        limits = self.limits.among(among)
        return await asyncio.wrap_future(self._pool.submit(self.encoded, picture, limits))

    def encoded(self, picture: Picture, limits: Limits) -> Encoded:
        """The same from a thread that may wait."""
        key = (picture.digest, limits)
        with self._lock:
            stored = self._stored.get(key)
            if stored is not None:
                self._stored.move_to_end(key)
                return stored
            making = self._making.get(key)
            mine = making is None
            if making is None:
                making = self._making[key] = Future()
        if mine:
            self._make(picture, key, making)
        return making.result()

    def _make(self, picture: Picture, key: tuple[str, Limits], making: Future[Encoded]) -> None:
        try:
            made = encoded(picture, key[1])
        except BaseException as error:
            with self._lock:
                del self._making[key]
            making.set_exception(error)
            return
        with self._lock:
            del self._making[key]
            self._stored[key] = made
            self._held += len(made.data)
            while self._held > self._store_bytes:
                self._held -= len(self._stored.popitem(last=False)[1].data)
        making.set_result(made)
