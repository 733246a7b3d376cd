"""The losses of LAPS and SEPS: bidirectional hinge with margin, and terms for the share of kept patches.

Knows score matrices, image ids and shares. Must not know: how scores come about, or how training goes. The
hinge: VSE++ (Faghri et al., BMVC 2018) as LAPS uses it (CrossmodalGroup/LAPS: lib/loss.py,
`ContrastiveLoss`). The ratio terms: LAPS (CVPR 2024) and SEPS (arXiv 2511.01390), eq. 7.
"""

from __future__ import annotations

from torch import Tensor

RELEASED_WEIGHT = 2.0
"""What LAPS and SEPS's released code multiply the ratio term by (`ratio_weight`)."""


def hinge(scores: Tensor, ids: Tensor, *, margin: float = 0.2, hardest: bool = False) -> Tensor:
    """The alignment loss of a batch, summed over it; a scalar.

    scores: (B, B), images in rows, texts in columns, pairs on the diagonal. ids: (B,), the image of each
    pair: entries whose images are the same, sibling captions included, cost nothing. hardest: the costliest
    negative of each row and column only, which training does from its second epoch on.

    >>> from torch import tensor
    >>> round(float(hinge(tensor([[1.0, 0.9], [0.5, 0.8]]), tensor([3, 4]))), 6)
    0.4
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or ids.shape != scores.shape[:1]:
        raise ValueError(
            f"scores are {tuple(scores.shape)} and ids {tuple(ids.shape)}; a batch of B pairs has scores "
            "(B, B) and ids (B,)"
        )
    positive = scores.diagonal()
    same = ids[:, None] == ids[None, :]
    of_texts = (margin + scores - positive[:, None]).clamp(min=0).masked_fill(same, 0)
    of_images = (margin + scores - positive[None, :]).clamp(min=0).masked_fill(same, 0)
    if hardest:
        return of_texts.amax(1).sum() + of_images.amax(0).sum()
    return of_texts.sum() + of_images.sum()


def ratio_released(ratio: float, sparse: Tensor, dense: Tensor | None = None) -> Tensor:
    """(mean of the masks' sum − ratio)², before `RELEASED_WEIGHT`; LAPS has no dense mask.

    sparse, dense: the shares of patches kept. The masks are hard and keep the same number everywhere, so this
    is a constant without gradient: to be logged, never tuned. Weighted, SEPS's is 0.5 for ViT with ratio .5
    and 1.39 for Swin-224 with .8.
    """
    return ((sparse if dense is None else sparse + dense) - ratio) ** 2


def ratio_paper(
    ratio: float, sparse: Tensor, dense: Tensor | None = None, *, weights: tuple[float, float] = (0.5, 0.5)
) -> Tensor:
    """SEPS's eq. 7: (ratio − λ₁·mean D_s − λ₂·mean D_d)²; of weight 1. It acts only with Gumbel masks.

    weights: (λ₁, λ₂). The paper says (1, 1), which drives the sum of both shares to `ratio`; halves drive
    their mean there, which is what its text describes. The mean is over all N patches (the paper divides by
    the number of patches kept, which would be a constant). Without dense text λ₁ is 1.
    """
    if dense is None:
        return (ratio - sparse) ** 2
    return (ratio - weights[0] * sparse - weights[1] * dense) ** 2
