"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL as tiny random checkpoints, against transformers' plain calls.

Where the image tokens stand is found here as mllms_know finds it: between the marks around a picture, in
the shape that the image processor gives.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_qwen
import torch
from whitebox import (
    SHAPES,
    answered,
    ask,
    close,
    drawn,
    eager_rows,
    embedded,
    greedy,
    inputs_of,
    mixed,
    model_of,
    plain,
    row_of,
    same,
    set_apart,
    waves,
)

from adapters import hf
from adapters._hf_generic import Generic
from harness.errors import ModelError
from harness.types import Decoding, ReadMap, Request
from methods.vicrop import GENERAL_QUESTION, relative_importance

GOLDENS = Path(__file__).parent / "goldens"
BUILDERS = {
    "qwen2": tiny_qwen.qwen2_vl,
    "qwen2_5": tiny_qwen.qwen2_5_vl,
    "qwen3": tiny_qwen.qwen3_vl,
}
NAMES = list(BUILDERS)
KINDS: tuple[Any, ...] = ("attention", "gradient")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("qwen")
    return {name: build(root / name) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, hf.Hf]:
    return {name: model_of(folder) for name, folder in folders.items()}


def _columns(inputs: Any) -> tuple[int, int, tuple[int, int]]:
    """The first picture's tokens (first, behind the last), and the rows and columns they form."""
    ids = inputs["input_ids"][0].tolist()
    first = ids.index(tiny_qwen.SPECIALS.index("<|vision_start|>")) + 1
    end = ids.index(tiny_qwen.SPECIALS.index("<|vision_end|>"))
    _, rows, columns = (inputs["image_grid_thw"][0] // torch.tensor([1, 2, 2])).tolist()
    return first, end, (rows, columns)


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
    request = dataclasses.replace(ask(), images=pictures)
    row, inputs = row_of(models[name], request), inputs_of(folders[name], request)
    assert list(row.tokens) == inputs["input_ids"][0].tolist()
    family = waves(models[name])._family
    if pictures:
        mine = [family.pixels(picture) for picture in pictures]
        assert torch.equal(torch.cat([one.values for one in mine]), inputs["pixel_values"])
        assert torch.equal(torch.cat([one.grid for one in mine]), inputs["image_grid_thw"])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    official, _ = plain(folders[name])[0].model.get_rope_index(
        ids, inputs["mm_token_type_ids"], image_grid_thw=inputs.get("image_grid_thw"), attention_mask=mask
    )
    counted = family.positions([row], ids, mask)
    assert torch.equal(counted[1:], official)
    assert counted[0].tolist() == [list(range(ids.shape[1]))]


def test_pictures_side_by_side_are_counted_one_by_one(folders: dict[str, Path]) -> None:
    """Without marks around them, as in template=plain, which transformers' own count takes for one."""
    model = model_of(folders["qwen2_5"], template="plain")
    row = row_of(model, ask(0, images=2))
    ids = torch.tensor([row.tokens])
    spans = [waves(model)._family._grid(picture.size) for picture in row.pictures]
    [counted] = waves(model)._family.positions([row], ids, torch.ones_like(ids))[1:].unbind(dim=1)
    (first, second), end = row.starts, row.starts[1] + spans[1][0] * spans[1][1]
    assert second == first + spans[0][0] * spans[0][1]
    assert counted[:, second].tolist() == [first + max(spans[0])] * 3
    assert counted[:, end].tolist() == [first + max(spans[0]) + max(spans[1])] * 3
    assert answered(model, ask(0, images=2)).text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [0, 1, 2])
def test_greedy_text_is_what_transformers_generates(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str, images: int
) -> None:
    model, processor = plain(folders[name])
    for number in (0, 2):
        request = ask(number, images)
        inputs = inputs_of(folders[name], request)
        response = answered(models[name], request)
        assert response.text == greedy(model, processor, inputs)
        assert response.usage.tokens_in == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_too_narrow_for_the_processor_fails_alone(models: dict[str, hf.Hf], name: str) -> None:
    narrow = dataclasses.replace(ask(), images=(tiny.photo(1, 402, 2),))
    failed, fine = models[name].generate([narrow, ask(1)])
    assert failed.failure is not None
    assert failed.failure.kind == "shape"
    assert "402 x 2 pixels" in failed.failure.message
    assert fine.text == answered(models[name], ask(1)).text


def test_max_pixels_lowers_the_limit_and_is_part_of_the_identity(folders: dict[str, Path]) -> None:
    own, low = model_of(folders["qwen2_5"]), model_of(folders["qwen2_5"], max_pixels=16 * 28 * 28)
    request = dataclasses.replace(ask(), images=(tiny.photo(1, 640, 480),))
    grids = [waves(model)._family._grid(request.images[0].size) for model in (own, low)]
    assert grids == [(6, 8), (3, 4)]
    before, after = (answered(model, request).usage.tokens_in for model in (own, low))
    assert before - after == 48 - 12
    assert own.describe()["image_processor"] == {"size": {"longest_edge": 37632, "shortest_edge": 3136}}
    assert low.describe()["image_processor"]["max_pixels"] == 16 * 28 * 28
    with pytest.raises(ModelError, match="max_pixels=0"):
        model_of(folders["qwen2_5"], max_pixels=0)


def test_max_pixels_is_refused_where_pictures_have_one_size(tmp_path: Path) -> None:
    folder = tiny.llava(tmp_path / "llava")
    with pytest.raises(ModelError, match=r"max_pixels is for .* llava is llava"):
        model_of(folder, max_pixels=1000)


# ---------------------------------------------------------------- maps


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [1, 2])
def test_attention_and_gradient_maps_are_those_of_the_whole_eager_graph(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str, images: int
) -> None:
    model, _ = plain(folders[name])
    layers: list[Any] = [1, 2, "all"]
    probes = tuple(ReadMap(layer, kind=kind) for kind in KINDS for layer in layers)
    for number in (0, 2, 4):
        request = ask(number, images, decoding=Decoding(max_tokens=0), probes=probes)
        inputs = inputs_of(folders[name], request)
        first, end, shape = _columns(inputs)
        expected = {
            kind: rows[:, first:end].reshape(-1, *shape)
            for kind, rows in zip(KINDS, eager_rows(model, inputs), strict=True)
        }
        for probe, found in zip(probes, answered(models[name], request).maps, strict=True):
            of_layers = expected[probe.kind]
            wanted = of_layers.mean(axis=0) if isinstance(probe.layer, str) else of_layers[probe.layer or 0]
            assert found.rectangle == (0.0, 0.0, *request.images[0].size)
            close(found, wanted, 1e-5 if probe.kind == "attention" else 1e-4)


def test_relative_attention_is_the_references(folders: dict[str, Path]) -> None:
    """mllms_know: qwen2_5_methods.py, run on these weights; its picture limit is a knob here."""
    golden = np.load(GOLDENS / "vicrop_qwen.npz")
    assert "a64c5d5" in str(golden["source"])
    model = model_of(folders["qwen2_5"], max_pixels=40 * 28 * 28)
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
    model, processor = plain(folders[name])
    request = dataclasses.replace(
        ask(), images=(tiny.photo(7, *size),), probes=(ReadMap(kind="pixels"),), decoding=Decoding(0)
    )
    inputs = inputs_of(folders[name], request)
    patch = processor.image_processor.patch_size
    _, down, across = inputs["image_grid_thw"][0].tolist()
    numbers = _cut(torch.arange(3 * down * across * patch**2).reshape(3, down * patch, across * patch), patch)
    with torch.enable_grad():  # as a function of the resized picture: each value is used in two frames
        values = torch.zeros(numbers.max() + 1)
        values[numbers.flatten()] = inputs["pixel_values"].flatten()
        values.requires_grad_()
        best = model(**{**inputs, "pixel_values": values[numbers]}).logits[0, -1].log_softmax(dim=-1).max()
        (gradient,) = torch.autograd.grad(best, [values])
    (found,) = answered(models[name], request).maps
    assert found.rectangle == (0.0, 0.0, *size)
    close(found, gradient.reshape(3, down * patch, across * patch).norm(dim=0).numpy(), 1e-4)


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


@pytest.mark.parametrize("name", NAMES)
def test_rows_through_the_processor_alone_give_the_same_answers(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str
) -> None:
    """As for a kernel that takes whole rows: the model then counts positions by itself."""
    whole = model_of(folders[name], attn="sdpa")
    family = waves(whole)._family
    waves(whole)._family = Generic(family.weights, family.processor, family.context)
    requests = [dataclasses.replace(request, probes=()) for request in mixed()]
    for one, other in zip(whole.generate(requests), models[name].generate(requests), strict=True):
        same(one, other)


# ---------------------------------------------------------------- where a cell is in the picture


@pytest.fixture(scope="module")
def apart(folders: dict[str, Path]) -> dict[str, hf.Hf]:
    return {name: set_apart(folder, "visual", "attn.proj") for name, folder in folders.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [*SHAPES, (640, 480)])
@pytest.mark.parametrize("which", [0, 1])
def test_a_bright_square_moves_the_token_whose_rectangle_holds_it(
    apart: dict[str, hf.Hf], name: str, size: tuple[int, int], which: int
) -> None:
    model = apart[name]
    sizes = [(80, 100), (80, 100)]
    sizes[which] = size
    blank, row = embedded(model, [drawn(each) for each in sizes])
    [view] = waves(model)._family.span(size).views
    rows, columns = view.cells.shape
    width, height = size[0] / columns, size[1] / rows
    for down, across in ((0, 0), (rows // 2, columns - 1), (rows - 1, columns // 3)):
        square = (
            (across + 0.3) * width,
            (down + 0.3) * height,
            (across + 0.7) * width,
            (down + 0.7) * height,
        )
        pictures = [drawn(each) for each in sizes]
        pictures[which] = drawn(size, square)
        energy = (embedded(model, pictures)[0] - blank).norm(dim=1).numpy()
        here = row.starts[which] + view.cells
        assert energy[here[down, across]] > 0.8 * energy.sum() > 0
        energy[here] = 0
        assert energy.max() == 0  # no other token moves


# ---------------------------------------------------------------- nothing is left behind
