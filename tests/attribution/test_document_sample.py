"""Documents to explain are drawn by class, correct answers and errors."""

from __future__ import annotations

from medmllm_plugins.attribution.document_sample import sample_by_class


def test_a_sample_has_hits_and_errors_of_each_class() -> None:
    answered = [(f"{label}{number}", label, number % 4 > 0) for label in "ab" for number in range(40)]
    answered += [(f"c{number}", "c", True) for number in range(5)]
    answered += [("d0", "d", False), ("e0", "e", True)]
    chosen = sample_by_class(answered, 4)
    labels, hits = {name: label for name, label, _ in answered}, {name: hit for name, _, hit in answered}
    for label in "ab":
        own = [hits[name] for name in chosen if labels[name] == label]
        assert own == [True, True, False, False]
    assert len([name for name in chosen if name[0] == "c"]) == 4  # no errors: hits in their place
    assert chosen[-2:] == ["d0", "e0"] and len(set(chosen)) == len(chosen)
    assert sample_by_class(answered[::-1], 4) == chosen
    assert [hits[name] for name in sample_by_class(answered, 3)[:3]] == [True, True, False]
    assert [labels[name] for name in sample_by_class(answered, 1)] == list("abcde")
    assert [hits[name] for name in sample_by_class(answered, 1)] == [True, True, True, False, True]
