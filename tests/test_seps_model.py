"""LAPS's and SEPS's models: sizes, the references' numbers and gradients, towers, losses, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_seps
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, ViTModel

from adapters.seps import similarity
from adapters.seps._build import fill_tower
from adapters.seps.loss import RELEASED_WEIGHT, hinge, ratio_paper, ratio_released
from adapters.seps.model import PRESETS, SEPS, Config, Head, configure, head_weights, load, save
from harness.errors import ModelError, SpecError

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "seps_laps.json").read_text(encoding="utf-8"))
CASES = {case["name"]: case for case in GOLDEN["cases"]}
T_LEN = torch.tensor(GOLDEN["meta"]["lengths"]["T"])
D_LEN = torch.tensor(GOLDEN["meta"]["lengths"]["D"])


def drawn(case: dict[str, Any]) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The weights and features of a golden case, by the recipe in its file."""
    width, count = case["embed"], int(case["patches"] * case["aggr_ratio"] * case["sparse_ratio"])
    hidden = int(width * 0.2)
    shapes = {
        "aggr_net.scale": (1, 1, 1),
        "aggr_net.weight.0.bias": (width,),
        "aggr_net.weight.0.weight": (width,),
        "aggr_net.weight.1.bias": (hidden,),
        "aggr_net.weight.1.weight": (hidden, width),
        "aggr_net.weight.3.bias": (count,),
        "aggr_net.weight.3.weight": (count, hidden),
    }
    rng = np.random.RandomState(case["seed"])
    weights = {name: torch.from_numpy(rng.standard_normal(shape) * 0.3) for name, shape in shapes.items()}
    weights["aggr_net.scale"] = torch.full((1, 1, 1), 1.5)
    weights["aggr_net.weight.0.weight"] += 1
    tokens = case["patches"] + case["has_cls"]
    sizes = ((4, tokens, width), (5, 12, width), (5, 30, width), (4, 5))
    V, T, D, coefficients = (torch.from_numpy(rng.standard_normal(size)).float() for size in sizes)
    return {name: weight.float() for name, weight in weights.items()}, (V, T, D, coefficients)


def head_of(case: dict[str, Any], impl: str, detach: bool = False) -> tuple[Head, tuple[Tensor, ...]]:
    weights, features = drawn(case)
    ratios = case["sparse_ratio"], case["aggr_ratio"]
    head = tiny_seps.head(
        impl, case["patches"], case["has_cls"], ratios, case["embed"], detach_selection=detach
    )
    head.load_state_dict(head_weights(weights))
    return head, features


# ---------------------------------------------------------------- beside the references


@pytest.mark.parametrize("name", CASES)
def test_laps_scores_are_those_of_its_own_module(name: str) -> None:
    head, (V, T, _, _) = head_of(CASES[name], "laps")
    expected = torch.tensor(CASES[name]["laps"]["S"])
    assert (similarity.scores(head, V, T, T_LEN)[0] - expected).abs().max() <= 1e-6
    assert (similarity.block(head, V, T, T_LEN) - expected).abs().max() <= 1e-6
    assert (similarity.matrix(head, V, similarity.Texts.of(T, T_LEN)) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("name", CASES)
def test_released_scores_are_those_of_its_code_which_are_two_of_laps(name: str) -> None:
    assert CASES[name]["difference_of_released_and_sum"] == 0
    head, (V, T, D, _) = head_of(CASES[name], "seps_released", detach=True)
    expected = torch.tensor(CASES[name]["released"]["S"])
    dense = similarity.Dense(D, D_LEN, "text")
    assert (similarity.scores(head, V, T, T_LEN, dense)[0] - expected).abs().max() <= 1e-6
    laps, _ = head_of(CASES[name], "laps")
    both = similarity.block(laps, V, T, T_LEN) + similarity.block(laps, V, D, D_LEN)
    assert torch.equal(similarity.block(head, V, T, T_LEN, dense), both)


@pytest.mark.parametrize("impl", ["laps", "released"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_references(name: str, impl: str) -> None:
    """Of LAPS: every token has one. Of the released code: [CLS] alone, and nothing of a Swin."""
    case = CASES[name]
    golden = case[impl]
    head, (V, T, D, coefficients) = head_of(
        case, "laps" if impl == "laps" else "seps_released", impl != "laps"
    )
    V, T = V.requires_grad_(), T.requires_grad_()
    dense = None if impl == "laps" else similarity.Dense(D, D_LEN, "text")
    (similarity.scores(head, V, T, T_LEN, dense)[0] * coefficients).sum().backward()
    found = torch.zeros_like(V) if V.grad is None else V.grad
    first = int(case["has_cls"])
    assert T.grad is not None
    for ours, theirs in (
        (found[:, :first].norm(dim=(1, 2)), golden["cls"]),
        (found[:, first:].norm(dim=(1, 2)), golden["patches"]),
        (T.grad.norm(dim=(1, 2)), golden["words"]),
    ):
        assert ours.tolist() == pytest.approx(theirs, rel=2e-5, abs=1e-7)
    norms = [
        float(weight.grad.norm()) for _, weight in sorted(head.named_parameters()) if weight.grad is not None
    ]
    assert norms == pytest.approx(golden["weights"], rel=2e-5, abs=1e-6)
    without = int((found[:, first:].norm(dim=-1) == 0).sum())
    assert without == (0 if impl == "laps" else 4 * case["patches"])
    assert (found[:, :first].norm(dim=-1) > 0).all()


@pytest.mark.parametrize("name", CASES)
def test_shares_of_patches_are_those_of_the_references(name: str) -> None:
    head, (V, T, D, _) = head_of(CASES[name], "seps_released")
    _, shares = similarity.scores(head, V, T, T_LEN, similarity.Dense(D, D_LEN, "text"))
    assert shares.dense is not None
    assert float(shares.sparse) == pytest.approx(CASES[name]["mask_mean"]["laps"], abs=1e-6)
    assert float(shares.sparse + shares.dense) == pytest.approx(
        CASES[name]["mask_mean"]["released"], abs=1e-6
    )


def test_a_whole_models_state_gives_its_cross_net_and_another_models_gives_an_error() -> None:
    weights, _ = drawn(CASES["vit-224"])
    whole = {"module.cross_net." + name: weight for name, weight in weights.items()} | {
        "bert.x": torch.ones(1)
    }
    assert set(head_weights(whole)) == set(head_weights(weights)) and len(head_weights(weights)) == 7
    with pytest.raises(ModelError, match=r"7 tensors named aggr_net\.\*; this has 0"):
        head_weights({"bert.x": torch.ones(1)})


# ---------------------------------------------------------------- losses


def test_the_hinge_and_its_gradient_are_those_of_the_reference() -> None:
    rng, drawn_for, scores = np.random.RandomState(99), None, torch.empty(0)
    for case in GOLDEN["hinge"]["cases"]:
        if case["ids"] != drawn_for:
            drawn_for = case["ids"]
            scores = torch.from_numpy(rng.standard_normal((6, 6))).float()
        ours = scores.clone().requires_grad_()
        loss = hinge(ours, torch.tensor(case["ids"]), hardest=case["hardest"])
        loss.backward()
        assert loss.item() == pytest.approx(case["loss"], abs=1e-6)
        assert ours.grad is not None
        if case["loss"]:  # where all cost nothing the hardest is any, and its gradient none
            assert (ours.grad - torch.tensor(case["gradient"])).abs().max() <= 1e-6


@pytest.mark.parametrize("hardest", [False, True])
def test_the_hinge_of_a_case_by_hand(hardest: bool) -> None:
    """Row 1: .2 + .9 - 1 = .1; column 2: .2 + .9 - .8 = .3; the others cost nothing."""
    scores = torch.tensor([[1.0, 0.9], [0.5, 0.8]])
    assert float(hinge(scores, torch.tensor([0, 1]), hardest=hardest)) == pytest.approx(0.4)


@pytest.mark.parametrize("hardest", [False, True])
def test_sibling_captions_of_one_image_cost_nothing(hardest: bool) -> None:
    scores = torch.tensor([[1.0, 0.9], [0.5, 0.8]])
    assert float(hinge(scores, torch.tensor([4, 4]), hardest=hardest)) == 0


def test_a_batch_that_is_not_square_has_no_hinge() -> None:
    with pytest.raises(ValueError, match=r"scores are \(2, 3\)"):
        hinge(torch.ones(2, 3), torch.tensor([0, 1]))


def test_the_released_ratio_term_is_a_constant_without_gradient() -> None:
    for name, expected in (("vit-224", 0.5), ("swin-224", 1.39)):
        case = CASES[name]
        terms = set()
        for seed in range(3):
            head, (V, T, D, _) = head_of(case, "seps_released")
            tiny_seps.draw(head, seed)
            dense = similarity.Dense(D + seed, D_LEN, "text")
            _, shares = similarity.scores(head.train(), V.requires_grad_(), T, T_LEN, dense)
            term = RELEASED_WEIGHT * ratio_released(case["sparse_ratio"], shares.sparse, shares.dense)
            assert not term.requires_grad
            terms.add(round(float(term), 5))
        assert len(terms) == 1 and terms.pop() == pytest.approx(expected, abs=0.005)


def test_the_papers_ratio_term_drives_the_mean_or_the_sum_of_both_shares() -> None:
    half, whole = torch.tensor(0.5), torch.tensor(1.0)
    assert float(ratio_paper(0.5, half, half)) == 0
    assert float(ratio_paper(0.5, half, half, weights=(1, 1))) == 0.25
    assert float(ratio_paper(0.5, half, whole)) == 0.0625
    assert float(ratio_paper(0.5, half)) == 0


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("name", "kept", "aggregated", "parameters"),
    [
        ("vit-224", 98, 39, 57_368),
        ("vit-384", 288, 115, 65_196),
        ("swin-224", 40, 23, 55_720),
        ("swin-384", 116, 69, 60_458),
    ],
)
def test_presets_have_the_published_sizes(name: str, kept: int, aggregated: int, parameters: int) -> None:
    preset = PRESETS[name]
    config = Config("laps", name, "bert", *preset[1:], embed_size=512)
    assert (config.kept, config.aggregated) == (kept, aggregated)
    assert sum(weight.numel() for weight in Head(config).parameters()) == parameters
    paper = Head(Config("seps_paper", name, "bert", *preset[1:], embed_size=512))
    assert sum(weight.numel() for weight in paper.score.parameters()) == 65_793
    assert sum(weight.numel() for weight in paper.parameters()) == 2 * parameters + 65_793 + 2 * 71


def test_the_papers_alignment_starts_as_the_sum_of_both_means() -> None:
    config = tiny_seps.head("seps_paper", 16, False, (0.5, 0.5)).config
    torch.manual_seed(0)
    head = Head(config).eval()
    V, T, lengths = torch.randn(3, 16, 64), torch.randn(4, 6, 64), torch.tensor([6, 3, 5, 2])
    image, text = similarity.images(head, V), similarity.words(T, lengths)
    cosine = torch.rand(3, 4, 6, 9).masked_fill(torch.arange(6)[:, None] >= lengths[:, None, None], 0)
    by_word, by_row, _ = similarity.bests(cosine, text)
    expected = by_word.sum(-1) / lengths + by_row.mean(-1)
    assert torch.equal(similarity.hrpa(head, cosine, text), expected)
    assert len(image.tokens) == 3


# ---------------------------------------------------------------- training what


def gradients(model: SEPS, dense: bool = True) -> set[str]:
    """Names of weights that receive a gradient from one batch of features."""
    torch.manual_seed(0)
    size = model.config.embed_size
    V = torch.randn(3, model.config.patches + model.config.has_cls, size)
    T, D = torch.randn(3, 6, size), torch.randn(3, 20, size)
    lengths, more = torch.tensor([4, 6, 3]), torch.tensor([20, 11, 15])
    S, shares = model(V, T, lengths, *((D, more) if dense else ()))
    loss = hinge(S, torch.arange(3)) + 100 * (
        shares.sparse if shares.dense is None else shares.sparse + shares.dense
    )
    loss.backward()
    return {
        name
        for name, weight in model.head.named_parameters()
        if weight.grad is not None and weight.grad.any()
    }


def test_every_weight_of_the_papers_head_learns_with_either_mask() -> None:
    for mask in ("gumbel", "topk"):
        model = tiny_seps.model("seps_paper", mask=mask).train()
        constants = {"top_rows.2.bias", "top_words.2.bias"}  # move all scores alike, so no hinge minds them
        assert gradients(model) == {name for name, _ in model.head.named_parameters()} - constants


def test_under_topk_the_score_network_learns_only_through_what_is_left_over() -> None:
    kept = {"sparse_ratio": 1.0}  # nothing is left over
    assert not any(
        "score" in name for name in gradients(tiny_seps.model("seps_paper", mask="topk", **kept).train())
    )
    assert any("score" in name for name in gradients(tiny_seps.model("seps_paper", mask="gumbel").train()))


def test_gumbel_masks_leave_gradients_of_a_usual_size() -> None:
    """Subtracting 1e10 from the logits of what is dropped would make them 1e10 as large."""
    model = tiny_seps.model("seps_paper").train()
    gradients(model)
    norms = [float(weight.grad.norm()) for weight in model.head.parameters() if weight.grad is not None]
    assert max(norms) < 1e4


def test_each_impl_trains_with_the_dense_texts_that_it_is_published_with() -> None:
    for impl, own, other in (("seps_released", "text", "image"), ("seps_paper", "image", "text")):
        model = tiny_seps.model(impl)
        torch.manual_seed(0)
        V, T, D = torch.randn(3, 17, 32), torch.randn(3, 6, 32), torch.randn(3, 9, 32)
        lengths, more = torch.tensor([4, 6, 3]), torch.tensor([9, 2, 5])
        default = model(V, T, lengths, D, more)[0]
        assert torch.equal(default, model(V, T, lengths, D, more, dense_of=own)[0])
        assert not torch.equal(default, model(V, T, lengths, D, more, dense_of=other)[0])


# ---------------------------------------------------------------- towers


@pytest.mark.parametrize("backbone", ["vit", "swin"])
def test_pictures_and_texts_become_tokens_and_scores(backbone: str) -> None:
    model = tiny_seps.model("laps", backbone)
    V = model.encode_images(torch.randn(2, 3, 32, 32))
    assert V.shape == (2, 17 if backbone == "vit" else 16, 32)
    ids = torch.tensor([[2, 9, 30, 3], [2, 8, 3, 0]])
    T = model.encode_texts(ids, (ids != 0).long())
    assert T.shape == (2, 4, 32)
    assert model(V, T, torch.tensor([4, 3]))[0].shape == (2, 2)
    alone = model.encode_texts(ids[1:, :3], torch.ones(1, 3, dtype=torch.long))
    assert (T[1, :3] - alone[0]).abs().max() <= 1e-5  # pads do not reach words


def test_towers_of_the_embeddings_width_are_not_projected_and_none_has_a_pooler() -> None:
    model = tiny_seps.model(embed_size=48)
    assert isinstance(model.towers.vision_projection, nn.Identity)
    assert isinstance(model.towers.text_projection, nn.Linear)
    assert not any("pooler" in name for name, _ in model.named_parameters())


def test_a_backbone_and_a_picture_size_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(
        SpecError, match=r"made for pictures of 32 pixels, image_size is 64; say image_size=32"
    ):
        tiny_seps.config(image_size=64)
    model = tiny_seps.model()
    with pytest.raises(ModelError, match=r"pixels are \(1, 3, 40, 40\); this model takes \(B, 3, 32, 32\)"):
        model.encode_images(torch.zeros(1, 3, 40, 40))


@pytest.mark.parametrize(("backbone", "wrong"), [("vit", False), ("swin", True)])
def test_a_wrong_cls_flag_or_number_of_patches_is_found_at_the_first_picture(
    backbone: str, wrong: bool
) -> None:
    for options in ({"has_cls": wrong}, {"patches": 25}):
        model = tiny_seps.model("laps", backbone, **options)
        with pytest.raises(ModelError, match=r"the config says \d+ tokens: .* Correct patches and has_cls"):
            model.encode_images(torch.zeros(1, 3, 32, 32))


def test_a_text_longer_than_its_tower_reads_is_refused() -> None:
    model = tiny_seps.model()
    with pytest.raises(ModelError, match="a text has 129 tokens, tiny-bert reads 128"):
        model.encode_texts(torch.ones(1, 129, dtype=torch.long), torch.ones(1, 129, dtype=torch.long))


@pytest.mark.parametrize("family", ["vit", "swin", "clip"])
def test_folders_of_towers_configure_a_model_and_give_it_their_weights(family: str, tmp_path: Path) -> None:
    from transformers import AutoModel, BertModel

    vision: Any = {"vit": tiny_seps.vit, "swin": tiny_seps.swin, "clip": clip_vision}[family]()
    tower = CLIPVisionModel(vision) if family == "clip" else AutoModel.from_config(vision)
    tower.save_pretrained(tmp_path / "vision")
    text = BertModel(tiny_seps.bert())
    text.save_pretrained(tmp_path / "text")
    config = configure(
        "laps", str(tmp_path / "vision"), str(tmp_path / "text"), embed_size=32, aggr_ratio=0.5
    )
    assert (config.patches, config.has_cls, config.image_size) == (16, family != "swin", 32)
    assert config.sparse_ratio == (0.8 if family == "swin" else 0.5) and config.aggr_ratio == 0.5
    model = SEPS(config).eval()
    fill_tower(model.towers.vision, config.backbone)
    fill_tower(model.towers.text, config.text)
    pixels, ids = torch.randn(1, 3, 32, 32), torch.tensor([[2, 7, 3]])
    with torch.no_grad():
        expected = tower.eval()(pixel_values=pixels).last_hidden_state
        assert torch.equal(model.towers.vision(pixel_values=pixels).last_hidden_state, expected)
        said = text.eval()(input_ids=ids).last_hidden_state
        assert torch.equal(model.towers.text(input_ids=ids).last_hidden_state, said)
    assert model.encode_images(pixels).shape[1] == 16 + (family != "swin")


def clip_vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )


def test_a_family_whose_layout_is_not_known_must_be_told_of(tmp_path: Path) -> None:
    from transformers import BertModel, ViTMSNConfig, ViTMSNModel

    ViTMSNModel(ViTMSNConfig(**{**clip_vision().to_dict(), "model_type": "vit_msn"})).save_pretrained(
        tmp_path / "v"
    )
    BertModel(tiny_seps.bert()).save_pretrained(tmp_path / "t")
    with pytest.raises(SpecError, match=r"\(vit_msn\) puts a \[CLS\] token first is not known; say has_cls="):
        configure("laps", str(tmp_path / "v"), str(tmp_path / "t"))
    model = SEPS(configure("laps", str(tmp_path / "v"), str(tmp_path / "t"), has_cls=True, embed_size=32))
    assert model.encode_images(torch.zeros(1, 3, 32, 32)).shape == (1, 17, 32)


def test_a_tower_that_is_nowhere_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no configuration of .*nowhere"):
        configure("laps", str(tmp_path / "nowhere"))
    ViTModel(tiny_seps.vit()).save_pretrained(tmp_path / "v")
    (tmp_path / "v" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="v"):
        fill_tower(SEPS(tiny_seps.config(backbone="vit")).towers.vision, str(tmp_path / "v"))


# ---------------------------------------------------------------- configs and checkpoints


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"impl": "sept"}, "impl=sept does not exist; there are laps, seps_released, seps_paper"),
        ({"mask": "soft"}, "mask=soft does not exist"),
        ({"sparse_ratio": 0.0}, r"sparse_ratio=0.0; it must lie in \(0, 1\]"),
        ({"aggr_ratio": 1.5}, "aggr_ratio=1.5"),
        ({"beta": 0.6}, r"beta=0.6; it must lie in \[0, 0.5\]"),
        ({"top_k": 0}, "top_k=0; it must be 1 or more"),
        ({"aggr_ratio": 0.1}, "no aggregated token; raise a ratio"),
        ({"w_dense": 0.5}, "w_sparse and w_dense weigh the terms of seps_released; laps has no two terms"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        tiny_seps.config(**options)


def test_an_embedding_too_narrow_for_the_aggregator_is_refused() -> None:
    with pytest.raises(SpecError, match="embed_size=4 leaves the aggregator no hidden unit"):
        Head(tiny_seps.config(embed_size=4))


@pytest.mark.parametrize("impl", ["laps", "seps_released", "seps_paper"])
def test_a_checkpoint_is_complete_by_itself(impl: str, tmp_path: Path) -> None:
    model = tiny_seps.model(impl, "swin", detach_selection=True)
    save(model, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "model.safetensors"]
    again = load(tmp_path / "run")
    assert again.config.to_json() == json.loads(json.dumps(model.config.to_json())) and not again.training
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.encode_images(pixels), model.encode_images(pixels))
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in model.state_dict().items())


def test_a_folder_that_is_not_a_checkpoint_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a SEPS checkpoint \(config.json, model.safetensors\)"):
        load(tmp_path)
    save(tiny_seps.model(), tmp_path)
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    for wrong, error, message in (
        ({**values, "temperature": 1}, SpecError, "a SEPS config has no temperature"),
        ({name: value for name, value in values.items() if name != "patches"}, SpecError, "lacks patches"),
        ({**values, "embed_size": 64}, ModelError, "are not those of its config.json"),
        ({**values, "vision_config": {"model_type": "nonsense"}}, ModelError, "nonsense"),
        ([1], ModelError, "holds list, not a SEPS config"),
    ):
        config.write_text(json.dumps(wrong))
        with pytest.raises(error, match=message):
            load(tmp_path)
    config.write_text(json.dumps(values))
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="is not a SEPS checkpoint"):
        load(tmp_path)
