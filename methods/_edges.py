"""Where a picture has edges, and means over blocks: what pure_grad does with gradients at pixels.

Knows pictures and arrays. Must not know models or requests.
Reference: saccharomycetes/mllms_know, commit a64c5d5, `utils.py`: high_pass_filter, and
`llava_methods.py`: pure_gradient_llava.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.types import Fidelity

if TYPE_CHECKING:
    from PIL import Image

MEDIAN = 7
"""Pixels a side of the median filter."""
SIGMA = 0.8
"""Of the 3 x 3 Gaussian, in pixels: what torchvision takes for a kernel of three."""
ROUNDING = 1e-5
"""Detail below this is none: one grey level at one pixel gives 2e-4 or more."""


def edge_mask(
    image: Image.Image, shape: tuple[int, int], fidelity: Fidelity = "fixed"
) -> npt.NDArray[np.bool_]:
    """Which half of a picture's pixels has the more detail: bool (rows, cols) of `shape`.

    The picture is squashed to `shape`, in [0, 1]; its detail is its distance from a blurred copy of
    itself, over the channels, through a median filter; the mask is what lies above the median.

    released: equal to the reference's bit for bit where both run on one machine. fixed: what is only
    rounding, in flat regions, is no detail.

    >>> from PIL import Image
    >>> half = Image.new("RGB", (64, 64), "black")
    >>> half.paste("white", (40, 0, 64, 64))
    >>> for x in range(8, 24, 4):
    ...     half.paste("white", (x, 0, x + 2, 64))
    >>> mask = edge_mask(half, (64, 64))
    >>> [bool(mask[32, x]) for x in (16, 32, 60)]  # in the stripes, in the black, in the white
    [True, False, False]
    """
    from PIL import Image
    from scipy import ndimage

    small = image.convert("RGB").resize(shape[::-1], Image.Resampling.BILINEAR)
    pixels = np.asarray(small, dtype=np.float32) / np.float32(255)  # (rows, cols, 3)
    detail = np.sqrt(np.square(_less_its_blur(pixels)).sum(axis=0))
    if fidelity == "fixed":
        detail[detail < ROUNDING] = 0
    detail = ndimage.median_filter(detail, size=MEDIAN)
    mask: npt.NDArray[np.bool_] = detail > np.median(detail)
    return mask


def _less_its_blur(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(3, rows, cols): a picture less its Gaussian blur, the edges reflected; repeated where a side is one
    pixel, which has nothing to reflect.

    By torch, as torchvision does it: where a picture is flat, the released mask is decided by rounding,
    and that is the kernel's own.
    """
    import torch
    from torch.nn import functional

    planes = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    taps = torch.exp(-0.5 * (torch.linspace(-1, 1, steps=3) / SIGMA).pow(2))
    taps = taps / taps.sum()
    kernel = torch.mm(taps[:, None], taps[None, :]).expand(3, 1, 3, 3)
    padded = planes[None]
    for ends, length in (([1, 1, 0, 0], planes.shape[2]), ([0, 0, 1, 1], planes.shape[1])):
        padded = functional.pad(padded, ends, mode="reflect" if length > 1 else "replicate")
    blurred = functional.conv2d(padded, kernel, groups=3)[0]
    detail: npt.NDArray[np.float32] = (planes - blurred).numpy()
    return detail


def block_mean(values: npt.NDArray[np.floating[Any]], block: int) -> npt.NDArray[np.floating[Any]]:
    """The mean of every block of `block` x `block` cells; what is left over at the right and below is cut,
    unless it is all there is.

    >>> block_mean(np.float32([[1, 3, 0, 0, 9], [5, 7, 0, 4, 9]]), 2).tolist()
    [[4.0, 1.0]]
    >>> block_mean(np.float32([[1, 3, 5, 7, 9]]), 2).tolist()
    [[2.0, 6.0]]
    """
    high, wide = (min(block, length) for length in values.shape)
    rows, cols = values.shape[0] // high, values.shape[1] // wide
    blocks = values[: rows * high, : cols * wide].reshape(rows, high, cols, wide).swapaxes(1, 2)
    means: npt.NDArray[np.floating[Any]] = blocks.mean(axis=(2, 3))
    return means
