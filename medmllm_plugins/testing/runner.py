"""Run checks without pytest, for ``medmllm check-plugin``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from medmllm_plugins.errors import MedMLLMError, one_line
from medmllm_plugins.testing.bound_check import BoundCheck, checks_of
from medmllm_plugins.testing.check_outcomes import NotApplicable
from medmllm_plugins.testing.check_registry import Kind, require_known
from medmllm_plugins.testing.check_subjects import Spec
from medmllm_plugins.testing.resources import Checkpoint, DataFolder, Resources

Status = Literal["passed", "failed", "not applicable", "expected failure"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How a check of one declaration ended.

    Attributes:
        kind: kind of the declaration.
        subject: its name.
        check: name of the check.
        status: ``"passed"``, ``"failed"``, ``"not applicable"`` or ``"expected failure"``.
        reason: why it failed or does not apply, on one line; empty if it passed.
    """

    kind: Kind
    subject: str
    check: str
    status: Status
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-safe mapping."""
        return asdict(self)


def run_checks(
    spec: Spec,
    *,
    expected_failed_checks: Mapping[str, str] | None = None,
    checkpoint: Checkpoint | None = None,
    data: DataFolder | None = None,
    device: str = "auto",
) -> Iterator[CheckResult]:
    """Run all checks of a declaration, and yield each result as it comes.

    The arguments are those of :func:`~medmllm_plugins.testing.parametrize_with_checks`.

    Raises:
        OptionError: ``spec`` is no declaration, or ``expected_failed_checks`` names an unknown check.
    """
    expected = dict(expected_failed_checks or {})
    require_known(expected)
    for check in checks_of(spec, Resources(checkpoint=checkpoint, data=data, device=device)):
        yield run_check(check, expected.get(check.name))


def run_check(check: BoundCheck, expected: str | None = None) -> CheckResult:
    """Run one check; ``expected`` is the reason why it is known to fail."""
    status: Status = "passed"
    reason = ""
    try:
        check(check.spec)
        if expected is not None:
            status, reason = "failed", "it was expected to fail but passed: remove it from expected_failed_checks"
    except NotApplicable as error:
        status, reason = "not applicable", str(error)
    except Exception as error:  # plugins may raise anything
        message = str(error) if isinstance(error, AssertionError | MedMLLMError) else one_line(error)
        status, reason = ("failed", message) if expected is None else ("expected failure", expected)
    return CheckResult(check.subject.kind, check.subject_name, check.name, status, " ".join(reason.split()))
