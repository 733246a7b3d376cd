"""Image-text retrieval on drawn scenes: images, captions and dense texts from seeds, nothing to download.

Knows what can be said about a scene: which words, which parts, which mistakes. Must not know: models,
similarities, how the demo model talks.

For trying a matcher or its training in minutes: coloured shapes, most of them with a digit. An image has
five captions, as COCO's and Flickr30K's have; each speaks of a part of it, from its own point of view
(one thing beside another; where two things are; three things in a row; their digits; how many there are).
Its dense text tells of everything, with mistakes, as a captioning model's does. Of the test split's 1,000
captions 11.8 % are true of another of its 200 images too, so no matcher finds all. Source: ours; the scenes
are those of tasks/_scenes.py, with larger objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise, permutations
from typing import TypeAlias, TypeVar

import numpy as np
from PIL import Image

from harness.errors import DataError
from harness.pictures import Drawing, Picture
from harness.types import Retrieval, digest
from tasks import _scenes
from tasks._retrieval import Captioned, Dense, Split, made
from tasks._scenes import CANVAS, Scene, Thing

VERSION = "1"
CHECKSUM = "bff70d86d6978c85ac044c90506ee02e20a24a9de5f099b7a5226da55798c5d7"

STREAM = 0x5CE7E5
"""The first of a seed's four numbers. The demo model's training begins its own with another
(assets/demo/train.py), and small_detail's have two, so no scene of theirs is drawn here."""

_SPLITS: dict[Split, int] = {"train": 0, "val": 1, "test": 2}
_SCENE, _CAPTIONS, _DENSE = 1, 2, 3  # streams of an image: changing one leaves the others as they are

_BIG, _GLYPH = (96, 150), (32, 48)
"""Sides of objects and heights of digits in pixels, of 576: a tower that sees 96 has 16 to 25 and 5 to 8."""

_APART = CANVAS // 4  # half pixels between centres from which on one is left of, or above, another
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")

Choice = TypeVar("Choice")
Random: TypeAlias = np.random.Generator


def task(
    protocol: Dense | None = None,
    split: Split = "test",
    dense_noise: float = 0.1,
    train: int = 2000,
    val: int = 200,
    test: int = 200,
) -> Retrieval:
    """The images of a split, five captions of each, and a dense text of each: one pool.

    protocol: `candidate` (default), each image with its dense text; `sparse`, captions alone; or
    `oracle_query`, each caption with that of its own image, as SEPS's released code has it: it tells the
    answer, and is never ranked. dense_noise: the share of a dense text's colours, shapes, digits and places
    that are wrong; more of it keeps what was wrong. train, val, test: images of each split; more of them
    keep the first.

    Raises DataError where this numpy draws other scenes, ValueError for numbers that make no sense.
    """
    size = {"train": train, "val": val, "test": test}[split]
    if size < 1:
        raise ValueError(f"{split} is {size}; it must be 1 or more")
    if not 0 <= dense_noise <= 1:
        raise ValueError(f"dense_noise is {dense_noise}; it is a share, from 0 to 1")
    _guard()
    scenes = [scene_of(split, index) for index in range(size)]
    texts = [captions(scene, split, index) for index, scene in enumerate(scenes)]
    found = Captioned(
        images=tuple(_picture(scene, split, index) for index, scene in enumerate(scenes)),
        texts=tuple(text for mine in texts for text in mine),
        owner=tuple(index for index, mine in enumerate(texts) for _ in mine),
        ids=tuple(f"{split}/{index}" for index in range(size)),
        fingerprint=digest([VERSION, CHECKSUM, split, size]),
    )
    stories = [dense_text(scene, split, index, dense_noise) for index, scene in enumerate(scenes)]
    return made("scene_retrieval", found, stories, protocol)


def scene_of(split: Split, index: int) -> Scene:
    """Image `index` of a split, whatever else was drawn: three objects at least, one of them with a digit."""
    rng = _random(split, index, _SCENE)
    while True:
        scene = _scenes.draw(rng, big=_BIG, glyph=_GLYPH, n_small=(0, 1))
        if len(scene.things) >= 3 and any(thing.digit is not None for thing in scene.things):
            return scene


def _random(split: Split, index: int, purpose: int) -> Random:
    return np.random.default_rng([STREAM, _SPLITS[split], index, purpose])


def _picture(scene: Scene, split: Split, index: int) -> Picture:
    label = f"scene_retrieval/{VERSION}/{split}/{index}"
    return Picture(Drawing(label, (scene.canvas, scene.canvas), partial(_image, scene)))


def _image(scene: Scene) -> Image.Image:
    return Image.fromarray(_scenes.render(scene)[0])


# ---------------------------------------------------------------- what is where


def _centre(thing: Thing) -> tuple[int, int]:
    """Across and down, in half pixels of the canvas: whole numbers."""
    return 2 * thing.x + thing.side, 2 * thing.y + thing.side


def _place(thing: Thing) -> str:
    """Where an object is, as people say it; the middle fifth of either direction is neither side."""
    across, down = (
        low if 5 * at < 4 * CANVAS else high if 5 * at > 6 * CANVAS else ""
        for at, low, high in zip(_centre(thing), ("left", "top"), ("right", "bottom"), strict=True)
    )
    return f"{down} {across}".strip() or "middle"


def _relation(a: Thing, b: Thing) -> tuple[str, ...] | None:
    """Ways to say where `a` is from `b`, by the direction in which they are farther apart; None: too near."""
    across, down = (here - there for here, there in zip(_centre(a), _centre(b), strict=True))
    if max(abs(across), abs(down)) < _APART:
        return None
    if abs(across) >= abs(down):
        return ("to the left of", "left of") if across < 0 else ("to the right of", "right of")
    return ("above", "over") if down < 0 else ("below", "under")


def _row(things: Sequence[Thing]) -> tuple[str, list[Thing]] | None:
    """Three objects from left to right or from top to bottom, well apart from one to the next; or None."""
    for axis, words in enumerate(("from left to right", "from top to bottom")):
        inline = sorted(things, key=lambda thing: _centre(thing)[axis])
        if all(_centre(b)[axis] - _centre(a)[axis] >= _APART for a, b in pairwise(inline)):
            return words, inline
    return None


# ---------------------------------------------------------------- captions


def captions(scene: Scene, split: Split, index: int) -> tuple[str, ...]:
    """Five captions of an image, from five points of view, in a random order.

    >>> captions(scene_of("test", 0), "test", 0)[1]
    'There is a green circle marked 9 to the left of a blue circle.'
    """
    rng = _random(split, index, _CAPTIONS)
    views: list[Callable[[Random, Scene], str]] = [_beside, _places, _in_a_row, _digits, _how_many]
    texts = [view(rng, scene) for view in views]
    return tuple(_sentence(texts[place]) for place in rng.permutation(len(texts)))


def _beside(rng: Random, scene: Scene) -> str:
    """One thing beside another, one of them with its digit."""
    pairs = [(a, b) for a, b in permutations(scene.things, 2) if _relation(a, b)]
    pairs = [pair for pair in pairs if any(thing.digit is not None for thing in pair)] or pairs
    if not pairs:
        return _places(rng, scene)
    a, b = _one(rng, pairs)
    marked = _one(rng, [thing for thing in (a, b) if thing.digit is not None] or [a])
    said = (_named(rng, thing, digit=thing is marked) for thing in (a, b))
    relation = _one(rng, _relation(a, b) or ())
    form = _one(rng, ("{0} is {1} {2}", "{0} {1} {2}", "there is {0} {1} {2}"))
    first, second = said
    return form.format(first, relation, second)


def _places(rng: Random, scene: Scene) -> str:
    """Where two things are."""
    a, b = _some(rng, scene.things, 2)
    form = _one(rng, ("{0} {1} and {2} {3}", "{0} is {1}, {2} is {3}", "i see {0} {1} and {2} {3}"))
    return form.format(_scenes.with_article(a.name), _at(a), _scenes.with_article(b.name), _at(b))


def _in_a_row(rng: Random, scene: Scene) -> str:
    """Three things in their order across or down, or where no three are well apart, without one."""
    rows = [row for row in map(_row, _triples(rng, scene.things)) if row]
    if not rows:
        names = [_scenes.with_article(thing.name) for thing in _some(rng, scene.things, 3)]
        return "a picture of {}, {} and {}".format(*names)
    words, things = rows[0]
    names = [_scenes.with_article(thing.name) for thing in things]
    return _one(rng, ("{0}: {1}, {2}, {3}", "{1}, then {2}, then {3}, {0}")).format(words, *names)


def _digits(rng: Random, scene: Scene) -> str:
    """Two things and their digits; where only one has any, that and where another is."""
    marked = [thing for thing in scene.things if thing.digit is not None]
    if len(marked) == 1:
        other = _one(rng, [thing for thing in scene.things if thing is not marked[0]])
        return f"{_named(rng, marked[0])} and {_scenes.with_article(other.name)} {_at(other)}"
    a, b = _some(rng, marked, 2)
    form = _one(rng, ("{0} on {1}, {2} on {3}", "digit {0} is on {1} and digit {2} on {3}"))
    return form.format(a.digit, _scenes.with_article(a.name), b.digit, _scenes.with_article(b.name))


def _how_many(rng: Random, scene: Scene) -> str:
    """How many things there are, two of them by name and one of these by its place."""
    a, b = _some(rng, scene.things, 2)
    number = _NUMBERS[len(scene.things)]
    form = _one(rng, ("{0} shapes, one is {1} {2}, another {3}", "{1} {2} and {3} among {0} shapes"))
    return form.format(number, _scenes.with_article(a.name), _at(a), _scenes.with_article(b.name))


def _named(rng: Random, thing: Thing, *, digit: bool = True) -> str:
    name = _scenes.with_article(thing.name)
    if thing.digit is None or not digit:
        return name
    return _one(rng, ("{} with the digit {}", "{} marked {}", "{} with a {}")).format(name, thing.digit)


def _at(thing: Thing) -> str:
    place = _place(thing)
    return f"{'in' if place == 'middle' else 'on' if place in ('left', 'right') else 'at'} the {place}"


def _triples(rng: Random, things: Sequence[Thing]) -> list[list[Thing]]:
    """Ten draws of three."""
    return [_some(rng, things, 3) for _ in range(10)]


def _one(rng: Random, choices: Sequence[Choice]) -> Choice:
    return choices[int(rng.integers(len(choices)))]


def _some(rng: Random, choices: Sequence[Choice], number: int) -> list[Choice]:
    return [choices[int(place)] for place in rng.permutation(len(choices))[:number]]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


# ---------------------------------------------------------------- dense texts


def dense_text(scene: Scene, split: Split, index: int, noise: float) -> str:
    """All objects of an image in reading order, with their colours, shapes, digits, sizes and places.

    noise: the share of these but the sizes that is replaced by something else.

    >>> for noise in (0, 0.5):
    ...     print(dense_text(scene_of("test", 0), "test", 0, noise)[50:129])
    A large green circle can be seen in the top part, and it has the digit 9 on it.
    A large green square can be seen in the top part, and it has the digit 2 on it.
    """
    rng = _random(split, index, _DENSE)
    things = sorted(
        scene.things, key=lambda thing: (3 * _centre(thing)[1] // (2 * CANVAS), _centre(thing)[0])
    )
    ground = "grey" if len(set(scene.background)) == 1 else "pale"
    texts = [f"the image shows {_NUMBERS[len(things)]} shapes on a {ground} background"]
    for thing in things:
        color = _mistaken(rng, thing.color, tuple(_scenes.COLORS), noise)
        shape = _mistaken(rng, thing.shape, _scenes.SHAPES, noise)
        place = _mistaken(rng, _place(thing), _PLACES, noise)
        mark = _mistaken(rng, str(thing.digit), tuple("0123456789"), noise)
        size = "small" if thing.side < _BIG[0] else "large"
        form = _one(rng, ("there is a {} {} {} {}", "a {} {} {} is {}", "a {} {} {} can be seen {}"))
        text = form.format(size, color, shape, f"in the {place}{'' if place == 'middle' else ' part'}")
        if thing.digit is not None:
            text += _one(rng, (", and it has the digit {} on it", ", marked with the digit {}")).format(mark)
        texts.append(text)
    return " ".join(_sentence(text) for text in texts)


_PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")


def _mistaken(rng: Random, value: str, values: Sequence[str], noise: float) -> str:
    """`value`, or with probability `noise` another of `values`; the same draws whatever the noise."""
    wrong = _one(rng, [other for other in values if other != value])
    return wrong if rng.random() < noise else value


# ---------------------------------------------------------------- the guard


def checksum() -> str:
    """sha256 (hex) over the pixels and texts of four fixed images of each split."""
    found = hashlib.sha256()
    for split in _SPLITS:
        for index in range(4):
            scene = scene_of(split, index)
            found.update(_scenes.render(scene)[0].tobytes())
            found.update("\n".join(captions(scene, split, index)).encode())
            found.update(dense_text(scene, split, index, 0.5).encode())
    return found.hexdigest()


def _guard() -> None:
    if checksum() != CHECKSUM:
        raise DataError(
            f"this numpy ({np.__version__}) draws other scenes than those that published numbers are about; "
            "install the numpy version of the constraints file"
        )
