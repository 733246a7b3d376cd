"""Pictures on their way to a provider: original bytes where possible, and what is sent shows what local
models see."""

import asyncio
import base64
import io
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapters._images import ANTHROPIC_LIMITS, GENERIC_LIMITS, OPENAI_LIMITS, Encoded, Images, Limits, encoded
from harness.errors import PictureError
from harness.pictures import Deferred, Drawing, File, Memory, Picture

ALL = (ANTHROPIC_LIMITS, OPENAI_LIMITS, GENERIC_LIMITS)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode=None)


def written(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(sent: Encoded) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(sent.data)))
    image.load()
    assert Image.MIME[image.format or ""] == sent.media_type
    assert image.size == sent.size
    return image


def same_pixels(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.convert("RGB").tobytes() == other.convert("RGB").tobytes()


@pytest.mark.parametrize("limits", ALL, ids=["anthropic", "openai", "generic"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_of_an_accepted_format_is_sent_byte_for_byte(
    tmp_path: Path, kind: str, limits: Limits
) -> None:
    data = written(noise(40, 30), kind)
    path = tmp_path / "a"
    path.write_bytes(data)
    sent = encoded(Picture(File(path)), limits)
    assert base64.b64decode(sent.data) == data
    assert (sent.media_type, sent.size, sent.note) == (Image.MIME[kind], (40, 30), None)


def test_a_still_gif_is_sent_as_it_is_where_gif_is_accepted() -> None:
    data = written(noise(40, 30).quantize(16), "GIF")
    picture = Picture(Memory(data, "a.gif"))
    assert base64.b64decode(encoded(picture, ANTHROPIC_LIMITS).data) == data
    sent = encoded(picture, GENERIC_LIMITS)
    assert sent.note == "GIF is not accepted: sent as PNG, 40 x 30"
    assert same_pixels(decoded(sent), picture.open())


def animated() -> bytes:
    frames = [Image.new("RGB", (16, 12), color) for color in ("red", "blue")]
    return written(frames[0], "GIF", save_all=True, append_images=frames[1:])


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return written(noise(16, 12), "JPEG", exif=exif)


ODD: dict[str, tuple[Callable[[], bytes], str]] = {
    "animated": (animated, "the first frame"),
    "turned": (turned, "without its orientation tag"),
    "alpha": (lambda: written(noise(16, 12, "RGBA"), "PNG"), "without its transparency"),
    "palette with a clear colour": (
        lambda: written(noise(16, 12).quantize(8), "PNG", transparency=0),
        "without its transparency",
    ),
    "CMYK": (lambda: written(noise(16, 12).convert("CMYK"), "JPEG"), "CMYK pixels"),
    "16 bits": (
        lambda: written(Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16) * 300), "PNG"),
        "I;16 pixels",
    ),
    "BMP": (lambda: written(noise(16, 12), "BMP"), "BMP is not accepted"),
}


@pytest.mark.parametrize("name", ODD)
def test_bytes_that_say_more_than_local_models_see_are_encoded_anew(name: str) -> None:
    make, why = ODD[name]
    picture = Picture(Memory(make(), name))
    sent = encoded(picture, ANTHROPIC_LIMITS)
    assert sent.note == f"{why}: sent as PNG, 16 x 12"
    shown = decoded(sent)
    assert shown.mode == "RGB"
    assert not shown.getexif()
    assert same_pixels(shown, picture.open())


def test_crops_and_drawings_are_sent_as_png() -> None:
    image = noise(40, 30)
    crop = Picture(Memory(written(image, "JPEG"), "a.jpg")).crop((-5, 3, 20, 13))
    sent = encoded(crop, ANTHROPIC_LIMITS)
    assert sent.note == "cropped: sent as PNG, 25 x 10"
    assert same_pixels(decoded(sent), crop.open())
    sent = encoded(Picture(Drawing("noise", (40, 30), lambda: image)), ANTHROPIC_LIMITS)
    assert sent.note == "drawn: sent as PNG, 40 x 30"
    assert same_pixels(decoded(sent), image)


def test_what_is_too_large_as_png_is_sent_as_jpeg_and_scaled_only_if_it_must_be() -> None:
    crop = Picture(Memory(written(noise(210, 160), "JPEG", quality=70), "a.jpg")).crop((0, 0, 200, 150))
    png = len(encoded(crop, ANTHROPIC_LIMITS).data)
    sent = encoded(crop, replace(ANTHROPIC_LIMITS, image_bytes=png - 1))
    assert sent.note == "cropped: sent as JPEG, 200 x 150"
    assert sent.media_type == "image/jpeg"
    limit = len(sent.data) // 2
    sent = encoded(crop, replace(ANTHROPIC_LIMITS, image_bytes=limit))
    width, height = decoded(sent).size
    assert sent.note == f"cropped: sent as JPEG, {width} x {height}, scaled from 200 x 150"
    assert 0.6 * limit < len(sent.data) <= limit
    assert width / height == pytest.approx(4 / 3, abs=0.03)


def test_a_file_over_the_limit_of_bytes_measured_in_base64_is_encoded_anew() -> None:
    data = written(noise(200, 150), "JPEG", quality=100)
    picture = Picture(Memory(data, "a.jpg"))
    in_base64 = len(base64.b64encode(data))
    assert encoded(picture, replace(ANTHROPIC_LIMITS, image_bytes=in_base64)).note is None
    sent = encoded(picture, replace(ANTHROPIC_LIMITS, image_bytes=in_base64 - 1))
    assert sent.note is not None
    assert sent.note.startswith(f"over {in_base64 - 1:,} bytes in base64: sent as JPEG, 200 x 150")


def test_a_side_over_the_limit_is_scaled_to_it() -> None:
    picture = Picture(Memory(written(Image.new("L", (8100, 90)), "PNG"), "wide.png"))
    sent = encoded(picture, ANTHROPIC_LIMITS)
    assert sent.note == "over 8000 pixels a side: sent as PNG, 8000 x 88, scaled from 8100 x 90"
    assert decoded(sent).size == (8000, 88)
    assert encoded(picture, OPENAI_LIMITS).note is None


def test_many_pictures_share_the_limits_of_their_request() -> None:
    assert ANTHROPIC_LIMITS.among(20).side == 8000
    assert ANTHROPIC_LIMITS.among(21).side == 2000
    assert replace(ANTHROPIC_LIMITS, side=900).among(21).side == 900
    for limits in ALL:
        for count in (1, 7, 100):
            assert count * limits.among(count).image_bytes <= 0.9 * limits.request_bytes
    with pytest.raises(PictureError, match="101 pictures in a request; the endpoint takes 100") as raised:
        ANTHROPIC_LIMITS.among(101)
    assert raised.value.kind == "too_many_pictures"


def test_no_picture_fits_into_nothing() -> None:
    with pytest.raises(PictureError, match="no picture fits into 300 bytes"):
        encoded(
            Picture(Drawing("n", (90, 90), lambda: noise(90, 90))), replace(OPENAI_LIMITS, image_bytes=300)
        )


def test_a_damaged_file_is_a_picture_error_and_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(written(noise(40, 30), "JPEG")[:-200])
    images = Images(ANTHROPIC_LIMITS)
    with pytest.raises(PictureError, match=r"a\.jpg is damaged"):
        asyncio.run(images.get(Picture(File(path))))
    path.write_bytes(written(noise(41, 30), "JPEG"))
    assert asyncio.run(images.get(Picture(File(path)))).size == (41, 30)


def counted(data: bytes, reads: list[str], label: str) -> Picture:
    def load() -> bytes:
        reads.append(threading.current_thread().name)
        return data

    return Picture(Deferred(label, load))


def test_concurrent_requests_share_one_encoding_and_none_is_made_on_the_event_loop() -> None:
    """A thousand requests at once that show one picture."""
    reads: list[str] = []
    data = written(noise(64, 48), "PNG")

    class Marked(Picture):
        @property
        def digest(self) -> str:  # known beforehand, as that of a file is
            return "one"

    images = Images(ANTHROPIC_LIMITS)
    picture = Marked(counted(data, reads, "a").source)

    async def ask() -> list[Encoded]:
        return await asyncio.gather(*(images.get(picture) for _ in range(1000)))

    sent = asyncio.run(ask())
    assert len(reads) == 1
    assert reads[0].startswith("fovea-images")
    assert len({id(one.data) for one in sent}) == 1


def test_the_store_is_bounded_and_forgets_what_was_used_longest_ago() -> None:
    reads: dict[str, list[str]] = {name: [] for name in "abc"}
    pictures = {
        name: counted(written(noise(60 + i, 40), "PNG"), reads[name], name) for i, name in enumerate("abc")
    }
    size = len(base64.b64encode(written(noise(62, 40), "PNG")))
    images = Images(ANTHROPIC_LIMITS, store_bytes=2 * size)

    def ask(order: str) -> str:
        """The pictures that were encoded, not found."""
        made = []
        for name in order:
            picture = pictures[name]
            picture.digest  # noqa: B018 (reads the bytes once, here)
            before = len(reads[name])
            asyncio.run(images.get(picture))
            if len(reads[name]) > before:
                made.append(name)
        return "".join(made)

    assert ask("aba") == "ab"
    assert ask("c") == "c"  # b goes, it was used before a
    assert ask("acb") == "b"
