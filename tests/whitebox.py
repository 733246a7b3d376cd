"""What tests of white-box families share: their builders, unequal requests, and comparing answers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import tiny_gemma
import tiny_idefics3
import tiny_instructblip
import tiny_llava_next
import tiny_qwen

from adapters import hf
from harness.types import Decoding, ImportanceMap, ReadMap, Request, Response

FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava": functools.partial(tiny.llava, kv_heads=2),
    "llava_next-vicuna": tiny_llava_next.llava_next,
    "llava_next-mistral": functools.partial(tiny_llava_next.llava_next, mistral=True),
    "instructblip": tiny_instructblip.instructblip,
    "qwen2": tiny_qwen.qwen2_vl,
    "qwen2_5": tiny_qwen.qwen2_5_vl,
    "qwen3": tiny_qwen.qwen3_vl,
    "idefics3": tiny_idefics3.idefics3,
    "smolvlm": tiny_idefics3.smolvlm,
    "paligemma": tiny_gemma.paligemma,
    "paligemma2": functools.partial(tiny_gemma.paligemma, second=True),
    "gemma3": tiny_gemma.gemma3,
    "gemma3-narrow": functools.partial(tiny_gemma.gemma3, window=24),  # its windows end within every prompt
}
SHAPES = [(100, 80), (57, 201), (300, 60), (90, 90)]


def model_of(folder: Path, **knobs: Any) -> hf.Hf:
    model = hf.model(str(folder), device="cpu", **{"batch": 8, **knobs})
    assert isinstance(model, hf.Hf)
    return model


def ask(number: int = 0, images: int = 1, **changes: Any) -> Request:
    """Requests differ in length; pictures in shape, and two requests share each first one."""
    pictures = tuple(tiny.photo(number // 2 + k, *SHAPES[(number // 2 + k) % 4]) for k in range(images))
    question = "What is the color of the bus?" + " And the horse?" * (number % 4)
    return dataclasses.replace(Request(pictures, question, decoding=Decoding(max_tokens=8)), **changes)


def mixed() -> list[Request]:
    """Eight unequal prompts and pictures; answers, options and maps of every kind."""
    requests = [ask(number, images=number % 3) for number in range(8)]
    sampled = Decoding(max_tokens=8, temperature=0.8, top_p=0.9, seed=3)
    requests[0], requests[3] = (dataclasses.replace(requests[n], decoding=sampled) for n in (0, 3))
    requests[1] = dataclasses.replace(requests[1], probes=(ReadMap(1), ReadMap("all")))
    requests[2] = dataclasses.replace(requests[2], options=("yes", "a red car", "no"))
    requests[4] = dataclasses.replace(requests[4], probes=(ReadMap(2, kind="gradient"), ReadMap(2)))
    requests[5] = dataclasses.replace(requests[5], probes=(ReadMap(1),), options=("two dogs", "yes"))
    requests[6] = dataclasses.replace(requests[6], options=("yes", "no"))
    requests[7] = dataclasses.replace(requests[7], probes=(ReadMap(kind="pixels"), ReadMap(2)))
    return requests


def answered(model: hf.Hf, asked: Request) -> Response:
    (response,) = model.generate([asked])
    assert response.failure is None, response.failure
    return response


def close(found: ImportanceMap, expected: Any, share: float) -> None:
    """No further off than a share of the largest value."""
    assert found.values.shape == expected.shape
    assert np.abs(found.values - expected).max() <= share * np.abs(expected).max()
    assert np.ptp(expected) > 0.1 * np.abs(expected).max()  # flat maps would prove nothing


def same(one: Response, other: Response) -> None:
    """The same words, the same likelihoods and the same maps, but for rounding."""
    assert one.failure is None
    assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
    assert one.usage.tokens_in == other.usage.tokens_in
    np.testing.assert_allclose(one.option_nll, other.option_nll, rtol=1e-4)
    for mine, its in zip(one.maps, other.maps, strict=True):
        assert mine.rectangle == its.rectangle
        np.testing.assert_allclose(mine.values, its.values, rtol=0, atol=1e-4 * np.abs(its.values).max())
