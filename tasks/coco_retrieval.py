"""Image-text retrieval on MS-COCO: 5,000 images of the Karpathy test split, whole or in five folds.

Knows where its files are and which pools protocols score. Must not know: models, similarities.

Karpathy & Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions", CVPR 2015.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from harness.errors import DataError, SpecError
from harness.types import Retrieval
from tasks import _coco
from tasks._retrieval import Dense, Format, Split, check_pool, file_names, karpathy, made, text_files
from tasks._source import Size, Source, check_folder

Protocol = Literal["5k", "1k", "sparse", "candidate", "oracle_query"]

SOURCE = Source(
    title="MS-COCO retrieval, Karpathy's splits",
    size="5,000 images, 25,000 captions",
    metric="R@K, rSum",
    licence=_coco.LICENCE,
    layout="dataset_coco.json, or testall_caps.txt and testall_ids.txt (SCAN, LAPS); val2014/",
    files=(_coco.KARPATHY, _coco.VAL2014),
)

_SIZES = {"test": (5000,), "val": (5000, 1000), "train": (113_287,)}
_FIRST = ("391895", "53267", "354165", "566717", "82935")
"""The first image of each thousand of the test split, in Karpathy's order."""


def task(
    root: Path,
    *,
    protocol: tuple[Protocol, ...] = ("5k",),
    split: Split = "test",
    dense: Path | None = None,
    format: Format = "auto",
    images: Path | None = None,
    size: Size = "official",
) -> Retrieval:
    """The images and captions to be matched: 5,000 images, 25,000 captions (the first five of each).

    protocol: `5k`, one pool, or `1k`, five consecutive folds of a thousand images, each a pool of its own;
    and with it, such as `1k+sparse`, `sparse`, captions alone; `candidate`, each image with its dense text;
    or `oracle_query`, each caption with that of its own image, as SEPS's released code has it: it tells the
    answer, and is never ranked. Unsaid, it is `candidate` where there are dense texts, else `sparse`.
    dense: their file, by default root/coco_testall.jsonl (coco_val.jsonl, coco_train.jsonl), one line per
    image.

    root: holds dataset_coco.json (Karpathy's; captions as written), or the text files of SCAN and LAPS,
    testall_caps.txt and testall_ids.txt (tokenised captions: other texts, other scores), with
    id_mapping.json where there is one. format: which of them; `auto` takes the first. split: `val` are
    5,000 images, or the 1,000 of the text files' `dev`; `train` are 113,287, with Karpathy's
    `restval`. images: COCO 2014's images, by default
    root/val2014, root/images/val2014, root/images or root itself. size=any: files of other lengths and in
    another order.
    """
    pools, asked = _protocols(protocol)
    root = check_folder(Path(root), SOURCE.layout)
    folder = _coco.image_folder(root) if images is None else check_folder(Path(images), "COCO 2014's images")
    json_file, name = root / "dataset_coco.json", {"test": "testall", "val": "dev"}.get(split, split)
    if format == "karpathy" or (format == "auto" and json_file.exists()):
        found = karpathy(json_file, split, folder, "cocoid")
    elif format == "text" or (root / f"{name}_caps.txt").exists():
        mapping = root / "id_mapping.json"
        if split == "train" and not mapping.exists():
            raise DataError(f"{root} lacks id_mapping.json: training images lie in two folders")
        names = file_names(mapping) if mapping.exists() else "COCO_val2014_{:012}.jpg"
        found = text_files(root, name, folder, names)
    else:
        raise DataError(f"{root} lacks its captions; it should hold {SOURCE.layout}")
    found = replace(found, folds=5 if pools == "1k" else 1)
    first = _FIRST if split == "test" else ()
    found = check_pool(f"coco_retrieval {split}", found, _SIZES[split], first, size)
    usual = root / f"coco_{'testall' if split == 'test' else split}.jsonl"
    return made("coco_retrieval", found, dense or (usual if usual.exists() else None), asked, pools)


def _protocols(protocol: tuple[Protocol, ...]) -> tuple[Literal["5k", "1k"], Dense | None]:
    """Which pools, and which protocol of dense texts, None where it is not said."""
    pools: list[Literal["5k", "1k"]] = [part for part in protocol if part == "5k" or part == "1k"]
    asked: list[Dense | None] = [part for part in protocol if part != "5k" and part != "1k"]
    if len(pools) > 1 or len(asked) > 1:
        raise SpecError(
            f"protocol={'+'.join(protocol)}: take one of 5k and 1k, and one of sparse, candidate and "
            "oracle_query, such as 1k+sparse"
        )
    return (pools or ["5k"])[0], (asked or [None])[0]
