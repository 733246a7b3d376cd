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
from tasks._retrieval import Pool

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
    pool = coco_retrieval.pool(tmp_path, size="any")
    assert pool.ids[:3] == ("103", "107", "111")
    assert (len(pool.images), len(pool.texts), pool.folds) == (10, 50, 1)
    assert pool.texts[5:7] == ("Caption 0 of 7.", "Caption 1 of 7.")
    assert pool.owner == tuple(k // 5 for k in range(50))
    assert pool.images[0].size == (8, 6)
    with pytest.raises(PictureError, match="does not exist"):
        _ = pool.images[1].size


@pytest.mark.parametrize(("captions", "kept"), [(7, 5), (5, 5), (3, 3)])
def test_only_the_first_five_captions_of_an_image_count(tmp_path: Path, captions: int, kept: int) -> None:
    karpathy(tmp_path / "dataset_coco.json", captions=captions)
    pool = coco_retrieval.pool(tmp_path, size="any")
    assert len(pool.texts) == 10 * kept
    assert pool.texts[kept] == "Caption 0 of 7."


def test_protocol_1k_is_the_same_pool_in_five_folds(tmp_path: Path) -> None:
    karpathy(tmp_path / "dataset_coco.json")
    one, five = (coco_retrieval.pool(tmp_path, protocol=p, size="any") for p in ("5k", "1k"))
    assert five == replace(one, folds=5)
    karpathy(tmp_path / "dataset_coco.json", number=7)
    with pytest.raises(DataError, match="7 images cannot be cut into 5 equal folds"):
        coco_retrieval.pool(tmp_path, protocol="1k", size="any")


def test_flickr_reads_karpathys_file_without_folders_and_names_images_by_imgid(tmp_path: Path) -> None:
    karpathy(tmp_path / "dataset_flickr30k.json", filepath=None, cocoid=None)
    picture(tmp_path / "flickr30k-images" / f"COCO_val2014_{2:012}.jpg")
    pool = flickr30k_retrieval.pool(tmp_path, split="val", size="any")
    assert pool.ids[:2] == ("2", "6")
    assert pool.images[0].size == (8, 6)


def test_images_are_found_beside_below_or_where_they_are_said_to_be(tmp_path: Path) -> None:
    karpathy(tmp_path / "splits" / "dataset_coco.json")
    name = f"COCO_val2014_{3:012}.jpg"
    picture(tmp_path / "coco" / "val2014" / name)
    for folder in (tmp_path / "coco", tmp_path / "coco" / "val2014"):
        pool = coco_retrieval.pool(tmp_path / "splits", images=folder, size="any")
        assert pool.images[0].size == (8, 6)
    with pytest.raises(DataError, match="nowhere does not exist; it should hold COCO 2014's images"):
        coco_retrieval.pool(tmp_path / "splits", images=tmp_path / "nowhere", size="any")


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
        coco_retrieval.pool(tmp_path, size="any")


def test_a_file_that_is_not_karpathys_is_named(tmp_path: Path) -> None:
    for text, said in (("[]", "is not an object"), ("{", "is not JSON"), ("{}", "under 'images'")):
        (tmp_path / "dataset_coco.json").write_text(text)
        with pytest.raises(DataError, match=said):
            coco_retrieval.pool(tmp_path)


# ---------------------------------------------------------------- text files


def test_the_text_files_have_a_caption_and_its_images_id_per_line(tmp_path: Path) -> None:
    text_files(tmp_path, "testall", ["391895", "60623"])
    pool = coco_retrieval.pool(tmp_path, size="any")
    assert pool.ids == ("391895", "60623")
    assert pool.texts[5] == "caption 0 of 60623 ."
    assert pool.owner == (0,) * 5 + (1,) * 5
    assert pool.images[0].source.label.endswith("COCO_val2014_000000391895.jpg")


def test_flickrs_text_files_need_the_names_of_the_images(tmp_path: Path) -> None:
    text_files(tmp_path, "test", ["25", "34"])
    with pytest.raises(DataError, match=r"id_mapping\.json does not exist"):
        flickr30k_retrieval.pool(tmp_path, size="any")
    (tmp_path / "id_mapping.json").write_text('{"25": "../secret.jpg", "34": "images/b.jpg"}')
    picture(tmp_path / "images" / "b.jpg")
    pool = flickr30k_retrieval.pool(tmp_path, size="any")
    assert pool.images[1].size == (8, 6)
    with pytest.raises(PictureError, match="lies outside its folder"):
        pool.images[0].open()
    (tmp_path / "id_mapping.json").write_text('{"25": "a.jpg"}')
    with pytest.raises(DataError, match=r"test_ids\.txt, line 6: no file name is known for the id '34'"):
        flickr30k_retrieval.pool(tmp_path, size="any")
    (tmp_path / "id_mapping.json").write_text('{"25": 7}')
    with pytest.raises(DataError, match=r"id_mapping\.json must be one object of id: file name"):
        flickr30k_retrieval.pool(tmp_path, size="any")


def test_text_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    text_files(tmp_path, "testall", ["1", "2"])
    ids = tmp_path / "testall_ids.txt"
    ids.write_text("1\n" * 5)
    with pytest.raises(DataError, match=r"has 10 lines, .* 5; each caption needs its image's id"):
        coco_retrieval.pool(tmp_path, size="any")
    ids.write_text("1\n" * 3 + "2\n" * 4 + "1\n" * 3)
    with pytest.raises(DataError, match="line 8 has the id '1', which .*line 1 has already"):
        coco_retrieval.pool(tmp_path, size="any")
    ids.write_text("1\n" * 5 + "\n" + "2\n" * 4)
    with pytest.raises(DataError, match="line 6 is empty"):
        coco_retrieval.pool(tmp_path, size="any")
    ids.write_bytes(b"\xff\n" * 10)
    with pytest.raises(DataError, match="is not UTF-8"):
        coco_retrieval.pool(tmp_path, size="any")


def test_karpathys_file_comes_first_unless_the_text_files_are_asked_for(tmp_path: Path) -> None:
    karpathy(tmp_path / "dataset_coco.json")
    text_files(tmp_path, "testall", ["9"])
    assert len(coco_retrieval.pool(tmp_path, size="any").images) == 10
    texts = coco_retrieval.pool(tmp_path, format="text", size="any")
    assert texts.ids == ("9",)
    assert texts.fingerprint != coco_retrieval.pool(tmp_path, size="any").fingerprint
    (tmp_path / "dataset_coco.json").unlink()
    assert coco_retrieval.pool(tmp_path, size="any") == texts
    with pytest.raises(DataError, match=r"lacks its captions; it should hold dataset_coco\.json"):
        coco_retrieval.pool(tmp_path, split="val", size="any")


# ---------------------------------------------------------------- counts and order


def many(ids: Sequence[str], folds: int = 1, captions: int = 5) -> Pool:
    owner = tuple(k // captions for k in range(captions * len(ids)))
    pictures = tuple(_retrieval._picture(Path("/x"), f"{k}.jpg") for k in ids)
    return Pool(pictures, tuple(map(str, range(len(owner)))), owner, tuple(ids), folds)


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
        pool = coco_retrieval.pool(root, protocol=protocol, split=split)
    else:
        pool = flickr30k_retrieval.pool(root, split=split)
    assert (len(pool.images), len(pool.texts), pool.folds) == counts
    assert Path(pool.images[0].source.label).name == first


def test_a_pool_is_what_the_retrieval_metric_takes() -> None:
    pool = many("abcde", folds=5, captions=2)
    similarity = [[float(owner == image) for owner in pool.owner] for image in range(5)]
    assert summary(similarity, pool.owner, folds=pool.folds)["rsum"] == 600


def test_retrieval_is_no_task_that_runs_yet() -> None:
    assert not {"coco_retrieval", "flickr30k_retrieval"} & resolve.names("task").keys()
    with pytest.raises(SpecError, match="there is no task 'coco_retrieval'"):
        resolve.make_task("coco_retrieval:root=x")
