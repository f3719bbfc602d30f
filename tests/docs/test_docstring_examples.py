"""The examples in docstrings of public names run and give what they say."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

from medmllm_plugins import _MODULES

MODULES = sorted({name.partition(":")[0] for name in _MODULES.values()})
FINDER = doctest.DocTestFinder(exclude_empty=True)


def examples(module: str) -> list[doctest.DocTest]:
    tests = FINDER.find(import_module(f"medmllm_plugins.{module}"))
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("module", MODULES)
def test_examples_give_what_they_say(module: str) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in examples(module):
        runner.run(test)
    assert not runner.failures


@pytest.mark.parametrize(
    "module", ["attribution.own_attribution", "models.own_model", "probes.own_features", "runtime.own_repair"]
)
def test_functions_for_notebooks_have_examples(module: str) -> None:
    assert examples(module)
