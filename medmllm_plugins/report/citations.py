"""Sources of the methods, and the numbers of citations."""

from __future__ import annotations

import re
from typing import Final

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
    "completeness": "Sundararajan et al. Axiomatic Attribution for Deep Networks. arXiv:1703.01365 (2017).",
    "deletion": "Petsiuk V, Das A, Saenko K. RISE: Randomized Input Sampling for Explanation of Black-box Models. BMVC "
    "2018; arXiv:1806.07421.",
    "sanity": "Adebayo J, et al. Sanity Checks for Saliency Maps. NeurIPS 2018; arXiv:1810.03292.",
    "pointing": "Zhang J, et al. Top-Down Neural Attention by Excitation Backprop. Int. J. Comput. Vis. 126, 1084-1102 "
    "(2018).",
}
"""Sources by name."""
_IDENTIFIER: Final = re.compile(r"(?i)arXiv:\s*(\d{4}\.\d{4,5})")


class References:
    """Numbers sources in the order of their first citation; one paper has one number, however it is cited."""

    def __init__(self) -> None:
        self._sources: dict[str, str] = {}

    def __call__(self, *names: str) -> str:
        """Return the mark of sources, given by name or as whole citations, such as ``" [2,3]"``."""
        numbers = set()
        for name in names:
            source = SOURCES.get(name, name)
            if source:
                identifier = _IDENTIFIER.search(source)
                key = identifier[1] if identifier else source
                self._sources.setdefault(key, source)
                numbers.add(list(self._sources).index(key) + 1)
        return f" [{','.join(map(str, sorted(numbers)))}]" if numbers else ""

    def all(self) -> tuple[str, ...]:
        """Return the sources in the order of their numbers."""
        return tuple(self._sources.values())
