"""`fovea data`: what it says, what it finds wrong, and what it fetches, from a real server on loopback."""

import hashlib
import io
import json
import re
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import DataError, SpecError
from harness.resolve import make_task, parse
from tasks import _data, iiw400
from tasks._source import Download, Source

BODY = bytes(range(256)) * 5000


@dataclass
class Served:
    """What the server does with its files, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    tag: str = '"one"'
    ranges: bool = True
    cut: list[int] = field(default_factory=list)  # bytes after which the next connections end
    codes: list[int] = field(default_factory=list)  # answers of the next connections instead
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def file(self, name: str, body: bytes, **known: Any) -> Download:
        self.files[f"/{name}"] = body
        return Download(name, f"{self.url}/{name}", **known)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    state = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append((self.path, wanted))
            if state.codes:
                self.send_error(state.codes.pop(0))
                return
            body = state.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            start = 0
            fresh = self.headers.get("If-Range") in (None, state.tag)
            if wanted and state.ranges and fresh:
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
                if start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(body) - start))
            self.send_header("ETag", state.tag)
            self.end_headers()
            part = body[start:]
            self.wfile.write(part[: state.cut.pop(0)] if state.cut else part)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(_data, "PAUSE", 0.0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def silent(what: str, done: int, total: int | None) -> None:
    """No progress."""


def get(file: Download, root: Path) -> list[str]:
    return _data.fetch(Source("Things", "CC0", "things", files=(file,)), root, silent)


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


# ---------------------------------------------------------------- downloading


def test_a_file_is_fetched_once_and_checked(served: Served, tmp_path: Path) -> None:
    file = served.file("a.json", BODY, size=len(BODY), sha256=sha(BODY))
    seen: list[tuple[str, int, int | None]] = []
    source = Source("Things", "CC0", "things", files=(file,))
    assert _data.fetch(source, tmp_path / "new", lambda *told: seen.append(told)) == []
    assert (tmp_path / "new" / "a.json").read_bytes() == BODY
    assert seen[-1] == ("a.json", len(BODY), len(BODY))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]
    assert get(file, tmp_path / "new") == []
    assert len(served.asked) == 1


def test_a_transfer_that_is_cut_goes_on_where_it_stopped(served: Served, tmp_path: Path) -> None:
    file = served.file("a.bin", BODY, sha256=sha(BODY))
    served.cut = [1000, 500_000, 0, 7]
    assert get(file, tmp_path) == []
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert [wanted for _, wanted in served.asked] == [
        None,
        "bytes=1000-",
        "bytes=501000-",
        "bytes=501000-",
        "bytes=501007-",
    ]


def test_a_later_command_goes_on_too(served: Served, tmp_path: Path) -> None:
    file = served.file("a.bin", BODY, sha256=sha(BODY))
    served.cut = [1000] + [0] * _data.ATTEMPTS
    (fault,) = get(file, tmp_path)
    assert "cannot be read (the connection ended early); 1.0 kB are kept. Repeat the command" in fault
    assert not (tmp_path / "a.bin").exists()
    served.asked.clear()
    assert get(file, tmp_path) == []
    assert served.asked == [("/a.bin", "bytes=1000-")]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_two_versions_of_a_file_are_never_spliced(served: Served, tmp_path: Path) -> None:
    file = served.file("a.bin", BODY)
    served.cut = [1000] + [0] * _data.ATTEMPTS
    assert get(file, tmp_path)
    served.tag, served.files["/a.bin"] = '"two"', BODY[::-1]
    assert get(file, tmp_path) == []
    assert (tmp_path / "a.bin").read_bytes() == BODY[::-1]


def test_a_server_without_ranges_begins_again(served: Served, tmp_path: Path) -> None:
    file = served.file("a.bin", BODY)
    served.ranges, served.cut = False, [1000]
    assert get(file, tmp_path) == []
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_partial_file_that_is_whole_or_too_long_is_understood(served: Served, tmp_path: Path) -> None:
    file = served.file("a.bin", BODY)
    (tmp_path / "a.bin.partial").write_bytes(BODY)
    assert get(file, tmp_path) == []
    assert (tmp_path / "a.bin").read_bytes() == BODY
    (tmp_path / "a.bin").unlink()
    (tmp_path / "a.bin.partial").write_bytes(BODY + b"more")
    assert get(file, tmp_path) == []
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(served: Served, tmp_path: Path) -> None:
    file = served.file("a.bin", BODY)
    served.codes = [503, 429, 500]
    assert get(file, tmp_path) == []
    served.asked.clear()
    (fault,) = get(Download("b.bin", f"{served.url}/b.bin"), tmp_path)
    assert fault == f"b.bin: {served.url}/b.bin answers 404 Not Found"
    assert len(served.asked) == 1
    served.codes = [503] * _data.ATTEMPTS
    (fault,) = get(served.file("c.bin", BODY), tmp_path)
    assert "cannot be read (503 Service Unavailable)" in fault


def test_nobody_at_the_address_is_a_fault_and_keeps_no_other_file(served: Served, tmp_path: Path) -> None:
    nobody = Download("x", "http://127.0.0.1:9/x")
    source = Source("Things", "CC0", "x", files=(nobody, served.file("a.bin", BODY)))
    (fault,) = _data.fetch(source, tmp_path, silent)
    assert fault.startswith("x: http://127.0.0.1:9/x cannot be read")
    assert (tmp_path / "a.bin").exists()


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"size": len(BODY) + 1}, r"sent has 1,280,000 bytes; 1,280,001 are expected; it was thrown away"),
        ({"sha256": "0" * 64}, r"sent is not the known file: its sha256 is .*, not 0000"),
    ],
)
def test_what_is_not_the_known_file_is_thrown_away(
    served: Served, tmp_path: Path, known: dict[str, Any], said: str
) -> None:
    (fault,) = get(served.file("a.bin", BODY, **known), tmp_path)
    assert re.search(said, fault)
    assert list(tmp_path.iterdir()) == []


def test_a_users_own_file_is_never_thrown_away(served: Served, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"mine")
    (fault,) = get(served.file("a.bin", BODY, size=len(BODY)), tmp_path)
    assert "has 4 bytes; 1,280,000 are expected. Move it away, and it is fetched" in fault
    assert (tmp_path / "a.bin").read_bytes() == b"mine"
    assert served.asked == []


# ---------------------------------------------------------------- archives


def zipped(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return data.getvalue()


def tarred(members: dict[str, bytes], *special: tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as archive:  # type: ignore[call-overload]
        for info in special:
            archive.addfile(info)
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return data.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("pack", [zipped, tarred, lambda members: tarred(members, mode="w")])
def test_an_archive_is_unpacked_once(served: Served, tmp_path: Path, pack: Any) -> None:
    body = pack({"images/a.jpg": b"a" * 1000, "images/deep/b.jpg": b"b", "./list.txt": b"c"})
    file = served.file("pack", body, unpack="data")
    assert get(file, tmp_path) == []
    assert (tmp_path / "data" / "images" / "a.jpg").read_bytes() == b"a" * 1000
    assert (tmp_path / "data" / "images" / "deep" / "b.jpg").read_bytes() == b"b"
    assert (tmp_path / "data" / "list.txt").read_bytes() == b"c"
    (tmp_path / "pack").unlink()  # it has served its purpose
    assert get(file, tmp_path) == []
    assert len(served.asked) == 1


def test_what_an_interrupted_unpacking_left_is_replaced(served: Served, tmp_path: Path) -> None:
    file = served.file("pack.zip", zipped({"a": b"aaaa", "b": b"bbbb"}), unpack=".")
    assert get(file, tmp_path) == []
    (tmp_path / "pack.zip.unpacked").unlink()
    (tmp_path / "a").write_bytes(b"aa")  # torn
    assert get(file, tmp_path) == []
    assert (tmp_path / "a").read_bytes() == b"aaaa"
    assert len(served.asked) == 1


EVIL = ["../evil", "a/../../evil", "/evil", "..\\evil", "a\\b"]


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_no_member_leaves_the_folder(served: Served, tmp_path: Path, pack: Any, name: str) -> None:
    root = tmp_path / "root"
    (fault,) = get(served.file("pack", pack({"good": b"1", name: b"2"}), unpack="data"), root)
    assert "would lie outside its folder; it was refused" in fault
    assert not list(tmp_path.rglob("*evil*")) and not Path("/evil").exists()
    assert not (root / "pack.unpacked").exists()


@pytest.mark.parametrize(
    "special",
    [
        link("out", "../.."),
        link("out", "/etc"),
        link("hard", "../../secret", tarfile.LNKTYPE),
        link("pipe", "", tarfile.FIFOTYPE),
        link("device", "", tarfile.CHRTYPE),
    ],
)
def test_links_and_devices_are_never_made(served: Served, tmp_path: Path, special: tarfile.TarInfo) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    root = tmp_path / "root"
    (fault,) = get(served.file("pack", tarred({"out/evil": b"2"}, special), unpack="data"), root)
    assert "is a link or a device; nothing of it is made" in fault
    assert not list(tmp_path.rglob("evil"))
    assert not any(path.is_symlink() for path in root.rglob("*"))


def test_an_archive_that_grows_beyond_measure_is_refused(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pack in (zipped, tarred):
        packed = pack({"bomb": b"0" * 5_000_000})
        monkeypatch.setattr(_data, "_EXPANSION", -((1 << 30) // len(packed)))
        (fault,) = get(served.file(pack.__name__, packed, unpack="data"), tmp_path)
        assert "times its size; it was refused" in fault
        assert not (tmp_path / "data" / "bomb").exists()


@pytest.mark.parametrize("cut", [0.5, 0.9])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_damaged_archive_is_a_fault(served: Served, tmp_path: Path, pack: Any, cut: float) -> None:
    noise = bytes(k * k % 251 for k in range(60_000))
    body = pack({"a": noise, "b": noise[::-1]})
    (fault,) = get(served.file("pack", body[: int(len(body) * cut)], unpack="."), tmp_path)
    assert "cannot be unpacked" in fault
    spoilt = bytearray(body)
    spoilt[200:260] = b"\0" * 60
    (tmp_path / "pack").unlink()
    (fault,) = get(served.file("pack", bytes(spoilt), unpack="."), tmp_path)
    assert "cannot be unpacked" in fault


# ---------------------------------------------------------------- the command


def jpeg(size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (10, 200, 10)).save(buffer, "JPEG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG that claims a gigapixel: a header, and no pixels."""
    png = io.BytesIO()
    Image.new("L", (1, 1)).save(png, "PNG")
    body = bytearray(png.getvalue())
    body[16:24] = (40_000).to_bytes(4, "big") + (30_000).to_bytes(4, "big")
    body[29:33] = zlib.crc32(bytes(body[12:29])).to_bytes(4, "big")
    return bytes(body)


def iiw(number: int) -> dict[str, bytes]:
    """IIW-400's files, of another length."""
    names = [f"aar_test_{4600 + k:05}" for k in range(number)]
    rows = [{"IIW": f"Thing {k}.", "image/key": name} for k, name in enumerate(names)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return {"data.jsonl": text} | {f"images_aar/{name}.jpg": jpeg() for name in names}


def written(root: Path, files: dict[str, bytes]) -> Path:
    for name, body in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(body)
    return root


def fovea(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["data", *map(str, words)])


def ask(text: str, into: Path | None = None) -> tuple[list[str], list[str]]:
    said: list[str] = []
    faults = _data.data(text, into, parse=parse, make=make_task, say=said.append, progress=silent)
    return faults, said


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "iiw400",
            ["ImageInWords", "licence  CC BY 4.0", "data.jsonl (980.2 kB)", "docci_images_aar.tar.gz"],
        ),
        ("docci", ["DOCCI", "CC BY 4.0", "docci_descriptions.jsonlines", "hub      https://huggingface.co/"]),
        ("coco_chair", ["annotations_trainval2014.zip (252.9 MB) unpacked into .", "val2014.zip (6.6 GB)"]),
        ("coco_caption", ["caption_datasets.zip (36.7 MB)", "split=karpathy"]),
        ("coco_retrieval", ["Karpathy's splits", "caption_datasets.zip"]),
        ("flickr30k_retrieval", ["form     the images: https://forms.illinois.edu/"]),
    ],
)
def test_a_name_alone_says_where_files_come_from_under_which_licence(name: str, parts: Sequence[str]) -> None:
    done = fovea(name)
    assert done.exit_code == 0, done.output
    for part in [*parts, f"fovea data {name}:root=DIR"]:
        assert part in done.output


def test_files_that_are_all_there_are_no_fault(tmp_path: Path) -> None:
    done = fovea(f"iiw400:root={written(tmp_path, iiw(3))},size=any")
    assert done.exit_code == 0, done.output
    assert "3 samples, 3 pictures, of which 0 cannot be read" in done.output


def test_wrong_counts_and_broken_files_are_faults(tmp_path: Path) -> None:
    done = fovea(f"iiw400:root={written(tmp_path, iiw(3))}")
    assert done.exit_code == 1
    assert "iiw400 has 3 samples; 400 are expected" in done.output
    (tmp_path / "data.jsonl").write_text("{")
    done = fovea(f"iiw400:{tmp_path},size=any")
    assert done.exit_code == 1 and "data.jsonl, line 1 is not JSON" in done.output
    done = fovea(f"iiw400:root={tmp_path / 'none'}")
    assert done.exit_code == 1 and "none does not exist; it should hold data.jsonl" in done.output


def test_each_picture_has_its_own_fault_and_loses_nothing_else(tmp_path: Path) -> None:
    files = iiw(6)
    names = [name for name in files if name.startswith("images")]
    cut = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(cut, "JPEG")
    files |= {names[0]: cut.getvalue()[:-900], names[1]: b"no picture", names[2]: bomb()}
    del files[names[3]]
    written(tmp_path, files)
    lines = (tmp_path / "data.jsonl").read_text().replace("aar_test_04604", "../secret")
    (tmp_path / "data.jsonl").write_text(lines)
    faults, said = ask(f"iiw400:root={tmp_path},size=any")
    assert said[-1] == "6 samples, 6 pictures, of which 5 cannot be read"
    assert [fault.partition(": ")[0] for fault in faults] == [
        "aar_test_04600",
        "aar_test_04601",
        "aar_test_04602",
        "aar_test_04603",
        "../secret",
    ]
    for fault, part in zip(
        faults, ["damaged", "not a picture", "too large", "not exist", "outside its folder"], strict=True
    ):
        assert part in fault


def test_at_most_twenty_faults_are_listed(tmp_path: Path) -> None:
    files = {"data.jsonl": iiw(50)["data.jsonl"], "images_aar/none": b""}
    done = fovea(f"iiw400:root={written(tmp_path, files)},size=any")
    assert done.exit_code == 1
    assert len(re.findall("does not exist", done.output)) == 20
    assert "and 30 more" in done.output


def test_a_picture_that_many_samples_share_is_looked_at_once(tmp_path: Path) -> None:
    rows = [{"image": "a.jpg", "question": f"{k}?", "answer": "x"} for k in range(5)]
    written(tmp_path, {"a.jpg": jpeg(), "q.jsonl": "\n".join(map(json.dumps, rows)).encode()})
    done = fovea(f"vqa_file:{tmp_path}/q.jsonl")
    assert done.exit_code == 0 and "5 samples, 1 pictures" in done.output


def test_pools_for_retrieval_are_checked_too(tmp_path: Path) -> None:
    captions, ids = "a dog .\n" * 10, "42\n" * 5 + "7\n" * 5
    files = {"testall_caps.txt": captions.encode(), "testall_ids.txt": ids.encode()}
    files["val2014/COCO_val2014_000000000042.jpg"] = jpeg()
    written(tmp_path, files)
    faults, said = ask(f"coco_retrieval:root={tmp_path},size=any")
    assert said[-1] == "10 captions, 2 pictures, of which 1 cannot be read"
    assert faults[0].startswith("7: ") and "does not exist" in faults[0]
    with pytest.raises(SpecError, match="no knob 'splt'. Did you mean split"):
        ask(f"coco_retrieval:root={tmp_path},splt=val")


def test_an_unknown_name_gets_the_nearest() -> None:
    for name in ("iiw40", "_data", "os"):
        assert fovea(name).exit_code == 2
    assert "Did you mean iiw400?" in fovea("iiw40").output


def test_fetching_brings_unpacks_and_checks(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = iiw(3)
    text = files.pop("data.jsonl")
    source = replace(
        iiw400.SOURCE,
        files=(
            served.file("data.jsonl", text, size=len(text), sha256=sha(text)),
            served.file("docci_images_aar.tar.gz", tarred(files), unpack="."),
        ),
    )
    monkeypatch.setattr(iiw400, "SOURCE", source)
    served.cut = [50]
    root = tmp_path / "iiw"
    done = fovea("iiw400:size=any", "--fetch", root)
    assert done.exit_code == 0, done.output
    assert "3 samples, 3 pictures, of which 0 cannot be read" in done.output
    served.asked.clear()
    assert fovea("iiw400:size=any", "--fetch", root).exit_code == 0
    assert fovea(f"iiw400:root={root},size=any").exit_code == 0
    assert served.asked == []


def test_files_that_were_unpacked_by_hand_are_not_fetched_again(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        iiw400, "SOURCE", replace(iiw400.SOURCE, files=(served.file("a.tar", b"x", unpack="."),))
    )
    done = fovea("iiw400:size=any", "--fetch", written(tmp_path, iiw(2)))
    assert done.exit_code == 0 and served.asked == []


def test_what_needs_a_form_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form = "ask the keeper: https://example.org/form"
    monkeypatch.setattr(iiw400, "SOURCE", Source("Locked", "research", "things", form=form))
    done = fovea("iiw400", "--fetch", tmp_path)
    assert done.exit_code == 1
    assert f"form     {form}" in done.output
    assert f"nothing of Locked can be downloaded openly. {form}" in done.output
    with pytest.raises(SpecError, match="nothing is known of where the files of vqa_file come from"):
        ask("vqa_file:none.jsonl", tmp_path)


def test_a_name_that_would_lie_outside_is_refused_of_a_download_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="would lie outside its folder"):
        _data._inside(tmp_path, "../x")
