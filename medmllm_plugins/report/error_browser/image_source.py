"""Images of documents at the time of the report: from the data set, if it is here and is the one of the run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from PIL import Image

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.loading import check_cache
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.data.loading.dataset_folder import missing_folder, require_folder
from medmllm_plugins.data.loading.volume_view import View
from medmllm_plugins.errors import MedMLLMError, one_line
from medmllm_plugins.report.error_browser.browsed_answers import ErrorBrowser
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import TaskResult
from medmllm_plugins.report.templating import text
from medmllm_plugins.results.manifest import SettingsEntry

Loader = Callable[[str], list[Image.Image]]
"""Returns the images of a document, by its id: one, or the slices of a volume, each in mode ``RGB``."""
_REASON: Final = 260
"""Characters of the reason why there are no images."""


def image_loader(browser: ErrorBrowser) -> tuple[Loader | None, str]:
    """Return what reads the images of documents as the models were shown them, or a sentence on why nothing can.

    The images are read with the settings of the run: options of the data set, and the view of volumes, whose slices
    are returned one by one even where the model got them in one montage.
    """
    name, spec, result = browser.dataset.name, browser.dataset.spec, browser.results[0]
    if spec is None:
        return None, _reason("undeclared", name=cut(name))
    if not result.fingerprint:
        return None, _reason("unnamed_data")
    settings = result.task.settings
    spec = spec.model_copy(update={"options": dict(settings.dataset_options)}) if settings.dataset_options else spec
    if reason := missing_folder(spec):
        return None, _reason("absent", reason=cut(reason, _REASON))
    if (files := _unchecked_files(spec, settings.on_error)) >= check_cache.LARGE:
        return None, _reason("unchecked", name=name, files=files)
    try:
        data = load_dataset(spec, on_error="skip" if settings.on_error == "skip" else "raise")
    except Exception as error:  # the layout of a plugin may raise anything; the report must not fail for a picture
        why = str(error) if isinstance(error, MedMLLMError) else one_line(error)
        return None, _reason("absent", reason=cut(why, _REASON))
    if data.fingerprint != result.fingerprint:
        return None, _reason("other_data", name=browser.dataset.title)
    return _loader(data, settings), ""


def _reason(macro: str, **values: Any) -> str:
    return text("errors.txt.jinja", macro, **values)


def _unchecked_files(spec: DatasetSpec, on_error: str) -> int:
    """Return how many files a check would decode that takes long and is not remembered; 0 for all other sets."""
    if not spec.folder:
        return 0
    folder = require_folder(spec)
    key = check_cache.state(spec, folder, on_error)
    if key is None or check_cache.recall(spec.name, key) is not None:
        return 0
    return sum(len(names) for _, _, names in os.walk(folder))


def _loader(data: Dataset, settings: SettingsEntry) -> Loader:
    documents = {document.id: document for document in data.documents}
    view = replace(_view(settings), montage=False)
    return lambda document: view.pictures(data, documents[document])


def _view(settings: SettingsEntry) -> View:
    """Return how volumes were shown; the defaults where the run folder does not say it."""
    try:
        return View(**dict(settings.view or {}))
    except (TypeError, MedMLLMError):  # a manifest that was damaged, or written by another version
        return View()


def stored_originals(results: tuple[TaskResult, ...], browser: ErrorBrowser) -> dict[str, Loader]:
    """Return what reads the originals that attributions stored, by document, for those of the browser's data."""
    loaders: dict[str, Loader] = {}
    for result in results:
        index = result.task.attributions
        if index is None or result.fingerprint != browser.results[0].fingerprint:
            continue
        for entry in index.entries:
            if entry.original is not None:
                loaders.setdefault(entry.document, _stored(entry.original, max(1, entry.slices)))
    return loaders


def _stored(path: Path, slices: int) -> Loader:
    def load(document: str) -> list[Image.Image]:
        with Image.open(path) as opened:
            whole = opened.convert("RGB")
        height = max(1, whole.height // slices)
        return [whole.crop((0, index * height, whole.width, (index + 1) * height)) for index in range(slices)]

    return load
