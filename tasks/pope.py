"""POPE: is there such an object in the image? Yes/no questions over COCO, in three kinds of negatives.

Knows the official files, their two revisions and the protocols in circulation. Must not know: models,
methods. Official files: https://github.com/RUCAIBox/POPE `output/coco/` (MIT); images COCO val2014.

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from harness.errors import DataError
from harness.pictures import picture_in
from harness.types import Decoding, Request, Sample, Task
from metrics import yesno
from tasks._source import SHORT, Row, Size, check_folder, check_ids, check_size, fingerprint, rows

Category = Literal["random", "popular", "adversarial"]
Protocol = Literal["llava", "lmms", "vicrop", "vlmevalkit"]

_PROTOCOLS: dict[Protocol, tuple[str, int, str]] = {
    "llava": (f"\n{SHORT}", 128, "mean_f1"),
    "lmms": (f"\n{SHORT}", 128, "f1"),
    "vicrop": (f" {SHORT}", 20, "accuracy"),
    "vlmevalkit": ("", 512, "f1"),
}
"""Instruction, new tokens at most, the number that ranks. VLMEvalKit leaves the tokens to the model; 512
is what its LLaVA wrapper takes."""

_PARSERS: dict[Protocol, yesno.Parser] = {
    "llava": "official",
    "lmms": "lmms",
    "vicrop": "vicrop",
    "vlmevalkit": "vlmevalkit",
}

_SIZES = {"random": (3000, 2910), "popular": (3000,), "adversarial": (3000,)}

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
    root: Path,
    *,
    protocol: Protocol = "llava",
    categories: tuple[Category, ...] = ("random", "popular", "adversarial"),
    parser: yesno.Parser | None = None,
    images: Path | None = None,
    size: Size = "official",
) -> Task:
    """POPE on COCO: 3 x 3,000 questions (2,910 random ones in the revision that LLaVA pins).

    root: the folder with coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json.
    protocol: the prompt, and the parser and number of that code base: `llava` (ranked by the mean of the
    categories' F1), `lmms` and `vlmevalkit` (pooled F1), `vicrop` (accuracy). categories: which, as in
    categories=random+popular. parser: another than the protocol's. images: the folder of COCO's
    val2014 images, by default root/val2014, root/images/val2014, root/images or root itself, the first
    that exists. size=any: files of other lengths.

    The sample ids are random/1 and so on: the files' own ids begin at 1 in each.
    """
    root = check_folder(Path(root), "the official coco_pope_random.json, ..._popular and ..._adversarial")
    folder = _image_folder(root) if images is None else check_folder(Path(images), "COCO val2014's images")
    paths = [root / f"coco_pope_{category}.json" for category in categories]
    samples: list[Sample] = []
    places: list[str] = []
    for category, path in zip(categories, paths, strict=True):
        if not path.exists():
            raise DataError(
                f"{path} does not exist; take it from https://github.com/RUCAIBox/POPE (output/coco), or "
                f"name the categories that you have, as in categories={'+'.join(_present(root)) or 'random'}"
            )
        found = rows(path)
        check_size(f"pope {category} ({path.name})", len(found), _SIZES[category], size)
        samples += (_sample(row, category, folder) for row in found)
        places += (row.where for row in found)
    check_ids((sample.id, place) for sample, place in zip(samples, places, strict=True))
    instruction, tokens, primary = _PROTOCOLS[protocol]

    def request(sample: Sample) -> Request:
        question = sample.question.strip() if protocol == "lmms" else sample.question
        return Request(sample.images, question, instruction, decoding=Decoding(max_tokens=tokens))

    return Task(
        name="pope",
        version="+".join(sorted({_REVISIONS.get(fingerprint([path])[:8], "unknown") for path in paths})),
        protocol=protocol,
        fingerprint=fingerprint(paths),
        samples=samples,
        request=request,
        metrics=(yesno.metric(parser or _PARSERS[protocol]),),
        primary=primary,
        postprocess=str if protocol == "vicrop" else str.strip,  # mllms_know scores what was generated
    )


def _sample(row: Row, category: str, folder: Path) -> Sample:
    label = row.text("label")
    if label not in ("yes", "no"):
        raise DataError(f"{row.where}: the label is {label!r}; it must be yes or no")
    image = row.text("image")
    return Sample(
        id=f"{category}/{row.text('question_id')}",
        images=(picture_in(folder, image),),
        question=row.text("text"),
        targets=(label,),
        category=category,
        meta={"image": image},
    )


def _image_folder(root: Path) -> Path:
    usual = (root / "val2014", root / "images" / "val2014", root / "images")
    return next((folder for folder in usual if folder.is_dir()), root)


def _present(root: Path) -> list[str]:
    return [category for category in _SIZES if (root / f"coco_pope_{category}.json").exists()]
