"""Scores in blocks: equal to the definitions followed pair by pair, for all models, towers and protocols."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import tiny_seps
import torch
from torch import Tensor
from torch.nn import functional as F

from adapters.seps.model import Head
from adapters.seps.similarity import (
    Dense,
    Texts,
    _blocks,
    align,
    as_mask,
    block,
    gumbel,
    images,
    largest,
    learned_scores,
    left_over,
    matrix,
    pair_bytes,
    pooled,
    relevance,
    scores,
    softmax_within,
    words,
)
from harness.errors import ModelError

Of = Literal["none", "image", "text"]

SHAPES = {
    "vit": (196, True, (0.5, 0.4)),
    "swin": (49, False, (0.8, 0.6)),
    "no-square": (30, True, (0.35, 0.7)),
    "patches-only": (30, False, (0.5, 0.5)),
    "everything-kept": (16, True, (1.0, 0.5)),
    "fewer-rows-than-top-k": (4, False, (0.5, 0.5)),
}
IMPLS = ("laps", "seps_released", "seps_paper")
C = 64


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def onto_unit_interval(x: Tensor) -> Tensor:
    return (x - x.min()) / (x.max() - x.min())


def parts(head: Head, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[CLS] (or no row), patches, the patches' cosines with their mean, of one image."""
    first = int(head.config.has_cls)
    patches = v[first:]
    return v[:first], patches, unit(patches) @ unit(patches.mean(0))


def finished(first: Tensor, aggregated: Tensor, rest: Tensor, t: Tensor) -> Tensor:
    """Cosines of one text's words and one image's rows."""
    return unit(t) @ unit(torch.cat([first, aggregated, rest[None]])).T


def top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    order = values.sort(descending=True, stable=True).indices
    return order[:k], order[k:]


def laps_pair(head: Head, v: Tensor, t: Tensor) -> Tensor:
    """H(V; T), step by step."""
    first, patches, centrality = parts(head, v)
    s = centrality + unit(patches) @ unit(t.mean(0))
    kept, dropped = top(s, head.config.kept)
    aggregated = head.aggregate(patches[kept]).squeeze(0).T.softmax(-1) @ patches[kept]
    rest = s[dropped].softmax(0) @ patches[dropped]
    a = F.leaky_relu(finished(first, aggregated, rest, t), 0.1)
    return a.max(1).values.mean() + a.max(0).values.mean()


def paper_pair(head: Head, v: Tensor, t: Tensor, d: Tensor | None) -> Tensor:
    """Eq. 1-5, step by step."""
    config = head.config
    first, patches, centrality = parts(head, v)
    learned = torch.sigmoid(head.score(patches)[:, 0])

    def scored(text: Tensor) -> Tensor:
        relevant = onto_unit_interval(unit(patches) @ unit(text.mean(0)))
        return (1 - 2 * config.beta) * learned + config.beta * (relevant + onto_unit_interval(centrality))

    s = scored(t)
    kept, dropped = top(s, config.kept)
    aggregated = head.aggregate(patches[kept]).squeeze(0).T.softmax(-1) @ patches[kept]
    if d is not None:
        also, _ = top(scored(d), config.kept)
        aggregated = aggregated + head.aggregate_dense(patches[also]).squeeze(0).T.softmax(-1) @ patches[also]
    a = finished(first, aggregated, s[dropped].softmax(0) @ patches[dropped], t)

    def network(net: Any, best: Tensor) -> Tensor:
        largest_first = best.sort(descending=True).values[: config.top_k]
        found: Tensor = net(F.pad(largest_first, (0, config.top_k - len(largest_first))))[0]
        return found

    by_row, by_word = a.max(0).values, a.max(1).values
    return by_row.mean() + network(head.top_rows, by_row) + by_word.mean() + network(head.top_words, by_word)


def loop(head: Head, V: Tensor, T: list[Tensor], D: list[Tensor], of: Of, index: list[int]) -> Tensor:
    """All pairs, one by one."""
    found = torch.empty(len(V), len(T))
    for i, v in enumerate(V):
        for j, t in enumerate(T):
            d = None if of == "none" else D[index[i if of == "image" else j]]
            if head.config.impl == "seps_paper":
                found[i, j] = paper_pair(head, v, t, d)
                continue
            found[i, j] = head.config.w_sparse * laps_pair(head, v, t)
            if d is not None:
                found[i, j] += head.config.w_dense * laps_pair(head, v, d)
    return found


class Case:
    """Features of 5 images, 9 texts and 4 dense texts; what stands at the texts' pads must not matter."""

    def __init__(self, shape: str, impl: str = "laps", **options: Any) -> None:
        patches, has_cls, ratios = SHAPES[shape]
        self.head = tiny_seps.head(impl, patches, has_cls, ratios, C, **options)
        rng = np.random.RandomState(3)
        self.V = torch.from_numpy(rng.standard_normal((5, patches + has_cls, C))).float()
        self.T = torch.from_numpy(rng.standard_normal((9, 11, C))).float()
        self.T_len = torch.tensor([3, 11, 5, 2, 7, 5, 11, 1, 6])
        self.D = torch.from_numpy(rng.standard_normal((4, 70, C))).float()
        self.D_len = torch.tensor([70, 41, 66, 8])

    def index(self, of: Of) -> list[int]:
        return {"none": [], "image": [2, 0, 3, 1, 2], "text": [0, 1, 1, 3, 2, 0, 3, 3, 1]}[of]

    def dense(self, of: Of) -> Dense | None:
        return None if of == "none" else Dense(self.D, self.D_len, of, torch.tensor(self.index(of)))

    def blocked(self, of: Of = "none") -> Tensor:
        return block(self.head, self.V, self.T, self.T_len, self.dense(of))

    def pooled(self, of: Of = "none", memory: int = 2**20) -> Tensor:
        texts, index = Texts.of(self.T, self.T_len), torch.tensor(self.index(of))
        if of == "none":
            return matrix(self.head, self.V, texts, memory=memory)
        return matrix(self.head, self.V, texts, Texts.of(self.D, self.D_len), of, index, memory)

    @torch.no_grad()
    def looped(self, of: Of = "none") -> Tensor:
        T = [t[:n] for t, n in zip(self.T, self.T_len, strict=True)]
        D = [d[:n] for d, n in zip(self.D, self.D_len, strict=True)]
        return loop(self.head, self.V, T, D, of, self.index(of))


EACH = [
    (shape, impl, of)
    for shape in SHAPES
    for impl in IMPLS
    for of in ("none", "image", "text")
    if (impl, of) not in (("laps", "image"), ("laps", "text"))
]


@pytest.mark.parametrize(("shape", "impl", "of"), EACH)
def test_all_pairs_at_once_equal_the_definition_pair_by_pair(shape: str, impl: str, of: Of) -> None:
    case = Case(shape, impl)
    expected = case.looped(of)
    assert (case.blocked(of) - expected).abs().max() <= 1e-6
    assert (case.pooled(of) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("impl", IMPLS)
def test_the_size_of_blocks_does_not_matter(impl: str) -> None:
    case = Case("vit", impl)
    of: Of = "none" if impl == "laps" else "text"
    whole = case.pooled(of, memory=2**30)
    for memory in (1, 2**19, 2**21):
        assert (case.pooled(of, memory) - whole).abs().max() <= 1e-6


def test_more_images_than_a_chunk_are_scored_each_with_its_own_dense_text() -> None:
    case = Case("no-square", "seps_paper")
    V, index = case.V.repeat(8, 1, 1), torch.tensor(case.index("image") * 8)
    found = matrix(case.head, V, Texts.of(case.T, case.T_len), Texts.of(case.D, case.D_len), "image", index)
    assert (found - case.looped("image").repeat(8, 1)).abs().max() <= 1e-6


def test_weights_of_the_two_terms_scale_them() -> None:
    case = Case("swin", "seps_released", w_sparse=0.25, w_dense=2.0)
    assert (case.blocked("image") - case.looped("image")).abs().max() <= 1e-6
    assert (case.pooled("text") - case.looped("text")).abs().max() <= 1e-6


# ---------------------------------------------------------------- symmetries


@pytest.mark.parametrize("impl", IMPLS)
def test_the_order_of_patches_does_not_matter(impl: str) -> None:
    case = Case("vit", impl)
    before = case.blocked()
    order = torch.randperm(196, generator=torch.Generator().manual_seed(0))
    case.V = torch.cat([case.V[:, :1], case.V[:, 1:][:, order]], 1)
    assert (case.blocked() - before).abs().max() <= 1e-6


@pytest.mark.parametrize("impl", IMPLS)
def test_images_and_texts_in_another_order_give_the_same_scores_in_that_order(impl: str) -> None:
    case = Case("swin", impl)
    before = case.blocked()
    rows, columns = torch.tensor([4, 0, 2, 3, 1]), torch.tensor([8, 1, 0, 3, 7, 2, 5, 4, 6])
    case.V, case.T, case.T_len = case.V[rows], case.T[columns], case.T_len[columns]
    assert (case.blocked() - before[rows][:, columns]).abs().max() <= 1e-6


@pytest.mark.parametrize("of", ["none", "image", "text"])
@pytest.mark.parametrize("impl", ["seps_released", "seps_paper"])
def test_what_stands_at_pads_does_not_matter(impl: str, of: Of) -> None:
    case = Case("vit", impl)
    before = case.blocked(of)
    for features, lengths in ((case.T, case.T_len), (case.D, case.D_len)):
        for row, length in zip(features, lengths, strict=True):
            row[length:] = torch.nan
    assert torch.equal(case.blocked(of), before)
    assert (case.pooled(of) - before).abs().max() <= 1e-6


def test_pads_receive_no_gradient_and_spoil_none() -> None:
    case = Case("vit", "seps_paper")
    case.T[2, 5:] = torch.nan
    T = case.T.requires_grad_()
    scores(case.head, case.V, T, case.T_len)[0].sum().backward()
    assert T.grad is not None
    assert torch.isfinite(T.grad).all() and not T.grad[2, 5:].any() and T.grad[2, :5].all()


def test_a_length_beyond_what_is_stored_counts_as_what_is_stored() -> None:
    case = Case("vit", "seps_released")
    before = case.blocked("text")
    case.T_len, case.D_len = (
        torch.where(case.T_len == 11, 90, case.T_len),
        case.D_len + (case.D_len == 70) * 500,
    )
    assert torch.equal(case.blocked("text"), before)


def test_candidate_texts_change_their_images_rows_and_a_querys_own_text_its_columns() -> None:
    for impl in ("seps_released", "seps_paper"):
        for of, axis in (("image", 1), ("text", 0)):
            case = Case("vit", impl)
            before = case.blocked(of)  # type: ignore[arg-type]
            case.D[3] = -case.D[3]
            moved = ((case.blocked(of) - before).abs() > 1e-7).any(axis)  # type: ignore[arg-type]
            assert moved.tolist() == [number == 3 for number in case.index(of)]  # type: ignore[arg-type]


def test_released_scores_of_candidate_texts_add_a_constant_to_each_row() -> None:
    case = Case("vit", "seps_released")
    added = case.blocked("image") - case.blocked("none")
    assert (added - added[:, :1]).abs().max() <= 1e-6


# ---------------------------------------------------------------- masks and weights


def test_masks_keep_k_patches_and_weights_over_them_sum_to_one() -> None:
    for shape, (patches, _, _) in SHAPES.items():
        case = Case(shape)
        image, text = images(case.head, case.V), words(case.T, case.T_len)
        value = image.centrality[:, None] + relevance(image, text.centre)
        mask = as_mask(largest(value, case.head.config.kept), value)
        assert (mask.sum(-1) == case.head.config.kept).all() and mask.shape == (5, 9, patches)
        weights = softmax_within(image.logits, mask)
        assert (weights.sum(-1) - 1).abs().max() <= 1e-6
        assert not (weights * (1 - mask[:, :, None])).any()
        left = left_over(value, mask)
        kept_all = case.head.config.kept == patches
        assert (left.sum(-1) - (0 if kept_all else 1)).abs().max() <= 1e-6 and not (left * mask).any()


def test_scores_lie_between_minus_a_fifth_and_two() -> None:
    case = Case("vit")
    assert case.blocked().min() >= -0.2 and case.blocked().max() <= 2
    image = images(case.head, case.V)
    word = case.V[0, 1:2]  # a text that says what one patch is, and its opposite
    for text, low, high in ((word, -0.2, 2.0), (-word, -0.2, 2.0)):
        found = align(image, words(text[None], torch.tensor([1])), case.head.config.kept)[0]
        assert low <= found.min() and found.max() <= high
    same = case.V[:1, :1].expand(1, 197, C)  # all tokens alike
    one = block(case.head, same, same[:, :3], torch.tensor([3]))
    assert one == pytest.approx(2.0, abs=1e-6)
    assert block(case.head, same, -same[:, :3], torch.tensor([3])) == pytest.approx(-0.2, abs=1e-6)


def test_of_equal_scores_the_first_patch_is_kept() -> None:
    value = torch.tensor([[0.5, 0.9, 0.5, 0.5, 0.1]])
    assert as_mask(largest(value, 3), value).tolist() == [[1, 1, 1, 0, 0]]


def test_pictures_whose_patches_are_all_equal_have_a_score() -> None:
    for impl in IMPLS:
        case = Case("vit", impl)
        case.V[:] = case.V[:1, :1]
        found = case.blocked()
        assert torch.isfinite(found).all()
        assert (found - case.pooled()).abs().max() <= 1e-6


@pytest.mark.parametrize("scale", [50.0, 5000.0])
def test_logits_far_apart_leave_the_weights_of_what_is_kept_as_they_are(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 6, 20, generator=generator) * scale
    value = torch.randn(1, 7, 20, generator=generator)
    kept = largest(value, 4)
    mask = as_mask(kept, value)
    expected = logits[:, None].masked_fill(mask[:, :, None] == 0, -torch.inf).softmax(-1)
    assert (softmax_within(logits, mask) - expected).abs().max() <= 1e-6
    tokens = torch.randn(20, 8, generator=generator)
    assert (pooled(logits[0], tokens, kept[0]) - expected[0] @ tokens).abs().max() <= 1e-5


def test_drawn_masks_are_hard_follow_the_scores_and_carry_a_gradient() -> None:
    torch.manual_seed(0)
    probability = torch.tensor([0.1, 0.5, 0.9]).expand(4000, 3).clone().requires_grad_()
    mask = gumbel(probability)
    assert set(mask.detach().unique().tolist()) <= {0.0, 1.0}
    expected = torch.tensor([0.1, 0.5, 0.9])
    nothing = 0.9 * 0.5 * 0.1  # where nothing is drawn everything is kept
    assert (mask.detach().mean(0) - (expected + nothing)).abs().max() <= 0.03
    mask.sum().backward()
    assert probability.grad is not None and (probability.grad.mean(0) > 0).all()


def test_drawn_masks_are_only_for_training() -> None:
    case = Case("vit", "seps_paper")
    still = case.blocked("image")
    case.head.train()
    assert torch.equal(case.blocked("image"), still)
    first, second = (scores(case.head, case.V, case.T, case.T_len)[0] for _ in range(2))
    assert not torch.equal(first, second)


def test_learned_scores_lie_between_zero_and_one() -> None:
    case = Case("vit", "seps_paper")
    image, text = images(case.head, case.V), words(case.T, case.T_len)
    found = learned_scores(case.head, image, relevance(image, text.centre))
    assert found.shape == (5, 9, 196) and found.min() >= 0 and found.max() <= 1


# ---------------------------------------------------------------- precision, packing, what is refused


def test_half_precision_tokens_and_autocast_are_scored_in_float32() -> None:
    case = Case("swin", "seps_paper")
    expected = block(case.head, case.V.bfloat16().float(), case.T.bfloat16().float(), case.T_len)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = block(case.head, case.V.bfloat16(), case.T.bfloat16(), case.T_len)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_texts_are_packed_without_pads_and_joined_in_order() -> None:
    case = Case("vit")
    whole = Texts.of(case.T, case.T_len)
    assert len(whole) == 9 and len(whole.unit) == int(case.T_len.sum())
    joined = Texts.joined([Texts.of(case.T[:4], case.T_len[:4]), Texts.of(case.T[4:], case.T_len[4:])])
    assert torch.equal(joined.unit, whole.unit) and torch.equal(joined.starts, whole.starts)
    found, expected = whole.words(torch.tensor([5, 0]), torch.device("cpu")), words(case.T, case.T_len)
    assert torch.equal(found.unit, expected.unit[[5, 0], :5]) and found.lengths.tolist() == [5, 3]
    assert torch.equal(found.centre, expected.centre[[5, 0]])


def test_blocks_hold_every_text_once_and_fit_the_memory() -> None:
    config = Case("vit").head.config
    lengths = torch.randint(2, 90, (500,), generator=torch.Generator().manual_seed(0))
    memory = 2**20
    found = list(_blocks(config, lengths, memory))
    assert sorted(torch.cat(found).tolist()) == list(range(500)) and len(found) > 3
    for which in found:
        longest = int(lengths[which].max())
        assert len(which) == 1 or len(which) * pair_bytes(config, longest) <= memory


def test_what_does_not_fit_is_refused_by_name() -> None:
    case = Case("vit")
    with pytest.raises(ModelError, match="impl=laps takes no dense text"):
        case.blocked("image")
    with pytest.raises(ModelError, match="impl=laps takes no dense text"):
        case.pooled("text")
    with pytest.raises(
        ModelError, match=r"image tokens are \(5, 196, 64\); this head takes \(images, 197, 64\)"
    ):
        block(case.head, case.V[:, 1:], case.T, case.T_len)
    with pytest.raises(ModelError, match="text 7 has 0 words"):
        block(case.head, case.V, case.T, case.T_len - (torch.arange(9) == 7).long())
    with pytest.raises(ModelError, match=r"lengths \(8,\)"):
        block(case.head, case.V, case.T, case.T_len[:8])
    released = Case("vit", "seps_released")
    with pytest.raises(ModelError, match="4 dense texts for 5 images"):
        block(
            released.head, released.V, released.T, released.T_len, Dense(released.D, released.D_len, "image")
        )
    texts, dense = Texts.of(released.T, released.T_len), Texts.of(released.D, released.D_len)
    with pytest.raises(ModelError, match="an index of 4 into 4 dense texts for 9 texts"):
        matrix(released.head, released.V, texts, dense, "text")
