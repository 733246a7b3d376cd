"""Image-text scorers: LAVIS's own numbers, transformers' own forwards, and what goes wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_match
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import photo

from harness.errors import ModelError, SpecError
from harness.pictures import File, Memory, Picture
from methods._detect import Detector
from methods._match import Scorer, _as_lavis, _Recent, lavis_text
from methods._specs import checkpoint_spec

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "patch_matters_match.json").read_text("utf-8"))
MAKERS: dict[str, Callable[[Path], Path]] = {
    "blip": tiny_match.blip_itm,
    "clip": tiny_match.clip,
    "siglip": tiny_match.siglip,
    "siglip2": tiny_match.siglip2,
}
SENTENCES = [
    "A red car on the green grass.",
    "Two dogs!",
    "the sign reads STOP",
    "...",
    "people next to the bus " * 12,
    "A dog (left) and a cat; both white",
    *(f"the cup number {number} is {'very ' * (number % 5)}red" for number in range(20)),
]
NUMBERS = (1, 5, 2, 26, 3, 17, 1, 9)
EIGHT = [
    (photo(seed, 40 + 9 * seed, 80 - 5 * seed), tuple(SENTENCES[-number:]))
    for seed, number in enumerate(NUMBERS)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("scorers")
    return {name: make(root / name) for name, make in MAKERS.items()}


def _scorer(folder: Path, **knobs: Any) -> Scorer:
    return Scorer.find(str(folder), **{"device": "cpu", **knobs})


def _values(scorer: Scorer, picture: Picture, *sentences: str) -> tuple[float, ...]:
    (scores,) = scorer.score([(picture, sentences)])
    assert scores.failure is None
    return scores.values


def _close(one: Sequence[float], other: Sequence[float]) -> bool:
    return list(one) == pytest.approx(list(other), abs=1e-5)


# ---------------------------------------------------------------- against LAVIS


@pytest.mark.parametrize(("text", "prepared"), GOLDEN["texts"])
def test_a_sentence_is_prepared_as_lavis_prepares_it(text: str, prepared: str) -> None:
    assert lavis_text(text) == prepared


def test_scores_are_those_of_lavis_own_model_with_the_same_weights(folders: dict[str, Path]) -> None:
    pictures = [photo(*one) for one in GOLDEN["photos"]]
    found = _scorer(folders["blip"]).score([(picture, GOLDEN["sentences"]) for picture in pictures])
    for scores, expected in zip(found, GOLDEN["itm_itc"], strict=True):
        assert _close(scores.values, [(itm + itc) / 2 for itm, itc in expected])


@pytest.mark.parametrize("known", [("[DEC]",), ("[DEC]", "[ENC]")])
def test_a_tokenizer_that_was_taught_lavis_tokens_gives_the_same_scores(
    folders: dict[str, Path], tmp_path: Path, known: tuple[str, ...]
) -> None:
    taught = _scorer(tiny_match.blip_itm(tmp_path / "taught", known=known))
    assert _values(taught, *EIGHT[1][:1], *SENTENCES) == _values(
        _scorer(folders["blip"]), *EIGHT[1][:1], *SENTENCES
    )


def test_the_towers_layer_norms_are_lavis_whatever_the_conversion_says(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    converted = _scorer(tiny_match.blip_itm(tmp_path / "converted", eps=0.1))
    assert _values(converted, photo(0), *SENTENCES) == _values(_scorer(folders["blip"]), photo(0), *SENTENCES)


@pytest.mark.parametrize(("width", "heads", "mended"), [(768, 8, 12), (768, 12, 12), (512, 8, 8)])
def test_eight_heads_of_an_old_conversion_become_berts_twelve(width: int, heads: int, mended: int) -> None:
    text = {"hidden_size": width, "num_attention_heads": heads}
    config = _as_lavis(transformers.BlipConfig(text_config=text, vision_config={}))
    assert config.text_config.num_attention_heads == mended


# ---------------------------------------------------------------- against transformers


def test_blip_scores_are_the_mean_of_both_heads_of_transformers_forward(folders: dict[str, Path]) -> None:
    model = transformers.BlipForImageTextRetrieval.from_pretrained(folders["blip"])
    processor = transformers.AutoProcessor.from_pretrained(folders["blip"], backend="pil")
    picture = photo(1)
    unmatched = []
    for sentence, score in zip(
        SENTENCES, _values(_scorer(folders["blip"]), picture, *SENTENCES), strict=True
    ):
        inputs = processor(
            images=picture.open(),
            text=lavis_text(sentence),
            truncation=True,
            max_length=35,
            return_tensors="pt",
        )
        ids = inputs.pop("input_ids")
        asks = ids.clone()
        asks[0, 0] = len(tiny_match.VOCABULARY) + 1  # [ENC]
        with torch.no_grad():
            itc = model(ids, use_itm_head=False, **inputs).itm_score.item()
            itm = model(asks, **inputs).itm_score.softmax(1)[0, 1].item()
            unmatched.append(abs(model(ids, **inputs).itm_score.softmax(1)[0, 1].item() - itm))
        assert score == pytest.approx((itm + itc) / 2, abs=1e-5)
    assert max(unmatched) > 0.05  # [ENC] matters


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
def test_clip_scores_are_the_cosines_of_transformers_own_forward(
    folders: dict[str, Path], family: str
) -> None:
    model = transformers.AutoModel.from_pretrained(folders[family])
    processor = transformers.AutoProcessor.from_pretrained(folders[family], backend="pil")
    options: dict[str, Any] = {"padding": "max_length", "max_length": 16}
    if family == "clip":
        options = {"max_length": 24}
    if family == "siglip2":  # whose processor overrides its picture processor's own sizes
        options |= {"patch_size": 8, "max_num_patches": 16}
    picture = photo(1)
    for sentence, score in zip(
        SENTENCES, _values(_scorer(folders[family]), picture, *SENTENCES), strict=True
    ):
        inputs = processor(
            images=picture.open(), text=[sentence], truncation=True, return_tensors="pt", **options
        )
        if family != "clip":  # the hub's tokenizers return none
            inputs.pop("attention_mask", None)
        with torch.no_grad():
            out = model(**inputs)
        cosine = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds).item()
        assert score == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize("family", MAKERS)
def test_scores_tell_sentences_and_pictures_apart(folders: dict[str, Path], family: str) -> None:
    one, other = _scorer(folders[family]).score([(photo(0), SENTENCES), (photo(1), SENTENCES)])
    assert max(one.values) - min(one.values) > 0.1
    assert not _close(one.values, other.values)


# ---------------------------------------------------------------- batches and memory


@pytest.mark.parametrize("family", MAKERS)
def test_a_score_does_not_depend_on_what_else_is_asked(folders: dict[str, Path], family: str) -> None:
    together = _scorer(folders[family]).score(EIGHT)
    by_threes = _scorer(folders[family], batch=3).score(EIGHT)
    for (picture, sentences), found, in_part in zip(EIGHT, together, by_threes, strict=True):
        alone = _scorer(folders[family])
        assert len(found.values) == len(sentences)
        assert _close(found.values, [_values(alone, picture, sentence)[0] for sentence in sentences])
        assert _close(found.values, in_part.values)


def test_a_picture_passes_the_tower_once_and_a_pair_both_encoders_once(folders: dict[str, Path]) -> None:
    scorer = _scorer(folders["blip"], batch=2)
    pictures, passes = 0, 0

    def looked(_: Any, __: Any, kwargs: Any) -> None:
        nonlocal pictures
        pictures += len(kwargs["pixel_values"])

    def read(*_: Any) -> None:
        nonlocal passes
        passes += 1

    model = scorer._loaded.model
    model.vision_model.register_forward_pre_hook(looked, with_kwargs=True)
    model.text_encoder.register_forward_pre_hook(read)
    picture = photo(0)
    same = Picture(Memory(picture.source.read(), "the same bytes"))  # type: ignore[union-attr]
    first, second, third = scorer.score(
        [(picture, SENTENCES), (same, SENTENCES[::-1]), (same.crop((0, 0, 50, 50)), SENTENCES[:1] * 2)]
    )
    assert first.values == second.values[::-1]
    assert third.values == third.values[:1] * 2
    assert pictures == 2
    assert [one.usage.images for one in (first, second, third)] == [1, 0, 1]
    assert [one.usage.forward_passes for one in (first, second, third)] == [1, 0, 1]
    before = passes
    (again,) = scorer.score([(same, SENTENCES[3:5])])
    assert again.values == first.values[3:5]
    assert passes == before
    (more,) = scorer.score([(same, ["a new sentence"])])
    assert len(more.values) == 1
    assert (pictures, passes) == (2, before + 2)  # the picture is remembered, the sentence passes twice


def test_what_was_used_last_is_kept() -> None:
    recent: _Recent[int] = _Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert [recent.get(key) for key in "abc"] == [1, None, 3]


def test_groups_in_flight_get_the_scores_they_would_get_alone(folders: dict[str, Path]) -> None:
    alone = _scorer(folders["blip"]).score(EIGHT)
    shared = _scorer(folders["blip"])
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda one: shared.score([one]), EIGHT * 3))
    for (found,), expected in zip(parts, alone * 3, strict=True):
        assert _close(found.values, expected.values)


def test_no_sentence_has_no_score_and_loads_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    scorer = _scorer(folders["blip"])
    assert scorer.score([]) == []
    nothing, unread = scorer.score([(photo(0), []), (Picture(File(tmp_path / "gone.png")), [])])
    assert nothing.values == unread.values == ()
    assert nothing.failure is unread.failure is None
    assert "_loaded" not in vars(scorer)


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize(("family", "longest"), [("blip", 33), ("clip", 22), ("siglip", 16)])
def test_what_an_encoder_cannot_read_makes_no_difference(
    folders: dict[str, Path], family: str, longest: int
) -> None:
    text = " ".join("abcdefghij"[number % 10] for number in range(longest))
    shorter, whole, longer = _values(
        _scorer(folders[family]), photo(0), text[: 2 * (longest // 2)], f"{text} a red car", f"{text} a dog"
    )
    assert whole == pytest.approx(longer, abs=1e-6)
    assert whole != pytest.approx(shorter, abs=1e-6)


@pytest.mark.parametrize(
    ("family", "end"), [("clip", "<|endoftext|>"), ("siglip", "</s>"), ("siglip2", "</s>"), ("blip", "[SEP]")]
)
def test_a_sentence_that_spells_a_special_token_does_not_end_there(
    folders: dict[str, Path], family: str, end: str
) -> None:
    dog, cat = _values(_scorer(folders[family]), photo(0), f"a {end} d", f"a {end} c")
    assert dog != pytest.approx(cat, abs=1e-4)


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("family", ["blip", "clip"])
def test_a_picture_that_cannot_be_read_is_a_failure_of_its_own(
    folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    torn = Picture(Memory(photo(0).source.read()[:500], "torn.png"))  # type: ignore[union-attr]
    scorer = _scorer(folders[family])
    missing, good, damaged, again = scorer.score(
        [(one, SENTENCES[:3]) for one in (Picture(File(tmp_path / "gone.png")), photo(0), torn, torn)]
    )
    assert [one.failure and one.failure.kind for one in (missing, good, damaged, again)] == [
        "missing_picture",
        None,
        "damaged_picture",
        "damaged_picture",
    ]
    assert missing.values == damaged.values == ()
    assert len(good.values) == 3
    assert (good.usage.images, missing.usage.images, damaged.usage.images) == (1, 0, 0)
    assert good.usage.seconds > 0


def test_a_strip_that_would_fill_the_memory_is_refused_by_clip_alone(folders: dict[str, Path]) -> None:
    strip = photo(0, 2, 500)
    (refused,) = _scorer(folders["clip"]).score([(strip, ["a car"])])
    assert refused.failure is not None
    assert refused.failure.kind == "unusable_picture"
    assert "its sides differ by more than 200 to 1" in refused.failure.message
    assert len(_values(_scorer(folders["blip"]), strip, "a car")) == 1  # squeezed to a square


def _damaged(folder: Path, to: Path, key: str, row: int) -> Path:
    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    weights[key][row] = float("nan")
    save_file(weights, to / "model.safetensors", {"format": "pt"})
    return to


def test_a_score_that_is_no_number_is_a_failure_that_names_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    car = tiny_match.VOCABULARY.index("car")
    folder = _damaged(
        folders["blip"], tmp_path / "bad", "text_encoder.embeddings.word_embeddings.weight", car
    )
    scorer = _scorer(folder)
    bad, good = scorer.score([(photo(0), ["a red car"]), (photo(1), ["a dog"])])
    assert bad.values == ()
    assert bad.failure is not None
    assert bad.failure.kind == "not_finite"
    assert "bad gives 'a red car' on photo-0.png no finite score" in bad.failure.message
    assert _close(good.values, _values(_scorer(folders["blip"]), photo(1), "a dog"))
    (still,) = scorer.score([(photo(0), ["a red car"])])
    assert still.failure == bad.failure


# ---------------------------------------------------------------- identity, specs and refusals


def test_a_scorer_describes_its_content_and_its_formula(folders: dict[str, Path], tmp_path: Path) -> None:
    described = _scorer(folders["blip"]).describe()
    assert json.loads(json.dumps(described)) == described
    assert described == {
        "scorer": "blip",
        "revision": described["revision"],
        "family": "blip-itm",
        "formula": "(itm + itc) / 2, v1",
        "device": "cpu",
    }
    assert _scorer(shutil.copytree(folders["blip"], tmp_path / "blip")).describe() == described
    other = _damaged(folders["blip"], tmp_path / "other" / "blip", "itm_head.bias", 0)
    assert _scorer(other).describe()["revision"] != described["revision"]
    assert _scorer(folders["siglip"]).describe()["family"] == "clip"


def test_weights_are_float32_for_evaluation_and_without_gradients(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    half = shutil.copytree(folders["clip"], tmp_path / "half")
    weights = {key: value.half() for key, value in load_file(half / "model.safetensors").items()}
    save_file(weights, half / "model.safetensors", {"format": "pt"})
    model = _scorer(half)._loaded.model
    assert not model.training
    assert {(one.dtype, one.requires_grad) for one in model.parameters()} == {(torch.float32, False)}


def test_a_spec_names_a_family_a_checkpoint_and_its_knobs(folders: dict[str, Path]) -> None:
    assert Scorer.from_spec(str(folders["blip"])).device == "auto"
    named = Scorer.from_spec(f"blip-itm:{folders['blip']}, device=cpu")
    assert (named.family, named.device) == ("blip-itm", "cpu")
    assert Scorer.from_spec(f"clip:{folders['siglip2']}").family == "clip"


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("blip-itm:{},treshold=0.3", r"no knob 'treshold' \(knobs: revision, device\)"),
        ("blip-itm:{},device", "device has no value; leave it out"),
        ("clip:{}", "is a blip; write blip-itm:"),
        ("blip2:{}", r"no family 'blip2' \(families: blip-itm, clip\)"),
        ("blip-itm:", "no checkpoint is named; write FAMILY:CHECKPOINT"),
        ("", "no checkpoint is named"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(folders: dict[str, Path], spec: str, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        Scorer.from_spec(spec.format(folders["blip"]))


def test_a_clip_is_no_blip(folders: dict[str, Path]) -> None:
    with pytest.raises(SpecError, match="is a siglip; write clip:"):
        Scorer.from_spec(f"blip-itm:{folders['siglip']}")


def test_a_folder_that_scores_nothing_is_refused_before_any_weights_load(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="there is no folder /no/such/folder"):
        Scorer.from_spec("blip-itm:/no/such/folder")
    with pytest.raises(ModelError, match="is not a checkpoint: it has no config.json"):
        Scorer.find(str(tmp_path))
    with pytest.raises(ModelError, match="is a LlavaFor.*scores no sentences; use a BLIP for image-text"):
        Scorer.find(str(tiny.llava(tmp_path / "llava")))
    captioner = shutil.copytree(folders["blip"], tmp_path / "captioner")
    config = json.loads((captioner / "config.json").read_text())
    config["architectures"] = ["BlipForConditionalGeneration"]
    (captioner / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match="is a BlipForConditionalGeneration, .*Salesforce/blip-itm-large-coco"
    ):
        Scorer.find(str(captioner))
    (captioner / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config.json cannot be used"):
        Scorer.find(str(captioner))


def test_weights_that_are_pickled_torn_or_missing_do_not_load(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    pickled = shutil.copytree(folders["blip"], tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no .*safetensors. Other formats are pickles.*convert once"):
        Scorer.find(str(pickled))
    torn = shutil.copytree(folders["blip"], tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="the scorer torn .blip. does not load"):
        _scorer(torn).score(EIGHT)
    partial = shutil.copytree(folders["blip"], tmp_path / "partial")
    weights = load_file(partial / "model.safetensors")
    del weights["itm_head.weight"]
    save_file(weights, partial / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 of its weights, itm_head.weight"):
        _scorer(partial).score(EIGHT)


def test_a_blip_whose_encoder_or_tokenizer_is_not_lavis_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    taught = tiny_match.blip_itm(tmp_path / "taught", known=("[DEC]", "[MORE]"))
    with pytest.raises(ModelError, match="would be 124, but its text encoder knows 124 tokens"):
        _scorer(taught).score(EIGHT)
    headless = shutil.copytree(folders["blip"], tmp_path / "headless")
    tokenizer = json.loads((headless / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (headless / "tokenizer.json").write_text(json.dumps(tokenizer))
    plain = json.loads((headless / "tokenizer_config.json").read_text())
    plain["tokenizer_class"] = "TokenizersBackend"  # BERT's would put [CLS] back
    (headless / "tokenizer_config.json").write_text(json.dumps(plain))
    with pytest.raises(ModelError, match="does not begin with .CLS."):
        _scorer(headless).score(EIGHT)


def test_a_name_that_is_nowhere_says_where_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="there is no folder nobody/no-such-scorer .* nor can the hub be"):
        Scorer.from_spec("blip-itm:nobody/no-such-scorer")


def test_a_score_is_a_plain_float(folders: dict[str, Path]) -> None:
    for family in ("blip", "clip"):
        assert {type(value) for value in _values(_scorer(folders[family]), photo(0), *SENTENCES)} == {float}


# ---------------------------------------------------------------- what a detector's spec shares


def test_a_detectors_spec_may_leave_its_threshold_to_the_caller(tmp_path: Path) -> None:
    transformers.YolosConfig().save_pretrained(tmp_path)
    save_file({"none": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert Detector.from_spec(str(tmp_path)).threshold == 0.1
    assert Detector.from_spec(str(tmp_path), threshold=0.3).threshold == 0.3
    assert Detector.from_spec(f"yolos:{tmp_path},threshold=0.5", threshold=0.3).threshold == 0.5


@pytest.mark.parametrize("threshold", ["high", "nan", "7", "-0.1"])
def test_a_detectors_threshold_lies_between_0_and_1(threshold: str) -> None:
    with pytest.raises(SpecError, match="threshold is a number from 0 to 1"):
        Detector.from_spec(f"anything,threshold={threshold}")


def test_a_checkpoint_may_have_dots_slashes_and_no_family() -> None:
    assert checkpoint_spec("scorer", "a/b-1.5", ()) == ("", "a/b-1.5", {})
