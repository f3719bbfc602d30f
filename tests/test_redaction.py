"""Keys and passwords stay out of a page, and nothing else does."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from medmllm_plugins.errors import DataError, OptionError, one_line
from medmllm_plugins.redaction import shareable, shareable_manifest, without_secrets

SECRETS = st.text(alphabet="abcXYZ0189_+/-", min_size=8, max_size=40).map(lambda text: f"q7{text}")
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
    content = {"tasks": {"med_cls_key": {"dataset": "key", "counts": {"token": 3}}}}
    assert shareable_manifest(content) == content
    assert shareable({"password": 1234, "pin": 5}) == {"password": "…", "pin": 5}


def test_depth_and_length_do_no_harm() -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    assert "…" in json.dumps(shareable(deep), ensure_ascii=False)
    assert without_secrets("key_" * 100_000).startswith("key_") and len(without_secrets("a" * 1_000_000)) == 1_000_000


SHAPED = {
    "JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    "OpenAI": "sk-proj-abcDEF0123456789abcd",
    "Hugging Face": "hf_abcdefghijklmnopqrstuv",
    "GitHub": "ghp_abcdefghij0123456789",
    "fine-grained GitHub": "github_pat_11ABCDEFG0abcdefghij_0123456789",
    "GitLab": "glpat-abcdefghij0123456789",
    "AWS, its name": "AKIAIOSFODNN7EXAMPLE",
    "AWS, its secret": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "Google": "AIzaSyA-abcdefghijklmnopqrstuvwxyz01234",
    "NVIDIA": "nvapi-abcdefghijklmnopqrstuvwx",
    "opaque": "q8Zr2LmT0xVb7NcK4pYw9HdS",
    "opaque with dashes": "pR3-kX9_vLq2ZtN8mWc5YbJ7dHs1GfA4",
    "opaque, small letters": "k3j9x0q2m7w8z1v5n4b6t2r8y3p0c7g5",
}


@pytest.mark.parametrize("shape", SHAPED)
@pytest.mark.parametrize("form", ["{s}", "pretrained=x,extra={s},n=1", "['a', '{s}']", "see {s}, please", "h={s}"])
def test_a_secret_is_known_by_its_shape(shape: str, form: str) -> None:
    assert SHAPED[shape] not in without_secrets(form.format(s=SHAPED[shape]))
    assert SHAPED[shape] not in json.dumps(
        shareable({"model_args": form.format(s=SHAPED[shape]), "x": [SHAPED[shape]]})
    )


@settings(max_examples=200)
@given(st.binary(min_size=32, max_size=48))
def test_most_keys_drawn_at_random_are_known(content: bytes) -> None:
    key = base64.urlsafe_b64encode(hashlib.sha512(content).digest())[:43].decode()
    event(f"known: {key not in without_secrets(f'extra={key}')}")
    # Some look like names; of four drawn from one content hardly all do.
    keys = [base64.urlsafe_b64encode(hashlib.sha512(content + bytes([k])).digest())[:43].decode() for k in range(4)]
    assert sum(key in without_secrets(f"extra={key}") for key in keys) < 4


@pytest.mark.parametrize(
    "text",
    [
        hashlib.sha256(b"weights").hexdigest(),
        hashlib.sha256(b"weights").hexdigest().upper(),
        "123e4567-e89b-12d3-a456-426614174000",
        "fingerprint=" + hashlib.md5(b"x").hexdigest(),
        "Qwen/Qwen2-VL-72B-Instruct-GPTQ-Int4",
        "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        "Qwen2-VL-72B-Instruct-GPTQ-Int4, BiomedCLIPPubMedBERT256vitBasePatch16224",
        "models--lingshu-medical-mllm--Lingshu-7B/snapshots/0123456789abcdef0123456789abcdef01234567/model.safetensors",
        "1.2.840.113619.2.55.3.604688119.971.1234567890.123",
        "/data/scans/COVID19CT/2020.03.01.20029769-p21-73_1%1.png",
        "2.9.0+cu128 and Linux-6.1.0-x86_64-with-glibc2.36",
        "mailto:joe@example.org, 12:30@ward and hub/name@main",
    ],
)
def test_hashes_and_names_stay(text: str) -> None:
    assert without_secrets(text) == text
    assert shareable({"value": text, "model_args": text}) == {"value": text, "model_args": text}


def test_arguments_are_taken_apart_at_their_names() -> None:
    content = "pretrained=a/b,password=my long, secret x,headers={'Authorization': 'Basic cTc6cTc='},base=https://u:q7q7@h/v1,n=1"
    shared = shareable({"model_args": content})["model_args"]
    assert shared.startswith("pretrained=a/b,password=…,headers=") and shared.endswith("@h/v1,n=1")
    assert not any(part in shared for part in ("long", "secret", "cTc6", "q7q7"))
    assert shareable({"gen_kwargs": '{"api_key": "q7q7", "n": 1}'}) == {"gen_kwargs": '{"api_key": "…", "n": 1}'}
    assert shareable({"model_args": {"api_key": "q7q7", "n": (1, 2)}}) == {"model_args": {"api_key": "…", "n": [1, 2]}}
    assert without_secrets("joe:q7q7q7@host.org/x") == "…@host.org/x"


def test_errors_quote_no_secrets_and_keep_ids() -> None:
    error = OptionError("Expected `url`, got 'https://joe:q7q7@host/' with api_key=q7q7q7 and sk-abc0123456789012345.")
    assert "q7q7" not in str(error) and "sk-abc" not in str(error) and "Expected `url`, got" in str(error)
    assert "q7q7" not in one_line(ValueError("token=q7q7"))
    assert SHAPED["opaque"] in str(DataError(f"scans/{SHAPED['opaque']}: expected {SHAPED['opaque']}"))
    assert str(DataError("plain")) == "plain" and DataError("a", 3).args == ("a", 3)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/data/patient_key=a1/img.png: expected an image", "/data/patient_key=…/img.png: expected an image"),
        ("/data/key=3/img.png: expected an image", "/data/key=3/img.png: expected an image"),
        (r"C:\d\key=abc\token=def\x.png: damaged", r"C:\d\key=…\token=…\x.png: damaged"),
        ("https://host/a?token=abc/def", "https://host/a?token=…"),
        ("t.csv: column 'key': expected numbers, got 'x'", "t.csv: column 'key': expected numbers, got 'x'"),
        ("{'key': 'expectedly'}", "{'key': …"),
    ],
)
def test_an_error_still_names_file_and_fault(text: str, shown: str) -> None:
    assert str(DataError(text)).startswith(shown)


def test_classes_stay_those_of_the_answers() -> None:
    labels = ["key=a", "sk-lesion-type-2-benign"]
    facts = {"labels": labels, "positive": labels[1], "orders": {"first": labels}, "api_key": "abc", "note": "key=a"}
    content = shareable_manifest({"tasks": {"t": facts, "u": "key=a"}})["tasks"]
    assert content == {"t": {**facts, "api_key": "…", "note": "key=…"}, "u": "key=…"}
