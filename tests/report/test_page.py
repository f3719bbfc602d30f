"""The whole report: a page that needs nothing else, safe whatever the documents hold, and the files beside it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support.run_folders import Folder, findings, outcomes

from medmllm_plugins.cli.app import main
from medmllm_plugins.errors import OptionError
from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.report.assemble import build_report
from medmllm_plugins.report.report_files import write_report
from medmllm_plugins.report.run_collection import collect_runs

EVIL = "<script>alert(1)</script>"
JSON = {"type": "application/json"}


class Tags(HTMLParser):
    """Collects tags with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(html)
    return parser.found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    made = Folder(root / "a")
    made.answers("med_cls_toy", outcomes(), said=[EVIL, "x" * 1_000_000, "hm"]).probes("med_probe_toy")
    made.answers("med_cls_toy:image=blank", outcomes(skill=0, seed=5), image="blank")
    rows = [outcome for turn in range(3) for outcome in outcomes(seed=turn, variant=f"order {turn}")]
    made.answers("med_cls_toy:order=varied", rows, order="varied")
    made.attributions("med_attr_toy", answer=EVIL)
    made.multilabel("med_cls_findings", findings())
    Folder(root / "b", "baseline pixels", baseline="pixels").answers("med_cls_toy", outcomes(skill=3, seed=9))
    write_report([made.folder, root / "b"], root / "out" / "report.html")
    return root / "out" / "report.html"


def test_nothing_of_a_document_becomes_markup(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert EVIL not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    scripts = [attributes for tag, attributes in tags(html) if tag == "script"]
    ours = [attributes for attributes in scripts if attributes.get("type") != "application/json"]
    assert ours == [{}, {}], "Bokeh's and ours; all others are data of figures"
    assert len(html) < 3_000_000, "a text of a megabyte is cut"


def test_the_page_asks_for_nothing_and_says_so(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    policy = next(str(a["content"]) for tag, a in tags(html) if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "unsafe-inline" not in policy.partition("script-src")[2]
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert scripts
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    for _, attributes in tags(html):
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/webp;base64,", "report_files/tables/")), value
        assert not any(name.startswith("on") for name in attributes)


def test_ids_are_unique_and_labels_lead_somewhere(page: Path) -> None:
    result = tags(page.read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in result if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in result:
        if (tag == "a" and "download" not in attributes) or tag == "use":
            assert str(attributes.get("href") or attributes["xlink:href"])[1:] in ids
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
        if tag == "svg" and "aria-hidden" not in attributes:
            assert attributes["role"] == "img" and attributes["aria-label"]


def test_every_section_is_there(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    for name in ("answer", "signal", "errors", "models", "probabilities", "layers", "robustness", "maps", "appendix"):
        assert f'<section id="{name}"' in html
    first = html.index('<p class="headline">')
    assert (
        html.index("<h2") < first < html.index("<figure") and "model-a (tiny) classified" in html[first : first + 200]
    )


@pytest.mark.usefixtures("without_figures")
def test_leaks_are_only_ruled_out_for_folds_that_were_read(page: Path, tmp_path: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert "No group is in two folds" not in html and "No run has the folds of toy and findings" in html
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes())
    made.folds([("a", "g", "train"), ("b", "h", "test")])
    assert build_report(collect_runs([made.folder])).notes.folds == "No group is in two folds of toy."
    made.folds([("a", "g", "train"), ("b", "g", "test")])
    result = build_report(collect_runs([made.folder])).notes
    assert result.folds == "" and result.leaks


def test_the_strip_names_the_guess(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    for name in ("most common class (guess)", "always no (guess)"):
        assert f'"{name}"' in html, "Bokeh's text"


def test_files_beside_the_page(page: Path) -> None:
    beside = page.with_name("report_files")
    content = json.loads((beside / "report.json").read_text(encoding="utf-8"))
    data, several = content["datasets"]
    assert several["verdicts"][0]["guess"] == "always answering no" and "findings.counts" in several["tables"]
    assert data["verdicts"][0]["named"] == "connector" and data["verdicts"][0]["reference"] == "baseline pixels"
    assert data["tables"]["toy.metrics"]["rows"][0]["accuracy"]["value"] > 0.5 and content["references"]
    csvs = {path.stem for path in (beside / "tables").glob("*.csv")}
    assert {
        "toy.metrics",
        "toy.curves",
        "toy.diagnosis",
        "toy.mapping",
        "toy.sensitivity",
        "findings.findings",
        "findings.counts",
        "runs",
        "data",
    } <= csvs
    svgs = {path.stem.rpartition("-")[0] for path in (beside / "figures").glob("*.svg")}
    assert {
        "toy.accuracy",
        "toy.confusion",
        "toy.roc",
        "toy.layers.1",
        "toy.agreement",
        "toy.lens",
        "toy.checks",
    } <= svgs
    assert "[1]" in (beside / "methods.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes()).probes("med_probe_toy")
    pages = []
    for name in ("one", "two"):
        write_report([made.folder], tmp_path / name / "report.html")
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.usefixtures("without_figures")
def test_an_unfinished_run_still_gives_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Folder(tmp_path / "a")
    made.manifest["finished"] = None
    made.tell("med_probe_toy", features={"extra": []})
    assert main(["report", str(made.folder), "-o", str(tmp_path / "report.html")]) == 0
    said = capsys.readouterr().out
    assert "missing parts and how to get them" in said and "has metrics" in said
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "things are missing" in html and "The run is not finished" in html


def test_errors_of_the_command_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nowhere"), "-o", str(tmp_path / "r.html")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("medmllm: ") and said.count("\n") == 1
    with pytest.raises(OptionError, match=r"end in \.html"):
        write_report([tmp_path], tmp_path / "report.pdf")


def test_keys_in_a_command_stay_out_of_the_page(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes())
    made.manifest["command"] |= {"model_args": "model_version=x,api_key=sk-12345", "auth": ["sk-12345"]}
    made.manifest["model"] |= {"pretrained": "https://user:sk-12345@h/v1?api_key=sk-12345", "dtype": "x,token=sk-12345"}
    made.tell("med_cls_toy", dataset_options={"token": "sk-12345", "header": "X-Api-Key: sk-12345"})
    made.write()
    write_report([made.folder], tmp_path / "report.html")
    files = [tmp_path / "report.html", *(tmp_path / "report_files").rglob("*.*")]
    assert not any(b"sk-12345" in path.read_bytes() for path in files)


@pytest.mark.usefixtures("without_figures")
def test_a_card_says_what_its_number_is(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").attributions("med_attr_toy", documents=2, methods=("saliency",), layers=("pixels",))
    index = made.folder / "attributions" / "med_attr_toy" / "index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    for entry, mode in zip(content["entries"], ("decision", "answer"), strict=False):
        entry["mode"] = mode
    index.write_text(json.dumps(content), encoding="utf-8")
    write_report([made.folder], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("(log-odds 1.25)") == html.count("(log-probability 1.25)") == 1


@pytest.mark.usefixtures("without_figures")
def test_a_thousand_documents_fit_ten_megabytes(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes(count=1000)).probes("med_probe_toy")
    made.attributions(
        "med_attr_toy", documents=1000, size=(128, 128), methods=("grad_cam",), layers=("pixels",), noise=True
    )
    report = write_report([made.folder], tmp_path / "report.html")
    size = (tmp_path / "report.html").stat().st_size
    assert size < 10_000_000 and len(report.gallery.cards) > 500


@pytest.mark.parametrize("models", [3, pytest.param(10, marks=pytest.mark.slow)])  # draws all the figures of each model
def test_a_page_of_many_models_is_small(tmp_path: Path, models: int) -> None:
    folders = []
    for number in range(models):
        made = Folder(tmp_path / str(number), f"model-{number}").answers("med_probe_toy", outcomes(seed=number))
        folders.append(made.probes("med_probe_toy", layers=24, seed=number).folder)
    write_report(folders, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(f"model-{number}" in text for number in range(models))
    assert len(text.encode()) < 1_500_000 + 400_000 * models


@pytest.mark.usefixtures("without_figures")
def test_blind_controls_lose_what_their_own_question_loses(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a")
    made.answers("med_cls_toy", outcomes(skill=4, seed=1))
    made.answers("med_cls_toy_letter", outcomes(seed=2), protocol="letter")
    made.answers("med_cls_toy_letter:image=blank", outcomes(skill=0, seed=5), protocol="letter", image="blank")
    made.answers("med_cls_toy:image=shuffled", outcomes(skill=0, seed=6), image="shuffled", paraphrase=2)
    made.answers("med_cls_toy:image=blank", outcomes(skill=0, seed=8), image="blank")
    table = build_report(collect_runs([made.folder])).sections[0].tables["sensitivity"]
    names = [column.name for column in table.columns]
    rows = {str(row[names.index("task")]): dict(zip(names, row, strict=True)) for row in table.rows}
    letter, other = rows["med_cls_toy_letter:image=blank"], rows["med_cls_toy:image=shuffled"]
    rights = [
        np.mean([outcome.predicted == outcome.label for outcome in outcomes(skill=s, seed=n)])
        for s, n in ((1.5, 2), (0, 5))
    ]
    assert letter["compared_with"] == "med_cls_toy_letter" and isinstance(letter["difference"], Estimate)
    assert letter["difference"].value == pytest.approx(rights[1] - rights[0])
    assert other["compared_with"] is None and np.isnan(other["difference"].value)
    assert (
        letter["change"] == "blank image, letter"
        and rows["med_cls_toy:image=blank"]["change"] == "blank image, closed set"
    )
