"""Scores of images and texts, exactly as LAPS and SEPS define them, for all pairs at once.

Knows tokens, words, the head's weights, and how to cut a pool into blocks that fit a bound of memory. Must
not know: pictures, tokenizers, which text belongs to which image. The definitions: `model.py`; the
references walk over captions one by one (CrossmodalGroup/LAPS: lib/cross_net.py), which this equals to
rounding.

    images(head, V)      what of an image no text changes: unit patches, aggregation logits
    words(T, T_len)      what of a text no image changes: unit words, their centre
    scores(...)          all pairs of a batch, with gradient: training
    block(...)           the same without gradient: evaluation
    matrix(...)          a pool of any size, in blocks

Shapes: i images, j texts, N patches, C the embedding, L words, R rows (tokens that an image keeps for a
text). Equal scores at the K-th place: the patch that comes first is kept, as a stable sort does. Scores are
float32 at least, autocast or not; half precision, TF32 too, changes which patches are kept where two scores
are close. On a CPU what else is scored at the same time does not: what decides is summed in float64. On a GPU
another block or batch can, by rounding (two patches within 1e-7 at the K-th place).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.errors import ModelError

if TYPE_CHECKING:
    from adapters.seps.model import Config, Head

WORK = 16 * 2**20
"""Bytes that `matrix` works in on a CPU: small enough for the caches to help."""

TINY = 1e-12
"""A vector shorter than this has no direction; its cosine with anything is 0, as `F.normalize` has it."""

LEAST = 1e-37
"""What divides where nothing is left to divide."""


@dataclass(frozen=True)
class Dense:
    """Dense texts of a batch. words (n, L', C); lengths (n,); of: whether they belong to images or to texts.

    index: which of them each image (or each text) has; None where there is one for each, in order.
    """

    words: Tensor
    lengths: Tensor
    of: Literal["image", "text"]
    index: Tensor | None = None


@dataclass(frozen=True)
class Shares:
    """The share of patches that the masks keep, mean over pairs; scalars. dense: None without a dense
    mask."""

    sparse: Tensor
    dense: Tensor | None = None


@dataclass(frozen=True)
class Images:
    """An image without its text. tokens (i, N, C), the patches that are aggregated; unit (i, N, C), float64
    on a CPU; centrality (i, N), the cosine with the mean patch; cls (i, C), unit, or None; logits
    (i, N_c, N). Of `seps_paper`: dense_logits (i, N_c, N) and learned (i, N), s^p. unit and centrality have
    no gradient.
    """

    tokens: Tensor
    unit: Tensor
    centrality: Tensor
    cls: Tensor | None
    logits: Tensor
    dense_logits: Tensor | None = None
    learned: Tensor | None = None

    def __getitem__(self, which: slice) -> Images:
        parts = (
            self.tokens,
            self.unit,
            self.centrality,
            self.cls,
            self.logits,
            self.dense_logits,
            self.learned,
        )
        return Images(*(None if part is None else part[which] for part in parts))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Words:
    """A text without its image. unit (j, L, C), zero at pads; lengths (j,); centre (j, C), the direction of
    the mean word, without gradient; pads (j, L), true at pads, or None where there are none.
    """

    unit: Tensor
    lengths: Tensor
    centre: Tensor
    pads: Tensor | None


# ---------------------------------------------------------------- one side alone


def images(head: Head, V: Tensor) -> Images:
    """V (i, N + cls, C) -> what no text changes. ModelError: another number of tokens than the head's."""
    config = head.config
    if V.ndim != 3 or V.shape[1:] != (config.patches + config.has_cls, config.embed_size):
        raise ModelError(
            f"image tokens are {tuple(V.shape)}; this head takes (images, "
            f"{config.patches + config.has_cls}, {config.embed_size})"
        )
    V = _at_least_float32(V)
    patches = V[:, 1:] if config.has_cls else V
    tokens = patches.detach() if config.detach_selection else patches
    with torch.no_grad():
        unit = _fine(F.normalize(patches, dim=-1))
        centre = F.normalize(_fine(patches).mean(1), dim=-1)
        centrality = (unit @ centre[:, :, None]).squeeze(-1).to(patches.dtype)
    paper = config.impl == "seps_paper"
    return Images(
        tokens,
        unit,
        centrality,
        F.normalize(V[:, 0], dim=-1) if config.has_cls else None,
        head.aggregate(tokens).transpose(1, 2).contiguous(),
        head.aggregate_dense(tokens).transpose(1, 2).contiguous() if paper else None,
        torch.sigmoid(head.score(tokens)).squeeze(-1) if paper else None,
    )


def words(T: Tensor, T_len: Tensor) -> Words:
    """T (j, L, C), T_len (j,) -> what no image changes. What stands at pads does not matter; a length beyond
    L counts as L (references slice). ModelError: a text without words, lengths that are not one per text.
    """
    if T.ndim != 3 or T_len.shape != T.shape[:1]:
        raise ModelError(
            f"words are {tuple(T.shape)} and lengths {tuple(T_len.shape)}; give (texts, L, C), (texts,)"
        )
    lengths = T_len.to(T.device).clamp(max=T.shape[1])
    if lengths.numel() and int(lengths.min()) < 1:
        raise ModelError(f"text {int(lengths.argmin())} has {int(T_len.min())} words; a text has 1 or more")
    pads = torch.arange(T.shape[1], device=T.device) >= lengths[:, None]
    T = _at_least_float32(T).masked_fill(pads[:, :, None], 0)
    centre = F.normalize(_fine(T.detach()).sum(1), dim=-1).to(T.dtype)
    return Words(F.normalize(T, dim=-1), lengths, centre, pads if bool(pads.any()) else None)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _fine(x: Tensor) -> Tensor:
    """As float64 on a CPU, for the sums that decide which patches are kept: taken in another order, as in a
    block of another size, they round to the same float32. Many GPUs are slow at it: as it is there.
    """
    return x.double() if x.device.type == "cpu" else x


# ---------------------------------------------------------------- which patches, with which weights


def relevance(image: Images, centre: Tensor, paired: bool = False) -> Tensor:
    """Cosines of patches with the centres of texts (j, C) -> (i, j, N); paired: image i with text i, (i, 1,
    N)."""
    if paired:
        found = (image.unit @ _fine(centre)[:, :, None]).transpose(1, 2)
    else:
        found = torch.matmul(_fine(centre), image.unit.transpose(1, 2))
    return found.to(image.tokens.dtype)


def largest(scores: Tensor, k: int) -> Tensor:
    """Places of the k largest of the last axis, the first of equals."""
    return scores.detach().sort(dim=-1, descending=True, stable=True).indices[..., :k]


def as_mask(kept: Tensor, scores: Tensor) -> Tensor:
    """1 at the places kept, 0 elsewhere, of the scores' shape."""
    return torch.zeros_like(scores).scatter_(-1, kept, 1.0)


def gumbel(probability: Tensor, temperature: float = 1.0) -> Tensor:
    """Kept (1) or not (0), each patch by its probability, drawn; the gradient is the soft choice's."""
    p = probability.clamp(1e-6, 1 - 1e-6)
    two = torch.stack([p.log(), torch.log1p(-p)], -1)
    kept = F.gumbel_softmax(two, tau=temperature, hard=True)[..., 0]
    nothing = (kept.detach() > 0.5).sum(-1, keepdim=True) == 0
    return torch.where(nothing, torch.ones_like(kept), kept)  # weights over nothing: over all, then


def softmax_within(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the patches that a mask keeps. logits (i, M, N), mask (i, j, N) -> (i, j, M, N).

    The exponentials are taken once per image, and multiplied by the mask: a hard mask that carries a soft
    gradient passes it on. Where nothing is kept all weights are 0.
    """
    if _wide(logits):
        within = logits[:, None].masked_fill(mask[:, :, None] < 0.5, -torch.inf)
        powers = (within - within.detach().amax(-1, keepdim=True).clamp(min=-1e30)).exp() * mask[:, :, None]
        return powers / powers.sum(-1, keepdim=True).clamp(min=TINY)
    powers = _powers(logits)
    total = mask @ powers.transpose(1, 2)
    return powers[:, None] * mask[:, :, None] / total.clamp(min=LEAST)[..., None]


def pooled(logits: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
    """What `softmax_within` and a product make, for one image, from the kept patches only.

    logits (M, N), tokens (N, C), kept (j, K), places of patches -> (j, M, C). Half the arithmetic at ratio .5
    for a copy of K patches per text: faster on a CPU, whose caches hold them, slower on a GPU.
    """
    flat, (texts, count) = kept.flatten(), kept.shape
    wide = _wide(logits)
    chosen = (logits if wide else _powers(logits)).t().index_select(0, flat).view(texts, count, -1)
    weights = chosen.softmax(1) if wide else chosen / chosen.sum(1, keepdim=True)
    return torch.bmm(weights.transpose(1, 2), tokens.index_select(0, flat).view(texts, count, -1))


def _powers(logits: Tensor) -> Tensor:
    return (logits - logits.detach().amax(-1, keepdim=True)).exp()


def _wide(logits: Tensor) -> bool:
    """Whether all that a mask keeps could vanish, in float32, beside what it does not."""
    low, top = logits.detach().aminmax(dim=-1)
    return float((top - low).max()) > 75


def left_over(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax of scores (within [-2, 2]) over the patches that a mask drops; (i, j, N)."""
    powers = scores.exp() * (1 - mask)
    return powers / powers.sum(-1, keepdim=True).clamp(min=LEAST)


def min_max(cosines: Tensor) -> Tensor:
    """Onto [0, 1] over the last axis; all 0 where all are equal."""
    low, top = cosines.aminmax(dim=-1, keepdim=True)
    return (cosines - low) / (top - low).clamp(min=TINY)


# ---------------------------------------------------------------- words against rows


def cosines(image: Images, text: Words, aggregated: Tensor, rest: Tensor, paired: bool = False) -> Tensor:
    """Cosines of words and rows, (i, j, L, R): [CLS?], the aggregated tokens, the token of what was left
    over.

    aggregated (i, j, N_c, C), rest (i, j, C); paired: j is 1, and text i is image i's. Rows are not made
    unit: their products are divided by their lengths, which is less to write.
    """
    pairs = "ilc" if paired else "jlc"
    parts = [
        _products(aggregated, text.unit, paired) / _length(aggregated)[:, :, None],
        (torch.einsum(f"ijc,{pairs}->ijl", rest, text.unit) / _length(rest)[:, :, None])[..., None],
    ]
    if image.cls is not None:
        out = "il" if paired else "ijl"
        first = torch.einsum(f"{pairs},ic->{out}", text.unit, image.cls)
        parts.insert(0, (first[:, None] if paired else first)[..., None])
    return torch.cat(parts, -1)


def _products(rows: Tensor, unit: Tensor, paired: bool) -> Tensor:
    """rows (i, j, R, C) and unit words (j, L, C), or (i, L, C) where paired -> (i, j, L, R)."""
    if paired or len(rows) == 1:
        axis = 1 if paired else 0
        rows = rows.squeeze(axis)
        if unit.shape[1] > rows.shape[1]:  # the longer side last: better used by matrix products
            return torch.bmm(rows, unit.transpose(1, 2)).transpose(1, 2).unsqueeze(axis)
        return torch.bmm(unit, rows.transpose(1, 2)).unsqueeze(axis)
    return torch.einsum("ijrc,jlc->ijlr", rows, unit)


def _length(vectors: Tensor) -> Tensor:
    """Norms over the last axis; 1 for vectors without direction."""
    norm = torch.linalg.vector_norm(vectors, dim=-1)
    return torch.where(norm > TINY, norm, 1.0)


def bests(cosine: Tensor, text: Words, paired: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(i, j, L, R) -> each word's best row (i, j, L), 0 at pads; each row's best word (i, j, R); the number
    of words, to divide by."""
    by_word = cosine.amax(-1)
    if text.pads is None:
        by_row = cosine.amax(-2)
    else:
        pads = text.pads[:, None] if paired else text.pads[None]
        by_row = cosine.masked_fill(pads[..., None], -torch.inf).amax(-2)
    return by_word, by_row, text.lengths[:, None] if paired else text.lengths[None]


def max_mean(cosine: Tensor, text: Words, paired: bool = False) -> Tensor:
    """LAPS's alignment of (i, j, L, R) -> (i, j): mean over words of the best row plus mean over rows of the
    best word, of LeakyReLU(cosine, 0.1), which, rising, may be taken after the maxima. Within [-0.2, 2]."""
    by_word, by_row, lengths = bests(cosine, text, paired)
    return F.leaky_relu(by_word, 0.1).sum(-1) / lengths + F.leaky_relu(by_row, 0.1).mean(-1)


def hrpa(head: Head, cosine: Tensor, text: Words) -> Tensor:
    """SEPS's eq. 5, (i, j, L, R) -> (i, j): both means of plain cosines, and a network over the k best of
    each.

    Where a text or an image has fewer than k, zeros follow them.
    """
    by_word, by_row, lengths = bests(cosine, text)
    means = by_row.mean(-1) + by_word.sum(-1) / lengths
    if text.pads is not None:
        by_word = by_word.masked_fill(text.pads[None], -torch.inf)
    rows: Tensor = head.top_rows(_largest(by_row, head.config.top_k)).squeeze(-1)
    of_words: Tensor = head.top_words(_largest(by_word, head.config.top_k)).squeeze(-1)
    return means + rows + of_words


def _largest(values: Tensor, k: int) -> Tensor:
    """The k largest of the last axis, falling, then zeros for what is missing."""
    found = values.topk(min(k, values.shape[-1]), dim=-1).values
    found = found.masked_fill(found == -torch.inf, 0)
    return F.pad(found, (0, k - found.shape[-1]))


# ---------------------------------------------------------------- the three models


def align(
    image: Images, text: Words, k: int, *, paired: bool = False, gather: bool = False
) -> tuple[Tensor, Tensor]:
    """LAPS's block: H(V; T) of all pairs, (i, j), and the masks, (i, j, N); paired: (i, 1), image i, text i.

    gather: one image, its tokens by `pooled`.
    """
    with torch.no_grad():
        scores = image.centrality[:, None] + relevance(image, text.centre, paired)
        kept = largest(scores, k)
        mask = as_mask(kept, scores)
        left = left_over(scores, mask)
    aggregated = _aggregated(image, image.logits, kept if gather else mask)
    return max_mean(cosines(image, text, aggregated, left @ image.tokens, paired), text, paired), mask


def _aggregated(image: Images, logits: Tensor, which: Tensor) -> Tensor:
    """v̂ of eq. 4 for one aggregator, (i, j, N_c, C). which: a mask (i, j, N), or places (1, j, K) to
    gather."""
    if which.dtype == torch.long:
        return pooled(logits[0], image.tokens[0], which[0])[None]
    weights = softmax_within(logits, which)
    return (weights.flatten(1, 2) @ image.tokens).view(*weights.shape[:3], -1)


def _released(head: Head, image: Images, text: Words, dense: Dense | None) -> tuple[Tensor, Shares]:
    """H(V; T), and H(V; D) beside it where there is dense text: `laps` and `seps_released`."""
    config = head.config
    sparse, mask = align(image, text, config.kept)
    total = config.w_sparse * sparse
    if dense is None:
        return total, Shares(mask.mean())
    if dense.of == "image":
        added, masks = align(image, words(*_chosen(dense, len(image.unit))), config.kept, paired=True)
    else:
        added, masks = align(image, words(dense.words, dense.lengths), config.kept)
        if dense.index is not None:
            added = added[:, dense.index]
    return total + config.w_dense * added, Shares(mask.mean(), masks.mean())


def _chosen(dense: Dense, count: int) -> tuple[Tensor, Tensor]:
    """Words and lengths of each image's (or text's) dense text."""
    found, lengths = dense.words, dense.lengths
    if dense.index is not None:
        found, lengths = found[dense.index], lengths[dense.index]
    if len(found) != count:
        raise ModelError(f"{len(found)} dense texts for {count} {dense.of}s; give one for each, or an index")
    return found, lengths


def learned_scores(head: Head, image: Images, relevant: Tensor) -> Tensor:
    """SEPS's eq. 2 and 3 for one kind of text: (1 − 2β) s^p + β (s^t + s^im), within [0, 1]. relevant (i, j,
    N)."""
    if image.learned is None:
        raise ModelError(f"impl={head.config.impl} has no learned scores")
    beta = head.config.beta
    fixed = beta * (min_max(relevant) + min_max(image.centrality)[:, None])
    return (1 - 2 * beta) * image.learned[:, None] + fixed


def _paper(
    head: Head,
    image: Images,
    text: Words,
    dense_centre: Tensor | None,
    paired: bool,
    *,
    sample: bool = False,
    gather: bool = False,
) -> tuple[Tensor, Shares]:
    """`seps_paper`: eq. 1-5. dense_centre: (i, C) when paired with images, else (j, C)."""

    def keep(scores: Tensor) -> tuple[Tensor, Tensor]:
        if sample:
            mask = gumbel(scores)
            return mask, mask
        kept = largest(scores, head.config.kept)
        mask = as_mask(kept, scores)
        return mask, kept if gather else mask

    scores = learned_scores(head, image, relevance(image, text.centre))
    mask, which = keep(scores)
    aggregated, share = _aggregated(image, image.logits, which), None
    if dense_centre is not None and image.dense_logits is not None:
        masks, which = keep(learned_scores(head, image, relevance(image, dense_centre, paired)))
        aggregated = aggregated + _aggregated(image, image.dense_logits, which)
        share = masks.mean()
    rest = left_over(scores, mask) @ image.tokens
    return hrpa(head, cosines(image, text, aggregated, rest), text), Shares(mask.mean(), share)


def scores(
    head: Head, V: Tensor, T: Tensor, T_len: Tensor, dense: Dense | None = None
) -> tuple[Tensor, Shares]:
    """Scores of all pairs, (i, j), and the shares of patches kept; with gradient.

    V (i, N + cls, C), T (j, L, C), T_len (j,). Masks are Gumbel's only while `seps_paper` trains with
    mask="gumbel". ModelError: shapes that do not fit; dense text for `laps`, which has no place for it.
    """
    sample = head.training and head.config.mask == "gumbel"
    with torch.autocast(V.device.type, enabled=False):
        return _scores(head, images(head, V), words(T, T_len), dense, sample)


@torch.no_grad()
def block(head: Head, V: Tensor, T: Tensor, T_len: Tensor, dense: Dense | None = None) -> Tensor:
    """Scores of all pairs, (i, j), for evaluation: no gradient, top-K masks whatever mode the head is in.

    All pairs are in memory at once; `matrix` is for pools.
    """
    with torch.autocast(V.device.type, enabled=False):
        return _scores(head, images(head, V), words(T, T_len), dense, sample=False)[0]


def _scores(
    head: Head, image: Images, text: Words, dense: Dense | None, sample: bool
) -> tuple[Tensor, Shares]:
    _check_dense(head.config, dense is not None)
    if head.config.impl != "seps_paper":
        return _released(head, image, text, dense)
    if dense is None:
        return _paper(head, image, text, None, False, sample=sample)
    of_image = dense.of == "image"
    centre = words(*_chosen(dense, len(image.unit if of_image else text.unit))).centre
    return _paper(head, image, text, centre, of_image, sample=sample)


def _check_dense(config: Config, given: bool) -> None:
    if given and config.impl == "laps":
        raise ModelError("impl=laps takes no dense text; leave it out, or use seps_released or seps_paper")


# ---------------------------------------------------------------- pools


@dataclass(frozen=True)
class Texts:
    """Texts of a pool without their pads: unit (words of all, C), float32; starts (texts + 1,), where each
    text's words begin; centres (texts, C). On the CPU; 4 C bytes for each word and for each text.
    """

    unit: Tensor
    starts: Tensor
    centres: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, T: Tensor, T_len: Tensor) -> Texts:
        """T (j, L, C), T_len (j,), as `words` takes them."""
        text = words(T, T_len)
        ends = text.lengths.cpu().cumsum(0)
        unit = text.unit.flatten(0, 1) if text.pads is None else text.unit[~text.pads]
        return cls(unit.cpu(), torch.cat([ends.new_zeros(1), ends]), text.centre.cpu())

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        """One pool of several, in order."""
        starts, before = [torch.zeros(1, dtype=torch.long)], 0
        for part in parts:
            starts.append(part.starts[1:] + before)
            before += int(part.starts[-1])
        return cls(
            torch.cat([part.unit for part in parts]),
            torch.cat(starts),
            torch.cat([part.centres for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Tensor:
        return self.starts.diff()

    def words(self, which: Tensor, device: torch.device) -> Words:
        """Some of them, padded to the longest."""
        starts, lengths = self.starts[which], self.lengths[which]
        longest = int(lengths.max())
        place = torch.arange(longest)
        pads = place >= lengths[:, None]
        unit = self.unit[(starts[:, None] + place).masked_fill(pads, 0)]
        full = not bool(pads.any())
        if not full:
            unit = unit.masked_fill_(pads[:, :, None], 0)
        return Words(
            unit.to(device),
            lengths.to(device),
            self.centres[which].to(device),
            None if full else pads.to(device),
        )


@torch.no_grad()
def matrix(
    head: Head,
    V: Tensor,
    texts: Texts,
    dense: Texts | None = None,
    of: Literal["image", "text"] = "image",
    index: Tensor | None = None,
    memory: int = WORK,
) -> Tensor:
    """Scores of a pool, (images, texts), float32 on the CPU, in blocks that need about `memory` bytes at a
    time.

    V: (images, N + cls, C), anywhere; the head's device computes. dense: dense texts, each once. of: whether
    they belong to images or to texts. index: which one each image (text) has; None where there is one for
    each, in order. One image meets a block of texts of about equal length at a time: its patches, weights and
    rows stay in the caches. memory: on a GPU give it 1 GiB or more, for one image must keep it busy. Beyond
    that and the result a call holds the images' own part, 16 of them at a time.
    """
    config, device = head.config, next(head.parameters()).device
    _check_dense(config, dense is not None)
    rows = torch.zeros(len(V), len(texts))
    if dense is not None:
        owners = len(V) if of == "image" else len(texts)
        index = torch.arange(len(dense)) if index is None else index.cpu()
        if len(index) != owners or (owners and int(index.max()) >= len(dense)):
            raise ModelError(
                f"an index of {len(index)} into {len(dense)} dense texts for {owners} {of}s; give one dense "
                "text for each, in order, or an index"
            )
    blocks = list(_blocks(config, texts.lengths, memory))
    dense_blocks = list(_blocks(config, dense.lengths, memory)) if dense is not None else []
    with torch.autocast(device.type, enabled=False):
        for start in range(0, len(V), CHUNK):
            chunk = slice(start, min(start + CHUNK, len(V)))
            image = images(head, V[chunk].to(device))
            own = index[chunk] if dense is not None and index is not None and of == "image" else None
            if config.impl == "seps_paper":
                each = _paper_pairs(head, dense, own, index)
                rows[chunk] = _filled(each, image, texts, blocks)
                continue
            each = _laps_pairs(config.kept)
            rows[chunk] = config.w_sparse * _filled(each, image, texts, blocks)
            if dense is None or index is None:
                continue
            if own is not None:
                added = align(image, dense.words(own, device), config.kept, paired=True)[0].cpu()
            else:
                added = _filled(each, image, dense, dense_blocks)[:, index]
            rows[chunk] += config.w_dense * added
    return rows


CHUNK = 16
"""Images whose own part is computed at a time; a block of texts is unpacked once for all of them."""

Pairs: TypeAlias = Callable[[int, Images, Words, Tensor], Tensor]
"""(place of an image in its chunk, that image, some texts, which ones) -> their scores, (1, j)."""


def _laps_pairs(kept: int) -> Pairs:
    return lambda place, image, text, which: align(image, text, kept, gather=_on_cpu(text))[0]


def _paper_pairs(head: Head, dense: Texts | None, own: Tensor | None, index: Tensor | None) -> Pairs:
    """own: which dense text each image of the chunk has, where they are the images'."""

    def pairs(place: int, image: Images, text: Words, which: Tensor) -> Tensor:
        centre = None
        if dense is not None and index is not None:
            centre = dense.centres[own[place : place + 1] if own is not None else index[which]].to(
                text.unit.device
            )
        return _paper(head, image, text, centre, own is not None, gather=_on_cpu(text))[0]

    return pairs


def _on_cpu(text: Words) -> bool:
    return text.unit.device.type == "cpu"


def _filled(pairs: Pairs, image: Images, texts: Texts, blocks: Sequence[Tensor]) -> Tensor:
    """Scores of a chunk of images and all texts, (i, texts), on the CPU."""
    count = len(image.unit)
    rows = torch.empty(count, len(texts))
    for which in blocks:
        text = texts.words(which, image.unit.device)
        rows[:, which] = torch.cat([pairs(n, image[n : n + 1], text, which) for n in range(count)]).cpu()
    return rows


def _blocks(config: Config, lengths: Tensor, memory: int) -> Iterator[Tensor]:
    """Indices of texts, longest first, in blocks that meet one image within `memory` bytes."""
    order = lengths.argsort(descending=True, stable=True)
    at = 0
    while at < len(order):
        fit = max(1, memory // pair_bytes(config, int(lengths[order[at]])))
        yield order[at : at + fit]
        at += fit


def pair_bytes(config: Config, words: int) -> int:
    """Bytes that one image and one text of so many words hold at the same time, at most, in float32."""
    rows = config.aggregated + 2
    weights = max(2 * rows * config.patches, config.kept * config.embed_size)
    own = 2 * rows * config.embed_size + words * (config.embed_size + 3 * rows) + 8 * config.patches
    return 4 * (weights + own) * (2 if config.impl == "seps_paper" else 1)
