"""Tiny invented datasets on disk, in the layouts that the real ones have upstream."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def jpeg(color: tuple[int, int, int] = (90, 120, 30), size: tuple[int, int] = (32, 24)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "JPEG")
    return buffer.getvalue()


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
