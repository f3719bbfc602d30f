"""The two imports differ by our entry point and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import startup
from benchmarks.record import Settings
from benchmarks.startup import Import, import_once
from medmllm_plugins.errors import PluginError


@pytest.fixture(scope="module")
def imports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Import, Import]:
    cache = tmp_path_factory.mktemp("byte_code")
    return import_once(cache, left_out=False), import_once(cache, left_out=True)


def test_our_entry_point_is_in_force_on_one_side_only(imports: tuple[Import, Import]) -> None:
    with_ours, without = imports
    assert with_ours.ours
    assert not without.ours
    assert not any(name.split(".")[0] == "medmllm_plugins" for name in without.modules)
    assert with_ours.models > without.models
    assert "lmms_eval.models" in with_ours.modules & without.modules
    assert "torch" not in with_ours.modules
    assert min(with_ours.seconds, without.seconds) > 0


def test_byte_code_is_kept_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    import_once(tmp_path, left_out=False)
    assert list(tmp_path.rglob("entry_point.*.pyc"))


def test_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    base = frozenset({"lmms_eval.models"})
    ours = base | {"medmllm_plugins.host.entry_point", "torch"}
    answers = {
        False: iter([Import(9.0, ours, 12), Import(1.2, ours, 12), Import(1.0, ours, 12), Import(1.1, ours, 12)]),
        True: iter([Import(9.0, base, 11), Import(1.0, base, 11), Import(0.9, base, 11), Import(1.0, base, 11)]),
    }
    monkeypatch.setattr(startup, "import_once", lambda cache, *, left_out: next(answers[left_out]))
    record = startup.run(Settings("startup", "cpu", None, 3))
    # The first import of each side, 9 s, is the warm-up.
    assert record.comparison.ratio == pytest.approx(1.1)
    assert record.met is True
    assert record.details == {
        "difference_s": pytest.approx(0.1),
        "difference_goal_s": 0.15,
        "difference_met": True,
        "torch_imported_by_us": True,
        "modules_added": 2,
        "models_added": 1,
    }


def test_an_entry_point_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Nothing of that name is filtered out, so that ours stays in force.
    monkeypatch.setattr(startup, "_DISTRIBUTION", "no-such-distribution")
    with pytest.raises(PluginError, match="to be left out, but it was not"):
        import_once(tmp_path, left_out=True)
    with pytest.raises(PluginError, match=r"to be installed .* but found none: run `.* -m pip install"):
        startup.run(Settings("startup", "cpu", None, 1))


def test_a_failing_import_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lmms_eval").mkdir()
    (tmp_path / "lmms_eval" / "__init__.py").write_text("raise RuntimeError('broken on purpose')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(PluginError, match=r"to succeed in .*broken on purpose"):
        import_once(tmp_path / "cache", left_out=False)
