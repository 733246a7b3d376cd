"""InstructBLIP in the hf adapter, against its processor, transformers' eager attention and mllms_know."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_instructblip
import torch
from whitebox import ask, drawn, greedy, model_of, plain, row_of, texts, unequal, waves

from adapters import hf
from harness import taps
from harness.errors import ModelError
from harness.pictures import Picture
from harness.types import Decoding, ReadMap, Request
from methods.sparc import Sparc
from methods.vicrop import Vicrop

GOLDEN = Path(__file__).parent / "goldens" / "vicrop_instructblip.npz"
QUESTIONS = ("What is the color of the bus?", "What does the sign read?", "one")
SIZES = ((100, 80), (60, 140), (333, 56))
SUFFIX = " Answer the question using a single word or phrase."
QUERIES = tiny_instructblip.QUERIES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_instructblip.instructblip(tmp_path_factory.mktemp("instructblip"))


@pytest.fixture(scope="module")
def model(folder: Path) -> hf.Hf:
    return model_of(folder)


@pytest.fixture(scope="module")
def official(folder: Path) -> tuple[Any, Any]:
    return plain(folder)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> hf.Hf:
    """The checkpoint that the goldens were made of, under ViCrop's template."""
    folder = tmp_path_factory.mktemp("reference")
    return model_of(tiny_instructblip.instructblip(folder, side=84, queries=32), template="vicrop")


def _inputs(processor: Any, request: Request, queries: int = QUERIES) -> dict[str, Any]:
    """A request as the processor prepares it: of two pictures, each with the whole instruction."""
    images = [picture.open() for picture in request.images]
    inputs = dict(processor(images=images, text=request.text, return_tensors="pt"))
    more = len(images) - 1
    first = inputs["input_ids"][:, :queries]
    inputs["input_ids"] = torch.cat([*[first] * more, inputs["input_ids"]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for name in ("qformer_input_ids", "qformer_attention_mask"):
        inputs[name] = inputs[name].repeat(len(images), 1)
    return inputs


# ---------------------------------------------------------------- prompts and answers


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("size", [(100, 80), (60, 140), (1, 1), (3000, 40)])
def test_tokens_and_pixels_are_the_processors(
    model: hf.Hf, official: tuple[Any, Any], images: int, size: tuple[int, int]
) -> None:
    request = Request(tuple(tiny.photo(k, *size[:: 1 - 2 * k]) for k in range(images)), " Is it\nred? é")
    row = row_of(model, request)
    if not images:
        assert list(row.tokens) == official[1](text=request.text)["input_ids"][0]
        return
    expected = _inputs(official[1], request)
    assert list(row.tokens) == expected["input_ids"][0].tolist()
    assert row.starts == (0, QUERIES)[:images]
    made = torch.stack([waves(model)._family.pixels(picture) for picture in request.images])
    torch.testing.assert_close(made, expected["pixel_values"], rtol=0, atol=0)
    ((_, read),) = waves(model)._family._instructions([row])
    assert read == expected["qformer_input_ids"][0].tolist()


@pytest.mark.parametrize("images", [1, 2])
def test_greedy_text_is_what_transformers_generates(
    model: hf.Hf, official: tuple[Any, Any], images: int
) -> None:
    weights, processor = official
    request = ask(images=images, decoding=Decoding(max_tokens=24))
    expected = greedy(weights, processor, _inputs(processor, request), 24).strip()
    assert expected
    assert texts(model.generate([request]))[0].strip() == expected


def test_a_likelihood_is_that_of_the_option_under_a_prompt_that_the_q_former_read_without_it(
    model: hf.Hf, official: tuple[Any, Any]
) -> None:
    weights, processor = official
    (response,) = model.generate([ask(options=("yes", "a red car"))])
    for option, (found, count) in zip(("yes", "a red car"), response.option_nll, strict=True):
        inputs = _inputs(processor, ask())
        text = processor.tokenizer(f"{ask().text} {option}</s>")["input_ids"]
        ids = torch.tensor([[*inputs["input_ids"][0, :QUERIES].tolist(), *text]])
        with torch.no_grad():
            logits = weights(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
        chances = torch.log_softmax(logits[0, -count - 1 : -1], dim=-1)
        assert found == pytest.approx(-float(chances.gather(1, ids[0, -count:, None]).sum()), rel=1e-4)


def test_a_batch_of_unequal_prompts_answers_as_each_alone(model: hf.Hf, folder: Path) -> None:
    alone = model_of(folder, batch=1)
    probes = (ReadMap(2), ReadMap("all"), ReadMap(1, "gradient"), ReadMap("all", "gradient"))
    probed = [ask(number, 1 + number % 2, probes=probes) for number in range(8)]
    requests = [*unequal(), *unequal(options=("yes", "two dogs")), *probed]
    for one, many in zip(alone.generate(requests), model.generate(requests), strict=True):
        assert (one.failure, one.text) == (None, many.text)
        np.testing.assert_allclose(many.option_nll, one.option_nll, rtol=1e-4)
        for a, b in zip(one.maps, many.maps, strict=True):
            np.testing.assert_allclose(b.values, a.values, rtol=1e-4, atol=1e-5 * a.values.max())


def test_steering_changes_answers_and_a_batch_of_it_none(model: hf.Hf, folder: Path) -> None:
    knobs: dict[str, Any] = {"alpha": 1.5, "tau": 0.05, "layer": 1}
    requests = [ask(n, 1 + n % 2, decoding=Decoding(max_tokens=24)) for n in range(8)]
    many = texts(Sparc(model, **knobs).generate(requests))
    assert many == texts(Sparc(model_of(folder, batch=1), **knobs).generate(requests))
    assert many != texts(model.generate(requests))


def test_maps_change_no_answer_and_are_read_in_passing_as_alone(model: hf.Hf) -> None:
    before = texts(model.generate(unequal()))
    asked = [ask(n, 1 + n % 2, probes=(ReadMap(2, keep=True),)) for n in range(8)]
    passing = model.generate(asked)
    assert texts(passing) == texts(model.generate([dataclasses.replace(one, probes=()) for one in asked]))
    alone = model.generate([dataclasses.replace(one, decoding=Decoding(max_tokens=0)) for one in asked])
    for a, b in zip(passing, alone, strict=True):
        np.testing.assert_allclose(a.maps[0].values, b.maps[0].values, rtol=1e-4)
    model.generate([ask(probes=(ReadMap(2, "gradient"), ReadMap(kind="pixels")))])
    assert texts(model.generate(unequal())) == before
    weights = waves(model)._family.weights
    assert all(not one.requires_grad and one.grad is None for one in weights.parameters())


# ---------------------------------------------------------------- maps


def _by_hand(official: tuple[Any, Any], request: Request, layer: int) -> tuple[Any, Any, Any]:
    """The attention map, the gradient map and the pixel gradient over the whole graph."""
    weights, processor = official
    inputs = _inputs(processor, request)
    pixels = inputs["pixel_values"].requires_grad_()
    seen: list[torch.Tensor] = []
    looked = weights.qformer.encoder.layer[4].crossattention.attention
    hook = looked.register_forward_hook(lambda module, given, output: seen.append(output[1]))
    out = weights(**inputs, output_attentions=True)
    hook.remove()
    cross, row = seen[0], out.language_model_outputs.attentions[layer]
    best = out.logits[0, -1].log_softmax(-1).max()
    by_cross, by_row, by_pixels = torch.autograd.grad(best, [cross, row, pixels])

    def product(above: torch.Tensor, below: torch.Tensor) -> Any:
        flat = above[0, :, -1, :QUERIES].mean(0) @ below[0].mean(0)[:, 1:]
        return flat.detach().numpy().reshape(4, 4)

    return product(row, cross), product(row * by_row.relu(), cross * by_cross.relu()), by_pixels[0]


@pytest.mark.parametrize("images", [1, 2])
def test_maps_are_the_formulas_over_the_whole_graph(
    model: hf.Hf, official: tuple[Any, Any], images: int
) -> None:
    probes = (
        ReadMap(2),
        ReadMap("all"),
        ReadMap(2, "gradient"),
        ReadMap("all", "gradient"),
        ReadMap(kind="pixels"),
    )
    request = ask(2, images=images)
    by_layer = [_by_hand(official, request, layer) for layer in range(4)]
    (response,) = model.generate([dataclasses.replace(request, probes=probes)])
    at, mean, gradient, gradients, pixels = (one.values for one in response.maps)
    np.testing.assert_allclose(at, by_layer[2][0], rtol=1e-5)
    np.testing.assert_allclose(mean, np.mean([one[0] for one in by_layer], axis=0), rtol=1e-5)
    for found, expected in (
        (gradient, by_layer[2][1]),
        (gradients, np.mean([one[1] for one in by_layer], axis=0)),
        (pixels, by_layer[2][2].norm(dim=0).numpy()),
    ):
        assert expected.max() > 0
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * expected.max())
    assert {one.rectangle for one in response.maps} == {(0.0, 0.0, *request.images[0].size)}


def _asked(index: int, question: str, **changes: Any) -> Request:
    return Request((tiny.photo(index, *SIZES[index]),), question, SUFFIX, **changes)


def test_rel_att_is_the_references(reference: hf.Hf) -> None:
    golden = np.load(GOLDEN)
    assert "a64c5d5" in str(golden["source"])
    requests = [_asked(k, question, decoding=Decoding(max_tokens=1)) for k, question in enumerate(QUESTIONS)]
    responses = Vicrop(reference, layer=2, fidelity="released").generate(requests)
    for response, expected in zip(responses, golden["rel_att"], strict=True):
        assert response.failure is None
        np.testing.assert_allclose(response.maps[0].values, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("probe", "key"),
    [
        (ReadMap(2, "gradient"), "grad_att"),
        (ReadMap("all", "gradient"), "grad_att_all"),
        (ReadMap(kind="pixels"), "pixels"),
    ],
)
def test_gradients_are_the_references(reference: hf.Hf, probe: ReadMap, key: str) -> None:
    requests = [
        _asked(k, question, decoding=Decoding(max_tokens=0), probes=(probe,))
        for k, question in enumerate(QUESTIONS)
    ]
    for response, expected in zip(reference.generate(requests), np.load(GOLDEN)[key], strict=True):
        assert expected.max() > 0
        np.testing.assert_allclose(response.maps[0].values, expected, rtol=0, atol=1e-4 * expected.max())


@pytest.mark.parametrize("size", [(100, 80), (60, 140), (300, 40)])
@pytest.mark.parametrize("which", [0, 1])
def test_a_bright_square_changes_the_patches_whose_rectangle_holds_it(
    model: hf.Hf, size: tuple[int, int], which: int
) -> None:
    layout = waves(model)._family
    width, height = size
    rows, columns = layout.span(size).views[0].cells.shape
    for row, column in ((0, 0), (1, 3), (3, 2)):
        top, left = row * height // rows, column * width // columns
        square = (left, top, left + width // columns, top + height // rows)
        pictures = [drawn(size), drawn(size)]
        pictures[which] = drawn(size, square)
        request = Request(tuple(pictures), "What?")
        found = layout._encoded([row_of(model, request)])
        with_it, without = found[pictures[which].digest][0], found[pictures[1 - which].digest][0]
        embedded = _embedded(layout, pictures[which]) - _embedded(layout, pictures[1 - which])
        assert int(embedded.norm(dim=-1).argmax()) == row * columns + column
        assert with_it.shape == without.shape == (1 + rows * columns, 32)
        assert not torch.equal(with_it, without)


def _embedded(layout: Any, picture: Picture) -> Any:
    """The patches before they see each other: (rows * columns, hidden)."""
    return layout.weights.vision_model.embeddings(layout.pixels(picture)[None])[0, 1:]


# ---------------------------------------------------------------- knobs and failures


def test_the_template_of_vicrop_is_its_own_and_both_tokenizers_read_it(reference: hf.Hf) -> None:
    request = _asked(0, "What is it?")
    assert reference.render(request) == "<image>Question: What is it? Short answer:"
    layout = waves(reference)._family
    ((_, read),) = layout._instructions([row_of(reference, request)])
    words = layout.processor.qformer_tokenizer.decode(read, skip_special_tokens=True)
    assert words == "question: what is it? short answer:"


def test_a_prompt_longer_than_either_context_fails_alone(model: hf.Hf) -> None:
    for question in ("What is the color of the bus? " * 60, "one " * 140):
        good, bad = model.generate([ask(), dataclasses.replace(ask(1), question=question)])
        assert good.failure is None
        assert bad.failure is not None
        assert bad.failure.kind == "too_long"


def test_a_text_that_contains_the_placeholder_fails_alone(model: hf.Hf) -> None:
    good, bad = model.generate([ask(), dataclasses.replace(ask(1), question="What is <image>?")])
    assert good.failure is None
    assert bad.failure is not None
    assert bad.failure.kind == "prompt"


def test_an_exception_in_a_tap_leaves_the_model_as_it_was(model: hf.Hf) -> None:
    class Broken(taps.Tap):
        def before(self, call: taps.AttentionCall) -> None:
            raise ZeroDivisionError

    before = texts(model.generate(unequal()))
    with pytest.raises(ZeroDivisionError), taps.active(Broken()):
        model.generate([ask()])
    assert texts(model.generate(unequal())) == before
    assert not waves(model)._family.weights.qformer.encoder.layer[4].crossattention.attention._forward_hooks


def test_a_language_model_with_an_encoder_answers_as_transformers_has_it_and_offers_nothing(
    tmp_path: Path,
) -> None:
    folder = tiny_instructblip.instructblip(tmp_path, flan=True)
    with pytest.raises(ModelError, match="an encoder and a decoder"):
        hf.model(str(folder), attn="fovea")
    model = model_of(folder)
    assert not model.offers
    weights, processor = plain(folder)
    requests = [ask(number) for number in range(3)]
    for request, found in zip(requests, texts(model.generate(requests)), strict=True):
        out = weights.generate(**_inputs(processor, request), do_sample=False, max_new_tokens=8)
        assert found.strip() == processor.tokenizer.decode(out[0], skip_special_tokens=True).strip()
