"""Text, tables, figures, gallery and methods of a report."""

from __future__ import annotations

import csv
import importlib
import inspect
import io
import json
import re
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from support.run_folders import FINDINGS, LABELS, Folder, findings, outcomes

from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate
from medmllm_plugins.metrics.label_scores import FORMS
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.plugins.specs import AttributionSpec, ProbeSpec
from medmllm_plugins.report import formatting, methods_text
from medmllm_plugins.report.display_names import SCORE_FORMS
from medmllm_plugins.report.figures import (
    accuracy_figure,
    answer_figures,
    attribution_figures,
    health_figure,
    roc_figure,
)
from medmllm_plugins.report.figures.figure_style import THEME, Drawing, style
from medmllm_plugins.report.figures.gallery import build_gallery
from medmllm_plugins.report.figures.parallel_figures import draw_all
from medmllm_plugins.report.probability_checks import probability_checks
from medmllm_plugins.report.report_notes import collect_notes
from medmllm_plugins.report.roc_curves import roc_curves
from medmllm_plugins.report.run_collection import DatasetRuns, collect_runs
from medmllm_plugins.report.sections import build_section
from medmllm_plugins.report.tables import answer_tables, finding_tables, layer_tables
from medmllm_plugins.report.verdict import verdicts
from medmllm_plugins.utils.json_values import clean, number
from medmllm_plugins.utils.plain_text import listed


def part_of(*folders: Folder) -> DatasetRuns:
    (part,) = collect_runs([folder.folder for folder in folders]).datasets
    return part


def test_text_survives_whatever_a_document_holds() -> None:
    assert clean("a\x00b\ud800\x1b") == "a\ufffdb?\ufffd"
    assert formatting.cut("x" * 1_000_000, 10) == "x" * 9 + "…" and formatting.cut("a\n b") == "a b"
    assert formatting.percent(-0.0001, signed=True) == "0.0%" and formatting.percent(float("nan")) == formatting.NOTHING
    assert formatting.percent(0.123, signed=True) == "+12.3%" and formatting.percent(-0.5) == "−50.0%"
    assert formatting.interval(Estimate(0.5, 0.4, 0.6)) == "95% CI 40.0–60.0"
    assert formatting.interval(UNKNOWN) == "no interval" and formatting.p_value(0) == "< 0.0001"
    assert listed(["a", "b", "c"]) == "a, b and c" and listed([]) == ""
    assert np.isnan(number(True)) and np.isnan(number("3")) and np.isnan(number(float("inf")))
    assert np.isnan(number(10**400))


def test_metrics_table_and_its_csv(tmp_path: Path) -> None:
    part = part_of(Folder(tmp_path / "a").answers("med_cls_toy", outcomes()))
    table = answer_tables.metrics_table(part, verdicts(part))
    (row,) = csv.DictReader(io.StringIO(table.csv()))
    right = np.mean([outcome.predicted == outcome.label for outcome in outcomes()])
    assert float(row["accuracy"]) == pytest.approx(right) and float(row["accuracy_low"]) < right
    labels = [outcome.label for outcome in outcomes()]
    assert row["model"] == "model-a (tiny)" and float(row["guess"]) == max(map(labels.count, LABELS)) / len(labels)
    shown = table.shown()[0][1][1]
    assert (
        shown.text == f"{100 * right:.1f}" and "–" in shown.interval and float(shown.sort_key) == pytest.approx(right)
    )


def accuracy_of(part: DatasetRuns) -> Drawing | None:
    comparison = build_section(part).evidence.comparison
    return accuracy_figure.accuracies(part, comparison, 0)


def test_each_row_has_its_own_blind_answer(tmp_path: Path) -> None:
    whole = Folder(tmp_path / "a", "model-a").answers("med_cls_toy", outcomes())
    same = Folder(tmp_path / "b", "model-b").answers("med_cls_toy", outcomes(seed=3))
    few = Folder(tmp_path / "c", "model-c").answers("med_cls_toy", outcomes(seed=4)[:20])
    part = part_of(whole, few)
    rows = answer_tables.metrics_table(part, verdicts(part)).record().to_dict()["rows"]
    shares = [
        max([item.label for item in entry].count(label) for label in LABELS) / len(entry)
        for entry in (outcomes(), outcomes()[:20])
    ]
    assert isinstance(rows, list) and [row["guess"] for row in rows] == shares and shares[0] != shares[1]
    with style():
        alike, apart = (accuracy_of(part_of(whole, other)) for other in (same, few))
    assert alike is not None and apart is not None
    for drawing, strokes in ((alike, 1), (apart, 2)):
        assert drawing.svg.count("stroke-dasharray: 3.6,2.7") == strokes
    assert all(f"guessing {100 * share:.1f}" in apart.alt for share in shares)


def test_findings_have_the_figures_of_the_metrics(tmp_path: Path) -> None:
    rows = findings()
    made = Folder(tmp_path / "a").multilabel("med_cls_findings", rows)
    part = part_of(made)
    content = json.loads((made.folder / "med_cls_findings.metrics.json").read_text(encoding="utf-8"))
    table = finding_tables.findings_table(part).record().to_dict()["rows"]
    assert isinstance(table, list) and [row["finding"] for row in table] == list(FINDINGS)
    for row, entry in zip(table, content["per_finding"], strict=True):
        assert {name: row[name] for name in entry} == entry and row["positives"] + 0 == entry["positives"]
    counts = finding_tables.counts_table(part).record().to_dict()["rows"]
    assert isinstance(counts, list)
    for row, entry in zip(counts, content["per_finding"], strict=True):
        yes, no = (sum(row[f"{truth}_{said}"] for said in ("yes", "no", "unparsed")) for truth in ("yes", "no"))
        assert (yes, yes + no) == (entry["positives"], entry["n"])
        mine = [x for x in rows if x.finding == row["finding"]]
        assert row["no_yes"] == sum(x.label == "no" and x.predicted == "yes" for x in mine)
        assert row["yes_unparsed"] == sum(x.label == "yes" and x.predicted is None for x in mine)
    (metrics,) = csv.DictReader(io.StringIO(answer_tables.metrics_table(part, verdicts(part)).csv()))
    assert float(metrics["exact_match"]) == content["exact_match"]["value"]
    assert float(metrics["guess"]) == content["baselines"]["always_no"]["accuracy"]
    assert answer_tables.class_table(part).rows == ()
    areas = {curve.name: curve.area for curve in roc_curves(part.results[0])}
    for entry in content["per_finding"]:
        assert areas.get(entry["finding"]) == (
            pytest.approx(entry["auroc"]["value"]) if entry["auroc"]["value"] else None
        )
    said = methods_text.methods(collect_runs([made.folder])).text()
    assert "yes or no, for each finding" in said and "classes listed" not in said
    assert "all findings answered correctly" in said and "against the others" not in said


def test_shares_of_statuses_and_unparsed_answers(tmp_path: Path) -> None:
    part = part_of(Folder(tmp_path / "a").answers("med_cls_toy", outcomes(), said=("no idea", "no idea", "<b>hm</b>")))
    (row,) = csv.DictReader(io.StringIO(answer_tables.parsing_table(part).csv()))
    assert sum(float(row[name]) for name in ("parsed", "ambiguous", "out_of_list", "refusal")) == pytest.approx(1)
    said = answer_tables.unparsed_table(part).rows
    assert {item[4] for item in said} <= {"no idea", "<b>hm</b>"} and said[0][3] == max(
        int(str(item[3])) for item in said
    )


def test_areas_under_our_roc_curves_are_those_of_scikit_learn(tmp_path: Path) -> None:
    rows = outcomes()
    (cell,) = part_of(Folder(tmp_path / "a").answers("med_cls_toy", rows)).results
    curves = roc_curves(cell)
    scores = np.array([row.scores for row in rows])
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert [curve.name for curve in curves] == list(LABELS)
    for index, curve in enumerate(curves):
        positive = np.array([row.label == curve.name for row in rows])
        assert curve.area == pytest.approx(roc_auc_score(positive, shares[:, index]))
        assert curve.positives == positive.sum() and (np.diff(curve.x) >= 0).all()
        assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 1)


@settings(max_examples=15)
@given(
    st.lists(st.integers(min_value=0, max_value=10_000), min_size=1, max_size=4, unique=True),
    st.integers(min_value=4, max_value=40),
    st.booleans(),
)
def test_areas_of_a_varied_task_are_those_of_its_metrics(seeds: list[int], count: int, ties: bool) -> None:
    rows = [
        outcome
        for turn, seed in enumerate(seeds)
        for outcome in outcomes(seed=seed, skill=turn, count=count, variant=f"order {turn}")
    ]
    if ties:
        rows = [replace(row, scores=tuple(map(round, row.scores or ()))) for row in rows]
    with tempfile.TemporaryDirectory() as root:
        made = Folder(Path(root) / "a").answers("med_cls_toy:order=varied", rows, order="varied")
        (cell,) = part_of(made).results
    curves = roc_curves(cell)
    assert np.mean([curve.area for curve in curves]) == pytest.approx(cell.metrics["auroc"].value)
    labels = [row.label for row in rows if row.variant == "order 0"]
    for curve in curves:
        x, y, area = curve.x, curve.y, curve.area
        assert curve.positives == labels.count(curve.name) and (np.diff(x) >= 0).all() and (np.diff(y) >= -1e-12).all()
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
        assert float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum()) == pytest.approx(area)


def test_figures_follow_the_page_and_hold_any_label(tmp_path: Path) -> None:
    evil = ("$\\frac{1$<script>", "b&w", "\x00c")
    made = Folder(tmp_path / "a", "m$odel</svg>")
    made.answers("med_cls_toy", outcomes(labels=evil), labels=evil)
    part = part_of(made)
    with style():
        drawing = roc_figure.roc(part, probability_checks(part), 3)
        confusion = answer_figures.confusion(part, 4)
    assert drawing is not None and confusion is not None and confusion.inline == ""
    for item in (drawing, confusion):
        assert ET.fromstring(item.svg).tag.endswith("svg") and "<script" not in item.svg
    with style(88):
        on_paper = answer_figures.confusion(part, 4)
    assert on_paper is not None
    assert ET.fromstring(on_paper.files["-88mm.svg"]) and on_paper.files["-88mm.pdf"].startswith(b"%PDF")
    root = ET.fromstring(drawing.inline)
    assert root.attrib["role"] == "img" and "areas" in root.attrib["aria-label"]
    assert "var(--ink)" in drawing.inline and "var(--series-0)" in drawing.inline
    assert not any(colour in drawing.inline for colour in THEME)
    ids = [node.attrib["id"] for node in root.iter() if "id" in node.attrib]
    assert ids and all(entry.startswith("f3-") for entry in ids) and len(ids) == len(set(ids))


def test_figures_drawn_at_once_are_those_drawn_one_by_one(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_probe_toy", outcomes()).probes("med_probe_toy")
    part = part_of(made)
    jobs = [lambda: accuracy_of(part), lambda: health_figure.health(part, 1), lambda: None] * 2
    assert draw_all(jobs, workers=2) == draw_all(jobs, workers=1)


def test_gallery_holds_each_original_once_and_keeps_its_budget(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").attributions("med_attr_toy", documents=24, size=(200, 160), noise=True)
    cells = list(part_of(made).results)
    whole = build_gallery(cells)
    assert len(whole.pictures) == 24 and len(whole.cards) == 24 * 4 + 1 and whole.left_out == 0
    assert whole.choices("layer") == ["pixels", "vision.05", "prompt"]
    budget = 60_000
    small = build_gallery(cells, budget)
    spent = sum(len(picture.data) for picture in small.pictures) + sum(
        len(c.layer.data) for c in small.cards if c.layer
    )
    assert spent <= budget * 1.1 and small.left_out == 97 - len(small.cards) > 0
    assert {card.entry.label for card in small.cards} == set(LABELS) and {c.entry.hit for c in small.cards} == {
        True,
        False,
    }


def test_gallery_of_volumes_and_broken_pictures(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").attributions("med_attr_toy", documents=2, size=(300, 260), slices=5)
    (made.folder / "attributions" / "med_attr_toy" / "pictures" / "0.png").write_bytes(b"no picture")
    result = build_gallery(list(part_of(made).results))
    (original,) = result.pictures
    assert original.height == 5 * original.slice_height and max(original.width, original.slice_height) <= 256
    assert result.failed and "0.png" in result.failed[0]
    card = next(card for card in result.cards if card.entry.document == "doc-00001")
    assert ("pointing game", "hit") in card.checks and ("deletion", "0.200") in card.checks


def test_methods_cite_what_was_used_and_nothing_else(tmp_path: Path) -> None:
    plain = collect_runs([Folder(tmp_path / "a", "medm_vl").answers("med_cls_toy", outcomes()).folder])
    text = methods_text.methods(plain).text()
    assert "arXiv:2504.04323" in text and "lmms-eval 0.7.3" in text and "Hanley" in text
    assert not any(name in text for name in ("Hewitt", "Petsiuk", "2309.03882", "logit lens"))
    full = Folder(tmp_path / "b", "medm_vl").probes("med_probe_toy").attributions("med_attr_toy")
    rows = [outcome for turn in (1, 2) for outcome in outcomes(seed=turn, variant=f"order {turn}")]
    full.answers("med_cls_toy:order=varied", rows, order="varied")
    text = methods_text.methods(collect_runs([full.folder])).text()
    for name in (
        "Hewitt",
        "Petsiuk",
        "2309.03882",
        "logit lens",
        "2604.08333",
        "Someone. grad_cam",
        "Captum",
        "Adebayo",
    ):
        assert name in text
    paragraph, references = methods_text.methods(collect_runs([full.folder])), text
    for place in range(1, len(paragraph.references) + 1):
        assert f"[{place}]" in references


def test_methods_say_how_answers_were_decoded_and_what_decoded_them(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a", "openai")
    made.manifest["model"] = None
    made.manifest["command"] |= {"gen_kwargs": "temperature=0.7,do_sample=True,max_new_tokens=8", "num_fewshot": 4}
    made.answers("med_cls_toy", [replace(outcome, scores=None) for outcome in outcomes()], shots=4)
    text = methods_text.methods(collect_runs([made.folder])).text()
    assert "Answers were sampled with do_sample=True, temperature=0.7; an answer" in text and "greedily" not in text
    assert "after 4 solved examples from the train fold" in text
    assert "Wolf" not in text and "transformers" not in text and "lmms-eval 0.7.3" in text
    assert not any(said in text for said in ("log-probabilities", "Hanley", "Guo"))
    other = Folder(tmp_path / "b").answers("med_cls_toy", outcomes())
    text = methods_text.methods(collect_runs([made.folder, other.folder])).text()
    assert "temperature=0.7 (openai) and decoded greedily (model-a" in text and "transformers 5.24.0" in text
    assert "after no or 4 solved examples" in text and "by the sum of its tokens' log-probabilities" in text
    assert "Zhao" not in text, "no scores of a blank image"


def test_a_model_without_figures_was_not_evaluated(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a", "model-a").answers("med_cls_toy", outcomes())
    begun = Folder(tmp_path / "b", "model-b")
    begun.tell("med_cls_toy")
    text = methods_text.methods(collect_runs([made.folder, begun.folder])).text()
    assert "model-a (tiny) was evaluated" in text and "model-b" not in text


@settings(max_examples=30)
@given(st.one_of(st.none(), st.text(), st.dictionaries(st.text(), st.text() | st.floats() | st.booleans())))
def test_methods_stand_any_arguments(given_: object) -> None:
    with tempfile.TemporaryDirectory() as root:
        made = Folder(Path(root) / "a")
        made.answers("med_cls_toy", outcomes(count=6))
        made.manifest["command"]["gen_kwargs"] = given_
        made.write()
        assert "Answers were" in methods_text.methods(collect_runs([made.folder])).text()


def test_methods_name_the_controls_and_readings_that_there_are(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").probes("med_probe_toy")
    path = made.folder / "med_probe_toy.probes.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    whole = methods_text.methods(collect_runs([made.folder])).text()
    for said in ("random weights and raw pixels", "Holm's correction", "scores minus those of a blank image", "Kuhn"):
        assert said in whole
    content["points"] = [
        point for point in content["points"] if point["part"] != "control" and point["pooling"] == "mean"
    ]
    content["points"] = [{**point, "p_holm": None} for point in content["points"]]
    content["mapping"]["readings"] = {"offsets": content["mapping"]["readings"]["offsets"]}
    content["mapping"]["lens"] = []
    path.write_text(json.dumps(content), encoding="utf-8")
    part = methods_text.methods(collect_runs([made.folder])).text()
    for said in (
        "random weights",
        "raw pixels",
        "Holm",
        "last token of the prompt,",
        "blank image",
        "Kuhn",
        "Zhao TZ",
        "logit lens",
    ):
        assert said not in part
    assert "a control task" in part and "fitted class biases" in part


def test_methods_describe_and_cite_the_probes_of_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ProbeSpec(
        name="knn",
        target="plugin.probes:knn",
        summary="Nearest neighbours.",
        description="a vote of the nearest neighbours",
        citation="Cover T, Hart P. Nearest neighbor pattern classification. IEEE Trans. Inf. Theory 13, 21-27 (1967).",
    )
    monkeypatch.setattr(type(get_manager()), "probes", lambda self: {"knn": spec})
    made = Folder(tmp_path / "a").probes("med_probe_toy")
    path = made.folder / "med_probe_toy.probes.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["options"]["protocol"] = "knn"
    path.write_text(json.dumps(content), encoding="utf-8")
    methods = methods_text.methods(collect_runs([made.folder]))
    number = next(index for index, source in enumerate(methods.references, start=1) if source.startswith("Cover T"))
    assert f"a vote of the nearest neighbours [{number}]" in methods.text()


def test_methods_describe_and_cite_the_attribution_methods_of_plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = AttributionSpec(
        name="edges",
        target="plugin.maps:edges",
        summary="Edges of the image.",
        description="the length of the Sobel gradient",
        citation="Sobel I. An isotropic 3x3 image gradient operator (1990).",
    )
    monkeypatch.setattr(type(get_manager()), "attributions", lambda self: {"edges": spec})
    folder = Folder(tmp_path / "a").attributions("med_attr_toy", methods=("edges",)).folder
    index = folder / "attributions" / "med_attr_toy" / "index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    content["methods"] = [{"name": "edges", "summary": spec.summary, "citation": ""}]
    index.write_text(json.dumps(content), encoding="utf-8")
    methods = methods_text.methods(collect_runs([folder]))
    number = next(index for index, source in enumerate(methods.references, start=1) if source.startswith("Sobel I"))
    assert f"by edges (the length of the Sobel gradient) [{number}] with medmllm-plugins" in methods.text()


def test_captum_is_named_for_its_own_methods_alone(tmp_path: Path) -> None:
    own = Folder(tmp_path / "a").attributions("med_attr_toy", methods=("layer_grad_cam", "attention_rollout"))
    text = methods_text.methods(collect_runs([own.folder])).text()
    assert "Captum" not in text and "attention_rollout [4] with medmllm-plugins" in text
    both = Folder(tmp_path / "b").attributions("med_attr_toy", methods=("saliency", "layer_grad_cam", "stranger"))
    index = both.folder / "attributions" / "med_attr_toy" / "index.json"
    text = methods_text.methods(collect_runs([both.folder])).text()
    assert "by saliency [3] with Captum [4]" in text and "stranger [6] with medmllm-plugins" in text
    content = json.loads(index.read_text(encoding="utf-8"))
    content["methods"] = [{"name": "stranger", "citation": "", "captum": True}]
    index.write_text(json.dumps(content), encoding="utf-8")
    assert "by stranger" in (text := methods_text.methods(collect_runs([both.folder])).text()) and "Kokhlikyan" in text


def test_builtin_methods_say_whether_captum_computes_them() -> None:
    for name, spec in get_manager().attributions().items():
        module, _, function = spec.target.partition(":")
        home = importlib.import_module(module)
        source = inspect.getsource(getattr(home, function))
        source += "".join(inspect.getsource(getattr(home, name)) for name in re.findall(r"\b(_\w+)\(", source))
        uses = re.search(
            r"\b(Saliency|IntegratedGradients|FeatureAblation|KernelShap|ablation_scores|approximation_parameters)\(",
            source,
        )
        assert spec.captum == bool(uses), name


@pytest.mark.parametrize(
    ("modes", "sentence"),
    [
        (["decision"], "Attributions of a label's log-odds "),
        (["answer"], "Attributions of the answer's log-probability "),
        (["truth", "answer"], "Attributions of a label's log-odds and of the answer's log-probability "),
    ],
)
def test_methods_say_what_was_attributed(tmp_path: Path, modes: list[str], sentence: str) -> None:
    made = Folder(tmp_path / "a").attributions("med_attr_toy", methods=("integrated_gradients",))
    index = made.folder / "attributions" / "med_attr_toy" / "index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    row = content["summary"][0] | {"unchecked": ["stability"]}
    content["summary"] = [row | {"mode": mode, "baseline": "blank", "steps": 4} for mode in modes]
    index.write_text(json.dumps(content), encoding="utf-8")
    collection = collect_runs([made.folder])
    assert sentence in methods_text.methods(collection).text()
    lines = csv.DictReader(io.StringIO(layer_tables.attribution_table(collection.datasets[0]).csv()))
    assert [(row["explained"], row["unchecked"]) for row in lines] == [
        (f"{mode}, blank, 4", "stability") for mode in modes
    ]
    names = attribution_figures.row_names(collection.datasets[0].attribution_summaries())
    assert len(set(names)) == len(modes)


def test_one_paper_has_one_number(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").attributions("med_attr_toy", methods=("integrated_gradients",))
    index = made.folder / "attributions" / "med_attr_toy" / "index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    content["methods"] = [{"name": "integrated_gradients", "citation": "Sundararajan M. 2017; arXiv:1703.01365."}]
    content["summary"][0]["completeness_gap"] = {"value": 0.1, "low": 0.05, "high": 0.2}
    index.write_text(json.dumps(content), encoding="utf-8")
    result = methods_text.methods(collect_runs([made.folder]))
    assert (
        sum("Sundararajan" in reference for reference in result.references) == 1 and "completeness [" in result.text()
    )


def test_label_scores_stand_on_the_page_as_in_the_metrics(tmp_path: Path) -> None:
    rows = [replace(outcome, tokens=(1, 3, 2), blank=(0.5, -0.5, 0.1)) for outcome in outcomes()]
    made = Folder(tmp_path / "a").answers("med_cls_toy", rows)
    varied = [outcome for turn in (0, 1) for outcome in outcomes(seed=turn, variant=f"order {turn}")]
    made.answers("med_cls_toy:order=varied", varied, order="varied")
    table = answer_tables.label_scores_table(part_of(made))
    content = json.loads((made.folder / "med_cls_toy.metrics.json").read_text(encoding="utf-8"))["label_scores"]
    assert [row[3] for row in table.rows[:3]] == list(SCORE_FORMS.values()) and list(content) == list(FORMS)
    for row, figures in zip(table.rows, content.values(), strict=False):
        for value, name in zip(row[4:7], ("accuracy", "balanced", "macro_f1"), strict=True):
            assert isinstance(value, Estimate) and value.to_dict() == figures[name]
    assert [row[2] for row in table.rows[3:]] == ["order 0", "order 1"]
    said = methods_text.methods(collect_runs([made.folder])).text()
    assert "by their mean and by the sum minus that of a blank image [" in said and "Zhao" in said


def test_a_note_names_the_class_whose_answers_are_parsed_less_often(tmp_path: Path) -> None:
    even, uneven = (Folder(tmp_path / name) for name in ("even", "uneven"))
    rows = outcomes()
    first = rows[0].label
    refused = [
        replace(row, predicted=None, status="refusal") if row.label == first and index % 3 else row
        for index, row in enumerate(rows)
    ]
    even.answers("med_cls_toy", [replace(row, predicted=row.label, status="parsed") for row in rows])
    uneven.answers("med_cls_toy", refused)
    for made in (even, uneven):
        made.write()
    notes = [collect_notes(collect_runs([made.folder])).warnings for made in (even, uneven)]
    assert not any("parsed less often" in note for note in notes[0])
    assert sum(f"answers about {first} were parsed less often" in note for note in notes[1]) == 1


def test_notes_tell_of_leaks_limits_and_weight_warnings(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a", weight_warnings=["its tokenizer is odd"])
    made.answers("med_cls_toy", outcomes(), skipped=["x.png"], notes=["labels are noisy"], overlaps={"other": "reused"})
    made.folds([("a", "g", "train"), ("b", "g", "test")])
    made.manifest["command"]["limit"] = 40.0
    made.write()
    notes = collect_notes(collect_runs([made.folder]))
    warned = " ".join(notes.warnings)
    for said in (
        "tokenizer is odd",
        "1 file could not be read",
        "labels are noisy",
        "shares images with other",
        "first 40",
    ):
        assert said in warned
    assert "1 group" in notes.leaks[0] and "1 test document" in notes.leaks[0]
    assert any("no reference classifier" in note for note in notes.missing)
