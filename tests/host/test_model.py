"""Our models behind the host's chat interface: batches, answers, and what is refused."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.echo_model import GREEDY, Echo, ask, build, grey, manifest_of, texts, user
from support.image_files import picture, write_picture

from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.models.options import LoadOptions

# -- what comes out ------------------------------------------------------------------------------------------------


def test_a_task_that_is_not_ours_gets_plain_text(echo: Echo) -> None:
    model = build()
    results = model.generate_until(ask(model, user(grey(7), "What is this?")))
    assert texts(results) == ["What is this? 7. STOP and more"]
    assert results[0].token_counts.output_tokens == 3
    assert echo.batches[0]["labels"] is None


def test_a_task_of_ours_gets_an_envelope_with_scores_in_class_order(echo: Echo) -> None:
    model = build()
    asked = ask(model, user(grey(7), "Which?"), task="ours", labels=["normal", "cyst"], medmllm={"dataset": "d"})
    (result,) = model.generate_until(asked)
    assert json.loads(result.text) == {
        "medmllm": 1,
        "text": "Which? 7. STOP and more",
        "scores": [-6.0, -4.0],
        "blank": [-3.0, -2.0],
    }
    assert echo.batches[0]["labels"] == ("normal", "cyst")


def test_tasks_may_be_mixed_and_every_answer_finds_its_request(echo: Echo) -> None:
    model = build(batch_size=2)
    plain = ask(model, *(user(grey(i), f"p{i}") for i in range(5)), task="plain")
    ours = ask(model, *(user(grey(i), f"o{i}") for i in range(3)), task="ours", labels=["a", "bb"], medmllm={})
    # The same documents once more under other settings: they cannot share a batch.
    short = ask(
        model, *(user(grey(i), f"s{i}") for i in range(3)), task="short", settings={**GREEDY, "max_new_tokens": 2}
    )
    mixed = [plain[0], ours[0], short[0], plain[1], ours[1], plain[2], short[1], plain[3], ours[2], plain[4], short[2]]
    results = model.generate_until(mixed)
    for request, result in zip(mixed, results, strict=True):
        task, index = request.args[4], request.args[3]
        text = f"{task[0]}{index} {index}. STOP and more"
        assert (json.loads(result.text)["text"] if task == "ours" else result.text) == text
    assert all(len({question[0] for question in batch["questions"]}) == 1 for batch in echo.batches)
    assert sorted(len(batch["questions"]) for batch in echo.batches) == [1, 1, 1, 2, 2, 2, 2]
    assert {batch["questions"][0][0]: batch["max_new_tokens"] for batch in echo.batches} == {"p": 8, "o": 8, "s": 2}
    names = {stage["name"] for stage in manifest_of(model)["stages"]}
    assert names == {"load", "answer plain", "answer ours", "answer short"}
    assert manifest_of(model)["tasks"]["ours"]["prompt"] == "SYSTEM <image> o0 END"


def test_settings_divide_the_batches_of_one_task_too(echo: Echo) -> None:
    model = build(batch_size=8)
    requests = ask(model, *(user(grey(i), f"q{i}") for i in range(4)))
    for request in requests[::2]:
        request.args[2]["max_new_tokens"] = 3
    assert texts(model.generate_until(requests)) == [f"q{i} {i}. STOP and more" for i in range(4)]
    assert sorted((batch["max_new_tokens"], batch["questions"]) for batch in echo.batches) == [
        (3, ["q0", "q2"]),
        (8, ["q1", "q3"]),
    ]


def test_padding_and_repeats_are_answered_once(echo: Echo) -> None:
    """The host pads a rank's requests with clones of the last, and repeats a request as the same object."""
    from lmms_eval.evaluator import _clone_padding_request

    model = build(batch_size=4)
    requests = ask(model, user(grey(1), "a"), user(grey(2), "b"), task="ours", labels=["x"], medmllm={})
    padded = [requests[0], requests[0], requests[1], _clone_padding_request(requests[1])]
    results = texts(model.generate_until(padded))
    assert [json.loads(text)["text"][0] for text in results] == ["a", "a", "b", "b"]
    assert results[2] == results[3]
    assert [batch["questions"] for batch in echo.batches] == [["a", "b"]]


def test_no_requests_are_no_error(echo: Echo) -> None:
    assert build().generate_until([]) == []


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ([], "q 5. STOP and more"),
        (None, "q 5. STOP and more"),
        ("STOP", "q 5."),
        (["xx", ".", "STOP"], "q 5"),
        ([""], "q 5. STOP and more"),
    ],
)
def test_answers_end_at_the_first_stop_word(echo: Echo, until: Any, expected: str) -> None:
    model = build()
    requests = ask(model, user(grey(5), "q"), settings={**GREEDY, "until": until})
    assert texts(model.generate_until(requests)) == [expected]


def test_max_new_tokens_of_the_model_goes_before_the_tasks(echo: Echo) -> None:
    for arguments, settings, expected in (
        ("pretrained=demo", GREEDY, 8),
        ("pretrained=demo,max_new_tokens=5", GREEDY, 5),
        ("pretrained=demo", {}, 64),
    ):
        model = build(arguments)
        requests = ask(model, user(grey(5), "q"), settings={"until": [], **settings})
        model.generate_until(requests)
        assert echo.batches[-1]["max_new_tokens"] == expected


def test_images_may_be_files_and_text_may_stand_in_pieces(echo: Echo, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", "a")
    first = picture("a").getpixel((0, 0))
    model = build(batch_size=3)
    named = [{"type": "image", "url": str(path)}, {"type": "text", "text": "one"}]
    messages = [[{"role": "user", "content": named}], user(path, "two"), user("three", grey(9), "lines")]
    answers = texts(model.generate_until(ask(model, *messages)))
    assert answers == [f"one {first}. STOP and more", f"two {first}. STOP and more", "three\nlines 9. STOP and more"]


def test_weights_are_loaded_once_and_not_before_the_first_answer(echo: Echo) -> None:
    model = build("pretrained=demo,device=cpu,dtype=float32,attn_implementation=sdpa")
    assert echo.loaded == []
    for _ in range(2):
        model.generate_until(ask(model, user(grey(5), "q")))
    assert echo.loaded == [LoadOptions("demo", device="cpu", dtype="float32", attn_implementation="sdpa")]
    assert manifest_of(model)["model"]["parameters"] == 7
    model.clean()  # the host does this before the scoring; who asks again gets the model again
    model.generate_until(ask(model, user(grey(5), "q")))
    assert len(echo.loaded) == 2


def test_a_plain_task_of_the_host_gets_plain_text(
    evaluate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole task in the host's own format, evaluated together with one of ours by the demo."""
    from lmms_eval.tasks import TaskManager

    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"What is shown in picture {i}?", "answer": "nothing", "file": f"{i}.png"} for i in range(3)]
    for row in rows:
        write_picture(folder / row["file"])
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "readers.py").write_text(
        "from pathlib import Path\nfrom PIL import Image\n\n"
        "def image(doc):\n    return [Image.open(Path(__file__).parent / doc['file']).convert('RGB')]\n"
    )
    (folder / "stranger.yaml").write_text(
        "task: stranger\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}, cache_dir: {tmp_path / 'cache'}}}\n"
        "test_split: test\noutput_type: generate_until\n"
        "doc_to_visual: !function readers.image\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
        "generation_kwargs: {max_new_tokens: 6}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\nmetadata: {version: 1.0}\n"
    )
    monkeypatch.chdir(folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    both = evaluate(tmp_path / "out", tasks=["stranger", "med_cls_demo"], task_manager=manager, batch_size=4, limit=3)
    answers = [sample["filtered_resps"][0] for sample in both.samples("stranger")]
    assert len(answers) == 3
    assert not any("medmllm" in answer or "scores" in answer for answer in answers)
    assert both.values("stranger") == {"exact_match,none": 0.0}
    assert all("medmllm" in sample["filtered_resps"][0] for sample in both.samples("med_cls_demo"))
    # The manifest tells the prompt of each; the rest about a task only our own tasks know.
    assert "picture" in both.manifest["tasks"]["stranger"]["prompt"]
    assert both.manifest["tasks"]["stranger"]["settings"] is None and not both.manifest["tasks"]["stranger"]["counts"]


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (user(grey(1), grey(2), "q"), "2 images"),
        (user("q"), "0 images"),
        ([*user(grey(1), "q"), {"role": "assistant", "content": "a"}, *user("and?")], "3 turns"),
        ([{"role": "user", "content": "only text"}], "0 images"),
        ([{"role": "user", "content": [{"type": "video", "url": "v.mp4"}, {"type": "text", "text": "q"}]}], "video"),
        ([{"role": "user", "content": [{"type": "image", "url": 5}, {"type": "text", "text": "q"}]}], "got 5"),
    ],
)
def test_anything_but_one_image_in_one_turn_is_refused(echo: Echo, messages: list[dict[str, Any]], says: str) -> None:
    model = build()
    with pytest.raises(ModelError) as caught:
        model.generate_until(ask(model, messages))
    message = str(caught.value)
    assert says in message and "expected" in message and "stranger, document 0" in message
    assert echo.batches == []


@pytest.mark.parametrize("setting", [{"do_sample": True}, {"temperature": 0.7}, {"num_beams": 4}])
def test_sampling_is_refused(echo: Echo, setting: dict[str, Any]) -> None:
    model = build()
    with pytest.raises(OptionError, match="greedy") as caught:
        model.generate_until(ask(model, user(grey(1), "q"), settings={**GREEDY, **setting}))
    ((name, value),) = setting.items()
    assert f"'{name}': {value}" in str(caught.value) and "--gen_kwargs" in str(caught.value)
    assert echo.batches == []


def test_greedy_decoding_may_be_spelled_out(echo: Echo) -> None:
    model = build()
    for settings in ({"do_sample": None}, {"temperature": 0}, {"temperature": None}, {"num_beams": 1, "top_p": None}):
        model.generate_until(ask(model, user(grey(1), "q"), settings={**GREEDY, **settings}))


def test_sampling_from_the_command_line_is_refused(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="greedy"):
        evaluate(tmp_path, limit=1, gen_kwargs="temperature=0.7,do_sample=True")


def test_a_prompt_that_is_too_long_says_so(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        evaluate(tmp_path, limit=1, model_args="pretrained=demo,device=cpu,max_new_tokens=100000")
    message = str(caught.value)
    assert "100000 may follow" in message and "the model takes 2048" in message and "max_new_tokens" in message


def test_other_kinds_of_requests_are_refused(echo: Echo) -> None:
    model = build()
    with pytest.raises(ModelError, match="generation tasks only"):
        model.loglikelihood([])
    with pytest.raises(ModelError, match="single-round"):
        model.generate_until_multi_round([])


def test_a_fault_found_while_answering_stops_the_run(
    evaluate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are read in a thread ahead of the model; an error there must come out, and not hang or be lost."""
    from medmllm_plugins.data.layouts.phantoms import Phantoms
    from medmllm_plugins.errors import DataError

    real, read = Phantoms.image, []

    def image(self: Phantoms, spec: Any, folder: Path, document: Any) -> Image.Image:
        read.append(document.id)
        if len(read) == 4:
            raise DataError(f"{document.id}: gone since it was checked.")
        return real(self, spec, folder, document)

    monkeypatch.setattr(Phantoms, "image", image)
    with pytest.raises(DataError, match="gone since"):
        evaluate(tmp_path, limit=6, batch_size=2)


# -- progress ----------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_one_bar_for_terminals_and_none_elsewhere(
    evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents, their rate, time left and the answers that were not parsed."""
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        evaluate(tmp_path / "a", limit=12, batch_size=4, model_args="pretrained=demo,device=cpu,max_new_tokens=1")
    last = [line for line in terminal.getvalue().split("\r") if line.startswith("medm_vl:")][-1]
    assert "12/12" in last and "doc/s" in last and re.search(r"unparsed=\d+", last)
    assert int(re.search(r"unparsed=(\d+)", last)[1]) > 0  # type: ignore[index]
    pipe = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", pipe)
        evaluate(tmp_path / "b", limit=12, batch_size=4)
    assert "medm_vl:" not in pipe.getvalue()
