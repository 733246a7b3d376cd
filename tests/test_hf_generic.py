"""Families without a layout of their own, whose processors want torchvision for videos nobody sends."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import tiny_generic
import torch
from transformers import AutoModelForImageTextToText

from adapters import hf
from adapters._hf_checkpoint import load_processor
from harness.types import Capability, Decoding, Request


@pytest.fixture(scope="module", params=["internvl", "gemma4"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> hf.Hf:
    folder = getattr(tiny_generic, request.param)(tmp_path_factory.mktemp("generic") / request.param)
    made = hf.model(str(folder), device="cpu")
    assert isinstance(made, hf.Hf)
    return made


def _request(number: int, images: int, **changes: Any) -> Request:
    pictures = tuple(tiny.photo(number + 10 * k, 100 + 20 * number, 80) for k in range(images))
    question = "What is the color of the bus?" + " And the horse?" * number
    return Request(pictures, question, decoding=Decoding(max_tokens=6), **changes)


def test_the_checkpoints_processor_keeps_its_settings(model: hf.Hf) -> None:
    processor = load_processor(model.checkpoint, trust_remote_code=False)
    assert processor.image_seq_length == {"internvl": 4, "gemma4": 70}[model.checkpoint.family]
    assert model.offers == {Capability.LIKELIHOOD}


@torch.no_grad()
def test_greedy_text_is_what_transformers_generates(model: hf.Hf) -> None:
    processor = load_processor(model.checkpoint, trust_remote_code=False)
    official = AutoModelForImageTextToText.from_pretrained(
        model.checkpoint.folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    for images in (1, 2):
        request = _request(1, images)
        pictures = [[picture.open() for picture in request.images]]
        inputs = processor(text=[model.render(request)], images=pictures, return_tensors="pt")
        out = official.generate(**inputs, max_new_tokens=6, do_sample=False)
        (response,) = model.generate([request])
        start = inputs["input_ids"].shape[1]
        assert response.usage.tokens_in == start
        assert response.text == processor.tokenizer.decode(out[0, start:], skip_special_tokens=True)


def test_a_batch_is_its_rows(model: hf.Hf) -> None:
    requests = [
        _request(number, number % 3, options=("yes", "a red car") * (number % 2)) for number in range(5)
    ]
    many = model.generate(requests)
    singles = [model.generate([request])[0] for request in requests]
    assert [one.failure for one in many] == [None] * len(many)
    assert [one.text for one in many] == [one.text for one in singles]
    for one, other in zip(many, singles, strict=True):
        torch.testing.assert_close(torch.tensor(one.option_nll), torch.tensor(other.option_nll))
