"""Pictures are references; each bad one says what is wrong with it."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from harness.errors import PictureError
from harness.pictures import Drawing, File, Member, Memory, Picture, picture_in


def png(size: tuple[int, int] = (8, 6), color: tuple[int, int, int] = (200, 10, 10)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def gigapixel() -> bytes:
    """A PNG whose header promises 32,000 x 32,000 pixels; a few hundred kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 32_000, 32_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 4001 * 9))


def test_size_and_digest_need_no_decoding(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png()[:-20])  # damaged behind the header
    picture = Picture(File(path))
    assert picture.size == (8, 6)
    assert len(picture.digest) == 64


def test_the_same_bytes_have_the_same_digest_wherever_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/a.png", png())
    sources = [File(tmp_path / "a.png"), Member(tmp_path / "a.zip", "x/a.png"), Memory(png(), "a")]
    assert len({Picture(source).digest for source in sources}) == 1
    assert {Picture(source).open().size for source in sources} == {(8, 6)}


def test_a_changed_file_has_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    before = Picture(File(path)).digest
    path.write_bytes(png(color=(0, 0, 0)))
    assert Picture(File(path)).digest != before


def test_crops_chain_in_each_others_coordinates() -> None:
    image = Image.new("RGB", (10, 10))
    image.putpixel((5, 6), (255, 255, 255))
    picture = Picture(Drawing("d", (10, 10), lambda: image)).crop((4, 4, 9, 9)).crop((1, 2, 2, 3))
    assert picture.size == (1, 1)
    assert picture.open().getpixel((0, 0)) == (255, 255, 255)
    assert picture.digest != Picture(Drawing("d", (10, 10), lambda: image)).digest


def test_an_empty_crop_is_refused() -> None:
    with pytest.raises(ValueError, match="is empty"):
        Picture(Memory(png(), "a")).crop((3, 3, 3, 5))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"<svg></svg>", "not_a_picture"),
        (b"", "not_a_picture"),
        (png()[:50], "damaged_picture"),
        (gigapixel(), "oversized_picture"),
    ],
    ids=["text", "empty", "truncated", "gigapixel"],
)
def test_each_bad_picture_says_what_is_wrong(tmp_path: Path, data: bytes, kind: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(PictureError, match=r"bad\.png") as raised:
        Picture(File(path)).open()
    assert raised.value.kind == kind


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    for ask in (Picture.open, lambda p: p.size, lambda p: p.digest):
        with pytest.raises(PictureError, match=r"none\.png does not exist") as raised:
            ask(Picture(File(tmp_path / "none.png")))
        assert raised.value.kind == "missing_picture"


def test_a_picture_between_the_warning_and_the_error_limit_of_pillow_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (10_000, 9_000)).save(path)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(PictureError, match="10000 x 9000"):
        Picture(File(path)).open()


def test_a_record_cannot_reach_outside_its_folder(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    for name in (
        "../secret.png",
        str(tmp_path / "secret.png"),
        "a/../../secret.png",
        "..",
        "",
        "a\\..\\..\\b",
    ):
        with pytest.raises(PictureError, match="outside") as raised:
            picture_in(root, name).open()
        assert raised.value.kind == "refused_picture"


def test_links_that_the_user_made_are_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.png").write_bytes(png())
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    assert picture_in(tmp_path / "images", "./link.png").open().size == (8, 6)
