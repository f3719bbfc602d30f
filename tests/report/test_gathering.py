"""Runs become models and data sets."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.run_folders import Folder, outcomes

from medmllm_plugins.errors import DataError
from medmllm_plugins.report.run_collection import collect_runs


def test_runs_of_one_model_are_one_model(tmp_path: Path) -> None:
    Folder(tmp_path / "a").answers("med_cls_toy", outcomes())
    Folder(tmp_path / "b").probes("med_probe_toy")
    Folder(tmp_path / "c", fingerprint="other").answers("med_cls_toy", outcomes(seed=2))
    collection = collect_runs([tmp_path / "a", tmp_path / "b", tmp_path / "c", tmp_path / "a"])
    assert [[run.name for run in subject.runs] for subject in collection.subjects] == [["a", "b"], ["c"]]
    assert len({subject.label for subject in collection.subjects}) == 2 and "c" in collection.subjects[1].label


def test_runs_that_were_asked_otherwise_are_two_models(tmp_path: Path) -> None:
    plain = Folder(tmp_path / "a").answers("med_cls_toy", outcomes())
    for name, more in (("b", {"num_fewshot": 4}), ("c", {"gen_kwargs": "max_new_tokens=2"}), ("d", {"num_fewshot": 0})):
        other = Folder(tmp_path / name).answers("med_probe_toy", outcomes()).probes("med_probe_toy")
        other.manifest["command"] |= {"gen_kwargs": "", **more}
        other.write()
        result = collect_runs([plain.folder, other.folder]).subjects
        labels = [item.label for item in result]
        if name == "d":
            assert labels == ["model-a (tiny)"], "no examples is the same as none told"
        else:
            assert len(set(labels)) == 2 and ("4 examples" if name == "b" else "max_new_tokens=2") in labels[1]


def test_a_repair_is_labelled_by_the_name_of_its_folder(tmp_path: Path) -> None:
    for name, repair in (("a", None), ("b", "out/repairs/x-1/class_bias"), ("c", "out/repairs/x-1/affine")):
        Folder(tmp_path / name, repair=repair).answers("med_cls_toy", outcomes())
    labels = [subject.label for subject in collect_runs([tmp_path / name for name in "abc"]).subjects]
    assert labels == ["model-a (tiny)", "model-a (tiny), repair class_bias", "model-a (tiny), repair affine"]
    Folder(tmp_path / "d", repair="out/repairs/x-2/affine").answers("med_cls_toy", outcomes())
    labels = [subject.label for subject in collect_runs([tmp_path / name for name in "acd"]).subjects]
    assert labels[1:] == [f"model-a (tiny), out/repairs/x-{number}/affine" for number in (1, 2)]


def test_a_task_run_twice_is_two_models_of_like_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Folder(tmp_path / name).answers("med_cls_toy", outcomes())
    collection = collect_runs([tmp_path / "a", tmp_path / "b"])
    assert len(collection.subjects) == 2 and len({subject.label for subject in collection.subjects}) == 2


def repaired(folder: Path, rows: int = 120) -> Folder:
    """A run of ``medmllm repair``: the answers before any repair, and the study."""
    made = Folder(folder).answers("med_cls_toy", outcomes(count=rows))
    made.manifest["command"] = {"repair": "med_cls_toy", "model": "model-a", "model_args": "pretrained=hub/tiny"}
    return made.write().repairs("med_cls_toy")


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_repair_study_belongs_to_its_model(tmp_path: Path, order: str) -> None:
    Folder(tmp_path / "a").answers("med_cls_toy", outcomes())
    repaired(tmp_path / "b")
    collection = collect_runs([tmp_path / name for name in order])
    (subject,) = collection.subjects
    (part,) = collection.datasets
    main = part.main(subject)
    assert main is not None and main.run.name == "a", "of equally many documents, the plain evaluation counts"
    assert [result.run.name for result, _ in part.repaired()] == ["b"]


def test_the_evaluation_with_most_documents_counts(tmp_path: Path) -> None:
    Folder(tmp_path / "a").answers("med_cls_toy", outcomes(count=40))
    repaired(tmp_path / "b")
    collection = collect_runs([tmp_path / "a", tmp_path / "b"])
    main = collection.datasets[0].main(collection.subjects[0])
    assert main is not None and (main.run.name, len(main.task.outcomes)) == ("b", 120)


def test_runs_that_add_analyses_belong_to_the_model(tmp_path: Path) -> None:
    Folder(tmp_path / "a").answers("med_probe_toy", outcomes())
    Folder(tmp_path / "b").answers("med_probe_toy", outcomes()).probes("med_probe_toy")
    Folder(tmp_path / "c").answers("med_probe_toy", outcomes()).probes("med_probe_toy", seed=1)
    assert len(collect_runs([tmp_path / name for name in "abc"]).subjects) == 1
    Folder(tmp_path / "d").answers("med_probe_toy", outcomes())
    assert len(collect_runs([tmp_path / name for name in "abcd"]).subjects) == 2, "a second plain evaluation"
    repaired(tmp_path / "e").tell("med_cls_toy", dataset_fingerprint="f2")
    other = Folder(tmp_path / "f", fingerprint="other").answers("med_cls_toy", outcomes())
    assert len(collect_runs([tmp_path / "e", other.folder]).subjects) == 2, "other weights"


def test_the_plain_question_counts_first(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a")
    made.answers("med_cls_toy:image=blank", outcomes(seed=1), image="blank")
    made.answers("med_cls_toy_letter", outcomes(seed=2), protocol="letter")
    made.answers("med_probe_toy", outcomes(seed=3)[:50])
    made.answers("med_cls_toy", outcomes(seed=4))
    (part,) = collect_runs([made.folder]).datasets
    cell = part.main(part.subjects[0])
    assert cell is not None and cell.task.name == "med_cls_toy"


def test_a_reference_beside_the_runs_is_read_by_itself(tmp_path: Path) -> None:
    Folder(tmp_path / "run").answers("med_cls_toy", outcomes())
    Folder(tmp_path / "1-baseline-pixels-1", baseline="pixels").answers("med_cls_toy", outcomes(skill=3))
    Folder(tmp_path / "2-baseline-majority-1", baseline="majority").answers("med_cls_toy", outcomes(skill=0))
    other = Folder(tmp_path / "3-baseline-pixels-1", baseline="pixels")
    other.answers("med_cls_toy", outcomes(), dataset_fingerprint="other data")
    collection = collect_runs([tmp_path / "run"])
    assert [run.name for run in collection.runs] == ["run", "1-baseline-pixels-1"] and len(collection.notes) == 1
    (part,) = collection.datasets
    assert [reference.subject.reference for reference in part.references] == [True] and not part.divided
    assert len(collection.models) == 1


def test_other_data_are_told_of(tmp_path: Path) -> None:
    Folder(tmp_path / "a").answers("med_cls_toy", outcomes())
    Folder(tmp_path / "b", "model-b").answers("med_cls_toy", outcomes(), dataset_fingerprint="f2")
    (part,) = collect_runs([tmp_path / "a", tmp_path / "b"]).datasets
    assert part.divided


def test_nothing_to_gather_is_an_error() -> None:
    with pytest.raises(DataError, match="at least one run folder"):
        collect_runs([])


def test_a_control_is_compared_with_its_own_question(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a")
    made.answers("med_cls_toy", outcomes(skill=4, seed=1))
    made.answers("med_cls_toy_letter", outcomes(seed=2), protocol="letter")
    made.answers("med_cls_toy_letter:image=blank", outcomes(skill=0, seed=5), protocol="letter", image="blank")
    made.answers("med_cls_toy:image=blank", outcomes(skill=0, seed=6), image="blank", dataset_fingerprint="other")
    made.answers("med_cls_toy_open:image=blank", outcomes(skill=0, seed=7), protocol="open", image="blank")
    varied = [outcome for turn in range(2) for outcome in outcomes(seed=turn, variant=f"order {turn}")]
    made.answers("med_cls_toy_letter:order=varied", varied, protocol="letter", order="varied")
    made.answers("med_cls_toy:image=blank:order=varied", varied, image="blank", order="varied")
    (part,) = collect_runs([made.folder]).datasets
    against = {
        cell.task.name: result and result.task.name for cell in part.results if (result := part.counterpart(cell))
    }
    assert against == {
        "med_cls_toy_letter:image=blank": "med_cls_toy_letter",
        "med_cls_toy_letter:order=varied": "med_cls_toy_letter",
    }


def test_a_control_with_other_examples_has_no_counterpart(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a")
    made.answers("med_cls_toy", outcomes(), shots=0)
    made.answers("med_cls_toy:image=blank", outcomes(skill=0), image="blank", shots=4)
    (part,) = collect_runs([made.folder]).datasets
    assert part.counterpart(part.results[1]) is None and part.results[1].shots == 4
