"""Captioning tasks: IIW-400, DOCCI, COCO captions and CHAIR on COCO's own files, from invented fixtures."""

import hashlib
import io
import json
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from adapters.scripted import Scripted
from harness import engine, resolve
from harness.errors import DataError, PictureError
from harness.store import read_records
from harness.types import Response, Sample, Task
from metrics import chair, clair, length
from tasks import _coco, coco_caption, coco_chair, docci, iiw400

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "sampling.json").read_text())["cases"]
STATISTICS = json.loads((Path(__file__).parent / "goldens" / "chair_gt_stats.json").read_text())["cases"]
DETAIL = "Please describe this image in detail."

java = pytest.mark.skipif(shutil.which("java") is None, reason="needs a Java runtime on PATH")


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (10, 200, 10)).save(buffer, "JPEG")
    return buffer.getvalue()


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg())
    return path


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def on_the_hub(folder: Path, split: str, rows: dict[str, list[Any]]) -> str:
    """A folder of parquet as a dataset of the hub is."""
    import datasets

    features = datasets.Features(
        {
            name: datasets.Image()
            if name == "image"
            else datasets.List(datasets.Value("string"))
            if isinstance(values[0], list)
            else datasets.Value("string")
            for name, values in rows.items()
        }
    )
    (folder / "data").mkdir(parents=True)
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return str(folder)


def from_hub(module: ModuleType, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SOURCE", replace(module.SOURCE, hub=(folder,)))


# ---------------------------------------------------------------- IIW-400


def iiw(root: Path, number: int = 3, **changes: Any) -> Path:
    rows = [
        {
            "IIW": f"A wide shot of thing {k}.\n\nIt is large.",
            "image/key": f"aar_test_{4600 + k:05}",
            "objects": [
                {"label": "Kettle", "description": "Steel.", "normalized_coords": ["10", "20", "400", "380"]}
            ],
            **(
                {"IIW-P5B": "A thing.", "iiw-human-sxs-gpt4v": {"metrics/Comprehensiveness": "++"}}
                if k
                else {}
            ),
            **changes,
        }
        for k in range(number)
    ]
    lines(root / "data.jsonl", rows)
    picture(root / "images_aar" / "aar_test_04600.jpg")
    return root


def test_iiw_reads_its_file_with_and_without_the_optional_fields(tmp_path: Path) -> None:
    task = iiw400.task(iiw(tmp_path), size="any")
    first = task.samples[0]
    assert (first.id, first.targets) == ("aar_test_04600", ("A wide shot of thing 0.\n\nIt is large.",))
    assert first.images[0].size == (8, 6)
    request = task.request(first)
    assert (request.text, request.decoding.max_tokens, request.decoding.temperature) == (DETAIL, 512, 0)
    assert (task.name, task.protocol, len(task.samples)) == ("iiw400", "sparc", 3)


def test_iiw_has_four_hundred_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="iiw400 has 3 samples; 400 are expected. Say size=any"):
        iiw400.task(iiw(tmp_path))
    assert len(iiw400.task(iiw(tmp_path, 400)).samples) == 400
    drawn = iiw400.task(tmp_path, subset="random:50@seed=42").samples
    assert [sample.id for sample in drawn] == [
        f"aar_test_{4600 + k:05}" for k in random.Random(42).sample(range(400), 50)
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"IIW": None}, "line 1 has no IIW"),
        ({"image/key": None}, "line 1 has no image/key"),
        ({"image/key": "x"}, "line 2 has the id 'x', which .*line 1 has already"),
    ],
)
def test_iiw_names_the_line_and_the_fault(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        iiw400.task(iiw(tmp_path, **changes), size="any")


def test_a_key_that_climbs_out_of_the_images_is_a_failure_of_its_own(tmp_path: Path) -> None:
    root = iiw(tmp_path / "set", 1, **{"image/key": "../../secret"})
    picture(tmp_path / "secret.jpg")
    with pytest.raises(PictureError, match="lies outside its folder"):
        iiw400.task(root, size="any").samples[0].images[0].open()


def test_without_a_judge_a_run_measures_lengths_and_is_judged_later(tmp_path: Path) -> None:
    task = resolve.make_task(f"iiw400:root={iiw(tmp_path)},size=any")
    assert (task.metrics, task.primary) == ((length.metric(),), "words")
    run = engine.run(task, Scripted(lambda _: "A kettle of steel."), out=tmp_path / "runs")
    assert run.summary["metrics"]["length"]["scores"]["words"]["value"] == 4
    judge = "(scripted:score 80)"
    summary = engine.score(run.path, [resolve.make_metric(f"clair:judge={judge},variant=fovea")])
    assert summary["metrics"]["clair[fovea]"]["scores"]["clair"]["value"] == pytest.approx(0.8)
    assert set(summary["metrics"]) == {"length", "clair[fovea]"}


def test_a_judge_makes_clair_the_tasks_metric(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(request: Any) -> str:
        asked.append(request.text)
        return '{"score": 70, "reason": "close"}'

    judge = Scripted(answer)
    with pytest.MonkeyPatch.context() as patch:  # the authors' prompt is neither here nor to be had
        patch.setattr(clair, "upstream_template", lambda *a, **k: None)
        clair._template.cache_clear()
        with pytest.warns(UserWarning, match="named clair\\[fovea\\]"):
            task = iiw400.task(iiw(tmp_path), judge=judge, size="any")
        clair._template.cache_clear()
    assert task.primary == "clair"
    run = engine.run(task, Scripted(lambda _: "A kettle."), out=tmp_path / "runs")
    assert run.summary["metrics"]["clair[fovea]"]["scores"]["clair"]["value"] == pytest.approx(0.7)
    assert len(asked) == 3 and "A wide shot of thing 0. It is large." in asked[0]
    with pytest.raises(ValueError, match="judge is for CLAIR and metric for another metric"):
        iiw400.task(tmp_path, judge=judge, metric=length.metric(), size="any")


def test_another_metric_takes_the_place_of_length(tmp_path: Path) -> None:
    task = resolve.make_task(f"iiw400:root={iiw(tmp_path)},size=any,metric=(anls:threshold=0)")
    assert task.primary == "anls"


# ---------------------------------------------------------------- DOCCI


def docci_file(root: Path, name: str = "docci_descriptions.jsonlines", each: int = 3) -> Path:
    rows = [
        {
            "example_id": f"{split}_{k:05}",
            "split": split,
            "image_file": f"{split}_{k:05}.jpg",
            "description": f"An indoor view {k}.",
        }
        for split in ("qual_dev", "test", "qual_test", "train")
        for k in range(each)
    ]
    lines(root / name, rows)
    picture(root / "images" / "test_00000.jpg")
    return root


def test_docci_takes_the_test_split_or_another(tmp_path: Path) -> None:
    task = docci.task(docci_file(tmp_path), size="any")
    assert [sample.id for sample in task.samples] == ["test_00000", "test_00001", "test_00002"]
    first = task.samples[0]
    assert (first.targets, first.category) == (("An indoor view 0.",), "test")
    assert first.images[0].size == (8, 6)
    assert task.request(first).text == DETAIL and task.request(first).decoding.max_tokens == 512
    assert docci.task(tmp_path, subset="qual_dev", size="any").samples[0].id == "qual_dev_00000"
    drawn = docci.task(tmp_path, subset="random:2@seed=1", size="any").samples
    assert [sample.category for sample in drawn] == ["test", "test"]
    with pytest.raises(DataError, match="subset='tset' is unknown"):
        docci.task(tmp_path, subset="tset", size="any")
    with pytest.raises(DataError, match="docci test has 3 samples; 5,000 are expected"):
        docci.task(tmp_path)


def test_doccis_file_may_have_the_name_that_sparcs_scripts_expect(tmp_path: Path) -> None:
    assert len(docci.task(docci_file(tmp_path, "docci_descriptions.jsonl"), size="any").samples) == 3
    with pytest.raises(DataError, match=r"holds none of docci_descriptions\.jsonlines"):
        docci.task(tmp_path / "images", size="any")


def test_sparc500_is_sparcs_draw_from_the_whole_file(tmp_path: Path) -> None:
    """The golden: indices into all 14,847 lines in the file's order, whatever their split."""
    counts = {"train": 9647, "test": 5000, "qual_dev": 100, "qual_test": 100}
    splits = [split for split, count in counts.items() for _ in range(count)]
    rows = [
        {"example_id": str(k), "split": split, "image_file": f"{k}.jpg", "description": "x"}
        for k, split in enumerate(splits)
    ]
    lines(tmp_path / "docci_descriptions.jsonlines", rows)
    drawn = [int(sample.id) for sample in docci.task(tmp_path, subset="sparc500").samples]
    (case,) = (case for case in GOLDEN if case["input"] == {"seed": 42, "population": 14847, "k": 500})
    assert drawn[:10] == case["expected"]["first10"]
    assert drawn[-5:] == case["expected"]["last5"]
    joined = ",".join(map(str, drawn)).encode()
    assert hashlib.sha256(joined).hexdigest() == case["expected"]["sha256_of_comma_joined"]
    assert len(docci.task(tmp_path).samples) == 5000
    lines(tmp_path / "docci_descriptions.jsonlines", rows[:-1])
    with pytest.raises(DataError, match="docci all has 14,846 samples; 14,847 are expected"):
        docci.task(tmp_path, subset="sparc500")


@pytest.mark.parametrize(("text", "ids"), [("description", True), ("answer", False)])
def test_docci_reads_both_layouts_of_its_copies_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, ids: bool
) -> None:
    rows: dict[str, list[Any]] = {"image": [{"bytes": jpeg(), "path": None}] * 2, text: ["One.", "Two."]}
    rows |= {"example_id": ["test_00007", "test_00008"]} if ids else {"question": ["Describe."] * 2}
    from_hub(docci, on_the_hub(tmp_path / "docci", "test", rows), monkeypatch)
    samples = docci.task(size="any").samples
    assert [sample.targets for sample in samples] == [("One.",), ("Two.",)]
    assert samples[0].id == ("test_00007" if ids else "test_00000")
    assert samples[1].images[0].size == (8, 6)
    with pytest.raises(DataError, match="the hub's copy of DOCCI has no all: give root=DIR"):
        docci.task(subset="sparc500")


# ---------------------------------------------------------------- COCO's own files


def coco(root: Path, part: str = "val2014", images: Sequence[int] = (42, 7), **only: Any) -> Path:
    """Instances and captions: image 42 shows a dog and a couch, and its captions speak of a bus and men."""
    names = [{"id": k, "file_name": f"COCO_{part}_{k:012}.jpg", "height": 6, "width": 8} for k in images]
    categories = [{"id": 18, "name": "dog"}, {"id": 63, "name": "couch"}]
    boxes = [
        {"id": 1, "image_id": images[0], "category_id": 18},
        {"id": 2, "image_id": images[0], "category_id": 63},
    ]
    texts = [
        {"id": 10 + c, "image_id": image, "caption": f"{text} {c}"}
        for image, text in zip(images, ("A bus and two men", "Nothing much"), strict=False)
        for c in range(6)
    ]
    folder = root / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, dict[str, Any]] = {
        "instances": {"images": names, "annotations": boxes, "categories": categories},
        "captions": {"images": names, "annotations": texts},
    }
    for kind, document in content.items():
        (folder / f"{kind}_{part}.json").write_text(json.dumps(document | only))
    picture(root / part / f"COCO_{part}_{images[0]:012}.jpg")
    return root


def chair_task(root: Path, **knobs: Any) -> Task:
    return coco_chair.task(root, **{"front_end": "rules", "size": "any", "subset": "all", **knobs})


def test_cocos_ground_truth_is_instances_and_captions_and_its_order_that_of_names(tmp_path: Path) -> None:
    task = chair_task(coco(tmp_path))
    assert [sample.id for sample in task.samples] == ["7", "42"]
    assert task.samples[1].targets == ("bus", "couch", "dog", "person")
    assert task.samples[0].targets == ()
    assert task.samples[1].images[0].size == (8, 6)
    assert task.request(task.samples[0]).text == DETAIL
    assert task.samples[1].meta == {"image": "COCO_val2014_000000000042.jpg"}
    assert chair_task(tmp_path / "annotations", images=tmp_path / "val2014").samples == task.samples


def test_a_run_on_cocos_own_files_has_chairs_numbers(tmp_path: Path) -> None:
    run = engine.run(
        chair_task(coco(tmp_path)), Scripted(lambda _: "A dog, a cat and a bus."), out=tmp_path / "runs"
    )
    scores = run.summary["metrics"]["chair[rules]"]["scores"]
    assert scores["CHAIRs"]["value"] == 1.0
    assert scores["CHAIRi"]["value"] == pytest.approx(4 / 6)
    assert scores["Recall"]["value"] == pytest.approx(2 / 4)


def test_ground_truth_is_made_once_and_again_when_anything_changes(tmp_path: Path) -> None:
    folder = coco(tmp_path) / "annotations"
    kept = folder / "fovea_chair_rules.json"
    first = chair_task(tmp_path)
    written = json.loads(kept.read_text())
    assert written["objects"] == {"7": [], "42": ["bus", "couch", "dog", "person"]}
    kept.write_text(json.dumps({**written, "objects": {"7": ["cat"], "42": []}}))
    assert chair_task(tmp_path).samples[0].targets == ("cat",)  # it was read, not made
    kept.write_text("{")
    assert chair_task(tmp_path).samples == first.samples
    captions = json.loads((folder / "captions_val2014.json").read_text())
    captions["annotations"][-1]["caption"] = "A zebra."
    (folder / "captions_val2014.json").write_text(json.dumps(captions))
    again = chair_task(tmp_path)
    assert again.samples[0].targets == ("zebra",)
    assert again.fingerprint != first.fingerprint


def test_ground_truth_is_kept_at_home_where_the_data_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (coco(tmp_path) / "annotations" / "fovea_chair_rules.json").mkdir()
    samples = chair_task(tmp_path).samples
    (kept,) = (tmp_path / "home" / ".cache" / "fovea").iterdir()
    assert kept.name.endswith("_fovea_chair_rules.json")
    (tmp_path / "annotations" / "captions_val2014.json").touch()
    assert chair_task(tmp_path).samples == samples
    assert not list((tmp_path / "annotations").glob("*.json.*"))


def test_every_front_end_has_a_ground_truth_and_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    shared = Path(__file__).parent.parent.parent / "shared" / "data" / "nltk_data"
    words = Path(os.environ.get("NLTK_DATA", shared))
    nltk = pytest.importorskip("nltk", reason="needs the extra [chair]")
    if not words.exists():
        pytest.skip(f"needs NLTK's data at {words}")
    if str(words) not in nltk.data.path:
        nltk.data.path.append(str(words))
    made = {name: chair_task(coco(tmp_path), front_end=name) for name in ("wordnet", "pattern", "rules")}
    assert made["wordnet"].samples[1].targets == ("bus", "couch", "dog")  # "men" stays "men"
    assert made["pattern"].samples[1].targets == ("couch", "dog", "person")  # "bus" becomes "bu"
    assert made["rules"].samples[1].targets == ("bus", "couch", "dog", "person")
    assert len({task.fingerprint for task in made.values()}) == 3


def test_train2014_is_taken_in_where_it_is_there(tmp_path: Path) -> None:
    coco(tmp_path)
    coco(tmp_path, "train2014", (100, 101))
    truth = _coco.truth(tmp_path / "annotations", "rules")
    assert sorted(truth.objects) == [7, 42, 100, 101]
    assert len(chair_task(tmp_path).samples) == 2


def test_statistics_are_of_the_form_that_the_references_were_counted_in(tmp_path: Path) -> None:
    truth = _coco.truth(coco(tmp_path) / "annotations", "rules")
    images, empty, objects, sha256 = truth.statistics()
    assert (images, empty, objects) == (2, 1, 4)
    assert sha256 == hashlib.sha256(b"7\t\n42\tbus,couch,dog,person").hexdigest()
    for case in STATISTICS:
        expected = case["expected"]
        assert _coco.OFFICIAL[case["input"]["variant"]] == (
            expected["n_images"],
            expected["n_empty"],
            expected["total_objects"],
            expected["sha256_lines_imageid_tab_commajoined_sorted"],
        )


def test_a_complete_ground_truth_that_is_not_the_references_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_coco, "OFFICIAL", {"rules": (2, 0, 5, "")})
    folder = coco(tmp_path) / "annotations"
    with pytest.warns(UserWarning, match="1 images without objects for 0, 4 objects for 5. Another version"):
        _coco.truth(folder, "rules")
    monkeypatch.setattr(_coco, "OFFICIAL", {"rules": (3, 0, 5, "")})
    assert _coco.truth(folder, "rules").doubts() is None  # not all images: nothing to compare with


def test_what_is_missing_of_coco_is_named(tmp_path: Path) -> None:
    folder = coco(tmp_path) / "annotations"
    (folder / "instances_val2014.json").unlink()
    with pytest.raises(DataError, match=r"lacks instances_val2014\.json\. CHAIR's ground truth is made of"):
        chair_task(tmp_path)
    coco(tmp_path)
    for content in ("{", "[]", "{}", '{"images": []}', '{"images": [{"id": "x"}]}'):
        (folder / "instances_val2014.json").write_text(content)
        with pytest.raises(DataError, match=r"instances_val2014\.json is no annotation file of COCO"):
            chair_task(tmp_path)
    coco(tmp_path, categories=[{"id": 18, "name": "kraken"}, {"id": 63, "name": "couch"}])
    with pytest.raises(DataError, match="'kraken' is none of COCO's 80 categories"):
        chair_task(tmp_path)
    with pytest.raises(DataError, match="coco val2014 has 2 samples; 40,504 are expected"):
        chair_task(coco(tmp_path), size="official")


def test_sparc500_is_drawn_from_the_sorted_names(tmp_path: Path) -> None:
    numbers = list(range(600))
    random.Random(1).shuffle(numbers)
    coco(tmp_path, images=numbers)
    task = chair_task(tmp_path, subset=None)
    assert [int(sample.id) for sample in task.samples] == random.Random(42).sample(range(600), 500)
    assert len(chair_task(tmp_path).samples) == 600
    assert len(chair_task(tmp_path, subset="random:3@seed=5").samples) == 3


@pytest.mark.parametrize(
    "content",
    [
        "42\n7\n",
        "COCO_val2014_000000000042.jpg\n/data/val2014/COCO_val2014_000000000007.jpg",
        '{"image_id": 42, "caption": "A 3."}\n{"image_id": 7, "caption": "x"}\n',
        "[42, 7]",
        '["000000000042", "7"]',
    ],
)
def test_a_papers_own_sample_is_a_file_of_ids(tmp_path: Path, content: str) -> None:
    coco(tmp_path, images=(42, 7, 9))
    (tmp_path / "ids.txt").write_text(content)
    task = resolve.make_task(f"coco_chair:root={tmp_path},front_end=rules,size=any,ids={tmp_path}/ids.txt")
    assert [sample.id for sample in task.samples] == ["42", "7"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("42\n11\n", "there is no image 11 here"),
        ("42\n42\n", "entry 2: the image 42 stands there twice"),
        ("42\nabc\n", "entry 2: there is no image id in 'abc'"),
        ("[42", "is not JSON"),
    ],
)
def test_a_file_of_ids_that_will_not_do_is_named(tmp_path: Path, content: str, said: str) -> None:
    coco(tmp_path)
    (tmp_path / "ids.txt").write_text(content)
    with pytest.raises(DataError, match=said):
        chair_task(tmp_path, ids=tmp_path / "ids.txt")


def test_chairs_sample_on_the_hub_has_its_objects_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: dict[str, list[Any]] = {
        "image": [{"bytes": jpeg(), "path": None}] * 2,
        "question_id": ["42", "7"],
        "gt_object": [["dog", "couch"], []],
    }
    from_hub(coco_chair, on_the_hub(tmp_path / "chair", "test", rows), monkeypatch)
    monkeypatch.setattr(chair, "base_forms", lambda front_end: None)
    task = coco_chair.task()
    assert [(sample.id, sample.targets) for sample in task.samples] == [("42", ("dog", "couch")), ("7", ())]
    assert task.samples[0].images[0].size == (8, 6)
    with pytest.raises(DataError, match="is made for front_end=wordnet; for rules give root=DIR"):
        coco_chair.task(front_end="rules")


# ---------------------------------------------------------------- COCO captions


def karpathy(root: Path) -> Path:
    images = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{k:012}.jpg",
            "cocoid": k,
            "split": split,
            "sentences": [{"raw": f"A dog {c}.", "tokens": []} for c in range(number)],
        }
        for k, split, number in ((42, "test", 7), (9, "train", 5), (7, "test", 5))
    ]
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    picture(root / "val2014" / f"COCO_val2014_{42:012}.jpg")
    return root


PLAIN = "Please describe this image in general. Directly provide the description, do not include prefix like "


@pytest.mark.parametrize(
    ("split", "protocol", "prompt", "tokens", "variant"),
    [
        ("karpathy", "lmms", "Describe the image briefly.", 64, "official"),
        ("val2014", "lmms", "Provide a one-sentence caption for the provided image.", 64, "official"),
        ("val2014", "vlmevalkit", f'{PLAIN}"This image depicts". ', 512, "vlmevalkit"),
    ],
)
def test_coco_captions_protocols_ask_and_score_as_their_code_bases_do(
    tmp_path: Path, split: Any, protocol: Any, prompt: str, tokens: int, variant: str
) -> None:
    if variant == "official" and shutil.which("java") is None:
        pytest.skip("needs a Java runtime on PATH")
    task = coco_caption.task(coco(karpathy(tmp_path)), split=split, protocol=protocol, size="any")
    assert [sample.id for sample in task.samples] == ["42", "7"]
    request = task.request(task.samples[0])
    assert (request.text, request.decoding.max_tokens) == (prompt, tokens)
    assert (task.metrics[0].name, task.metrics[0].variant, task.primary) == ("caption", variant, "CIDEr")
    assert task.samples[0].images[0].size == (8, 6)


def test_all_captions_of_an_image_are_its_references(tmp_path: Path) -> None:
    task = coco_caption.task(karpathy(tmp_path), protocol="vlmevalkit", size="any")
    assert [len(sample.targets) for sample in task.samples] == [7, 5]
    assert task.samples[0].targets[:2] == ("A dog 0.", "A dog 1.")
    with pytest.raises(DataError, match="coco_caption karpathy has 2 samples; 5,000 are expected"):
        coco_caption.task(tmp_path, protocol="vlmevalkit")
    both = coco_caption.task(coco(tmp_path), split="val2014", protocol="vlmevalkit", size="any")
    assert both.samples[0].targets[0] == "A bus and two men 0"
    assert both.name != task.name


def test_a_run_of_coco_caption_ends_with_cider(tmp_path: Path) -> None:
    task = coco_caption.task(karpathy(tmp_path), protocol="vlmevalkit", size="any")
    run = engine.run(task, Scripted(lambda _: "A dog 0."), out=tmp_path / "runs")
    scores = run.summary["metrics"]["caption[vlmevalkit]"]["scores"]
    assert scores["BLEU-1"]["value"] == pytest.approx(1)
    assert set(scores) == {"CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE_L"}
    assert [record.answer for record in read_records(run.path)] == ["A dog 0."] * 2


def test_missing_java_is_told_before_anything_is_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="caption:variant=official needs a Java runtime"):
        coco_caption.task(karpathy(tmp_path), size="any")
    task = coco_caption.task(tmp_path, metric=length.metric(), size="any")
    assert task.primary == "words"


def test_coco_captions_on_the_hub_are_val2014s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: dict[str, list[Any]] = {
        "image": [{"bytes": jpeg(), "path": None}],
        "question_id": ["COCO_val2014_000000000042.jpg"],
        "question": ["Please carefully observe the image."],
        "answer": [["A dog.", "A hound."]],
        "file_name": ["COCO_val2014_000000000042.jpg"],
    }
    from_hub(coco_caption, on_the_hub(tmp_path / "captions", "val", rows), monkeypatch)
    task = coco_caption.task(split="val2014", protocol="vlmevalkit", size="any")
    assert [(sample.id, sample.targets) for sample in task.samples] == [("42", ("A dog.", "A hound."))]
    assert task.samples[0].images[0].size == (8, 6)
    with pytest.raises(DataError, match="the hub has no images for Karpathy's split"):
        coco_caption.task(protocol="vlmevalkit")


# ---------------------------------------------------------------- length


def test_length_counts_words_and_what_was_cut() -> None:
    metric = length.metric()
    answers = [Response("one two three"), Response("one", "length"), Response(" ")]
    seen = metric.measure(answers, [Sample(str(k)) for k in range(3)])
    assert metric.reduce(seen) == {"words": 4 / 3, "cut": 1 / 3, "empty": 1 / 3}
    assert metric.reduce(seen[::-1]) == metric.reduce(seen)
    assert metric.reduce([]) == {"words": None, "cut": None, "empty": None}
