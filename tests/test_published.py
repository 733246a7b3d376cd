"""The numbers that papers report: the files as they are shipped, and files with mistakes."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from harness import resolve
from harness.errors import DataError
from leaderboard.published import Published, beside, read
from leaderboard.terminal import reported
from metrics import retrieval
from tasks import scene_retrieval

SHIPPED = Path(__file__).parent.parent / "results" / "published"
VICROP, SPARC = "2502.17422", "2502.01419"
SEPS, LAPS, D2S = "2511.01390", "", "2503.14953"

HEAD = "paper: P\nvenue: V\narxiv: '1'\nconfidence: digest\nvia: a friend\n"
ENTRY = "scores:\n  - {method: none, metric: accuracy, value: 1, unit: '%'}\n"


@pytest.fixture(scope="module")
def entries() -> list[Published]:
    return read(SHIPPED)


@pytest.mark.parametrize(
    ("kind", "arxiv", "table", "method", "model", "where", "setting", "metric", "value"),
    [
        ("scores", VICROP, "2", "none", "llava-1.5-7b", "textvqa", "", "accuracy", 47.80),
        ("scores", VICROP, "2", "none", "llava-1.5-7b", "vstar", "", "accuracy", 42.41),
        ("scores", VICROP, "2", "rel_att", "llava-1.5-7b", "vstar", "high_res", "accuracy", 62.30),
        ("scores", VICROP, "2", "grad_att", "llava-1.5-7b", "docvqa", "", "accuracy", 19.84),
        ("scores", VICROP, "2", "pure_grad", "llava-1.5-7b", "vqav2", "", "accuracy", 75.94),
        ("scores", VICROP, "2", "none", "instructblip-vicuna-7b", "gqa", "", "accuracy", 49.41),
        ("scores", VICROP, "2", "rel_att", "instructblip-vicuna-7b", "textvqa", "", "accuracy", 45.44),
        ("scores", VICROP, "2", "pure_grad", "instructblip-vicuna-7b", "aokvqa", "", "accuracy", 61.60),
        ("scores", VICROP, "3", "rel_att", "llava-1.5-7b", "textvqa", "all layers", "accuracy", 55.45),
        (
            "scores",
            VICROP,
            "3",
            "grad_att",
            "instructblip-vicuna-7b",
            "vstar",
            "no high_res",
            "accuracy",
            42.41,
        ),
        ("scores", VICROP, "4", "yolo_crop", "instructblip-vicuna-7b", "textvqa", "", "accuracy", 36.49),
        ("scores", VICROP, "1", "human_crop", "qwen-vl", "textvqa medium", "", "accuracy", 75.49),
        ("scores", VICROP, "1", "none", "blip-2", "textvqa small", "", "accuracy", 12.13),
        ("scores", VICROP, "", "none", "llava-next", "vstar", "", "accuracy", 58.11),
        ("costs", VICROP, "4", "pure_grad", "llava-1.5-7b", "", "CPU", "overhead", 29.86),
        ("costs", VICROP, "4", "none", "instructblip-vicuna-7b", "", "GPU", "original answer", 0.06),
        ("facts", VICROP, "5", "", "", "gqa", "", "questions", 10781),
        ("scores", SPARC, "", "sparc", "llava-1.5-7b", "coco_chair", "", "F1", 83.67),
        ("costs", SPARC, "", "sparc", "", "", "RTX 8000", "time per token", 31.21),
        ("scores", SEPS, "1", "", "seps-swin-384", "flickr30k_retrieval", "", "rsum", 581.9),
        ("scores", LAPS, "", "", "laps-vit-224", "flickr30k_retrieval", "", "rsum", 507.3),
        ("scores", D2S, "", "", "d2s_vse-swin-384", "flickr30k_retrieval", "", "rsum", 553.2),
        ("facts", SPARC, "", "select=all", "", "", "", "attention inside relevant regions", 15.50),
    ],
)
def test_a_shipped_number_is_the_papers(
    entries: list[Published],
    kind: str,
    arxiv: str,
    table: str,
    method: str,
    model: str,
    where: str,
    setting: str,
    metric: str,
    value: float,
) -> None:
    task, _, subset = where.partition(" ")
    wanted = (kind, arxiv, table, model, task, subset, setting, metric)
    (entry,) = [
        e
        for e in entries
        if (e.kind, e.arxiv, e.table, e.model, e.task, e.subset, e.setting, e.metric) == wanted
        and e.method.rpartition("locate=")[2].removeprefix("sparc:") == method
    ]
    assert entry.value == value


def test_table_2_is_whole_and_says_that_nobody_read_the_paper(entries: list[Published]) -> None:
    table = [entry for entry in entries if entry.arxiv == VICROP and entry.table == "2"]
    assert len({(e.method, e.model, e.task) for e in table}) == len(table) == 4 * 2 * 7
    assert all(entry.confidence == "transcribed" and "AI-written digest" in entry.via for entry in table)
    assert not [entry for entry in entries if entry.confidence == "read"]


def test_what_looks_like_one_of_our_specs_is_one(entries: list[Published]) -> None:
    """So that a board can match them: tasks by name, methods with their knobs."""
    assert {entry.task for entry in entries} <= {"", *resolve.names("task")}
    for method in {entry.method for entry in entries if ":" in entry.method}:
        resolve.make_method(method)


def test_retrievals_numbers_bear_our_names_so_that_a_board_can_match_them(entries: list[Published]) -> None:
    mine = [entry for entry in entries if entry.task.endswith("_retrieval")]
    protocols = {scene_retrieval.task(protocol=p, test=1).protocol for p in ("sparse", "oracle_query")}
    pools = {"flickr30k_retrieval": ("",), "coco_retrieval": ("1k/", "5k/")}
    assert {(e.task, e.protocol) for e in mine} == {
        (task, pool + protocol) for task in pools for pool in pools[task] for protocol in protocols
    }
    assert {entry.metric for entry in mine} <= set(retrieval.metric().higher_is_better)
    assert all(entry.note for entry in mine)


def test_the_six_recalls_of_seps_give_its_rsum(entries: list[Published]) -> None:
    table: dict[tuple[str, str], dict[str, float]] = {}
    for entry in entries:
        if entry.arxiv == SEPS and entry.table == "1":
            table.setdefault((entry.model, entry.protocol), {})[entry.metric] = entry.value
    assert len(table) == 12
    for row in table.values():
        assert row.pop("rsum") == pytest.approx(sum(row.values()), abs=0.21) and len(row) == 6


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (HEAD + ENTRY.replace("1,", "much,"), r"x.yaml: scores\[0\]: value: Input should be a valid number"),
        (HEAD + ENTRY.replace("1,", "'1',"), r"scores\[0\]: value: Input should be a valid number"),
        (HEAD + ENTRY.replace("metric", "metrik"), r"scores\[0\]: metric: Field required; metrik: Extra"),
        (HEAD + "costs: [7]", r"x.yaml: costs\[0\] is 7; write"),
        (HEAD + "score: []\n" + ENTRY, r"scores\[0\]: score: Extra inputs are not permitted"),
        (HEAD.replace("digest", "sure") + ENTRY, "confidence: Input should be 'read', 'transcribed' or"),
        (HEAD.replace("via: a friend\n", "") + ENTRY, "via: Field required"),
        (HEAD + ENTRY + ENTRY.partition("\n")[2].replace("1,", "2,"), "given twice: 1.0 and 2.0"),
        (HEAD + "facts: 7", "x.yaml: facts is 7; write a list"),
        ("[]", "x.yaml is no mapping"),
        ("a: [", "x.yaml cannot be read"),
    ],
)
def test_a_mistake_names_its_file_entry_and_field(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(DataError, match=complaint):
        read(tmp_path)


def test_an_entry_may_know_better_than_its_file(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(HEAD + ENTRY.replace("unit", "confidence: read, via: the PDF, unit"))
    (entry,) = read(tmp_path)
    assert (entry.confidence, entry.via, entry.paper, entry.kind) == ("read", "the PDF", "P", "scores")


def test_a_board_has_the_papers_numbers_of_its_task_and_protocol_alone(entries: list[Published]) -> None:
    leaking = beside(entries, "flickr30k_retrieval", "oracle_query", "rsum")
    honest = beside(entries, "flickr30k_retrieval", "sparse", "rsum")
    assert {entry.paper for entry in leaking} == {"SEPS"}
    assert {"LAPS", "D2S-VSE"} <= {entry.paper for entry in honest}
    assert [entry.value for entry in honest] == sorted((entry.value for entry in honest), reverse=True)
    assert beside(entries, "textvqa", "vicrop", "accuracy")
    assert all(not entry.subset for entry in beside(entries, "textvqa", "", "accuracy"))
    assert beside(entries, "flickr30k_retrieval", "candidate", "rsum") == []
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(reported(leaking, "rsum", True))
    shown = console.export_text()
    assert "not measured here" in shown and "581.9" in shown and "variations" in shown
