"""Can a matcher see which text describes which image? Probes that find out from its scores.

Knows pools and matchers. Must not know benchmarks, runs, or any matcher by name.

An honest score is made of one image, one text, and the dense text that comes with that image. It does not
depend on places in the pool, on file names, on other images and texts, or on what is asked for together. Each
probe changes something that must not matter and looks at the scores of the pairs that are still there. What
no probe can see is a matcher that has learnt the test set: its scores are of the pair alone.
"""

from __future__ import annotations

import io
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from harness.errors import ModelError
from harness.pictures import Memory, Picture
from harness.types import Matcher, Pool, digest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Scores = npt.NDArray[np.float64]

PROBES = {
    "repeat": "the same pool, asked again, gives other scores, so that no other probe can be trusted",
    "batch": "an image's scores depend on the images that are asked for with it",
    "text_order": "scores depend on where a text stands in the pool",
    "image_order": "scores depend on where an image stands in the pool",
    "names": "scores depend on what a picture's file is called or how it is encoded, not on its pixels alone",
    "fewer_texts": "scores depend on which other texts are in the pool",
    "fewer_images": "scores depend on which other images are in the pool",
    "unpaired": "scores depend on whether an image's own texts are in the pool",
    "whole_pool": "scores in the whole pool are not those in a part of it",
    "dense": "a dense text changes scores of an image, or a text, that it does not belong to",
    "oracle_query": "a text's scores depend on a dense text that describes its own image: the answer",
}
"""What a probe that finds something has found."""

_LOOKED_UP = 4  # images whose rows are asked for in the whole pool


@dataclass(frozen=True)
class Leak:
    """What a probe found. pairs: scores that changed, of those that were compared; worst: by how much."""

    probe: str
    pairs: int
    of: int
    worst: float

    def __str__(self) -> str:
        changed = f"{self.pairs:,} of {self.of:,} scores, by up to {self.worst:.2g}"
        return f"{self.probe}: {PROBES[self.probe]} ({changed})"


@dataclass(frozen=True)
class Report:
    """What the probes found. probes: those that ran. images, texts: of the part of the pool that was probed.

    gain: only where each text has a dense text: text-to-image R@1 with it, less that with another image's,
    in points; what the answer was worth.
    """

    probes: tuple[str, ...]
    leaks: tuple[Leak, ...]
    images: int
    texts: int
    gain: float | None = None

    @property
    def honest(self) -> bool:
        """Whether no probe found anything."""
        return not self.leaks

    def __str__(self) -> str:
        looked = f"{len(self.probes)} probes over {self.images} images and {self.texts} texts"
        lines = [f"{looked}: {'nothing found' if self.honest else f'{len(self.leaks)} found something'}"]
        lines += map(str, self.leaks)
        if self.gain is not None:
            lines.append(f"its dense text is worth {self.gain:+.1f} points of text-to-image R@1 to a text")
        return "\n".join(lines)


def probe(
    matcher: Matcher,
    pool: Pool,
    owner: Sequence[int],
    *,
    images: int = 16,
    seed: int = 0,
    tolerance: float = 1e-4,
    whole: bool = True,
    skip: Collection[str] = (),
) -> Report:
    """Put a matcher through every probe that its pool allows.

    owner: per text, the index of its image, as `Retrieval.owner`; the matcher does not get it. images: how
    many of the pool are probed, drawn with `seed`, with all their texts; about 15 times so many rows are
    asked for. tolerance: a change of a score that counts as rounding, as a share of the range of all scores.
    whole: also compare with the whole pool, which encodes all its texts. skip: probes to leave out (`names`,
    for a matcher that looks up features by the picture's digest).

    Raises ValueError for fewer than two images or texts, owners that do not fit or an unknown probe;
    ModelError where the matcher gives something else than a block of finite numbers; what the matcher raises.
    """
    unknown = sorted(set(skip) - set(PROBES))
    if unknown:
        raise ValueError(f"there is no probe {unknown[0]!r}; skip takes {', '.join(PROBES)}")
    if len(owner) != len(pool.texts) or not all(0 <= image < len(pool.images) for image in owner):
        raise ValueError(
            f"owner must name one of {len(pool.images)} images for each of {len(pool.texts)} texts"
        )
    draw = random.Random(seed)
    chosen = sorted(draw.sample(range(len(pool.images)), min(images, len(pool.images))))
    texts = [text for text, image in enumerate(owner) if image in set(chosen)]
    if len(chosen) < 2 or len(texts) < 2:
        raise ValueError(
            f"{len(chosen)} images with {len(texts)} texts leave nothing to compare; take 2 or more"
        )
    place = {image: number for number, image in enumerate(chosen)}
    part = _part(pool, chosen, texts, "part")
    work = _Work(matcher, part, [place[owner[text]] for text in texts], draw, tolerance, skip)
    work.steadiness()
    work.places()
    work.neighbours()
    if whole:
        work.everything(pool, chosen, texts)
    gain = None
    if pool.dense_of != "none":
        work.dense()
    if pool.dense_of == "text" and "oracle_query" not in skip:
        gain = work.gain()
    leaks = tuple(Leak(name, *changed) for name, changed in work.found.items() if changed[0])
    return Report(tuple(work.found), leaks, len(chosen), len(texts), gain)


@dataclass
class _Work:
    """The probes. pool: the part of it that is probed; owner: per text of it, the place of its image."""

    matcher: Matcher
    pool: Pool
    owner: list[int]
    draw: random.Random
    tolerance: float
    skip: Collection[str]
    found: dict[str, tuple[int, int, float]] = field(default_factory=dict)  # per probe, a leak's numbers

    def __post_init__(self) -> None:
        self.plain = _scores(self.matcher, self.pool)
        # float32 has 24 bits, and so large scores large last digits
        self.rounding = self.tolerance * float(self.plain.max() - self.plain.min())
        self.rounding = max(self.rounding, 2**-20 * float(abs(self.plain).max()))

    @property
    def images(self) -> range:
        return range(len(self.pool.images))

    @property
    def texts(self) -> range:
        return range(len(self.pool.texts))

    def steadiness(self) -> None:
        if self.wanted("repeat"):
            self.compare("repeat", _scores(self.matcher, self.pool), self.plain)
        if self.wanted("batch"):
            self.compare("batch", _scores(self.matcher, self.pool, 1), self.plain)
            self.compare("batch", _scores(self.matcher, self.pool, 3), self.plain)

    def places(self) -> None:
        texts, images = (_shuffled(side, self.draw) for side in (self.texts, self.images))
        self.survivors("text_order", self.images, texts)
        self.survivors("image_order", images, self.texts)
        if self.wanted("names"):
            renamed = tuple(_renamed(picture, number) for number, picture in enumerate(self.pool.images))
            pool = replace(self.pool, images=renamed, fingerprint=digest([self.pool.fingerprint, "names"]))
            self.compare("names", _scores(self.matcher, pool), self.plain)

    def neighbours(self) -> None:
        some, others = self.halves(self.images)
        self.survivors("fewer_texts", self.images, self.halves(self.texts)[0])
        self.survivors("fewer_images", some, self.texts)
        self.survivors("unpaired", some, [text for text in self.texts if self.owner[text] in others])

    def everything(self, pool: Pool, chosen: Sequence[int], texts: Sequence[int]) -> None:
        """chosen, texts: where the images and texts of the part stand in the whole `pool`."""
        if not self.wanted("whole_pool"):
            return
        looked = list(enumerate(chosen))[:: -(-len(chosen) // _LOOKED_UP)]
        for row, image in looked:
            found = _block(self.matcher, pool, range(image, image + 1))
            self.compare("whole_pool", found[:, texts], self.plain[row : row + 1])

    def dense(self) -> None:
        """Other dense texts for one image, then for each half of the images: whose scores change?"""
        import numpy as np

        own = np.zeros(self.plain.shape, bool)
        halves = self.halves(self.images)
        for altered in ({0}, {len(self.images) - 1}, set(halves[0]), set(halves[1])):
            of_image = self.pool.dense_of == "image"
            whose = self.images if of_image else self.owner
            dense = tuple(
                _other(text, self.pool.dense) if image in altered else text
                for image, text in zip(whose, self.pool.dense, strict=True)
            )
            mark = digest([self.pool.fingerprint, "dense", sorted(altered)])
            found = _scores(self.matcher, replace(self.pool, dense=dense, fingerprint=mark))
            own[:] = False
            if of_image:
                own[sorted(altered)] = True
            else:
                own[:, [image in altered for image in self.owner]] = True
            if self.wanted("dense"):
                self.compare("dense", found[~own], self.plain[~own])
            if not of_image and self.wanted("oracle_query"):
                self.compare("oracle_query", found[own], self.plain[own])

    def gain(self) -> float:
        """R@1 of texts with their dense texts, less that with the next image's."""
        of_image = dict(zip(self.owner, self.pool.dense, strict=True))
        there = sorted(of_image)
        following = dict(zip(there, there[1:] + there[:1], strict=True))
        dense = tuple(of_image[following[image]] for image in self.owner)
        mark = digest([self.pool.fingerprint, "shuffled"])
        shuffled = _scores(self.matcher, replace(self.pool, dense=dense, fingerprint=mark))
        return _recall(self.plain, self.owner) - _recall(shuffled, self.owner)

    def survivors(self, probe: str, images: Sequence[int], texts: Sequence[int]) -> None:
        """Compare the pairs of these images and texts, alone and in this order, with what they were."""
        if images and texts and self.wanted(probe):
            found = _scores(self.matcher, _part(self.pool, images, texts, probe))
            self.compare(probe, found, self.plain[list(images)][:, list(texts)])

    def wanted(self, probe: str) -> bool:
        return probe not in self.skip

    def compare(self, probe: str, now: Scores, plain: Scores) -> None:
        """Add up what changed; a probe may compare several times."""
        changes = abs(now - plain)
        pairs, of, worst = self.found.get(probe, (0, 0, 0.0))
        pairs += int((changes > self.rounding).sum())
        self.found[probe] = (pairs, of + changes.size, max(worst, float(changes.max(initial=0.0))))

    def halves(self, places: range) -> tuple[list[int], list[int]]:
        """Places, each in one of two halves, in order."""
        some = set(self.draw.sample(places, len(places) // 2))
        return sorted(some), [place for place in places if place not in some]


def _scores(matcher: Matcher, pool: Pool, step: int | None = None) -> Scores:
    """(images, texts), asked for `step` rows at a time."""
    import numpy as np

    images = len(pool.images)
    starts = range(0, images, step or images)
    blocks = [range(start, min(images, start + (step or images))) for start in starts]
    return np.concatenate([_block(matcher, pool, rows) for rows in blocks])


def _block(matcher: Matcher, pool: Pool, rows: range) -> Scores:
    import numpy as np

    found = np.asarray(matcher.similarity(pool, rows), np.float64)
    if found.shape != (len(rows), len(pool.texts)) or not np.isfinite(found).all():
        raise ModelError(
            f"the matcher gave a block of shape {found.shape} for {len(rows)} images and {len(pool.texts)} "
            f"texts, {int((~np.isfinite(found)).sum())} of its numbers not finite"
        )
    return found


def _part(pool: Pool, images: Sequence[int], texts: Sequence[int], why: str) -> Pool:
    """These images and texts of a pool, in this order, with their dense texts."""
    whose = {"none": (), "image": images, "text": texts}[pool.dense_of]
    return replace(
        pool,
        images=tuple(pool.images[image] for image in images),
        texts=tuple(pool.texts[text] for text in texts),
        dense=tuple(pool.dense[place] for place in whose),
        fingerprint=digest([pool.fingerprint, why, list(images), list(texts)]),
    )


def _shuffled(places: range, draw: random.Random) -> list[int]:
    order = list(places)
    while order == list(places):
        draw.shuffle(order)
    return order


def _other(text: str, dense: Sequence[str]) -> str:
    """A dense text that is another: of the same pool, if there is one."""
    return next((other for other in dense if other != text), f"Not so: {text}")


def _renamed(picture: Picture, number: int) -> Picture:
    """The same pixels in other bytes, under a name that says nothing."""
    from PIL.PngImagePlugin import PngInfo

    note, data = PngInfo(), io.BytesIO()
    note.add_text("Comment", "the same pixels")  # other bytes even where it was a PNG
    picture.open().save(data, "PNG", pnginfo=note)
    return Picture(Memory(data.getvalue(), f"{number}.png"))


def _recall(scores: Scores, owner: Sequence[int]) -> float:
    """R@1 of texts that look for their image, in per cent; a rival of equal score counts."""
    import numpy as np

    own = scores[list(owner), np.arange(len(owner))]
    return 100 * float(((scores >= own).sum(axis=0) == 1).mean())
