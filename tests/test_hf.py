"""The adapter for open weights, on tiny random checkpoints, against transformers' own plain calls."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from adapters import hf
from adapters._hf_llava import Framing
from harness.errors import CapabilityError, ModelError
from harness.events import Counter, counting
from harness.pictures import File, Memory, Picture
from harness.types import Capability, Decoding, ReadMap, Request, Response, Usage
from methods.sparc import Sparc
from methods.vicrop import Vicrop

SUFFIX = " Answer the question using a single word or phrase."


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "llava": tiny.llava(root / "llava", side=112),
        "squash": tiny.llava(root / "squash", kv_heads=2, squash=True, context=96),
        "vip": tiny.vip_llava(root / "vip"),
        "bare": tiny.llava(root / "bare", chat=None),
    }


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, hf.Hf]:
    return {name: _model(folder) for name, folder in folders.items()}


def _model(folder: Path, **knobs: Any) -> hf.Hf:
    model = hf.model(str(folder), device="cpu", **knobs)
    assert isinstance(model, hf.Hf)
    return model


def _request(number: int = 0, images: int = 1, **changes: Any) -> Request:
    """Requests differ in length, pictures and decoding; every third shares its first picture."""
    pictures = tuple(tiny.photo(number % 3 + 10 * k, 100 + number, 80) for k in range(images))
    question = "What is the color of the bus?" + " And the horse?" * (number % 4)
    plain = Request(pictures, question, SUFFIX, decoding=Decoding(max_tokens=4 + number % 5))
    return dataclasses.replace(plain, **changes)


def _texts(responses: Sequence[Response]) -> list[str]:
    assert [response.failure for response in responses] == [None] * len(responses)
    return [response.text for response in responses]


@torch.no_grad()
def _plainly(folder: Path, request: Request, text: str | None = None) -> tuple[Any, Any, str]:
    """A checkpoint under eager attention, and one request through its own processor alone."""
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    if text is None:
        content = [{"type": "image"} for _ in request.images]
        content.append({"type": "text", "text": request.text})
        messages = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [picture.open() for picture in request.images] or None
    return model, processor(text=text, images=images, return_tensors="pt"), text


# ---------------------------------------------------------------- before any weights


def test_importing_reads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, adapters.hf, adapters.replay, adapters.scripted, methods.vicrop, methods.random_crop;"
        "print([name for name in ('torch', 'transformers', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_capability_that_is_missing_is_refused_before_weights_load(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    broken = shutil.copytree(folders["vip"], tmp_path / "vip")
    (broken / "model.safetensors").write_bytes(b"no weights at all")
    model = _model(broken)
    assert model.offers == {Capability.LIKELIHOOD}
    with pytest.raises(CapabilityError, match=r"vicrop .* needs attention; vip offers likelihood"):
        Vicrop(model)
    with pytest.raises(ModelError, match=r"vip .* does not load"):
        model.generate([_request()])


@pytest.mark.parametrize("kernel", ["sdpa", "eager", "flash_attention_2"])
@pytest.mark.parametrize("method", [Vicrop, Sparc])
def test_a_kernel_that_was_asked_for_is_named_as_what_keeps_a_method_from_working(
    folders: dict[str, Path], kernel: str, method: Any
) -> None:
    with pytest.raises(CapabilityError, match=rf"offers likelihood \(with attn={kernel} .*use attn=auto"):
        method(_model(folders["llava"], attn=kernel))


def test_a_description_holds_what_decides_the_answers(folders: dict[str, Path]) -> None:
    described = _model(folders["squash"]).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["revision"].startswith("sha256:")
    del described["revision"]
    assert described == {
        "adapter": "hf",
        "model": "squash",
        "family": "llava",
        "device": "cpu",
        "dtype": "float32",
        "quantization": "none",
        "attention": "fovea",
        "template": "chat",
        "image_size": 56,
        "patch_size": 14,
        "image_processor": {
            "size": {"height": 56, "width": 56},
            "crop_size": {"height": 56, "width": 56},
            "do_center_crop": False,
        },
    }
    assert _model(folders["squash"], batch=3).describe()["attention"] == "fovea"
    assert _model(folders["squash"], attn="eager").offers == {Capability.LIKELIHOOD}


def test_a_folders_revision_follows_its_content_and_not_its_card(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folders["llava"], tmp_path / "llava")
    same = _model(folders["llava"]).describe()["revision"]
    (copy / "README.md").write_text("a card")
    assert _model(copy).describe()["revision"] == same
    (copy / "chat_template.jinja").write_text("another template")
    assert _model(copy).describe()["revision"] != same


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"device": "cuda"}, "device=cuda, but torch sees no CUDA"),
        ({"device": "tpu3"}, "device=tpu3 is unknown"),
        ({"quantization": "4bit"}, "pip install bitsandbytes"),
        ({"batch": 0}, "batch=0"),
        ({"revision": "main"}, "is a folder"),
    ],
)
def test_a_knob_that_cannot_be_met_says_why(
    folders: dict[str, Path], knobs: dict[str, Any], says: str
) -> None:
    if torch.cuda.is_available():
        pytest.skip("the machine has what this test says is missing")
    with pytest.raises(ModelError, match=says):
        hf.model(str(folders["llava"]), **knobs)


def _emptied(folder: Path) -> None:
    (folder / "config.json").unlink()


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _text_only(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')


def _own_code(folder: Path) -> None:
    config = {"model_type": "its_own", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_emptied, "is not a checkpoint: it has no config.json"),
        (_pickled, "holds no .*safetensors"),
        (_text_only, "is a llama model"),
        (_own_code, "runs only with trust_remote_code=true"),
    ],
)
def test_a_folder_that_is_no_checkpoint_says_so(
    folders: dict[str, Path], tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    copy = shutil.copytree(folders["llava"], tmp_path / "llava")
    spoil(copy)
    with pytest.raises(ModelError, match=says):
        _model(copy)


def test_weights_that_are_absent_are_not_made_up(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(folders["llava"], tmp_path / "llava")
    tensors = load_file(copy / "model.safetensors")
    tensors.pop(next(key for key in tensors if "layers.1.mlp.up_proj" in key and "language_model" in key))
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of its weights, .*up_proj"):
        _model(copy).generate([_request()])


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        _model(tmp_path / "nowhere")


def test_a_checkpoint_without_a_chat_template_is_prompted_plainly(models: dict[str, hf.Hf]) -> None:
    assert models["bare"].describe()["template"] == "plain"
    assert len(_texts(models["bare"].generate([_request()]))) == 1


def test_templates_that_a_checkpoint_cannot_have_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="no chat template; use template=plain"):
        _model(folders["bare"], template="chat")
    with pytest.raises(ModelError, match="template=vicrop is LLaVA's"):
        _model(folders["vip"], template="vicrop")
    with pytest.raises(ModelError, match="where vipllava's image tokens stand is not known"):
        _model(folders["vip"], attn="fovea")


# ---------------------------------------------------------------- the hub, on loopback


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as its refusals need."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            self._send(200, [{"type": "file", "path": "config.json", "size": 10, "oid": "x"}])
        elif self.path.startswith("/api/models/some/gated"):
            self._send(200, {"id": "some/gated", "sha": "a" * 40, "siblings": [{"rfilename": "config.json"}]})
        elif "/resolve/" in self.path:
            self._send(403, None, "GatedRepo")
        else:
            self._send(404, None, "RevisionNotFound" if "old" in self.path else "RepoNotFound")

    do_HEAD = do_GET

    def _send(self, status: int, body: Any, error: str = "") -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def _from_hub(tmp_path: Path, endpoint: str, spec: str) -> str:
    """What a user reads when a checkpoint does not come from the hub."""
    code = f"from adapters import hf\ntry: hf.model({spec})\nexcept hf.ModelError as error: print(error)"
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    return done.stdout + done.stderr[-2000:]


def test_the_hubs_refusals_say_what_to_do(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        said = [
            _from_hub(tmp_path, endpoint, spec)
            for spec in ("'some/gated'", "'some/none'", "'some/model', revision='old'", "'no such name!'")
        ]
        server.shutdown()
    assert "gated: accept its terms" in said[0]
    assert "hf auth login" in said[0]
    assert "no such repository" in said[1]
    assert "no revision old" in said[2]
    assert "neither a folder here nor a name" in said[3]
    assert "nor can the hub be reached" in _from_hub(tmp_path, endpoint, "'some/model'")


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("name", ["llava", "squash", "vip"])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_greedy_text_is_what_transformers_generates(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str, images: int
) -> None:
    request = _request(images=images, decoding=Decoding(max_tokens=8))
    if name == "squash" and images == 2:
        request = dataclasses.replace(request, question="one", instruction="")
    model, inputs, _ = _plainly(folders[name], request)
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    (response,) = models[name].generate([request])
    tokenizer = models[name]._waves._tokenizer  # type: ignore[union-attr]
    assert response.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert response.usage.tokens_in == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("template", ["chat", "vicrop"])
def test_a_layouts_tokens_are_the_processors(folders: dict[str, Path], template: Any) -> None:
    model = _model(folders["llava"], template=template)
    request = _request(images=2)
    model.generate([request])
    assert model._waves is not None
    row = model._waves._row(request)
    raw = f"<image><image>\nUSER: {request.text}\nASSISTANT:" if template == "vicrop" else None
    _, inputs, text = _plainly(folders["llava"], request, raw)
    assert row.text == text
    assert list(row.tokens) == inputs["input_ids"][0].tolist()


@pytest.mark.parametrize("name", ["llava", "vip"])
def test_batched_equals_single_for_mixed_requests(folders: dict[str, Path], name: str) -> None:
    requests = [
        _request(
            number,
            images=number % 4 if number % 4 < 3 else 1,
            decoding=Decoding(
                max_tokens=3 + number % 6,
                temperature=0.8 if number % 3 == 0 else 0.0,
                top_p=0.9 if number % 2 else None,
                seed=number,
                stop=("a",) if number % 5 == 0 else (),
            ),
        )
        for number in range(18)
    ]
    singles = _texts([_model(folders[name], batch=1).generate([request])[0] for request in requests[:1]])
    by_batch = [_model(folders[name], batch=batch).generate(requests) for batch in (1, 2, 7, 16)]
    assert _texts(by_batch[0])[:1] == singles
    for responses in by_batch[1:]:
        assert _texts(responses) == _texts(by_batch[0])
        assert [r.finish_reason for r in responses] == [r.finish_reason for r in by_batch[0]]
        for one, other in zip(responses, by_batch[0], strict=True):
            assert dataclasses.replace(one.usage, seconds=0) == dataclasses.replace(other.usage, seconds=0)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_the_attention_kernel_does_not_change_the_text(
    folders: dict[str, Path], models: dict[str, hf.Hf], attn: Any
) -> None:
    requests = [_request(number, images=1 + number % 2) for number in range(6)]
    assert _texts(_model(folders["llava"], attn=attn).generate(requests)) == _texts(
        models["llava"].generate(requests)
    )


def test_a_seed_repeats_a_text_and_another_seed_does_not(models: dict[str, hf.Hf]) -> None:
    def sampled(seed: int) -> str:
        decoding = Decoding(max_tokens=12, temperature=1.0, seed=seed)
        return _texts(models["llava"].generate([_request(decoding=decoding)]))[0]

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(5)}) > 1


def test_sampling_follows_the_distribution(models: dict[str, hf.Hf]) -> None:
    """The first token of 300 seeds, as often as its probability says (within five deviations)."""
    requests = [_request(decoding=Decoding(max_tokens=1, temperature=1.0, seed=seed)) for seed in range(300)]
    greedy = _texts(models["llava"].generate([_request(decoding=Decoding(max_tokens=1))]))[0]
    share = _texts(models["llava"].generate(requests)).count(greedy) / 300
    waves = models["llava"]._waves
    assert waves is not None
    with torch.no_grad():
        inputs = waves._family.prepare([waves._row(_request())])
        chances = torch.softmax(waves._family.logits(inputs, 1)[0, -1], dim=-1)
    chance = float(chances.max())
    assert abs(share - chance) < 5 * (chance * (1 - chance) / 300) ** 0.5


def test_a_stop_text_ends_and_is_dropped(models: dict[str, hf.Hf]) -> None:
    whole = models["llava"].generate([_request(decoding=Decoding(max_tokens=12))])[0]
    stop = whole.text[3:5]
    cut = models["llava"].generate([_request(decoding=Decoding(max_tokens=12, stop=(stop,)))])[0]
    assert cut.text == whole.text[: whole.text.find(stop)]
    assert cut.finish_reason == "stop"
    assert cut.usage.tokens_out < whole.usage.tokens_out == 12
    assert whole.finish_reason == "length"


def test_an_end_token_ends_and_is_not_counted(models: dict[str, hf.Hf], folders: dict[str, Path]) -> None:
    """The token that a plain answer begins with is declared an end token."""
    copy_model = _model(folders["llava"])
    whole = copy_model.generate([_request(decoding=Decoding(max_tokens=6))])[0]
    waves = copy_model._waves
    assert waves is not None
    third = waves._tokenizer(whole.text, add_special_tokens=False)["input_ids"][-1]
    waves._ends = frozenset({third})
    waves._weights.generation_config.eos_token_id = [third]
    short = copy_model.generate([_request(decoding=Decoding(max_tokens=6))])[0]
    assert short.finish_reason == "stop"
    assert whole.text.startswith(short.text)
    assert short.usage.tokens_out == short.usage.forward_passes - 1


def test_nothing_is_generated_when_nothing_is_asked_for(models: dict[str, hf.Hf]) -> None:
    (response,) = models["llava"].generate([_request(decoding=Decoding(max_tokens=0))])
    assert (response.text, response.usage.tokens_out, response.usage.forward_passes) == ("", 0, 0)


def test_usage_is_counted_and_reported(models: dict[str, hf.Hf]) -> None:
    with counting(Counter()) as counter:
        responses = models["llava"].generate([_request(1, images=2), _request(2)])
    assert responses[0].usage.images == 2
    assert responses[0].usage.tokens_out == responses[0].usage.forward_passes == 5
    assert responses[0].usage.seconds > 0
    total = sum((response.usage for response in responses), Usage())
    assert counter.total == total
    assert total.calls == 2


def test_a_system_text_stands_before_the_user(models: dict[str, hf.Hf], folders: dict[str, Path]) -> None:
    request = _request(system="You are a helpful assistant.")
    models["llava"].generate([request])
    assert models["llava"]._waves is not None
    text = models["llava"]._waves._row(request).text
    assert text.startswith("You are a helpful assistant. USER: <image>\n")
    (refused,) = _model(folders["llava"], template="vicrop").generate([request])
    assert refused.failure is not None
    assert "no place for a system text" in refused.failure.message


# ---------------------------------------------------------------- one request's trouble is its own


def test_broken_pictures_fail_alone(models: dict[str, hf.Hf], tmp_path: Path) -> None:
    whole = tiny.photo(5).source.read()  # type: ignore[union-attr]
    torn = Picture(Memory(whole[: len(whole) // 2], "torn.png"))
    gone = Picture(File(tmp_path / "gone.png"))
    text = Picture(Memory(b"hello", "text.png"))
    good = _request(4)
    for name in ("llava", "vip"):
        requests = [good, *(dataclasses.replace(good, images=(bad,)) for bad in (torn, gone, text)), good]
        responses = models[name].generate(requests)
        assert [r.failure.kind if r.failure else None for r in responses] == [
            None,
            "damaged_picture",
            "missing_picture",
            "not_a_picture",
            None,
        ]
        assert responses[0].text == responses[4].text == _texts(models[name].generate([good]))[0]


@pytest.mark.parametrize("name", ["squash", "vip"])
def test_a_prompt_beyond_the_context_fails_with_both_numbers(models: dict[str, hf.Hf], name: str) -> None:
    context = 96 if name == "squash" else 1024
    long = _request(question="What is this? " * context)
    failed, fine = models[name].generate([long, _request(question="What?", instruction="")])
    assert failed.failure is not None
    assert failed.failure.kind == "too_long"
    assert f"{context}; shorten the question" in failed.failure.message
    assert fine.failure is None


def test_an_answer_ends_where_the_context_does(models: dict[str, hf.Hf]) -> None:
    request = _request(question="What?", instruction="", decoding=Decoding(max_tokens=500))
    (response,) = models["squash"].generate([request])
    assert response.finish_reason == "length"
    assert response.usage.tokens_in + response.usage.tokens_out == 96


def test_a_placeholder_in_the_question_is_not_a_picture(models: dict[str, hf.Hf]) -> None:
    (response,) = models["llava"].generate([_request(question="What is <image>?")])
    assert response.failure is not None
    assert response.failure.kind == "prompt"
    assert "2 image placeholders '<image>' for 1 pictures" in response.failure.message
    assert "reword it" in response.failure.message


def _memory_for(model: hf.Hf, rows: int) -> Any:
    """Make the decoder run out of memory beyond so many rows; returns the hook."""
    model.generate([_request()])
    assert model._waves is not None

    def crowded(module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        if len(keywords["inputs_embeds"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    decoder = model._waves._weights.model.language_model
    return decoder.register_forward_pre_hook(crowded, with_kwargs=True)


def test_running_out_of_memory_halves_the_batch_and_remembers(folders: dict[str, Path]) -> None:
    requests = [_request(number) for number in range(9)]
    expected = _texts(_model(folders["llava"]).generate(requests))
    model = _model(folders["llava"], batch=8)
    hook = _memory_for(model, rows=3)
    assert _texts(model.generate(requests)) == expected
    assert model._waves is not None
    assert model._waves.batch == 2
    hook.remove()
    hook = _memory_for(model, rows=0)
    assert {r.failure.kind for r in model.generate(requests[:2]) if r.failure} == {"out_of_memory"}
    hook.remove()
    assert _texts(model.generate(requests)) == expected


def test_another_error_is_not_mistaken_for_memory(folders: dict[str, Path]) -> None:
    model = _model(folders["llava"])
    model.generate([_request()])
    assert model._waves is not None

    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    model._waves._weights.model.language_model.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="a bug"):
        model.generate([_request()])


# ---------------------------------------------------------------- likelihoods


@pytest.mark.parametrize("name", ["llava", "vip"])
def test_an_options_likelihood_is_that_of_its_tokens_and_the_end(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str
) -> None:
    options = ("red", "a brown horse near the ocean", "no")
    request = _request(2, options=options, decoding=Decoding(max_tokens=0))
    (response,) = models[name].generate([request])
    model, prompt, text = _plainly(folders[name], request)
    for option, (nll, count) in zip(options, response.option_nll, strict=True):
        _, whole, _ = _plainly(folders[name], request, f"{text} {option}</s>")
        with torch.no_grad():
            logits = model(**whole).logits[0].log_softmax(dim=-1)
        start = prompt["input_ids"].shape[1]
        ids = whole["input_ids"][0]
        expected = -sum(float(logits[at - 1, ids[at]]) for at in range(start, len(ids)))
        assert count == len(ids) - start
        assert nll == pytest.approx(expected, rel=1e-4)
    assert response.text == ""
    assert response.usage.tokens_in == prompt["input_ids"].shape[1]


def test_likelihoods_do_not_depend_on_the_batch(folders: dict[str, Path]) -> None:
    requests = [_request(n, options=("yes", "no", "a red car"), question="Is it red?") for n in range(5)]
    one = _model(folders["squash"], batch=1).generate(requests)
    many = _model(folders["squash"], batch=16).generate(requests)
    for single, batched in zip(one, many, strict=True):
        np.testing.assert_allclose(single.option_nll, batched.option_nll, rtol=1e-4)


# ---------------------------------------------------------------- maps


def _look(number: int, *layers: int | None, **changes: Any) -> Request:
    probes = tuple(ReadMap(layer) for layer in layers)
    return _request(number, decoding=Decoding(max_tokens=0), probes=probes, **changes)


def _eager_map(folder: Path, request: Request, layer: int, grid: int) -> Any:
    model, inputs, _ = _plainly(folder, request)
    with torch.no_grad():
        attention = model(**inputs, output_attentions=True).attentions[layer]
    start = inputs["input_ids"][0].tolist().index(model.config.image_token_id)
    return attention[0, :, -1, start : start + grid * grid].mean(dim=0).reshape(grid, grid).numpy()


@pytest.mark.parametrize(("name", "grid"), [("llava", 8), ("squash", 4)])
def test_maps_of_a_wave_are_eager_attentions(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str, grid: int
) -> None:
    requests = [
        _look(number, 1, 3, question="Is it?" * (1 + number % 3), instruction="") for number in range(5)
    ]
    if name == "llava":
        requests.append(_look(7, 2, images=2))
    for request, response in zip(requests, models[name].generate(requests), strict=True):
        assert response.failure is None
        assert len(response.maps) == len(request.probes)
        for probe, found in zip(request.probes, response.maps, strict=True):
            expected = _eager_map(folders[name], request, probe.layer, grid)  # type: ignore[attr-defined]
            assert found.values.dtype == np.float32
            np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-7)


def test_maps_do_not_depend_on_the_batch(folders: dict[str, Path]) -> None:
    requests = [_look(number % 6, 2, question=f"Question {number}?") for number in range(12)]
    one = _model(folders["llava"], batch=1).generate(requests)
    many = _model(folders["llava"], batch=16).generate(requests)
    for single, batched in zip(one, many, strict=True):
        np.testing.assert_allclose(single.maps[0].values, batched.maps[0].values, rtol=1e-5, atol=1e-7)


def test_the_default_layer_is_the_middle_one_and_llava_7bs_is_the_papers(models: dict[str, hf.Hf]) -> None:
    (response,) = models["llava"].generate([_look(0, None)])
    assert response.trace == {"map_layers": [2]}
    assert hf.MAP_LAYERS["llava", 32] == 14


def test_a_map_and_a_text_can_come_of_one_request(models: dict[str, hf.Hf]) -> None:
    both = dataclasses.replace(_look(1, 2), decoding=Decoding(max_tokens=4))
    (response,) = models["llava"].generate([both])
    assert len(response.maps) == 1
    assert response.text == _texts(models["llava"].generate([_request(1, decoding=both.decoding)]))[0]


@pytest.mark.parametrize(
    ("probe", "says"),
    [(ReadMap(9), "layers 0 to 3"), (ReadMap(-1, kind="gradient"), "layers 0 to 3")],
)
def test_a_map_that_is_not_offered_is_refused(models: dict[str, hf.Hf], probe: ReadMap, says: str) -> None:
    with pytest.raises(CapabilityError, match=says):
        models["llava"].generate([_request(probes=(probe,))])


def test_a_map_of_an_unknown_layout_or_of_no_picture_is_refused(models: dict[str, hf.Hf]) -> None:
    with pytest.raises(CapabilityError, match="where vipllava's image tokens stand is not known"):
        models["vip"].generate([_look(0, 1)])
    (response,) = models["llava"].generate([_look(0, 1, images=0)])
    assert response.failure is not None
    assert response.failure.kind == "no_image"


def _rows_through(module: Any, argument: str) -> list[int]:
    """How many rows pass a module at each call, from now on."""
    seen: list[int] = []
    module.register_forward_pre_hook(
        lambda _, values, named: seen.append(len(values[0] if values else named[argument])), with_kwargs=True
    )
    return seen


def test_work_that_requests_share_is_done_once(folders: dict[str, Path]) -> None:
    """Three questions and one general question, twice, about two pictures: 16 requests."""
    model = _model(folders["llava"], batch=64)
    model.generate([_request(99)])
    assert model._waves is not None
    core = model._waves._weights.model
    pictures = (tiny.photo(1), tiny.photo(2))
    tower = _rows_through(core.vision_tower, "pixel_values")
    layers = [_rows_through(layer, "hidden_states") for layer in core.language_model.layers]
    requests = [
        _look(0, 1, images=0)
        if not pictures
        else dataclasses.replace(_look(0, 1), images=(picture,), question=q)
        for _ in range(2)
        for picture in pictures
        for q in ("What is it?", "Who is it?", "Is it red?", "Write a general description.")
    ]
    responses = model.generate(requests)
    assert tower == [2]  # each picture once
    assert layers[0] == [2, 8]  # two beginnings, then eight endings
    assert layers[1] == [2, 8]
    assert layers[2] == []  # and nothing above the map's layer
    np.testing.assert_array_equal(responses[0].maps[0].values, responses[8].maps[0].values)
    assert responses[0].usage.calls == responses[8].usage.calls == 1
    model.generate([_request(0, images=1, question="Now?") for _ in range(1)])
    assert tower == [2, 1]
    model.generate([dataclasses.replace(_request(0), images=(pictures[0],))])
    assert tower == [2, 1]  # its features are still there


# ---------------------------------------------------------------- the rectangle


FRAMINGS = [
    {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}},
    {"size": {"height": 56, "width": 56}, "do_center_crop": False},
    {"size": {"shortest_edge": 70}, "crop_size": {"height": 56, "width": 56}},
]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FRAMINGS), st.integers(60, 900), st.integers(60, 900), st.integers(0, 2**16))
def test_a_bright_square_is_found_where_the_rectangle_puts_it(
    framing: dict[str, Any], width: int, height: int, seed: int
) -> None:
    """A square is drawn into one cell of the rectangle; the processor's pixels light up in that cell."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(**framing)
    x1, y1, x2, y2 = Framing.of(processor).rectangle((width, height))
    row, column = divmod(seed % 16, 4)
    cell = ((x2 - x1) / 4, (y2 - y1) / 4)
    image = Image.new("RGB", (width, height))
    left, top = x1 + (column + 0.25) * cell[0], y1 + (row + 0.25) * cell[1]
    image.paste((255, 255, 255), tuple(map(round, (left, top, left + cell[0] / 2, top + cell[1] / 2))))
    pixels = processor(images=[image], return_tensors="np")["pixel_values"][0].sum(axis=0)
    energy = (pixels - pixels.min()).reshape(4, 14, 4, 14).sum(axis=(1, 3))
    assert np.unravel_index(energy.argmax(), energy.shape) == (row, column)
    assert energy[row, column] > 0.9 * energy.sum()
