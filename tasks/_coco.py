"""COCO 2014's official files: annotations, images, and CHAIR's ground truth made of both kinds of them.

Knows the files of annotations_trainval2014.zip, through pycocotools. Must not know: prompts, models, how a
caption's words are counted. Lin et al., "Microsoft COCO", ECCV 2014; Rohrbach et al., EMNLP 2018,
LisaAnne/Hallucination `utils/chair.py` (`get_annotations`).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.types import digest
from metrics import chair
from tasks._source import fingerprint, read

IMAGES = 40_504
"""Images of val2014."""

_PARTS = ("train2014", "val2014")

_OFFICIAL = {
    "wordnet": (
        123_287,
        723,
        394_680,
        "778c5d4e7baf07342199eb8c1ff1ace0600da0cc487258c073cd3aa751347170",
    ),
    "pattern": (
        123_287,
        725,
        393_178,
        "30bfb6f0b0a66f1f16e84075df570be7f79b9b6f2eb7c84f7035a067eacfd3c7",
    ),
}
"""Images, images without objects, objects, and sha256 (see `summary`) of the ground truth that SPARC
(`wordnet`) and Maxlinn/CHAIR-metric-standalone (`pattern`) ship."""


def image_folder(root: Path) -> Path:
    """Where val2014's images are: root/val2014, root/images/val2014, root/images, or root itself."""
    usual = (root / "val2014", root / "images" / "val2014", root / "images")
    return next((folder for folder in usual if folder.is_dir()), root)


def annotation_folder(root: Path) -> Path | None:
    """The folder of the official annotation files, root/annotations or root; None where there are none."""
    places = (root / "annotations", root)
    return next((place for place in places if (place / "captions_val2014.json").exists()), None)


def annotation_files(folder: Path) -> list[Path]:
    """The four files that ground truth is made of. Raises DataError, naming those that are missing."""
    files = [folder / f"{kind}_{part}.json" for part in _PARTS for kind in ("instances", "captions")]
    missing = [path.name for path in files if not path.exists()]
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)}. CHAIR's ground truth is made of instances and captions, "
            "train2014 and val2014: unpack annotations_trainval2014.zip there"
        )
    return files


def load(path: Path) -> Any:
    """`pycocotools.coco.COCO` of an annotation file, silently. Raises DataError for what is none."""
    from pycocotools.coco import COCO

    if not path.exists():
        raise DataError(f"{path} does not exist; it is in annotations_trainval2014.zip")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found = COCO(str(path))
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise DataError(f"{path} is no annotation file of COCO: {error or type(error).__name__}") from None
    if "images" not in found.dataset:
        raise DataError(f"{path} is no annotation file of COCO: it has no images")
    return found


def document(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises DataError for another file."""
    try:
        found = json.loads(read(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} is not an object in braces but a {type(found).__name__}")
    return found


# ---------------------------------------------------------------- ground truth


@dataclass(frozen=True)
class Truth:
    """CHAIR's ground truth: per image id the sorted node words of what it shows. sha256: of all that it is
    made of (the annotation files, the front end and its packages)."""

    objects: Mapping[int, Sequence[str]]
    front_end: chair.FrontEnd
    sha256: str

    def summary(self) -> tuple[int, int, int, str]:
        """Images, images without objects, objects, and the sha256 of its lines `id <tab> a,b,c`, by id."""
        lines = "".join(f"{image}\t{','.join(self.objects[image])}\n" for image in sorted(self.objects))
        return (
            len(self.objects),
            sum(not found for found in self.objects.values()),
            sum(map(len, self.objects.values())),
            fingerprint_text(lines),
        )
