"""LLaVA-1.5's maps against mllms_know's own functions, and against themselves however they are come by."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from adapters import hf
from harness.types import Decoding, ReadMap, Request, Response

GOLDEN = Path(__file__).parent / "goldens" / "vicrop_llava_grad.npz"
QUESTIONS = ("What is the color of the bus?", "What does the sign read?", "one")
SIZES = ((100, 80), (60, 140), (333, 56))
SUFFIX = " Answer the question using a single word or phrase."
EVERY = (
    ReadMap(1),
    ReadMap("all"),
    ReadMap(2, "gradient"),
    ReadMap("all", "gradient"),
    ReadMap(kind="pixels"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llava(tmp_path_factory.mktemp("llava"), kv_heads=2)


@pytest.fixture(scope="module")
def model(folder: Path) -> hf.Hf:
    return _model(folder)


def _model(folder: Path, **knobs: Any) -> hf.Hf:
    model = hf.model(str(folder), device="cpu", template="vicrop", **knobs)
    assert isinstance(model, hf.Hf)
    return model


def _asked(*probes: ReadMap, max_tokens: int = 0) -> list[Request]:
    """The goldens' requests."""
    decoding = Decoding(max_tokens=max_tokens)
    return [
        Request((tiny.photo(k, *SIZES[k]),), question, SUFFIX, decoding=decoding, probes=probes)
        for k, question in enumerate(QUESTIONS)
    ]


def _eight(*probes: ReadMap, max_tokens: int = 0) -> list[Request]:
    """Unequal prompts of one or two pictures, some of which begin with the same picture."""
    asked = [_asked(*probes, max_tokens=max_tokens)[number % 3] for number in range(8)]
    return [
        dataclasses.replace(
            one,
            images=(one.images[0], *[tiny.photo(9, 70, 70)] * (number % 2)),
            question=one.question + " And the horse?" * number,
        )
        for number, one in enumerate(asked)
    ]


def _agree(found: Sequence[Response], expected: Sequence[Response], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.failure, other.failure) == (None, None)
        assert len(one.maps) == len(other.maps) > 0
        for a, b in zip(one.maps, other.maps, strict=True):
            assert a.rectangle == b.rectangle
            assert b.values.max() > 0
            np.testing.assert_allclose(a.values, b.values, rtol=0, atol=tolerance * b.values.max())


# ---------------------------------------------------------------- the reference


@pytest.mark.parametrize("layer", [0, 1, 2, 3, "all"])
@pytest.mark.parametrize("kind", ["attention", "gradient"])
def test_a_map_at_a_layer_is_the_references_and_all_is_their_mean(
    model: hf.Hf, kind: Any, layer: Any
) -> None:
    golden = np.load(GOLDEN)
    assert "a64c5d5" in str(golden["source"])
    for response, layers in zip(model.generate(_asked(ReadMap(layer, kind))), golden[kind], strict=True):
        expected = layers.mean(axis=0) if layer == "all" else layers[layer]
        found = response.maps[0].values
        if kind == "attention":
            np.testing.assert_allclose(found, expected, rtol=1e-5)
        else:
            assert expected.max() > 0
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * expected.max())


def test_the_gradient_by_the_pixels_is_the_references(model: hf.Hf) -> None:
    responses = model.generate(_asked(ReadMap(kind="pixels")))
    for response, expected in zip(responses, np.load(GOLDEN)["pixels"], strict=True):
        np.testing.assert_allclose(response.maps[0].values, expected, rtol=0, atol=1e-4 * expected.max())


# ---------------------------------------------------------------- the ways to a map


def test_a_gradient_on_a_kept_beginning_is_that_from_scratch_and_that_of_the_whole_graph(
    model: hf.Hf, folder: Path
) -> None:
    gradients = (ReadMap(2, "gradient"), ReadMap("all", "gradient"))
    requests = _eight(*gradients)
    scratch = [_model(folder, batch=1).generate([one])[0] for one in requests]
    kept = _model(folder)
    first_pass = _eight(ReadMap(1, keep=True))
    kept.generate([dataclasses.replace(one, question="What else?") for one in first_pass])
    assert kept._waves is not None
    layout: Any = kept._waves._family
    assert len(layout._beginnings._kept) == 3
    _agree(kept.generate(requests), scratch)
    assert not layout._beginnings._kept  # they were taken
    for request, response in zip(requests, scratch, strict=True):
        whole = _whole_graph(folder, request)
        for found, expected in zip(response.maps, (whole[2], np.mean(whole, axis=0)), strict=True):
            np.testing.assert_allclose(found.values, expected, rtol=0, atol=1e-4 * expected.max())


_LOADED: dict[Path, tuple[Any, Any]] = {}


def _whole_graph(folder: Path, request: Request) -> list[Any]:
    """Gradient maps by layer, of eager attention and autograd through every token."""
    if folder not in _LOADED:
        weights = AutoModelForImageTextToText.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        )
        _LOADED[folder] = (weights.eval(), AutoProcessor.from_pretrained(folder, backend="pil"))
    weights, processor = _LOADED[folder]
    text = "<image>" * len(request.images) + f"\nUSER: {request.text}\nASSISTANT:"
    images = [[picture.open() for picture in request.images]]
    out = weights(**processor(text=[text], images=images, return_tensors="pt"), output_attentions=True)
    best = out.logits[0, -1].log_softmax(-1).max()
    by = torch.autograd.grad(best, out.attentions)
    image = processor.tokenizer(text)["input_ids"].index(tiny.SPECIALS.index("<image>"))
    return [
        (row * up.relu())[0, :, -1, image : image + 16].mean(0).detach().numpy().reshape(4, 4)
        for row, up in zip(out.attentions, by, strict=True)
    ]


def test_maps_of_a_batch_are_those_of_each_alone(model: hf.Hf, folder: Path) -> None:
    alone = _model(folder, batch=1)
    _agree(model.generate(_eight(*EVERY)), [alone.generate([one])[0] for one in _eight(*EVERY)])


@pytest.mark.parametrize("probes", [EVERY, EVERY[:2]])
def test_maps_read_in_passing_are_those_read_alone_and_change_no_text(
    model: hf.Hf, probes: tuple[ReadMap, ...]
) -> None:
    passing = model.generate(_eight(*probes, max_tokens=12))
    _agree(passing, model.generate(_eight(*probes)))
    plain = model.generate(_eight(max_tokens=12))
    assert [one.text for one in passing] == [one.text for one in plain]
    assert any(one.text for one in plain)


def test_no_parameter_gets_a_gradient(folder: Path) -> None:
    model = _model(folder)
    model.generate(_asked(*EVERY))
    assert model._waves is not None
    parameters = list(model._waves._weights.parameters())
    assert parameters
    assert all(not one.requires_grad and one.grad is None for one in parameters)
