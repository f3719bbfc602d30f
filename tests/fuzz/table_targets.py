"""Tables, lists and declarations: what users and plugins write by hand or export from spreadsheets."""

from __future__ import annotations

import gzip
import importlib.metadata
import io
from pathlib import Path
from typing import Final
from unittest import mock

from fuzz.mutators import mutate_bytes, mutate_lines, one_of
from fuzz.target import Files, Target
from fuzz.trees import yaml_mutator
from fuzz.volume_targets import VOXELS, nifti
from support.image_files import picture
from support.own_data import table_spec

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.dataset_spec import read_spec
from medmllm_plugins.data.layouts.csv_rows import read_rows
from medmllm_plugins.data.layouts.layout_registry import layout
from medmllm_plugins.data.layouts.table_options import table_options
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.plugins.manager import discover
from medmllm_plugins.plugins.task_files import read_task, read_yaml
from medmllm_plugins.prompts.task_settings import read_settings

_TABLE: Final = (
    b"image,label,patient,split\n"
    b"a.ppm,benign,p1,train\n"
    b"b.ppm,malignant,p2,test\n"
    b"c.ppm,benign,p3,test\n"
    b'"d.ppm","malignant","p, 4",train\n'
)


def _csv_files() -> dict[str, Files]:
    return {
        "comma": {"a.csv": _TABLE},
        "semicolon": {"a.csv": b"\xef\xbb\xbf" + _TABLE.replace(b",", b";").replace(b"\n", b"\r\n")},
        "lines": {"a.csv": b'image;label\n"a\nb";"x ""y"""\n\n;\nc;d\n'},
    }


def read_csv(folder: Path) -> object:
    """Read a table."""
    faults = Faults("a table", str(folder))
    rows = read_rows(folder / "a.csv", ("image", "label"), faults)
    faults.stop()
    return rows


def _ppm(name: str) -> bytes:
    buffer = io.BytesIO()
    picture(name, (8, 6)).save(buffer, "PPM")
    return buffer.getvalue()


_COLUMNS: Final = {"labels": "a.csv", "image_column": "image", "label_column": "label"}
_SPEC: Final = table_spec(None, {**_COLUMNS, "group_column": "patient", "fold_column": "split"})
_LISTED: Final = table_spec(None, {**_COLUMNS, "fold_files": {"train": "train.txt", "test": "test.txt"}})


def _sets() -> dict[str, Files]:
    pictures = {f"{name}.ppm": _ppm(name) for name in "abcd"}
    return {
        "columns": {**pictures, "a.csv": _TABLE},
        "lists": {**pictures, "a.csv": _TABLE, "train.txt": b"a.ppm\nd.ppm\n", "test.txt": b"\nb.ppm\r\nc.ppm\n"},
    }


def read_set(folder: Path) -> object:
    """Read all documents of a data set with a table, and one picture."""
    spec = _LISTED if (folder / "train.txt").exists() else _SPEC
    faults = Faults(spec.title, str(folder))
    reader = layout(spec.layout)
    documents = reader.documents(spec, folder, faults)
    faults.stop()
    return documents, reader.digest(spec, folder, documents[0])


_SPECS: Final = dataset_specs()
_CT_RATE: Final = _SPECS["ct_rate"]
_FINDINGS: Final = list(_CT_RATE.options["names"])


def _ct_rate() -> dict[str, Files]:
    rows = [",".join(["VolumeName", *_FINDINGS])]
    facts = ["VolumeName,Manufacturer,RescaleIntercept,RescaleSlope,XYSpacing,ZSpacing"]
    files: Files = {}
    for name in ("valid_1_a_1", "valid_2_a_1"):
        scan = name.rsplit("_", 1)[0]
        files[f"dataset/valid/{scan.rsplit('_', 1)[0]}/{scan}/{name}.nii.gz"] = gzip.compress(nifti(VOXELS), mtime=0)
        rows.append(f"{name}.nii.gz," + ",".join("01"[index % 2] for index in range(len(_FINDINGS))))
        facts.append(f'{name}.nii.gz,SIEMENS,-1024,1,"[0.7, 0.7]",1.5')
    files["dataset/multi_abnormality_labels/valid_predicted_labels.csv"] = "\n".join(rows).encode()
    files["dataset/metadata/validation_metadata.csv"] = "\n".join(facts).encode()
    return {"older": files}


def read_ct_rate(folder: Path) -> object:
    """Read the documents of CT-RATE and the values of one volume."""
    faults = Faults(_CT_RATE.title, str(folder))
    reader = layout(_CT_RATE.layout)
    documents = reader.documents(_CT_RATE, folder, faults)
    faults.stop()
    return documents, reader.image(_CT_RATE, folder, documents[0])


_DECLARATIONS: Final = {
    "folders": b"""name: mine
title: My images
layout: table
modality: skin photograph
classes:
  benign: [harmless, nevus]
  malignant: [melanoma]
positive: malignant
folder: mine
licence: CC0
notes:
  - Two hospitals.
overlaps: {other: the same patients}
options:
  labels: folders
  group_pattern: "(p[0-9]+)"
""",
    "table": b"""name: xrays
title: X-rays
layout: table
modality: chest radiograph
kind: multilabel
classes: {effusion: [], nodule: [], mass:}
options:
  labels: [a.csv, b.csv]
  image_column: image
  label_column: finding
  separator: "|"
  no_finding: none
  names: {"0": nodule}
  fold_column: split
""",
}


def read_declaration(folder: Path) -> object:
    """Read a data set's declaration and its options."""
    spec = read_spec(folder / "a.yaml")
    return spec, table_options(spec) if spec.layout == "table" else None


_TASKS: Final = {
    "named": b"""task: med_cls_mine
class: !function medmllm_plugins.host.tasks.ClassificationTask
output_type: generate_until
metadata:
  version: 1.0
  medmllm: {dataset: demo, protocol: closed_set, folds: [test], paraphrase: 1, on_error: skip}
""",
    "own": b"""task: med_cls_own
class: !function medmllm_plugins.host.tasks.ClassificationTask
metadata:
  medmllm:
    order: varied
    dataset:
      name: own
      title: Own
      layout: table
      modality: image
      classes: {a: [x], b: []}
      options: {labels: folders}
""",
    "group": b"""group: med_cls_all
task: [med_cls_mine, med_cls_own]
aggregate_metric_list:
  - {metric: accuracy, aggregation: mean, weight_by_size: false, filter_list: none}
""",
}


def read_task_file(folder: Path) -> object:
    """Read a task's file, and what it says of its data set."""
    path = folder / "a.yaml"
    name, kind = read_task(path)
    content = read_yaml(path)
    with mock.patch("medmllm_plugins.prompts.task_settings.dataset_specs", return_value=_SPECS):  # read once
        return name, kind, read_settings(name, content.get("metadata")) if kind == "task" else None


_DISTRIBUTION: Final = {
    "mine-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n\nText.\n",
    "mine-1.0.dist-info/entry_points.txt": b"[console_scripts]\nmine = mine:main\n\n"
    b"[medmllm_plugins]\nmine = no_such_module_of_mine:plugin\n",
}


def read_plugins(folder: Path) -> object:
    """Discover plugins where the only package installed is the case's."""
    (metadata,) = folder.iterdir()
    only = [importlib.metadata.PathDistribution(metadata)]
    with mock.patch.object(importlib.metadata, "distributions", return_value=only):
        return sorted(map(repr, discover().describe()["plugins"]))


TARGETS: Final = {
    target.name: target
    for target in (
        Target(
            twice=False,
            name="csv",
            seeds=_csv_files,
            read=read_csv,
            mutators={"*": one_of(mutate_bytes, mutate_lines)},
            longest=8000,
        ),
        Target(
            twice=False,
            name="table_set",
            seeds=_sets,
            read=read_set,
            mutators={"*.csv": one_of(mutate_bytes, mutate_lines), "*.txt": one_of(mutate_bytes, mutate_lines)},
            longest=8000,
        ),
        Target(
            twice=False,
            name="ct_rate",
            seeds=_ct_rate,
            read=read_ct_rate,
            mutators={"*.csv": one_of(mutate_bytes, mutate_lines)},
            longest=8000,
        ),
        Target(
            twice=False,
            name="dataset_yaml",
            seeds=lambda: {name: {"a.yaml": content} for name, content in _DECLARATIONS.items()},
            read=read_declaration,
            mutators={"*": yaml_mutator("multilabel", "ordinal", 2, 3, "folders", ["benign"])},
        ),
        Target(
            twice=False,
            name="task_yaml",
            seeds=lambda: {name: {"a.yaml": content} for name, content in _TASKS.items()},
            read=read_task_file,
            mutators={"*": yaml_mutator("demo", "letter", "open", "all", "varied", 2, 3)},
        ),
        Target(
            twice=False,
            name="entry_points",
            seeds=lambda: {"one": dict(_DISTRIBUTION)},
            read=read_plugins,
            mutators={"*": one_of(mutate_bytes, mutate_lines)},
            refuses=False,
        ),
    )
}
