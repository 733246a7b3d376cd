"""Small details in drawn scenes: questions that the bundled demo model can answer only if it looks closely.

Scenes are 576 px wide; the demo model sees 96. A digit of 16-24 px is then 3-4 px tall and mostly lost,
while its object is easy to find: the case that cropping methods are for. Scenes are drawn from seeds, so
that anybody has the same pixels without a download; a checksum guards them. Chance is 10 % for digits and
50 % for existence. Source: ours; the generator is tasks/_scenes.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image

from harness.errors import DataError
from harness.pictures import Drawing, Picture
from harness.types import Decoding, Hints, Metric, Request, Sample, Task, digest
from metrics import chair, exact, yesno
from tasks import _scenes
from tasks._scenes import Question, Scene
from tasks._source import DETAIL

VERSION = "1"
CHECKSUM = "92c7245eb84c82d001585399b96f1f08df6fb63016cddc3ce5b2b6dac2af43a5"

Kind = Literal["digit", "attribute", "existence", "count", "caption"]
SIZES = (12, 16, 20, 24, 32, 40, 49)  # the glyph heights, in pixels, at which categories begin


def task(
    question: Kind = "digit",
    glyph: tuple[int, int] = (16, 24),
    seed: int = 2000,
    size: int = 750,
) -> Task:
    """One question about each of `size` scenes.

    question: `digit` (the digit on an object; category: its height), `attribute` (the colour of the only
    object of a shape, or the reverse), `existence` (as POPE), `count`, or `caption` (measured by CHAIR
    over the scene's own vocabulary). glyph: smallest and largest height of the digits, in pixels.
    seed: of the scenes; the demo model was trained and chosen without seeds of 2000 and more.

    Raises DataError where this numpy draws other scenes, ValueError for sizes that make no sense.
    """
    if not 7 <= glyph[0] <= glyph[1] <= 60:
        raise ValueError(f"glyph={glyph[0]}-{glyph[1]} px; use a range within 7-60, such as 16-24")
    if size < 1:
        raise ValueError(f"size is {size}; it must be 1 or more")
    _guard()
    ask = _ASK[question]
    drawn = (_sample(ask, glyph, seed, index) for index in range(size))
    return Task(
        name="small_detail",
        version=VERSION,
        protocol=question,
        fingerprint=digest([CHECKSUM, question, glyph, seed]),
        samples=[sample for sample in drawn if sample is not None],
        request=partial(_request, max_tokens=64 if question == "caption" else 8),
        metrics=(_metric(question),),
        primary={"existence": "f1", "caption": "CHAIRi"}.get(question, "accuracy"),
    )


def _request(sample: Sample, max_tokens: int) -> Request:
    region = sample.meta.get("region")
    return Request(
        images=sample.images,
        question=sample.question,
        decoding=Decoding(max_tokens=max_tokens),
        hints=Hints(short_question=sample.question, region=tuple(region) if region else None),  # type: ignore[arg-type]
    )


def _metric(question: Kind) -> Metric:
    if question == "existence":
        return yesno.metric()
    if question == "caption":
        return chair.metric(front_end="rules", vocabulary="scenes")
    return exact.metric()


# ---------------------------------------------------------------- samples

Asked = tuple[Question, tuple[str, ...], str | None, tuple[int, int, int, int] | None]
"""The question, its targets, the sample's category and the target's box."""


def _sample(
    ask: Callable[[np.random.Generator, Scene], Asked | None], glyph: tuple[int, int], seed: int, index: int
) -> Sample | None:
    scene = _scenes.test_scene(seed, index, glyph)
    asked = ask(np.random.default_rng([seed, index, 1]), scene)
    if asked is None:
        return None
    question, targets, category, region = asked
    label = f"small_detail/{VERSION}/glyph={glyph[0]}-{glyph[1]}/seed={seed}/{index}"
    side = (scene.canvas, scene.canvas)
    return Sample(
        id=f"{seed}/{index}",
        images=(Picture(Drawing(label, side, partial(_image, scene))),),
        question=question.text,
        targets=targets,
        category=category,
        meta={"region": list(region)} if region else {},
    )


def _image(scene: Scene) -> Image.Image:
    return Image.fromarray(_scenes.render(scene)[0])


def _digit(rng: np.random.Generator, scene: Scene) -> Asked:
    things = [thing for thing in scene.things if thing.digit is not None]
    thing = things[rng.integers(len(things))]
    question = _scenes.digit_question(thing)
    start = max(size for size in SIZES if size <= max(thing.glyph, SIZES[0]))
    end = min((size for size in SIZES if size > start), default=start + 1)
    return question, (question.answer,), f"{start}-{end - 1} px", thing.glyph_box


def _attribute(rng: np.random.Generator, scene: Scene) -> Asked | None:
    kinds = [("color", _scenes.color_question), ("shape", _scenes.shape_question)]
    for turn in rng.permutation(2):
        kind, write = kinds[turn]
        question = write(rng, scene)
        if question is not None:
            return question, (question.answer,), kind, None
    return None


def _existence(rng: np.random.Generator, scene: Scene) -> Asked | None:
    question = _scenes.existence_question(rng, scene)
    return None if question is None else (question, (question.answer,), None, None)


def _count(rng: np.random.Generator, scene: Scene) -> Asked:
    question = _scenes.count_question(rng, scene)
    return question, (question.answer,), None, None


def _caption(_: np.random.Generator, scene: Scene) -> Asked:
    return Question(DETAIL, ""), tuple(sorted(_scenes.object_names(scene))), None, None


_ASK: dict[Kind, Callable[[np.random.Generator, Scene], Asked | None]] = {
    "digit": _digit,
    "attribute": _attribute,
    "existence": _existence,
    "count": _count,
    "caption": _caption,
}


# ---------------------------------------------------------------- the guard


def checksum() -> str:
    """sha256 (hex) over the pixels of four fixed scenes."""
    pixels = hashlib.sha256()
    for index in range(4):
        pixels.update(_scenes.render(_scenes.test_scene(2000, index, (16, 24)))[0].tobytes())
    return pixels.hexdigest()


def _guard() -> None:
    if checksum() != CHECKSUM:
        raise DataError(
            f"this numpy ({np.__version__}) draws other scenes than those that published numbers are about; "
            "install the numpy version of the constraints file"
        )
