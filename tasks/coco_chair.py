"""CHAIR over a folder of images with a list of objects for each: captions, and what they make up.

Knows the folder's format and the prompt. Must not know: models, methods, how words are counted.

Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018; the prompt and the length of
SPARC (arXiv 2502.01419, `eval.py`) and of lmms-eval (`coco_cap_chair`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from harness.errors import DataError
from harness.pictures import picture_in
from harness.types import Decoding, Request, Sample, Task
from metrics import chair
from tasks._source import DETAIL, Row, check_folder, check_ids, fingerprint, rows

Protocol = Literal["sparc", "lmms"]

_TOKENS: dict[Protocol, int] = {"sparc": 512, "lmms": 2048}

_FORMAT = "images, and annotations.jsonl with image_id, file_name and objects in each line"


def task(
    root: Path,
    *,
    protocol: Protocol = "sparc",
    front_end: chair.FrontEnd = "wordnet",
    vocabulary: chair.VocabularyName = "coco",
    images: Path | None = None,
) -> Task:
    """Detailed captions scored by CHAIR, over the images of a folder.

    root: holds annotations.jsonl (or .json, or the only such file whatever its name), one object per
    image with `file_name`, `objects` and, unless the file's stem will do, `image_id`. An object is a COCO
    category, or a synonym that CHAIR knows. images: the folder of the images, by default root/images,
    or root itself. protocol: new tokens at most, 512 (`sparc`) or 2,048 (`lmms`); CHAIRs depends on it.
    front_end, vocabulary: how the metric finds objects (see metrics/chair.py).

    CHAIRs ranks, lower is better: the share of captions with an object that is not there is what papers
    on hallucination put first (OPERA, SPARC), with CHAIRi and Recall beside it.
    """
    root = check_folder(Path(root), _FORMAT)
    annotations = _annotations(root)
    default = root / "images" if (root / "images").is_dir() else root
    folder = default if images is None else check_folder(Path(images), "the images")
    chair.base_forms(front_end)  # data that is missing must show before anything is generated
    found = rows(annotations)
    samples = [_sample(row, folder, vocabulary) for row in found]
    check_ids((sample.id, row.where) for sample, row in zip(samples, found, strict=True))
    decoding = Decoding(max_tokens=_TOKENS[protocol])
    return Task(
        name="coco_chair",
        version="1",
        protocol=protocol,
        fingerprint=fingerprint([annotations]),
        samples=samples,
        request=lambda sample: Request(sample.images, sample.question, decoding=decoding),
        metrics=(chair.metric(front_end, vocabulary),),
        primary="CHAIRs",
    )


def _sample(row: Row, folder: Path, vocabulary: chair.VocabularyName) -> Sample:
    name = row.text("file_name", "image")
    if not isinstance(row.get("objects"), list):
        raise DataError(f"{row.where} has no list of objects; an image without any has an empty one")
    nodes = []
    for thing in row.texts("objects"):
        node = chair.node_word(thing, vocabulary)
        if node is None:
            raise DataError(
                f"{row.where}: {thing!r} is no object that CHAIR counts (vocabulary={vocabulary}); remove it"
            )
        nodes.append(node)
    return Sample(
        id=Path(name).stem if row.get("image_id") is None else row.text("image_id"),
        images=(picture_in(folder, name),),
        question=DETAIL,
        targets=tuple(dict.fromkeys(nodes)),
        meta={"image": name},
    )


def _annotations(root: Path) -> Path:
    named = [root / "annotations.jsonl", root / "annotations.json"]
    other = sorted([*root.glob("*.jsonl"), *root.glob("*.json")])
    present = [path for path in named if path.exists()] or other
    if not present:
        raise DataError(f"{root} has no annotations; it should hold {_FORMAT}")
    if len(present) > 1 and present[0] not in named:
        names = ", ".join(path.name for path in present)
        raise DataError(f"{root} holds {names}: call the one with the objects annotations.jsonl")
    return present[0]
