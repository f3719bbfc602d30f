"""Our models behind the host's chat interface: arguments, batches, and what is refused."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from support.image_files import picture, write_picture

from medmllm_plugins.errors import MedMLLMError, ModelError, OptionError
from medmllm_plugins.host.task_loading import new_session
from medmllm_plugins.models.base import Generation
from medmllm_plugins.models.checkpoint import demo_folder
from medmllm_plugins.models.options import LoadOptions

GREEDY = {"max_new_tokens": 8, "do_sample": False, "temperature": 0.0, "until": []}


class Echo:
    """Stands in for a loaded model: answers with the question and the grey value of the image's first pixel."""

    fingerprint = "0" * 64
    device = torch.device("cpu")
    dtype = torch.float32
    max_length = 100
    shows = "image"
    max_new_tokens = None
    weight_warnings: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.model = SimpleNamespace(
            parameters=lambda: iter([torch.zeros(3), torch.zeros(4)]),
            config=SimpleNamespace(_attn_implementation="eager"),
        )
        self.loaded: list[LoadOptions] = []
        self.batches: list[dict[str, Any]] = []

    def load(self, options: LoadOptions) -> Echo:
        self.loaded.append(options)
        return self

    def render(self, question: str) -> str:
        return f"SYSTEM <image> {question} END"

    def prepare(self, questions: Sequence[str], images: Sequence[Image.Image]) -> dict[str, Any]:
        return {"questions": list(questions), "images": list(images)}

    def generate(
        self,
        questions: Sequence[str],
        images: Sequence[Image.Image],
        *,
        max_new_tokens: int,
        labels: Sequence[str] | None = None,
        inputs: dict[str, Any] | None = None,
    ) -> list[Generation]:
        assert inputs is None or inputs == {"questions": list(questions), "images": list(images)}
        if not max_new_tokens:  # the labels' scores on a blank image
            assert labels is not None and [image.getpixel((0, 0)) for image in images] == [(128, 128, 128)]
            return [Generation("", 0, tuple(-float(len(label)) / 2 for label in labels), (1,) * len(labels))]
        self.batches.append({"questions": list(questions), "max_new_tokens": max_new_tokens, "labels": labels})
        assert all(image.mode == "RGB" for image in images)
        scores = None if labels is None else tuple(-float(len(label)) for label in labels)
        return [
            Generation(f"  {question} {image.getpixel((0, 0))[0]}. STOP and more\n", 3, scores)  # type: ignore[index]
            for question, image in zip(questions, images, strict=True)
        ]


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Echo:
    made = Echo()
    monkeypatch.setattr("medmllm_plugins.host.model.load_model", lambda spec, options: made.load(options))
    return made


def build(arguments: str = "pretrained=demo,device=cpu", batch_size: Any = None, **settings: Any) -> Any:
    """Make the model as the host's command line does."""
    import lmms_eval.models

    model = lmms_eval.models.get_model("medm_vl")
    made = model.create_from_arg_string(arguments, {"batch_size": batch_size, "max_batch_size": None, **settings})
    made._own_session = new_session()
    return made


def content_of(rows: list[dict[str, Any]]) -> Any:
    """The content of a task of ours, as far as answering needs it: nothing is recorded, every answer is parsed."""
    return SimpleNamespace(
        row_list=rows,
        metadata={},
        settings=SimpleNamespace(features=None, attributions=None),
        predict_only=False,
        read_answer=lambda row, text: SimpleNamespace(status="parsed"),
    )


def manifest_of(model: Any) -> dict[str, Any]:
    """The manifest of the run that the model answered in."""
    content: dict[str, Any] = model._own_session.run.manifest.to_dict()
    return content


def grey(value: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (value, value, value))


def user(*parts: Any) -> list[dict[str, Any]]:
    """One user turn; a string is text, anything else an image."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "url": p} for p in parts]
    return [{"role": "user", "content": content}]


def ask(
    model: Any,
    *messages: list[dict[str, Any]],
    task: str = "stranger",
    settings: dict[str, Any] | None = None,
    labels: Sequence[str] = (),
    **metadata: Any,
) -> list[Any]:
    """Requests of a chat task with one row for each of ``messages``; rows of our own tasks hold the answers scored."""
    from lmms_eval.api.instance import Instance

    rows = [
        {"id": str(index), "fold": "test", "messages": message, "answers": list(labels)}
        for index, message in enumerate(messages)
    ]
    model.task_dict[task] = {"test": rows}
    if "medmllm" in metadata:
        from medmllm_plugins.host.task_dataset import TaskDataset

        model.task_dict[task] = TaskDataset(test=rows)
        model.task_dict[task].content, model.task_dict[task].session = content_of(rows), model._own_session
    return [
        Instance(
            request_type="generate_until",
            arguments=("unused", lambda doc: doc["messages"], dict(settings or GREEDY), index, task, "test"),
            idx=0,
            metadata={"task": task, "doc_id": index, "repeats": 1, **metadata},
        )
        for index in range(len(messages))
    ]


def texts(results: Sequence[Any]) -> list[str]:
    return [result.text for result in results]


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
    found = texts(model.generate_until(ask(model, *messages)))
    assert found == [f"one {first}. STOP and more", f"two {first}. STOP and more", "three\nlines 9. STOP and more"]


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
    assert "counts" not in both.manifest["tasks"]["stranger"]


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


# -- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("pretrained=demo,colour=red", ["['colour']", "attn_implementation, batch_size, device, device_map, dtype"]),
        ("pretrained=demo,max_pixels=3,min_pixels=1", ["['max_pixels', 'min_pixels']"]),
        ("", ["`pretrained=`", "demo", "2d-3b", "a hub id or a folder"]),
        ("device=cpu", ["`pretrained=`"]),
        ("pretrained=", ["`pretrained`", "''"]),
        ("pretrained=demo,dtype=float8", ["`dtype`", "bfloat16", "'float8'"]),
        ("pretrained=demo,dtype=16", ["`dtype`", "16"]),
        ("pretrained=demo,device=tpu", ["`device`", '"cuda:N"', "'tpu'"]),
        ("pretrained=demo,device=0", ["`device`", "0"]),
        ("pretrained=demo,device=cuda:99", ["device=cuda:99"]),
        ("pretrained=demo,attn_implementation=magic", ["`attn_implementation`", "sdpa", "'magic'"]),
        ("pretrained=demo,device=cpu,attn_implementation=flash_attention_2", ["flash_attention_2", "sdpa"]),
        ("pretrained=demo,max_new_tokens=0", ["`max_new_tokens`", "at least 1", "0"]),
        ("pretrained=demo,max_new_tokens=-3", ["`max_new_tokens`", "at least 1", "-3"]),
        ("pretrained=demo,max_new_tokens=many", ["`max_new_tokens`", "'many'"]),
        ("pretrained=demo,max_new_tokens=2.5", ["`max_new_tokens`", "2.5"]),
        ("pretrained=demo,max_new_tokens=true", ["`max_new_tokens`", "True"]),
        ("pretrained=demo,max_new_tokens=inf", ["`max_new_tokens`", "inf"]),
        ("pretrained=demo,run_dir=", ["`run_dir`", "''"]),
    ],
)
def test_a_wrong_argument_says_what_was_expected(echo: Echo, arguments: str, says: list[str]) -> None:
    with pytest.raises(OptionError) as caught:
        build(arguments)
    assert isinstance(caught.value, MedMLLMError)
    assert all(words in str(caught.value) for words in says), str(caught.value)
    assert echo.loaded == []


@pytest.mark.parametrize("size", [0, -1, "two", 1.5, "0", "-1", "1.5", "", " 2", True, float("inf")])
def test_a_wrong_batch_size_is_refused(echo: Echo, size: Any) -> None:
    with pytest.raises(OptionError) as caught:
        build(batch_size=size)
    assert "`batch_size`" in str(caught.value) and repr(size) in str(caught.value)


def test_batch_size_may_come_as_text(echo: Echo) -> None:
    assert [build(batch_size=size).batch_size for size in ("16", 16, None)] == [16, 16, 1]


def test_max_batch_size_is_how_far_auto_goes(echo: Echo) -> None:
    model = build(batch_size="auto", max_batch_size=2)
    model.generate_until(ask(model, *(user(grey(number), f"q{number}") for number in range(9))))
    assert max(len(batch["questions"]) for batch in echo.batches) == 2
    for wrong in (0, -1, "many", 1.5):
        with pytest.raises(OptionError, match="max_batch_size"):
            build(max_batch_size=wrong)


@pytest.mark.parametrize("inside", ["", "sub/folder"])
def test_a_run_dir_that_cannot_be_made_is_refused(echo: Echo, tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OptionError) as caught:
        build(f"pretrained=demo,run_dir={tmp_path / 'file' / inside}")
    assert "`run_dir`" in str(caught.value) and str(tmp_path / "file") in str(caught.value)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_run_dir_may_be_there_or_not(echo: Echo, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for folder in ("there", "not/yet"):
        model = build(f"pretrained=demo,run_dir={tmp_path / folder}")
        model.generate_until(ask(model, user(grey(1), "q")))
        assert (tmp_path / folder / "manifest.json").is_file()


def test_a_tilde_in_run_dir_is_the_home_folder(
    echo: Echo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, everything: Callable[[], set[str]]
) -> None:
    """No shell expands it behind the ``=`` of a model argument."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    model = build("pretrained=demo,run_dir=~/runs")
    model.generate_until(ask(model, user(grey(1), "q")))
    assert everything() == {"home", "home/runs", "home/runs/manifest.json", "home/runs/seal.json"}


def test_the_hosts_device_option_is_taken(echo: Echo) -> None:
    assert build("pretrained=demo", device="cpu").device == "cpu"
    with pytest.raises(OptionError, match="`device`"):
        build("pretrained=demo", device="gpu0")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the demo that a test may spoil."""
    shutil.copytree(demo_folder(), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_checkpoint_that_lacks_a_file_says_which(checkpoint: Path, missing: str) -> None:
    (checkpoint / missing).unlink()
    model = build(f"pretrained={checkpoint},device=cpu")
    with pytest.raises(ModelError) as caught:
        model.generate_until(ask(model, user(grey(1), "q")))
    assert missing in str(caught.value) and str(checkpoint) in str(caught.value)


def test_a_name_that_is_no_checkpoint_lists_those_there_are() -> None:
    model = build("pretrained=3b,device=cpu")
    with pytest.raises(ModelError) as caught:
        model.generate_until(ask(model, user(grey(1), "q")))
    assert "'3b'" in str(caught.value) and "demo, 2d-3b" in str(caught.value)


def test_a_checkpoint_that_cannot_be_loaded_leaves_no_run_folder(
    evaluate: Callable[..., Any], tmp_path: Path, everything: Callable[[], set[str]]
) -> None:
    """An argument that turns out wrong only at loading is still an argument that is wrong."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"config\.json"):
        evaluate(tmp_path / "out", limit=1, model_args=f"pretrained={tmp_path / 'empty'},device=cpu")
    assert everything() == {"empty"}


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
