"""SPARC: while a caption is written, image tokens that are suddenly looked at keep being looked at more.

"Visual Attention Never Fades: Selective Progressive Attention ReCalibration for Detailed Image
Captioning in Multimodal Large Language Models" (ICML 2025, arXiv 2502.01419). Reference:
mingi000508/SPARC, commit bad02ff (`attn_util.py`; settings of `scripts/llava*/*.sh`).

Knows the method's knobs and which requests it steers. Must not know token layouts: the model that offers
steering says where the image tokens stand, and the arithmetic is in `_sparc_tap.py`.

Let a_t(p) be the attention that the newest token pays to image position p in `layer`, averaged over the
heads, and m(p) its moving average, which begins as a_0, the last prompt token's. At each step t >= 1

    r(p) = (a_t(p) - m(p)) / m(p),    S = {p : r(p) >= tau},    m <- (1 - beta) a_t + beta m

and from the next step on, in every layer of `layers`, the cached values of S are scaled by alpha. A
position selected in c steps is scaled by alpha ** c: the release's cache remembers that, here a gain per
position does, by which its weight is multiplied instead (the products are the same but for rounding).

Repairs of the released code under `fidelity=fixed`, each absent under `released`:

- The prompt is read causally. Released: under its pinned stack (SDPA, batch 1) the patched attention
  gets no mask and adds none, so the prompt's tokens also see those after them.
- A position that never got attention and gets none (0/0) has r = 0. Released: NaN, never selected.
- Weights are averaged over heads in float32. Released: in the model's dtype.
- Image positions are found among the token ids. Released: from position 35 on (reproduced by neither).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.errors import CapabilityError, SpecError
from harness.types import Capability, Fidelity, Json, Method, Request, Response, require

if TYPE_CHECKING:
    from harness.taps import Prompt
    from methods._sparc_tap import SparcTap

Select = Literal["relative", "all", "random"]

TAU = {"llava_next": 4.0}
"""The released scripts' threshold by family; any other family has LLaVA-1.5's."""
LLAVA_TAU = 1.5


@dataclass(frozen=True)
class SparcSteering:
    """What `Sparc` asks of a model's generation: a probe that brings its own tap.

    Fields as `Sparc`'s. whole_prompt: all of the prompt must pass in one forward, because every token
    of it sees every other (the released prefill).
    """

    alpha: float
    beta: float
    tau: float
    layer: int | None
    layers: tuple[int, int] | None
    select: Select
    seed: int
    whole_prompt: bool

    @property
    def needs(self) -> Capability:
        return Capability.STEERING

    def tap(self, prompt: Prompt) -> SparcTap:
        """The state of one generation. Raises `CapabilityError` for a layer that does not exist."""
        from methods._sparc_tap import SparcTap

        return SparcTap(self, prompt)


@dataclass(frozen=True)
class Sparc(Method):
    """Steers the generation of a model that offers steering; its words stay the model's own.

    alpha: gain per selection; 1 changes nothing. beta: weight of the old average. tau: threshold of the
    relative activation; None is the released scripts' (LLaVA-NeXT 4.0, LLaVA-1.5 and any other family
    1.5). layer: where activation is read, 0-based; None is 5/8 of the depth, the released 20 of 32, or the
    nearest to it without a window, which would lose sight of the picture.
    layers: first and last layer whose values are scaled, `FIRST-LAST`; None is all, as released. select:
    `relative` as above; the controls `all` (every image token, the paper's naive arm) and `random` (as
    many as `relative` would take, drawn with `seed`). fidelity: which of the two versions above.

    Transparent: it offers what its model does, except likelihoods (scoring an option decodes nothing to
    steer), further steering, and, under `released`, maps (they would be read of another prompt pass).
    A request without a picture goes on as it came. Trace: layer, tau, per decoded token the selected
    image tokens (0 is the first) and their number, and how the first picture's tokens lie in it.
    """

    name: ClassVar[str] = "sparc"
    alpha: float = 1.1
    beta: float = 0.1
    tau: float | None = None
    layer: int | None = None
    layers: str | None = None
    select: Select = "relative"
    seed: int = 0
    fidelity: Fidelity = "fixed"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise SpecError(f"alpha={self.alpha}; it is a gain above 0 (1 changes nothing)")
        if not 0 <= self.beta <= 1:
            raise SpecError(f"beta={self.beta}; it must lie in [0, 1]")
        if self.tau is not None and math.isnan(self.tau):
            raise SpecError("tau is not a number")
        if self.layer is not None and self.layer < 0:
            raise SpecError(f"layer={self.layer}; layers count from 0")
        layer_range(self.layers)
        require(
            self.model,
            Capability.STEERING,
            "sparc",
            "Use an `hf:` model whose layout is known (docs/whitebox.md), with attn=auto, and one sparc, "
            "named first: it stands next to the model",
        )

    @property
    def offers(self) -> frozenset[Capability]:
        lost = {Capability.LIKELIHOOD, Capability.STEERING}
        if self.fidelity == "released":
            lost |= {Capability.ATTENTION, Capability.GRADIENT}
        return self.model.offers - lost

    @property
    def why_not(self) -> str:
        """Why it serves no maps, if it is this method that does not."""
        return "" if self.fidelity == "fixed" else "sparc:fidelity=released serves no maps; fixed does"

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        if any(request.options for request in requests):
            raise CapabilityError("sparc steers what is decoded; it cannot score options. Generate instead")
        if self.fidelity == "released" and any(request.probes for request in requests):
            raise CapabilityError("sparc:fidelity=released serves no maps; use fidelity=fixed")
        probe = self._probe()
        steered = [bool(request.images and request.decoding.max_tokens) for request in requests]
        wave = [
            replace(request, probes=(*request.probes, probe)) if steer else request
            for request, steer in zip(requests, steered, strict=True)
        ]
        responses = self.model.generate(wave) if wave else []
        return [
            response if not request.decoding.max_tokens else self._traced(request, response)
            for request, response in zip(requests, responses, strict=True)
        ]

    def _probe(self) -> SparcSteering:
        described: Any = self.model.describe()
        while isinstance(described.get("model"), dict):  # methods nest; the innermost model knows
            described = described["model"]
        tau = TAU.get(str(described.get("family")), LLAVA_TAU) if self.tau is None else self.tau
        return SparcSteering(
            alpha=self.alpha,
            beta=self.beta,
            tau=tau,
            layer=self.layer,
            layers=layer_range(self.layers),
            select=self.select,
            seed=self.seed if self.select == "random" else 0,
            whole_prompt=self.fidelity == "released",
        )

    def _traced(self, request: Request, response: Response) -> Response:
        trace: dict[str, Json] = {"method": self.name, **response.trace}
        if not request.images:
            trace["skipped"] = "no image"
        return replace(response, trace=trace)


method = Sparc


def layer_range(text: str | None) -> tuple[int, int] | None:
    """`FIRST-LAST`, both included; None is all layers. Raises `SpecError`.

    >>> layer_range("2-6")
    (2, 6)
    """
    if text is None:
        return None
    first, dash, last = text.partition("-")
    if not (dash and first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise SpecError(f"layers={text}; it reads FIRST-LAST, such as 0-31, both included")
    return (int(first), int(last))
