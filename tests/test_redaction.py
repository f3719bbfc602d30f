"""Keys and passwords stay out of a page, and nothing else does."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medmllm_plugins.redaction import shareable, shareable_manifest, without_secrets

SECRETS = st.text(alphabet="abcXYZ0189_+/-", min_size=8, max_size=40).map(lambda one: f"q7{one}")
NAMES = st.sampled_from(
    ["api_key", "apiKey", "API_KEY", "X-Api-Key", "key", "hf_token", "access.token", "client-secret", "db_password",
     "pwd", "auth", "Authorization", "sig", "credentials"]
)  # fmt: skip
FORMS = st.sampled_from(
    ["{n}={s}", "model=x,{n}={s},n=1", '{n}="{s}, 2"', "{{'{n}': '{s}'}}", '{{"{n}": "{s}"}}', "https://h/v1?{n}={s}&x=1",
     "https://h/v1?x=1&{n}={s}", "https://user:{s}@host/v1", "auth=Bearer {s}", "headers={n}={s}", "Bearer {s}",
     "monkey=1&{n}={s}"]
)  # fmt: skip


@given(NAMES, SECRETS, FORMS)
def test_a_secret_in_a_text_is_left_out(name: str, secret: str, form: str) -> None:
    assert secret not in without_secrets(form.format(n=name, s=secret))


@given(
    NAMES,
    SECRETS,
    st.recursive(
        st.just(None), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner), max_leaves=4
    ),
    st.lists(st.sampled_from(["a", "model", "tasks", 0]), max_size=5),
)
def test_a_secret_anywhere_in_a_manifest_is_left_out(name: str, secret: str, beside: Any, path: list[Any]) -> None:
    inner: Any = {name: [secret, {"deeper": secret}], "beside": beside}
    for step in path:
        inner = [inner] if step == 0 else {step: inner}
    assert secret not in json.dumps(shareable_manifest({"command": inner}))
    assert secret not in json.dumps(shareable_manifest({"tasks": {"med_cls_key": inner}}))


@pytest.mark.parametrize(
    "text",
    [
        "pretrained=x,max_new_tokens=64,tokenizer_mode=fast,image_token_id=5,monkey=rhesus,keyboard=qwerty",
        "image_token=<image>,token=5,use_auth=True,auth=False,pad_token=<|pad|>",
        "The key: a mass is bright. Answer key: B. Token: one word.",
        "https://host/path@revision, https://host:8080/path@1 and hub/name@main",
        "task-1234567890123456789 at sk-learn",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["key", "n", "token", "x"]), inner),
    max_leaves=10,
))  # fmt: skip
@example({"key": math.inf, "token": [-math.inf]})
def test_numbers_stay(value: Any) -> None:
    assert shareable(value) == value


def test_names_of_tasks_stay_and_a_number_may_be_a_password() -> None:
    told = {"tasks": {"med_cls_key": {"dataset": "key", "counts": {"token": 3}}}}
    assert shareable_manifest(told) == told
    assert shareable({"password": 1234, "pin": 5}) == {"password": "…", "pin": 5}


def test_depth_and_length_do_no_harm() -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    assert "…" in json.dumps(shareable(deep), ensure_ascii=False)
    assert without_secrets("key_" * 100_000).startswith("key_") and len(without_secrets("a" * 1_000_000)) == 1_000_000
