"""What becomes of pictures and texts before LAPS and SEPS see them."""

import collections
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from adapters.seps import data
from adapters.seps.data import Vocabulary
from harness.errors import DataError, ModelError
from harness.pictures import File, Memory, Picture

REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "retrieval"

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a red circle star ##s left of the blue ##ish , . [ ] mask cafe ! x"


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS.split()) + "\n")
    return Vocabulary.read(tmp_path)


def said(vocabulary: Vocabulary, text: str) -> list[str]:
    pieces, _ = vocabulary.pack([text])[0]
    return [vocabulary.tokenizer.id_to_token(number) for number in vocabulary.framed(pieces)]


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A red circle.", "[CLS] a red circle . [SEP]"),
        ("stars, LEFT of  the\tblueish star", "[CLS] star ##s , left of the blue ##ish star [SEP]"),
        ("Café!", "[CLS] cafe ! [SEP]"),
        ("a purple star", "[CLS] a [UNK] star [SEP]"),
        ("x" * 101 + " x", "[CLS] [UNK] x [SEP]"),
        ("a [MASK] star", "[CLS] a [ mask ] star [SEP]"),
        ("", "[CLS] [SEP]"),
    ],
)
def test_texts_become_the_pieces_that_berts_tokeniser_makes(
    vocabulary: Vocabulary, text: str, expected: str
) -> None:
    assert said(vocabulary, text) == expected.split()


def test_pieces_know_the_basic_token_that_they_belong_to(vocabulary: Vocabulary) -> None:
    pieces, words = vocabulary.pack(["a star", "stars, blueish stars"])[1]
    assert [vocabulary.tokenizer.id_to_token(number) for number in pieces] == (
        ["star", "##s", ",", "blue", "##ish", "star", "##s"]
    )
    assert words.tolist() == [0, 0, 1, 2, 2, 3, 3]


def test_a_vocabulary_is_written_and_read_again(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.save(tmp_path / "copy")
    again = Vocabulary.read(tmp_path / "copy")
    assert said(again, "blueish [SEP] stars") == said(vocabulary, "blueish [SEP] stars")
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert theirs("blueish stars")["input_ids"] == again.framed(again.pack(["blueish stars"])[0][0]).tolist()


def test_a_trained_vocabulary_has_the_words_that_it_was_made_from() -> None:
    vocabulary = Vocabulary.trained(["a red circle", "a red star"] * 3)
    assert said(vocabulary, "A red star") == ["[CLS]", "a", "red", "star", "[SEP]"]
    assert said(vocabulary, "tar") == ["[CLS]", "t", "##a", "##r", "[SEP]"]
    assert vocabulary.pad == 0
    again = Vocabulary.trained(["a red star", "a red circle"] * 3)
    assert again.tokenizer.get_vocab() == vocabulary.tokenizer.get_vocab()


def test_a_folder_without_a_tokeniser_and_one_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no tokenizer: tokenizer.json or vocab.txt"):
        Vocabulary.read(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="is not a tokenizer"):
        Vocabulary.read(tmp_path)
    demo = Path(__file__).parent.parent / "assets" / "demo"
    with pytest.raises(ModelError, match=r"has no \[CLS\]"):
        Vocabulary.read(demo)


def test_lengths_count_cls_and_sep_and_pads_are_zero(vocabulary: Vocabulary) -> None:
    texts = [
        vocabulary.framed(pieces)
        for pieces, _ in map(vocabulary.pack(["a star", "stars !"]).__getitem__, (0, 1))
    ]
    ids, lengths = vocabulary.padded(texts)
    assert lengths.tolist() == [4, 5] and ids.shape == (2, 5) and ids[0, 4] == 0
    assert len(vocabulary.framed(np.arange(100, dtype=np.int32), limit=12)) == 12
    assert vocabulary.framed(np.arange(100, dtype=np.int32), limit=12)[-1] == vocabulary.sep


def test_a_fifth_of_the_basic_tokens_is_altered_half_masked_a_tenth_replaced_the_rest_deleted() -> None:
    """Chi-squared over a million tokens, all pieces of one sharing its fate; p > 0.001, seed fixed."""
    rng, size, mask = np.random.default_rng(11), 10_000_000, 4
    words = np.repeat(np.arange(500, dtype=np.int32), 2)
    pieces = np.arange(1000, dtype=np.int32) + 100
    fates: collections.Counter[str] = collections.Counter()
    for _ in range(2000):
        found = data.augmented(pieces, words, rng, size, mask)
        kept = np.isin(pieces, found)
        assert (kept[::2] == kept[1::2]).all()
        masked, replaced = int((found == mask).sum()) // 2, int((found > 1100).sum()) // 2
        fates += collections.Counter(
            kept=int(kept.sum()) // 2,
            masked=masked,
            replaced=replaced,
            deleted=500 - int(kept.sum()) // 2 - masked - replaced,
        )
    total = sum(fates.values())
    expected = {"kept": 0.8, "masked": 0.1, "replaced": 0.02, "deleted": 0.08}
    found = stats.chisquare(
        [fates[name] for name in expected], [total * share for share in expected.values()]
    )
    assert found.pvalue > 0.001, dict(fates)


def test_replacements_are_drawn_from_the_whole_vocabulary() -> None:
    rng = np.random.default_rng(0)
    pieces, words = np.full(2000, 77, np.int32), np.arange(2000, dtype=np.int32)
    drawn = [
        n for _ in range(200) for n in data.augmented(pieces, words, rng, 50, mask=60) if n not in (60, 77)
    ]
    counts = np.bincount(drawn, minlength=50)
    assert stats.chisquare(counts).pvalue > 0.001


def test_an_augmented_text_may_lose_every_word_and_keeps_its_frame(vocabulary: Vocabulary) -> None:
    empty = data.augmented(np.zeros(0, np.int32), np.zeros(0, np.int32), np.random.default_rng(0), 9, 4)
    assert vocabulary.framed(empty).tolist() == [vocabulary.cls, vocabulary.sep]


# ---------------------------------------------------------------- pixels


def test_training_crops_lie_inside_and_have_the_area_and_shape_of_the_rule() -> None:
    rng = np.random.default_rng(5)
    for width, height in ((500, 375), (300, 300), (150, 360)):
        for _ in range(300):
            x1, y1, x2, y2 = data.crop_box((width, height), rng)
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
            area, ratio = (x2 - x1) * (y2 - y1) / (width * height), (x2 - x1) / (y2 - y1)
            assert 0.55 <= area <= 1.0 and 0.72 <= ratio <= 1.38


def test_a_picture_too_long_for_any_crop_gives_its_middle() -> None:
    assert data.crop_box((1000, 30), np.random.default_rng(0)) == (480, 0, 520, 30)


def test_areas_of_crops_are_uniform_between_the_limits() -> None:
    rng = np.random.default_rng(2)
    boxes = [data.crop_box((1000, 1000), rng) for _ in range(4000)]
    areas = np.array(
        [(x2 - x1) * (y2 - y1) / 1e6 for x1, y1, x2, y2 in boxes if 0.9 < (x2 - x1) / (y2 - y1) < 1.1]
    )
    areas = areas[areas < 0.8]  # below, every shape within 0.9-1.1 fits
    assert stats.kstest((areas - 0.6) / 0.2, "uniform").pvalue > 0.001


def test_pixels_are_normalised_by_imagenets_numbers() -> None:
    pixels = torch.tensor([[[[255, 0, 128]]]], dtype=torch.uint8)
    found = data.normalised(pixels)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225]
    assert found.shape == (1, 3, 1, 1)
    assert np.allclose(found.flatten(), expected, atol=1e-6)


def test_an_evaluation_picture_is_squeezed_whole_and_a_training_one_is_flipped_half_of_the_time() -> None:
    image = Image.new("RGB", (400, 100))
    image.paste((255, 0, 0), (0, 0, 200, 100))
    found = data.evaluation_pixels(image, 32)
    assert found.shape == (32, 32, 3) and found[16, 2, 0] == 255 and found[16, 29, 0] == 0
    rng = np.random.default_rng(0)
    flips = sum(int(data.training_pixels(image, 16, rng)[8, 0, 0] < 128) for _ in range(400))
    assert 160 < flips < 240


# ---------------------------------------------------------------- loading


def pictures(count: int) -> list[Picture]:
    import io

    found = []
    for number in range(count):
        file = io.BytesIO()
        noise = np.random.default_rng(number).integers(0, 255, (40, 60, 3), np.uint8)
        Image.fromarray(noise).save(file, "PNG")
        found.append(Picture(Memory(file.getvalue(), f"{number}.png")))
    return found


def pairs(vocabulary: Vocabulary, **options: object) -> data.Pairs:
    texts = vocabulary.pack(["a red circle left of the star"] * 12)
    settings: dict[str, object] = {"side": 16, "seed": 3} | options
    return data.Pairs(
        pictures(4), [n // 3 for n in range(12)], vocabulary, texts, texts, range(12), **settings
    )  # type: ignore[arg-type]


def test_batches_depend_on_seed_epoch_and_index_and_not_on_who_loads_them(vocabulary: Vocabulary) -> None:
    own = pairs(vocabulary)

    def batches(**options: object) -> list[data.Batch]:
        settings: dict[str, object] = {"batch": 4, "seed": 3, "epochs": range(2)} | options
        return list(data.loader(own, vocabulary, **settings))  # type: ignore[arg-type]

    alone = batches()
    assert len(alone) == 6
    for other in (batches(), batches(workers=2)):
        for one, two in zip(alone, other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(alone[0].pixels, alone[3].pixels)
    for one, two in zip(alone[2:], batches(skip=2), strict=True):
        assert torch.equal(one.pixels, two.pixels) and torch.equal(one.ids, two.ids)
    halves = [batches(rank=rank, world=2) for rank in (0, 1)]
    for whole, first, second in zip(alone, *halves, strict=True):
        assert torch.equal(whole.pixels, torch.cat([first.pixels, second.pixels]))
        assert torch.equal(whole.images, torch.cat([first.images, second.images]))


def test_an_epoch_sees_every_pair_once_and_leaves_out_what_makes_no_batch() -> None:
    found = data.order(103, 10, seed=0, epoch=0)
    assert found.shape == (10, 10) and len(set(found.flatten().tolist())) == 100
    assert not np.array_equal(found, data.order(103, 10, seed=0, epoch=1))
    assert not np.array_equal(found, data.order(103, 10, seed=1, epoch=0))


def test_pictures_kept_in_memory_are_small_and_look_the_same(vocabulary: Vocabulary) -> None:
    kept = pairs(vocabulary, keep=True, side=10)
    assert data.reduced(Image.new("RGB", (60, 40)), 10).size == (30, 20)
    assert data.reduced(Image.new("RGB", (60, 40)), 30).size == (60, 40)
    one, two = kept[(0, 5)], pairs(vocabulary, side=10)[(0, 5)]
    assert one.pixels.shape == (10, 10, 3)
    assert np.abs(one.pixels.astype(float) - two.pixels).mean() < 12


def test_a_picture_that_cannot_be_read_stops_the_training_and_is_named(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    texts = vocabulary.pack(["a star"])
    missing = [Picture(File(tmp_path / "gone.png"))]
    broken = data.Pairs(missing, [0], vocabulary, texts, side=8)
    with pytest.raises(DataError, match=r"gone.png does not exist. Mend the file"):
        broken[(0, 0)]


def test_flickr30ks_captions_and_dense_texts_have_the_lengths_that_are_known() -> None:
    """Basic tokens: captions 11-12 in the median and 79 at most, dense texts 113 in the mean."""
    import json

    if not (REAL / "f30k").is_dir():
        pytest.skip(f"Flickr30K's texts are not in {REAL / 'f30k'}")
    captions = (REAL / "f30k" / "test_caps.txt").read_text(encoding="utf-8").splitlines()
    dense = [
        json.loads(line)["text"]
        for line in (REAL / "f30k" / "f30k_test.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    vocabulary = Vocabulary.trained(captions)
    counts = []
    for texts in (captions, dense):
        packed = vocabulary.pack([text.strip() for text in texts])
        counts.append([int(packed[n][1][-1]) + 1 for n in range(len(packed))])
    assert len(counts[0]) % 5 == 0
    assert 11 <= float(np.median(counts[0])) <= 12 and max(counts[0]) <= 79
    assert math.isclose(float(np.mean(counts[1])), 113, abs_tol=2)
