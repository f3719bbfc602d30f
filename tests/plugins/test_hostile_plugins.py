"""Plugins that raise what is no ``Exception``, never end, or damage their metadata: each costs itself alone."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medmllm_plugins.cli.app import main
from medmllm_plugins.plugins import builtin, guard
from medmllm_plugins.plugins.entry_points import damaged_entry_points
from medmllm_plugins.plugins.guard import PluginRaised, TookTooLong, bounded, run_plugin_code
from medmllm_plugins.plugins.hook_results import MOST_ITEMS
from medmllm_plugins.plugins.manager import Manager, discover, reset
from medmllm_plugins.plugins.plugin_records import Failure

BUILTIN = [spec.name for spec in builtin.medmllm_models()]
HEAD = """
from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.specs import AttributionSpec, ModelSpec, ProbeSpec, TaskFolder

def model(name):
    return ModelSpec(name=name, summary="A model.", loader="nowhere.module:load")

"""
GOOD = HEAD + "@hookimpl\ndef medmllm_models():\n    return [model('good')]\n"


class Packages:
    """A folder on ``sys.path`` into which distributions are put as an installer would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, name: str, source: str, entry_points: str | bytes | None = None) -> str:
        module = f"hostile_{name}"
        (self.path / f"{module}.py").write_text(source, encoding="utf-8")
        self.metadata(name, f"[medmllm_plugins]\n{name} = {module}\n" if entry_points is None else entry_points)
        return module

    def metadata(self, name: str, entry_points: str | bytes) -> None:
        info = self.path / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n", encoding="utf-8")
        data = entry_points if isinstance(entry_points, bytes) else entry_points.encode()
        (info / "entry_points.txt").write_bytes(data)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Packages]:
    for variable in ("MEDMLLM_STRICT", "MEDMLLM_DISABLE"):
        monkeypatch.delenv(variable, raising=False)
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(str(path))
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    made = Packages(path)
    made.add("zzz", GOOD)
    yield made
    assert {number: signal.getsignal(number) for number in signals} == signals
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    for name in [name for name in sys.modules if name.startswith("hostile_")]:
        del sys.modules[name]
    reset()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "PATIENCE", 0.2)
    monkeypatch.setattr(guard, "NOTICE", 0.1)
    monkeypatch.setattr(guard, "SLOW", 0.05)
    monkeypatch.setattr(guard, "TICK", 0.05)


def only(manager: Manager) -> Failure:
    """The one failure, beside which all that is sound is there."""
    assert list(manager.models()) == [*BUILTIN, "good"]
    assert "med_cls" in manager.tasks()
    (failure,) = manager.failures
    assert len(failure.message) <= 1000 and failure.message.isprintable()
    assert (failure.plugin, failure.distribution) == ("bad", "bad")
    json.dumps(manager.describe())
    return failure


RAISED = {
    "KeyboardInterrupt": "raise KeyboardInterrupt('of its own')",
    "SystemExit": "import sys; sys.exit()",
    "GeneratorExit": "raise GeneratorExit",
    "CancelledError": "import asyncio; raise asyncio.CancelledError",
    "Skipped": "import pytest; pytest.skip('not here', allow_module_level=True)",
    "Own": "class Own(BaseException):\n    pass\nraise Own",
    "Unprintable": (
        "class Unprintable(BaseException):\n    def __str__(self):\n        raise KeyboardInterrupt\nraise Unprintable"
    ),
    "ExceptionGroup": "raise BaseExceptionGroup('many', [KeyboardInterrupt(), ValueError()])",
    "Huge": "class Huge(Exception):\n    pass\nraise Huge('\\x1b[2J' + 'x' * 10**6)",
}


def indented(source: str) -> str:
    return "".join(f"    {line}\n" for line in source.splitlines())


@pytest.mark.parametrize("name", RAISED)
def test_whatever_an_import_raises_costs_that_plugin_alone(packages: Packages, name: str) -> None:
    packages.add("bad", RAISED[name] + "\n")
    failure = only(discover())
    assert failure.stage == "import" and name.removesuffix("Huge") in failure.message
    assert "\x1b" not in failure.message and len(failure.message) < 500


@pytest.mark.parametrize("name", RAISED)
@pytest.mark.parametrize("hook", ["medmllm_models", "medmllm_tasks", "medmllm_probes", "medmllm_interventions"])
def test_whatever_a_hook_raises_costs_that_hook_alone(packages: Packages, name: str, hook: str) -> None:
    packages.add("bad", f"{HEAD}@hookimpl\ndef {hook}():\n{indented(RAISED[name])}")
    failure = only(discover())
    assert (failure.stage, failure.hook) == ("hook", hook)


def test_a_generator_that_raises_midway_brings_nothing(packages: Packages) -> None:
    packages.add(
        "bad", HEAD + "@hookimpl\ndef medmllm_models():\n    yield model('half')\n    raise KeyboardInterrupt\n"
    )
    assert "KeyboardInterrupt" in only(discover()).message


FOREVER = {
    "yields": "import itertools\n    for number in itertools.count():\n        yield model(f'm{number}')",
    "yields the same": "while True:\n        yield None",
    "yields on when closed": (
        "while True:\n        try:\n            yield model('m')\n        except GeneratorExit:\n            pass"
    ),
    "list": f"return [model(f'm{{n}}') for n in range({MOST_ITEMS + 1})]",
    "iterator": "return iter(lambda: model('m'), None)",
}


@pytest.mark.parametrize("body", FOREVER.values(), ids=FOREVER)
def test_a_hook_that_yields_for_ever_is_cut_off(packages: Packages, body: str) -> None:
    packages.add("bad", f"{HEAD}@hookimpl\ndef medmllm_models():\n    {body}\n")
    failure = only(discover())
    assert failure.hook == "medmllm_models"
    assert f"at most {MOST_ITEMS} items" in failure.message or "RuntimeError" in failure.message


def test_many_faulty_items_are_counted_and_not_listed(packages: Packages) -> None:
    packages.add("bad", HEAD + "@hookimpl\ndef medmllm_models():\n    return [None] * 900\n")
    failures = discover().failures
    assert len(failures) == 21 and "880 more items" in failures[-1].message


ENDLESS = {
    "loop": "while True:\n        pass",
    "sleep": "import time\n    time.sleep(1000)",
    "lock": "import threading\n    lock = threading.Lock()\n    lock.acquire() and lock.acquire()",
    "swallows": (
        "import time\n    while True:\n        try:\n            time.sleep(9)\n"
        "        except Exception:\n            pass"
    ),
    "iterates": "import time\n    yield model('m')\n    time.sleep(1000)",
    "thread": (
        "import threading, time\n    thread = threading.Thread(target=time.sleep, args=(9,), daemon=True)\n"
        "    thread.start()\n    thread.join()"
    ),
}


@pytest.mark.parametrize("body", ENDLESS.values(), ids=ENDLESS)
def test_a_hook_that_never_returns_is_interrupted(
    packages: Packages, body: str, impatient: None, capsys: pytest.CaptureFixture[str]
) -> None:
    packages.add("bad", f"{HEAD}@hookimpl\ndef medmllm_models():\n    {body}\n")
    began = time.monotonic()
    failure = only(discover())
    assert time.monotonic() - began < 5
    assert "took longer than" in failure.message and failure.stage == "hook"
    assert "plugin bad (bad 1.2): medmllm_models has taken" in capsys.readouterr().err


def test_an_import_that_never_ends_is_interrupted(packages: Packages, impatient: None) -> None:
    packages.add("bad", "import time\ntime.sleep(1000)\n")
    assert "took longer than" in only(discover()).message
    assert "hostile_bad" not in sys.modules


def test_the_import_of_another_package_is_never_interrupted(packages: Packages, impatient: None) -> None:
    """Half imported, a library such as torch could not be imported again in this process."""
    (packages.path / "hostile_library.py").write_text("import time\ntime.sleep(0.6)\nwhole = True\n")
    module = packages.add("bad", "import hostile_library\n" + GOOD.replace("'good'", "'slow'"))
    manager = discover()
    assert "slow" in manager.models() and manager.failures == []
    assert sys.modules["hostile_library"].whole and module in sys.modules
    (notice,) = manager.notices
    assert notice.startswith("plugin bad (bad 1.2): import took 0.6 s")


def test_a_slow_plugin_is_named(
    packages: Packages, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guard, "SLOW", 0.05)
    source = GOOD.replace("'good'", "'slow'").replace("    return", "    import time; time.sleep(0.1)\n    return")
    packages.add("bad", source)
    reset()
    assert main(["plugins"]) == 0
    assert "SLOW plugin bad (bad 1.2): medmllm_models took 0." in capsys.readouterr().out


@pytest.mark.parametrize("swallows", [False, True])
def test_a_real_ctrl_c_passes(packages: Packages, swallows: bool) -> None:
    code = "import signal\nsignal.raise_signal(signal.SIGINT)\n"
    packages.add("bad", f"try:\n{indented(code)}except BaseException:\n    pass\n" if swallows else code)
    # A process that a shell started in the background ignores Ctrl-C, and so does all it starts.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            discover()
    finally:
        signal.signal(signal.SIGINT, previous)


def test_what_a_handler_of_sigterm_raises_passes(packages: Packages) -> None:
    def handler(*_: Any) -> None:
        raise SystemExit(143)

    packages.add("bad", "import signal\nsignal.raise_signal(signal.SIGTERM)\n")
    previous = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(SystemExit) as stop:
            discover()
        assert stop.value.code == 143
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_where_ctrl_c_is_ignored_an_interrupt_is_the_plugins(packages: Packages) -> None:
    """As under nohup."""
    packages.add("bad", "raise KeyboardInterrupt\n")
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert "KeyboardInterrupt" in only(discover()).message
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_timer_of_someone_else_is_left_alone() -> None:
    fired: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        assert run_plugin_code(lambda: time.sleep(0.1) or 5, "x") == 5
        assert fired == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_outside_the_main_thread_an_interrupt_is_the_plugins() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def raising() -> None:
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as pool, pytest.raises(PluginRaised, match="KeyboardInterrupt"):
        pool.submit(run_plugin_code, raising, "x").result()


def test_nested_plugin_code_has_one_clock(impatient: None) -> None:
    def inner() -> None:
        time.sleep(1000)

    with pytest.raises(PluginRaised) as caught:
        run_plugin_code(lambda: run_plugin_code(inner, "inner"), "outer")
    assert isinstance(caught.value.error, TookTooLong | PluginRaised)


def test_a_spec_whose_attributes_raise(packages: Packages) -> None:
    source = (
        "class Bad(ModelSpec):\n    def __getattribute__(self, name):\n        raise KeyboardInterrupt(name)\n"
        "bad = object.__new__(Bad)\n"
        "@hookimpl\ndef medmllm_models():\n    return [bad]\n"
    )
    packages.add("bad", HEAD + source)
    assert "KeyboardInterrupt" in only(discover()).message


def test_a_spec_that_skipped_its_checks(packages: Packages) -> None:
    source = "@hookimpl\ndef medmllm_models():\n    return [object.__new__(ModelSpec)]\n"
    packages.add("bad", HEAD + source)
    assert "item 0 of 'medmllm_models' to be ModelSpec that can be read" in only(discover()).message


def test_a_name_of_a_class_of_the_plugins_own(packages: Packages) -> None:
    source = (
        "class Name(str):\n    def __hash__(self):\n        raise KeyboardInterrupt\n"
        "    def __eq__(self, other):\n        raise SystemExit\n"
        "@hookimpl\ndef medmllm_models():\n    return [model(Name('named'))]\n"
    )
    packages.add("bad", HEAD + source)
    manager = discover()
    assert list(manager.models()) == [*BUILTIN, "named", "good"] and manager.failures == []


@pytest.mark.parametrize("given", ["Evil()", "[Evil()]", "{Evil(): 1}.keys()"])
def test_a_result_whose_repr_raises(packages: Packages, given: str) -> None:
    evil = "class Evil:\n    def __repr__(self):\n        raise KeyboardInterrupt\n"
    packages.add("bad", f"{HEAD}{evil}@hookimpl\ndef medmllm_models():\n    return {given}\n")
    assert "a Evil" in only(discover()).message


@pytest.mark.parametrize("value", ["7", "None", "'text'", "{'a': 1}", "b'x' * 10", "print", "model('x')"])
def test_a_result_of_a_wrong_type(packages: Packages, value: str) -> None:
    packages.add("bad", f"{HEAD}@hookimpl\ndef medmllm_probes():\n    return {value}\n")
    manager = discover()
    assert manager.failures and {failure.plugin for failure in manager.failures} == {"bad"}
    assert list(manager.models()) == [*BUILTIN, "good"]


def test_a_huge_name_or_summary_is_refused(packages: Packages) -> None:
    source = "@hookimpl\ndef medmllm_models():\n    return [model('a' * 10**6)]\n"
    packages.add("bad", HEAD + source)
    assert len(only(discover()).message) < 500


def test_a_plugin_that_equals_everything_keeps_no_other_out(packages: Packages) -> None:
    source = "class Plugin:\n    def __eq__(self, other):\n        return True\nplugin = Plugin()\n"
    packages.add("bad", source, "[medmllm_plugins]\nbad = hostile_bad:plugin\n")
    assert "equals" in only(discover()).message


@pytest.mark.parametrize("magic", ["__eq__", "__dir__"])
def test_a_plugin_whose_own_methods_raise(packages: Packages, magic: str) -> None:
    source = f"class Plugin:\n    def {magic}(self, *args):\n        raise KeyboardInterrupt\nplugin = Plugin()\n"
    packages.add("bad", source, "[medmllm_plugins]\nbad = hostile_bad:plugin\n")
    assert only(discover()).stage == "register"


def test_a_task_folder_whose_package_raises_when_looked_for(packages: Packages) -> None:
    (packages.path / "hostile_package").mkdir()
    (packages.path / "hostile_package" / "__init__.py").write_text("raise KeyboardInterrupt\n")
    packages.add(
        "bad", HEAD + "@hookimpl\ndef medmllm_tasks():\n    return [TaskFolder(path='hostile_package.sub:tasks')]\n"
    )
    assert "KeyboardInterrupt" in only(discover()).message


def test_a_task_folder_without_end(packages: Packages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from medmllm_plugins.plugins import task_files

    for number in range(12):
        (tmp_path / "wide" / str(number)).mkdir(parents=True)
    packages.add(
        "bad", HEAD + f"@hookimpl\ndef medmllm_tasks():\n    return [TaskFolder(path={str(tmp_path / 'wide')!r})]\n"
    )
    monkeypatch.setattr(task_files, "MOST_FOLDERS", 10)
    # Our own folder of tasks is small.
    assert "more than 10 folders" in only(discover()).message


# -- metadata ----------------------------------------------------------------------------------------------------------

METADATA = {
    "no equals sign": "[medmllm_plugins]\nbad\n",
    "bytes": b"[medmllm_plugins]\nbad = \xff\xfe\n",
    "no value": "[medmllm_plugins]\nbad =\n",
    "value with blanks": "[medmllm_plugins]\nbad = not a module !!\n",
    "nul": "[medmllm_plugins]\nbad = hostile\x00bad\n",
    "huge value": "[medmllm_plugins]\nbad = " + "x" * 100_000 + "\n",
    "relative": "[medmllm_plugins]\nbad = .hostile\n",
}


@pytest.mark.parametrize("name", METADATA)
def test_damaged_metadata_hide_no_other_plugin(packages: Packages, name: str) -> None:
    packages.metadata("bad", METADATA[name])
    only(discover())


@pytest.mark.parametrize("text", ["bad = medmllm_plugins\n", "medmllm_plugins", "[other]\na = medmllm_plugins:x\n"])
def test_metadata_that_name_us_elsewhere_are_no_plugins(packages: Packages, text: str) -> None:
    packages.metadata("bad", text)
    manager = discover()
    assert "good" in manager.models() and "bad" not in {info.name for info in manager.plugins}


@pytest.mark.parametrize("magic", ["__getattr__", "__hash__", "__repr__", "__str__", "__bool__"])
def test_a_plugin_whose_own_methods_are_not_needed(packages: Packages, magic: str) -> None:
    source = f"class Plugin:\n    def {magic}(self, *args):\n        raise KeyboardInterrupt\nplugin = Plugin()\n"
    packages.add("bad", source, "[medmllm_plugins]\nbad = hostile_bad:plugin\n")
    manager = discover()
    assert manager.failures == [] and list(manager.models()) == [*BUILTIN, "good"]


@pytest.mark.parametrize("name", ["", " ", "x" * 5000, "with blank", "\x1b[2J", "a/b"])
def test_names_that_are_none(packages: Packages, name: str) -> None:
    packages.metadata("bad", f"[medmllm_plugins]\n{name} = hostile_zzz\n")
    manager = discover()
    assert "good" in manager.models()
    (failure,) = manager.failures
    assert failure.distribution == "bad" and len(failure.plugin) <= 100 and failure.plugin.isprintable()


def test_one_name_twice_in_a_distribution(packages: Packages) -> None:
    packages.metadata("bad", "[medmllm_plugins]\nbad = hostile_none\nbad = hostile_none\n")
    manager = discover()
    assert [failure.stage for failure in manager.failures] == ["duplicate", "import"] or len(manager.failures) == 2
    assert "good" in manager.models()


def test_absurdly_many_entry_points(packages: Packages) -> None:
    packages.metadata("bad", "[medmllm_plugins]\n" + "".join(f"p{n} = nowhere_{n}\n" for n in range(5000)))
    manager = discover()
    assert len(manager.failures) == 101 and "good" in manager.models()


def test_a_finder_that_raises(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        def find_spec(self, *_: Any) -> None:
            return None

        def find_distributions(self, *_: Any) -> Any:
            raise OSError("no such drive")

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    manager = discover()
    assert "good" in manager.models()
    assert "no such drive" in manager.failures[0].message


def test_doctor_names_metadata_that_hide_every_plugin_from_the_host(packages: Packages) -> None:
    """The host reads all entry points at once."""
    packages.metadata("stranger", "[console_scripts]\nthis line has no equals sign\n")
    with pytest.raises(Exception):  # noqa: B017 - whatever it is, it is what the host meets
        importlib.metadata.entry_points(group="lmms_eval.models")
    assert discover().failures == []  # ours is read one by one
    (name, message), = damaged_entry_points().items()  # fmt: skip
    assert name == "stranger" and "stranger-1.2.dist-info/entry_points.txt" in message
    from medmllm_plugins.cli.doctor import _metadata

    (finding,) = _metadata()
    assert finding.state == "broken" and finding.fix == "pip install --force-reinstall --no-deps stranger"


def test_bounded_text() -> None:
    assert bounded("a\nb\tc\x1b[31m") == "a b c [31m"
    assert bounded("x" * 10**6, 10) == "x" * 9 + "…"
    assert bounded("x" * 10, 10) == "x" * 10
    assert bounded("") == ""
