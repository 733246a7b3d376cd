"""Open-weight models: any `AutoModelForImageTextToText` checkpoint, from the hub or from a folder.

Knows the knobs and what a checkpoint is able to do; reads its config when constructed and loads its
weights with the first requests. Must not know benchmarks or methods. Its private files know the rest:
checkpoints, prompts, decoding, rows and batches, and one file per family's layout.

    hf:llava-hf/llava-1.5-7b-hf,dtype=bfloat16        hf:assets/demo        hf:./my_checkpoint
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from adapters._hf_checkpoint import (
    Checkpoint,
    Dtype,
    Quantization,
    find,
    full_layers,
    load,
    load_processor,
    pick_dtype,
    require_quantization,
)
from adapters._hf_prompts import Template, render
from harness.checkpoints import pick_device
from harness.errors import ModelError
from harness.types import Capability, Model, Pace, Request, Response

if TYPE_CHECKING:
    from adapters._hf_wave import Waves

Attention = Literal["auto", "fovea", "sdpa", "eager", "flash_attention_2"]

LAYOUTS = {
    "llava": "_hf_llava",
    "llava_next": "_hf_llava_next",
    "idefics3": "_hf_idefics3",
    "smolvlm": "_hf_idefics3",
    "paligemma": "_hf_paligemma",
    "gemma3": "_hf_gemma3",
    "instructblip": "_hf_instructblip",
    "qwen2_vl": "_hf_qwen",
    "qwen2_5_vl": "_hf_qwen",
    "qwen3_vl": "_hf_qwen3",
}
"""The file that knows a family's image tokens: it exports `layout`, a `Layout`, and `gap(config)`."""

MAP_LAYERS = {("llava", 32): 14, ("instructblip", 32): 15, ("qwen2_5_vl", 36): 22}
"""Layer of an importance map by family and depth, as mllms_know has them for LLaVA-1.5-7B,
InstructBLIP-Vicuna-7B and Qwen2.5-VL-3B; any other decoder's is its middle one, where attention
localises best (its issue 6), or the nearest to it without a sliding window."""


def model(
    checkpoint: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = "none",
    attn: Attention = "auto",
    template: Template = "auto",
    batch: int | None = None,
    max_pixels: int | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """A checkpoint from a folder or the Hugging Face hub. Its weights load with the first requests.

    revision: a branch, tag or commit of the hub. device: auto (CUDA if there is any), cpu, cuda, cuda:1.
    dtype: auto is float32 on a CPU and the checkpoint's half precision elsewhere. quantization: through
    bitsandbytes. attn: auto is "fovea" (SDPA with attention taps) where the layout is known, SDPA
    elsewhere, and eager where SDPA cannot compute the decoder; without "fovea" no maps are offered.
    template: chat (the checkpoint's own), vicrop (ViCrop's raw string for LLaVA, or for InstructBLIP),
    paligemma (its processor's), plain; auto is chat if there is one. batch: rows at a time to begin with;
    running out of memory halves it. max_pixels: of a resized picture, where the family keeps its shape
    (Qwen-VL); the checkpoint's own limit otherwise.

    Raises `ModelError` for anything that keeps every request from being answered.
    """
    if batch is not None and batch < 1:
        raise ModelError(f"batch={batch}; it must be 1 or more")
    if max_pixels is not None and max_pixels < 1:
        raise ModelError(f"max_pixels={max_pixels}; it must be 1 or more")
    require_quantization(quantization)
    found = find(checkpoint, revision, trust_remote_code=trust_remote_code)
    unknown, untapped = layout_gap(found.config), kernel_gap(found.config)
    if attn == "auto":
        attn = "eager" if untapped else "sdpa" if unknown else "fovea"
    elif attn == "fovea" and unknown:
        raise ModelError(f"attn=fovea is for layouts that are known; {unknown}. Use attn=auto")
    elif attn in ("fovea", "sdpa") and untapped:
        raise ModelError(f"attn={attn} cannot compute this decoder: {untapped}. Use attn=auto")
    elif attn == "flash_attention_2" and not unknown and _layout_file(found.family).layout.masked:
        raise ModelError(
            f"attn=flash_attention_2 is causal, but some of {found.family}'s tokens see what comes after "
            "them. Use attn=auto"
        )
    if max_pixels is not None and not (found.family in LAYOUTS and _layout_file(found.family).layout.limited):
        raise ModelError(
            f"max_pixels is for models that keep a picture's shape (Qwen-VL); {found.name} is {found.family}"
        )
    why_not = unknown or untapped
    if not why_not and attn != "fovea":
        why_not = f"with attn={attn} nothing can be read or steered; use attn=auto"
    device = pick_device(device)
    return Hf(
        checkpoint=found,
        device=device,
        dtype=pick_dtype(dtype, device, found.config),
        quantization=quantization,
        attn=attn,
        template=_pick_template(template, found),
        batch=batch or (16 if device == "cpu" else 32),
        max_pixels=max_pixels,
        trust_remote_code=trust_remote_code,
        why_not=why_not,
    )


def layout_gap(config: Any) -> str:
    """Why the layout of a config's image tokens is not known; empty if it is."""
    if config.model_type not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        return (
            f"where {config.model_type}'s image tokens stand is not known to the hf adapter; it knows {known}"
        )
    return str(_layout_file(config.model_type).gap(config))


def kernel_gap(config: Any) -> str:
    """Why SDPA, and "fovea" with it, cannot compute a config's decoder; empty if they can."""
    cap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return f"its attention logits are capped at {cap}, which SDPA does not do" if cap else ""


def _layout_file(family: str) -> ModuleType:
    return importlib.import_module(f"adapters.{LAYOUTS[family]}")


def _pick_template(template: Template, found: Checkpoint) -> Template:
    chat = _has_chat_template(found.folder)
    if template == "auto":
        return "chat" if chat else "paligemma" if found.family == "paligemma" else "plain"
    if template == "chat" and not chat:
        raise ModelError(f"{found.name} has no chat template; use template=plain or template=vicrop")
    if template == "vicrop" and found.family not in ("llava", "instructblip"):
        raise ModelError(
            f"template=vicrop is LLaVA's and InstructBLIP's; {found.name} is {found.family}: "
            "use template=chat"
        )
    if template == "paligemma" and found.family != "paligemma":
        raise ModelError(f"template=paligemma is its own; {found.name} is {found.family}: use template=chat")
    return template


def _has_chat_template(folder: Path) -> bool:
    """In a file of its own, or inside the tokenizer's or the processor's settings."""
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    settings = (folder / name for name in ("tokenizer_config.json", "processor_config.json"))
    return any('"chat_template"' in file.read_text("utf-8") for file in settings if file.is_file())


@dataclass(eq=False)
class Hf:
    """One checkpoint under one set of knobs. `model()` makes it and describes the knobs.

    why_not: why it serves no maps and no steering; empty if it could.
    """

    checkpoint: Checkpoint
    device: str
    dtype: str
    quantization: Quantization
    attn: str
    template: Template
    batch: int
    max_pixels: int | None
    trust_remote_code: bool
    why_not: str
    _waves: Waves | None = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def offers(self) -> frozenset[Capability]:
        """Likelihoods from every decoder; maps and steering where the layout and the kernel allow it."""
        config = self.checkpoint.config
        if config.is_encoder_decoder or config.get_text_config().is_encoder_decoder:
            return frozenset()
        if self.attn == "fovea":
            offers: frozenset[Capability] = _layout_file(self.checkpoint.family).layout.offers
            return offers
        return frozenset({Capability.LIKELIHOOD})

    @property
    def pace(self) -> Pace:
        return Pace(group=max(64, 2 * self.batch))

    def describe(self) -> dict[str, Any]:
        """Everything that decides its answers. image_size, patch_size: the vision
        tower's input and its patches in pixels, where they are fixed."""
        found = self.checkpoint
        limits = ("size", "crop_size", "do_center_crop", "do_pad", "min_pixels", "max_pixels")
        pixels = {key: found.pixels[key] for key in limits if key in found.pixels}
        if self.max_pixels is not None:
            pixels["max_pixels"] = self.max_pixels
        return {
            "adapter": "hf",
            "model": found.name,
            "revision": found.revision,
            "family": found.family,
            "device": self.device.split(":")[0],
            "dtype": self.dtype,
            "quantization": self.quantization,
            "attention": self.attn,
            "template": self.template,
            "image_size": self._of_the_tower("image_size"),
            "patch_size": self._of_the_tower("patch_size"),
            "image_processor": pixels,
        }

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        """One response per request, in order. Loads the weights at the first call.

        A broken picture, a prompt beyond the context and a row that does not fit into memory by itself
        are failures of their own requests. Raises `ModelError` if the weights do not load and
        `CapabilityError` for a probe that is not offered.
        """
        with self._lock:
            if self._waves is None:
                self._waves = self._load()
            return self._waves.answer(requests)

    def render(self, request: Request) -> str:
        """The prompt's text exactly as it is tokenized, one placeholder per picture; no weights load."""
        processor = load_processor(self.checkpoint, trust_remote_code=self.trust_remote_code)
        return render(request, self.template, processor)

    def _of_the_tower(self, name: str) -> int | None:
        size = getattr(getattr(self.checkpoint.config, "vision_config", None), name, None)
        return size if isinstance(size, int) else None

    def _load(self) -> Waves:
        from adapters._hf_generic import Generic
        from adapters._hf_rows import Family
        from adapters._hf_wave import Waves
        from harness import taps

        taps.register()
        decoder = self.checkpoint.config.get_text_config()
        attention: str | dict[str, str] = self.attn
        # Flash attention has not been run over beginnings that rows share: it takes whole rows.
        shares = not layout_gap(self.checkpoint.config) and self.attn != "flash_attention_2"
        kind: Any = _layout_file(self.checkpoint.family).layout if shares else Generic
        if self.attn == "fovea":
            attention = kind.attention
        weights, processor = load(
            self.checkpoint,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            attention=attention,
            trust_remote_code=self.trust_remote_code,
        )
        if self.max_pixels is not None:
            processor.image_processor.size["longest_edge"] = self.max_pixels  # Qwen's name for the limit
        context = getattr(decoder, "max_position_embeddings", None)
        family: Family = kind(weights, processor, context)
        layers = int(decoder.num_hidden_layers)
        return Waves(
            family.decoder,
            processor,
            family,
            template=self.template,
            batch=self.batch,
            layer=MAP_LAYERS.get((self.checkpoint.family, layers), _middle(decoder)),
            layers=layers,
            context=context,
            offers=self.offers,
            why_not=self.why_not,
        )


def _middle(decoder: Any) -> int:
    """The layer nearest the middle that attends to everything; of two the lower one."""
    middle = int(decoder.num_hidden_layers) // 2
    return min(full_layers(decoder), key=lambda layer: abs(layer - middle))
