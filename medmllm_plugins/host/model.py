"""Our models as the host sees them: arguments, loading, and the hand-over of requests to the answer loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, ClassVar, Self

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger

from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.host import envelope
from medmllm_plugins.host.model_arguments import DISK, MEMORY, local_device, merged, run_folder, twin_options
from medmllm_plugins.host.task_dataset import TaskDataset
from medmllm_plugins.host.task_loading import new_session
from medmllm_plugins.host.task_requests import check_settings, check_twin, read_request
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.model_loading import load_model
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.plugins.specs import ModelSpec
from medmllm_plugins.runtime.answer_loop import AnswerOptions
from medmllm_plugins.runtime.answering import answer_requests
from medmllm_plugins.runtime.batches import AUTO, LARGEST, BatchSize, positive
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.journal import Reply
from medmllm_plugins.runtime.requests import RequestKey, TaskRequest
from medmllm_plugins.runtime.run_session import RunSession
from medmllm_plugins.runtime.twin import Twin


class MedicalMLLM(lmms):
    """A medical MLLM loaded by this package, behind the host's chat interface.

    Arguments are checked at once. The weights are loaded when the first answer is needed, so that faults in the data,
    which the host reads after it has made the model, are found before minutes are spent on loading.

    Args:
        pretrained: a size name of the model, a hub id, or a folder.
        batch_size: documents in a batch, or ``"auto"``: the largest that fits. A batch that does not fit is halved.
        max_batch_size: the largest batch that ``"auto"`` tries; the host's ``--max_batch_size``.
        max_new_tokens: longest answer; what the task asks for when ``None``.
        run_dir: folder for the manifest and the detailed results.
        twin: a second checkpoint of the same architecture, whose states med_patch tasks put in. It is loaded like the
            first, but neither quantised nor with its adapter or repair. ``"base"``: the general model that it was tuned
            from.
        twin_peft: a LoRA adapter of the twin.
        twin_states: ``"memory"``: both are loaded; ``"disk"``: they take turns on the device, and states go from one to
            the other through files.
        loading: the other fields of :class:`~medmllm_plugins.models.options.LoadOptions`, such as ``dtype``. Any other
            argument is an error that lists the known ones.

    Raises:
        OptionError: an argument has a wrong name or value.
    """

    is_simple = False
    spec: ClassVar[ModelSpec]
    chat_template = "the model's own, which this package's models always apply"
    """What the host writes down where ``--apply_chat_template`` is given."""
    tokenizer_name = ""

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        batch_size: int | str = 1,
        max_batch_size: int | str = LARGEST,
        max_new_tokens: int | None = None,
        run_dir: str | None = None,
        twin: str | None = None,
        twin_peft: str | None = None,
        twin_states: str = MEMORY,
        **loading: Any,
    ) -> None:
        super().__init__()
        if unknown := sorted(set(loading) - set(LoadOptions.__slots__)):
            own = {*signature(MedicalMLLM).parameters} - {"loading"}
            known = ", ".join(sorted({*LoadOptions.__slots__, *own}))
            raise OptionError(f"{self.spec.name}: expected model arguments among {known}, got {unknown}.")
        if pretrained is None:
            sizes = ", ".join(self.spec.sizes) or "none"
            raise OptionError(
                f"{self.spec.name}: expected `pretrained=` to be a size ({sizes}), a hub id or a folder, got nothing."
            )
        self.batch_size = BatchSize(batch_size).size if batch_size != AUTO else AUTO
        self.max_batch_size = positive("max_batch_size", max_batch_size)
        self.max_new_tokens = None if max_new_tokens is None else positive("max_new_tokens", max_new_tokens)
        self.run_dir = run_folder(run_dir)
        loading["device"] = local_device(loading.get("device", "auto"))
        # The host turns a value such as `peft=7` into a number.
        texts = {
            name: str(loading[name])
            for name in ("peft", "repair", "trust_remote_code")
            if loading.get(name) is not None
        }
        self.options = LoadOptions(**{**loading, **texts, "pretrained": str(pretrained)})
        self.options.check()
        twin_loading = twin_options(self.spec, self.options, twin, twin_peft, twin_states)
        self._twin = None
        if twin_loading is not None:
            self._twin = Twin(lambda run: self._load(run, twin_loading), twin_loading, in_turn=twin_states == DISK)
        self._loaded: LoadedModel | None = None
        self._own_session: RunSession | None = None

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """Make the model of ``--model_args`` and of the flags that the host adds to them.

        Raises:
            OptionError: both name an argument, with different values.
        """
        return cls(**merged(cls.spec.name, arg_string, additional_config or {}))

    def apply_chat_template(self, turns: Sequence[Mapping[str, Any]], **_: Any) -> str:
        """Return the plain text of chat turns, for the host's records: what reaches the model are messages."""
        return "\n".join(str(turn.get("content", "")) for turn in turns)

    @property
    def device(self) -> str:
        """The device the weights are on, or will be."""
        return str(self.options.torch_device)

    def load(self, run: EvaluationRun) -> LoadedModel:
        """Return the model itself, loaded at the first call; ``run`` notes how long that takes."""
        if self._loaded is None:
            self._loaded = self._load(run, self.options)
        return self._loaded

    def _load(self, run: EvaluationRun, options: LoadOptions) -> LoadedModel:
        with run.stage("load", self.device):
            loaded = load_model(self.spec, options)
        for warning in loaded.weight_warnings:
            logger.warning(f"{options.pretrained}: {warning}; its answers may be meaningless.")
        return loaded

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer the requests of any mix of tasks, greedily.

        Requests of our own tasks are answered with an envelope (text and label scores), those of any other task with
        plain text.

        Raises:
            ModelError: a request has not exactly one image, asks for sampling, or is too long for the model.
        """
        parsed = [read_request(request, self.task_dict) for request in requests]
        check_settings(parsed, self.spec.name)  # before the weights are loaded
        check_twin(parsed, self._twin)
        options = AnswerOptions(
            model=self.spec.name,
            device=self.device,
            batch_size=self.batch_size,
            max_batch_size=self.max_batch_size,
            max_new_tokens=self.max_new_tokens,
            rank=self.rank,
            world_size=self.world_size,
        )
        replies: dict[RequestKey, Reply] = {}
        for session, group in self._by_session(parsed):
            session.run.run_dir = self.run_dir
            replies |= answer_requests(self.load, self.options, group, session.run, options, self._twin)
        return [_result(request, replies[request.key]) for request in parsed]

    def _by_session(self, requests: Sequence[TaskRequest]) -> list[tuple[RunSession, list[TaskRequest]]]:
        """Group requests by the run that they are part of: that of our tasks, which other packages' tasks join."""
        sessions = {task: data.session for task, data in self.task_dict.items() if isinstance(data, TaskDataset)}
        default = next((sessions[request.task] for request in requests if request.task in sessions), None)
        if default is None:
            default = self._own_session = self._own_session or new_session()
        groups: dict[int, tuple[RunSession, list[TaskRequest]]] = {}
        for request in requests:
            session = sessions.get(request.task, default)
            groups.setdefault(id(session), (session, []))[1].append(request)
        return list(groups.values())

    def clean(self) -> None:
        """Free the weights; the host calls this between the answers and the scoring."""
        for data in self.task_dict.values():
            if isinstance(data, TaskDataset):  # where all answers were cached, nothing else names the folder
                data.session.run.run_dir = self.run_dir
        self._loaded = None
        if self._twin is not None:
            self._twin.forget()
        super().clean()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refuse: the host sends chat models no such requests; label scores come with the answers."""
        raise ModelError(
            f"{self.spec.name} answers generation tasks only; its label scores come with the answers of med_cls tasks."
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse: classification is one question and one answer."""
        raise ModelError(f"{self.spec.name} answers single-round generation tasks only.")


def _result(request: TaskRequest, reply: Reply) -> GenerationResult:
    text = reply.text if request.content is None else envelope.pack(reply)
    return GenerationResult(text=text, token_counts=TokenCounts(output_tokens=reply.generated_tokens))
