"""What this package needs of lmms-eval beyond its documented interface, so that a new release that differs is noticed.

The host has no interface for tasks of plugins, so four of its methods and two functions are replaced, and some others
are called or overridden. Each is listed here with the parameters that are relied on. ``medmllm doctor`` and a test
compare the list with the installed host; docs/upstream.md proposes what would make most of it unnecessary.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Seam:
    """One function or method of the host.

    Attributes:
        module: the module that has it.
        path: its name in the module, with dots.
        parameters: names of the parameters that are relied on, in order; others may be between and after them.
        use: what for: replaced, overridden or called.
    """

    module: str
    path: str
    parameters: tuple[str, ...]
    use: str

    def difference(self) -> str:
        """Return how the installed host differs, in words; empty if it does not."""
        try:
            target: Any = importlib.import_module(self.module)
            for name in self.path.split("."):
                target = getattr(target, name)
            names = list(inspect.signature(target).parameters)
        except (ImportError, AttributeError) as error:
            return f"{self.module}.{self.path} ({self.use}): expected it to be there, got {error}"
        remaining = iter(names)
        if all(name in remaining for name in self.parameters):
            return ""
        return f"{self.module}.{self.path} ({self.use}): expected parameters {self.parameters}, got {tuple(names)}"


SEAMS: Final = (
    Seam("lmms_eval.tasks", "TaskManager.initialize_tasks", ("self", "include_path", "include_defaults"), "replaced"),
    Seam("lmms_eval.tasks", "TaskManager.match_tasks", ("self", "task_list"), "replaced"),
    Seam("lmms_eval.tasks", "TaskManager.load_task_or_group", ("self", "task_list", "task_type"), "replaced"),
    Seam("lmms_eval.tasks", "TaskManager._get_config", ("self", "name"), "replaced"),
    Seam("lmms_eval.__main__", "cli_evaluate", ("args",), "replaced"),
    Seam("lmms_eval.__main__", "cli_evaluate_single", ("args",), "replaced"),
    Seam("lmms_eval.cli.dispatch", "main", (), "called"),
    Seam("lmms_eval.utils", "simple_parse_args_string", ("args_string",), "called"),
    Seam("lmms_eval.models.registry_v2", "ModelManifest", ("model_id", "chat_class_path"), "called"),
    Seam("lmms_eval.models", "MODEL_REGISTRY_V2.register_manifest", ("manifest", "overwrite"), "called"),
    Seam("lmms_eval.models", "MODEL_REGISTRY_V2.list_canonical_model_ids", (), "called"),
    Seam("lmms_eval.models", "MODEL_REGISTRY_V2.resolve", ("model_name", "force_simple"), "called"),
    Seam("lmms_eval.api.model", "lmms.create_from_arg_string", ("arg_string", "additional_config"), "overridden"),
    Seam("lmms_eval.api.model", "lmms.generate_until", ("self", "requests"), "overridden"),
    Seam("lmms_eval.api.model", "lmms.clean", ("self",), "overridden"),
    Seam("lmms_eval.api.task", "ConfigurableTask.build_all_requests", ("self",), "overridden"),
    Seam("lmms_eval.api.task", "ConfigurableTask.download", ("self", "dataset_kwargs"), "overridden"),
    Seam("lmms_eval.api.task", "ConfigurableTask.fewshot_context", ("self", "doc", "num_fewshot"), "overridden"),
    Seam("lmms_eval.api.task", "ConfigurableTask.process_results", ("self", "doc", "results"), "overridden"),
    Seam("lmms_eval.api.task", "ConfigurableTask.override_metric", ("self", "metric_name"), "overridden"),
    Seam("lmms_eval.api.task", "ConfigurableTask._prepare_metric_and_aggregation", ("self",), "overridden"),
    Seam("lmms_eval.api.instance", "GenerationResult", ("text", "token_counts"), "called"),
    Seam("lmms_eval.api.instance", "TokenCounts", ("output_tokens",), "called"),
    Seam("lmms_eval.api.reasoning", "parse_reasoning_tags_config", (), "called"),
    Seam("lmms_eval.api.reasoning", "strip_reasoning_tags", ("text",), "called"),
)


def host_differences() -> list[str]:
    """Return how the installed lmms-eval differs from what this package needs; empty if it does not."""
    return [difference for seam in SEAMS if (difference := seam.difference())]
