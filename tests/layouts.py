"""Tiny invented datasets on disk, in the layouts that the real ones have upstream."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image


def jpeg(color: tuple[int, int, int] = (90, 120, 30), size: tuple[int, int] = (32, 24)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "JPEG")
    return buffer.getvalue()


def gigapixel() -> bytes:
    """A PNG of a few bytes whose header promises 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg())


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def hub(root: Path, tables: Mapping[str, tuple[str, Sequence[Mapping[str, Any]]]]) -> str:
    """A dataset repository's folder: tables by configuration, each (split, rows); bytes are pictures."""
    import datasets

    configs = []
    for config, (split, rows) in tables.items():
        columns: dict[str, list[Any]] = {key: [row[key] for row in rows] for key in rows[0]}
        for key, values in columns.items():
            if isinstance(values[0], bytes):
                columns[key] = [{"bytes": value, "path": None} for value in values]
        table = datasets.Dataset.from_dict(columns)
        for key, values in columns.items():
            if isinstance(values[0], dict) and "bytes" in values[0]:
                table = table.cast_column(key, datasets.Image())
        path = root / config / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)
        configs.append((config, split, path.relative_to(root)))
    listed = "".join(
        f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {path}\n"
        for config, split, path in configs
    )
    (root / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    return str(root)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(root: Path, name: str) -> Iterator[str]:
    """The folder of `hub` as the dataset `name` on a loopback hub whose only commit is COMMIT: its URL."""
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    listing = [
        {"type": "file", "path": file, "size": path.stat().st_size, "oid": "0" * 40}
        for file, path in files.items()
    ]
    about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith(f"/api/datasets/{name}/tree/"):
                self.reply(json.dumps(listing).encode())
            elif path.startswith(f"/api/datasets/{name}"):
                self.reply(json.dumps(about).encode())
            elif path.startswith(f"/datasets/{name}/resolve/"):
                file = files.get(path.split("/resolve/")[1].partition("/")[2])
                self.reply(file.read_bytes() if file else b"", "EntryNotFound" if file is None else "")
            else:
                self.reply(b"", "RepoNotFound")

        do_HEAD = do_GET

        def reply(self, body: bytes, fault: str = "") -> None:
            self.send_response(404 if fault else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            if fault:
                self.send_header("X-Error-Code", fault)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


TEXTVQA = {
    "question_id": 90001,
    "question": "what does the NYPD sign say?",
    "image_id": "00aa11",
    "answers": ["acme"] * 8 + ["ACME", "ace"],
    "set_name": "val",
}
DOCVQA = {
    "questionId": 70001,
    "question": "What is the invoice total?",
    "question_types": ["form", "layout"],
    "image": "documents/abcd0001_3.png",
    "docId": 9001,
    "ucsf_document_id": "abcd0001",
    "ucsf_document_page_no": "3",
    "answers": ["$ 41.20", "41.20"],
}
GQA = {
    "imageId": "n1001",
    "question": "Is the cup red?",
    "answer": "no",
    "isBalanced": True,
    "types": {"detailed": "verifyAttr", "semantic": "attr", "structural": "verify"},
    "semantic": [{"operation": "select", "dependencies": [], "argument": "cup (101)"}],
}
AOKVQA = {
    "split": "val",
    "image_id": 123456,
    "question_id": "ZZinventedZZ",
    "question": "What could be carried in the basket?",
    "choices": ["rope", "fruit", "sand", "tires"],
    "correct_choice_idx": 1,
    "direct_answers": ["fruit"] * 7 + ["apples", "bread", "food"],
    "difficult_direct_answer": False,
}
VQAV2_QUESTION = {"image_id": 900001, "question": "How many cups?", "question_id": 900001000}
VQAV2_ANNOTATION = {
    "question_id": 900001000,
    "image_id": 900001,
    "question_type": "how many",
    "answer_type": "number",
    "multiple_choice_answer": "2",
    "answers": [{"answer": "2", "answer_confidence": "yes", "answer_id": k} for k in range(1, 11)],
}
VSTAR = {
    "question_id": 0,
    "image": "direct_attributes/sa_1.jpg",
    "category": "direct_attributes",
    "label": "B",
    "text": "What is the color of the mug?\n(A) red\n(B) teal\n(C) gray\n(D) pink\n"
    "Answer with the option's letter from the given choices directly.",
}
POPE = {"question_id": 1, "image": "COCO_val2014_000000000042.jpg", "text": "Is there a kite in the image?"}
POPE_HUB = {
    "id": "0",
    "question_id": "1",
    "question": "Is there a kite in the image?",
    "answer": "yes",
    "image_source": "COCO_val2014_000000000042",
    "category": "random",
}
VICROP = {
    "id": "0000000001",
    "question": "What is on the sign?",
    "labels": ["stop"] * 10,
    "image_path": "a.jpg",
    "short_question": "the sign?",
}


def textvqa(root: Path, **changes: Any) -> Path:
    write(root / "TextVQA_0.5.1_val.json", {"data": [{**TEXTVQA, **changes}]})
    ocr = [{"image_id": "00aa11", "ocr_tokens": ["ACME", "CO, LTD"]}]
    write(root / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": ocr})
    picture(root / "train_images" / "00aa11.jpg")
    return root


def docvqa(root: Path, **changes: Any) -> Path:
    write(root / "spdocvqa_qas" / "val_v1.0_withQT.json", {"data": [{**DOCVQA, **changes}]})
    picture(root / "spdocvqa_images" / "abcd0001_3.png")
    return root


def gqa(root: Path, **changes: Any) -> Path:
    write(root / "testdev_balanced_questions.json", {"00126851": {**GQA, **changes}})
    picture(root / "images" / "n1001.jpg")
    return root


def aokvqa(root: Path, **changes: Any) -> Path:
    write(root / "aokvqa_v1p0_val.json", [{**AOKVQA, **changes}])
    picture(root / "val2017" / "000000123456.jpg")
    return root


def vqav2(root: Path, **changes: Any) -> Path:
    questions = {"questions": [{**VQAV2_QUESTION, **changes}]}
    write(root / "v2_OpenEnded_mscoco_val2014_questions.json", questions)
    write(root / "v2_mscoco_val2014_annotations.json", {"annotations": [VQAV2_ANNOTATION]})
    picture(root / "val2014" / "COCO_val2014_000000900001.jpg")
    return root


def vstar(root: Path, **changes: Any) -> Path:
    lines(root / "test_questions.jsonl", [{**VSTAR, **changes}])
    picture(root / "direct_attributes" / "sa_1.jpg")
    return root


def pope(root: Path, **changes: Any) -> Path:
    lines(root / "coco_pope_random.json", [{**POPE, "label": "yes", **changes}])
    picture(root / "val2014" / "COCO_val2014_000000000042.jpg")
    return root
