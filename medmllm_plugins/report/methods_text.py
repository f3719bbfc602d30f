"""A methods paragraph ready for a paper: what was done, as the manifests have it, with the source of each part used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.report.citations import References
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import Cell, DataPart, RunCollection
from medmllm_plugins.results.attribution_results import Method
from medmllm_plugins.results.probe_records import PIXELS, RANDOM_ENCODER, ProbeAnalysis, SemanticMapping
from medmllm_plugins.results.run_reader import RunFolder
from medmllm_plugins.utils.json_values import clean, mapping, number, sequence
from medmllm_plugins.utils.plain_text import listed, quantity

_ASKED: Final = {
    "closed_set": "the classes listed in the question",
    "letter": "the classes listed under letters",
    "open": "no classes listed",
}
_FINDING: Final = "yes or no, for each finding"
_METRICS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "accuracy": ("accuracy", ()),
    "balanced": ("balanced accuracy", ()),
    "macro_f1": ("macro F1", ()),
    "mcc": ("the Matthews correlation coefficient", ("mcc",)),
    "auroc": ("the area under the ROC curve", ("auroc",)),
    "auprc": ("average precision", ()),
    "ece": ("expected calibration error in 15 bins", ("ece",)),
    "brier": ("the Brier score", ("brier",)),
    "kappa": ("quadratic weighted kappa", ("kappa",)),
}
"""Metrics as a paper calls them, with the names of their sources."""
_FORMS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "sum": ("the sum of its tokens' log-probabilities behind the same prompt", ()),
    "mean": ("their mean", ()),
    "calibrated": ("the sum less that of a blank image", ("calibrate",)),
}
_REREADINGS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "scores": ("the label that scores highest", ()),
    "relabelled": ("the best one-to-one renaming of the answers", ("hungarian",)),
    "permuted": ("the same of the highest-scoring label", ("hungarian",)),
    "blank": ("scores less those of a blank image", ("calibrate",)),
    "offsets": ("scores plus fitted class offsets", ()),
    "affine": ("an affine map of the scores", ()),
}
_PARTS: Final = {"vision": "vision tower", "connector": "connector", "llm": "LLM"}
_POOLINGS: Final = {
    "mean": "as the mean over the image's tokens",
    "last": "as the prompt's last token",
    "cls": "as the class token",
}
_PROBES: Final[Mapping[str, tuple[str, tuple[str, ...], str]]] = {
    "linear": (
        "multinomial logistic regression",
        ("probes",),
        " on standardised features, its L2 strength chosen by log loss on the validation fold",
    ),
    "paper": ("a two-layer MLP as in", ("hype",), ""),
}
_SAMPLING: Final = ("do_sample", "temperature", "top_p", "top_k", "num_beams")


@dataclass(frozen=True, slots=True)
class Methods:
    """The paragraph, in pieces, and its numbered references."""

    paragraphs: tuple[str, ...]
    references: tuple[str, ...]

    def text(self) -> str:
        """All of it as plain text."""
        numbered = [f"[{number}] {one}" for number, one in enumerate(self.references, start=1)]
        return "\n\n".join([*self.paragraphs, *(["\n".join(numbered)] if numbered else [])]) + "\n"


def methods(gathered: RunCollection) -> Methods:
    """Write the paragraph."""
    cite = References()
    cells = [cell for cell in gathered.cells() if cell.task.scored or cell.task.probing or cell.task.attributions]
    if not cells:
        return Methods(("No task of these runs has figures yet.",), ())
    parts = [
        " ".join(_models(gathered, cells, cite)),
        " ".join(_data(gathered, cite)),
        " ".join(_answers(cells, cite)),
        " ".join(_references(gathered, cite)),
        " ".join(_probes(gathered, cite)),
        " ".join(_attributions(cells, cite)),
    ]
    return Methods(tuple(part for part in parts if part), cite.all())


def _versions(runs: Sequence[RunFolder], package: str) -> str:
    found = {clean(version) for run in runs if (version := mapping(run.manifest.get("versions")).get(package))}
    return f" {' and '.join(sorted(found))}" if found else ""


def _models(gathered: RunCollection, cells: Sequence[Cell], cite: References) -> Iterator[str]:
    """The models that have figures, and what evaluated them."""
    runs = list({id(cell.run): cell.run for cell in cells}.values())
    if all(cell.subject.reference for cell in cells):
        return
    specs = get_manager().models()
    named = []
    shown = {id(cell.subject) for cell in cells}
    for subject in gathered.models:
        if id(subject) not in shown:
            continue
        told = subject.runs[0].model
        name = str(told.get("name") or subject.runs[0].command.get("model") or "")
        spec = specs.get(name)
        facts = [clean(told[key]) for key in ("dtype", "load_in") if told.get(key)]
        if told.get("peft"):
            facts.append(f"adapter {cut(told['peft'], 40)}")
        how = f" in {', '.join(facts)}" if facts else ""
        named.append(f"{subject.label}{how}{cite(spec.citation if spec else '')}")
    tools = [f"lmms-eval{_versions(runs, 'lmms-eval')}{cite('lmms-eval')}"]
    tools.append(f"medmllm-plugins{_versions(runs, 'medmllm-plugins')}")
    # Only the wrapper of this package notes the model that it loads, and it loads it with transformers.
    if ours := [run for run in runs if run.model and not run.baseline]:
        tools.append(f"transformers{_versions(ours, 'transformers')}{cite('transformers')}")
    yield (
        f"{listed(named)} {'was' if len(named) == 1 else 'were'} evaluated with {listed(tools)}; no weights were "
        "changed."
    )


def _data(gathered: RunCollection, cite: References) -> Iterator[str]:
    for part in gathered.sets:
        citation = part.spec.citation if part.spec is not None else ""
        folds = next((found for run in gathered.runs if (found := run.folds.get(part.name))), None)
        size = ""
        if folds is not None:
            counts = ", ".join(f"{folds.counts[name]:,} {name}" for name in folds.counts)
            size = f" ({counts}; {quantity(folds.groups, 'group')})"
        yield f"Data: {part.title}{cite(citation)}{size}."
    yield (
        "Images of one patient, lesion or source form a group; groups are resampled as a whole, and folds are those "
        "published or made without dividing a group, unless a warning says otherwise."
    )


def _answers(cells: Sequence[Cell], cite: References) -> Iterator[str]:
    scored = [cell for cell in cells if cell.task.scored]
    asked = [cell for cell in scored if not cell.subject.reference]
    if asked:
        yield _asked(asked)
    if scored:
        yield _measured(scored, cite)
    if forms := {form for cell in asked for told in cell.task.sources for form in mapping(told.get("label_scores"))}:
        read = [f"by {words}{cite(*sources)}" for name, (words, sources) in _FORMS.items() if name in forms]
        yield f"Answers were also read from the labels' scores, as the label that scores highest: {listed(read)}."
    varied = {cell.task.varied for cell in asked}
    if "order" in varied:
        yield f"Every document was asked about under several orders of the options{cite('order')}."
    if "wording" in varied:
        yield "Every document was asked about in several wordings of the question."
    if blind := sorted({cell.task.image for cell in asked} - {"shown"}):
        yield f"As blind controls the image was {listed([_blind(one) for one in blind])}."


def _asked(cells: Sequence[Cell]) -> str:
    """How models were asked, and how their answers were decoded."""
    ways = dict.fromkeys(
        _FINDING if cell.multilabel else str(cell.task.told.get("protocol") or "closed_set") for cell in cells
    )
    how = listed([_ASKED.get(one, clean(one)) for one in ways])
    counts = sorted({cell.shots for cell in cells})
    shots = ""
    if any(counts):
        several = listed([str(one) if one else "none" for one in counts[:-1]])
        number_ = quantity(counts[-1], "solved example")
        shots = f", behind {f'{several} or ' if several else ''}{number_} from the train fold"
    by_way: dict[str, dict[str, None]] = {}
    for cell in cells:
        by_way.setdefault(_sampling(cell.run), {})[cell.subject.label] = None
    told = [
        f"{f'sampled with {way}' if way else 'decoded greedily'}{f' ({listed(list(who))})' if len(by_way) > 1 else ''}"
        for way, who in by_way.items()
    ]
    return (
        f"Each image was shown with one question at a time ({how}){shots}. Answers were {listed(told)}; one from which "
        "no class could be read counts as wrong."
    )


def _sampling(run: RunFolder) -> str:
    """The arguments under which a run's answers were not decoded greedily; empty where they were, as is the default."""
    told = run.command.get("gen_kwargs")
    pairs = (
        {clean(name): clean(value) for name, value in told.items()}
        if isinstance(told, Mapping)
        else {
            name.strip(): value.strip()
            for name, _, value in (one.partition("=") for one in clean(told or "").split(","))
        }
    )
    drawn = pairs.get("do_sample", "").casefold() in ("true", "1")
    if not drawn and _decimal(pairs.get("temperature")) <= 0 and _decimal(pairs.get("num_beams")) <= 1:
        return ""
    return ", ".join(f"{name}={cut(pairs[name], 20)}" for name in _SAMPLING if name in pairs)


def _decimal(value: str | None) -> float:
    try:
        found = float(value or 0)
    except ValueError:
        return 0.0
    return found if known(found) else 0.0


def _measured(cells: Sequence[Cell], cite: References) -> str:
    """The metrics and their intervals."""
    names = {name for cell in cells for name, found in cell.metrics.items() if known(found)}
    told = []
    for name, (words, sources) in _METRICS.items():
        if name in names:
            told.append(f"{words}{cite(*sources)}")
            if name == "auroc" and not all(cell.multilabel for cell in cells):
                told[-1] += f", each class against the others{cite('macro')}"
    if any(known(Estimate.from_dict(cell.task.metrics.get("exact_match"))) for cell in cells):
        told.append("the share of images all of whose findings are answered rightly")
    draws = {int(one) for cell in cells if known(one := _draws(cell))}
    drawn = f"{max(draws):,} " if draws else ""
    means = " Figures of findings are averaged over findings." if any(cell.multilabel for cell in cells) else ""
    return (
        f"We report {listed(told)}, with 95 % percentile intervals from {drawn}bootstrap draws of groups"
        f"{cite('bootstrap')}.{means} Differences are paired over the same questions and draws."
    )


def _draws(cell: Cell) -> float:
    return next((found for told in cell.task.sources if known(found := number(told.get("resamples")))), float("nan"))


def _blind(image: str) -> str:
    return {"blank": "replaced by a grey one", "shuffled": "replaced by one of another group"}.get(image, clean(image))


def _references(gathered: RunCollection, cite: References) -> Iterator[str]:
    told = []
    for subject in gathered.subjects:
        if not subject.reference:
            continue
        method = subject.runs[0].baseline
        if method == "pixels":
            told.append(f"multinomial logistic regression on small pixels{cite('scikit-learn')}")
        elif method.startswith("timm"):
            told.append(f"{cut(method.partition(':')[2], 40)} of timm, fine-tuned{cite('timm')}")
        elif subject.blind:
            told.append("the shares of the train fold")
        else:
            told.append(cut(method, 40))
    if told:
        yield (
            f"Reference: {listed(told)}, trained on the train fold, with settings chosen on the validation fold and "
            "the test fold looked at once."
        )


def _probes(gathered: RunCollection, cite: References) -> Iterator[str]:
    probings = [cell.task.probing for cell in gathered.cells() if cell.task.probing is not None]
    if not probings:
        return
    yield _fitted(probings, cite)
    if controls := _controls(probings, cite):
        yield f"Controls: {listed(controls)}."
    yield "A probe shows that a class can be read off a layer, not that the model uses it."
    judged = ["Feature Health Score"] if any(one.health for one in probings) else []
    judged += ["four failure modes"] if any(one.diagnosis.effects for one in probings) else []
    if judged:
        yield f"We judge by the {' and the '.join(judged)} of{cite('hype')}."
    if maps := [one.mapping for one in probings if one.mapping is not None]:
        yield _mapped(maps, cite)


def _fitted(probings: Sequence[ProbeAnalysis], cite: References) -> str:
    """What was kept of the models, and which probes were fitted on it."""
    points = [point for one in probings for point in one.points if point.part != "control"]
    parts = [words for name, words in _PARTS.items() if any(point.part == name for point in points)]
    pooled = [words for name, words in _POOLINGS.items() if any(point.pooling == name for point in points)]
    which = "chosen layers" if any(one.options.get("layers") for one in probings) else "every layer"
    kinds = []
    for protocol in dict.fromkeys(str(one.options.get("protocol") or "linear") for one in probings):
        words, sources, more = _PROBES.get(protocol, (clean(protocol), (), ""))
        kinds.append(f"{words}{cite(*sources)}{more}")
    widths = sorted({int(width) for one in probings if known(width := number(one.options.get("width"))) and width})
    projected = f", after a random projection to {listed([str(one) for one in widths])} numbers" if widths else ""
    best = " The best layer was chosen on the validation fold." if any(one.best for one in probings) else ""
    states = f"{which} of {listed(parts) or 'the model'}{f', pooled {listed(pooled)},' if pooled else ''}"
    return (
        f"From the same forward pass we kept the hidden states of {states} and fitted a probe to each: "
        f"{listed(kinds)}{projected}.{best}"
    )


def _controls(probings: Sequence[ProbeAnalysis], cite: References) -> list[str]:
    """The controls that there are."""
    points = [point for one in probings for point in one.points]
    layers = [point for point in points if point.part != "control"]
    found = []
    if any(known(point.control) for point in layers):
        found.append(f"a control task{cite('control')}")
    if any(known(point.label_permutation) for point in layers):
        found.append("refits on labels shuffled by group")
    if any(known(point.p_holm) for point in layers):
        found.append(f"permutation p-values{cite('permutation')} with Holm's correction over layers{cite('holm')}")
    if any(point.layer.startswith(RANDOM_ENCODER) for point in points):
        found.append("the same architecture with random weights")
    if any(point.layer == PIXELS for point in points):
        found.append("raw pixels")
    return found


def _mapped(maps: Sequence[SemanticMapping], cite: References) -> str:
    """What the probe of the last token was compared with."""
    names = {name for one in maps for name in one.readings}
    read = [f"{words}{cite(*sources)}" for name, (words, sources) in _REREADINGS.items() if name in names]
    others = (
        f", and with other readings of them: {listed(read)}; what is fitted, is on the validation fold" if read else ""
    )
    lens = ""
    if any(one.lens for one in maps):
        lens = f" The labels' words were read off each layer by the logit lens{cite('lens')}."
    return f"Semantic mapping compares the probe of the last token with the answers{others}.{lens}"


def _attributions(cells: Sequence[Cell], cite: References) -> Iterator[str]:
    found = [cell.task.attributions for cell in cells if cell.task.attributions is not None]
    if not found:
        return
    used = {one.name: one for told in found for one in told.methods}
    by_captum = {name for name, one in used.items() if _is_captums(one)}
    layers = dict.fromkeys(entry.layer for told in found for entry in told.entries)
    where = f" at {listed(list(layers))}" if 0 < len(layers) <= 8 else ""
    made = []
    if theirs := [f"{name}{cite(one.citation)}" for name, one in used.items() if name in by_captum]:
        made.append(f"by {listed(theirs)} with Captum{cite('captum')}")
    if own := [f"{name}{cite(one.citation)}" for name, one in used.items() if name not in by_captum]:
        made.append(f"by {listed(own)} with medmllm-plugins")
    of_answers = [one.how.startswith("answer,") for told in found for one in told.summary]
    label, answer = "a label's log-odds", "the answer's log-probability"
    what = label if not any(of_answers) else answer if all(of_answers) else f"{label} and of {answer}"
    yield f"Attributions of {what}{where} were made {listed(made) or 'by the methods listed'}."
    checks = []
    figures = {name for told in found for one in told.summary for name, value in one.figures.items() if known(value)}
    if "completeness_gap" in figures:
        checks.append(f"completeness{cite('completeness')}")
    if figures & {"deletion_gain", "insertion_gain"}:
        checks.append(f"deletion and insertion against random order{cite('deletion')}")
    if any(one.randomisation for told in found for one in told.summary):
        checks.append(f"randomisation of the weights from the head down{cite('sanity')}")
    if "stability" in figures:
        checks.append("stability under noise")
    if "inside" in figures:
        checks.append("mass inside the mask against the mask's share of the area")
    if "pointing" in figures:
        checks.append(f"the pointing game{cite('pointing')}")
    if checks:
        yield f"They were checked by {listed(checks)}."


def _is_captums(method: Method) -> bool:
    """Whether Captum's code computes a method: as its index has it, or else as the method of that name is declared."""
    if method.captum is not None:
        return method.captum
    spec = get_manager().attributions().get(method.name)
    return spec is not None and spec.captum


def set_citations(part: DataPart) -> list[str]:
    """Licence and source of a data set, for the page."""
    if part.spec is None:
        return []
    return [
        clean(one) for one in (part.spec.citation, f"Licence: {part.spec.licence}" if part.spec.licence else "") if one
    ]


def prompts(gathered: RunCollection) -> list[tuple[str, str]]:
    """The whole prompt of each task, as the manifests have it."""
    found = {
        cell.task.name: clean(cell.task.told["prompt"]) for cell in gathered.cells() if cell.task.told.get("prompt")
    }
    return sorted(found.items())


def commands(run: RunFolder) -> str:
    """The command line of a run, as far as the manifest tells it."""
    told = run.command
    if not told:
        return ""
    if run.baseline:
        tasks = " ".join(map(clean, sequence(told.get("tasks"))))
        return f"medmllm baseline {tasks} --method {run.baseline}"
    words = ["lmms-eval"]
    for name, value in told.items():
        if value not in (None, "", []):
            words.append(f"--{clean(name)} {clean(value)}")
    return " ".join(words)
