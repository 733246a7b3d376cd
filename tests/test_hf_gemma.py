"""PaliGemma and Gemma 3 in the hf adapter, against their processors and transformers' eager attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_gemma
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from adapters import hf
from harness.errors import CapabilityError, ModelError
from harness.pictures import Memory, Picture
from harness.types import Capability, Decoding, ReadMap, Request, Response
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
    return {name: _model(folder, batch=8) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def official(folders: dict[str, Path]) -> dict[str, tuple[Any, Any]]:
    """Each checkpoint as transformers alone loads it, under eager attention."""
    return {
        name: (
            AutoModelForImageTextToText.from_pretrained(
                folder, attn_implementation="eager", dtype=torch.float32
            ).eval(),
            AutoProcessor.from_pretrained(folder, backend="pil"),
        )
        for name, folder in folders.items()
    }


def _model(folder: Path, **knobs: Any) -> hf.Hf:
    model = hf.model(str(folder), device="cpu", **knobs)
    assert isinstance(model, hf.Hf)
    return model


def _request(number: int = 0, images: int = 1, **changes: Any) -> Request:
    """Unequal prompts; every third shares its first picture."""
    pictures = tuple(tiny.photo(number % 3 + 10 * k, 100 - 20 * k, 80) for k in range(images))
    question = "What is the color of the bus?" + " And the horse?" * (number % 4)
    return dataclasses.replace(Request(pictures, question, decoding=Decoding(max_tokens=6)), **changes)


def _mixed(**changes: Any) -> list[Request]:
    return [_request(number, images=number % 3, **changes) for number in range(8)]


def _texts(responses: Sequence[Response]) -> list[str]:
    assert [response.failure for response in responses] == [None] * len(responses)
    return [response.text for response in responses]


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


def _row(model: hf.Hf, request: Request) -> Any:
    if model._waves is None:
        model._waves = model._load()
    return model._waves._row(request)


# ---------------------------------------------------------------- prompts and answers


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [0, 1, 2])
def test_tokens_and_pixels_are_the_processors(
    models: dict[str, hf.Hf], official: dict[str, tuple[Any, Any]], name: str, images: int
) -> None:
    for number, size in enumerate(SIZES):
        pictures = tuple(tiny.photo(number + k, *SIZES[(number + k) % len(SIZES)]) for k in range(images))
        request = Request(pictures, "Is it\n\nred?\n" * (number % 2) + f"{size}")
        row = _row(models[name], request)
        expected = _inputs(official[name][1], request)
        assert list(row.tokens) == expected["input_ids"][0].tolist()
        layout: Any = models[name]._waves._family  # type: ignore[union-attr]
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
    request = _request(images=images, decoding=Decoding(max_tokens=24))
    inputs = _inputs(processor, request)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    expected = out[0, inputs["input_ids"].shape[1] :]
    (response,) = models[name].generate([request])
    assert response.text == processor.tokenizer.decode(expected, skip_special_tokens=True)
    assert response.usage.tokens_in == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("name", [*NAMES, "capped"])
def test_an_option_follows_the_prompt_and_is_no_part_of_its_prefix(
    models: dict[str, hf.Hf], official: dict[str, tuple[Any, Any]], name: str
) -> None:
    model, processor = official[name]
    options = ("red", "a brown horse near the ocean")
    request = _request(2, options=options)
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
    answers = [dataclasses.replace(_request(n, images=2), images=_pair(n)) for n in (0, 1)]
    looks = [_request(n, images=1, probes=(ReadMap(2, keep=True),)) for n in (0, 1)]
    for name in NAMES:
        plain = _texts(_model(folders[name]).generate(answers))
        model = _model(folders[name])
        model.generate([dataclasses.replace(look, decoding=Decoding(max_tokens=0)) for look in looks])
        kept: Any = model._waves._family._beginnings._kept  # type: ignore[union-attr]
        assert len(kept) == (2 if name == "gemma3" else 0)
        assert _texts(model.generate(answers)) == plain


def _pair(number: int) -> tuple[Picture, Picture]:
    return tiny.photo(number % 3, 100, 80), tiny.photo(20 + number, 40, 90)


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
    request = _request(3, images=images, probes=probes, decoding=Decoding(max_tokens=0))
    (response,) = models[name].generate([request])
    inputs = _inputs(processor, request)
    inputs["pixel_values"].requires_grad_()
    out = model(**inputs, output_attentions=True)
    image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()[:16]
    best = out.logits[0, -1].log_softmax(dim=-1).max()
    gradients = torch.autograd.grad(best, [*out.attentions, inputs["pixel_values"]])
    looked = torch.stack([one[0, :, -1][:, image] for one in out.attentions]).detach()
    slopes = torch.stack([one[0, :, -1][:, image] for one in gradients[:-1]])
    for values, found in (
        (looked.mean(dim=1), response.maps[:3]),
        ((looked * slopes.clamp(min=0)).mean(dim=1), response.maps[3:6]),
    ):
        for expected, got in zip((values[1], values[2], values.mean(dim=0)), found, strict=True):
            assert got.rectangle == (0, 0, 100, 80)
            square = expected.reshape(4, 4).numpy()
            np.testing.assert_allclose(got.values, square, rtol=1e-5, atol=1e-5 * square.max())
    expected = gradients[-1][0].norm(dim=0).numpy()
    np.testing.assert_allclose(response.maps[6].values, expected, rtol=1e-4, atol=1e-4 * expected.max())
    assert response.maps[6].rectangle == (0, 0, 100, 80)


def test_the_default_layer_sees_everything(models: dict[str, hf.Hf]) -> None:
    for name, layer in {"paligemma": 2, "paligemma2": 1, "gemma3": 2}.items():
        (response,) = models[name].generate([_request(probes=(ReadMap(),))])
        assert response.trace == {"map_layers": [layer]}
        assert response.maps[0].values.min() > 0


def test_a_layers_map_is_dark_where_its_window_has_passed(models: dict[str, hf.Hf]) -> None:
    (response,) = models["narrow"].generate([_request(3, probes=(ReadMap(1), ReadMap(2)))])
    assert response.maps[0].values.max() == 0 < response.maps[1].values.min()


@pytest.mark.parametrize("name", ["paligemma", "gemma3"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_bright_square_is_found_where_the_rectangle_puts_it(
    models: dict[str, hf.Hf], name: str, which: int
) -> None:
    """The tokens that a square changes most are those of its cell, in whichever picture it is."""
    for number, size in enumerate([(100, 80), (60, 140), (400, 120)]):
        row, column = divmod(5 * number + 2, 4)
        seen = []
        for drawn in (False, True):
            pictures = [tiny.photo(7, 90, 90), tiny.photo(8, 70, 110)]
            pictures[which] = _square(size, row, column, drawn)
            request = _request(images=0, decoding=Decoding(max_tokens=1))
            seen.append(_embedded(models[name], dataclasses.replace(request, images=tuple(pictures))))
        (begin, _), layout = seen[0], models[name]._waves._family  # type: ignore[union-attr]
        (view,) = layout.span(size).views  # type: ignore[attr-defined]
        moved = (seen[1][1] - seen[0][1]).norm(dim=-1).numpy()
        assert not moved[: begin[which]].any()  # and nothing before the picture
        energy = moved[begin[which] + view.cells]
        assert np.unravel_index(energy.argmax(), energy.shape) == (row, column)
        assert view.rectangle == (0, 0, *size)


def _square(size: tuple[int, int], row: int, column: int, drawn: bool) -> Picture:
    import io

    from PIL import Image

    image = Image.new("RGB", size)
    if drawn:
        cell = (size[0] / 4, size[1] / 4)
        box = (column * cell[0], row * cell[1], (column + 1) * cell[0], (row + 1) * cell[1])
        image.paste((255, 255, 255), tuple(map(round, box)))
    data = io.BytesIO()
    image.save(data, "PNG")
    return Picture(Memory(data.getvalue(), "square.png"))


def _embedded(model: hf.Hf, request: Request) -> tuple[tuple[int, ...], torch.Tensor]:
    """Where each picture's tokens begin, and what the decoder is given of a prompt: (L, hidden)."""
    row, taken = _row(model, request), []
    decoder = model._waves._weights.model.language_model  # type: ignore[union-attr]
    hook = decoder.register_forward_pre_hook(
        lambda _, values, named: taken.append(named["inputs_embeds"]), with_kwargs=True
    )
    model.generate([request])
    hook.remove()
    return row.starts, taken[0][0]


# ---------------------------------------------------------------- steering


@pytest.mark.parametrize("name", NAMES)
def test_a_gain_of_one_steers_nothing(models: dict[str, hf.Hf], name: str) -> None:
    requests = _mixed(decoding=Decoding(max_tokens=30))
    method = Sparc(models[name], alpha=1.0, tau=0.0, layer=2)
    assert _texts(method.generate(requests)) == _texts(models[name].generate(requests))


# ---------------------------------------------------------------- what goes wrong


def test_a_capped_decoder_runs_eagerly_and_offers_no_maps(folders: dict[str, Path]) -> None:
    model = _model(folders["capped"])
    assert model.describe()["attention"] == "eager"
    assert model.offers == {Capability.LIKELIHOOD}
    with pytest.raises(CapabilityError, match="attention logits are capped at 2.0"):
        Sparc(model)
    for attn in ("fovea", "sdpa"):
        with pytest.raises(ModelError, match="capped at 2.0, which SDPA does not do. Use attn=auto"):
            _model(folders["capped"], attn=attn)


def test_flash_attention_is_refused_where_tokens_look_ahead(folders: dict[str, Path]) -> None:
    for name in ("paligemma", "gemma3"):
        with pytest.raises(ModelError, match="see what comes after them"):
            _model(folders[name], attn="flash_attention_2")


def test_pan_and_scan_is_refused(tmp_path: Path) -> None:
    model = _model(tiny_gemma.gemma3(tmp_path / "panned", pan_and_scan=True))
    with pytest.raises(ModelError, match="turns pan-and-scan on"):
        model.generate([_request()])


def test_the_frame_of_a_text_is_paligemmas_alone(folders: dict[str, Path]) -> None:
    assert _model(folders["paligemma"]).render(_request(images=2)).startswith("<image><image><bos>What")
    with pytest.raises(ModelError, match="gemma3 is gemma3: use template=chat"):
        _model(folders["gemma3"], template="paligemma")
    (response,) = _model(folders["paligemma"]).generate([_request(system="Be brief.")])
    assert response.failure is not None
    assert "no place for a system text" in response.failure.message
