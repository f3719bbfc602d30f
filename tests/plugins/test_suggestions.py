"""What may have been meant by a wrong name: a handful, best first, or nothing."""

from __future__ import annotations

from medmllm_plugins.utils.suggestions import MOST, close_names, did_you_mean

KNOWN = [
    f"{prefix}{name}{suffix}"
    for prefix in ("med_cls_", "med_probe_")
    for name in ("busi", "demo")
    for suffix in ("", "_open")
]


def test_the_likest_comes_first() -> None:
    assert close_names("med_cls_bussi", KNOWN)[0] == "med_cls_busi"
    assert close_names("MED_CLS_BUSI", KNOWN)[0] == "med_cls_busi"
    assert close_names("busi", KNOWN) == ["med_cls_busi", "med_probe_busi", "med_cls_busi_open", "med_probe_busi_open"]


def test_never_more_than_a_handful_and_none_where_none_is_like_it() -> None:
    assert len(close_names("med_cls", [f"med_cls_{number}" for number in range(500)])) == MOST
    assert close_names("zzz", KNOWN) == [] and close_names("", KNOWN) == [] and close_names("x" * 10**6, KNOWN) == []
    assert close_names("busi", []) == []


def test_the_question() -> None:
    assert did_you_mean("a_demo", ["a_demos"]) == "Did you mean a_demos?"
    assert did_you_mean("a_demo", ["a_demos", "a_dem"]) in (
        "Did you mean a_demos or a_dem?",
        "Did you mean a_dem or a_demos?",
    )
    assert did_you_mean("zzz", KNOWN) == ""
