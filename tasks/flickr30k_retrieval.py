"""Image-text retrieval on Flickr30K: 1,000 images of the Karpathy test split, five captions each.

Knows where its files are. Must not know: models, similarities.

Young et al., "From Image Descriptions to Visual Denotations", TACL 2014; Karpathy & Fei-Fei, CVPR 2015.
"""

from __future__ import annotations

from pathlib import Path

from harness.errors import DataError
from harness.types import Retrieval
from tasks import _coco
from tasks._retrieval import Dense, Format, Split, check_pool, file_names, karpathy, made, text_files
from tasks._source import Size, Source, check_folder

SOURCE = Source(
    title="Flickr30K retrieval, Karpathy's split",
    size="1,000 images, 5,000 captions",
    metric="R@K, rSum",
    licence="images for non-commercial research and education only",
    layout="dataset_flickr30k.json, or test_caps.txt, test_ids.txt and id_mapping.json (SCAN, LAPS); "
    "flickr30k-images/",
    files=(_coco.KARPATHY,),
    form="the images: https://forms.illinois.edu/sec/229675, unpacked into flickr30k-images/",
)

_SIZES = {"test": (1000,), "val": (1014,), "train": (29000,)}
_FIRST = {"test": ("25",), "val": ("67",), "train": ()}
"""`imgid` of the first image, in Karpathy's order."""


def task(
    root: Path,
    *,
    protocol: Dense | None = None,
    split: Split = "test",
    dense: Path | None = None,
    format: Format = "auto",
    images: Path | None = None,
    size: Size = "official",
) -> Retrieval:
    """The images and captions to be matched: 1,000 images, 5,000 captions, one pool.

    protocol: `sparse`, captions alone; `candidate`, each image with its dense text; `oracle_query`, each
    caption with that of its own image, as SEPS's released code has it: it tells the answer, and is never
    ranked. None is `candidate` where there are dense texts, else `sparse`. dense: their file, by default
    root/f30k_test.jsonl (f30k_val.jsonl, f30k_train.jsonl), one line per image.

    root: holds dataset_flickr30k.json (Karpathy's; captions as written), or the text files of SCAN and
    LAPS (tokenised captions: other texts, other scores) with id_mapping.json. format: which of them;
    `auto` takes the first. split: `val` are 1,014 images, `train`
    29,000. images: by default root/flickr30k-images,
    root/images or root itself, the first that exists. size=any: files of other lengths and in another
    order.
    """
    root = check_folder(Path(root), SOURCE.layout)
    usual = (root / "flickr30k-images", root / "images", root)
    folder = next(place for place in usual if place.is_dir())
    if images is not None:
        folder = check_folder(Path(images), "Flickr30K's images")
    json_file, name = root / "dataset_flickr30k.json", "dev" if split == "val" else split
    if format == "karpathy" or (format == "auto" and json_file.exists()):
        found = karpathy(json_file, split, folder, "imgid")
    elif format == "text" or (root / f"{name}_caps.txt").exists():
        found = text_files(root, name, folder, file_names(root / "id_mapping.json"))
    else:
        raise DataError(f"{root} lacks its captions; it should hold {SOURCE.layout}")
    found = check_pool(f"flickr30k_retrieval {split}", found, _SIZES[split], _FIRST[split], size)
    usual_dense = root / f"f30k_{split}.jsonl"
    return made(
        "flickr30k_retrieval", found, dense or (usual_dense if usual_dense.exists() else None), protocol
    )
