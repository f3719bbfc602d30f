"""Twin patching of models that do not fit into memory together: they take turns, and leave states in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from medmllm_plugins.interventions.stored_answers import GrowingAnswer, Tokens, extend_answers, store_beginnings
from medmllm_plugins.interventions.stored_states import StateStore, store_model, store_twin
from medmllm_plugins.interventions.twin_patching import (
    MODEL,
    TWIN,
    PatchedAnswer,
    PatchSite,
    answers_with_states,
    holds_all_tokens,
    recorded_layers,
)
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.recorded_pass import RecordedPass
from medmllm_plugins.runtime.answer_loop import AnswerOptions, PreparedRequest, cut, workload
from medmllm_plugins.runtime.document_loop import answer_documents, unanswered
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.journal import Journal, Reply
from medmllm_plugins.runtime.patch_replies import PatchKey, patch_replies
from medmllm_plugins.runtime.twin import Twin
from medmllm_plugins.utils.progress import Progress

_OTHER: Final = {MODEL: TWIN, TWIN: MODEL}


def patch_in_turn(
    model: LoadedModel,
    twin: Twin,
    run: EvaluationRun,
    options: AnswerOptions,
    journal: Journal,
    title: str,
    names: Mapping[str, Mapping[PatchKey, str]],
    read: Callable[[str], PreparedRequest],
    sites: Sequence[PatchSite],
) -> None:
    """Patch the documents whose answers the journal does not hold, of this process's share.

    The model's states are stored first. The twin then stores its own, and answers with the model's; then the model
    answers with the twin's. The model's connectors stay on the device, because what each connector makes of the other
    model's tower needs both. Where the states of all tokens are put in, the tokens of answers go through both models:
    the two take further turns until these answers are finished.

    Args:
        model: the run's model.
        twin: the other one.
        run: the run.
        options: batch size, and which process this is.
        journal: takes the answers.
        title: of the progress.
        names: by document, the names of all its answers in the journal.
        read: reads a document.
        sites: where states are put in.

    Raises:
        DataError: the states do not fit on the disk.
        ModelError: the two models do not see the same tokens, or have states of different shapes.
    """
    todo = unanswered(names, journal, options)
    if not todo:
        return
    with StateStore(journal.folder / f"states.{options.rank}", len(todo)) as store:
        turns = _Turns(store, journal, options, title, {document: names[document] for document in todo}, read, sites)
        turns.store_model(model)
        with twin.loaded(run, model) as other:
            turns.store_twin(other, model)
            turns.answer(TWIN, other)
            turns.extend(TWIN, other)
        turns.answer(MODEL, model)
        turns.extend(MODEL, model)
        while turns.unfinished:
            turns.store_beginnings(MODEL, model)
            with twin.loaded(run, model) as other:
                turns.extend(TWIN, other)
                turns.store_beginnings(TWIN, other)
            turns.extend(MODEL, model)


class _Turns:
    """What one of two models does while it is loaded; ``side`` is which."""

    def __init__(
        self,
        store: StateStore,
        journal: Journal,
        options: AnswerOptions,
        title: str,
        names: Mapping[str, Mapping[PatchKey, str]],
        read: Callable[[str], PreparedRequest],
        sites: Sequence[PatchSite],
    ) -> None:
        self._store, self._journal, self._title = store, journal, title
        # The documents are this process's already.
        self._options = replace(options, rank=0, world_size=1)
        self._names, self._read, self._sites = names, read, sites
        self._whole = [site for site in sites if holds_all_tokens(site)]
        self._scored: dict[PatchKey, PatchedAnswer] = {}
        self._beginnings: dict[tuple[str, str], list[Tokens]] = {}
        self._answers = {
            (side, document): {site: GrowingAnswer() for site in self._whole}
            for side in (MODEL, TWIN)
            for document in unanswered(self._of(side), journal, self._options)
        }

    def _of(self, side: str) -> dict[str, dict[PatchKey, str]]:
        """Return the names of one side's answers by document."""
        return {
            document: {key: name for key, name in of.items() if key.recipient == side}
            for document, of in self._names.items()
        }

    @property
    def unfinished(self) -> list[tuple[str, str]]:
        """Side and document of the answers that are not finished."""
        return [key for key, by_site in self._answers.items() if not all(each.finished for each in by_site.values())]

    def store_model(self, loaded: LoadedModel) -> None:
        """Store the model's states."""
        with Progress(f"{self._title}, states of the model", len(self._names)) as progress:
            for document in self._names:
                item = self._read(document)
                question, labels = str(item.question), item.labels or ()
                store_model(self._store, document, loaded, question, item.visual, labels, self._sites)
                self._store_first_beginnings(MODEL, loaded, item)
                progress.update()

    def store_twin(self, loaded: LoadedModel, model: LoadedModel) -> None:
        """Store the twin's states; of the model, nothing but the connectors is run."""
        with Progress(f"{self._title}, states of the twin", len(self._names)) as progress:
            for document in self._names:
                item = self._read(document)
                question, labels = str(item.question), item.labels or ()
                store_twin(self._store, document, loaded, model, question, item.visual, labels, self._sites)
                self._store_first_beginnings(TWIN, loaded, item)
                progress.update()

    def _store_first_beginnings(self, side: str, loaded: LoadedModel, item: PreparedRequest) -> None:
        """Store what the other model's answers probably begin with: the labels, and this model's own answer."""
        document, question = item.request.row["document"], str(item.question)
        self._beginnings[side, document] = store_beginnings(
            self._store,
            side,
            document,
            loaded,
            question,
            item.visual,
            loaded.label_ids(question, item.labels or ()),
            self._whole,
            max_new_tokens=item.max_new_tokens,
        )

    def store_beginnings(self, side: str, loaded: LoadedModel) -> None:
        """Store the tokens that the other model's unfinished answers begin with."""
        for other, document in self.unfinished:
            if other == side:
                continue
            item = self._read(document)
            beginnings = [each.tokens for each in self._answers[other, document].values() if not each.finished]
            self._beginnings[side, document] = store_beginnings(
                self._store, side, document, loaded, str(item.question), item.visual, beginnings, self._whole
            )

    def answer(self, side: str, loaded: LoadedModel) -> None:
        """Answer with the other model's states, and score labels at all sites."""

        def answered(batch: list[PreparedRequest]) -> list[dict[PatchKey, Reply]]:
            first = batch[0]
            assert first.labels is not None, "patching tasks score labels"
            question, visuals = str(first.question), [item.visual for item in batch]
            inputs = loaded.prepare([question] * len(batch), visuals)
            own = RecordedPass(loaded, inputs, recorded_layers(self._sites))
            donor = self._store.batch(_OTHER[side], [item.request.row["document"] for item in batch], own)
            length = first.max_new_tokens
            answers = answers_with_states(
                loaded, own, donor, question, first.labels, self._sites, max_new_tokens=length
            )
            for site in self._whole:
                for item, answer in zip(batch, answers[site], strict=True):
                    self._scored[PatchKey(item.request.row["document"], side, site)] = answer
            return patch_replies(side, {site: rows for site, rows in answers.items() if site not in self._whole}, batch)

        answer_documents(
            f"{self._title}, states put into the {side}",
            self._of(side),
            self._journal,
            self._options,
            read=self._read,
            weigh=lambda item: workload(item.visual),
            answer=answered,
        )

    def extend(self, side: str, loaded: LoadedModel) -> None:
        """Extend the unfinished answers, and hand those of finished documents to the journal."""
        todo = [document for own, document in self.unfinished if own == side]
        with Progress(f"{self._title}, answers of the {side}", len(todo)) as progress:
            for document in todo:
                item, answers = self._read(document), self._answers[side, document]
                extend_answers(
                    self._store,
                    _OTHER[side],
                    document,
                    loaded,
                    str(item.question),
                    item.visual,
                    self._beginnings[_OTHER[side], document],
                    answers,
                    max_new_tokens=item.max_new_tokens,
                )
                if all(each.finished for each in answers.values()):
                    self._add(side, item, loaded)
                progress.update()

    def _add(self, side: str, item: PreparedRequest, loaded: LoadedModel) -> None:
        document = item.request.row["document"]
        decode = loaded.tokenizer.decode
        replies = {}
        for site, answer in self._answers[side, document].items():
            text = str(decode(answer.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            key = PatchKey(document, side, site)
            replies[self._names[document][key]] = Reply(cut(text, item.until), self._scored[key].scores)
        self._journal.add(replies)
