"""The sides of ``probe_fit`` and ``paper_protocol`` find the same on small problems, and are caught where not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks import paper_protocol, probe_fit
from benchmarks.probe_fit import CLASSES, CONTROLS, SHUFFLES, problem
from benchmarks.record import Settings, Target
from medmllm_plugins.errors import ModelError, OptionError

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_made_up_problem() -> None:
    data = problem(3, 24, (60, 20, 50))
    assert [tuple(part.shape) for part in data.features] == [(3, 60, 24), (3, 20, 24), (3, 50, 24)]
    assert {part.dtype for part in data.features} == {torch.float16}
    sets = 1 + CONTROLS + SHUFFLES
    assert [tuple(part.shape) for part in data.labels] == [(sets, 60), (sets, 20), (sets, 50)]
    for part in data.labels:
        assert set(part.unique().tolist()) == set(range(CLASSES))
        counts = torch.stack([row.bincount(minlength=CLASSES) for row in part])
        assert bool((counts[1 + CONTROLS :] == counts[0]).all())  # shuffled labels keep the classes' shares
    again = problem(3, 24, (60, 20, 50))
    assert all(torch.equal(one, other) for one, other in zip(data.features, again.features, strict=True))


def test_linear_probes_are_as_good_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_fit, "SHUFFLES", 2)
    data = problem(2, 32, (90, 40, 200))
    monkeypatch.setattr(probe_fit, "BLOCK_BYTES", 1)  # a layer at a time
    ours, theirs = probe_fit.at_once(data, CPU), probe_fit.loop(data, (0, 1))
    assert ours.shape == theirs.shape == (2, 1 + CONTROLS + 2)
    assert float((ours - theirs).abs().max()) <= 0.015
    monkeypatch.undo()
    monkeypatch.setattr(probe_fit, "SHUFFLES", 2)
    assert torch.allclose(probe_fit.at_once(data, CPU), ours, atol=0.011)  # two at a time


def test_mlp_probes_are_as_good_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_protocol, "EPOCHS", 4)
    torch.manual_seed(0)
    data = problem(8, 16, (120, 4, 400))
    ours, theirs = paper_protocol.together(data, CPU), paper_protocol.one_by_one(data, (2, 7), CPU)
    assert ours.shape == (8,)
    assert float((ours[[2, 7]] - theirs).abs().max()) < 0.06


@pytest.mark.parametrize(
    ("points", "where", "fits"),
    [(-1.4, (0, 0), True), (-1.6, (0, 0), False), (-1.6, (0, 2), False), (-1.6, (0, -1), True), (5.0, (0, 0), True)],
)
def test_linear_probes_that_are_worse_are_caught(points: float, where: tuple[int, int], fits: bool) -> None:
    theirs = torch.full((2, 1 + CONTROLS + SHUFFLES), 0.8)
    ours = theirs.clone()
    ours[where] += points / 100
    if fits:
        mean, worst = probe_fit.check(ours, theirs)
        assert mean == pytest.approx(points / theirs.numel(), abs=1e-4)
        assert worst == pytest.approx(min(points, 0) if where[1] >= 0 else 0, abs=1e-4)
        return
    with pytest.raises(ModelError, match=r"-1\.60 at worst"):
        probe_fit.check(ours, theirs)


@pytest.mark.parametrize("shift", [0.006, -0.006, float("nan")])
def test_linear_probes_that_differ_on_average_are_caught(shift: float) -> None:
    theirs = torch.full((2, 1 + CONTROLS + SHUFFLES), 0.8)
    with pytest.raises(ModelError, match="on average"):
        probe_fit.check(theirs + shift, theirs)


@pytest.mark.parametrize("shift", [0.016, -0.016, float("nan")])
def test_mlp_probes_that_differ_are_caught(shift: float) -> None:
    theirs = torch.full((4,), 0.8)
    assert paper_protocol.check(theirs + 0.014, theirs) == pytest.approx(1.4, abs=1e-3)
    with pytest.raises(ModelError, match="mean test accuracies"):
        paper_protocol.check(theirs + shift, theirs)


def test_the_record_of_linear_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LAYERS": 4, "WIDTH": 16, "FOLDS": (60, 30, 400), "COMPARED": (1, 3), "SHUFFLES": 2}.items():
        monkeypatch.setattr(probe_fit, name, value)
    record = probe_fit.run(Settings("probe_fit", "cpu", None, 1))
    assert [name for name, _ in record.sides] == ["loop", "at_once"]
    assert record.target == Target("at least", 20.0)
    assert record.details["fits"] == 4 * (7 * (1 + CONTROLS) + 2)
    assert abs(record.details["points_better"]) <= 0.5
    assert record.details["points_at_worst"] >= -1.5


def test_the_record_of_mlp_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(paper_protocol.SIZES, "tiny", paper_protocol.Size(4, 16, (0, 3)))
    monkeypatch.setattr(paper_protocol, "FOLDS", (40, 4, 100))
    monkeypatch.setattr(paper_protocol, "EPOCHS", 1)
    monkeypatch.setattr(paper_protocol, "POINTS", 100)
    record = paper_protocol.run(Settings("paper_protocol", "cpu", "tiny", 2))
    assert [name for name, _ in record.sides] == ["one_by_one", "together"]
    assert record.target == Target("at least", 20.0)
    assert len(record.comparison.numerator.seconds) == 2
    assert (record.details["layers"], record.details["layers_of_the_loop"]) == (4, 2)


def test_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for module, size in ((probe_fit, None), (paper_protocol, "tiny")):
        with pytest.raises(OptionError, match="finds no CUDA device here"):
            module.run(Settings("any", "cuda", size, 1))
