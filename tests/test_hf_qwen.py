"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL as tiny random checkpoints, against transformers' plain calls.

Where the image tokens stand is found here as mllms_know finds it: between the marks around a picture, in
the shape that the image processor gives.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_qwen
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from adapters import hf
from adapters._hf_checkpoint import find, load_processor
from adapters._hf_generic import Generic
from harness.errors import ModelError
from harness.pictures import Memory, Picture
from harness.taps import AttentionCall, Prompt, Tap
from harness.types import Capability, Decoding, ImportanceMap, ReadMap, Request, Response
from methods.sparc import Sparc, SparcSteering
from methods.vicrop import GENERAL_QUESTION, relative_importance

GOLDENS = Path(__file__).parent / "goldens"
BUILDERS = {
    "qwen2": tiny_qwen.qwen2_vl,
    "qwen2_5": tiny_qwen.qwen2_5_vl,
    "qwen3": tiny_qwen.qwen3_vl,
}
NAMES = list(BUILDERS)
KINDS: tuple[Any, ...] = ("attention", "gradient")
SHAPES = [(100, 80), (57, 201), (300, 60), (90, 90)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("qwen")
    return {name: build(root / name) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, hf.Hf]:
    return {name: _model(folder) for name, folder in folders.items()}


def _model(folder: Path, **knobs: Any) -> hf.Hf:
    model = hf.model(str(folder), device="cpu", **{"batch": 8, **knobs})
    assert isinstance(model, hf.Hf)
    return model


def _request(number: int = 0, images: int = 1, **changes: Any) -> Request:
    """Requests differ in length; pictures in shape."""
    pictures = tuple(tiny.photo(number // 2 + k, *SHAPES[(number // 2 + k) % 4]) for k in range(images))
    question = "What is the color of the bus?" + " And the horse?" * (number % 4)
    return dataclasses.replace(Request(pictures, question, decoding=Decoding(max_tokens=8)), **changes)


def _answered(model: hf.Hf, request: Request) -> Response:
    (response,) = model.generate([request])
    assert response.failure is None, response.failure
    return response


def _family(model: hf.Hf) -> Any:
    if model._waves is None:
        model.generate([_request(decoding=Decoding(max_tokens=1))])
    assert model._waves is not None
    return model._waves._family


def _row(model: hf.Hf, request: Request) -> Any:
    _family(model)
    assert model._waves is not None
    return model._waves._row(request)


@functools.cache
def _plain(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForImageTextToText.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    found = find(str(folder), None, trust_remote_code=False)
    return model.eval().requires_grad_(False), load_processor(found, trust_remote_code=False)


def _inputs(folder: Path, request: Request) -> Any:
    """A request through the checkpoint's own processor alone."""
    _, processor = _plain(folder)
    content = [{"type": "image"} for _ in request.images]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": request.text}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [picture.open() for picture in request.images]
    return processor(text=[text], images=images or None, return_tensors="pt")


def _columns(inputs: Any) -> tuple[int, int, tuple[int, int]]:
    """The first picture's tokens (first, behind the last), and the rows and columns they form."""
    ids = inputs["input_ids"][0].tolist()
    first = ids.index(tiny_qwen.SPECIALS.index("<|vision_start|>")) + 1
    end = ids.index(tiny_qwen.SPECIALS.index("<|vision_end|>"))
    _, rows, columns = (inputs["image_grid_thw"][0] // torch.tensor([1, 2, 2])).tolist()
    return first, end, (rows, columns)


def _close(found: ImportanceMap, expected: Any, share: float) -> None:
    """No further off than a share of the largest value."""
    assert found.values.shape == expected.shape
    assert np.abs(found.values - expected).max() <= share * np.abs(expected).max()
    assert np.ptp(expected) > 0.1 * np.abs(expected).max()  # flat maps would prove nothing


# ---------------------------------------------------------------- tokens, pixels, positions, text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [(100, 80)],
        [(57, 201), (300, 60)],
        [(1, 1)],
        [(3000, 40)],
        [(40, 3000)],
        [(50, 3), (3, 50), (90, 90)],
    ],
)
def test_tokens_pixels_and_positions_are_the_official_ones(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str, sizes: list[tuple[int, int]]
) -> None:
    pictures = tuple(tiny.photo(seed, *size) for seed, size in enumerate(sizes))
    request = dataclasses.replace(_request(), images=pictures)
    row, inputs = _row(models[name], request), _inputs(folders[name], request)
    assert list(row.tokens) == inputs["input_ids"][0].tolist()
    family = _family(models[name])
    if pictures:
        mine = [family.pixels(picture) for picture in pictures]
        assert torch.equal(torch.cat([one.values for one in mine]), inputs["pixel_values"])
        assert torch.equal(torch.cat([one.grid for one in mine]), inputs["image_grid_thw"])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    official, _ = _plain(folders[name])[0].model.get_rope_index(
        ids, inputs["mm_token_type_ids"], image_grid_thw=inputs.get("image_grid_thw"), attention_mask=mask
    )
    counted = family.positions([row], ids, mask)
    assert torch.equal(counted[1:], official)
    assert counted[0].tolist() == [list(range(ids.shape[1]))]


def test_pictures_side_by_side_are_counted_one_by_one(folders: dict[str, Path]) -> None:
    """Without marks around them, as in template=plain, which transformers' own count takes for one."""
    model = _model(folders["qwen2_5"], template="plain")
    row = _row(model, _request(0, images=2))
    ids = torch.tensor([row.tokens])
    spans = [_family(model)._grid(picture.size) for picture in row.pictures]
    [counted] = _family(model).positions([row], ids, torch.ones_like(ids))[1:].unbind(dim=1)
    (first, second), end = row.starts, row.starts[1] + spans[1][0] * spans[1][1]
    assert second == first + spans[0][0] * spans[0][1]
    assert counted[:, second].tolist() == [first + max(spans[0])] * 3
    assert counted[:, end].tolist() == [first + max(spans[0]) + max(spans[1])] * 3
    assert _answered(model, _request(0, images=2)).text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [0, 1, 2])
def test_greedy_text_is_what_transformers_generates(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str, images: int
) -> None:
    model, processor = _plain(folders[name])
    for number in (0, 2):
        request = _request(number, images)
        inputs = _inputs(folders[name], request)
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        response = _answered(models[name], request)
        assert response.text == processor.tokenizer.decode(out, skip_special_tokens=True)
        assert response.usage.tokens_in == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_too_narrow_for_the_processor_fails_alone(models: dict[str, hf.Hf], name: str) -> None:
    narrow = dataclasses.replace(_request(), images=(tiny.photo(1, 402, 2),))
    failed, fine = models[name].generate([narrow, _request(1)])
    assert failed.failure is not None
    assert failed.failure.kind == "shape"
    assert "402 x 2 pixels" in failed.failure.message
    assert fine.text == _answered(models[name], _request(1)).text


def test_max_pixels_lowers_the_limit_and_is_part_of_the_identity(folders: dict[str, Path]) -> None:
    own, low = _model(folders["qwen2_5"]), _model(folders["qwen2_5"], max_pixels=16 * 28 * 28)
    request = dataclasses.replace(_request(), images=(tiny.photo(1, 640, 480),))
    grids = [_family(model)._grid(request.images[0].size) for model in (own, low)]
    assert grids == [(6, 8), (3, 4)]
    before, after = (_answered(model, request).usage.tokens_in for model in (own, low))
    assert before - after == 48 - 12
    assert own.describe()["image_processor"] == {"size": {"longest_edge": 37632, "shortest_edge": 3136}}
    assert low.describe()["image_processor"]["max_pixels"] == 16 * 28 * 28
    with pytest.raises(ModelError, match="max_pixels=0"):
        _model(folders["qwen2_5"], max_pixels=0)


def test_max_pixels_is_refused_where_pictures_have_one_size(tmp_path: Path) -> None:
    folder = tiny.llava(tmp_path / "llava")
    with pytest.raises(ModelError, match=r"max_pixels is for .* llava is llava"):
        _model(folder, max_pixels=1000)


# ---------------------------------------------------------------- maps


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [1, 2])
def test_attention_and_gradient_maps_are_those_of_the_whole_eager_graph(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str, images: int
) -> None:
    model, _ = _plain(folders[name])
    layers: list[Any] = [1, 2, "all"]
    probes = tuple(ReadMap(layer, kind=kind) for kind in KINDS for layer in layers)
    for number in (0, 2, 4):
        request = _request(number, images, decoding=Decoding(max_tokens=0), probes=probes)
        inputs = _inputs(folders[name], request)
        with torch.enable_grad():
            inputs["pixel_values"].requires_grad_()
            out = model(**inputs, output_attentions=True)
            best = out.logits[0, -1].log_softmax(dim=-1).max()
            gradients = torch.autograd.grad(best, out.attentions)
        rows = torch.stack([one[0, :, -1] for one in out.attentions]).detach()
        slopes = torch.stack([one[0, :, -1] for one in gradients])
        first, end, shape = _columns(inputs)
        expected = {
            "attention": rows.mean(dim=1)[:, first:end].reshape(-1, *shape).numpy(),
            "gradient": (rows * slopes.clamp(min=0)).mean(dim=1)[:, first:end].reshape(-1, *shape).numpy(),
        }
        for probe, found in zip(probes, _answered(models[name], request).maps, strict=True):
            of_layers = expected[probe.kind]
            wanted = of_layers.mean(axis=0) if isinstance(probe.layer, str) else of_layers[probe.layer or 0]
            assert found.rectangle == (0.0, 0.0, *request.images[0].size)
            _close(found, wanted, 1e-5 if probe.kind == "attention" else 1e-4)


def test_relative_attention_is_the_references(folders: dict[str, Path]) -> None:
    """mllms_know: qwen2_5_methods.py, run on these weights; its picture limit is a knob here."""
    golden = np.load(GOLDENS / "vicrop_qwen.npz")
    assert "a64c5d5" in str(golden["source"])
    model = _model(folders["qwen2_5"], max_pixels=40 * 28 * 28)
    suffix = " Answer the question using a single word or phrase."
    asked = (
        ("What is the color of the bus?", (336, 224)),
        ("What does the sign read?", (140, 420)),
        ("one", (112, 112)),
    )
    looks = [
        Request((tiny.photo(n, *size),), words, suffix, decoding=Decoding(0), probes=(ReadMap(1), ReadMap(2)))
        for n, (question, size) in enumerate(asked)
        for words in (question, GENERAL_QUESTION)
    ]
    responses = model.generate(looks)
    for n in range(3):
        for specific, general, layer in zip(
            responses[2 * n].maps, responses[2 * n + 1].maps, (1, 2), strict=True
        ):
            found = relative_importance(specific.values, general.values)
            np.testing.assert_allclose(found, golden[f"map_{n}_layer_{layer}"], rtol=2e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SHAPES)
def test_the_pixel_gradient_is_autograds_on_the_official_pixels(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str, size: tuple[int, int]
) -> None:
    model, processor = _plain(folders[name])
    request = dataclasses.replace(
        _request(), images=(tiny.photo(7, *size),), probes=(ReadMap(kind="pixels"),), decoding=Decoding(0)
    )
    inputs = _inputs(folders[name], request)
    patch = processor.image_processor.patch_size
    _, down, across = inputs["image_grid_thw"][0].tolist()
    numbers = _cut(torch.arange(3 * down * across * patch**2).reshape(3, down * patch, across * patch), patch)
    with torch.enable_grad():  # as a function of the resized picture: each value is used in two frames
        values = torch.zeros(numbers.max() + 1)
        values[numbers.flatten()] = inputs["pixel_values"].flatten()
        values.requires_grad_()
        best = model(**{**inputs, "pixel_values": values[numbers]}).logits[0, -1].log_softmax(dim=-1).max()
        (gradient,) = torch.autograd.grad(best, [values])
    (found,) = _answered(models[name], request).maps
    assert found.rectangle == (0.0, 0.0, *size)
    _close(found, gradient.reshape(3, down * patch, across * patch).norm(dim=0).numpy(), 1e-4)


def _cut(picture: torch.Tensor, patch: int) -> torch.Tensor:
    """(patches, values): 2 x 2 patches of a token after each other, every patch as two equal frames."""
    tokens = [
        picture[:, y : y + 2 * patch, x : x + 2 * patch]
        for y in range(0, picture.shape[1], 2 * patch)
        for x in range(0, picture.shape[2], 2 * patch)
    ]
    patches = [
        token[:, y : y + patch, x : x + patch] for token in tokens for y in (0, patch) for x in (0, patch)
    ]
    return torch.stack([torch.stack([one, one], dim=1).flatten() for one in patches])


# ---------------------------------------------------------------- batches


def _mixed() -> list[Request]:
    """Unequal prompts and pictures; answers, options and maps of every kind."""
    requests = [_request(number, images=number % 3) for number in range(8)]
    sampled = Decoding(max_tokens=8, temperature=0.8, top_p=0.9, seed=3)
    requests[0], requests[3] = (dataclasses.replace(requests[n], decoding=sampled) for n in (0, 3))
    requests[1] = dataclasses.replace(requests[1], probes=(ReadMap(1), ReadMap("all")))
    requests[2] = dataclasses.replace(requests[2], options=("yes", "a red car", "no"))
    requests[4] = dataclasses.replace(requests[4], probes=(ReadMap(2, kind="gradient"), ReadMap(2)))
    requests[5] = dataclasses.replace(requests[5], probes=(ReadMap(1),), options=("two dogs", "yes"))
    requests[6] = dataclasses.replace(requests[6], options=("yes", "no"))
    requests[7] = dataclasses.replace(requests[7], probes=(ReadMap(kind="pixels"), ReadMap(3)))
    return requests


def _same(one: Response, other: Response) -> None:
    assert one.failure is None
    assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
    assert one.usage.tokens_in == other.usage.tokens_in
    np.testing.assert_allclose(one.option_nll, other.option_nll, rtol=1e-4)
    for mine, its in zip(one.maps, other.maps, strict=True):
        assert mine.rectangle == its.rectangle
        _close(mine, its.values, 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_eight_unequal_requests_at_once_are_eight_singles(models: dict[str, hf.Hf], name: str) -> None:
    requests = _mixed()
    many = models[name].generate(requests)
    assert len({response.text for response in many}) > 4
    for request, response in zip(requests, many, strict=True):
        _same(response, _answered(models[name], request))


@pytest.mark.parametrize("name", NAMES)
def test_rows_through_the_processor_alone_give_the_same_answers(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str
) -> None:
    """As for a kernel that takes whole rows: the model then counts positions by itself."""
    whole = _model(folders[name], attn="sdpa")
    family = _family(whole)
    assert whole._waves is not None
    whole._waves._family = Generic(family.weights, family.processor, family.context)
    requests = [dataclasses.replace(request, probes=()) for request in _mixed()]
    for one, other in zip(whole.generate(requests), models[name].generate(requests), strict=True):
        _same(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_share_a_beginning_are_what_each_is_alone(models: dict[str, hf.Hf], name: str) -> None:
    """Of one picture and of two, so that the second one's positions go on from the first one's."""
    first, second = tiny.photo(1, 200, 60), tiny.photo(2, 60, 150)
    requests = [
        dataclasses.replace(_request(number), images=(first, second)[: 1 + number % 2]) for number in range(6)
    ]
    requests[3] = dataclasses.replace(requests[3], options=("yes", "a red car"))
    requests[4] = dataclasses.replace(requests[4], probes=(ReadMap(2),))
    for request, response in zip(requests, models[name].generate(requests), strict=True):
        _same(response, _answered(models[name], request))


@pytest.mark.parametrize("name", NAMES)
def test_sparc_steers_eight_at_once_as_it_steers_one(models: dict[str, hf.Hf], name: str) -> None:
    model = models[name]
    method = Sparc(model, alpha=1.5, tau=0.05, layer=2)
    requests = [_request(number, images=1 + number % 2) for number in range(8)]
    many = method.generate(requests)
    singles = [method.generate([request])[0] for request in requests]
    assert [one.text for one in many] == [one.text for one in singles]
    assert [one.trace for one in many] == [one.trace for one in singles]
    assert [one.text for one in many] != [one.text for one in model.generate(requests)]


@pytest.mark.parametrize("name", NAMES)
def test_a_beginning_that_was_kept_changes_no_answer(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str
) -> None:
    looks = [_request(n, probes=(ReadMap(2, keep=True),), decoding=Decoding(0)) for n in range(4)]
    answers = [dataclasses.replace(_request(n, images=2), instruction=" Why?") for n in range(4)]
    keeper = _model(folders[name])
    keeper.generate(looks)
    assert len(_family(keeper)._beginnings._kept) == 2  # of four requests over two pictures
    for response, request in zip(keeper.generate(answers), answers, strict=True):
        _same(response, _answered(models[name], request))


# ---------------------------------------------------------------- where a cell is in the picture


def _drawn(size: tuple[int, int], square: tuple[float, ...] | None = None) -> Picture:
    """A grey picture, or one with a white square."""
    image = Image.new("RGB", size, (90, 90, 90))
    if square is not None:
        image.paste((255, 255, 255), tuple(map(round, square)))
    data = io.BytesIO()
    image.save(data, "PNG")
    return Picture(Memory(data.getvalue(), "square.png"))


def _embedded(model: hf.Hf, pictures: Sequence[Picture]) -> tuple[torch.Tensor, Any]:
    """What the decoder is given for a prompt with pictures, (L, features), and the prompt's row.

    That is each token's embedding, and what Qwen3-VL adds to its later layers.
    """
    request = dataclasses.replace(_request(), images=tuple(pictures), decoding=Decoding(max_tokens=1))
    row, seen = _row(model, request), []
    assert model._waves is not None

    def see(_: Any, __: Any, named: Any) -> None:
        whole = named["inputs_embeds"][0]
        for layer in named.get("deepstack_visual_embeds") or []:
            deep = torch.zeros(len(whole), layer.shape[1])
            deep[named["visual_pos_masks"][0]] = layer
            whole = torch.cat([whole, deep], dim=1)
        seen.append(whole)

    decoder = model._waves._weights.model.language_model
    hook = decoder.register_forward_pre_hook(see, with_kwargs=True)
    _answered(model, request)
    hook.remove()
    return seen[0], row


@pytest.fixture(scope="module")
def apart(folders: dict[str, Path]) -> dict[str, hf.Hf]:
    """The same models, but no patch attends to another: a token shows its own pixels alone."""
    models = {name: _model(folder) for name, folder in folders.items()}
    for model in models.values():
        for path, weights in _family(model).weights.named_parameters():
            if "visual" in path and "attn.proj" in path:
                weights.zero_()
    return models


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [*SHAPES, (640, 480)])
@pytest.mark.parametrize("which", [0, 1])
def test_a_bright_square_moves_the_token_whose_rectangle_holds_it(
    apart: dict[str, hf.Hf], name: str, size: tuple[int, int], which: int
) -> None:
    model = apart[name]
    sizes = [(80, 100), (80, 100)]
    sizes[which] = size
    blank, row = _embedded(model, [_drawn(each) for each in sizes])
    [view] = _family(model).span(size).views
    rows, columns = view.cells.shape
    width, height = size[0] / columns, size[1] / rows
    for down, across in ((0, 0), (rows // 2, columns - 1), (rows - 1, columns // 3)):
        square = (
            (across + 0.3) * width,
            (down + 0.3) * height,
            (across + 0.7) * width,
            (down + 0.7) * height,
        )
        pictures = [_drawn(each) for each in sizes]
        pictures[which] = _drawn(size, square)
        energy = (_embedded(model, pictures)[0] - blank).norm(dim=1).numpy()
        here = row.starts[which] + view.cells
        assert energy[here[down, across]] > 0.8 * energy.sum() > 0
        energy[here] = 0
        assert energy.max() == 0  # no other token moves


# ---------------------------------------------------------------- nothing is left behind


@dataclasses.dataclass(frozen=True)
class _Faulty(SparcSteering):
    """Steering that fails in the middle of a forward."""

    def tap(self, prompt: Prompt) -> Any:
        class Broken(Tap):
            def before(self, call: AttentionCall) -> None:
                if call.layer == 2:
                    raise ValueError("broken")

        return Broken()


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_the_same_after_probes_and_after_a_tap_that_failed(
    models: dict[str, hf.Hf], name: str
) -> None:
    model = models[name]
    requests = [_request(number, images=number % 3) for number in range(6)]
    requests[5] = dataclasses.replace(requests[5], options=("yes", "no"))
    before = [(one.text, one.option_nll) for one in model.generate(requests)]
    model.generate(_mixed())
    faulty = _Faulty(1.1, 0.1, 1.5, None, None, "relative", 0, False)
    with pytest.raises(ValueError, match="broken"):
        model.generate([_request(3, probes=(faulty,))])
    assert [(one.text, one.option_nll) for one in model.generate(requests)] == before


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_beyond_the_context_fails_alone(models: dict[str, hf.Hf], name: str) -> None:
    long = dataclasses.replace(_request(probes=(ReadMap(1),)), question="What is this? " * 1000)
    failed, fine = models[name].generate([long, _request(1)])
    assert failed.failure is not None
    assert failed.failure.kind == "too_long"
    assert fine.text == _answered(models[name], _request(1)).text


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_offered(models: dict[str, hf.Hf], name: str) -> None:
    assert models[name].offers == set(Capability)
