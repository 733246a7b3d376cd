"""Short captions of COCO's images: the Karpathy test split, or all of val2014, by the server's metrics.

Knows the official files, the hub's columns and the prompts in circulation. Must not know: models,
methods, how captions are scored.

Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server", 2015; the split: Karpathy &
Fei-Fei, CVPR 2015.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from harness.errors import DataError
from harness.pictures import Picture, picture_in
from harness.types import Decoding, Metric, Request, Sample, Task
from metrics import caption
from tasks import _coco, _hub
from tasks._retrieval import karpathy_rows, sentences
from tasks._source import (
    Loaded,
    Row,
    Size,
    Source,
    check_folder,
    fingerprint,
    first_of,
    samples_of,
    select,
)

Protocol = Literal["lmms", "vlmevalkit"]
Split = Literal["karpathy", "val2014"]

_PROMPTS: dict[Protocol, dict[Split, str]] = {
    "lmms": {
        "karpathy": "Describe the image briefly.",
        "val2014": "Provide a one-sentence caption for the provided image.",
    },
    "vlmevalkit": dict.fromkeys(
        ("karpathy", "val2014"),
        "Please describe this image in general. Directly provide the description, do not include prefix like "
        '"This image depicts". ',
    ),
}
"""lmms-eval `tasks/coco_cap/*.yaml`; VLMEvalKit `vlmeval/dataset/image_caption.py`."""

_TOKENS: dict[Protocol, int] = {"lmms": 64, "vlmevalkit": 512}
_VARIANTS: dict[Protocol, caption.Variant] = {"lmms": "official", "vlmevalkit": "vlmevalkit"}
_SIZES: dict[Split, int] = {"karpathy": 5000, "val2014": _coco.IMAGES}

SOURCE = Source(
    title="MS-COCO captions",
    size="5,000 (Karpathy test); 40,504",
    metric="BLEU, METEOR, ROUGE-L, CIDEr",
    licence=_coco.LICENCE,
    layout="dataset_coco.json for split=karpathy, annotations/captions_val2014.json for val2014; val2014/",
    hub=("lmms-lab/COCO-Caption",),
    files=(_coco.KARPATHY, _coco.ANNOTATIONS, _coco.VAL2014),
)


def task(
    root: Path | None = None,
    *,
    split: Split = "karpathy",
    protocol: Protocol = "lmms",
    metric: Metric | None = None,
    subset: str | None = None,
    images: Path | None = None,
    size: Size = "official",
    revision: str | None = None,
) -> Task:
    """Captions of one sentence, scored by CIDEr (which ranks), BLEU, ROUGE_L and METEOR.

    root: holds dataset_coco.json (split=karpathy: 5,000 test images) or annotations/captions_val2014.json
    (split=val2014: 40,504), and the images in val2014; val2014 is also on the hub. All captions of an image
    are its references, five to seven. protocol: the prompt and new tokens at most of lmms-eval (64) or
    VLMEvalKit (512), and its way of scoring: after PTB tokenisation, which needs Java, or the texts as
    they stand. metric: another one, as in metric=(caption:meteor=false) or metric=clipscore. subset: as in
    random:500@seed=42. images: by default root/val2014, root/images/val2014, root/images or root itself.
    size=any: files of other lengths. revision: of the hub's copy.
    """
    chosen = metric or caption.metric(_VARIANTS[protocol])
    if metric is None:
        caption.require(_VARIANTS[protocol])  # what is missing must show before anything is generated
    loaded = _load(root, split, images, revision)
    make = partial(_sample, prompt=_PROMPTS[protocol][split])
    samples = samples_of(loaded, make, f"coco_caption {split}", (_SIZES[split],), size)
    decoding = Decoding(max_tokens=_TOKENS[protocol])
    return Task(
        name=f"coco_caption-{split}",
        version="1",
        protocol=protocol,
        fingerprint=loaded.fingerprint,
        samples=select(samples, subset),
        request=lambda sample: Request(sample.images, sample.question, decoding=decoding),
        metrics=(chosen,),
        primary=next(iter(chosen.higher_is_better)),
    )


def _sample(row: Row, picture: Picture, prompt: str) -> Sample:
    """Of a row with `file_name` and `answer`, the captions; COCO's number is the last in the file's name."""
    name = row.text("file_name", "question_id")
    number = Path(name).stem.rpartition("_")[2]
    image = str(int(number)) if number.isdigit() else number
    return Sample(image, (picture,), prompt, row.texts("answer"), meta={"image": name})


def _load(root: Path | None, split: Split, images: Path | None, revision: str | None) -> Loaded:
    if root is None:
        if split == "karpathy":
            raise DataError("the hub has no images for Karpathy's split: give root=DIR, or split=val2014")
        return _hub.load(SOURCE.hub, None, "val", revision=revision)
    root = check_folder(Path(root), SOURCE.layout)
    folder = _coco.image_folder(root) if images is None else check_folder(Path(images), "val2014's images")
    if split == "karpathy":
        path = first_of(root, "dataset_coco.json")
        listed = karpathy_rows(path, "test")
        found = [
            Row({"file_name": row.text("filename"), "answer": sentences(row)}, row.where) for row in listed
        ]
    else:
        path = first_of(root, "annotations/captions_val2014.json", "captions_val2014.json")
        found = _coco.captions(path)
    pictures = [picture_in(folder, row.text("file_name")) for row in found]
    return Loaded(found, pictures, fingerprint([path]))
