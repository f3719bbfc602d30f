"""Loading: what is missing is said with what to do, and the fingerprint follows the content."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, ImageFile
from support.image_files import cut, picture, write_picture

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import FOLDS, Document
from medmllm_plugins.data.layouts import layout_registry
from medmllm_plugins.data.layouts.layout_registry import Layout
from medmllm_plugins.data.loading import dataset as dataset_module
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.errors import DataError

BUSI = dataset_specs()["busi"]
DRAWN = DatasetSpec(name="drawn", title="Drawn", layout="drawn", modality="drawing", classes={"a": (), "b": ()})


class Drawn(Layout):
    """A generated set, and what may be wrong with one."""

    rows: tuple[tuple[str, str, str, str], ...] = (
        ("1", "a", "g1", "train"),
        ("2", "b", "g2", "validation"),
        ("3", "b", "g3", "test"),
    )
    key = "drawn"

    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        assert folder == Path()
        return [Document(id, id, label, group, fold) for id, label, group, fold in self.rows]  # type: ignore[arg-type]

    def image(self, spec: DatasetSpec, folder: Path, document: Document) -> Image.Image:
        return picture(f"{self.key}{document.image}").convert("RGB")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> type[Drawn]:
    made = type("Made", (Drawn,), {})
    monkeypatch.setattr(dataset_module, "layout", lambda name: made())
    return made


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for label in BUSI.labels:
        for number in range(1, 6):
            write_picture(tmp_path / "data/busi/Dataset_BUSI_with_GT" / label / f"{label} ({number}).png")
    return tmp_path / "data"


def test_unset_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDMLLM_DATA", raising=False)
    with pytest.raises(DataError) as caught:
        load_dataset(BUSI)
    assert all(part in str(caught.value) for part in ("MEDMLLM_DATA", "busi/", BUSI.download))


@pytest.mark.parametrize("exists", [True, False])
def test_missing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
    monkeypatch.chdir(tmp_path)
    if exists:
        (tmp_path / "data").mkdir()
    monkeypatch.setenv("MEDMLLM_DATA", "data")
    with pytest.raises(DataError) as caught:
        load_dataset(BUSI)
    assert all(part in str(caught.value) for part in ("MEDMLLM_DATA", str(tmp_path / "data/busi"), BUSI.download))
    assert ("not even" in str(caught.value)) is not exists


def test_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "busi").touch()
    with pytest.raises(DataError, match="a file of that name"):
        load_dataset(BUSI, root=tmp_path)


def test_root_and_variable_mean_the_same(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMLLM_DATA", str(tree))
    assert load_dataset(BUSI) == load_dataset(BUSI, root=tree)


def test_fingerprint_follows_content_and_not_place(tree: Path, tmp_path: Path) -> None:
    first = load_dataset(BUSI, root=tree)
    shutil.copytree(tree, tmp_path / "copy")
    assert load_dataset(BUSI, root=tmp_path / "copy").fingerprint == first.fingerprint
    changed = tmp_path / "copy/busi/Dataset_BUSI_with_GT/benign/benign (2).png"
    image = Image.open(changed).convert("L")
    image.putpixel((0, 0), (image.getpixel((0, 0)) + 1) % 256)  # type: ignore[operator]
    image.save(changed)
    assert load_dataset(BUSI, root=tmp_path / "copy").fingerprint != first.fingerprint


def test_truncation_is_found_under_the_host_flag(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    victim = tree / "busi/Dataset_BUSI_with_GT/benign/benign (2).png"
    cut(victim, 0.7)
    with pytest.raises(DataError) as caught:
        load_dataset(BUSI, root=tree)
    assert str(victim) in str(caught.value)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_image_that_goes_bad_after_loading(tree: Path) -> None:
    data = load_dataset(BUSI, root=tree)
    (data.folder / data.documents[0].image).unlink()
    with pytest.raises(DataError, match="benign"):
        data.image(data.documents[0])


def test_documents_select_and_counts(tree: Path) -> None:
    data = load_dataset(BUSI, root=tree)
    assert [document.id for document in data.documents] == sorted(document.id for document in data.documents)
    assert data.select(FOLDS) == data.documents
    assert {document.fold for document in data.select(["test", "train"])} == {"test", "train"}
    table = Counter((document.fold, document.label) for document in data.documents)
    assert data.counts() == {fold: {label: table[fold, label] for label in BUSI.labels} for fold in FOLDS}
    with pytest.raises(ValueError, match="dev"):
        data.select(["dev"])  # type: ignore[list-item]
    assert data.image(data.documents[0]).mode == "RGB"


def test_generated_set(drawn: type[Drawn], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDMLLM_DATA", raising=False)
    data = load_dataset(DRAWN)
    assert data.counts() == {"train": {"a": 1, "b": 0}, "validation": {"a": 0, "b": 1}, "test": {"a": 0, "b": 1}}
    assert data.fingerprint == load_dataset(DRAWN).fingerprint
    drawn.key = "drawn otherwise"
    assert data.fingerprint != load_dataset(DRAWN).fingerprint


@pytest.mark.parametrize("column", range(4))
def test_fingerprint_follows_every_column(drawn: type[Drawn], column: int) -> None:
    before = load_dataset(DRAWN).fingerprint
    row = list(Drawn.rows[1])
    row[column] = ["2b", "a", "g9", "test"][column]
    drawn.rows = (Drawn.rows[0], tuple(row), Drawn.rows[2])  # type: ignore[assignment]
    assert load_dataset(DRAWN).fingerprint != before


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("4", "c", "g4", "test"), "expected a label among ['a', 'b'], got 'c'"),
        (("4", "a", "g4", "val"), "got 'val'"),
        (("3", "a", "g4", "test"), "2 files with one id"),
    ],
)
def test_wrong_documents_of_any_layout(drawn: type[Drawn], row: tuple[str, str, str, str], reason: str) -> None:
    drawn.rows = (*Drawn.rows, row)
    with pytest.raises(DataError) as caught:
        load_dataset(DRAWN)
    assert reason in str(caught.value)


def test_class_without_documents(drawn: type[Drawn]) -> None:
    drawn.rows = Drawn.rows[1:]
    with pytest.raises(DataError, match="class 'a': expected images, got none"):
        load_dataset(DRAWN)


def test_unknown_layout() -> None:
    with pytest.raises(DataError, match=r"busi.*covid19_ct.*got 'drawn'"):
        load_dataset(DRAWN)


@pytest.mark.parametrize("name", sorted({spec.layout for spec in dataset_specs().values()}))
def test_layouts_of_declared_sets_exist(name: str) -> None:
    reader = layout_registry.layout(name)
    assert isinstance(reader, Layout)


def test_dataset_made_by_hand_reads_images(tree: Path) -> None:
    loaded = load_dataset(BUSI, root=tree)
    made = Dataset(BUSI, loaded.documents, loaded.fingerprint, loaded.folder, loaded.reader)
    assert made == loaded
    assert made.image(made.documents[0]).tobytes() == loaded.image(loaded.documents[0]).tobytes()
