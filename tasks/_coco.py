"""COCO 2014's official files: annotations, images, and CHAIR's ground truth made of both kinds of them.

Knows the files of annotations_trainval2014.zip, through pycocotools. Must not know: prompts, models, how a
caption's words are counted. Lin et al., "Microsoft COCO", ECCV 2014; Rohrbach et al., EMNLP 2018,
LisaAnne/Hallucination `utils/chair.py` (`get_annotations`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.types import digest
from metrics import chair
from tasks._source import Download, Row, fingerprint, read

IMAGES = 40_504
"""Images of val2014."""

LICENCE = "annotations CC BY 4.0; images under Flickr's terms"

ANNOTATIONS = Download(
    "annotations_trainval2014.zip",
    "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
    size=252_872_794,
    sha256="031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
    unpack=".",
)
VAL2014 = Download(
    "val2014.zip",
    "http://images.cocodataset.org/zips/val2014.zip",
    size=6_645_013_297,
    sha256="fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
    unpack=".",
)
KARPATHY = Download(
    "caption_datasets.zip",
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    size=36_745_453,
    sha256="4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
    unpack=".",
)
"""Karpathy's splits of COCO, Flickr8k and Flickr30K."""

_PARTS = ("train2014", "val2014")

OFFICIAL = {
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
"""Images, images without objects, objects, and sha256 (see `Truth.statistics`) of the ground truth that SPARC
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
    """Instances and captions of val2014, and of train2014 where both are there too (they share no image).

    Raises DataError, naming what is missing of val2014.
    """
    pairs = [[folder / f"{kind}_{part}.json" for kind in ("instances", "captions")] for part in _PARTS]
    missing = [path.name for path in pairs[-1] if not path.exists()]
    if missing:
        raise DataError(
            f"{folder} lacks {' and '.join(missing)}. CHAIR's ground truth is made of instances and of "
            "captions: unpack annotations_trainval2014.zip there"
        )
    return [path for pair in pairs for path in pair if all(each.exists() for each in pair)]


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
    listed = found.dataset.get("images", ())
    named = all(isinstance(e.get("id"), int) and isinstance(e.get("file_name"), str) for e in listed)
    if not listed or not named:
        raise DataError(f"{path} is no annotation file of COCO: it has no images with id and file_name")
    return found


def captions(path: Path) -> list[Row]:
    """The images of a file of captions, in its order: `file_name`, and all captions as `answer`."""
    coco = load(path)
    return [
        Row(
            {
                "file_name": image["file_name"],
                "answer": [entry["caption"] for entry in coco.imgToAnns.get(image["id"], ())],
            },
            f"{path}, image {number}",
        )
        for number, image in enumerate(coco.dataset["images"], 1)
    ]


# ---------------------------------------------------------------- ground truth


@dataclass(frozen=True)
class Truth:
    """CHAIR's ground truth: per image id the sorted node words of what it shows.

    sha256: of what it is made of: the annotation files, the front end, its word tables and packages.
    """

    objects: Mapping[int, Sequence[str]]
    front_end: chair.FrontEnd
    sha256: str

    def statistics(self) -> tuple[int, int, int, str]:
        """Images, those without objects, objects, and a sha256 of lines `image <tab> a,b,c` by number."""
        lines = (f"{image}\t{','.join(self.objects[image])}" for image in sorted(self.objects))
        return (
            len(self.objects),
            sum(not found for found in self.objects.values()),
            sum(map(len, self.objects.values())),
            hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        )

    def doubts(self) -> str | None:
        """How it differs from the one that the reference of its front end ships, None where it does not, or
        where there is none of all these images to compare with."""
        found, expected = self.statistics(), OFFICIAL.get(self.front_end)
        if expected is None or found[0] != expected[0] or found == expected:
            return None
        names = ("images", "images without objects", "objects")
        parts = [
            f"{mine:,} {name} for {theirs:,}"
            for name, mine, theirs in zip(names, found, expected, strict=False)
        ]
        return (
            f"CHAIR's ground truth ({self.front_end}) is not the one that its reference ships: "
            f"{', '.join(parts)}. Another version of NLTK's data makes a small difference"
        )


def truth(folder: Path, front_end: chair.FrontEnd) -> Truth:
    """The ground truth of all images of val2014 and, where it is there, train2014: node words of the
    categories of every instance, and those that `front_end` finds in the captions.

    folder: holds the official files. Making it takes minutes and a few GB of memory; it is kept as
    `fovea_chair_FRONTEND.json` in `folder`, or, where that cannot be written, in ~/.cache/fovea, and made
    again when anything that it depends on has changed. A warning says if it is complete and yet not the
    reference's.
    """
    files = annotation_files(folder)
    chair.base_forms(front_end)  # data that is missing must show before minutes have passed
    sha256 = digest([fingerprint(files), front_end, _front_end_version(front_end)])
    name = f"fovea_chair_{front_end}.json"
    places = (folder / name, Path.home() / ".cache" / "fovea" / f"{sha256[:16]}_{name}")
    for place in places:
        kept = _kept(place, sha256)
        if kept is not None:
            return Truth(kept, front_end, sha256)
    made = Truth(_made(files, front_end), front_end, sha256)
    doubts = made.doubts()
    if doubts:
        warnings.warn(doubts, stacklevel=2)
    for place in places:
        if _keep(place, made):
            break
    return made


def _made(files: Iterable[Path], front_end: chair.FrontEnd) -> dict[int, list[str]]:
    found: dict[int, set[str]] = {}
    for path in files:
        coco = load(path)
        categories = {entry["id"]: entry["name"] for entry in coco.dataset.get("categories", ())}
        for image in coco.dataset["images"]:
            found.setdefault(int(image["id"]), set())
        for entry in coco.dataset.get("annotations", ()):
            objects = found.setdefault(int(entry["image_id"]), set())
            if "caption" in entry:
                objects.update(chair.mentions(entry["caption"], front_end))
            else:
                objects.add(_node(str(categories.get(entry.get("category_id"))), path))
    return {image: sorted(objects) for image, objects in sorted(found.items())}


def _node(category: str, path: Path) -> str:
    node = chair.node_word(category)
    if node is None:
        raise DataError(f"{path}: {category!r} is none of COCO's 80 categories")
    return node


def _front_end_version(front_end: chair.FrontEnd) -> str:
    """The word tables and the package that decide what a front end finds."""
    tables = Path(chair.__file__).with_name("_chair_words.json")
    package = {"wordnet": "nltk", "pattern": "PatternLite"}.get(front_end)
    return f"{fingerprint([tables])} {metadata.version(package) if package else ''}"


def _kept(path: Path, sha256: str) -> dict[int, list[str]] | None:
    """What was kept in `path`, None where it is missing, damaged or made of something else."""
    try:
        content = json.loads(path.read_bytes())
        if content["sha256"] == sha256:
            return {int(image): list(objects) for image, objects in content["objects"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _keep(path: Path, made: Truth) -> bool:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    content = {"sha256": made.sha256, "front_end": made.front_end, "objects": made.objects}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        return False
    return True


# ---------------------------------------------------------------- which images


def chosen(path: Path) -> list[int]:
    """The image ids that a file lists: a JSON list, or a line for each: a number, a file name, or an object
    with `image_id`, as in a file of predictions.

    A file name's id is the last number in it. Raises DataError for a line without, or an id twice.
    """
    text = read(path).decode("utf-8", "replace")
    lines = [line for line in text.split("\n") if line.strip()]
    listed = text.lstrip().startswith("[")
    try:
        entries = json.loads(text) if listed else [_entry(line) for line in lines]
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    ids: dict[int, None] = {}
    for number, entry in enumerate(entries, 1):
        value = entry.get("image_id") if isinstance(entry, dict) else entry
        digits = re.findall(r"\d+", str(value).rpartition("/")[2])
        if not digits:
            raise DataError(f"{path}, entry {number}: there is no image id in {str(value)[:80]!r}")
        if int(digits[-1]) in ids:
            raise DataError(f"{path}, entry {number}: the image {int(digits[-1])} stands there twice")
        ids[int(digits[-1])] = None
    return list(ids)


def _entry(line: str) -> Any:
    return json.loads(line) if line.lstrip().startswith("{") else line.strip()
