"""Dual encoders: transformers' own logits, batches and blocks, what is kept, and what goes wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_match
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import photo

from adapters import clip
from harness import resolve
from harness.cache import Answers
from harness.checkpoints import quiet
from harness.errors import ModelError, PictureError
from harness.pictures import File, Memory, Picture
from harness.types import Pool, digest

MAKERS: dict[str, Callable[[Path], Path]] = {
    "clip": tiny_match.clip,
    "siglip": tiny_match.siglip,
    "siglip2": tiny_match.siglip2,
}
TEXTS = (
    "A red car on the green grass.",
    "Two dogs!",
    "the sign reads STOP",
    "...",
    "people next to the bus " * 12,
    "A dog (left) and a cat; both white",
    *(f"the cup number {number} is {'very ' * (number % 5)}red" for number in range(20)),
)
POOL = Pool(tuple(photo(seed, 40 + 9 * seed, 80 - 5 * seed) for seed in range(7)), TEXTS)
ALL = range(len(POOL.images))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {name: make(root / name) for name, make in MAKERS.items()}


def matcher(folder: Path, **knobs: Any) -> clip.Clip:
    made = clip.model(str(folder), **{"device": "cpu", **knobs})
    assert isinstance(made, clip.Clip)
    return made


class Passes:
    """How many images and texts went through a matcher's towers."""

    def __init__(self, of: clip.Clip) -> None:
        self.images = self.texts = 0
        encoder = of._loaded[0]
        encoder.vision_model.register_forward_hook(self._image)
        encoder.text_model.register_forward_hook(self._text)

    def _image(self, module: Any, given: Any, out: Any) -> None:
        self.images += len(out.pooler_output)

    def _text(self, module: Any, given: Any, out: Any) -> None:
        self.texts += len(out.pooler_output)

    @property
    def both(self) -> tuple[int, int]:
        return self.images, self.texts


# ---------------------------------------------------------------- against transformers


@pytest.mark.parametrize("family", MAKERS)
def test_similarities_are_transformers_own_logits_without_scale_and_bias(
    folders: dict[str, Path], family: str
) -> None:
    found = matcher(folders[family]).similarity(POOL, ALL)
    assert found.shape == (7, 26) and found.dtype == np.float32
    model = transformers.AutoModel.from_pretrained(folders[family])
    processor = transformers.AutoProcessor.from_pretrained(folders[family], backend="pil")
    options: dict[str, Any] = {"padding": "max_length", "max_length": 16}
    if family == "clip":
        options = {"padding": True, "max_length": 24}
    if family == "siglip2":  # whose processor overrides its picture processor's own sizes
        options |= {"patch_size": 8, "max_num_patches": 16}
    for row, picture in enumerate(POOL.images):
        inputs = processor(
            images=picture.open(), text=list(TEXTS), truncation=True, return_tensors="pt", **options
        )
        if family != "clip":  # the hub's tokenizers return none
            inputs.pop("attention_mask", None)
        with torch.no_grad():
            out = model(**inputs)
            bias = 0.0 if family == "clip" else model.logit_bias
            logits = (out.logits_per_image[0] - bias) / model.logit_scale.exp()
        assert np.abs(found[row] - logits.numpy()).max() < 1e-5
    assert np.ptp(found) > 0.1


def test_any_dual_encoder_of_transformers_will_do(tmp_path: Path) -> None:
    text = {**tiny_match.TOWER, "vocab_size": len(tiny_match.VOCABULARY), "hidden_size": 32}
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.ViTConfig(**tiny_match.TOWER, hidden_size=32, intermediate_size=64, image_size=32),
        transformers.BertConfig(**text, intermediate_size=64, max_position_embeddings=24),
        projection_dim=16,
    )
    model = transformers.VisionTextDualEncoderModel(config).eval()
    words = transformers.BertTokenizer(
        vocab={token: number for number, token in enumerate(tiny_match.VOCABULARY)}
    )
    words.model_max_length = 24
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    pixels = ViTImageProcessorPil(size={"height": 32, "width": 32})
    processor = transformers.VisionTextDualEncoderProcessor(pixels, words)
    with quiet():
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
    found = matcher(tmp_path).similarity(POOL, ALL)
    inputs = processor(
        images=[picture.open() for picture in POOL.images],
        text=list(TEXTS),
        padding=True,
        truncation=True,
        max_length=24,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(**inputs).logits_per_image / model.logit_scale.exp()
    assert np.abs(found - logits.numpy()).max() < 1e-5


# ---------------------------------------------------------------- blocks and memory


@pytest.mark.parametrize("family", MAKERS)
def test_a_row_does_not_depend_on_its_block_or_batch(folders: dict[str, Path], family: str) -> None:
    whole = matcher(folders[family]).similarity(POOL, ALL)
    for batch, rows in ((1, [range(7)]), (3, [range(5, 7), range(5)]), (64, map(_one, ALL))):
        again = matcher(folders[family], batch=batch)
        for part in rows:
            assert np.abs(again.similarity(POOL, part) - whole[part.start : part.stop]).max() < 1e-6


def _one(row: int) -> range:
    return range(row, row + 1)


def test_a_column_does_not_depend_on_the_other_texts(folders: dict[str, Path]) -> None:
    whole = matcher(folders["clip"]).similarity(POOL, ALL)
    some = matcher(folders["clip"]).similarity(replace(POOL, texts=TEXTS[4:9][::-1]), ALL)
    assert np.abs(some - whole[:, 4:9][:, ::-1]).max() < 1e-6


def test_dense_texts_change_nothing(folders: dict[str, Path]) -> None:
    dense = replace(POOL, dense=tuple(f"a long text about {k}" for k in ALL), dense_of="image")
    one, other = (matcher(folders["clip"]).similarity(pool, ALL) for pool in (POOL, dense))
    assert one.tobytes() == other.tobytes()


def test_equal_pictures_and_texts_pass_once_and_are_remembered(folders: dict[str, Path]) -> None:
    found = matcher(folders["clip"])
    passes = Passes(found)
    copy = Picture(Memory(POOL.images[0].source.read(), "another name"))  # type: ignore[union-attr]
    pool = Pool((*POOL.images, copy, copy.crop((0, 0, 20, 20))), (*TEXTS, TEXTS[0]))
    scores = found.similarity(pool, range(4))
    assert passes.both == (4, 26)
    assert (scores[:, 0] == scores[:, -1]).all()
    found.similarity(pool, range(4, 9))
    assert passes.both == (4 + 5, 26)  # the copy is known, but its batch has new ones
    assert set(found._kept) == {f"image/{one.digest}" for one in pool.images} | {
        f"text/{digest(text)}" for text in TEXTS
    }
    found.similarity(pool, range(9))
    assert passes.both == (9, 26)


def test_embeddings_outlive_a_run_in_the_journal(folders: dict[str, Path], tmp_path: Path) -> None:
    answers = Answers(tmp_path / "cache.sqlite")
    first = resolve.make_model(f"clip:{folders['clip']},device=cpu", answers)
    assert isinstance(first, clip.Clip)
    before = first.similarity(POOL, range(4))
    again = resolve.make_model(f"clip:{folders['clip']},device=cpu", answers)
    assert isinstance(again, clip.Clip)
    assert again.similarity(POOL, range(4)).tobytes() == before.tobytes()
    assert "_loaded" not in vars(again)
    fresh = matcher(folders["clip"], journal=answers.journal("clip"))
    passes = Passes(fresh)
    fresh.similarity(POOL, ALL)
    assert passes.both == (3 + 4, 0)  # a batch with something new passes whole
    other = matcher(folders["clip"], dtype="bfloat16", journal=answers.journal("clip"))
    other.similarity(POOL, range(1))
    assert "_loaded" in vars(other)
    answers.close()


def test_a_text_that_was_lost_is_encoded_again_to_the_same_bits(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    answers = Answers(tmp_path / "cache.sqlite")
    notes = answers.journal("clip")
    before = matcher(folders["clip"], journal=notes, batch=8).similarity(POOL, ALL)
    keys = notes.keys()
    assert len(keys) == 7 + 26
    for number, key in enumerate(keys):
        if number % 3 == 0:
            notes.delete(key)
        elif number % 7 == 0:
            notes.put(key, ["", "not base64", "AAA=", 7][number % 4])
    after = matcher(folders["clip"], journal=notes, batch=8).similarity(POOL, ALL)
    assert after.tobytes() == before.tobytes()
    answers.close()


def test_without_rows_or_texts_nothing_loads(folders: dict[str, Path]) -> None:
    found = matcher(folders["clip"])
    assert found.similarity(POOL, range(0)).shape == (0, 26)
    assert found.similarity(Pool(POOL.images, ()), ALL).shape == (7, 0)
    assert "_loaded" not in vars(found)


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize(("family", "longest"), [("clip", 22), ("siglip", 16)])
def test_what_is_beyond_the_context_makes_no_difference(
    folders: dict[str, Path], family: str, longest: int
) -> None:
    text = " ".join("abcdefghij"[number % 10] for number in range(longest))
    texts = (text[: 2 * (longest // 2)], f"{text} a red car", f"{text} a dog")
    shorter, whole, longer = matcher(folders[family]).similarity(Pool(POOL.images, texts), _one(0))[0]
    assert whole == pytest.approx(longer, abs=1e-6)
    assert whole != pytest.approx(shorter, abs=1e-6)


@pytest.mark.parametrize(("family", "end"), [("clip", "<|endoftext|>"), ("siglip", "</s>")])
def test_a_caption_that_spells_a_special_token_does_not_end_there(
    folders: dict[str, Path], family: str, end: str
) -> None:
    pool = Pool(POOL.images, (f"a {end} d", f"a {end} c"))
    dog, cat = matcher(folders[family]).similarity(pool, _one(0))[0]
    assert dog != pytest.approx(cat, abs=1e-4)


# ---------------------------------------------------------------- what goes wrong


def test_a_picture_that_cannot_be_used_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    found = matcher(folders["clip"])
    torn = Picture(Memory(photo(0).source.read()[:500], "torn.png"))  # type: ignore[union-attr]
    for picture, said in (
        (torn, "torn.png is damaged"),
        (Picture(File(tmp_path / "gone.png")), "gone.png does not exist"),
        (photo(0, 2, 500), "photo-0.png is 2 x 500: its sides differ by more than 200 to 1"),
    ):
        with pytest.raises(PictureError, match=said):
            found.similarity(Pool((photo(1), picture), TEXTS), range(2))
    assert found.similarity(Pool((photo(1), torn), TEXTS), _one(0)).shape == (1, 26)


def test_what_is_no_dual_encoder_is_refused_before_weights_load(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["clip"], tmp_path / "other")
    config = folder / "config.json"
    for content, said in (
        ({"model_type": "bert"}, "is a bert model, which does not embed images and texts in one space"),
        ({"model_type": "llava"}, "is a llava model, which does not embed"),
        ({"model_type": "unheard-of"}, "config.json cannot be used"),
    ):
        config.write_text(json.dumps(content))
        with pytest.raises(ModelError, match=said):
            matcher(folder)
    config.unlink()
    with pytest.raises(ModelError, match="it has no config.json"):
        matcher(folder)
    with pytest.raises(ModelError, match="there is no folder ./nowhere"):
        clip.model("./nowhere")
    with pytest.raises(ModelError, match="batch=0; it must be 1 or more"):
        matcher(folders["clip"], batch=0)


def test_features_that_are_no_embedding_are_refused(tmp_path: Path) -> None:
    """FLAVA's text features are one per token."""
    tower = {**tiny_match.TOWER, "hidden_size": 16, "intermediate_size": 32}
    config = transformers.FlavaConfig(
        image_config={**tower, "image_size": 32, "patch_size": 8},
        text_config={**tower, "vocab_size": len(tiny_match.VOCABULARY)},
        multimodal_config=tower,
        projection_dim=8,
    )
    words = transformers.BertTokenizer(
        vocab={token: number for number, token in enumerate(tiny_match.VOCABULARY)}
    )
    from transformers.models.flava.image_processing_pil_flava import FlavaImageProcessorPil

    small = {"height": 32, "width": 32}
    pixels = FlavaImageProcessorPil(size=small, crop_size=small)
    with quiet():
        transformers.FlavaModel(config).save_pretrained(tmp_path)
        transformers.FlavaProcessor(pixels, words).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"\(flava\): get_\w+_features gives no embedding per item"):
        matcher(tmp_path).similarity(POOL, ALL)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("model.safetensors", "holds no \\*.safetensors"),
        ("preprocessor_config.json", "does not load|has no picture processor"),
        ("tokenizer.json", "does not load|has no tokenizer"),
    ],
)
def test_files_that_are_missing_are_missed(
    folders: dict[str, Path], tmp_path: Path, missing: str, said: str
) -> None:
    folder = shutil.copytree(folders["clip"], tmp_path / "part")
    for path in folder.glob("*processor_config.json" if "processor" in missing else f"{missing[:9]}*"):
        path.unlink()
    with pytest.raises(ModelError, match=said):
        matcher(folder).similarity(POOL, ALL)


def test_weights_that_are_missing_are_not_made_up(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["clip"], tmp_path / "part")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 of its weights, visual_projection.weight among them"):
        matcher(folder).similarity(POOL, ALL)


# ---------------------------------------------------------------- identity


def test_it_describes_all_that_decides_its_numbers(folders: dict[str, Path], tmp_path: Path) -> None:
    described = matcher(folders["clip"]).describe()
    assert json.loads(json.dumps(described)) == described
    assert described == {
        "adapter": "clip",
        "model": "clip",
        "revision": described["revision"],
        "family": "clip",
        "formula": "cosine, v1",
        "dtype": "float32",
        "device": "cpu",
        "dense": "ignored",
    }
    assert matcher(folders["clip"], batch=3).describe() == described
    assert matcher(shutil.copytree(folders["clip"], tmp_path / "clip")).describe() == described
    assert matcher(folders["clip"], dtype="bfloat16").describe() != described


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_towers_in_half_precision_give_float32_cosines(folders: dict[str, Path], dtype: Any) -> None:
    whole = matcher(folders["clip"]).similarity(POOL, ALL)
    half = matcher(folders["clip"], dtype=dtype)
    found = half.similarity(POOL, ALL)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - whole).max() < 0.05
    assert {(one.dtype, one.requires_grad) for one in half._loaded[0].parameters()} == {
        (getattr(torch, dtype), False)
    }
