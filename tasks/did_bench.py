"""DID-Bench: describe COCO photographs in detail, beside one long description of each.

Knows the official files of Image-Textualization and how its script scores. Must not know: models, methods,
how captions are scored.

Pi et al., "Image Textualization: An Automatic Framework for Creating Accurate and Detailed Image
Descriptions", arXiv 2406.07502; sterzhang/image-textualization `benchmark/DenseCap_Metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from harness.errors import DataError
from harness.pictures import Picture, picture_in
from harness.types import Decoding, Metric, Request, Sample, Task
from metrics import caption
from tasks._source import (
    Download,
    Loaded,
    Row,
    Size,
    Source,
    check_folder,
    check_ids,
    document,
    fingerprint,
    first_of,
    rows,
    samples_of,
    select,
)

References = Literal["gpt4v", "llava"]

_FILES = (
    "https://raw.githubusercontent.com/sterzhang/image-textualization/4c72f75bf6ab0227b6bd60911234e5d818587783/"
    "benchmark/DenseCap_Metrics/"
)
_IMAGE = "http://images.cocodataset.org/train2017/000000248382.jpg"


def _file(name: str, size: int, sha256: str) -> Download:
    return Download(name, _FILES + name, size=size, sha256=sha256)


SOURCE = Source(
    title="DID-Bench of Image Textualization",
    size="101 for each of two reference sets",
    metric="CIDEr",
    licence="not stated with the files; images under Flickr's terms",
    layout="gt/gt-*-prefer.json, ques/ques-*-prefer.jsonl, and 202 images of COCO's train2017 in images/",
    files=(
        _file(
            "gt/gt-gpt4v-prefer.json",
            151_862,
            "dcabd3bb6c6ac903ad0114bc352b2a786b85c42a7c1b5d7c1156064c54d34d2b",
        ),
        _file(
            "gt/gt-llava-prefer.json",
            147_378,
            "ef016d263a0450f0a02ac87828a8c1adfd48e9def5cfc6fd232500ce827136cd",
        ),
        _file(
            "ques/ques-gpt4v-prefer.jsonl",
            9_096,
            "2f3baf3debe5d672373c67b798dff66c1c32589a0945c6986b1e0d43cf2e6c7c",
        ),
        _file(
            "ques/ques-llava-prefer.jsonl",
            9_096,
            "2cb874bf10c8eaf6902fbb6e8a061dabccf32a779063009230706b23a1aaf9cb",
        ),
    ),
    form=f"the images, each by its name as in {_IMAGE}, or train2017.zip of cocodataset.org, into images/",
)


def task(
    root: Path,
    *,
    references: References = "gpt4v",
    protocol: Literal["image_textualization"] = "image_textualization",
    metric: Metric | None = None,
    subset: str | None = None,
    images: Path | None = None,
    size: Size = "official",
) -> Task:
    """Long captions of 101 photographs, each asked for in its own words, scored by CIDEr (which ranks).

    root: holds gt/ and ques/ of the repository's benchmark/DenseCap_Metrics, and the images. references:
    gpt4v or llava, the two sets of the repository; they share no image and are two tasks, never averaged
    (the script scores one at a time). The prompt is the image's own question, one of 11, as it is written.

    Scores are given twice. As the repository's script does, on the texts as they stand, without a tokenizer:
    CIDEr, BLEU and ROUGE_L (`caption[vlmevalkit]`); its WMD is left out. And after PTB tokenisation, with
    METEOR (`caption[official]`), which needs Java; the script's METEOR reads the texts as they stand and is
    another number. CIDEr of texts so long is small: its penalty for another length is meant for sentences.

    metric: another one in their place, as in metric=(caption:variant=vlmevalkit,spice=true), the script's
    SPICE. subset: as in random:50@seed=42. images: by default root/images, root/train2017 or root itself.
    size=any: files of another length.
    """
    if metric is None:
        caption.require("official")  # what is missing must show before anything is generated
    chosen = (caption.metric("vlmevalkit"), caption.metric()) if metric is None else (metric,)
    loaded = _load(check_folder(Path(root), SOURCE.layout), references, images)
    samples = samples_of(loaded, _sample, f"did_bench {references}", (101,), size)
    return Task(
        name=f"did_bench-{references}",
        version="1",
        protocol=protocol,
        fingerprint=loaded.fingerprint,
        samples=select(samples, subset),
        request=lambda sample: Request(sample.images, sample.question, decoding=Decoding(max_tokens=512)),
        metrics=chosen,
        primary=next(iter(chosen[0].higher_is_better)),
    )


def _load(root: Path, references: References, images: Path | None) -> Loaded:
    base = first_of(root, "gt", "benchmark/DenseCap_Metrics/gt").parent
    paths = [base / f"gt/gt-{references}-prefer.json", base / f"ques/ques-{references}-prefer.jsonl"]
    found = list(_joined(*paths))
    names = ("images", "train2017", ".")
    folder = first_of(root, *names) if images is None else check_folder(Path(images), "the COCO images")
    pictures = [picture_in(folder, row.text("image")) for row in found]
    return Loaded(found, pictures, fingerprint(paths))


def _joined(answers: Path, questions: Path) -> Iterator[Row]:
    """Each question with the references under its image's stem. Raises DataError where either is alone."""
    listed = document(answers, unique=True)
    asked = [(_stem(row), row) for row in rows(questions)]
    check_ids((stem, row.where) for stem, row in asked)
    lonely = [stem for stem in listed if stem not in dict(asked)]
    if lonely:
        raise DataError(f"{questions} asks nothing about {lonely[0]!r}, of which {answers} has a description")
    for stem, row in asked:
        if stem not in listed:
            raise DataError(f"{row.where} asks about {stem!r}, of which {answers} has no description")
        yield Row({**row.values, "references": listed[stem]}, row.where)


def _stem(row: Row) -> str:
    return PurePosixPath(row.text("image")).stem


def _sample(row: Row, picture: Picture) -> Sample:
    meta = row.some("image")
    return Sample(_stem(row), (picture,), row.text("question"), row.answers("references"), meta=meta)
