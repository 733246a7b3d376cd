"""Pools of images and captions for retrieval, from Karpathy's JSON or the text files of SCAN and LAPS.

Knows the two formats, which caption is whose, dense texts and the three protocols of them. Must not know:
which benchmark it is, how similarity is computed.

Karpathy & Fei-Fei, "Deep Visual-Semantic Alignments", CVPR 2015 (the splits); Lee et al., "SCAN", ECCV 2018
(the text files); Liu et al., "D2S-VSE", ICCV 2025, and SEPS, arXiv 2511.01390 (dense texts: what a model
says of each image at length).

`sparse` matches images and captions alone. `candidate` gives each image its dense text: what is known of a
gallery. `oracle_query` gives each caption the dense text of its own image, and with it the answer: what
SEPS's released code evaluates. It is marked, and never ranked with others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from harness.errors import DataError
from harness.pictures import Picture, picture_in
from harness.types import Pool, Retrieval, digest
from metrics import retrieval
from tasks._source import Row, Size, check_ids, check_size, document, entries, fingerprint, read, rows

Split: TypeAlias = Literal["test", "val", "train"]
Dense: TypeAlias = Literal["sparse", "candidate", "oracle_query"]
Format: TypeAlias = Literal["auto", "karpathy", "text"]

CAPTIONS = 5
"""Captions per image that count; some images of COCO have six or seven."""


@dataclass(frozen=True)
class Captioned:
    """Images, their texts, and which is whose.

    owner: per text, the index of its image. ids: per image, as the dataset calls it. folds: into how many
    equal pools, in this order, the images are cut for scores. fingerprint: sha256 of the annotations.
    """

    images: tuple[Picture, ...]
    texts: tuple[str, ...]
    owner: tuple[int, ...]
    ids: tuple[str, ...]
    folds: int = 1
    fingerprint: str = ""


@dataclass(frozen=True)
class _Image:
    id: str
    file: str
    texts: Sequence[str]
    where: str


def karpathy(path: Path, split: Split, folder: Path, key: str) -> Captioned:
    """The images of a split of `dataset_coco.json` or `dataset_flickr30k.json`, in the file's order.

    key: what an image is called by (`cocoid`, `imgid`). An image's first five captions count, as written
    (`raw`). Its file is `filename` in `folder`, or in `filepath` below it where there is such a folder.
    """
    found = []
    for row in karpathy_rows(path, split):
        file = (
            f"{row.text('filepath')}/{row.text('filename')}" if row.get("filepath") else row.text("filename")
        )
        found.append(_Image(row.text(key), file, sentences(row)[:CAPTIONS], row.where))
    return _pool(found, folder, fingerprint([path]))


def karpathy_rows(path: Path, split: Split) -> list[Row]:
    """The images of a split of Karpathy's JSON, in the file's order. COCO's `restval` is training data."""
    splits = ("train", "restval") if split == "train" else (split,)
    return [row for row in entries(path, "images") if row.get("split") in splits]


def sentences(row: Row) -> list[str]:
    """All captions of an image of Karpathy's JSON, as written."""
    listed = row.get("sentences")
    if not isinstance(listed, list) or not listed or not all(isinstance(entry, dict) for entry in listed):
        raise DataError(f"{row.where} has no list of sentences")
    return [
        Row(entry, f"{row.where}, sentence {number}").text("raw") for number, entry in enumerate(listed, 1)
    ]


def text_files(root: Path, split: str, folder: Path, names: Mapping[str, str] | str) -> Captioned:
    """The images of `{split}_caps.txt` (a caption per line) and `{split}_ids.txt` (its image's id per line).

    An image's captions stand together; `train_ids.txt` has one line for the five of each image. names: the
    file name of each id, or a template for one, with `{}` for the id.
    """
    captions, ids = (root / f"{split}_{kind}.txt" for kind in ("caps", "ids"))
    texts, owners = _lines(captions), _lines(ids)
    if split == "train" and len(texts) == CAPTIONS * len(owners):
        owners = [owner for owner in owners for _ in range(CAPTIONS)]
    if len(texts) != len(owners):
        raise DataError(
            f"{captions} has {len(texts):,} lines, {ids} {len(owners):,}; each caption needs its image's id"
        )
    groups: list[tuple[str, int, list[str]]] = []
    for number, (text, owner) in enumerate(zip(texts, owners, strict=True), 1):
        if not groups or groups[-1][0] != owner:
            groups.append((owner, number, []))
        groups[-1][2].append(text)
    found = []
    for owner, number, mine in groups:
        where = f"{ids}, line {number}"
        file = names.format(int(owner)) if isinstance(names, str) and owner.isdigit() else None
        file = names.get(owner) if not isinstance(names, str) else file
        if file is None:
            raise DataError(f"{where}: no file name is known for the id {owner!r}")
        found.append(_Image(owner, file, mine[:CAPTIONS], where))
    return _pool(found, folder, fingerprint([captions, ids]))


def file_names(path: Path) -> dict[str, str]:
    """LAPS's `id_mapping.json`: id to file name."""
    found = document(path)
    if not all(isinstance(value, str) for value in found.values()):
        raise DataError(f"{path} must be one object of id: file name")
    return found


def check_pool(
    what: str, pool: Captioned, images: Sequence[int], first: Sequence[str], size: Size
) -> Captioned:
    """`pool`, if it has one of the numbers of `images`, five captions for each, and begins every fold with
    the id of `first`; else a DataError. With `size=any` nothing is checked but that the folds are equal."""
    check_size(what, len(pool.images), images, size)
    if len(pool.images) % pool.folds:
        raise DataError(f"{what}: {len(pool.images):,} images cannot be cut into {pool.folds} equal folds")
    if size == "any":
        return pool
    check_size(f"{what}, captions of all images,", len(pool.texts), [CAPTIONS * len(pool.images)], size)
    begins = pool.ids[:: len(pool.ids) // len(first)] if first else ()
    for fold, (found, expected) in enumerate(zip(begins, first, strict=False), 1):
        if found != expected:
            raise DataError(
                f"{what} is in another order: fold {fold} begins with the image {found}, it should with "
                f"{expected}. Scores of folds depend on the order. Say size=any if it is meant to differ"
            )
    return pool


def dense_texts(path: Path, ids: Sequence[str]) -> tuple[str, ...]:
    """The dense text of each image, from one JSON object per line in the images' order.

    `text` is what counts; where a line says `image_id`, it must be this image's. A line that is missing or
    cannot be read would give every later image its neighbour's text, so it is refused.
    """
    found = rows(path)
    if len(found) != len(ids):
        raise DataError(
            f"{path} has {len(found):,} dense texts for {len(ids):,} images; it must have one line for each, "
            "in their order"
        )
    for row, image in zip(found, ids, strict=True):
        named = row.get("image_id")
        if named is not None and str(named) != image:
            raise DataError(f"{row.where} is of image {named}, where image {image} stands: the order differs")
    return tuple(row.text("text") for row in found)


def made(
    name: str, found: Captioned, dense: Path | Sequence[str] | None, asked: Dense | None, protocol: str = ""
) -> Retrieval:
    """The task over captioned images, under a protocol of dense texts.

    dense: their file, or themselves, one per image; None where there are none. asked: None takes
    `candidate` with them and `sparse` without. protocol: what else the task's says, before a slash.
    """
    chosen = asked or ("sparse" if dense is None else "candidate")
    texts: tuple[str, ...] = ()
    if chosen != "sparse":
        if dense is None:
            raise DataError(
                f"{name}: protocol={chosen} needs dense texts, one per image; name their file with "
                "dense=FILE, or take protocol=sparse"
            )
        texts = dense_texts(dense, found.ids) if isinstance(dense, Path) else tuple(dense)
    if chosen == "oracle_query":
        texts = tuple(texts[image] for image in found.owner)
    fingerprint = digest([found.fingerprint, texts]) if texts else found.fingerprint
    return Retrieval(
        name=name,
        version="1",
        protocol="/".join(part for part in (protocol, chosen) if part),
        fingerprint=fingerprint,
        pool=Pool(
            images=found.images,
            texts=found.texts,
            dense=texts,
            dense_of={"sparse": "none", "candidate": "image", "oracle_query": "text"}[chosen],  # type: ignore[arg-type]
            fingerprint=fingerprint,
        ),
        owner=found.owner,
        ids=found.ids,
        rank=retrieval.queries,
        metrics=(retrieval.metric(),),
        primary="rsum",
        folds=found.folds,
        leaks=chosen == "oracle_query",
    )


def _pool(found: Sequence[_Image], folder: Path, sha256: str) -> Captioned:
    check_ids((image.id, image.where) for image in found)
    ids = tuple(image.id for image in found)  # Karpathy's splits lie in one file
    return Captioned(
        images=tuple(_picture(folder, image.file) for image in found),
        texts=tuple(text for image in found for text in image.texts),
        owner=tuple(index for index, image in enumerate(found) for _ in image.texts),
        ids=ids,
        fingerprint=digest([sha256, CAPTIONS, ids]),
    )


def _picture(folder: Path, file: str) -> Picture:
    """`file` in `folder`; the folder that it names is left out where it is `folder` itself, as it were."""
    part, _, name = file.rpartition("/")
    inside = not part or ".." in part or (folder / part).is_dir()
    return picture_in(folder, file if inside else name)


def _lines(path: Path) -> list[str]:
    try:
        text = read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    lines = [line.strip() for line in text.rstrip("\n").split("\n")]
    if "" in lines:
        raise DataError(f"{path}, line {lines.index('') + 1} is empty")
    return lines
