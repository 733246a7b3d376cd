"""POPE: is there such an object in the image? Yes/no questions over COCO, in three kinds of negatives.

Knows the official files, their two revisions and the protocols in circulation. Must not know: models,
methods. Official files: https://github.com/RUCAIBox/POPE `output/coco/` (MIT); images COCO val2014.

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from harness.errors import DataError
from harness.pictures import Picture, picture_in
from harness.types import Decoding, Request, Sample, Task
from metrics import yesno
from tasks import _hub
from tasks._source import (
    SHORT,
    Download,
    Loaded,
    Row,
    Size,
    Source,
    check_folder,
    check_size,
    fingerprint,
    rows,
    samples_of,
    short_question,
    vicrop,
    vicrop_sample,
)

_COMMIT = "e3e39262c85a6a83f26cf5094022a782cb0df58d"  # LLaVA's pin: 2,910 random questions
_FILES = f"https://raw.githubusercontent.com/RUCAIBox/POPE/{_COMMIT}/output/coco"

SOURCE = Source(
    title="POPE on COCO",
    size="3 x 3,000 (random 2,910 in LLaVA's revision)",
    metric="mean F1 of the three kinds",
    licence="MIT (annotations); images: COCO 2014's terms",
    layout="coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json, val2014/",
    hub=("lmms-lab/POPE", "lmms-lab-encoder/POPE"),
    files=(
        Download("coco_pope_random.json", f"{_FILES}/coco_pope_random.json"),
        Download("coco_pope_popular.json", f"{_FILES}/coco_pope_popular.json"),
        Download("coco_pope_adversarial.json", f"{_FILES}/coco_pope_adversarial.json"),
        Download("val2014.zip", "http://images.cocodataset.org/zips/val2014.zip", unpack="."),
    ),
)

Category = Literal["random", "popular", "adversarial"]
Protocol = Literal["llava", "lmms", "vicrop", "vlmevalkit"]

_PROTOCOLS: dict[Protocol, tuple[str, int, str]] = {
    "llava": (f"\n{SHORT}", 128, "mean_f1"),
    "lmms": (f"\n{SHORT}", 128, "f1"),
    "vicrop": (f" {SHORT}", 20, "accuracy"),
    "vlmevalkit": ("", 2048, "f1"),
}
"""Instruction, new tokens at most, the number that ranks. VLMEvalKit leaves the tokens to the model; 2,048
is what its LLaVA wrapper takes."""

_PARSERS: dict[Protocol, yesno.Parser] = {
    "llava": "official",
    "lmms": "lmms",
    "vicrop": "vicrop",
    "vlmevalkit": "vlmevalkit",
}

_SIZES: dict[Category, tuple[int, ...]] = {"random": (3000, 2910), "popular": (3000,), "adversarial": (3000,)}

_REVISIONS = {
    "c16b65d2": "e3e3926",
    "5b166530": "e3e3926",
    "1d8f0906": "e3e3926",
    "ac252451": "109985c",
    "72c1a8ad": "109985c",
    "420b3407": "109985c",
}
"""The commit of the official repository that has a file, by the first digits of the file's sha256. LLaVA
pins e3e3926 (2,910 random questions, and "imange" for "image" in some); 109985c is the newest."""


def task(
    root: Path | None = None,
    *,
    protocol: Protocol = "llava",
    categories: tuple[Category, ...] = ("random", "popular", "adversarial"),
    parser: yesno.Parser | None = None,
    images: Path | None = None,
    format: Literal["official", "vicrop"] = "official",
    subset: str | None = None,
    size: Size = "official",
    hf_id: str | None = None,
    revision: str | None = None,
) -> Task:
    """POPE on COCO: 3 x 3,000 questions (2,910 random ones in the revision that LLaVA pins).

    root: the folder with coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json, or
    with a folder coco that has them, as LLaVA's; without it, the hub. protocol: the prompt, and the parser
    and number of that code base: `llava` (ranked by the mean of the categories' F1), `lmms` and
    `vlmevalkit` (pooled F1), `vicrop` (accuracy). categories: which, as in categories=random+popular.
    parser: another than the protocol's. images: the folder of COCO's val2014 images, by default
    root/val2014, root/images/val2014, root/images or root itself, the first that exists. format=vicrop:
    root is ViCrop's unified file. subset: as in random:500@seed=42. size=any: files of other lengths.
    hf_id, revision: another dataset of the same columns (a hub's id, or a folder), and its commit.

    The sample ids are random/1 and so on: the files' own ids begin at 1 in each.
    """
    if format == "vicrop":
        loaded, version = vicrop(root), "vicrop"
        samples = samples_of(loaded, vicrop_sample, "pope", (), "any", subset)
    else:
        tables = _hub.tables(SOURCE.hub, hf_id, revision)
        loaded = _from_hub(tables, categories) if root is None else _load(Path(root), categories, images)
        version = "hub" if root is None else _version(Path(root), categories)
        for category in categories if subset is None else ():
            number = sum(row.get("category") == category for row in loaded.rows)
            check_size(f"pope {category}", number, _SIZES[category], size)
        samples = samples_of(loaded, _sample, "pope", (), "any", subset)
    instruction, tokens, primary = _PROTOCOLS[protocol]

    def request(sample: Sample) -> Request:
        return Request(
            sample.images,
            sample.question.strip() if protocol == "lmms" else sample.question,
            instruction,
            decoding=Decoding(max_tokens=tokens),
            hints=short_question(sample),
        )

    return Task(
        name="pope",
        version=version,
        protocol=protocol,
        fingerprint=loaded.fingerprint,
        samples=samples,
        request=request,
        metrics=(yesno.metric(parser or _PARSERS[protocol]),),
        primary=primary,
        postprocess=str if protocol == "vicrop" else str.strip,  # mllms_know scores what was generated
    )


def _sample(row: Row, picture: Picture) -> Sample:
    label, category = row.text("label", "answer"), row.text("category")
    if label not in ("yes", "no"):
        raise DataError(f"{row.where}: the label is {label!r}; it must be yes or no")
    return Sample(
        id=f"{category}/{row.text('question_id')}",
        images=(picture,),
        question=row.text("text", "question"),
        targets=(label,),
        category=category,
        meta={"image": row.get("image", "image_source")},
    )


def _load(root: Path, categories: Sequence[Category], images: Path | None) -> Loaded:
    check_folder(root, "the official coco_pope_random.json, ..._popular and ..._adversarial")
    folder = _image_folder(root) if images is None else check_folder(Path(images), "COCO val2014's images")
    found: list[Row] = []
    for category, path in zip(categories, _paths(root, categories), strict=True):
        if not path.exists():
            raise DataError(
                f"{path} does not exist; take it from https://github.com/RUCAIBox/POPE (output/coco), or "
                f"name the categories that you have, as in categories={'+'.join(_present(root)) or 'random'}"
            )
        found += [Row({**row.values, "category": category}, row.where) for row in rows(path)]
    pictures = [picture_in(folder, row.text("image")) for row in found]
    return Loaded(found, pictures, fingerprint(_paths(root, categories)))


def _from_hub(tables: _hub.Tables, categories: Sequence[Category]) -> Loaded:
    table = tables(None, "test")
    pairs = [
        pair
        for pair in zip(table.rows, table.pictures, strict=True)
        if pair[0].text("category") in categories
    ]
    return Loaded([row for row, _ in pairs], [picture for _, picture in pairs], table.fingerprint)


def _paths(root: Path, categories: Sequence[Category]) -> list[Path]:
    """LLaVA keeps the files in a folder coco; its own file of prompts repeats their questions in order."""
    places = (root, root / "coco", root / "output" / "coco")
    folder = next((place for place in places if any(place.glob("coco_pope_*.json"))), root)
    return [folder / f"coco_pope_{category}.json" for category in categories]


def _version(root: Path, categories: Sequence[Category]) -> str:
    """The official commits that have the files."""
    known = {_REVISIONS.get(fingerprint([path])[:8], "unknown") for path in _paths(root, categories)}
    return "+".join(sorted(known))


def _image_folder(root: Path) -> Path:
    usual = (root / "val2014", root / "images" / "val2014", root / "images")
    return next((folder for folder in usual if folder.is_dir()), root)


def _present(root: Path) -> list[str]:
    return [name for name, path in zip(_SIZES, _paths(root, list(_SIZES)), strict=True) if path.exists()]
