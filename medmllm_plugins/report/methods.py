"""A methods paragraph ready for a paper: what was done, as the manifests have it, with the source of each part used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from medmllm_plugins.manager import get_manager
from medmllm_plugins.report.gathering import Cell, DataPart, Gathered
from medmllm_plugins.report.reading import RunFolder
from medmllm_plugins.report.text import clean, cut, known, listed, mapping, number, quantity, sequence

SOURCES: Final = {
    "lmms-eval": "Zhang K, et al. LMMs-Eval: Reality Check on the Evaluation of Large Multimodal Models. "
    "arXiv:2407.12772 (2024).",
    "transformers": "Wolf T, et al. Transformers: State-of-the-Art Natural Language Processing. EMNLP 2020: System "
    "Demonstrations, 38-45.",
    "scikit-learn": "Pedregosa F, et al. Scikit-learn: Machine Learning in Python. J. Mach. Learn. Res. 12, 2825-2830 "
    "(2011).",
    "timm": "Wightman R. PyTorch Image Models. doi:10.5281/zenodo.4414861 (2019).",
    "captum": "Kokhlikyan N, et al. Captum: A unified and generic model interpretability library for PyTorch. "
    "arXiv:2009.07896 (2020).",
    "bootstrap": "Field CA, Welsh AH. Bootstrapping clustered data. J. R. Stat. Soc. B 69, 369-390 (2007).",
    "mcc": "Gorodkin J. Comparing two K-category assignments by a K-category correlation coefficient. Comput. Biol. "
    "Chem. 28, 367-374 (2004).",
    "auroc": "Hanley JA, McNeil BJ. The meaning and use of the area under a receiver operating characteristic (ROC) "
    "curve. Radiology 143, 29-36 (1982).",
    "macro": "Provost F, Domingos P. Well-trained PETs: improving probability estimation trees. CeDER Working Paper "
    "IS-00-04, New York University (2000).",
    "ece": "Guo C, Pleiss G, Sun Y, Weinberger KQ. On Calibration of Modern Neural Networks. ICML 2017.",
    "brier": "Brier GW. Verification of forecasts expressed in terms of probability. Mon. Weather Rev. 78, 1-3 (1950).",
    "kappa": "Cohen J. Weighted kappa: nominal scale agreement with provision for scaled disagreement or partial "
    "credit. Psychol. Bull. 70, 213-220 (1968).",
    "order": "Zheng C, et al. Large Language Models Are Not Robust Multiple Choice Selectors. ICLR 2024; "
    "arXiv:2309.03882.",
    "calibrate": "Zhao TZ, Wallace E, Feng S, Klein D, Singh S. Calibrate Before Use: Improving Few-Shot Performance "
    "of Language Models. ICML 2021; arXiv:2102.09690.",
    "probes": "Alain G, Bengio Y. Understanding intermediate layers using linear classifier probes. arXiv:1610.01644 "
    "(2016).",
    "control": "Hewitt J, Liang P. Designing and Interpreting Probes with Control Tasks. EMNLP-IJCNLP 2019, 2733-2743.",
    "permutation": "Ojala M, Garriga GC. Permutation Tests for Studying Classifier Performance. J. Mach. Learn. Res. "
    "11, 1833-1863 (2010).",
    "holm": "Holm S. A simple sequentially rejective multiple test procedure. Scand. J. Stat. 6, 65-70 (1979).",
    "hype": "Zhu et al. Lost in the Hype. arXiv:2604.08333 (2026).",
    "hungarian": "Kuhn HW. The Hungarian method for the assignment problem. Nav. Res. Logist. Q. 2, 83-97 (1955).",
    "lens": "nostalgebraist. interpreting GPT: the logit lens. LessWrong (2020).",
    "completeness": "Sundararajan M, Taly A, Yan Q. Axiomatic Attribution for Deep Networks. ICML 2017.",
    "deletion": "Petsiuk V, Das A, Saenko K. RISE: Randomized Input Sampling for Explanation of Black-box Models. BMVC "
    "2018; arXiv:1806.07421.",
    "sanity": "Adebayo J, et al. Sanity Checks for Saliency Maps. NeurIPS 2018; arXiv:1810.03292.",
    "pointing": "Zhang J, et al. Top-Down Neural Attention by Excitation Backprop. Int. J. Comput. Vis. 126, 1084-1102 "
    "(2018).",
}
"""Where each part of the methods comes from."""
_ASKED: Final = {
    "closed_set": "the classes listed in the question",
    "letter": "the classes listed under letters",
    "open": "no classes listed",
}


@dataclass(frozen=True, slots=True)
class Methods:
    """The paragraph, in pieces, and its numbered references."""

    paragraphs: tuple[str, ...]
    references: tuple[str, ...]

    def text(self) -> str:
        """All of it as plain text."""
        numbered = [f"[{number}] {one}" for number, one in enumerate(self.references, start=1)]
        return "\n\n".join([*self.paragraphs, *(["\n".join(numbered)] if numbered else [])]) + "\n"


class _References:
    """Numbers sources in the order in which they are first named."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def __call__(self, *names: str) -> str:
        """The mark of sources by name, or of citations given whole: ``[2,3]``."""
        numbers = []
        for name in names:
            source = SOURCES.get(name, name)
            if not source:
                continue
            if source not in self.found:
                self.found.append(source)
            numbers.append(self.found.index(source) + 1)
        return f" [{','.join(map(str, sorted(set(numbers))))}]" if numbers else ""


def methods(gathered: Gathered) -> Methods:
    """Write the paragraph."""
    cite = _References()
    cells = [cell for cell in gathered.cells() if cell.task.scored or cell.task.probing or cell.task.attributions]
    if not cells:
        return Methods(("No task of these runs has figures yet.",), ())
    parts = [
        " ".join(_models(gathered, cite)),
        " ".join(_data(gathered, cite)),
        " ".join(_answers(cells, cite)),
        " ".join(_references(gathered, cite)),
        " ".join(_probes(gathered, cite)),
        " ".join(_attributions(cells, cite)),
    ]
    return Methods(tuple(part for part in parts if part), tuple(cite.found))


def _versions(runs: Sequence[RunFolder], package: str) -> str:
    found = {clean(version) for run in runs if (version := mapping(run.manifest.get("versions")).get(package))}
    return f" {' and '.join(sorted(found))}" if found else ""


def _models(gathered: Gathered, cite: _References) -> Iterator[str]:
    runs = gathered.runs
    if not gathered.models:
        return
    specs = get_manager().models()
    named = []
    for subject in gathered.models:
        told = subject.runs[0].model
        name = str(told.get("name") or subject.runs[0].command.get("model") or "")
        spec = specs.get(name)
        facts = [clean(told[key]) for key in ("dtype", "load_in") if told.get(key)]
        if told.get("peft"):
            facts.append(f"adapter {cut(told['peft'], 40)}")
        how = f" in {', '.join(facts)}" if facts else ""
        named.append(f"{subject.label}{how}{cite(spec.citation if spec else '')}")
    yield (
        f"{listed(named)} {'was' if len(named) == 1 else 'were'} evaluated with lmms-eval{_versions(runs, 'lmms-eval')}"
        f"{cite('lmms-eval')}, medmllm-plugins{_versions(runs, 'medmllm-plugins')} and "
        f"transformers{_versions(runs, 'transformers')}{cite('transformers')}; no weights were changed."
    )


def _data(gathered: Gathered, cite: _References) -> Iterator[str]:
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


def _answers(cells: Sequence[Cell], cite: _References) -> Iterator[str]:
    scored = [cell for cell in cells if cell.task.scored]
    if not scored:
        return
    asked = dict.fromkeys(str(cell.task.told.get("protocol") or "closed_set") for cell in scored)
    how = listed([_ASKED.get(one, clean(one)) for one in asked])
    yield (
        f"Each image was shown with one question ({how}) and decoded greedily; an answer from which no class could be "
        "read counts as wrong."
    )
    names = {name for cell in scored for name, found in cell.metrics.items() if known(found)}
    told = ["accuracy, balanced accuracy, macro F1"]
    if "mcc" in names:
        told.append(f"the Matthews correlation coefficient{cite('mcc')}")
    if "auroc" in names:
        told.append(f"the area under the ROC curve{cite('auroc')}, each class against the others{cite('macro')}")
    if "ece" in names:
        told.append(f"expected calibration error in 15 bins{cite('ece')}")
    if "brier" in names:
        told.append(f"the Brier score{cite('brier')}")
    if "kappa" in names:
        told.append(f"quadratic weighted kappa{cite('kappa')}")
    draws = {int(one) for cell in scored if known(one := _draws(cell))}
    drawn = f"{max(draws):,} " if draws else ""
    yield (
        f"We report {listed(told)}, with 95 % percentile intervals from {drawn}bootstrap draws of groups"
        f"{cite('bootstrap')}. Differences are paired over the same questions and draws."
    )
    if any(mapping(cell.task.metrics.get("label_scores")) for cell in scored):
        yield (
            "Scores of the labels are sums of their tokens' log-probabilities behind the same prompt; scores less "
            f"those of a blank image stand beside them{cite('calibrate')}."
        )
    varied = {cell.task.varied for cell in scored}
    if "order" in varied:
        yield f"Every document was asked about under several orders of the options{cite('order')}."
    if "wording" in varied:
        yield "Every document was asked about in several wordings of the question."
    if blind := sorted({cell.task.image for cell in scored} - {"shown"}):
        yield f"As blind controls the image was {listed([_blind(one) for one in blind])}."


def _draws(cell: Cell) -> float:
    told = cell.task.metrics
    if "resamples" in told:
        return number(told["resamples"])
    return number(mapping(next(iter(mapping(told.get("variants")).values()), {})).get("resamples"))


def _blind(image: str) -> str:
    return {"blank": "replaced by a grey one", "shuffled": "replaced by one of another group"}.get(image, clean(image))


def _references(gathered: Gathered, cite: _References) -> Iterator[str]:
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


def _probes(gathered: Gathered, cite: _References) -> Iterator[str]:
    probings = [cell.task.probing for cell in gathered.cells() if cell.task.probing is not None]
    if not probings:
        return
    protocols = dict.fromkeys(str(one.options.get("protocol") or "linear") for one in probings)
    kinds = {
        "linear": f"multinomial logistic regression{cite('probes')} on standardised features, its L2 strength chosen "
        "by log loss on the validation fold",
        "paper": f"a two-layer MLP as in{cite('hype')}",
    }
    widths = {int(width) for one in probings if known(width := number(one.options.get("width"))) and width}
    projected = (
        f", after a random projection to {listed([str(one) for one in sorted(widths)])} numbers" if widths else ""
    )
    yield (
        "From the same forward pass we kept the hidden states of every layer of vision tower, connector and LLM, "
        "pooled as the mean over the image's tokens and as the prompt's last token, and fitted a probe to each: "
        f"{listed([kinds.get(one, clean(one)) for one in protocols])}{projected}. The best layer was chosen on the "
        "validation fold."
    )
    yield (
        f"Controls: a control task{cite('control')}, refits on labels shuffled by group, permutation p-values"
        f"{cite('permutation')} with Holm's correction over layers{cite('holm')}, the same architecture with random "
        "weights, and raw pixels. A probe shows that a class can be read off a layer, not that the model uses it."
    )
    yield f"The Feature Health Score and the four failure modes are those of{cite('hype')}."
    if any(one.mapping is not None for one in probings):
        lens = f", and the labels' words read off each layer by the logit lens{cite('lens')}"
        yield (
            "Semantic mapping compares the probe of the last token with the answers, the best one-to-one renaming of "
            f"the answers{cite('hungarian')}, scores less those of a blank image{cite('calibrate')}, fitted class "
            f"offsets and an affine map, all fitted on the validation fold"
            f"{lens if any(one.mapping and one.mapping.lens for one in probings) else ''}."
        )


def _attributions(cells: Sequence[Cell], cite: _References) -> Iterator[str]:
    found = [cell.task.attributions for cell in cells if cell.task.attributions is not None]
    if not found:
        return
    named = dict.fromkeys(f"{one.name}{cite(one.citation)}" for told in found for one in told.methods)
    loci = dict.fromkeys(entry.locus for told in found for entry in told.entries)
    where = f" at {listed(list(loci))}" if 0 < len(loci) <= 8 else ""
    yield (
        f"Attributions of a label's log-odds{where} were made by {listed(list(named)) or 'the methods listed'} with "
        f"Captum{cite('captum')}."
    )
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


def set_citations(part: DataPart) -> list[str]:
    """Licence and source of a data set, for the page."""
    if part.spec is None:
        return []
    return [
        clean(one) for one in (part.spec.citation, f"Licence: {part.spec.licence}" if part.spec.licence else "") if one
    ]


def prompts(gathered: Gathered) -> list[tuple[str, str]]:
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
