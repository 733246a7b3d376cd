"""CLIPScore on a tiny random CLIP that is built here, beside the model's own image-text similarity."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import photo
from tokenizers import pre_tokenizers
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from adapters.scripted import Scripted
from harness import engine, resolve
from harness.errors import DataError, ModelError
from harness.pictures import File, Memory, Picture
from harness.types import Response, Sample
from metrics import clipscore

LENGTH = 77


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers each, random weights, 77 positions: the layout of openai/clip-vit-base-patch32."""
    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    numbered = {token: number for number, token in enumerate(vocabulary)}
    words = CLIPTokenizer(vocab=numbered, merges=[], model_max_length=LENGTH)  # a token per letter
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=CLIPTextConfig(
            vocab_size=len(words),
            max_position_embeddings=LENGTH,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.eos_token_id,
            **shape,
        ).to_dict(),
        vision_config=CLIPVisionConfig(image_size=32, patch_size=8, **shape).to_dict(),
        projection_dim=16,
    )
    torch.manual_seed(0)
    size = {"shortest_edge": 32}
    pixels = CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32})
    model = CLIPModel(config)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.2 * torch.randn_like(weights))  # spread: else all cosines are nearly one
    processor = CLIPProcessor(pixels, words)
    seen = processor(text=["a red car"], images=photo(0).open(), return_tensors="pt")
    with torch.no_grad():
        if model(**seen).logits_per_image.item() < 0:  # scores below zero are cut off, and all the same
            model.text_projection.weight.neg_()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def samples(*references: Sequence[str]) -> list[Sample]:
    return [Sample(str(k), (photo(k),), targets=tuple(texts)) for k, texts in enumerate(references)]


CAPTIONS = ["a red car", "two dogs and one cat", "a person riding a horse on a beach", ""]
REFERENCES = [["a car", "the bus"], ["two dogs"], [], ["the sign reads stop"]]


def test_scores_are_the_papers_formulas_over_the_models_own_cosines(checkpoint: Path) -> None:
    """The reference here is CLIPModel's forward, whose logits are scaled cosines."""
    found = clipscore.metric(str(checkpoint)).measure([Response(c) for c in CAPTIONS], samples(*REFERENCES))
    model = CLIPModel.from_pretrained(checkpoint)
    processor = CLIPProcessor.from_pretrained(checkpoint, backend="pil")

    def inputs(texts: Sequence[str], k: int) -> Any:
        prefixed = [f"A photo depicts {text}" for text in texts]
        batch = processor(text=prefixed, images=photo(k).open(), return_tensors="pt", padding=True)
        with torch.no_grad():
            return model(**batch)

    for k, (caption, references) in enumerate(zip(CAPTIONS, REFERENCES, strict=True)):
        out = inputs([caption, *references], k)
        score = 2.5 * max(0.0, float(out.logits_per_image[0, 0] / model.logit_scale.detach().exp()))
        assert found[k]["score"] == pytest.approx(score, abs=1e-5)
        assert (found[k]["scored"], found[k]["truncated"]) == (1, 0)
        assert found[k]["referenced"] == bool(references)
        if references:
            best = max(0.0, float((out.text_embeds[1:] @ out.text_embeds[0]).max()))
            assert found[k]["ref_score"] == pytest.approx(2 * score * best / (score + best), abs=1e-5)
    assert len({round(count["score"], 4) for count in found}) > 1


def test_a_score_does_not_depend_on_what_else_is_in_the_batch(checkpoint: Path) -> None:
    metric = clipscore.metric(str(checkpoint))
    responses, asked = [Response(c) for c in CAPTIONS], samples(*REFERENCES)
    together = metric.measure(responses * 20, asked * 20)  # over two batches
    alone = [metric.measure([r], [s])[0] for r, s in zip(responses, asked, strict=True)]
    for one, other in zip(together, alone * 20, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    backwards = metric.measure(responses[::-1], asked[::-1])
    assert metric.reduce(backwards[::-1]) == pytest.approx(metric.reduce(alone), abs=1e-5)


def test_captions_that_clip_cannot_read_to_the_end_are_counted(checkpoint: Path) -> None:
    metric = clipscore.metric(str(checkpoint))
    long = "a red car parked next to a tall building " * 4
    seen = metric.measure(
        [Response(long), Response(long + "and a dog"), Response("a cat")], samples([], [], [])
    )
    assert [count["truncated"] for count in seen] == [1, 1, 0]
    assert metric.reduce(seen)["truncated"] == pytest.approx(2 / 3)
    same_picture = [samples([])[0]] * 2
    cut = metric.measure([Response(long), Response(long + "and a dog")], same_picture)
    assert cut[0]["score"] == pytest.approx(cut[1]["score"], abs=1e-6)


def test_a_picture_that_cannot_be_read_is_left_out_and_counted(checkpoint: Path, tmp_path: Path) -> None:
    broken = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(broken, "JPEG")
    pictures = [Picture(File(tmp_path / "none.jpg")), Picture(Memory(broken.getvalue()[:-900], "cut.jpg"))]
    asked = [Sample(str(k), (picture,)) for k, picture in enumerate([*pictures, photo(0)])]
    metric = clipscore.metric(str(checkpoint))
    seen = metric.measure([Response("a car")] * 3, asked)
    assert metric.reduce(seen)["n_unreadable"] == 2
    assert metric.reduce(seen)["CLIPScore"] == seen[2]["score"]
    assert metric.reduce(seen[:2])["CLIPScore"] is None
    assert metric.reduce([])["RefCLIPScore"] is None


def test_a_run_has_it_as_its_tasks_metric_and_rescoring_says_why_it_cannot(
    checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    photo(0).open().save(tmp_path / "a.png")
    path.write_text('{"image": "a.png", "question": "Describe.", "answer": "a car"}\n')
    task = resolve.make_task(f"vqa_file:{path},metric=(clipscore:{checkpoint},device=cpu)")
    run = engine.run(task, Scripted(lambda _: "a red car"), out=tmp_path / "runs")
    scores = run.summary["metrics"]["clipscore[tiny-clip]"]["scores"]
    assert 0 <= scores["CLIPScore"]["value"] <= 2.5
    assert scores["RefCLIPScore"]["value"] is not None
    with pytest.raises(DataError, match="needs the picture of sample '1'.*metric=clipscore when it is run"):
        engine.score(run.path, [clipscore.metric(str(checkpoint))])


def test_nothing_loads_before_the_first_caption_and_faults_of_a_checkpoint_are_named(tmp_path: Path) -> None:
    nowhere = clipscore.metric(str(tmp_path / "nowhere"))
    assert nowhere.variant == "nowhere"
    with pytest.raises(ModelError, match="nowhere does not load"):
        nowhere.measure([Response("a")], samples([]))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="other is a llama model; it must be a clip"):
        clipscore.metric(str(tmp_path / "other")).measure([Response("a")], samples([]))


def test_weights_come_from_safetensors_alone(checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(CLIPModel.from_pretrained(checkpoint).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="does not load"):
        clipscore.metric(str(tmp_path)).measure([Response("a")], samples([]))
