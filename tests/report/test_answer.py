"""The first screen: headline, dot strip, trust chips and next step."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.answer_folders import LONG, baseline, diagnosed, guessing, limited, model, section_of, several, unread
from support.run_folders import FINDINGS, LABELS, Folder, findings, outcomes

from medmllm_plugins.report.answer.first_screen import Answer
from medmllm_plugins.report.answer.headline import MAX_NAME, MAX_WORDS
from medmllm_plugins.report.answer.strip_rows import MAX_NAME as MAX_STRIP_NAME
from medmllm_plugins.report.answer.strip_rows import StripRow
from medmllm_plugins.report.answer.trust_chips import TrustChip
from medmllm_plugins.report.figures.dot_strip import dot_strip
from medmllm_plugins.report.figures.figure_style import style
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.report_files import write_report

HEADLINES: dict[str, tuple[Callable[[Path], list[Folder]], str]] = {
    "one": (
        lambda root: [model(root)],
        r"^NAME classified [\d.]+% of 120 images correctly \(95% CI .*; 60 patients\)\.$",
    ),
    "limited": (
        lambda root: [limited(model(root, rows=outcomes(count=64)))],
        r"^NAME classified [\d.]+% of the first 64 of 480 images correctly \(95% CI .*; 32 patients\)\.$",
    ),
    "two, clear": (lambda root: several(root, 4, 0), r"NAME classified .*, clearly more than NAME \([\d.]+%\)\.$"),
    "two, unclear": (
        lambda root: several(root, 1.5, 1.5),
        r"NAME classified .*, no clear difference from NAME \([\d.]+%\)\.$",
    ),
    "two, limited": (
        lambda root: [limited(model(root, f"{LONG} {skill}", outcomes(count=64, skill=skill))) for skill in (1.0, 1.5)],
        r"of the first 64 of 480 images",
    ),
    "three, clear": (
        lambda root: several(root, 9, 1, 0),
        r"^NAME scores highest of 3 models, .*\), clearly above the others; lowest: NAME, [\d.]+%\.$",
    ),
    "three, unclear": (lambda root: several(root, 2, 1.9, 0), r"not clearly above 1 other; lowest: NAME"),
    "three, limited": (
        lambda root: [
            limited(model(root, f"{LONG} {skill}", outcomes(count=64, skill=skill))) for skill in (1.0, 1.5, 2.0)
        ],
        r"^On 64 of 480 images, NAME scores highest",
    ),
    "three alike": (
        lambda root: [model(root, f"{LONG} {index}") for index in range(3)],
        r"^All 3 models score [\d.]+% \(95% CI",
    ),
    "not comparable": (
        lambda root: [
            model(root, f"{LONG} 1"),
            model(root, f"{LONG} 2", outcomes(labels=LABELS[:2]), labels=LABELS[:2]),
        ],
        r"^2 models scored [\d.]+% to [\d.]+%; they answered about different classes or data, so they are not",
    ),
    "not read": (
        lambda root: [model(root, rows=unread(outcomes()))],
        r"^None of 120 answers of NAME could be read, so accuracy says nothing about what it knows\.$",
    ),
    "hardly read": (
        lambda root: [model(root, rows=unread(outcomes(), 10))],
        r"^Only [\d.]+% of 120 answers of NAME could be read, so accuracy says little about what it knows\.$",
    ),
    "two not read": (
        lambda root: [model(root, f"{LONG} {index}", unread(outcomes(), 10)) for index in range(2)],
        r"^At most [\d.]+% of the answers of 2 models could be read",
    ),
    "one of two read": (
        lambda root: [limited(model(root, f"{LONG} 1")), model(root, f"{LONG} 2", unread(outcomes()))],
        r"patients\); NAME is not ranked\.$",
    ),
    "three of four read": (
        lambda root: [
            *(limited(folder) for folder in several(root, 9, 1, 0)),
            model(root, f"{LONG} 4", unread(outcomes())),
        ],
        r"^On 120 of 480 images, NAME scores highest of 3 ranked models",
    ),
    "references alone": (
        lambda root: [baseline(root)],
        r"^No model was run\. The pixel baseline classified [\d.]+% of 120 images correctly \(95% CI [^)]*\)\.$",
    ),
    "several findings": (
        lambda root: [Folder(root / "a", LONG).multilabel("med_cls_findings", findings())],
        r"^NAME answered [\d.]+% of 160 questions about 40 images correctly \(95% CI .*; 20 patients\)\.$",
    ),
    "several findings, limited": (
        lambda root: [limited(Folder(root / "a", LONG).multilabel("med_cls_findings", findings(), names=FINDINGS))],
        r"of 160 questions about the first 40 of 480 images",
    ),
    "volumes": (
        lambda root: [Folder(root / "a", LONG).answers("med_cls_nodulemnist3d", outcomes(), dataset="nodulemnist3d")],
        r"of 120 volumes correctly",
    ),
    "in several orders": (
        lambda root: [
            Folder(root / "a", LONG).answers(
                "med_cls_toy:order=varied",
                [row for name in ("A", "B") for row in outcomes(seed=ord(name), variant=name)],
                order="varied",
            )
        ],
        r"of 240 questions about 120 images correctly",
    ),
}


@pytest.mark.parametrize("case", HEADLINES)
def test_a_headline_is_one_short_sentence(tmp_path: Path, case: str) -> None:
    make, pattern = HEADLINES[case]
    section = section_of(*make(tmp_path))
    headline = section.answer.headline
    names = sorted({cut(subject.label, MAX_NAME) for subject in section.dataset.subjects}, key=len, reverse=True)
    for name in names:
        headline = headline.replace(name, "NAME")
    assert re.search(pattern, headline), headline
    assert "NAME" in headline or case in ("not comparable", "three alike", "two not read", "references alone")
    assert len(headline.split()) <= MAX_WORDS, headline


def test_no_metrics_have_a_headline_too(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a")
    made.tell("med_cls_toy")
    answer = section_of(made).answer
    assert answer.headline == "No run has metrics yet." and answer.strip == ()
    assert {chip.status for chip in answer.chips} <= {"good", "unknown"}


def test_the_headline_agrees_with_the_sentence(tmp_path: Path) -> None:
    section = section_of(model(tmp_path, "model-a"))
    first = section.answer.headline.split("(95%")[0]
    assert section.sentence.startswith(first)


# -- Dot strip


def rows_by_kind(answer: Answer) -> dict[str, StripRow]:
    return {row.kind: row for row in answer.strip}


def test_the_strip_is_sorted_and_labelled(tmp_path: Path) -> None:
    made = model(tmp_path, "model-a").answers("med_cls_toy:image=blank", outcomes(skill=0, seed=5), image="blank")
    answer = section_of(made, baseline(tmp_path)).answer
    values = [row.accuracy.value for row in answer.strip]
    assert values == sorted(values, reverse=True)
    assert {row.kind for row in answer.strip} == {"guess", "blank", "reference", "model"}
    assert all(row.used and row.name and len(row.name) <= MAX_STRIP_NAME for row in answer.strip)
    assert rows_by_kind(answer)["reference"].name == "reference: pixels"
    assert rows_by_kind(answer)["guess"].name == "most common class (guess)"


def test_a_useless_reference_is_hollow_and_not_compared_with(tmp_path: Path) -> None:
    folders = model(tmp_path, "model-a"), baseline(tmp_path, guessing(outcomes()))
    section = section_of(*folders)
    row = rows_by_kind(section.answer)["reference"]
    assert not row.used and row.name == "reference (not used): pixels" and "no better than guessing" in row.note
    (chip,) = (chip for chip in section.answer.chips if chip.name == "reference")
    assert (chip.status, chip.label) == ("caution", "reference no better than guessing: not used")
    said = [section.answer.headline, *(f"{s.observation} {s.hypothesis}" for s in section.answer.steps)]
    assert not any("reference" in sentence for sentence in said)
    assert "than the reference" not in section.sentence and "scores" not in section.sentence.split("25")[0]


def test_a_reference_for_other_classes_is_hollow(tmp_path: Path) -> None:
    other = Folder(tmp_path / "b", "baseline pixels", baseline="pixels")
    other.answers("med_cls_toy", outcomes(labels=LABELS[:2]), labels=LABELS[:2])
    row = rows_by_kind(section_of(model(tmp_path, "model-a"), other).answer)["reference"]
    assert not row.used and "it was asked about other classes" in row.note


def test_under_a_limit_the_reference_is_that_of_the_same_documents(tmp_path: Path) -> None:
    made = limited(model(tmp_path, "model-a", outcomes(count=40)))
    row = rows_by_kind(section_of(made, baseline(tmp_path)).answer)["reference"]
    rows = outcomes(skill=3, seed=9)[:40]
    assert row.accuracy.value == pytest.approx(sum(item.predicted == item.label for item in rows) / 40)
    assert row.questions == 40 and "on the 40 questions" in row.note


def test_what_could_not_be_read_is_hollow(tmp_path: Path) -> None:
    made = model(tmp_path, "model-a")
    made.answers("med_cls_toy:image=blank", unread(outcomes(), 10), image="blank")
    answer = section_of(made, model(tmp_path, "model-b", unread(outcomes(), 5))).answer
    unused = {row.full_name or row.name: row.note for row in answer.strip if not row.used}
    assert set(unused) == {"model-b (tiny)", "blank image, model-a (tiny)"}
    assert all("of the answers could be read" in note for note in unused.values())


def test_both_figures_show_the_same(tmp_path: Path) -> None:
    made = model(tmp_path, "model-a").answers("med_cls_toy:image=blank", outcomes(skill=0, seed=5), image="blank")
    rows = section_of(made, baseline(tmp_path, guessing(outcomes()))).answer.strip
    with style():
        drawing = dot_strip("toy", "Toy", rows, 7)
    assert drawing is not None
    for row in rows:
        assert row.name in drawing.svg and json.dumps(row.name, ensure_ascii=False) in drawing.interactive
        assert f"{100 * row.accuracy.value:.1f}%" in drawing.svg and f"{100 * row.accuracy.value:.1f}%" in drawing.alt
    assert '"series-0"' in drawing.interactive and 'data-series="0"' in drawing.inline
    assert "Hollow" in drawing.caption and dot_strip("toy", "Toy", (), 1) is None


# -- Trust chips


def chips(answer: Answer) -> dict[str, TrustChip]:
    return {chip.name if chip.name != "varied" else chip.label.split(":")[0]: chip for chip in answer.chips}


def test_a_plain_run_has_grey_chips_for_what_was_not_tested(tmp_path: Path) -> None:
    made = model(tmp_path, "model-a", documents=120, questions=120)
    result = chips(section_of(made).answer)
    statuses = {name: chip.status for name, chip in result.items()}
    assert statuses == {
        "documents": "good",
        "leaks": "unknown",
        "runs": "unknown",
        "reference": "unknown",
        "image": "unknown",
        "answers change with option order": "unknown",
        "answers change with wording": "unknown",
        "parsed": "caution",
        "calibration": result["calibration"].status,
        "maps": "unknown",
    }
    assert result["documents"].label == "120 of 120 images"
    assert result["leaks"].label == "leaks not checked" and result["reference"].label == "no reference classifier"
    order = [chip.status for chip in section_of(made).answer.chips]
    assert order == sorted(order, key=["caution", "good", "unknown"].index)


def test_a_limit_is_a_caution(tmp_path: Path) -> None:
    answer = section_of(limited(model(tmp_path, "model-a", outcomes(count=64)))).answer
    chip = answer.chips[0]
    assert (chip.name, chip.status, chip.label) == ("documents", "caution", "first 64 of 480 images only")
    assert answer.steps[0].kind == "limited" and answer.steps[0].commands[0].line.endswith("med_cls_toy")


def test_a_probed_run_covers_its_test_fold(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_probe_toy", outcomes(), documents=600, questions=600)
    made.probes("med_probe_toy").tell("med_probe_toy", counts={"train": {"benign": 480}, "test": {"benign": 120}})
    assert chips(section_of(made).answer)["documents"].label == "120 of 120 images"


@pytest.mark.parametrize(("fold", "status"), [("test", "caution"), ("train", "good")])
def test_leaks(tmp_path: Path, fold: str, status: str) -> None:
    made = model(tmp_path, "model-a").folds([("a", "g", "train"), ("b", "g", fold)])
    chip = chips(section_of(made).answer)["leaks"]
    assert chip.status == status and (("1 group" in chip.label) == (status == "caution"))


@pytest.mark.parametrize(("changed", "status"), [(0, "good"), (6, "good"), (30, "caution")])
@pytest.mark.parametrize("varied", ["order", "paraphrase"])
def test_answers_that_change(tmp_path: Path, changed: int, status: str, varied: str) -> None:
    made = model(tmp_path, "model-a")
    first = outcomes(variant="A")
    second = outcomes(variant="B")
    for index in range(changed):
        row = second[index]
        other = next(label for label in LABELS if label not in (row.predicted, first[index].predicted))
        second[index] = replace(row, predicted=other, status="parsed")
    value = "varied" if varied == "order" else "all"
    made.answers(f"med_cls_toy:{varied}={value}", [*first, *second], **{varied: value})
    what = "answers change with " + ("option order" if varied == "order" else "wording")
    chip = chips(section_of(made).answer)[what]
    assert chip.status == status and chip.label == f"{what}: {100 * changed / 120:.1f}%"


def test_a_blank_image(tmp_path: Path) -> None:
    used = model(tmp_path, "model-a", outcomes(skill=4))
    used.answers("med_cls_toy:image=blank", outcomes(skill=0, seed=5), image="blank")
    assert chips(section_of(used).answer)["image"].status == "good"
    same = model(tmp_path, "model-b").answers("med_cls_toy:image=blank", outcomes(), image="blank")
    chip = chips(section_of(used, same).answer)["image"]
    assert (chip.status, chip.label) == ("caution", "no clear gain over a blank image, model-b (tiny)")
    mute = model(tmp_path, "model-c").answers("med_cls_toy:image=blank", unread(outcomes()), image="blank")
    assert chips(section_of(mute).answer)["image"].label == "blank image: answers could not be read"


def test_runs_reading_and_maps(tmp_path: Path) -> None:
    made = model(tmp_path, "model-a", [row for row in outcomes(count=240) if row.predicted]).sealed()
    result = chips(section_of(made).answer)
    assert result["runs"].status == result["parsed"].status == "good"
    assert result["parsed"].label == "100.0% of answers could be read"
    maps = Folder(tmp_path / "maps", "model-a").attributions("med_attr_toy")
    maps.manifest["finished"] = None
    result = chips(section_of(made, maps.write()).answer)
    assert (result["runs"].status, result["runs"].label) == ("caution", "1 run not finished")
    assert (result["maps"].status, result["maps"].label) == ("caution", "attribution checks: 2 of 4 passed")


# -- Next step


@pytest.mark.usefixtures("without_figures")
def test_the_answer_of_the_page_leads_to_its_evidence(tmp_path: Path) -> None:
    made = diagnosed(tmp_path, {"named": "connector", "supported": ["connector"]})
    odd = Folder(tmp_path / "odd", "<b>bold</b>").answers(
        "med_cls_toy", outcomes(), dataset="a set/of <images>", documents=120, questions=120
    )
    damaged = Folder(tmp_path / "damaged", "model-c")
    damaged.tell("med_cls_toy", dataset="nothing")
    folders = [made, odd, damaged, baseline(tmp_path, guessing(outcomes()))]
    write_report([folder.folder for folder in folders], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    section = html[html.index('<section id="answer"') : html.index("</section>")]
    ids = set(re.findall(r' id="([^"]+)"', html))
    links = re.findall(r'<a [^>]*class="trust-chip [^>]*href="#([^"]*)"', section)
    assert len(links) == section.count("trust-chip") > 15 and set(links) <= ids
    assert len(set(links)) > 5, "different chips lead to different evidence"
    assert (
        section.count('class="hidden-text">good: ') and section.count("caution: ") and section.count("not measured: ")
    )
    assert "<b>bold" not in html and "above the reference" not in section
    assert 'class="verdict"' in section and "are missing" in section
