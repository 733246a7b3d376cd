"""LAPS and the two SEPS: two towers, and a small head that matches words with the patches that matter.

Knows the architectures, their sizes and what a checkpoint must say of them. Must not know: files of a
dataset, tokenizers, the training loop, how a pool is cut into blocks (`similarity.py` computes; this file
holds weights).

    laps            S = H(V; T)             Fu et al., "LAPS", CVPR 2024 (CrossmodalGroup/LAPS:
    lib/cross_net.py) seps_released   S = H(V; T) + H(V; D)   what the code released with SEPS computes: one
    aggregator, used twice seps_paper      eq. 1-5 of SEPS, arXiv 2511.01390: learned scores, two masks, two
    aggregators, HRPA

V are an image's patches, T a caption's words, D the words of a dense text. The paper of SEPS and the code
released with it are different models; published numbers come from the code. Where the paper is silent:
the score network is C → C/4 → 1 with GELU; relevance is cosine, min-max over patches, without gradient; one
score cannot yield two masks, so eq. 3 is split, (1 − 2β)s^p + β(s^st + s^im) for D_s and the same with s^dt
for D_d; β = .4; the [CLS] token and one token for what D_s dropped stay, as in LAPS; the top k of eq. 5 is 5,
its networks k → 2k → 1 with GELU, their last layers zero at the start (training begins at the means); Gumbel
masks multiply the exponentials of the aggregation's softmax (the same values as subtracting 1e10 from logits,
whose gradient would be 1e10 as large).
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from adapters.seps import similarity
from harness.errors import ModelError, SpecError

Impl: TypeAlias = Literal["laps", "seps_released", "seps_paper"]
Mask: TypeAlias = Literal["gumbel", "topk"]
Side: TypeAlias = Literal["image", "text"]

IMPLS = ("laps", "seps_released", "seps_paper")


class Preset(NamedTuple):
    """A backbone as LAPS and SEPS name it, with the ratios that they use."""

    checkpoint: str
    image_size: int
    patches: int
    has_cls: bool
    sparse_ratio: float
    aggr_ratio: float


PRESETS: Mapping[str, Preset] = {
    "vit-224": Preset("google/vit-base-patch16-224-in21k", 224, 196, True, 0.5, 0.4),
    "vit-384": Preset("google/vit-base-patch16-384", 384, 576, True, 0.5, 0.4),
    "swin-224": Preset("microsoft/swin-base-patch4-window7-224", 224, 49, False, 0.8, 0.6),
    "swin-384": Preset("microsoft/swin-base-patch4-window12-384", 384, 144, False, 0.8, 0.6),
}

HAS_CLS = {
    "vit": True,
    "deit": True,
    "beit": True,
    "dinov2": True,
    "clip_vision_model": True,
    "siglip_vision_model": False,
    "swin": False,
    "swinv2": False,
}
"""Which vision families put a [CLS] token first; for others the flag must be given."""

ANY_SIZE = ("dinov2",)
"""Families that stretch their positions to the picture by themselves."""


@dataclass(frozen=True)
class Config:
    """All that a checkpoint says of itself, so that its folder is complete; JSON both ways.

    backbone, text: where the towers' first weights came from (a hub name or a folder; for the record).
    image_size: side of the square picture in pixels. embed_size: C. patches: N, spatial tokens only.
    has_cls: whether a [CLS] token comes before them. sparse_ratio: ρ, the share of patches kept for a text.
    aggr_ratio: a; the kept ones become ⌊N·a·ρ⌋ tokens. max_word, dense_max_word: tokens that count when a
    text is encoded for evaluation, [CLS] and [SEP] included. detach_selection: the patches of the head carry
    no gradient back, which is what SEPS's released code does (only [CLS] trains a ViT, nothing a Swin).
    beta, top_k, mask: of `seps_paper`. w_sparse, w_dense: of `seps_released`, weights of its two terms.
    vision_config, text_config: the towers' transformers configurations.
    """

    impl: Impl
    backbone: str
    text: str
    image_size: int
    patches: int
    has_cls: bool
    sparse_ratio: float
    aggr_ratio: float
    embed_size: int = 512
    max_word: int = 90
    dense_max_word: int = 90
    detach_selection: bool = False
    beta: float = 0.4
    top_k: int = 5
    mask: Mask = "gumbel"
    w_sparse: float = 1.0
    w_dense: float = 1.0
    vision_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.impl not in IMPLS:
            raise SpecError(f"impl={self.impl} does not exist; there are {', '.join(IMPLS)}")
        if self.mask not in ("gumbel", "topk"):
            raise SpecError(f"mask={self.mask} does not exist; there are gumbel, topk")
        for name in ("image_size", "patches", "embed_size", "max_word", "dense_max_word", "top_k"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name}={getattr(self, name)}; it must be 1 or more")
        for name in ("sparse_ratio", "aggr_ratio"):
            if not 0 < getattr(self, name) <= 1:
                raise SpecError(f"{name}={getattr(self, name)}; it must lie in (0, 1]")
        if not 0 <= self.beta <= 0.5:
            raise SpecError(
                f"beta={self.beta}; it must lie in [0, 0.5], for 1 - 2 beta weighs the learned score"
            )
        if (self.w_sparse, self.w_dense) != (1, 1) and self.impl != "seps_released":
            raise SpecError(
                f"w_sparse and w_dense weigh the terms of seps_released; {self.impl} has no two terms"
            )
        if self.aggregated < 1:
            raise SpecError(
                f"{self.patches} patches x aggr_ratio {self.aggr_ratio} x sparse_ratio {self.sparse_ratio} "
                "make no aggregated token; raise a ratio"
            )
        size, family = self.vision_config.get("image_size"), self.vision_config.get("model_type")
        if isinstance(size, int) and size != self.image_size and family not in ANY_SIZE:
            raise SpecError(
                f"backbone {self.backbone} is made for pictures of {size} pixels, image_size is "
                f"{self.image_size}; say image_size={size} or take a backbone for {self.image_size}"
            )

    @property
    def kept(self) -> int:
        """K, the number of patches that a text keeps."""
        return math.ceil(self.patches * self.sparse_ratio)

    @property
    def aggregated(self) -> int:
        """N_c, the number of tokens that the kept patches become; in LAPS's order of multiplication."""
        return int(self.patches * self.aggr_ratio * self.sparse_ratio)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Config:
        """The reverse of `to_json`. SpecError: a key that does not exist, or one that is missing."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        required = {
            name
            for name, field in known.items()
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
        if wrong := sorted(set(values) - set(known)):
            raise SpecError(f"a SEPS config has no {', '.join(wrong)}; it has {', '.join(known)}")
        if missing := sorted(required - set(values)):
            raise SpecError(f"the SEPS config lacks {', '.join(missing)}")
        return cls(**values)


def configure(
    impl: Impl,
    backbone: str = "vit-224",
    text: str = "bert-base-uncased",
    *,
    has_cls: bool | None = None,
    patches: int | None = None,
    image_size: int | None = None,
    sparse_ratio: float | None = None,
    aggr_ratio: float | None = None,
    **options: Any,
) -> Config:
    """A Config for towers whose configurations are on the hub or in folders; weights are not loaded.

    backbone: a name of `PRESETS`, a hub name or a folder (ViT, Swin, CLIP's or SigLIP's vision tower, or any
    `AutoModel` whose `last_hidden_state` is [CLS?] + patches). has_cls, patches: needed where the family is
    not known here; `SEPS.encode_images` checks them against what the tower gives. Ratios default to the
    preset's, otherwise to ViT's .5 and .4 (with [CLS]) or Swin's .8 and .6. options: further fields of
    Config. SpecError: an unknown family without has_cls, sizes that do not fit.
    """
    preset = PRESETS.get(backbone)
    name = preset.checkpoint if preset else backbone
    vision = tower_config(name, vision=True)
    family = vision.model_type
    cls = has_cls if has_cls is not None else HAS_CLS.get(family)
    if cls is None:
        raise SpecError(
            f"whether {name} ({family}) puts a [CLS] token first is not known; say has_cls=true or false"
        )
    size = image_size or (preset.image_size if preset else getattr(vision, "image_size", None))
    if not isinstance(size, int):
        raise SpecError(f"{name} does not say its image size ({size}); say image_size=...")
    count = patches or _patches(vision, size)
    if count is None:
        raise SpecError(
            f"how many patches {name} ({family}) makes of {size} pixels is not known; say patches=..."
        )
    ratios = (preset.sparse_ratio, preset.aggr_ratio) if preset else ((0.5, 0.4) if cls else (0.8, 0.6))
    return Config(
        impl=impl,
        backbone=name,
        text=text,
        image_size=size,
        patches=count,
        has_cls=cls,
        sparse_ratio=ratios[0] if sparse_ratio is None else sparse_ratio,
        aggr_ratio=ratios[1] if aggr_ratio is None else aggr_ratio,
        vision_config=plain(vision),
        text_config=plain(tower_config(text, vision=False)),
        **options,
    )


def _patches(vision: Any, size: int) -> int | None:
    """Spatial tokens of a square picture: Swin halves the sides after each stage but the last."""
    patch = getattr(vision, "patch_size", None)
    if not isinstance(patch, int):
        return None
    if vision.model_type.startswith("swin"):
        patch *= 2 ** (len(vision.depths) - 1)
    return (size // patch) ** 2


def tower_config(name: str, vision: bool) -> Any:
    """The transformers configuration of a tower; of a two-tower model (CLIP) the half that is asked for."""
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(f"no configuration of {name}: {error}") from error
    return getattr(found, "vision_config" if vision else "text_config", found)


def plain(config: Any) -> dict[str, Any]:
    values = json.loads(config.to_json_string(use_diff=False))
    for name in ("transformers_version", "_name_or_path", "id2label", "label2id"):
        values.pop(name, None)
    return cast(dict[str, Any], values)


def _tower(values: Mapping[str, Any]) -> nn.Module:
    """A tower of random weights, without its pooler where the class can do so."""
    from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig

    family = values.get("model_type")
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        raise ModelError(
            f"a tower's configuration is of model_type {family!r}, which transformers does not know"
        )
    config = AutoConfig.for_model(**values)
    try:
        kind = MODEL_MAPPING[type(config)]
    except KeyError:
        raise ModelError(f"transformers has no AutoModel for model_type {family!r}") from None
    options = {}
    if "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
        options["add_pooling_layer"] = False  # only last_hidden_state is used
    return cast(nn.Module, kind(config, **options))


def _projection(width: int, embed: int) -> nn.Module:
    """Linear to C, or nothing where the tower's width is C already (LAPS: lib/encoders.py)."""
    return nn.Identity() if width == embed else nn.Linear(width, embed)


class Towers(nn.Module):
    """The picture's and the text's encoder, each with a linear map to C; dense texts share the text's."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.vision = _tower(config.vision_config)
        self.text = _tower(config.text_config)
        self.vision_projection = _projection(_width(self.vision), config.embed_size)
        self.text_projection = _projection(_width(self.text), config.embed_size)


def _width(tower: nn.Module) -> int:
    width = getattr(tower.config, "hidden_size", None)
    if not isinstance(width, int):
        raise ModelError(
            f"{type(tower).__name__} does not say its hidden size; its tokens cannot be projected"
        )
    return width


class Aggregator(nn.Module):
    """A patch's logits for each of the N_c tokens that the kept patches become (LAPS: `TokenAggregation`).

    (…, N, C) -> (…, N, N_c): scale · (W₂ GELU(W₁ LN(v) + b₁) + b₂), hidden ⌊0.2 C⌋. Parameter names and
    shapes are LAPS's.
    """

    def __init__(self, embed: int, tokens: int) -> None:
        super().__init__()
        hidden = int(embed * 0.2)
        if hidden < 1:
            raise SpecError(f"embed_size={embed} leaves the aggregator no hidden unit; it must be 5 or more")
        self.weight = nn.Sequential(
            nn.LayerNorm(embed), nn.Linear(embed, hidden), nn.GELU(), nn.Linear(hidden, tokens)
        )
        self.scale = nn.Parameter(torch.ones(1, 1, 1))

    def forward(self, patches: Tensor) -> Tensor:
        return cast(Tensor, self.weight(patches)) * self.scale


class Head(nn.Module):
    """The weights of the cross-modal block; `similarity.block` computes with them.

    aggregate: the aggregator of `laps` and of both branches of `seps_released`, W_s of `seps_paper`.
    Of `seps_paper` alone: aggregate_dense (W_d), score (the network of eq. 1), top_rows and top_words (the
    two of eq. 5, over the k best of rows and of words).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        size, count, k = config.embed_size, config.aggregated, config.top_k
        self.aggregate = Aggregator(size, count)
        if config.impl == "seps_paper":
            self.aggregate_dense = Aggregator(size, count)
            self.score = nn.Sequential(nn.Linear(size, size // 4), nn.GELU(), nn.Linear(size // 4, 1))
            self.top_rows = _top(k)
            self.top_words = _top(k)


def _top(k: int) -> nn.Sequential:
    last = nn.Linear(2 * k, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(k, 2 * k), nn.GELU(), last)


def head_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of LAPS's or released SEPS's cross net (7 tensors), under the names of `Head`.

    state: of the cross net itself, or of the whole model (`cross_net.…`). ModelError: no aggregator in it.
    """
    found = {
        "aggregate." + name.split("aggr_net.", 1)[1]: weight
        for name, weight in state.items()
        if name.removeprefix("module.").removeprefix("cross_net.").startswith("aggr_net.")
    }
    if len(found) != 7:
        raise ModelError(f"a cross net of LAPS has 7 tensors named aggr_net.*; this has {len(found)}")
    return found


class SEPS(nn.Module):
    """Towers and head. Pictures and texts become tokens; tokens become scores.

    All weights are random, to be filled by `load_state_dict`, or by the training from published towers.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.towers = Towers(config)
        self.head = Head(config)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(B, 3, r, r), normalised -> (B, N + cls, C). ModelError where the tower's tokens are not as
        configured."""
        config = self.config
        side = config.image_size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, side, side):
            raise ModelError(f"pixels are {tuple(pixels.shape)}; this model takes (B, 3, {side}, {side})")
        tokens = self.towers.vision(pixel_values=pixels).last_hidden_state
        expected = config.patches + config.has_cls
        if tokens.ndim != 3 or tokens.shape[1] != expected:
            kind = "and a" if config.has_cls else "no"
            raise ModelError(
                f"{config.backbone} makes {tuple(tokens.shape[1:])} of a picture of {side} pixels; "
                f"the config says {expected} tokens: {config.patches} patches, {kind} [CLS]. Correct patches "
                "and has_cls, or take a backbone that gives a row of tokens"
            )
        return cast(Tensor, self.towers.vision_projection(tokens))

    def encode_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and their mask (1 at tokens, 0 at pads), both (B, L) -> (B, L, C).

        ModelError: more tokens than the text tower has positions for.
        """
        limit = self.config.text_config.get("max_position_embeddings")
        if isinstance(limit, int) and ids.shape[1] > limit:
            raise ModelError(
                f"a text has {ids.shape[1]} tokens, {self.config.text} reads {limit}; truncate the texts"
            )
        words = self.towers.text(input_ids=ids, attention_mask=mask).last_hidden_state
        return cast(Tensor, self.towers.text_projection(words))

    def forward(
        self,
        V: Tensor,
        T: Tensor,
        T_len: Tensor,
        D: Tensor | None = None,
        D_len: Tensor | None = None,
        dense_of: Side | None = None,
    ) -> tuple[Tensor, similarity.Shares]:
        """Scores of all pairs of a batch, with gradient: (images, texts), and the shares of patches kept.

        V (B_v, N + cls, C), T (B_t, L, C), T_len (B_t,), D (n, L', C), D_len (n,): n dense texts, one per
        image or one per text. dense_of: which; None takes what each impl trains with: "text" for
        `seps_released` (its code's column), "image" for `seps_paper`. `laps` takes no D.
        """
        dense = None
        if D is not None and D_len is not None:
            side = dense_of or ("image" if self.config.impl == "seps_paper" else "text")
            dense = similarity.Dense(D, D_len, side)
        return similarity.scores(self.head, V, T, T_len, dense)


def save(model: SEPS, folder: Path) -> None:
    """Write `model.safetensors`, then `config.json`, whose presence says that the weights are complete."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().contiguous().cpu() for name, weight in model.state_dict().items()}
    part = folder / "model.safetensors.part"
    save_file(weights, part)
    part.replace(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_json(), indent=1) + "\n", encoding="utf-8")


def load(folder: Path) -> SEPS:
    """The model of a checkpoint folder, in evaluation mode, on the CPU. ModelError: files missing or not
    fitting."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{folder} is not a SEPS checkpoint (config.json, model.safetensors): {error}"
        ) from error
    if not isinstance(values, dict):
        raise ModelError(f"{folder / 'config.json'} holds {type(values).__name__}, not a SEPS config")
    model = SEPS(Config.from_json(values))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(f"the weights in {folder} are not those of its config.json: {error}") from error
    return model.eval()
