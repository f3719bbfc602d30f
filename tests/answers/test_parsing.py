"""The answer parser on a table of answers as models write them, each read by hand."""

from __future__ import annotations

import pytest

from medmllm_plugins.answers.parsing import Answer, parse_answer
from medmllm_plugins.errors import OptionError

BUSI = {
    "benign": ("non-malignant", "not malignant", "noncancerous", "non-cancerous"),
    "malignant": ("malignancy", "cancerous", "carcinoma"),
    "normal": ("healthy", "no lesion", "no mass", "no abnormality"),
}
COVID = {
    "COVID": ("COVID-19", "COVID19", "SARS-CoV-2", "coronavirus"),
    "Non-COVID": ("NonCOVID", "Non-COVID-19", "not COVID", "no COVID"),
}
NODULE = {"benign": (), "malignant": ("malignancy",)}
CHEST: dict[str, tuple[str, ...]] = {"NORMAL": (), "PNEUMONIA": ()}
ABNORMAL: dict[str, tuple[str, ...]] = {"normal": (), "abnormal": ()}
NEGATED: dict[str, tuple[str, ...]] = {"pneumonia": (), "no pneumonia": ()}
GRADES = {"0": ("no retinopathy",), "1": ("mild",), "2": ("moderate",), "3": ("severe",), "4": ("proliferative",)}
PHANTOMS = {
    "round mass": ("smooth mass", "oval mass"),
    "spiculated mass": ("spiky mass", "star-shaped mass"),
    "textured patch": ("texture patch", "reticular patch"),
    "no finding": ("no findings", "clear"),
}
CHINESE = {"benign": ("良性",), "malignant": ("恶性",), "normal": ("正常",)}
KOREAN = {"benign": ("양성",), "malignant": ("악성",), "normal": ("정상",)}

P, A, N, R = "parsed", "ambiguous", "out_of_list", "refusal"

TEXTS = [
    # Plain names and synonyms.
    (BUSI, "benign", P, "benign"),
    (BUSI, "Malignant.", P, "malignant"),
    (BUSI, "**Normal**", P, "normal"),
    (BUSI, "`benign`<|im_end|>", P, "benign"),
    (BUSI, "malignant</s>", P, "malignant"),
    (BUSI, "<start_of_turn>model\nnormal<end_of_turn>", P, "normal"),
    (BUSI, "The ultrasound shows a carcinoma.", P, "malignant"),
    (BUSI, "This lesion is most likely benign.", P, "benign"),
    (BUSI, "Findings are suspicious for malignancy.", P, "malignant"),
    (BUSI, "The mass is benign. Benign masses of this kind need no biopsy.", P, "benign"),
    (BUSI, "A benign\u00adity check: benign", P, "benign"),
    (BUSI, "ＢＥＮＩＧＮ", P, "benign"),
    (BUSI, '{"diagnosis": "malignant"}', P, "malignant"),
    (BUSI, "~~benign~~ malignant", P, "malignant"),
    (BUSI, "The lesion looks <b>benign</b>.", P, "benign"),
    # Whole words, longest first.
    (BUSI, "benignity", N, None),
    (BUSI, "The image is abnormal.", N, None),
    (BUSI, "A premalignant or pre-malignant change.", N, None),
    (ABNORMAL, "The image is abnormal.", P, "abnormal"),
    (ABNORMAL, "Normal", P, "normal"),
    (ABNORMAL, "not normal", P, "abnormal"),
    (ABNORMAL, "normal/abnormal", A, None),
    (COVID, "Non-COVID", P, "Non-COVID"),
    (COVID, "non covid", P, "Non-COVID"),
    (COVID, "NON_COVID", P, "Non-COVID"),
    (COVID, "NonCOVID", P, "Non-COVID"),
    (COVID, "Non–COVID‑19", P, "Non-COVID"),
    (COVID, "This is a COVID 19 scan.", P, "COVID"),
    (COVID, "COVID‑19 pneumonia is likely.", P, "COVID"),
    (COVID, "There is no COVID.", P, "Non-COVID"),
    (COVID, "COVID or Non-COVID", A, None),
    (COVID, "COVID-like opacities", N, None),
    (NEGATED, "There is no pneumonia.", P, "no pneumonia"),
    (NEGATED, "Pneumonia is present.", P, "pneumonia"),
    (NEGATED, "no evidence of pneumonia", P, "no pneumonia"),
    (PHANTOMS, "There are no findings.", P, "no finding"),
    (PHANTOMS, "A star shaped mass.", P, "spiculated mass"),
    (PHANTOMS, "a spiculated_mass", P, "spiculated mass"),
    (PHANTOMS, "a mass", N, None),
    (PHANTOMS, "No round mass, spiculated mass, or textured patch is seen.", N, None),
    (PHANTOMS, "a round mass rather than a spiculated mass", P, "round mass"),
    # Negation.
    (BUSI, "No evidence of malignancy.", N, None),
    (BUSI, "It is not malignant.", P, "benign"),
    (BUSI, "The lesion is not benign.", N, None),
    (BUSI, "It isn’t benign.", N, None),
    (BUSI, "not benign, malignant", P, "malignant"),
    (BUSI, "It is malignant, not benign.", P, "malignant"),
    (BUSI, "It is not benign but malignant.", P, "malignant"),
    (BUSI, "The lesion does not appear benign; it is malignant.", P, "malignant"),
    (BUSI, "Malignancy is ruled out.", N, None),
    (BUSI, "Malignancy has been excluded, so the mass is benign.", P, "benign"),
    (BUSI, "This rules out malignancy.", N, None),
    (BUSI, "Malignancy excluded. Benign.", P, "benign"),
    (BUSI, "A mass, malignancy (excluded), benign", P, "benign"),
    (BUSI, "without carcinoma (as labelled) or benign change", N, None),
    (BUSI, "malignancy cannot be ruled out", N, None),
    (BUSI, "Malignancy is unlikely.", N, None),
    (BUSI, "Unlikely to be malignant; benign.", P, "benign"),
    (BUSI, "A benign mass without malignancy.", P, "benign"),
    (BUSI, "Absence of carcinoma.", N, None),
    (BUSI, "Negative for carcinoma", N, None),
    (BUSI, "Neither benign nor malignant", N, None),
    (BUSI, "neither benign nor malignant, it is normal", P, "normal"),
    (BUSI, "No mass is seen; the image is normal", P, "normal"),
    (BUSI, "There is no malignancy, and the image is normal.", P, "normal"),
    (BUSI, "There is no malignancy and the tissue is healthy.", P, "normal"),
    (BUSI, "No calcification, shadowing, or malignancy.", N, None),
    (BUSI, "benign rather than malignant", P, "benign"),
    (BUSI, "more likely benign than malignant", P, "benign"),
    (BUSI, "This is not only benign but also normal.", A, None),
    (BUSI, "no doubt malignant", P, "malignant"),
    (BUSI, "Malignant: no\nBenign: yes", P, "benign"),
    (BUSI, "| malignant | no |\n| benign | yes |", P, "benign"),
    (BUSI, "Low suspicion for malignancy", N, None),
    (BUSI, "noncancerous", P, "benign"),
    (BUSI, "non-benign", N, None),
    (BUSI, "a non-specific benign mass", P, "benign"),
    (BUSI, "Is it malignant? No.", N, None),
    (BUSI, "Is it malignant? Yes.", P, "malignant"),
    (BUSI, "Is the lesion benign or malignant? It is benign.", P, "benign"),
    (BUSI, "not\nbenign", N, None),
    (BUSI, "(not benign) malignant", P, "malignant"),
    (BUSI, "No. Malignant.", P, "malignant"),
    (BUSI, "The margins argue against malignancy.", N, None),
    (CHEST, "No pneumonia, normal.", P, "NORMAL"),
    (CHEST, "No effusion, consolidation, or pneumonia.", P, "NORMAL"),
    (CHEST, "Pneumonia, effusion, or pneumothorax is not seen.", P, "NORMAL"),
    (CHEST, "Lungs are clear without pneumonia. Impression: normal chest", P, "NORMAL"),
    (CHEST, "The findings are consistent with pneumonia.", P, "PNEUMONIA"),
    (CHEST, "The findings are not consistent with pneumonia.", P, "NORMAL"),
    (COVID, "The test is negative for COVID.", P, "Non-COVID"),
    (COVID, "COVID-19: negative", P, "Non-COVID"),
    (COVID, "COVID-free", P, "Non-COVID"),
    # With two classes a negated one is the other; a doubted, advised or supposed one is not.
    (COVID, "No signs of COVID-19 pneumonia.", P, "Non-COVID"),
    (COVID, "This is not Non-COVID.", P, "COVID"),
    (COVID, "COVID-19 cannot be excluded.", N, None),
    (CHEST, "Is there pneumonia? No.", P, "NORMAL"),
    (CHEST, "Early pneumonia may be missed on radiographs.", N, None),
    (CHEST, "A follow-up film is recommended to exclude pneumonia.", N, None),
    (CHEST, "Neither normal nor pneumonia", N, None),
    (NODULE, "should check for malignancy", N, None),
    (NODULE, "If it were spiculated, malignancy would be considered.", N, None),
    (NODULE, "Unlikely to be malignant.", P, "benign"),
    # Parts of the body, surroundings and comparisons are no answers.
    (CHEST, "Normal heart size. Consolidation in the right lower lobe.", N, None),
    (CHEST, "The heart is normal. There is pneumonia.", P, "PNEUMONIA"),
    (CHEST, "The cardiac silhouette is within normal limits.", N, None),
    (CHEST, "Normal chest radiograph.", P, "NORMAL"),
    (BUSI, "An irregular mass. The surrounding tissue is normal.", N, None),
    (BUSI, "Normal breast parenchyma.", P, "normal"),
    (BUSI, "Compared with a benign lesion, the margin is blurred.", N, None),
    # Statements about classes in general, and the options of the question.
    (BUSI, "Malignant masses are irregular; benign masses are smooth. This one is smooth: benign.", P, "benign"),
    (BUSI, "Of the categories benign, malignant and normal, this is malignant.", P, "malignant"),
    (BUSI, "Benign lesions usually have smooth margins.", N, None),
    # Data.
    (BUSI, '{"benign": 0.2, "malignant": 0.7, "normal": 0.1}', P, "malignant"),
    (BUSI, "benign: 70%, malignant: 25%, normal: 5%", P, "benign"),
    (BUSI, "benign 50%, malignant 50%", A, None),
    (BUSI, '```json\n{"reasoning": "malignant features are absent", "category": "benign"}\n```', P, "benign"),
    (BUSI, '{"organ": "breast", "finding": "malignant"}', P, "malignant"),
    (BUSI, "- benign: ✗\n- malignant: ✓\n- normal: ✗", P, "malignant"),
    (BUSI, "[ ] benign\n[x] malignant\n[ ] normal", P, "malignant"),
    # Other languages.
    (BUSI, "Lesión de aspecto benigno, sin signos de malignidad.", P, "benign"),
    (BUSI, "L'aspect est celui d'une lésion maligne plutôt que bénigne.", P, "malignant"),
    (BUSI, "Die Läsion ist nicht bösartig, sondern gutartig.", P, "benign"),
    (BUSI, "Образование злокачественное.", P, "malignant"),
    (BUSI, "悪性と判断します。良性とは考えにくい。", P, "malignant"),
    (CHEST, "未见肺炎征象", P, "NORMAL"),
    (CHEST, "폐렴 소견은 없습니다.", P, "NORMAL"),
    (CHEST, "Sem sinais de pneumonia.", P, "NORMAL"),
    # Slips of the keyboard, in a short answer that names nothing else.
    (BUSI, "bening", P, "benign"),
    (BUSI, "benin", P, "benign"),
    (BUSI, "malignent", P, "malignant"),
    (BUSI, "formal", N, None),
    (BUSI, "benignly", N, None),
    (CHEST, "No pnuemonia.", P, "NORMAL"),
    (CHEST, "Pnuemonia", P, "PNEUMONIA"),
    # Corrections and contradictions.
    (BUSI, "Benign. Correction: malignant.", P, "malignant"),
    (BUSI, "Diagnosis: benign\nDiagnosis: malignant", A, None),
    (BUSI, "I am torn between benign and malignant.", N, None),
    # Two classes.
    (BUSI, "benign, malignant, normal", A, None),
    (BUSI, "benign or malignant", A, None),
    (BUSI, "It looks benign, but could be malignant.", A, None),
    (BUSI, "benign/malignant", A, None),
    (BUSI, "A malignant mass in otherwise normal tissue", P, "malignant"),
    (BUSI, "no abnormality other than a malignant mass", A, None),
    # Reasoning, answer tags, boxes and statements.
    (BUSI, "<think>maybe malignant</think>benign", P, "benign"),
    (BUSI, "<thinking>\nbenign?\n</thinking>\n\nMalignant", P, "malignant"),
    (BUSI, "maybe malignant, maybe not.</think>benign", P, "benign"),
    (BUSI, "benign <think>x</think> malignant </think> normal", P, "normal"),
    (BUSI, "<think>It is benign because", N, None),
    (BUSI, "malignant <think>or is it benign", N, None),
    (BUSI, "<unused94>thought\nmalignant?<unused95>normal", P, "normal"),
    (BUSI, "Malignant features? <answer>benign</answer> (malignant is rarer)", P, "benign"),
    (BUSI, "malignant <answer>cyst</answer>", N, None),
    (BUSI, "<answer> </answer> malignant", P, "malignant"),
    (BUSI, r"Malignant at first sight. \boxed{benign}", P, "benign"),
    (BUSI, r"so $\boxed{\text{benign}}$", P, "benign"),
    (BUSI, r"\boxed{benign} then again \boxed{\mathrm{malignant}}", P, "malignant"),
    (BUSI, r"\boxed{\boxed{normal}}", P, "normal"),
    (BUSI, r"<answer>\boxed{malignant}</answer>", P, "malignant"),
    (BUSI, "Benign and malignant were weighed.\nFinal answer: malignant", P, "malignant"),
    (BUSI, "It may be benign or malignant.\n**Diagnosis:** benign", P, "benign"),
    (BUSI, "Answer: benign\nExplanation: malignant masses are irregular.", P, "benign"),
    (BUSI, "Answer: benign. Wait, actually it is malignant.", P, "malignant"),
    (BUSI, "Answer: benign\nFinal answer: malignant", P, "malignant"),
    (BUSI, "Answer: benign or malignant", A, None),
    (BUSI, "The differential diagnosis is malignant or benign. The answer is normal.", P, "normal"),
    (BUSI, "Malignant margins.\nDiagnosis: not malignancy", N, None),
    (BUSI, "malignant margins. Answer: none of the above", N, None),
    (BUSI, "Answer: (B)", N, None),
    (BUSI, "Answer: (B) malignant", P, "malignant"),
    # Refusals.
    (BUSI, "I'm sorry, I can't help with that.", R, None),
    (BUSI, "I’m sorry, but I can’t tell whether it is benign or malignant.", R, None),
    (BUSI, "I cannot provide medical advice.", R, None),
    (BUSI, "As an AI language model, I am not a doctor.", R, None),
    (BUSI, "I am unable to determine the class from this image.", R, None),
    (BUSI, "Please consult a radiologist.", R, None),
    (BUSI, "Consult a doctor to rule out malignancy.", R, None),
    (BUSI, "I can't classify this image as benign, malignant, or normal.", R, None),
    (BUSI, "As an AI I cannot diagnose, but the image suggests malignancy.", P, "malignant"),
    (BUSI, "The lesion is benign. Please consult a radiologist.", P, "benign"),
    (BUSI, "Malignant features.\nAnswer: cannot be determined", R, None),
    (BUSI, "I don't know.", R, None),
    # Nothing to read.
    (BUSI, "", N, None),
    (BUSI, " \n\t ", N, None),
    (BUSI, "cyst", N, None),
    (BUSI, "这是一个囊肿", N, None),
    (BUSI, "Это изображение", N, None),
    # Scripts without spaces.
    (CHINESE, "该病变为良性。", P, "benign"),
    (CHINESE, "这不是良性，而是恶性", P, "malignant"),
    (CHINESE, "未见恶性征象", N, None),
    (CHINESE, "良性或恶性", A, None),
    (CHINESE, "非常可能是恶性", P, "malignant"),
    (CHINESE, "无法判断", R, None),
    (CHINESE, "最终诊断benign", P, "benign"),
    (CHINESE, "良性ではない", N, None),
    (KOREAN, "양성입니다", P, "benign"),
    (KOREAN, "비정상", N, None),
    # Grades.
    (GRADES, "2", P, "2"),
    (GRADES, "Grade: 3", P, "3"),
    (GRADES, "moderate", P, "2"),
    (GRADES, "2 (moderate)", P, "2"),
    (GRADES, "2 (severe)", A, None),
    (GRADES, "1.5", N, None),
    (GRADES, "10", N, None),
    (GRADES, "-1", N, None),
    (GRADES, "2 mm", N, None),
    (GRADES, "0-4", A, None),
]

LETTERS = {"A": "benign", "B": "malignant", "C": "normal"}
WITH_LETTERS = [
    ("B", P, "malignant"),
    ("b", P, "malignant"),
    ("(B)", P, "malignant"),
    ("B.", P, "malignant"),
    ("**B**", P, "malignant"),
    ("Answer: B", P, "malignant"),
    ("The answer is (B)", P, "malignant"),
    ("The correct answer is B.", P, "malignant"),
    ("I would choose option C because no mass is there", P, "normal"),
    ("B) malignant", P, "malignant"),
    ("B: malignant", P, "malignant"),
    ("B malignant", P, "malignant"),
    ("Answer: B. malignant", P, "malignant"),
    ("A", P, "benign"),
    ("A.", P, "benign"),
    ("(A)", P, "benign"),
    ("Answer: A", P, "benign"),
    ("The answer is A, benign", P, "benign"),
    ("A benign lesion", P, "benign"),
    ("A malignant lesion", P, "malignant"),
    ("Answer: a malignant tumour", P, "malignant"),
    ("I think it is B", P, "malignant"),
    ("It is a malignant lesion", P, "malignant"),
    ("Answer the question", N, None),
    ("A lesion is seen", N, None),
    ("B) benign", A, None),
    ("Answer: B. benign", A, None),
    ("A or B", A, None),
    ("(A) benign (B) malignant (C) normal", A, None),
    ("A) benign\nB) malignant\nC) normal\nAnswer: B", P, "malignant"),
    ("not (A)", N, None),
    ("not (A), (B)", P, "malignant"),
    ("D", N, None),
    ("(D)", N, None),
    ("hepatitis B", N, None),
    ("as panel (B) shows", N, None),
    (r"\boxed{C}", P, "normal"),
    ("<think>A</think>C", P, "normal"),
    ("<answer>B</answer>", P, "malignant"),
    ("malignant", P, "malignant"),
]


@pytest.mark.parametrize(("classes", "text", "status", "label"), TEXTS, ids=[text[:60] for _, text, _, _ in TEXTS])
def test_reads_as_a_person_does(classes: dict[str, tuple[str, ...]], text: str, status: str, label: str | None) -> None:
    answer = parse_answer(text, classes)
    assert (answer.status, answer.label) == (status, label)


@pytest.mark.parametrize(("text", "status", "label"), WITH_LETTERS, ids=[text[:60] for text, _, _ in WITH_LETTERS])
def test_reads_letters_where_the_prompt_listed_them(text: str, status: str, label: str | None) -> None:
    answer = parse_answer(text, BUSI, options=LETTERS)
    assert (answer.status, answer.label) == (status, label)


@pytest.mark.parametrize("text", ["B", "(B)", "Answer: B", "B.", "option B"])
def test_letters_mean_nothing_without_options(text: str) -> None:
    assert parse_answer(text, BUSI) == Answer("out_of_list", None, ())


def test_candidates_stand_in_class_order() -> None:
    assert parse_answer("normal, then malignant, then benign", BUSI).candidates == ("benign", "malignant", "normal")


def test_a_phrase_of_two_classes_is_ambiguous() -> None:
    shared = {"left": ("mass",), "right": ("mass",)}
    assert parse_answer("a mass", shared) == Answer("ambiguous", None, ("left", "right"))


@pytest.mark.parametrize(
    "text",
    [
        "The lung shows a small opacity in the lobe. ",
        "benign ",
        "not ",
        "(",
        "<think>",
        r"\boxed{",
        "<answer>",
        "Answer: ",
        "Is it benign? No. ",
        "良",
        "\n",
        "ﷺ",
    ],
)
def test_a_long_text_is_read(text: str) -> None:
    # Reading in the square of the length would take hours already.
    answer = parse_answer(text * (200_000 // len(text)), BUSI, options=LETTERS)
    assert answer.status == ("parsed" if text == "benign " else "out_of_list")


def test_a_class_no_text_could_name_is_refused() -> None:
    with pytest.raises(OptionError, match="letter or digit"):
        parse_answer("x", {"+": (), "positive": ()})


def test_an_option_without_a_class_is_refused() -> None:
    with pytest.raises(OptionError, match="to name one of"):
        parse_answer("A", BUSI, options={"A": "cyst"})
