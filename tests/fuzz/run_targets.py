"""Run folders, journals, feature stores and what else this package writes and reads again."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
from fuzz.mutators import mutate_bytes, mutate_lines, one_of
from fuzz.target import Files, Target
from fuzz.trees import json_lines_mutator, json_mutator, safetensors_mutator
from support.run_folders import Folder, findings, outcomes

from medmllm_plugins.data.core import fold_manifest
from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.features.store import index_rows, write_header
from medmllm_plugins.host.envelope import pack, unpack
from medmllm_plugins.probes.reference_run import find_reference
from medmllm_plugins.report.report_notes import collect_notes
from medmllm_plugins.report.run_collection import collect_runs
from medmllm_plugins.report.verdict import verdicts
from medmllm_plugins.results.comparison import compare
from medmllm_plugins.results.feature_store import INDEX, SEAL, FeatureStore, Header, StoredLayer
from medmllm_plugins.results.outcome_files import load_run, read_answers, read_outcomes
from medmllm_plugins.runtime.journal import Journal, Reply

_SPECS: Final = dataset_specs()


def _read_back(folder: Path) -> Files:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _made(make: Any) -> Files:
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        return _read_back(Path(name))


def _outcomes() -> dict[str, Files]:
    def plain(folder: Path) -> None:
        Folder(folder / "run").answers("med_cls_toy", outcomes(count=8))

    def several(folder: Path) -> None:
        Folder(folder / "run").multilabel("med_cls_findings", findings(count=2))

    return {
        name: {"a.outcomes.jsonl": next(content for path, content in _made(make).items() if path.endswith(".jsonl"))}
        for name, make in (("plain", plain), ("findings", several))
    }


def read_rows(folder: Path) -> object:
    """Read outcomes, and the answers behind them."""
    path = folder / "a.outcomes.jsonl"
    rows = read_outcomes(path)
    return rows, read_answers(path)


@functools.cache
def _runs() -> dict[str, Files]:
    def answered(folder: Path) -> None:
        run = Folder(folder / "run").answers("med_cls_toy", outcomes(count=8))
        run.folds([("doc-00000", "patient-0", "test"), ("doc-00001", "patient-0", "train")])
        Folder(folder / "other-baseline-pixels", baseline="pixels").answers("med_cls_toy", outcomes(count=8, seed=1))

    def probed(folder: Path) -> None:
        Folder(folder / "run").probes("med_probe_toy", layers=2)

    def explained(folder: Path) -> None:
        Folder(folder / "run").attributions("med_attr_toy", documents=1, size=(8, 6))

    def multilabel(folder: Path) -> None:
        Folder(folder / "run").multilabel("med_cls_findings", findings(count=2))

    return {make.__name__: _made(make) for make in (answered, probed, explained, multilabel)}


def read_run_folder(folder: Path) -> object:
    """Read a run folder as the report does, up to its verdict and notes, and look for its reference classifier."""
    run = folder / "run"
    with mock.patch("medmllm_plugins.report.run_collection.dataset_specs", return_value=_SPECS):  # read once
        gathered = collect_runs([run])
    notes = collect_notes(gathered)
    find_reference(run, "f1")
    return (
        [read.all_missing() for read in gathered.runs],
        notes.missing,
        [verdicts(dataset) for dataset in gathered.datasets],
    )


def load_and_compare(folder: Path) -> object:
    """Read two runs as ``medmllm compare`` does."""
    first, second = load_run(folder / "run"), load_run(folder / "other-baseline-pixels")
    return [
        compare(rows, second.outcomes[task], task=task, resamples=20)
        for task, rows in first.outcomes.items()
        if task in second.outcomes
    ]


def _journal() -> dict[str, Files]:
    def write(folder: Path) -> None:
        journal = Journal(folder, "j", 0)
        journal.run = folder
        journal.add(
            {f"key-{index}": Reply(f"Answer {index}: é\u2028", (-1.0, -2.5), (1, 2), None, index) for index in range(4)}
        )
        journal.close()

    return {"plain": _made(write)}


def read_journal(folder: Path) -> object:
    """Open a journal, as a run does that goes on, and add an answer, which must be there at the next start."""
    journal = Journal(folder, "j", 0)
    known = dict(journal.known)
    _ = journal.run
    journal.add({"new": Reply("text", generated_tokens=3)})
    journal.close()
    again = Journal(folder, "j", 0)
    again.close()
    assert again.known["new"] == Reply("text", generated_tokens=3), "an answer that was kept is lost"
    assert known.items() <= again.known.items() | {("new", Reply("text", generated_tokens=3))}, (
        "answers that were read are lost"
    )
    return sorted(again.known.items())


def _replies() -> dict[str, Files]:
    return {
        "scores": {"a.txt": pack(Reply("benign", (-0.5, -1.5), (1, 2), (-2.0, -3.0))).encode()},
        "text": {"a.txt": pack(Reply("é\u2028x")).encode()},
    }


def read_reply(folder: Path) -> object:
    """Unpack a reply, of which every text is one."""
    return unpack((folder / "a.txt").read_text(encoding="utf-8", errors="replace"))


def _manifests() -> dict[str, Files]:
    documents = [
        Document(f"d{index}", f"d{index}.png", "benign", f"g{index}", fold)
        for index, fold in enumerate(("train", "test"))
    ]
    return {"plain": {"a.folds.json": fold_manifest.to_json("toy", "f", documents).encode()}}


_HEADER: Final = Header(
    task="med_probe_x",
    dataset="x",
    labels=("a", "b"),
    dataset_fingerprint="d",
    model="m",
    model_fingerprint="f",
    layers=(StoredLayer("vision.00", "vision", ("mean",), (4,)),),
    lens=("llm.norm",),
)


@functools.cache
def _stores() -> dict[str, Files]:
    from safetensors.numpy import save

    shard = save({"vision.00/mean": np.ones((3, 4), np.float16), "lens": np.ones((3, 1, 2), np.float32)})
    name = "rank0-00000.safetensors"
    records = [
        {
            **{
                "id": f"doc-{index}",
                "document": f"doc-{index}",
                "group": "g",
                "fold": "test",
                "label": "a",
                "answer": "b",
            },
            **{"scores": [-1.5, -0.5], "blank": None, "label_tokens": [1, 2]},
        }
        for index in range(3)
    ]
    table = index_rows(records, rank=0, shard=name, checksum=hashlib.sha256(shard).hexdigest())
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    header = _made(lambda folder: write_header(folder, _HEADER))
    files = {**header, f"{INDEX}/rank0-00000.parquet": buffer.getvalue(), name: shard}
    files[SEAL] = _seal(files)
    return {"plain": files}


def _seal(files: Files) -> bytes:
    sums = {
        path: hashlib.sha256(content).hexdigest()
        for path, content in files.items()
        if path.endswith((".parquet", "store.json"))
    }
    return json.dumps(sums, indent=2).encode()


def read_store(folder: Path) -> object:
    """Open a feature store, check it as ``medmllm diagnose`` does, and read its features."""
    store = FeatureStore(folder)
    store.check()
    return store.features("vision.00", "mean").tolist(), store.lens(), store.index.to_dict()


def read_whole_store(folder: Path) -> object:
    """Read a store whose seal fits its damaged content, as if it was written so."""
    files = {path: content for path, content in _read_back(folder).items() if path != SEAL}
    (folder / SEAL).write_bytes(_seal(files))
    store = FeatureStore(folder)
    return store.header, store.features("vision.00", "mean").tolist(), store.lens(), store.index.to_dict()


_JSON: Final = json_mutator("benign", "med_cls_toy", "med_probe_toy:order=varied", {"value": 1}, [[1, 2], [3, 4]])
_ROWS: Final = json_lines_mutator("benign", "malignant", "parsed", "refusal", [0.5, -1.0, 2.0], None)

TARGETS: Final = {
    target.name: target
    for target in (
        Target(twice=False, name="outcomes", seeds=_outcomes, read=read_rows, mutators={"*": _ROWS}),
        Target(
            twice=False,
            name="run_folder",
            refuses=False,
            seeds=_runs,
            read=read_run_folder,
            mutators={"*.jsonl": _ROWS, "*.json": _JSON, "*.png": mutate_bytes},
        ),
        Target(
            twice=False,
            name="comparison",
            seeds=lambda: {"answered": _runs()["answered"]},
            read=load_and_compare,
            mutators={"*.jsonl": _ROWS, "manifest.json": _JSON},
        ),
        Target(
            twice=False,
            name="journal",
            seeds=_journal,
            read=read_journal,
            mutators={"*.jsonl": _ROWS, "*.json": _JSON},
            refuses=False,
        ),
        Target(
            twice=False,
            name="reply",
            seeds=_replies,
            read=read_reply,
            mutators={"*": json_mutator([0.5], 1, "x")},
            refuses=False,
        ),
        Target(
            twice=False,
            name="folds",
            seeds=_manifests,
            read=lambda folder: fold_manifest.read(folder / "a.folds.json"),
            mutators={"*": _JSON},
        ),
        Target(
            twice=False,
            name="feature_store",
            seeds=_stores,
            read=read_store,
            mutators={"*.json": _JSON, "*.safetensors": safetensors_mutator, "*.parquet": mutate_bytes},
        ),
        Target(
            twice=False,
            name="sealed_store",
            seeds=_stores,
            read=read_whole_store,
            mutators={
                "*.json": _JSON,
                "*.safetensors": safetensors_mutator,
                "*.parquet": one_of(mutate_bytes, mutate_lines),
            },
        ),
    )
}
