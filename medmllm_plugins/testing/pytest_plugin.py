"""The pytest plugin of this package: an option and fixtures for the tests of plugins.

pytest imports this module wherever the package is installed, so it imports nothing of weight before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from medmllm_plugins.models.base import LoadedModel
    from medmllm_plugins.plugins.manager import Manager

_OPTION = "--medmllm-checkpoint"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names checkpoints for the checks of models."""
    parser.getgroup("medmllm", "checks of plugins for medmllm-plugins").addoption(
        _OPTION,
        action="append",
        default=[],
        metavar="[MODEL=]PATH",
        help="load this checkpoint for the checks of a model (of all models, without MODEL=): a folder or a size name",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Hand the option's checkpoints to the checks."""
    if stated := config.getoption(_OPTION, default=[]):
        from medmllm_plugins.testing.resources import CHOSEN, read_checkpoints

        CHOSEN.update(read_checkpoints(stated, _OPTION))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Forget the option's checkpoints."""
    if config.getoption(_OPTION, default=[]):
        from medmllm_plugins.testing.resources import CHOSEN

        CHOSEN.clear()


@pytest.fixture
def medmllm_manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """Discover all installed plugins, strictly: the first fault in a plugin raises a ``PluginError``."""
    from medmllm_plugins.plugins.manager import get_manager, reset

    monkeypatch.setenv("MEDMLLM_STRICT", "1")
    reset()
    yield get_manager()
    reset()


@pytest.fixture
def medmllm_register(medmllm_manager: Manager) -> Callable[..., Manager]:
    """Return a function that registers a module or object as a plugin for one test, as if it were installed."""

    def register(plugin: object, name: str = "in_process") -> Manager:
        medmllm_manager.pluggy.register(plugin, name=name)
        return medmllm_manager

    return register


@pytest.fixture(scope="session")
def medmllm_demo_model() -> LoadedModel:
    """Load the model that ships with this package, on the CPU, once for all tests."""
    from medmllm_plugins.testing.demo import load_demo

    return load_demo()
