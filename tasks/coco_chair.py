"""CHAIR: detailed captions of COCO's images, or of a folder with a list of objects for each.

Knows COCO's official layout (through tasks/_coco.py), the hub's columns, the folder's format and the
prompt. Must not know: models, methods, how words are counted.

Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018; the sample, the prompt and the
length of SPARC (arXiv 2502.01419, `eval.py`) and of lmms-eval (`coco_cap_chair`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from harness.errors import DataError
from harness.pictures import Picture, picture_in
from harness.types import Decoding, Request, Sample, Task
from metrics import chair
from tasks import _coco, _hub
from tasks._source import (
    DETAIL,
    Loaded,
    Row,
    Size,
    Source,
    check_folder,
    check_ids,
    check_size,
    fingerprint,
    rows,
    select,
)

Protocol = Literal["sparc", "lmms"]

_TOKENS: dict[Protocol, int] = {"sparc": 512, "lmms": 2048}

_FORMAT = "images, and annotations.jsonl with image_id, file_name and objects in each line"

SOURCE = Source(
    title="CHAIR on MS-COCO 2014",
    size="500 of 40,504; or a folder's",
    metric="CHAIR",
    licence=_coco.LICENCE,
    layout=f"annotations/ with instances and captions of train2014 and val2014, val2014/; or {_FORMAT}",
    hub=("tsunghanwu/mscoco_chair",),
    files=(_coco.ANNOTATIONS, _coco.VAL2014),
)


def task(
    root: Path | None = None,
    *,
    protocol: Protocol = "sparc",
    front_end: chair.FrontEnd = "wordnet",
    vocabulary: chair.VocabularyName = "coco",
    subset: str | None = None,
    ids: Path | None = None,
    images: Path | None = None,
    size: Size = "official",
    revision: str | None = None,
) -> Task:
    """Detailed captions scored by CHAIR.

    root: COCO 2014 as it is unpacked (annotations/instances_val2014.json, captions_val2014.json, those of
    train2014; val2014), or a folder of your own: annotations.jsonl (or .json, or the only such file
    whatever its name), one object per image with `file_name`, `objects` and, unless the file's stem will
    do, `image_id`. An object is a COCO category, or a synonym that CHAIR knows. Without root: lmms-eval's
    sample on the hub, whose ground truth is made for front_end=wordnet. images: by default
    root/val2014, root/images/val2014, root/images or root itself.

    protocol: new tokens at most, 512 (`sparc`) or 2,048 (`lmms`); CHAIRs depends on it. front_end,
    vocabulary: how the metric finds objects (see metrics/chair.py). COCO's own ground truth is made of
    instances and captions by the same front end, once (minutes), and kept beside the annotations or in
    ~/.cache/fovea.

    subset: of COCO's own files, `sparc500` (default: 500 of val2014's 40,504 images, drawn from the
    *sorted* file names; SPARC draws from what its file system lists) or `all`; of any, random:500@seed=42.
    ids: a file that lists the images instead, to replicate a paper's sample: numbers or file names, one
    per line. size=any: a val2014 of another length. revision: of the hub's copy.

    CHAIRs ranks, lower is better: the share of captions with an object that is not there is what papers
    on hallucination put first (OPERA, SPARC), with CHAIRi and Recall beside it.
    """
    chair.base_forms(front_end)  # data that is missing must show before anything is generated
    official = None if root is None else _coco.annotation_folder(Path(root))
    if root is None:
        loaded = _from_hub(front_end, revision)
    elif official is None:
        loaded = _own(Path(root), images)
    else:
        loaded = _official(official, _folder(Path(root), images), front_end, size)
        subset = subset or "sparc500"
    pairs = zip(loaded.rows, loaded.pictures, strict=True)
    samples = [_sample(row, picture, vocabulary) for row, picture in pairs]
    check_ids((sample.id, row.where) for sample, row in zip(samples, loaded.rows, strict=True))
    decoding = Decoding(max_tokens=_TOKENS[protocol])
    return Task(
        name="coco_chair",
        version="1",
        protocol=protocol,
        fingerprint=loaded.fingerprint,
        samples=_listed(samples, ids) if ids else select(samples, None if subset == "all" else subset),
        request=lambda sample: Request(sample.images, sample.question, decoding=decoding),
        metrics=(chair.metric(front_end, vocabulary),),
        primary="CHAIRs",
    )


def _folder(root: Path, images: Path | None) -> Path:
    return _coco.image_folder(root) if images is None else check_folder(Path(images), "the images")


def _own(root: Path, images: Path | None) -> Loaded:
    """A folder with a list of objects for each image."""
    root = check_folder(root, _FORMAT)
    annotations = _annotations(root)
    found = rows(annotations)
    folder = _folder(root, images)
    pictures = [picture_in(folder, row.text("file_name", "image")) for row in found]
    return Loaded(found, pictures, fingerprint([annotations]))


def _official(folder: Path, images: Path, front_end: chair.FrontEnd, size: Size) -> Loaded:
    """All of val2014, by file name, with the ground truth of `front_end`."""
    truth = _coco.truth(folder, front_end)
    path = folder / "captions_val2014.json"
    listed = _coco.load(path).dataset["images"]
    check_size("coco val2014", len(listed), (_coco.IMAGES,), size)
    found = [
        Row(
            {"image_id": image["id"], "file_name": image["file_name"], "objects": truth.objects[image["id"]]},
            str(path),
        )
        for image in sorted(listed, key=lambda image: str(image["file_name"]))
    ]
    return Loaded(found, [picture_in(images, row.text("file_name")) for row in found], truth.sha256)


def _from_hub(front_end: chair.FrontEnd, revision: str | None) -> Loaded:
    if front_end != "wordnet":
        raise DataError(
            f"the hub's ground truth is made for front_end=wordnet; for {front_end} give root=DIR with "
            "COCO's annotations"
        )
    return _hub.load(SOURCE.hub, None, "test", revision=revision)


def _listed(samples: list[Sample], path: Path) -> list[Sample]:
    """The samples of the images that a file lists, in its order."""
    by_id = {int(sample.id): sample for sample in samples if sample.id.isdigit()}
    wanted = _coco.chosen(Path(path))
    missing = [image for image in wanted if image not in by_id]
    if missing:
        raise DataError(f"{path}: there is no image {missing[0]} here ({len(missing)} such ids)")
    return [by_id[image] for image in wanted]


def _sample(row: Row, picture: Picture, vocabulary: chair.VocabularyName) -> Sample:
    """Of a row with `objects` and an id; the hub calls them `gt_object` and `question_id`."""
    if not isinstance(row.get("objects", "gt_object"), list):
        raise DataError(f"{row.where} has no list of objects; an image without any has an empty one")
    nodes = []
    for thing in row.texts("objects", "gt_object"):
        node = chair.node_word(thing, vocabulary)
        if node is None:
            raise DataError(
                f"{row.where}: {thing!r} is no object that CHAIR counts (vocabulary={vocabulary}); remove it"
            )
        nodes.append(node)
    named = row.get("image_id", "question_id") is not None
    name = row.get("file_name", "image")
    return Sample(
        id=row.text("image_id", "question_id") if named else Path(str(name)).stem,
        images=(picture,),
        question=DETAIL,
        targets=tuple(dict.fromkeys(nodes)),
        meta={} if name is None else {"image": str(name)},
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
