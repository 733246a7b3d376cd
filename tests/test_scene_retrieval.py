"""Retrieval on drawn scenes: captions read back by a parser of their own and held against the scenes."""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from harness import matching, resolve
from harness.errors import DataError, SpecError
from harness.types import Pool
from tasks import _scenes, scene_retrieval, small_detail
from tasks._scenes import Scene, Thing
from tasks.scene_retrieval import scene_of, task

NAME = re.compile(
    r"\ban? (red|green|blue|yellow|purple|orange) (circle|square|triangle|star|diamond|cross)"
    r"(?: (?:with the digit|marked|with a) (\d))?"
    r"(?:(?: is)? (?:at|in|on) the ((?:top|bottom)? ?(?:left|right|middle)?)(?=[ ,.]))?"
)
RELATION = re.compile(r"\b(left of|right of|above|over|below|under)\b")
BEFORE = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "over": (1, 1)} | dict.fromkeys(
    ("below", "under"), (1, -1)
)
NUMBERS = {word: number for number, word in enumerate(("three", "four", "five", "six"), 3)}


def centre(thing: Thing) -> tuple[float, float]:
    return thing.x + thing.side / 2, thing.y + thing.side / 2


def is_at(thing: Thing, place: str) -> bool:
    """Generously: what is at the top left is also at the top."""
    third = {
        "left": centre(thing)[0] < 0.4 * 576,
        "right": centre(thing)[0] > 0.6 * 576,
        "top": centre(thing)[1] < 0.4 * 576,
        "bottom": centre(thing)[1] > 0.6 * 576,
    }
    if place == "middle":
        return not any(third.values())
    return all(third[word] for word in place.split())


def holds(text: str, scene: Scene) -> bool:
    """Whether a caption is true of a scene."""
    text, things = text.lower(), {thing.name: thing for thing in scene.things}
    mentions = NAME.findall(text)
    assert len(mentions) >= 2, text
    spoken = [things.get(f"{color} {shape}") for color, shape, _, _ in mentions]
    if any(thing is None for thing in spoken):
        return False
    seen = [thing for thing in spoken if thing is not None]
    digits = re.findall(r"(\d) (?:is )?on an? ", text)
    for thing, (_, _, digit, place) in zip(seen, mentions, strict=True):
        if (digit and str(thing.digit) != digit) or (place and not is_at(thing, place)):
            return False
    if digits and [str(thing.digit) for thing in seen] != digits:
        return False
    if (count := re.search(r"(\w+) shapes", text)) and NUMBERS[count[1]] != len(scene.things):
        return False
    if relation := RELATION.search(text):
        axis, sign = BEFORE[relation[1]]
        return sign * (centre(seen[1])[axis] - centre(seen[0])[axis]) > 0
    if row := re.search(r"from (left|top) to", text):
        axis = 0 if row[1] == "left" else 1
        return all(centre(a)[axis] < centre(b)[axis] for a, b in pairwise(seen))
    return True


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_caption_is_true_of_its_image(split: scene_retrieval.Split) -> None:
    made = task(split=split, train=200)
    for text, image in zip(made.pool.texts, made.owner, strict=True):
        assert holds(text, scene_of(split, image)), text


def test_most_captions_of_the_test_split_are_true_of_one_image_alone_but_not_all() -> None:
    made, scenes = task(), [scene_of("test", index) for index in range(200)]
    shared = [
        any(holds(text, scene) for index, scene in enumerate(scenes) if index != image)
        for text, image in zip(made.pool.texts, made.owner, strict=True)
    ]
    assert np.mean(shared) == pytest.approx(0.118)
    assert "11.8 %" in (scene_retrieval.__doc__ or "")


def test_an_image_has_five_different_captions_and_none_tells_all_of_it() -> None:
    made = task(split="train")
    assert (len(made.ids), len(made.pool.texts), made.ids[1999]) == (2000, 10_000, "train/1999")
    for image in range(2000):
        mine = made.pool.texts[5 * image : 5 * image + 5]
        assert len(set(mine)) == 5
        assert all(2 <= len(NAME.findall(text.lower())) <= 3 for text in mine)
    words = {word for text in made.pool.texts + made.pool.dense for word in re.findall(r"\w+", text.lower())}
    assert len(words) < 100


def test_a_dense_text_tells_of_every_object_and_the_asked_share_of_it_is_wrong() -> None:
    for noise in (0.0, 0.1, 0.3):
        wrong = total = 0
        for index, text in enumerate(task(dense_noise=noise, protocol="candidate").pool.dense):
            scene = scene_of("test", index)
            spoken = _spoken(text)
            assert len(spoken) == len(scene.things)
            ordered = sorted(scene.things, key=lambda thing: (3 * centre(thing)[1] // 576, centre(thing)[0]))
            for thing, (color, shape, place, digit) in zip(ordered, spoken, strict=True):
                right = [color == thing.color, shape == thing.shape, _exactly_at(thing, place)]
                right += [] if thing.digit is None else [digit == str(thing.digit)]
                wrong, total = wrong + len(right) - sum(right), total + len(right)
        assert wrong / total == pytest.approx(noise, abs=0.02)


def _spoken(text: str) -> list[tuple[str, str, str, str]]:
    """(colour, shape, place, digit) of every object of a dense text."""
    return re.findall(
        r"(?:large|small) (\w+) (\w+) (?:is |can be seen )?in the (middle|[a-z ]+(?= part))"
        r"(?:[^.]* digit (\d))?",
        text,
    )


def _exactly_at(thing: Thing, place: str) -> bool:
    """At the top left, not only at the top."""
    said = set(place.split()) - {"middle"}
    return said == {side for side in ("left", "right", "top", "bottom") if is_at(thing, side)}


def test_more_noise_keeps_the_mistakes_that_were_there() -> None:
    few, more = (task(dense_noise=noise).pool.dense for noise in (0.1, 0.3))
    plain = task(dense_noise=0).pool.dense
    for one, two, right in zip(few, more, plain, strict=True):
        words = zip(one.split(), two.split(), right.split(), strict=False)
        if len(one.split()) == len(two.split()) == len(right.split()):
            assert all(b != c for a, b, c in words if a != c)


def test_the_protocols_give_dense_texts_to_nobody_to_images_or_with_the_answer_to_captions() -> None:
    sparse, candidate, leaking = (
        task(protocol=protocol, test=3) for protocol in ("sparse", "candidate", "oracle_query")
    )
    assert (sparse.protocol, sparse.pool.dense_of, sparse.leaks) == ("sparse", "none", False)
    assert (candidate.protocol, candidate.pool.dense_of, candidate.leaks) == ("candidate", "image", False)
    assert (leaking.protocol, leaking.pool.dense_of, leaking.leaks) == ("oracle_query", "text", True)
    assert leaking.pool.dense == tuple(candidate.pool.dense[k // 5] for k in range(15))
    assert task(test=3).protocol == "candidate"
    prints = {made.fingerprint for made in (sparse, candidate, leaking, task(test=3, dense_noise=0.2))}
    assert len(prints) == 4


def test_more_images_keep_the_first_and_no_split_shares_one() -> None:
    few, many = task(test=5), task(test=20)
    assert [one.digest for one in many.pool.images[:5]] == [one.digest for one in few.pool.images]
    assert many.pool.texts[:25] == few.pool.texts and many.pool.dense[:5] == few.pool.dense
    assert few.fingerprint != many.fingerprint
    scenes = [str(scene_of(split, index)) for split in ("train", "val", "test") for index in range(100)]
    assert len(set(scenes)) == 300


def test_scenes_are_none_of_the_demo_models_nor_of_small_details() -> None:
    """numpy pads seeds with zeros; ours have four numbers, the last of them not 0."""
    ours = np.random.default_rng([scene_retrieval.STREAM, 0, 0, 1]).random()
    assert ours != np.random.default_rng([scene_retrieval.STREAM, 0]).random()
    drawn = {str(scene_of("train", index)) for index in range(200)}
    for seed in (7, 2000, scene_retrieval.STREAM):
        assert not drawn & {str(_scenes.test_scene(seed, index, (32, 48))) for index in range(50)}
    assert small_detail.task(size=1).samples[0].images[0].source.label.startswith("small_detail/")


def test_pictures_are_drawn_when_they_are_opened() -> None:
    made = task(test=2)
    first, again = made.pool.images[0].open(), task(test=9).pool.images[0].open()
    assert first.size == made.pool.images[0].size == (576, 576)
    assert first.tobytes() == again.tobytes() != made.pool.images[1].open().tobytes()
    assert made.pool.images[0].digest == task(test=9).pool.images[0].digest


def test_another_generator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_retrieval, "CHECKSUM", "0" * 64)
    with pytest.raises(DataError, match="draws other scenes than those that published numbers are about"):
        task()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("scene_retrieval:test=0", "test is 0; it must be 1 or more"),
        ("scene_retrieval:dense_noise=2", "dense_noise is 2.0; it is a share"),
        ("scene_retrieval:split=dev", "'dev' is not one of test, val, train"),
        ("scene_retrieval:protocol=dense", "'dense' is not one of sparse, candidate, oracle_query"),
    ],
)
def test_mistakes_are_refused(spec: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        resolve.make_task(spec)


class Words:
    """A matcher that cheats by drawing nothing: an image is as like a text as its dense text shares words."""

    def describe(self) -> dict[str, str]:
        return {"adapter": "words", "model": "dense"}

    def similarity(self, pool: Pool, rows: range) -> np.ndarray:
        def pairs(text: str) -> set[tuple[str, str]]:
            return set(pairwise(re.findall(r"\w+", text.lower())))

        texts: Sequence[set[tuple[str, str]]] = [pairs(text) for text in pool.texts]
        return np.array([[len(pairs(pool.dense[row]) & text) for text in texts] for row in rows], np.float32)


def test_a_run_over_it_is_a_run_like_any_other(tmp_path: object) -> None:
    result = matching.run(task(test=40), Words(), out=tmp_path)
    entry = result.summary["metrics"]["retrieval"]
    assert result.status == "complete" and entry["n"] == 240
    assert entry["scores"]["rsum"]["value"] > 200  # chance is 76 of 600
