"""Pools for retrieval: Karpathy's JSON and the text files of SCAN and LAPS, invented and real."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from harness import resolve
from harness.errors import DataError, PictureError, SpecError
from metrics.retrieval import summary
from tasks import _retrieval, coco_retrieval, flickr30k_retrieval
from tasks._retrieval import Captioned

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "retrieval"


def karpathy(path: Path, number: int = 10, captions: int = 5, **changes: Any) -> Path:
    """`number` images of each split, the splits taking turns, as they do in the real files."""
    images = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{k:012}.jpg",
            "imgid": k,
            "cocoid": 100 + k,
            "split": split,
            "sentids": [],
            "sentences": [
                {"raw": f"Caption {c} of {k}.", "tokens": ["caption"], "imgid": k, "sentid": c}
                for c in range(captions)
            ],
            **changes,
        }
        for k, split in enumerate(["train", "restval", "val", "test"] * number)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"dataset": "coco", "images": images}))
    return path


def text_files(root: Path, name: str, ids: Sequence[str], per_image: int = 5) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    rows = [(image, f"caption {c} of {image} .") for image in ids for c in range(per_image)]
    (root / f"{name}_caps.txt").write_text("".join(f"{text}\n" for _, text in rows))
    (root / f"{name}_ids.txt").write_text("".join(f"{image}\n" for image, _ in rows))
    return root


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path)
    return path


# ---------------------------------------------------------------- Karpathy's JSON


def test_coco_takes_the_test_split_in_the_files_order_with_its_captions(tmp_path: Path) -> None:
    karpathy(tmp_path / "dataset_coco.json")
    picture(tmp_path / "val2014" / f"COCO_val2014_{3:012}.jpg")
    task = coco_retrieval.task(tmp_path, size="any")
    assert task.ids[:3] == ("103", "107", "111")
    assert (len(task.pool.images), len(task.pool.texts), task.folds) == (10, 50, 1)
    assert task.pool.texts[5:7] == ("Caption 0 of 7.", "Caption 1 of 7.")
    assert task.owner == tuple(k // 5 for k in range(50))
    assert task.pool.images[0].size == (8, 6)
    with pytest.raises(PictureError, match="does not exist"):
        _ = task.pool.images[1].size


@pytest.mark.parametrize(("captions", "kept"), [(7, 5), (5, 5), (3, 3)])
def test_only_the_first_five_captions_of_an_image_count(tmp_path: Path, captions: int, kept: int) -> None:
    karpathy(tmp_path / "dataset_coco.json", captions=captions)
    task = coco_retrieval.task(tmp_path, size="any")
    assert len(task.pool.texts) == 10 * kept
    assert task.pool.texts[kept] == "Caption 0 of 7."


def test_protocol_1k_is_the_same_pool_in_five_folds(tmp_path: Path) -> None:
    karpathy(tmp_path / "dataset_coco.json")
    one, five = (coco_retrieval.task(tmp_path, protocol=(p,), size="any") for p in ("5k", "1k"))
    assert (one.protocol, five.protocol) == ("5k/sparse", "1k/sparse")
    assert five == replace(one, folds=5, protocol="1k/sparse")
    karpathy(tmp_path / "dataset_coco.json", number=7)
    with pytest.raises(DataError, match="7 images cannot be cut into 5 equal folds"):
        coco_retrieval.task(tmp_path, protocol=("1k",), size="any")


def test_flickr_reads_karpathys_file_without_folders_and_names_images_by_imgid(tmp_path: Path) -> None:
    karpathy(tmp_path / "dataset_flickr30k.json", filepath=None, cocoid=None)
    picture(tmp_path / "flickr30k-images" / f"COCO_val2014_{2:012}.jpg")
    task = flickr30k_retrieval.task(tmp_path, split="val", size="any")
    assert task.ids[:2] == ("2", "6")
    assert task.pool.images[0].size == (8, 6)


def test_images_are_found_beside_below_or_where_they_are_said_to_be(tmp_path: Path) -> None:
    karpathy(tmp_path / "splits" / "dataset_coco.json")
    name = f"COCO_val2014_{3:012}.jpg"
    picture(tmp_path / "coco" / "val2014" / name)
    for folder in (tmp_path / "coco", tmp_path / "coco" / "val2014"):
        task = coco_retrieval.task(tmp_path / "splits", images=folder, size="any")
        assert task.pool.images[0].size == (8, 6)
    with pytest.raises(DataError, match="nowhere does not exist; it should hold COCO 2014's images"):
        coco_retrieval.task(tmp_path / "splits", images=tmp_path / "nowhere", size="any")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sentences": []}, "images 4 has no list of sentences"),
        ({"sentences": [{"tokens": []}]}, "images 4, sentence 1 has no raw"),
        ({"cocoid": None}, "images 4 has no cocoid"),
        ({"filename": None}, "images 4 has no filename"),
        ({"cocoid": 7}, "images 8 has the id '7', which .*images 4 has already"),
    ],
)
def test_karpathys_faults_are_named_with_the_image(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    karpathy(tmp_path / "dataset_coco.json", **changes)
    with pytest.raises(DataError, match=said):
        coco_retrieval.task(tmp_path, size="any")


def test_a_file_that_is_not_karpathys_is_named(tmp_path: Path) -> None:
    for text, said in (("[]", "is not an object"), ("{", "is not JSON"), ("{}", "under 'images'")):
        (tmp_path / "dataset_coco.json").write_text(text)
        with pytest.raises(DataError, match=said):
            coco_retrieval.task(tmp_path)


# ---------------------------------------------------------------- text files


def test_the_text_files_have_a_caption_and_its_images_id_per_line(tmp_path: Path) -> None:
    text_files(tmp_path, "testall", ["391895", "60623"])
    task = coco_retrieval.task(tmp_path, size="any")
    assert task.ids == ("391895", "60623")
    assert task.pool.texts[5] == "caption 0 of 60623 ."
    assert task.owner == (0,) * 5 + (1,) * 5
    assert task.pool.images[0].source.label.endswith("COCO_val2014_000000391895.jpg")


def test_flickrs_text_files_need_the_names_of_the_images(tmp_path: Path) -> None:
    text_files(tmp_path, "test", ["25", "34"])
    with pytest.raises(DataError, match=r"id_mapping\.json does not exist"):
        flickr30k_retrieval.task(tmp_path, size="any")
    (tmp_path / "id_mapping.json").write_text('{"25": "../secret.jpg", "34": "images/b.jpg"}')
    picture(tmp_path / "images" / "b.jpg")
    task = flickr30k_retrieval.task(tmp_path, size="any")
    assert task.pool.images[1].size == (8, 6)
    with pytest.raises(PictureError, match="lies outside its folder"):
        task.pool.images[0].open()
    (tmp_path / "id_mapping.json").write_text('{"25": "a.jpg"}')
    with pytest.raises(DataError, match=r"test_ids\.txt, line 6: no file name is known for the id '34'"):
        flickr30k_retrieval.task(tmp_path, size="any")
    (tmp_path / "id_mapping.json").write_text('{"25": 7}')
    with pytest.raises(DataError, match=r"id_mapping\.json must be one object of id: file name"):
        flickr30k_retrieval.task(tmp_path, size="any")


def test_text_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    text_files(tmp_path, "testall", ["1", "2"])
    ids = tmp_path / "testall_ids.txt"
    ids.write_text("1\n" * 5)
    with pytest.raises(DataError, match=r"has 10 lines, .* 5; each caption needs its image's id"):
        coco_retrieval.task(tmp_path, size="any")
    ids.write_text("1\n" * 3 + "2\n" * 4 + "1\n" * 3)
    with pytest.raises(DataError, match="line 8 has the id '1', which .*line 1 has already"):
        coco_retrieval.task(tmp_path, size="any")
    ids.write_text("1\n" * 5 + "\n" + "2\n" * 4)
    with pytest.raises(DataError, match="line 6 is empty"):
        coco_retrieval.task(tmp_path, size="any")
    ids.write_bytes(b"\xff\n" * 10)
    with pytest.raises(DataError, match="is not UTF-8"):
        coco_retrieval.task(tmp_path, size="any")


def test_karpathys_file_comes_first_unless_the_text_files_are_asked_for(tmp_path: Path) -> None:
    karpathy(tmp_path / "dataset_coco.json")
    text_files(tmp_path, "testall", ["9"])
    assert len(coco_retrieval.task(tmp_path, size="any").pool.images) == 10
    texts = coco_retrieval.task(tmp_path, format="text", size="any")
    assert texts.ids == ("9",)
    assert texts.fingerprint != coco_retrieval.task(tmp_path, size="any").fingerprint
    (tmp_path / "dataset_coco.json").unlink()
    assert coco_retrieval.task(tmp_path, size="any") == texts
    with pytest.raises(DataError, match=r"lacks its captions; it should hold dataset_coco\.json"):
        coco_retrieval.task(tmp_path, split="val", size="any")


# ---------------------------------------------------------------- counts and order


def many(ids: Sequence[str], folds: int = 1, captions: int = 5) -> Captioned:
    owner = tuple(k // captions for k in range(captions * len(ids)))
    pictures = tuple(_retrieval._picture(Path("/x"), f"{k}.jpg") for k in ids)
    return Captioned(pictures, tuple(map(str, range(len(owner)))), owner, tuple(ids), folds)


def test_counts_are_asserted_unless_any_will_do() -> None:
    check = _retrieval.check_pool
    assert check("x", many("abcd"), (4,), (), "official")
    with pytest.raises(DataError, match="x has 4 samples; 5 are expected. Say size=any"):
        check("x", many("abcd"), (5,), (), "official")
    with pytest.raises(DataError, match="captions of all images, has 12 samples; 20 are expected"):
        check("x", many("abcd", captions=3), (4,), (), "official")
    assert check("x", many("abcd", captions=3), (5,), (), "any")


def test_the_first_image_of_every_fold_is_asserted() -> None:
    check = _retrieval.check_pool
    assert check("x", many("abcdef", 3), (6,), "ace", "official")
    with pytest.raises(DataError, match="fold 2 begins with the image d, it should with c. Scores of folds"):
        check("x", many("abdcef", 3), (6,), "ace", "official")
    with pytest.raises(DataError, match="fold 1 begins with the image b"):
        check("x", many("bacdef"), (6,), "ace", "official")
    assert check("x", many("bacdef"), (6,), "ace", "any")


@pytest.mark.parametrize(
    ("folder", "split", "protocol", "counts", "first"),
    [
        ("coco", "test", "1k", (5000, 25000, 5), "COCO_val2014_000000391895.jpg"),
        ("coco", "test", "5k", (5000, 25000, 1), "COCO_val2014_000000391895.jpg"),
        ("coco", "val", "5k", (1000, 5000, 1), "COCO_val2014_000000184613.jpg"),
        ("f30k", "test", None, (1000, 5000, 1), "1007129816.jpg"),
        ("f30k", "val", None, (1014, 5070, 1), "1018148011.jpg"),
    ],
)
def test_the_real_text_files_have_their_counts_and_order(
    folder: str, split: Any, protocol: Any, counts: tuple[int, int, int], first: str
) -> None:
    root = SHARED / folder
    if not root.exists():
        pytest.skip(f"needs the text files of {root}")
    if protocol:
        task = coco_retrieval.task(root, protocol=(protocol,), split=split)
    else:
        task = flickr30k_retrieval.task(root, split=split)
    assert (len(task.pool.images), len(task.pool.texts), task.folds) == counts
    assert Path(task.pool.images[0].source.label).name == first


def test_a_pool_is_what_the_retrieval_metric_takes() -> None:
    found = many("abcde", folds=5, captions=2)
    similarity = [[float(owner == image) for owner in found.owner] for image in range(5)]
    assert summary(similarity, found.owner, folds=found.folds)["rsum"] == 600


# ---------------------------------------------------------------- dense texts and protocols


def dense_file(path: Path, ids: Sequence[str], **more: str) -> Path:
    lines = [{"text": f"A long story of {image}.", "model_id": "m", **more} for image in ids]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_dense_texts_follow_images_or_as_the_leak_has_it_captions(tmp_path: Path) -> None:
    text_files(tmp_path, "testall", ["1", "2"])
    sparse = coco_retrieval.task(tmp_path, size="any")
    assert (sparse.protocol, sparse.pool.dense, sparse.pool.dense_of) == ("5k/sparse", (), "none")
    dense_file(tmp_path / "coco_testall.jsonl", sparse.ids)
    candidate = coco_retrieval.task(tmp_path, size="any")
    stories = ("A long story of 1.", "A long story of 2.")
    assert (candidate.protocol, candidate.pool.dense, candidate.leaks) == ("5k/candidate", stories, False)
    leaking = coco_retrieval.task(tmp_path, protocol=("oracle_query",), size="any")
    assert leaking.leaks and leaking.protocol == "5k/oracle_query"
    assert leaking.pool.dense == (stories[0],) * 5 + (stories[1],) * 5
    assert coco_retrieval.task(tmp_path, protocol=("sparse",), size="any").pool == sparse.pool
    assert len({task.fingerprint for task in (sparse, candidate, leaking)}) == 3


def test_a_dense_protocol_without_its_file_is_refused(tmp_path: Path) -> None:
    text_files(tmp_path, "testall", ["1", "2"])
    with pytest.raises(DataError, match="protocol=candidate needs dense texts, .*dense=FILE"):
        coco_retrieval.task(tmp_path, protocol=("candidate",), size="any")
    with pytest.raises(SpecError, match=r"protocol=5k\+1k: take one of"):
        coco_retrieval.task(tmp_path, protocol=("5k", "1k"), size="any")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"text": "a"}\n', "has 1 dense texts for 2 images"),
        ('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n', "has 3 dense texts for 2 images"),
        ('{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ('{"text": "a"}\n{"caption": "b"}\n', "line 2 has no text"),
        ('{"text": "a", "image_id": "2"}\n{"text": "b"}\n', "line 1 is of image 2, where image 1 stands"),
    ],
)
def test_a_short_or_shifted_dense_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    text_files(tmp_path, "testall", ["1", "2"])
    path = tmp_path / "made.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        coco_retrieval.task(tmp_path, dense=path, size="any")


def test_the_real_dense_texts_are_one_per_image_and_about_it() -> None:
    if not SHARED.exists():
        pytest.skip(f"needs the text files of {SHARED}")
    flickr, coco = flickr30k_retrieval.task(SHARED / "f30k"), coco_retrieval.task(SHARED / "coco")
    assert (flickr.protocol, coco.protocol) == ("candidate", "5k/candidate")
    assert (len(flickr.pool.dense), len(coco.pool.dense)) == (1000, 5000)
    assert "beer hat" in flickr.pool.dense[0]  # a man with a beer can crocheted hat on, the captions say


def test_training_files_have_one_id_for_five_captions(tmp_path: Path) -> None:
    text_files(tmp_path, "train", ["25", "34"])
    (tmp_path / "train_ids.txt").write_text("25\n34\n")
    (tmp_path / "id_mapping.json").write_text('{"25": "a.jpg", "34": "b.jpg"}')
    task = flickr30k_retrieval.task(tmp_path, split="train", size="any")
    assert task.ids == ("25", "34")
    assert task.owner == (0,) * 5 + (1,) * 5


def test_karpathys_restval_is_training_data(tmp_path: Path) -> None:
    karpathy(tmp_path / "dataset_coco.json")
    assert len(coco_retrieval.task(tmp_path, split="train", size="any").ids) == 20


def test_retrieval_is_made_by_name() -> None:
    assert {"coco_retrieval", "flickr30k_retrieval"} <= resolve.names("task").keys()
    with pytest.raises(DataError, match="x does not exist"):
        resolve.make_task("coco_retrieval:root=x,protocol=1k+sparse")
