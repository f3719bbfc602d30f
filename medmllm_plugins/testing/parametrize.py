"""The decorator that makes one pytest test of each declaration and check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias, TypeVar

import pytest

from medmllm_plugins.testing.bound_check import BoundCheck, checks_of
from medmllm_plugins.testing.check_outcomes import NotApplicable
from medmllm_plugins.testing.check_registry import require_known
from medmllm_plugins.testing.check_subjects import Spec
from medmllm_plugins.testing.resources import Checkpoint, DataFolder, Resources

ExpectedFailures: TypeAlias = Mapping[str, str] | Callable[[Spec], Mapping[str, str]]
"""Names of checks to the reason why they fail, or a function from a declaration to these."""
_Test = TypeVar("_Test", bound=Callable[..., object])


def parametrize_with_checks(
    specs: Iterable[Spec],
    *,
    expected_failed_checks: ExpectedFailures | None = None,
    checkpoint: Checkpoint | None = None,
    data: DataFolder | None = None,
    device: str = "auto",
) -> Callable[[_Test], _Test]:
    """Parametrise a pytest test with every check that concerns each declaration.

    The test takes the arguments ``spec`` and ``check``. Nothing is loaded while pytest collects; a model is loaded once
    for all of its checks. A check that cannot say anything about a declaration is skipped with its reason.

    Args:
        specs: what the hooks of a plugin return: :class:`~medmllm_plugins.ModelSpec`,
            :class:`~medmllm_plugins.TaskFolder` (stands for every data set declared in it),
            :class:`~medmllm_plugins.ProbeSpec`, :class:`~medmllm_plugins.AttributionSpec`,
            :class:`~medmllm_plugins.InterventionSpec`; also a
            :class:`~medmllm_plugins.data.core.dataset_spec.DatasetSpec`.
        expected_failed_checks: names of checks that are known to fail, to the reason; or a function that returns them
            for a declaration. The tests are marked ``xfail(strict=True)``: they fail once the check passes.
        checkpoint: what the models are loaded from: a folder, a size name or ``"demo"``; a function that writes a tiny
            checkpoint into an empty folder that it is given; or a mapping from names of models to these. Without it,
            option ``--medmllm-checkpoint`` of pytest, the size whose value is ``"demo"``, or
            :meth:`medmllm_plugins.Family.write_tiny_checkpoint` of the model's family, whichever comes first.
        data: the folder that holds the folders of data sets, or a function that writes them into an empty folder that
            it is given. Without it, the environment variable ``MEDMLLM_DATA``.
        device: where models are loaded: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; in float32.

    Raises:
        OptionError: an item of ``specs`` is no declaration, or ``expected_failed_checks`` names an unknown check.

    Example:
        >>> from medmllm_plugins import ModelSpec
        >>> from medmllm_plugins.testing import parametrize_with_checks
        >>> tiny = ModelSpec(name="tiny", summary="A model.", family="llava", sizes={"7b": "me/llava-7b"})
        >>> @parametrize_with_checks([tiny])
        ... def test_my_plugin(spec, check):
        ...     check(spec)
    """
    resources = Resources(checkpoint=checkpoint, data=data, device=device)
    parameters = []
    for spec in specs:
        for check in checks_of(spec, resources):
            known = expected_failed_checks
            reasons = (known(check.spec) if callable(known) else known) or {}
            require_known(reasons)
            parameters.append(_parameter(check, reasons))
    return pytest.mark.parametrize(("spec", "check"), parameters)


def _parameter(check: BoundCheck, reasons: Mapping[str, str]) -> object:
    marks = [pytest.mark.xfail(reason=reasons[check.name], strict=True)] if check.name in reasons else []
    return pytest.param(check.spec, _Skipping(check), id=f"{check.subject_name}-{check.name}", marks=marks)


class _Skipping:
    """A check that skips its test where it does not apply."""

    def __init__(self, check: BoundCheck) -> None:
        self._check = check
        self.__name__ = check.name

    def __call__(self, spec: Spec) -> None:
        try:
            self._check(spec)
        except NotApplicable as reason:
            pytest.skip(f"{self.__name__} does not apply to {self._check.subject_name}: {reason}")

    def __repr__(self) -> str:
        return self.__name__
