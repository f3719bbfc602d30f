"""What a check is given: a declaration with what is loaded for it, kept as long as its checks run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.errors import OptionError, PluginError
from medmllm_plugins.plugins.specs import (
    DEMO,
    AttributionSpec,
    InterventionSpec,
    ModelSpec,
    ProbeSpec,
    TaskFolder,
)
from medmllm_plugins.testing.check_outcomes import NotApplicable
from medmllm_plugins.testing.check_registry import Kind
from medmllm_plugins.testing.resources import Resources
from medmllm_plugins.utils.import_by_name import import_by_name

if TYPE_CHECKING:
    from medmllm_plugins.data.loading.dataset import Dataset
    from medmllm_plugins.models.base import LoadedModel
    from medmllm_plugins.probes.probe_methods import FittedProbe
    from medmllm_plugins.testing.attribution_trial import AttributionTrial
    from medmllm_plugins.testing.example_documents import Examples
    from medmllm_plugins.testing.probe_trial import PlantedData


@dataclass(frozen=True, slots=True)
class InstalledPlugin:
    """A plugin as it is installed, by the name of its entry point."""

    name: str


Spec: TypeAlias = (
    InstalledPlugin | ModelSpec | TaskFolder | DatasetSpec | ProbeSpec | AttributionSpec | InterventionSpec
)
"""What can be checked."""
_Spec = TypeVar("_Spec", bound=Spec)


class Subject(Generic[_Spec]):
    """A declaration under test.

    Attributes:
        kind: the kind of its declaration.
        spec: the declaration.
        resources: what checks need beside it.
    """

    kind: ClassVar[Kind]

    def __init__(self, spec: _Spec, resources: Resources) -> None:
        self.spec, self.resources = spec, resources

    @property
    def name(self) -> str:
        """Return the name of the declaration."""
        return self.spec.path if isinstance(self.spec, TaskFolder) else self.spec.name

    @property
    def code(self) -> str:
        """Return the dotted path of its code; empty if it names none."""
        return str(getattr(self.spec, "target", ""))

    @cached_property
    def folder(self) -> Path:
        """Return an empty folder that is deleted with the subject."""
        self._temporary = TemporaryDirectory(prefix="medmllm-check-", ignore_cleanup_errors=True)
        return Path(self._temporary.name)

    def release(self) -> None:
        """Forget what was loaded."""
        names = [name for kind in type(self).__mro__ for name, value in vars(kind).items() if _is_cached(value)]
        for name in names:
            self.__dict__.pop(name, None)
        if (temporary := self.__dict__.pop("_temporary", None)) is not None:
            temporary.cleanup()


class PluginSubject(Subject[InstalledPlugin]):
    """An installed plugin."""

    kind = "plugin"


class ModelSubject(Subject[ModelSpec]):
    """A model, which is loaded once for all of its checks."""

    kind = "model"

    @property
    def code(self) -> str:
        """Return the dotted path of its loader, class or family; empty for a checkpoint of a known family."""
        return self.spec.loader or self.spec.wrapper or (self.spec.family if ":" in self.spec.family else "")

    @cached_property
    def pretrained(self) -> str:
        """Return what the model is loaded from; see :func:`~medmllm_plugins.testing.parametrize_with_checks`.

        Raises:
            OptionError: nothing is stated, and the family writes no tiny checkpoint.
        """
        chosen = self.resources.checkpoint_of(self.spec.name)
        if isinstance(chosen, str | Path):
            return str(chosen)
        target = self.folder / "checkpoint"
        target.mkdir()
        if chosen is not None:
            chosen(target)
        elif DEMO in (*self.spec.sizes, *self.spec.sizes.values()):
            return DEMO
        else:
            self._write_tiny_checkpoint(target)
        return str(target)

    def _write_tiny_checkpoint(self, target: Path) -> None:
        from medmllm_plugins.models.families.family_registry import find_family
        from medmllm_plugins.testing.tiny_families import FAMILIES, write_family

        if self.spec.family in FAMILIES:
            write_family(self.spec.family, target)
            return
        if ":" not in self.spec.family:
            raise OptionError(
                f"{self.spec.name}: expected a checkpoint to load, got none. Name one: checkpoint=FOLDER in "
                f"parametrize_with_checks, --pretrained {self.spec.name}=FOLDER in `medmllm check-plugin NAME`."
            )
        find_family(self.spec.family, self.spec.name).write_tiny_checkpoint(target)

    def load(self, pretrained: str | None = None) -> LoadedModel:
        """Load the model once more, in float32."""
        from medmllm_plugins.models.model_loading import load_model
        from medmllm_plugins.models.options import LoadOptions

        if self.spec.wrapper is not None:
            raise NotApplicable(f"{self.spec.wrapper} is a model class of lmms-eval, whose inside is not known")
        source = self.pretrained if pretrained is None else pretrained
        return load_model(self.spec, LoadOptions(source, device=self.resources.device, dtype="float32"))

    @cached_property
    def first_load(self) -> LoadedModel | Exception:
        """Return the loaded model, or the error that it raises."""
        try:
            return self.load()
        except NotApplicable:
            raise
        except Exception as error:  # a plugin's loader may raise anything
            return error

    @property
    def loaded(self) -> LoadedModel:
        """Return the loaded model.

        Raises:
            NotApplicable: it does not load, which ``check_loads`` reports.
        """
        if isinstance(self.first_load, Exception):
            raise NotApplicable("the model does not load, see check_loads")
        return self.first_load

    @cached_property
    def examples(self) -> Examples:
        """Return questions about images, or about volumes, with labels."""
        from medmllm_plugins.testing.example_documents import examples_for

        return examples_for(self.loaded)


class TasksSubject(Subject[TaskFolder]):
    """A folder of task files."""

    kind = "tasks"


class DatasetSubject(Subject[DatasetSpec]):
    """A data set, which is read once for all of its checks."""

    kind = "dataset"

    @property
    def code(self) -> str:
        """Return the dotted path of its layout; empty for a layout of this package."""
        return self.spec.layout if ":" in self.spec.layout else ""

    @cached_property
    def root(self) -> Path | None:
        """Return the folder that holds the folders of data sets; ``None`` for ``MEDMLLM_DATA``."""
        data = self.resources.data
        if data is None or isinstance(data, str | Path):
            return None if data is None else Path(data)
        target = self.folder / "data"
        target.mkdir()
        data(target)
        return target

    def read(self) -> Dataset:
        """Read the data set once more, every image of it.

        Raises:
            NotApplicable: its images are not there.
        """
        from medmllm_plugins.data.layouts.layout_registry import layout
        from medmllm_plugins.data.loading.dataset import load_dataset
        from medmllm_plugins.data.loading.dataset_folder import expected_folder

        folder = expected_folder(self.spec, self.root) if self.spec.folder else None
        if self.spec.folder and (folder is None or not layout(self.spec.layout).is_there(self.spec, folder)):
            raise NotApplicable(
                f"its images are not there: pass data=FOLDER or set MEDMLLM_DATA to the folder of {self.spec.folder!r}"
            )
        return load_dataset(self.spec, root=self.root)

    @cached_property
    def first_read(self) -> Dataset | Exception:
        """Return the data set, or the error that it raises."""
        try:
            return self.read()
        except NotApplicable:
            raise
        except Exception as error:  # a plugin's layout may raise anything
            return error

    @property
    def dataset(self) -> Dataset:
        """Return the data set.

        Raises:
            NotApplicable: it cannot be read, which ``check_images_decode`` reports.
        """
        if isinstance(self.first_read, Exception):
            raise NotApplicable("the data set cannot be read, see check_images_decode")
        return self.first_read


class _FunctionSubject(Subject[_Spec]):
    @cached_property
    def function(self) -> Any:
        """Import the function that the declaration names.

        Raises:
            PluginError: it cannot be imported.
        """
        return import_by_name(self.code, PluginError)


class ProbeSubject(_FunctionSubject[ProbeSpec]):
    """A probe."""

    kind = "probe"

    @cached_property
    def first_fit(self) -> tuple[PlantedData, FittedProbe]:
        """Return planted features, and the probe fitted to them."""
        from medmllm_plugins.testing.probe_trial import fit, planted_data

        planted = planted_data()
        return planted, fit(self.name, self.function, planted.data)


class AttributionSubject(_FunctionSubject[AttributionSpec]):
    """An attribution method, tried on the embedded model."""

    kind = "attribution"

    @cached_property
    def trial(self) -> AttributionTrial:
        """Return the method's maps of phantoms."""
        from medmllm_plugins.testing.attribution_trial import AttributionTrial

        return AttributionTrial(self.spec, self.function)


class InterventionSubject(_FunctionSubject[InterventionSpec]):
    """An intervention, tried on the embedded model."""

    kind = "intervention"

    @cached_property
    def demo(self) -> LoadedModel:
        """Load the embedded model, for this intervention alone."""
        from medmllm_plugins.testing.demo import load_demo

        return load_demo()


_SUBJECTS: Mapping[type, type[Subject[Any]]] = {
    InstalledPlugin: PluginSubject,
    ModelSpec: ModelSubject,
    TaskFolder: TasksSubject,
    DatasetSpec: DatasetSubject,
    ProbeSpec: ProbeSubject,
    AttributionSpec: AttributionSubject,
    InterventionSpec: InterventionSubject,
}


def subject_of(spec: object, resources: Resources) -> Subject[Any]:
    """Return the subject of a declaration.

    Raises:
        OptionError: it is no declaration.
    """
    if type(spec) not in _SUBJECTS:
        names = ", ".join(kind.__name__ for kind in _SUBJECTS)
        raise OptionError(f"Expected declarations to check, each one of {names}, got {type(spec).__name__}.")
    return _SUBJECTS[type(spec)](spec, resources)


def _is_cached(value: object) -> bool:
    return isinstance(value, cached_property)
