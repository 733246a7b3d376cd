"""PaliGemma and Gemma 3 in the hf adapter, against their processors and transformers' eager attention."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_gemma
import torch
from whitebox import (
    ask,
    drawn,
    eager_rows,
    embedded,
    greedy,
    model_of,
    pixel_gradient,
    plain,
    row_of,
    texts,
    unequal,
    waves,
)

from adapters import hf
from harness.errors import CapabilityError, ModelError
from harness.types import Capability, Decoding, ReadMap, Request
from methods.sparc import Sparc

NAMES = ["paligemma", "paligemma2", "gemma3", "narrow"]
"""narrow: a Gemma 3 whose windows end within every prompt; so do PaliGemma 2's here."""
MAKERS: dict[str, Any] = {
    "paligemma": tiny_gemma.paligemma,
    "paligemma2": lambda folder: tiny_gemma.paligemma(folder, second=True),
    "capped": lambda folder: tiny_gemma.paligemma(folder, second=True, cap=2.0),
    "gemma3": tiny_gemma.gemma3,
    "narrow": lambda folder: tiny_gemma.gemma3(folder, window=24),
}
SIZES = [(100, 80), (60, 140), (1, 1), (3000, 40)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("gemma")
    return {name: make(root / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, hf.Hf]:
    return {name: model_of(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def official(folders: dict[str, Path]) -> dict[str, tuple[Any, Any]]:
    return {name: plain(folder) for name, folder in folders.items()}


def _inputs(processor: Any, request: Request) -> dict[str, Any]:
    """A request as the family's processor alone prepares it."""
    images = [picture.open() for picture in request.images]
    if processor.chat_template:
        content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
        content.append({"type": "text", "text": request.text})
        made = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    elif images:
        made = processor(text="<image>" * len(images) + request.text, images=[images], return_tensors="pt")
        del made["labels"]
    else:  # which PaliGemma's processor refuses to do
        made = processor.tokenizer(f"<bos>{request.text}\n", return_tensors="pt")
        made["token_type_ids"] = torch.zeros_like(made["input_ids"])
    return dict(made)


# ---------------------------------------------------------------- prompts and answers


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [0, 1, 2])
def test_tokens_and_pixels_are_the_processors(
    models: dict[str, hf.Hf], official: dict[str, tuple[Any, Any]], name: str, images: int
) -> None:
    for number, size in enumerate(SIZES):
        pictures = tuple(tiny.photo(number + k, *SIZES[(number + k) % len(SIZES)]) for k in range(images))
        request = Request(pictures, "Is it\n\nred?\n" * (number % 2) + f"{size}")
        row = row_of(models[name], request)
        expected = _inputs(official[name][1], request)
        assert list(row.tokens) == expected["input_ids"][0].tolist()
        layout = waves(models[name])._family
        made = [layout.pixels(picture) for picture in pictures]
        if images:
            torch.testing.assert_close(torch.stack(made), expected["pixel_values"], rtol=0, atol=0)
        inputs = layout.prepare([row]).whole()
        assert inputs["token_type_ids"].tolist() == expected["token_type_ids"].tolist()


@pytest.mark.parametrize("name", [*NAMES, "capped"])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_greedy_text_is_what_transformers_generates(
    models: dict[str, hf.Hf], official: dict[str, tuple[Any, Any]], name: str, images: int
) -> None:
    model, processor = official[name]
    request = ask(images=images, decoding=Decoding(max_tokens=24))
    inputs = _inputs(processor, request)
    (response,) = models[name].generate([request])
    assert response.text == greedy(model, processor, inputs, 24)
    assert response.usage.tokens_in == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("name", [*NAMES, "capped"])
def test_an_option_follows_the_prompt_and_is_no_part_of_its_prefix(
    models: dict[str, hf.Hf], official: dict[str, tuple[Any, Any]], name: str
) -> None:
    model, processor = official[name]
    options = ("red", "a brown horse near the ocean")
    request = ask(2, options=options)
    (response,) = models[name].generate([request])
    prompt = _inputs(processor, request)
    for option, (nll, count) in zip(options, response.option_nll, strict=True):
        tail = processor.tokenizer(f"{option}<eos>", add_special_tokens=False)["input_ids"]
        types = torch.full((1, len(tail)), int(name not in ("gemma3", "narrow")))
        whole = {
            **prompt,
            "input_ids": torch.cat([prompt["input_ids"], torch.tensor([tail])], dim=1),
            "attention_mask": torch.ones(1, prompt["input_ids"].shape[1] + len(tail)),
            "token_type_ids": torch.cat([prompt["token_type_ids"], types], dim=1),
        }
        with torch.no_grad():
            chances = model(**whole).logits[0, -len(tail) - 1 : -1].log_softmax(dim=-1)
        assert count == len(tail)
        assert nll == pytest.approx(-float(chances[range(len(tail)), tail].sum()), rel=1e-4)


def test_a_beginning_is_shared_only_where_no_window_can_end(
    folders: dict[str, Path], models: dict[str, hf.Hf]
) -> None:
    answers = [ask(n, images=2) for n in (0, 2)]
    looks = [ask(n, images=1, probes=(ReadMap(2, keep=True),)) for n in (0, 2)]
    for name in NAMES:
        alone = texts(model_of(folders[name]).generate(answers))
        model = model_of(folders[name])
        model.generate([dataclasses.replace(look, decoding=Decoding(max_tokens=0)) for look in looks])
        kept = waves(model)._family._beginnings._kept
        assert len(kept) == (2 if name == "gemma3" else 0)
        assert texts(model.generate(answers)) == alone


# ---------------------------------------------------------------- maps


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [1, 2])
def test_maps_are_eager_attention_and_the_whole_graphs_gradients(
    models: dict[str, hf.Hf], official: dict[str, tuple[Any, Any]], name: str, images: int
) -> None:
    model, processor = official[name]
    kinds: list[Any] = ["attention", "gradient"]
    probes = (
        *(ReadMap(layer, kind=kind) for kind in kinds for layer in (1, 2, "all")),
        ReadMap(kind="pixels"),
    )
    request = ask(3, images=images, probes=probes, decoding=Decoding(max_tokens=0))
    (response,) = models[name].generate([request])
    inputs = _inputs(processor, request)
    image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()[:16]
    looked, weighted = eager_rows(model, inputs)
    for rows, found in ((looked, response.maps[:3]), (weighted, response.maps[3:6])):
        values = rows[:, image]
        for expected, got in zip((values[1], values[2], values.mean(axis=0)), found, strict=True):
            assert got.rectangle == (0, 0, *request.images[0].size)
            square = expected.reshape(4, 4)
            np.testing.assert_allclose(got.values, square, rtol=1e-5, atol=1e-5 * square.max())
    expected = pixel_gradient(model, inputs)[0].norm(dim=0).numpy()
    np.testing.assert_allclose(response.maps[6].values, expected, rtol=1e-4, atol=1e-4 * expected.max())
    assert response.maps[6].rectangle == (0, 0, *request.images[0].size)


def test_the_default_layer_sees_everything(models: dict[str, hf.Hf]) -> None:
    for name, layer in {"paligemma": 2, "paligemma2": 1, "gemma3": 2}.items():
        (response,) = models[name].generate([ask(probes=(ReadMap(),))])
        assert response.trace == {"map_layers": [layer]}
        assert response.maps[0].values.min() > 0


def test_a_layers_map_is_dark_where_its_window_has_passed(models: dict[str, hf.Hf]) -> None:
    (response,) = models["narrow"].generate([ask(3, probes=(ReadMap(1), ReadMap(2)))])
    assert response.maps[0].values.max() == 0 < response.maps[1].values.min()


@pytest.mark.parametrize("name", ["paligemma", "gemma3"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_bright_square_is_found_where_the_rectangle_puts_it(
    models: dict[str, hf.Hf], name: str, which: int
) -> None:
    """The tokens that a square changes most are those of its cell, in whichever picture it is."""
    for number, size in enumerate([(100, 80), (60, 140), (400, 120)]):
        row, column = divmod(5 * number + 2, 4)
        cell = (size[0] / 4, size[1] / 4)
        square = (column * cell[0], row * cell[1], (column + 1) * cell[0], (row + 1) * cell[1])
        pictures = [tiny.photo(7, 90, 90), tiny.photo(8, 70, 110)]
        pictures[which] = drawn(size, grey=0)
        blank, laid = embedded(models[name], pictures)
        pictures[which] = drawn(size, square, grey=0)
        moved = (embedded(models[name], pictures)[0] - blank).norm(dim=-1).numpy()
        (view,) = waves(models[name])._family.span(size).views
        begin = laid.starts[which]
        assert not moved[:begin].any()  # and nothing before the picture
        energy = moved[begin + view.cells]
        assert np.unravel_index(energy.argmax(), energy.shape) == (row, column)
        assert view.rectangle == (0, 0, *size)


# ---------------------------------------------------------------- steering


@pytest.mark.parametrize("name", NAMES)
def test_a_gain_of_one_steers_nothing(models: dict[str, hf.Hf], name: str) -> None:
    requests = unequal(decoding=Decoding(max_tokens=30))
    method = Sparc(models[name], alpha=1.0, tau=0.0, layer=2)
    assert texts(method.generate(requests)) == texts(models[name].generate(requests))


def test_the_default_layer_of_steering_sees_the_whole_prompt(models: dict[str, hf.Hf]) -> None:
    for name, layer in {"paligemma": 2, "paligemma2": 1, "gemma3": 2}.items():
        (response,) = Sparc(models[name]).generate([ask(decoding=Decoding(max_tokens=2))])
        assert response.trace["layer"] == layer


# ---------------------------------------------------------------- what goes wrong


def test_a_capped_decoder_runs_eagerly_and_offers_no_maps(folders: dict[str, Path]) -> None:
    model = model_of(folders["capped"])
    assert model.describe()["attention"] == "eager"
    assert model.offers == {Capability.LIKELIHOOD}
    with pytest.raises(CapabilityError, match="attention logits are capped at 2.0"):
        Sparc(model)
    for attn in ("fovea", "sdpa"):
        with pytest.raises(ModelError, match="capped at 2.0, which SDPA does not do. Use attn=auto"):
            model_of(folders["capped"], attn=attn)


def test_flash_attention_is_refused_where_tokens_look_ahead(folders: dict[str, Path]) -> None:
    for name in ("paligemma", "gemma3"):
        with pytest.raises(ModelError, match="see what comes after them"):
            model_of(folders[name], attn="flash_attention_2")


def test_pan_and_scan_is_refused(tmp_path: Path) -> None:
    model = model_of(tiny_gemma.gemma3(tmp_path / "panned", pan_and_scan=True))
    with pytest.raises(ModelError, match="turns pan-and-scan on"):
        model.generate([ask()])


def test_the_frame_of_a_text_is_paligemmas_alone(folders: dict[str, Path]) -> None:
    assert model_of(folders["paligemma"]).render(ask(images=2)).startswith("<image><image><bos>What")
    with pytest.raises(ModelError, match="gemma3 is gemma3: use template=chat"):
        model_of(folders["gemma3"], template="paligemma")
    (response,) = model_of(folders["paligemma"]).generate([ask(system="Be brief.")])
    assert response.failure is not None
    assert "no place for a system text" in response.failure.message
