"""A check together with what it is tried on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medmllm_plugins.data.core.dataset_spec import read_spec
from medmllm_plugins.errors import MedMLLMError
from medmllm_plugins.plugins.specs import TaskFolder
from medmllm_plugins.plugins.task_files import walk
from medmllm_plugins.testing.check_registry import find_check, names_of
from medmllm_plugins.testing.check_subjects import Spec, Subject, subject_of
from medmllm_plugins.testing.resources import Resources


@dataclass(frozen=True, slots=True, eq=False)
class BoundCheck:
    """A check of one declaration; call it with the declaration to run it.

    Attributes:
        name: name of the check.
        subject: the declaration with what is loaded for it, shared by all of its checks.
    """

    name: str
    subject: Subject[Any]

    @property
    def spec(self) -> Spec:
        """Return the declaration."""
        spec: Spec = self.subject.spec
        return spec

    @property
    def subject_name(self) -> str:
        """Return the name of the declaration."""
        return self.subject.name

    def __call__(self, spec: Spec) -> None:
        """Run the check.

        Raises:
            CheckFailed: the plugin does not do what the check asks for.
            NotApplicable: the check cannot say anything about the plugin.
        """
        subject = self.subject if spec is self.subject.spec else subject_of(spec, self.subject.resources)
        _keep_only(subject)
        find_check(subject.kind, self.name)(subject)

    def __repr__(self) -> str:
        return self.name


_in_memory: list[Subject[Any]] = []
"""The subject whose checks run now: another one's model is released, so that only one is in memory."""


def _keep_only(subject: Subject[Any]) -> None:
    if _in_memory[:1] != [subject]:
        release_all()
        _in_memory.append(subject)


def release_all() -> None:
    """Release what was loaded for the last checks."""
    while _in_memory:
        _in_memory.pop().release()


def checks_of(spec: Spec, resources: Resources) -> list[BoundCheck]:
    """Return all checks of a declaration; of a task folder, also those of the data sets that it declares.

    Raises:
        OptionError: it is no declaration.
    """
    subject = subject_of(spec, resources)
    checks = [BoundCheck(name, subject) for name in names_of(subject.kind)]
    if isinstance(spec, TaskFolder):
        for declared in declared_datasets(spec):
            checks += checks_of(declared, resources)
    return checks


def declared_datasets(folder: TaskFolder) -> list[Spec]:
    """Return the data sets that are declared in a task folder, without those whose file has a fault.

    ``check_task_files_are_read`` reports the faults.
    """
    specs: list[Spec] = []
    try:
        _, datasets = walk(folder.resolve())
    except (MedMLLMError, OSError, ValueError):
        return []
    for path in sorted(path for datasets_folder in datasets for path in datasets_folder.glob("*.yaml")):
        try:
            specs.append(read_spec(path))
        except MedMLLMError:
            continue
    return specs
