"""Detectors: real architectures with random weights against transformers' pipelines, and ViCrop's use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

from adapters.scripted import Scripted
from harness.errors import ModelError, SpecError
from harness.pictures import File, Memory, Picture
from harness.resolve import make_method
from harness.types import Hints, Method, Request
from methods._crops import square
from methods._detect import Detector

LABELS = {0: "cat", 1: "traffic light", 2: "dog"}
VOCABULARY = "[PAD] [UNK] [CLS] [SEP] . ? what is the color of cat dog a red bus sign"
SMALL = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
EDGES = {"shortest_edge": 96, "longest_edge": 160}
STAGES = ["stage2", "stage3", "stage4"]
PICTURES = [
    tiny.photo(k, *size) for k, size in enumerate([(100, 80), (60, 90), (100, 80), (1, 1), (200, 40)])
]
RED_BUS = "what is the color of the red bus?"


def _spread(weights: Any) -> Any:
    """Wider weights than the architecture's own, and the same every time: scores that differ."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in weights.parameters():
            if parameter.ndim >= 2:
                wide = 1.4 / parameter[0].numel() ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * wide)
            elif not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return weights


def detr(folder: Path) -> Path:
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        d_model=16,
        num_queries=10,
        id2label=LABELS,
        **SMALL,
        **HEADS,
    )
    _spread(transformers.DetrForObjectDetection(config)).save_pretrained(folder)
    DetrImageProcessorPil(size=EDGES).save_pretrained(folder)
    return folder


def rt_detr(folder: Path) -> Path:
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1] * 4,
        layer_type="basic",
        out_features=STAGES,
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=16,
        encoder_in_channels=[12, 16, 20],
        decoder_in_channels=[16] * 3,
        d_model=16,
        num_queries=10,
        num_denoising=0,
        id2label=LABELS,
        **SMALL,
        **HEADS,
    )
    _spread(transformers.RTDetrForObjectDetection(config)).save_pretrained(folder)
    RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def owlv2(folder: Path) -> Path:
    words = tiny.tokenizer()
    words.padding_side = "right"
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config = transformers.Owlv2Config(
        text_config={**tower, **ends, "vocab_size": len(words), "max_position_embeddings": 16},
        vision_config={**tower, "image_size": 64, "patch_size": 16},
        projection_dim=16,
    )
    _spread(transformers.Owlv2ForObjectDetection(config)).save_pretrained(folder)
    pixels = Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    transformers.Owlv2Processor(pixels, words).save_pretrained(folder)
    return folder


def grounding_dino(folder: Path) -> Path:
    folder.mkdir()
    (folder / "vocab.txt").write_text(VOCABULARY.replace(" ", "\n"))
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1] * 4,
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_features=STAGES,
        ),
        text_config=transformers.BertConfig(
            vocab_size=len(VOCABULARY.split()),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
        ),
        d_model=32,
        num_queries=8,
        max_text_len=16,
        disable_custom_kernels=True,
        **SMALL,
        **HEADS,
    )
    _spread(transformers.GroundingDinoForObjectDetection(config)).save_pretrained(folder)
    words = transformers.BertTokenizer(str(folder / "vocab.txt"))
    pixels = GroundingDinoImageProcessorPil(size=EDGES)
    transformers.GroundingDinoProcessor(pixels, words).save_pretrained(folder)
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "detr": detr,
    "rt_detr": rt_detr,
    "owlv2": owlv2,
    "grounding-dino": grounding_dino,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("detectors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {name: make(root / name) for name, make in MAKERS.items()}


def _detector(folder: Path, **knobs: Any) -> Detector:
    return Detector.find(str(folder), **{"threshold": 0.05, "device": "cpu", **knobs})


def _texts(detector: Detector, count: int, *texts: str) -> list[tuple[str, ...]] | None:
    return [texts or (RED_BUS,)] * count if detector.zero_shot else None


# ---------------------------------------------------------------- detectors


@pytest.mark.parametrize("family", MAKERS)
def test_boxes_scores_and_labels_are_those_of_transformers_own_pipeline(
    folders: dict[str, Path], family: str
) -> None:
    detector = _detector(folders[family])
    (found,) = detector.detect(PICTURES[:1], _texts(detector, 1))
    kind = "zero-shot-object-detection" if detector.zero_shot else "object-detection"
    pipeline = transformers.pipeline(kind, model=str(folders[family]), device="cpu")
    # Grounding DINO's prompts end in a full stop, which its pipeline leaves to the user; its labels are
    # what random weights take for the part of the prompt that is shown.
    dino = family == "grounding-dino"
    asked = {"candidate_labels": [RED_BUS + "." * dino]} if detector.zero_shot else {}
    expected = pipeline(PICTURES[0].open(), threshold=0.05, **asked)
    width, height = PICTURES[0].size
    seen = []
    for one in sorted(expected, key=lambda one: -one["score"]):
        x1, y1, x2, y2 = one["box"].values()  # cut to whole pixels
        if x1 < width and y1 < height and x2 >= 0 and y2 >= 0:
            box = (max(0, x1), max(0, y1), min(width, x2), min(height, y2))
            seen.append((pytest.approx(box, abs=1), pytest.approx(one["score"]), one["label"] * (not dino)))
    assert len(found.detections) >= 3
    assert len({round(detection.score, 3) for detection in found.detections}) > 1
    assert [(one.box, one.score, one.label * (not dino)) for one in found.detections] == seen


@pytest.mark.parametrize("family", MAKERS)
def test_what_is_found_does_not_depend_on_the_batch_nor_on_the_time_asked(
    folders: dict[str, Path], family: str
) -> None:
    detector = _detector(folders[family], batch=3)
    together = detector.detect(PICTURES, _texts(detector, len(PICTURES)))
    again = detector.detect(PICTURES, _texts(detector, len(PICTURES)))
    for picture, found, repeated in zip(PICTURES, together, again, strict=True):
        (alone,) = detector.detect([picture], _texts(detector, 1))
        assert found.detections == repeated.detections
        assert found.failure is None
        assert [one.label for one in found.detections] == [one.label for one in alone.detections]
        for one, other in zip(found.detections, alone.detections, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-5)
            assert one.box == pytest.approx(other.box, abs=1e-3)


@pytest.mark.parametrize("family", MAKERS)
def test_boxes_are_sorted_above_the_threshold_and_inside_the_picture(
    folders: dict[str, Path], family: str
) -> None:
    every = _detector(folders[family])
    scores = [one.score for one in every.detect(PICTURES[:1], _texts(every, 1))[0].detections]
    middle = sorted(scores)[len(scores) // 2]
    detector = _detector(folders[family], threshold=middle)
    (found,) = detector.detect(PICTURES[:1], _texts(detector, 1))
    assert [one.score for one in found.detections] == [score for score in scores if score > middle]
    assert scores == sorted(scores, reverse=True)
    for x1, y1, x2, y2 in (one.box for one in found.detections):
        assert 0 <= x1 < x2 <= 100
        assert 0 <= y1 < y2 <= 80


def test_a_closed_set_has_its_labels_and_a_zero_shot_detector_the_texts(folders: dict[str, Path]) -> None:
    closed, open_to_words = _detector(folders["detr"]), _detector(folders["owlv2"])
    (found,) = closed.detect(PICTURES[:1])
    assert {one.label for one in found.detections} <= set(LABELS.values())
    (found,) = open_to_words.detect(PICTURES[:1], [("a red bus", "the sign")])
    assert {one.label for one in found.detections} == {"a red bus", "the sign"}


def test_each_picture_may_have_texts_of_its_own_number(folders: dict[str, Path]) -> None:
    detector = _detector(folders["owlv2"])
    texts = [("a red bus", "the sign"), ("a red bus",)]
    together = detector.detect([PICTURES[0], PICTURES[2]], texts)
    alone = [detector.detect([PICTURES[k]], [texts[n]])[0] for n, k in enumerate((0, 2))]
    assert [found.detections for found in together] == [found.detections for found in alone]


def test_a_question_longer_than_a_detector_reads_is_cut(folders: dict[str, Path]) -> None:
    for family in ("owlv2", "grounding-dino"):
        detector = _detector(folders[family])
        (found,) = detector.detect(PICTURES[:1], [("what is the color of a dog " * 20,)])
        assert found.failure is None


def test_a_broken_picture_is_a_failure_of_its_own_and_every_look_has_its_cost(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    torn = Picture(Memory(PICTURES[0].source.read()[:500], "torn.png"))  # type: ignore[union-attr]
    pictures = [Picture(File(tmp_path / "gone.png")), PICTURES[0], torn]
    missing, good, damaged = _detector(folders["detr"]).detect(pictures)
    assert missing.failure is not None
    assert damaged.failure is not None
    assert (missing.failure.kind, damaged.failure.kind) == ("missing_picture", "damaged_picture")
    assert good.detections
    assert (good.usage.images, good.usage.forward_passes, missing.usage.forward_passes) == (1, 1, 0)
    assert good.usage.seconds > 0


def test_nothing_to_look_at_loads_nothing(folders: dict[str, Path]) -> None:
    detector = _detector(folders["detr"])
    assert detector.detect([]) == []
    assert "_loaded" not in vars(detector)


# ---------------------------------------------------------------- identity, specs and refusals


def test_a_detector_describes_its_content_and_its_threshold(folders: dict[str, Path], tmp_path: Path) -> None:
    described = _detector(folders["detr"]).describe()
    assert json.loads(json.dumps(described)) == described
    assert (described["detector"], described["family"], described["threshold"]) == ("detr", "detr", 0.05)
    copy = shutil.copytree(folders["detr"], tmp_path / "detr")
    assert _detector(copy).describe() == described
    weights = load_file(copy / "model.safetensors")
    save_file(
        {key: value + 1 for key, value in weights.items()}, copy / "model.safetensors", {"format": "pt"}
    )
    assert _detector(copy).describe()["revision"] != described["revision"]


def test_a_spec_names_a_checkpoint_and_its_knobs(folders: dict[str, Path]) -> None:
    plain = Detector.from_spec(str(folders["detr"]))
    assert (plain.threshold, plain.device) == (0.1, "auto")
    named = Detector.from_spec(f"detr:{folders['detr']},threshold=0.3,device=cpu")
    assert (named.family, named.threshold, named.device) == ("detr", 0.3, "cpu")


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("{},treshold=0.3", "no knob 'treshold'"),
        ("{},threshold=high", "threshold is a number"),
        ("owlv2:{}", "is a detr, not a owlv2"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(folders: dict[str, Path], spec: str, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        Detector.from_spec(spec.format(folders["detr"]))


def test_a_folder_that_is_no_detector_is_refused_before_any_weights_load(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="is not a checkpoint: it has no config.json"):
        Detector.find(str(tmp_path))
    with pytest.raises(ModelError, match="is a llava model, not a detector; these are: .*detr.*owlv2"):
        Detector.find(str(tiny.llava(tmp_path / "llava")))
    with pytest.raises(ModelError, match="revision=main is for hub repositories"):
        Detector.find(str(folders["detr"]), "main")


def test_a_name_that_is_nowhere_says_where_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="there is no folder nobody/no-such-detector .* nor can the hub be"):
        Detector.find("nobody/no-such-detector")
    with pytest.raises(ModelError, match="neither a folder here nor a name that a hub repository can have"):
        Detector.find("not a name at all")


def test_weights_that_are_torn_or_missing_do_not_load(folders: dict[str, Path], tmp_path: Path) -> None:
    torn = shutil.copytree(folders["detr"], tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="the detector torn .detr. does not load"):
        _detector(torn).detect(PICTURES[:1])
    partial = shutil.copytree(folders["detr"], tmp_path / "partial")
    weights = load_file(partial / "model.safetensors")
    del weights["class_labels_classifier.weight"]
    save_file(weights, partial / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 of its weights, class_labels_classifier.weight"):
        _detector(partial).detect(PICTURES[:1])


def test_texts_for_a_closed_set_and_none_for_words_are_a_mistake(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="closed set"):
        _detector(folders["detr"]).detect(PICTURES[:1], [("a dog",)])
    with pytest.raises(ValueError, match="texts to look for"):
        _detector(folders["owlv2"]).detect(PICTURES[:1])


# ---------------------------------------------------------------- in ViCrop


def _vicrop(folder: Path, threshold: float = 0.05) -> Method:
    shows = Scripted(lambda request: str([picture.crops for picture in request.images]))
    spec = f"vicrop:locate=detector,base=20,detector=({folder},threshold={threshold},device=cpu)"
    return make_method(spec)(shows)  # type: ignore[return-value]


def test_vicrop_crops_around_the_likeliest_box_for_the_short_question(folders: dict[str, Path]) -> None:
    requests = [
        Request((PICTURES[0],), "Which? A or B", hints=Hints(short_question=RED_BUS)),
        Request((), "No picture?"),
        Request((PICTURES[1], PICTURES[0]), RED_BUS),
    ]
    first, none, second = _vicrop(folders["owlv2"]).generate(requests)
    found = _detector(folders["owlv2"]).detect(PICTURES[:2], [(RED_BUS,)] * 2)
    for response, one, picture in zip((first, second), found, PICTURES[:2], strict=True):
        best = one.detections[0]
        assert response.trace["detected"] == {
            "label": RED_BUS,
            "score": pytest.approx(best.score, abs=1e-5),
            "box": pytest.approx(list(best.box), abs=1e-3),
        }
        x1, y1, x2, y2 = best.box
        side = round(max(1.4 * 20, 1.25 * max(x2 - x1, y2 - y1)))
        crop = square(((x1 + x2) / 2, (y1 + y2) / 2), side, picture.size)
        assert response.trace["box"] == list(crop)
        assert response.text.endswith(f"({crop},)]")
        assert response.usage.forward_passes == 1
    assert none.trace["skipped"] == "no image"
    assert second.text.startswith("[(), (), ")  # the crop of the first picture comes last


def test_vicrop_uses_the_whole_picture_where_nothing_is_found_and_says_so(folders: dict[str, Path]) -> None:
    (response,) = _vicrop(folders["owlv2"], threshold=1).generate([Request((PICTURES[0],), RED_BUS)])
    assert response.text == "[()]"
    assert response.trace["detected"] is None
    assert response.trace["whole"] is True


def test_vicrop_passes_on_that_a_picture_is_missing(folders: dict[str, Path], tmp_path: Path) -> None:
    gone = Request((Picture(File(tmp_path / "gone.png")),), RED_BUS)
    broken, good = _vicrop(folders["owlv2"]).generate([gone, Request((PICTURES[0],), RED_BUS)])
    assert broken.failure is not None
    assert broken.failure.kind == "missing_picture"
    assert good.failure is None


def test_the_detector_is_part_of_vicrops_identity(folders: dict[str, Path]) -> None:
    described = _vicrop(folders["owlv2"]).describe()
    assert described["detector"]["revision"].startswith("sha256:")
    assert described["detector"]["threshold"] == 0.05


def test_vicrop_refuses_no_detector_a_closed_one_and_one_that_it_would_not_use(
    folders: dict[str, Path],
) -> None:
    text_only = Scripted(lambda _: "")
    with pytest.raises(SpecError, match="needs a zero-shot detector; .*google/owlv2"):
        make_method("vicrop:locate=detector")(text_only)
    with pytest.raises(SpecError, match=r"a closed set of labels \(detr\)"):
        make_method(f"vicrop:locate=detector,detector={folders['detr']}")(text_only)
    with pytest.raises(SpecError, match="is for locate=detector; this is locate=oracle"):
        make_method(f"vicrop:locate=oracle,detector={folders['owlv2']}")(text_only)
