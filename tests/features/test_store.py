"""The feature store: what is written is what is read, whatever happens in between."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medmllm_plugins.errors import DataError
from medmllm_plugins.features import store_writer
from medmllm_plugins.features.store import halves, seal, stored_ids, write_header
from medmllm_plugins.features.store_writer import FeatureBatch, Writer, stacked
from medmllm_plugins.results.feature_store import FeatureStore, Header, StoredLayer, read_index

HEADER = Header(
    task="med_probe_x",
    dataset="x",
    labels=("a", "b"),
    dataset_fingerprint="d",
    model="m",
    model_fingerprint="f",
    layers=(
        StoredLayer("vision.00", "vision", ("mean",), (4,)),
        StoredLayer("llm.norm", "llm", ("mean", "last"), (6, 6)),
    ),
    lens=("llm.norm",),
)


def record(number: int) -> dict[str, Any]:
    return {
        "id": f"doc-{number:03d}",
        "document": f"doc-{number:03d}",
        "group": f"g{number // 2}",
        "fold": ("train", "validation", "test")[number % 3],
        "label": "ab"[number % 2],
        "answer": "a\u2028 <b>",
        "scores": [-1.5, -0.5] if number % 3 else None,
        "blank": None,
        "label_tokens": [1, 2],
    }


def values(number: int) -> dict[tuple[str, str], torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {
        ("vision.00", "mean"): torch.randn(1, 4, generator=generator),
        ("llm.norm", "mean"): torch.randn(1, 6, generator=generator),
        ("llm.norm", "last"): torch.randn(1, 6, generator=generator) * 1e5,
    }


def kept(numbers: list[int]) -> FeatureBatch:
    each = [values(number) for number in numbers]
    by_name = {key: torch.cat([item[key] for item in each]) for key in each[0]}
    lens = np.array([[[number, -number]] for number in numbers], dtype=np.float32)
    return FeatureBatch([record(number) for number in numbers], *stacked(by_name)[:2], {"lens": lens})


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(batches: list[list[int]], rank: int = 0) -> Path:
        write_header(tmp_path, HEADER)
        writer = Writer(tmp_path, rank)
        for numbers in batches:
            writer.add(kept(numbers))
        writer.close()
        seal(tmp_path)
        return tmp_path

    return written


def test_what_is_written_is_read(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "SHARD_ROWS", 5)
    store = FeatureStore(write([[7, 3], [0, 1, 2], [4, 5], [6]]))
    assert store.header == HEADER
    assert list(store.index["id"]) == [f"doc-{number:03d}" for number in range(8)]
    assert len(set(store.index["shard"])) == 2
    store.check()
    for (layer, pooling), expected in values(3).items():
        result = store.features(layer, pooling)
        np.testing.assert_allclose(result[3], expected[0].numpy(), rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        rows = np.array([6, 1])
        np.testing.assert_array_equal(store.features(layer, pooling, rows), result[rows])
    lens = store.lens(np.array([5]))
    assert lens is not None and lens.tolist() == [[[5.0, -5.0]]]
    row = store.index.iloc[1]
    assert (row["answer"], row["label"], list(row["scores"])) == ("a\u2028 <b>", "b", [-1.5, -0.5])
    part = store.only(np.array([6, 2]))
    assert list(part.index["id"]) == ["doc-002", "doc-006"]
    np.testing.assert_array_equal(
        part.features("llm.norm", "mean"), store.features("llm.norm", "mean", np.array([2, 6]))
    )


def test_ranks_and_restarts_add_up_and_a_document_counts_once(write: Callable[..., Path]) -> None:
    write([[0, 1]])
    write([[2, 3]], rank=1)
    folder = write([[1, 4]])
    store = FeatureStore(folder)
    assert list(store.index["id"]) == [f"doc-{number:03d}" for number in range(5)]
    assert set(store.index["rank"]) == {0, 1}
    np.testing.assert_allclose(
        store.features("vision.00", "mean")[4], values(4)["vision.00", "mean"][0], rtol=2e-3, atol=1e-3
    )


def test_a_shard_without_its_index_does_not_count(write: Callable[..., Path]) -> None:
    folder = write([[0, 1]])
    (folder / "rank0-00001.safetensors").write_bytes(b"half of a shard")
    assert stored_ids(folder) == {"doc-000", "doc-001"}
    again = FeatureStore(write([[2]]))
    assert stored_ids(folder) == {"doc-000", "doc-001", "doc-002"}
    again.check()


@pytest.mark.parametrize("how", ["cut", "gone", "changed"])
def test_a_damaged_shard_is_an_error(write: Callable[..., Path], how: str) -> None:
    folder = write([[0, 1]])
    (shard,) = folder.glob("*.safetensors")
    if how == "gone":
        shard.unlink()
    elif how == "cut":
        shard.write_bytes(shard.read_bytes()[:200])
    else:
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(bytes(content))
    store = FeatureStore(folder)
    with pytest.raises(DataError, match="copy the folder again"):
        store.check()
    if how != "changed":
        with pytest.raises(DataError, match="copy the folder again"):
            store.features("vision.00", "mean")


@pytest.mark.parametrize("how", ["gone", "changed", "added", "no seal"])
def test_an_index_that_is_not_the_sealed_one_is_an_error(write: Callable[..., Path], how: str) -> None:
    folder = write([[0, 1], [2]])
    write([[3]])
    (first, *_) = sorted((folder / "index").iterdir())
    if how == "gone":
        first.unlink()
    elif how == "changed":
        table = pd.read_parquet(first)
        table["label"] = "b"
        table.to_parquet(first)
    elif how == "added":
        (folder / "index" / "rank7-00000.parquet").write_bytes(first.read_bytes())
    else:
        (folder / "seal.json").unlink()
    with pytest.raises(DataError, match=r"opy the folder again|damaged"):
        FeatureStore(folder).check()


def test_nan_is_named_with_layer_and_document(tmp_path: Path) -> None:
    write_header(tmp_path, HEADER)
    bad = kept([0, 1, 2])
    names = [name for group in bad.names for name in group]
    stacks = [stack.clone() for stack in bad.stacks]
    for group, stack in zip(bad.names, stacks, strict=True):
        if "llm.norm/last" in group:
            stack[list(group).index("llm.norm/last"), 1, 0] = float("nan")
    assert "llm.norm/last" in names
    writer = Writer(tmp_path, 0)
    writer.add(FeatureBatch(bad.records, bad.names, stacks, bad.extra))
    writer.close()
    store = FeatureStore(tmp_path)
    assert np.isfinite(store.features("llm.norm", "mean")).all()
    with pytest.raises(DataError, match=r"at llm\.norm \(last\) in 1 documents, such as 'doc-001'"):
        store.features("llm.norm", "last")


def test_no_store_and_an_empty_one_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="or run the med_probe task"):
        FeatureStore(tmp_path)
    write_header(tmp_path, HEADER)
    assert read_index(tmp_path).empty
    with pytest.raises(DataError, match="got none; run the task again"):
        FeatureStore(tmp_path)
    (tmp_path / "store.json").write_text('{"medmllm_features": 99}')
    with pytest.raises(
        DataError, match=r"store\.json: expected version 1 of the format 'medmllm_features', got version 99"
    ):
        FeatureStore(tmp_path)


def test_a_layer_that_is_not_there_lists_those_that_are(write: Callable[..., Path]) -> None:
    store = FeatureStore(write([[0]]))
    with pytest.raises(DataError, match=r"\['vision.00', 'llm.norm'\], got 'vision.99'"):
        store.layer("vision.99")
    with pytest.raises(DataError, match="connector/mean"):
        store.features("connector", "mean")


def test_the_index_is_an_ordinary_parquet_table(write: Callable[..., Path]) -> None:
    folder = write([[0, 1], [2]])
    assert len(pd.read_parquet(folder / "index")) == 3


def test_a_full_disk_is_told_to_the_one_who_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_writer, "save_file", full)
    write_header(tmp_path, HEADER)
    writer = Writer(tmp_path, 0)
    writer.add(kept([0]))
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    with pytest.raises(OSError, match="No space left"):
        writer.add(kept([1]))
    assert writer.durable() == []


def test_the_model_waits_while_too_much_is_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    take = Writer._take
    monkeypatch.setattr(Writer, "_take", lambda self, writer: (held.wait(10), take(self, writer))[1])
    write_header(tmp_path, HEADER)
    writer = Writer(tmp_path, 0)
    done = threading.Event()

    def feed() -> None:
        for number in range(store_writer.WAITING + 2):
            writer.add(kept([number]))
        done.set()

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert not done.wait(0.2)
    held.set()
    feeder.join(10)
    assert done.is_set()
    writer.close()
    assert len(writer.durable()) == store_writer.WAITING + 2


@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=2, max_dims=2),
        elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
    )
)
def test_halves_keep_a_thousandth_of_the_largest(whole: np.ndarray[Any, Any]) -> None:
    small, exponent = halves(whole)
    assert np.isfinite(small).all()
    back = np.ldexp(small.astype(np.float64), exponent)
    largest = float(np.abs(whole).max())
    np.testing.assert_allclose(back, whole, rtol=1e-3, atol=largest * 1e-7 + 1e-7)


def test_halves_leave_what_fits_alone() -> None:
    whole = np.array([[1.0, -2.5, 6e4]], dtype=np.float32)
    small, exponent = halves(whole)
    assert exponent == 0 and small.dtype == np.float16 and small[0, 1] == -2.5
    assert np.isnan(halves(np.array([[np.nan, 1e9]], dtype=np.float32))[0][0, 0])
