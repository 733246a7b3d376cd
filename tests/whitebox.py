"""What tests of white-box families share: their builders, unequal requests, what transformers alone says."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import tiny_gemma
import tiny_idefics3
import tiny_instructblip
import tiny_llava_next
import tiny_qwen
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from adapters import hf
from adapters._hf_checkpoint import find, load_processor
from harness.pictures import Memory, Picture
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


def waves(model: hf.Hf) -> Any:
    """A model's inside, its weights loaded."""
    if model._waves is None:
        model._waves = model._load()
    return model._waves


def row_of(model: hf.Hf, request: Request) -> Any:
    return waves(model)._row(request)


def ask(number: int = 0, images: int = 1, **changes: Any) -> Request:
    """Requests differ in length; pictures in shape, and two requests share each first one."""
    pictures = tuple(tiny.photo(number // 2 + k, *SHAPES[(number // 2 + k) % 4]) for k in range(images))
    question = "What is the color of the bus?" + " And the horse?" * (number % 4)
    return dataclasses.replace(Request(pictures, question, decoding=Decoding(max_tokens=8)), **changes)


def unequal(**changes: Any) -> list[Request]:
    """Eight unequal prompts, of no picture, one or two."""
    return [ask(number, images=number % 3, **changes) for number in range(8)]


def mixed() -> list[Request]:
    """Eight unequal prompts and pictures; answers, options and maps of every kind."""
    requests = unequal()
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


def texts(responses: Sequence[Response]) -> list[str]:
    assert [response.failure for response in responses] == [None] * len(responses)
    return [response.text for response in responses]


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


# ---------------------------------------------------------------- transformers alone


@functools.cache
def plain(folder: Path) -> tuple[Any, Any]:
    """A checkpoint as transformers alone loads it, under eager attention, and its processor."""
    model = AutoModelForImageTextToText.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    if model.config.model_type.startswith(("smolvlm", "qwen")):  # theirs it would load with torchvision alone
        processor = load_processor(find(str(folder), None, trust_remote_code=False), trust_remote_code=False)
    else:
        processor = AutoProcessor.from_pretrained(folder, backend="pil")
    return model.eval().requires_grad_(False), processor


def inputs_of(folder: Path, request: Request) -> Any:
    """A request through the checkpoint's own template and processor alone."""
    _, processor = plain(folder)
    content = [{"type": "image"} for _ in request.images]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": request.text}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [[picture.open() for picture in request.images]] if request.images else None
    begun = text.startswith(processor.tokenizer.bos_token or text)  # Qwen's has none, and adds none
    return processor(text=[text], images=images, return_tensors="pt", add_special_tokens=not begun)


def greedy(model: Any, processor: Any, inputs: Any, most: int = 8) -> str:
    """The text of `most` tokens that a model generates by itself."""
    out = model.generate(**inputs, max_new_tokens=most, do_sample=False)
    text: str = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def eager_rows(model: Any, inputs: Any) -> tuple[Any, Any]:
    """The last prompt token's head-mean attention over the whole eager graph, (layers, L), and the same of
    attention times the positive part of its gradient."""
    with torch.enable_grad():
        inputs["pixel_values"].requires_grad_()
        out = model(**inputs, output_attentions=True)
        best = out.logits[0, -1].log_softmax(dim=-1).max()
        gradients = torch.autograd.grad(best, out.attentions)
    rows, slopes = (torch.stack([one[0, :, -1] for one in each]) for each in (out.attentions, gradients))
    rows = rows.detach()
    return rows.mean(dim=1).numpy(), (rows * slopes.clamp(min=0)).mean(dim=1).numpy()


def pixel_gradient(model: Any, inputs: Any) -> Any:
    """Of the best next token's log probability, by the processor's pixels."""
    with torch.enable_grad():
        pixels = inputs["pixel_values"].requires_grad_()
        best = model(**inputs).logits[0, -1].log_softmax(dim=-1).max()
        (gradient,) = torch.autograd.grad(best, [pixels])
    return gradient


# ---------------------------------------------------------------- where a cell is in the picture


def drawn(size: tuple[int, int], square: tuple[float, ...] | None = None, grey: int = 90) -> Picture:
    """A grey picture, or one with a white square."""
    image = Image.new("RGB", size, (grey, grey, grey))
    if square is not None:
        image.paste((255, 255, 255), tuple(map(round, square)))
    data = io.BytesIO()
    image.save(data, "PNG")
    return Picture(Memory(data.getvalue(), "square.png"))


def embedded(model: hf.Hf, pictures: Sequence[Picture]) -> tuple[torch.Tensor, Any]:
    """What the decoder is given for a prompt with pictures, (L, features), and the prompt's row.

    That is each token's embedding, and what Qwen3-VL adds to its later layers.
    """
    request = dataclasses.replace(ask(), images=tuple(pictures), decoding=Decoding(max_tokens=1))
    row, seen = row_of(model, request), []

    def see(_: Any, __: Any, named: Any) -> None:
        whole = named["inputs_embeds"][0]
        for layer in named.get("deepstack_visual_embeds") or []:
            deep = torch.zeros(len(whole), layer.shape[1])
            deep[named["visual_pos_masks"][0]] = layer
            whole = torch.cat([whole, deep], dim=1)
        seen.append(whole)

    decoder = waves(model)._weights.model.get_decoder()
    hook = decoder.register_forward_pre_hook(see, with_kwargs=True)
    answered(model, request)
    hook.remove()
    return seen[0], row


def set_apart(folder: Path, *path: str) -> hf.Hf:
    """A model in which no patch attends to another: a token shows its own pixels alone.

    path: parts of the names of its tower's weights that bring patches together.
    """
    model = model_of(folder)
    for name, weights in waves(model)._weights.named_parameters():
        if all(part in name for part in path):
            weights.zero_()
    return model
