"""Attention taps against transformers' own eager attention, on tiny decoders with random weights."""

from __future__ import annotations

import contextlib
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import DynamicCache, LlavaForConditionalGeneration, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness import taps

KERNEL = {"text_config": taps.KERNEL, "vision_config": "sdpa"}


@pytest.fixture(scope="module", params=[4, 2], ids=["every-head-its-key", "grouped-queries"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """One checkpoint under the tapped kernel and under eager attention."""
    taps.register()
    folder = tiny.llava(tmp_path_factory.mktemp("taps") / "tiny", kv_heads=request.param)
    return _load(folder, KERNEL), _load(folder, "eager")


def _load(folder: Path, attention: str | dict[str, str]) -> Any:
    return LlavaForConditionalGeneration.from_pretrained(
        folder, attn_implementation=attention, dtype=torch.float32
    ).eval()


def _batch(rows: int = 3, length: int = 20) -> dict[str, torch.Tensor]:
    """Rows of 20, 17 and 14 tokens, padded on the left."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 300, (rows, length), generator=draw)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, : 3 * row] = 0
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


@torch.no_grad()
def _eager_rows(model: Any, batch: dict[str, torch.Tensor], layer: int) -> torch.Tensor:
    return model(**batch, output_attentions=True).attentions[layer][:, :, -1].mean(dim=1)


@pytest.mark.parametrize("cache", [None, "dynamic", "static"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_row_is_eager_attentions_under_padding_grouped_queries_and_caches(
    pair: tuple[Any, Any], rows: int, cache: str | None
) -> None:
    tapped, eager = pair
    batch = _batch(rows)
    caches = {
        None: {"use_cache": False},
        "dynamic": {"past_key_values": DynamicCache()},
        "static": {"past_key_values": StaticCache(tapped.config.text_config, max_cache_len=30)},
    }
    tap = taps.RowTap([1, 3])
    with torch.no_grad(), taps.active(tap):
        tapped(**batch, **caches[cache])
    for layer in (1, 3):
        found = tap.rows[layer][:, :20]
        torch.testing.assert_close(found, _eager_rows(eager, batch, layer), atol=1e-6, rtol=1e-5)
        assert found.dtype == torch.float32
    assert set(tap.rows) == {1, 3}


def test_a_decode_steps_row_looks_over_the_whole_cache(pair: tuple[Any, Any]) -> None:
    tapped, eager = pair
    batch = _batch(1)
    cache, tap = DynamicCache(), taps.RowTap([2])
    with torch.no_grad():
        tapped(input_ids=batch["input_ids"][:, :-1], past_key_values=cache)
        with taps.active(tap):
            tapped(input_ids=batch["input_ids"][:, -1:], past_key_values=cache)
    torch.testing.assert_close(tap.rows[2], _eager_rows(eager, batch, 2), atol=1e-6, rtol=1e-5)


def test_only_the_columns_asked_for_are_kept(pair: tuple[Any, Any]) -> None:
    tapped, eager = pair
    batch = _batch(3)
    columns = torch.tensor([[4, 5], [10, 9], [19, 6]])
    tap = taps.RowTap([0], columns=columns)
    with torch.no_grad(), taps.active(tap):
        tapped(**batch)
    expected = _eager_rows(eager, batch, 0).gather(1, columns)
    torch.testing.assert_close(tap.rows[0], expected, atol=1e-6, rtol=1e-5)


@contextlib.contextmanager
def _entered(model: Any) -> Iterator[list[int]]:
    """Which decoder layers run."""
    seen: list[int] = []
    decoder = model.model.language_model.layers
    hooks = [
        layer.register_forward_pre_hook(lambda *_, number=number: seen.append(number))
        for number, layer in enumerate(decoder)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def test_a_stopped_forward_reads_the_same_row_and_runs_no_layer_above(pair: tuple[Any, Any]) -> None:
    tapped, _ = pair
    batch = _batch(3)
    whole, stopped = taps.RowTap([1]), taps.RowTap([1], stop=True)
    with torch.no_grad():
        with taps.active(whole):
            tapped(**batch)
        with _entered(tapped) as layers, taps.active(stopped), taps.stoppable():
            tapped(**batch)
    assert torch.equal(whole.rows[1], stopped.rows[1])
    assert layers == [0, 1]


def test_taps_leave_no_trace_even_when_they_fail(pair: tuple[Any, Any]) -> None:
    class Broken(taps.Tap):
        def before(self, call: taps.AttentionCall) -> None:
            if call.layer == 2:
                raise ValueError("broken")

    tapped, _ = pair
    batch = _batch(3)
    with torch.no_grad():
        before = tapped(**batch).logits
        with pytest.raises(ValueError, match="broken"), taps.active(Broken()):
            tapped(**batch)
        with taps.active(taps.RowTap([1], stop=True)), taps.stoppable():
            tapped(**batch)
        after = tapped(**batch).logits
    assert torch.equal(before, after)


def test_without_taps_the_kernel_is_sdpa(pair: tuple[Any, Any], tmp_path: Path) -> None:
    tapped, eager = pair
    batch = _batch(3)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        ours, theirs = tapped(**batch).logits, eager(**batch).logits
    torch.testing.assert_close(ours[real], theirs[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("rows", [1, 3])
def test_one_token_on_a_cpu_is_what_sdpa_makes_of_it(pair: tuple[Any, Any], rows: int, cache: str) -> None:
    tapped, eager = pair
    batch = _batch(rows)
    logits = []
    for model in (tapped, eager):
        config = model.config.text_config
        kept = DynamicCache() if cache == "dynamic" else StaticCache(config, max_cache_len=30)
        with torch.no_grad():
            model(**{name: one[:, :-1] for name, one in batch.items()}, past_key_values=kept)
            last = {name: one[:, -1:] for name, one in batch.items()}
            last["attention_mask"] = batch["attention_mask"]
            logits.append(model(**last, past_key_values=kept).logits)
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


class _Gain(taps.Tap):
    def __init__(self, gain: torch.Tensor) -> None:
        self.gain = gain

    def gains(self, call: taps.AttentionCall) -> torch.Tensor:
        return self.gain


@pytest.mark.parametrize("queries", [1, 6])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("small", [True, False])
def test_gains_multiply_the_weights_after_the_softmax(
    queries: int, kv_heads: int, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, queries, 8, generator=draw, dtype=torch.float64)
    key, value = (torch.randn(2, kv_heads, 9, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    mask = torch.ones(2, 1, queries, 9).bool()
    mask[1, :, :, :3] = False
    gains = [torch.rand(2, 9, generator=draw, dtype=torch.float64) + 0.5 for _ in range(2)]
    module = types.SimpleNamespace(layer_idx=0, num_key_value_groups=4 // kv_heads, is_causal=True)
    if not small:
        monkeypatch.setattr(taps, "_small", lambda query: False)
    with taps.active(*map(_Gain, gains)):
        output, _ = taps._attention(module, query, key, value, mask)
    keys, values = (one.repeat_interleave(4 // kv_heads, dim=1) for one in (key, value))
    scores = (query @ keys.transpose(2, 3) * 8**-0.5).masked_fill(~mask, -torch.inf)
    weighed = scores.softmax(dim=-1) * gains[0][:, None, None] * gains[1][:, None, None]
    torch.testing.assert_close(output, (weighed @ values).transpose(1, 2), atol=1e-12, rtol=1e-12)


def test_taps_nest_and_end_with_their_block(pair: tuple[Any, Any]) -> None:
    tapped, _ = pair
    outer, inner = taps.RowTap([0]), taps.RowTap([1])
    with torch.no_grad(), taps.active(outer):
        with taps.active(inner):
            tapped(**_batch(1))
        assert set(outer.rows) == {0}
        assert set(inner.rows) == {1}
        outer.rows.clear()
        inner.rows.clear()
        tapped(**_batch(1))
    assert set(outer.rows) == {0}
    assert inner.rows == {}


def test_another_thread_is_not_tapped(pair: tuple[Any, Any]) -> None:
    tapped, _ = pair
    tap = taps.RowTap([0])
    with taps.active(tap):
        thread = threading.Thread(target=lambda: tapped(**_batch(1)))
        thread.start()
        thread.join()
    assert tap.rows == {}


def test_half_precision_rows_are_summed_in_single(tmp_path: Path) -> None:
    taps.register()
    model = _load(tiny.llava(tmp_path / "tiny"), KERNEL).to(torch.bfloat16)
    tap = taps.RowTap([3])
    with torch.no_grad(), taps.active(tap):
        model(**_batch(3))
    assert tap.rows[3].dtype == torch.float32
    torch.testing.assert_close(tap.rows[3].sum(dim=1), torch.ones(3))


def test_a_gain_keeps_its_precision_where_values_have_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """1.05 is no bfloat16; the product is rounded once, and on average it is right."""
    value = torch.randn(1, 4, 64, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    seen = []
    monkeypatch.setitem(
        ALL_ATTENTION_FUNCTIONS._global_mapping,
        "sdpa",
        lambda module, query, key, value, mask, **_: (seen.append(value), None),
    )
    module = types.SimpleNamespace(layer_idx=0)
    with taps.active(_Gain(torch.full((1, 64), 1.05))):
        taps._attention(module, value[:, :, :1], value, value, None)
    assert torch.equal(seen[0], (value.float() * 1.05).bfloat16())
    assert not torch.equal(seen[0], value * torch.tensor(1.05).bfloat16())
