"""SPARC against its official file's runs (commit bad02ff) and its rules, on tiny decoders."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from adapters import hf
from adapters._hf_layout import Layout
from adapters.scripted import Scripted
from harness import taps
from harness.errors import CapabilityError, SpecError
from harness.types import Capability, Decoding, ReadMap, Request, Response
from methods.center_crop import CenterCrop
from methods.sparc import Sparc, SparcSteering
from methods.vicrop import Vicrop

OFFICIAL = Path(__file__).parents[2] / "shared" / "goldens" / "sparc"
LOUD: dict[str, Any] = {"alpha": 1.5, "tau": 0.05, "layer": 2}
"""Settings under which a tiny decoder's words change."""


def _steering(**changes: Any) -> SparcSteering:
    plain = SparcSteering(1.1, 0.1, 1.5, None, None, "relative", 0, False)
    return dataclasses.replace(plain, **changes)


# ---------------------------------------------------------------- the official runs


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official runs are not beside this checkout")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("prefill", ["causal", "bidirectional"])
def test_tokens_and_selections_are_the_official_files_over_96_tokens(
    prefill: str, dtype: torch.dtype
) -> None:
    """Texts in both precisions. Selections are counted in double: the official file ran in float32, but one
    ratio of its 48 runs lies one rounding from tau, and float32 meets it or not as the processor rounds."""
    taps.register()
    model = LlavaForConditionalGeneration.from_pretrained(
        OFFICIAL / "checkpoint",
        attn_implementation={"text_config": taps.KERNEL, "vision_config": "sdpa"},
        dtype=dtype,
    ).eval()
    inputs = load_file(OFFICIAL / "inputs.safetensors")
    runs = json.loads((OFFICIAL / "official.json").read_text())["runs"]
    for run in runs:
        if run["prefill"] != prefill:
            continue
        ids = inputs[f"{run['image']}.input_ids"]
        mask = torch.ones_like(ids)
        steered = []
        if run["settings"] is not None:
            how = dict(run["settings"])
            how |= {"layer": how.pop("sel"), "layers": tuple(how["layers"])}
            steering = _steering(whole_prompt=prefill == "bidirectional", **how)
            steered = [steering.tap(taps.Prompt(ids == model.config.image_token_id, mask, 8))]
        with torch.no_grad(), taps.active(*steered):
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                pixel_values=inputs[f"{run['image']}.pixel_values"].to(dtype),
                do_sample=False,
                max_new_tokens=96,
                min_new_tokens=96,
            )
        assert out[0, ids.shape[1] :].tolist() == run["tokens"], run["settings"]
        for tap in steered if dtype == torch.float64 else []:
            assert tap.trace(0, 96)["selected_per_step"] == run["selected_per_step"]


# ---------------------------------------------------------------- through the adapter


@pytest.fixture(scope="module", params=[4, 2], ids=["every-head-its-key", "grouped-queries"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> hf.Hf:
    folder = tiny.llava(tmp_path_factory.mktemp("sparc") / "tiny", side=112, kv_heads=request.param)
    made = hf.model(str(folder), device="cpu", batch=8)
    assert isinstance(made, hf.Hf)
    return made


def _request(number: int = 0, **changes: Any) -> Request:
    """Unequal prompts; pairs share their picture, every fourth has two."""
    pictures = tuple(tiny.photo(number // 2 + 10 * k, 100, 80) for k in range(2 if number % 4 == 3 else 1))
    question = "Please describe this image." + " And the horse?" * number
    return dataclasses.replace(
        Request(pictures, question, decoding=Decoding(max_tokens=8 + number)), **changes
    )


def _texts(responses: list[Response]) -> list[str]:
    assert [response.failure for response in responses] == [None] * len(responses)
    return [response.text for response in responses]


@pytest.mark.parametrize("fidelity", ["fixed", "released"])
@pytest.mark.parametrize("select", ["relative", "random", "all"])
def test_eight_unequal_requests_at_once_are_eight_singles(model: hf.Hf, select: Any, fidelity: Any) -> None:
    method = Sparc(model, select=select, fidelity=fidelity, **LOUD)
    requests = [_request(number) for number in range(8)]
    many = method.generate(requests)
    singles = [method.generate([request])[0] for request in requests]
    assert _texts(many) == _texts(singles)
    assert [response.trace for response in many] == [response.trace for response in singles]
    assert _texts(many) != _texts(model.generate(requests))


def test_the_words_before_and_after_are_the_same_bit_for_bit(model: hf.Hf) -> None:
    requests = [_request(number) for number in range(4)]
    before = _texts(model.generate(requests))
    Sparc(model, **LOUD).generate(requests)
    assert _texts(model.generate(requests)) == before


@pytest.mark.parametrize("knobs", [{"alpha": 1.0, "tau": 0.0}, {"tau": float("inf")}])
def test_a_gain_of_one_and_a_threshold_beyond_reach_change_nothing(model: hf.Hf, knobs: Any) -> None:
    requests = [_request(number) for number in range(4)]
    assert _texts(Sparc(model, **knobs).generate(requests)) == _texts(model.generate(requests))


def test_the_trace_says_which_image_tokens_each_step_selected(model: hf.Hf) -> None:
    (response,) = Sparc(model, **LOUD).generate([_request()])
    selected, counts = response.trace["selected"], response.trace["selected_per_step"]
    assert isinstance(selected, list)
    assert [len(step) for step in selected] == counts
    assert len(selected) == response.usage.forward_passes - 1
    assert max(token for step in selected for token in step) < 64
    assert (response.trace["layer"], response.trace["tau"]) == (2, 0.05)


def test_random_selects_as_many_elsewhere_and_all_selects_all(model: hf.Hf) -> None:
    (every,) = Sparc(model, select="all", **LOUD).generate([_request()])
    assert set(every.trace["selected_per_step"]) == {64}
    (relative,) = Sparc(model, **{**LOUD, "alpha": 1.0}).generate([_request()])
    (drawn,) = Sparc(model, select="random", **{**LOUD, "alpha": 1.0}).generate([_request()])
    assert drawn.trace["selected_per_step"] == relative.trace["selected_per_step"]
    assert drawn.trace["selected"] != relative.trace["selected"]


def test_a_failure_while_steering_leaves_the_model_usable(model: hf.Hf) -> None:
    before = _texts(model.generate([_request()]))
    with pytest.raises(CapabilityError, match="sparc:layer asks for layer 9; this decoder has layers 0 to 3"):
        Sparc(model, layer=9).generate([_request()])
    assert _texts(model.generate([_request()])) == before


def test_a_last_layer_that_does_not_exist_is_refused(model: hf.Hf) -> None:
    with pytest.raises(CapabilityError, match="sparc:layers asks for layer 9"):
        Sparc(model, layers="2-9", layer=2).generate([_request()])


def test_a_gain_beyond_all_numbers_is_a_failure_that_names_the_token(model: hf.Hf) -> None:
    alone, other = Sparc(model, alpha=1e30, tau=-9.0, layer=2, select="all"), _request(2, images=())
    lost, kept = alone.generate([_request(0), other])
    assert lost.failure is not None and lost.failure.kind == "not_finite" and not lost.failure.retry
    assert re.match(r"the scores of token 4 are no numbers in float32: steer less", lost.failure.message)
    assert kept.failure is None and kept.text == model.generate([other])[0].text


def test_a_failure_in_the_middle_of_a_generation_leaves_no_trace(model: hf.Hf) -> None:
    class Breaks(taps.Tap):
        calls = 0

        def before(self, call: taps.AttentionCall) -> None:
            self.calls += 1
            call.value[:] = 0
            if self.calls == 10:  # the third token's
                raise ValueError("broken")

    @dataclasses.dataclass(frozen=True)
    class Breaking:
        needs = Capability.STEERING
        whole_prompt: bool = False

        def tap(self, prompt: taps.Prompt) -> taps.Tap:
            return Breaks()

    pair = [_request(0), _request(1)]  # one picture, whose beginning they share
    before = _texts(model.generate(pair))
    with pytest.raises(ValueError, match="broken"):
        model.generate([dataclasses.replace(request, probes=(Breaking(),)) for request in pair])
    assert _texts(model.generate(pair)) == before


def test_a_map_is_the_models_own_and_vicrop_composes(model: hf.Hf) -> None:
    look = _request(probes=(ReadMap(1),), decoding=Decoding(max_tokens=0))
    ours, plain = Sparc(model, **LOUD).generate([look])[0], model.generate([look])[0]
    assert (ours.maps[0].values == plain.maps[0].values).all()
    (answer,) = Vicrop(Sparc(model, **LOUD), base=30).generate([_request()])
    assert answer.trace["method"] == "vicrop"
    assert answer.trace["inner"]["method"] == "sparc"  # type: ignore[index, call-overload]


def test_a_request_without_a_picture_goes_on_as_it_came(model: hf.Hf) -> None:
    bare = _request(images=())
    (response,) = Sparc(model, **LOUD).generate([bare])
    assert response.text == model.generate([bare])[0].text
    assert response.trace["skipped"] == "no image"


# ---------------------------------------------------------------- the cache


def _inputs(model: hf.Hf, rows: int) -> tuple[Any, Any, taps.Prompt]:
    model.generate([_request()])
    assert model._waves is not None
    family = model._waves._family
    made = family.prepare([model._waves._row(_request(number)) for number in range(0, 2 * rows, 2)])
    return model._waves._weights, made, taps.Prompt(family.image_tokens(made), made.mask, 4)


@pytest.mark.parametrize("whole_prompt", [False, True])
def test_a_static_cache_gives_the_dynamic_ones_words(model: hf.Hf, whole_prompt: bool) -> None:
    weights, made, prompt = _inputs(model, 3)
    found = []
    for cache in ("dynamic", "static"):
        tap = _steering(alpha=1.5, tau=0.05, layer=2, whole_prompt=whole_prompt).tap(prompt)
        with torch.no_grad(), taps.active(tap):
            out = weights.generate(**made.whole(), cache_implementation=cache, max_new_tokens=8)
        found.append((out.tolist(), [tap.trace(row, 8) for row in range(3)]))
    assert found[0] == found[1]


class _ScaledCache(taps.Tap):
    """The release's way: what a step before selected is multiplied in the cache, in place, for good."""

    def __init__(self, alpha: float, layers: tuple[int, int], columns: Any, steps: list[list[int]]) -> None:
        self._alpha, self._layers, self._columns, self._steps = alpha, layers, columns, steps
        self._step = -1

    def before(self, call: taps.AttentionCall) -> None:
        self._step += call.layer == 0
        if self._step >= 2 and self._layers[0] <= call.layer <= self._layers[1]:
            call.value[:, :, self._columns[self._steps[self._step - 2]]] *= self._alpha


@pytest.mark.parametrize("layers", [(0, 3), (0, 0), (2, 3)])
def test_gains_are_what_scaling_the_cached_values_would_be(model: hf.Hf, layers: tuple[int, int]) -> None:
    weights, made, prompt = _inputs(model, 1)

    def logits(tap: taps.Tap) -> torch.Tensor:
        with torch.no_grad(), taps.active(tap):
            out = weights.generate(
                **made.whole(),
                max_new_tokens=8,
                min_new_tokens=8,
                return_dict_in_generate=True,
                output_logits=True,
            )
        return torch.stack(out.logits)

    tap = _steering(alpha=1.5, tau=0.02, layer=1, layers=layers).tap(prompt)
    found = logits(tap)
    steps = tap.trace(0, 8)["selected"]
    assert sum(map(len, steps)) > 8
    columns = prompt.image[0].nonzero().flatten()
    torch.testing.assert_close(found, logits(_ScaledCache(1.5, layers, columns, steps)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("whole_prompt", [False, True])
def test_where_sdpa_weighs_the_words_are_the_same(
    model: hf.Hf, whole_prompt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the gains multiply the values that SDPA sees."""
    weights, made, prompt = _inputs(model, 3)
    found = []
    for small in (taps._small, lambda query: False):
        monkeypatch.setattr(taps, "_small", small)
        tap = _steering(alpha=1.5, tau=0.05, layer=2, whole_prompt=whole_prompt).tap(prompt)
        with torch.no_grad(), taps.active(tap):
            out = weights.generate(**made.whole(), max_new_tokens=8)
        found.append((out.tolist(), [tap.trace(row, 8) for row in range(3)]))
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("knobs", [{"alpha": 1.0, "tau": 0.0}, {"alpha": 1.5, "tau": float("inf")}])
def test_the_logits_of_no_gain_are_the_plain_ones_bit_for_bit(
    model: hf.Hf, dtype: torch.dtype, knobs: dict[str, float]
) -> None:
    _, made, prompt = _inputs(model, 3)
    weights = LlavaForConditionalGeneration.from_pretrained(
        model.checkpoint.folder, attn_implementation=Layout.attention, dtype=dtype
    ).eval()
    inputs = made.whole()
    pictures = inputs["mm_encoder_outputs"]["image"]
    pictures.pooler_output = [one.to(dtype) for one in pictures.pooler_output]
    logits = []
    for steered in ([], [_steering(layer=2, **knobs).tap(prompt)]):
        with torch.no_grad(), taps.active(*steered):
            out = weights.generate(
                **inputs, max_new_tokens=8, return_dict_in_generate=True, output_logits=True
            )
        logits.append(torch.stack(out.logits))
    assert torch.equal(*logits)


def test_the_beginnings_that_rows_share_are_not_scaled(model: hf.Hf) -> None:
    """Two questions about one picture fork one beginning; steering one leaves it as it was."""
    requests = [_request(0), _request(1)]
    method = Sparc(model, **LOUD)
    together = _texts(method.generate(requests))
    assert together == [_texts(method.generate([request]))[0] for request in requests]


@pytest.mark.parametrize(
    ("decoding", "says"),
    [({"num_beams": 2}, "cannot steer beams"), ({"prompt_lookup_num_tokens": 3}, "assisted decoding")],
)
def test_beams_and_assisted_decoding_are_refused_by_name(model: hf.Hf, decoding: Any, says: str) -> None:
    """Words alone: what stands for image tokens does not matter to who may be steered."""
    weights, _, _ = _inputs(model, 1)
    ids = torch.arange(20, 30).repeat(4)[None]  # a prompt that repeats itself, so that a look-up guesses
    mask = torch.ones_like(ids)
    tap = _steering(layer=2).tap(taps.Prompt(ids < 25, mask, 4))
    with torch.no_grad(), taps.active(tap), pytest.raises(CapabilityError, match=says):
        weights.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, **decoding)


def test_a_cache_that_has_lost_the_prompts_beginning_is_refused_by_name() -> None:
    tap = _steering(layer=1).tap(taps.Prompt(torch.ones(1, 9).bool(), torch.ones(1, 9), 4))
    short = torch.zeros(1, 2, 5, 4)
    with pytest.raises(CapabilityError, match="holds 5 of 9 tokens .a sliding cache"):
        tap.before(taps.AttentionCall(0, short[:, :, -1:], short, short, None, 0.5))


# ---------------------------------------------------------------- knobs and capabilities


def _fake(*offers: Capability, family: str = "llava") -> Any:
    class Fake(Scripted):
        def describe(self) -> dict[str, Any]:
            return {**super().describe(), "family": family}

    return Fake(lambda request: repr(request.probes), offers=frozenset(offers), name="fake")


def test_it_offers_what_its_model_does_less_what_it_cannot_combine() -> None:
    inner = _fake(*Capability)
    assert Sparc(inner).offers == {Capability.ATTENTION, Capability.GRADIENT}
    assert Sparc(inner, fidelity="released").offers == frozenset()


def test_the_threshold_is_the_familys_unless_it_is_given() -> None:
    def asked(**knobs: Any) -> str:
        family = knobs.pop("family", "llava")
        return Sparc(_fake(Capability.STEERING, family=family), **knobs).generate([_request()])[0].text

    assert "tau=1.5" in asked()
    assert "tau=4.0" in asked(family="llava_next")
    assert "tau=1.5" in asked(family="anything")
    assert "tau=0.3" in asked(family="llava_next", tau=0.3)
    assert "whole_prompt=True" in asked(fidelity="released")


def test_every_knob_changes_the_digest_of_what_is_asked() -> None:
    changes = ({"alpha": 2.0}, {"beta": 0.5}, {"tau": 9.0}, {"layer": 3}, {"layers": (1, 2)}, {"seed": 1})
    probes = [_steering(), *(_steering(**change) for change in changes), _steering(whole_prompt=True)]
    assert len({_request(probes=(probe,)).digest() for probe in probes}) == len(probes)


def test_a_model_that_cannot_be_steered_is_refused() -> None:
    with pytest.raises(CapabilityError, match="sparc needs steering; fake offers generate only"):
        Sparc(_fake())
    with pytest.raises(CapabilityError, match="center_crop offers generate only"):
        Sparc(CenterCrop(_fake(Capability.STEERING)))
    with pytest.raises(CapabilityError, match="cannot score options"):
        Sparc(_fake(Capability.STEERING)).generate([_request(options=("yes", "no"))])


@pytest.mark.parametrize(
    "knobs", [{"alpha": 0}, {"beta": 1.5}, {"layer": -1}, {"layers": "5"}, {"layers": "6-2"}]
)
def test_a_knob_that_makes_no_sense_is_refused(knobs: Any) -> None:
    with pytest.raises(SpecError):
        Sparc(_fake(Capability.STEERING), **knobs)
