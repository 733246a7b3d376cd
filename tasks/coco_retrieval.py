"""Image-text retrieval on MS-COCO: 5,000 images of the Karpathy test split, whole or in five folds.

Knows where its files are and which pools protocols score. Must not know: models, similarities.

Karpathy & Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions", CVPR 2015.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from harness.errors import DataError
from tasks import _coco
from tasks._retrieval import Format, Pool, Split, check_pool, file_names, karpathy, text_files
from tasks._source import Size, Source, check_folder

Protocol = Literal["5k", "1k"]

SOURCE = Source(
    title="MS-COCO retrieval, Karpathy's splits",
    size="5,000 images, 25,000 captions",
    metric="R@K, rSum",
    licence=_coco.LICENCE,
    layout="dataset_coco.json, or testall_caps.txt and testall_ids.txt (SCAN, LAPS); val2014/",
    files=(_coco.KARPATHY, _coco.VAL2014),
)

_SIZES = {"test": (5000,), "val": (5000, 1000)}
_FIRST = ("391895", "53267", "354165", "566717", "82935")
"""The first image of each thousand of the test split, in Karpathy's order."""


def pool(
    root: Path,
    *,
    protocol: Protocol = "5k",
    split: Split = "test",
    format: Format = "auto",
    images: Path | None = None,
    size: Size = "official",
) -> Pool:
    """The images and captions to be matched: 5,000 images, 25,000 captions (the first five of each).

    root: holds dataset_coco.json (Karpathy's; captions as written), or the text files of SCAN and LAPS,
    testall_caps.txt and testall_ids.txt (tokenised captions: other texts, other scores), with
    id_mapping.json where there is one. format: which of them; `auto` takes the first. protocol: `5k`, one
    pool, or `1k`, five consecutive folds of a thousand images whose scores are averaged. split: `val` are
    5,000 images, or the 1,000 of the text files' `dev`. images: COCO 2014's images, by default
    root/val2014, root/images/val2014, root/images or root itself. size=any: files of other lengths and in
    another order.
    """
    root = check_folder(Path(root), SOURCE.layout)
    folder = _coco.image_folder(root) if images is None else check_folder(Path(images), "COCO 2014's images")
    json_file, name = root / "dataset_coco.json", {"test": "testall", "val": "dev"}[split]
    if format == "karpathy" or (format == "auto" and json_file.exists()):
        found = karpathy(json_file, split, folder, "cocoid")
    elif format == "text" or (root / f"{name}_caps.txt").exists():
        mapping = root / "id_mapping.json"
        names = file_names(mapping) if mapping.exists() else "COCO_val2014_{:012}.jpg"
        found = text_files(root, name, folder, names)
    else:
        raise DataError(f"{root} lacks its captions; it should hold {SOURCE.layout}")
    found = replace(found, folds=5 if protocol == "1k" else 1)
    first = _FIRST if split == "test" else ()
    return check_pool(f"coco_retrieval {split}", found, _SIZES[split], first, size)
