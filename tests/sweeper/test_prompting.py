"""A prompted model, asked over HTTP: a small server here answers as the protocol does, and a real one elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweeper import prompting
from sweeper.data.dataset import Dataset, Split, assemble
from sweeper.errors import EndpointError
from sweeper.prompting import Prompting, ask_dataset, build_prompt, prompted_name, read_label
from tests.cli import run, runs

KEY = "sk-Very-Secret-0123"
VARIABLE = "THAWLINE_TEST_KEY"
LABELS = ["rotten", "fresh"]

Reply = tuple[int, Any, dict[str, str]]


class Server:
    """An endpoint on a free port; ``reply`` makes status, body and headers of each request, all of which are kept."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self._under_way = 0
        self.reply: Callable[[dict[str, Any]], Reply] = lambda body: answer("fresh")
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append({**body, "path": self.path})
                    outer.headers.append(dict(self.headers))
                    outer._under_way += 1
                    outer.most_at_once = max(outer.most_at_once, outer._under_way)
                status, content, headers = outer.reply(body)
                with lock:
                    outer._under_way -= 1
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                try:
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(data)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # the client has gone
                    return

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def answer(text: str | None) -> Reply:
    return 200, {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}, {}


def asked_text(body: dict[str, Any]) -> str:
    return re.findall(r"Text: (.*)\nLabel:$", body["messages"][0]["content"])[-1]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(prompting, "DELAYS", (0.01, 0.01))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server()
    yield running
    running.close()


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    def split(first: int, count: int) -> Split:
        labels = np.arange(count) % 2
        return Split(
            [f"{LABELS[label]} film {first + i}" for i, label in enumerate(labels)],
            labels,
            None,
            np.arange(first, first + count),
        )

    return assemble("films", LABELS, {"train": split(0, 20), "validation": split(20, 6), "test": split(26, 40)})


def settings(server: Server | str, **changed: Any) -> Prompting:
    return replace(
        Prompting(
            base_url=server if isinstance(server, str) else server.url,
            model="org/tiny",
            shots=0,
            instruction="Choose:\n{labels}",
            api_key_variable=VARIABLE,
            max_items=None,
            max_characters=100,
            max_tokens=16,
            concurrency=4,
            timeout=5.0,
            extra={},
        ),
        **changed,
    )


def ask(dataset: Dataset, given: Prompting, **changed: Any) -> Any:
    return ask_dataset(dataset, given, **{"descriptions": None, "seed": 42, **changed})


# --- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("fresh", "fresh"),
        ("  Fresh.\n", "fresh"),
        ("**ROTTEN**", "rotten"),
        ("Label: rotten", "rotten"),
        ("I would call this review fresh, clearly fresh.", "fresh"),
        ("<think>rotten? no</think>\nfresh", "fresh"),
        ("not fresh but rotten", None),
        ("refreshing", None),
        ("", None),
        ("42", None),
    ],
)
def test_an_answer_is_the_label_that_it_names_and_no_other(said: str, label: str | None) -> None:
    assert read_label(said, LABELS) == (None if label is None else LABELS.index(label))


def test_labels_inside_each_other_and_alike_but_for_case() -> None:
    assert read_label("It is not spam.", ["spam", "not spam"]) == 1
    assert read_label("spam!", ["spam", "not spam"]) == 0
    assert read_label("a", ["A", "a"]) == 1
    assert read_label("<think>maybe spam", ["spam", "ham"]) is None
    assert read_label("b", ["B", "b "]) == 0
    assert read_label("C++ (surely)", ["C", "C++"]) == 1
    assert read_label("10", ["1", "10"]) == 1


def test_the_prompt_holds_labels_examples_and_the_cut_text() -> None:
    given = settings("http://x/v1", max_characters=5)
    descriptions = {"rotten": "a bad film", "fresh": "a good film"}
    text = build_prompt("dull, dull", given, LABELS, descriptions, [(("one", "two"), 1)])
    assert text == (
        "Choose:\n- rotten: a bad film\n- fresh: a good film\n\n"
        "Text: one\nSecond text: two\nLabel: fresh\n\nText: dull,\nLabel:"
    )
    assert build_prompt("x", given, LABELS, None).startswith("Choose:\n- rotten\n- fresh\n\n")


# --- asking ------------------------------------------------------------------------------------------------------


def test_accuracy_is_exact_whatever_order_answers_come_in(server: Server, dataset: Dataset) -> None:
    wrong = {"rotten film 28", "fresh film 29"}
    garbage = {"rotten film 30", "fresh film 31", "rotten film 32"}

    def reply(body: dict[str, Any]) -> Reply:
        text = asked_text(body)
        time.sleep(0.02 if text.endswith(("0", "5")) else 0)
        if text in garbage:
            return answer({"30": None, "31": "either rotten or fresh", "32": "%%%"}[text[-2:]])
        label = text.split()[0]
        return answer(label if text not in wrong else LABELS[1 - LABELS.index(label)])

    server.reply = reply
    seen: list[tuple[int, int]] = []
    found = ask(dataset, settings(server), on_answer=lambda *counts: seen.append(counts))
    assert (found.predictions == dataset.test.labels).mean() == 35 / 40
    assert found.unparsed == 3
    assert (found.predictions == -1).sum() == 3
    assert seen == [(done, 40) for done in range(41)]
    assert 1 < server.most_at_once <= 4
    (request, *_) = server.requests
    assert (request["path"], request["model"]) == ("/v1/chat/completions", "org/tiny")
    assert (request["temperature"], request["max_tokens"]) == (0, 16)


def test_examples_are_stratified_rows_of_train_and_the_same_each_time(server: Server, dataset: Dataset) -> None:
    for _ in range(2):
        ask(dataset, settings(server, shots=4, max_items=2))
    shown = {body["messages"][0]["content"].rpartition("Text:")[0] for body in server.requests}
    assert len(shown) == 1
    examples = re.findall(r"Text: (\w+) film (\d+)\nLabel: (\w+)", shown.pop())
    assert sorted(label for _, _, label in examples) == ["fresh", "fresh", "rotten", "rotten"]
    assert all(word == label and int(number) < 20 for word, number, label in examples)


def test_of_many_classes_each_example_is_of_another(server: Server) -> None:
    names = [f"class{index}" for index in range(12)]
    rows = Split([f"text {index}" for index in range(48)], np.arange(48) % 12, None, np.arange(48))
    many = assemble("many", names, {"train": rows, "validation": rows, "test": rows})
    ask(many, settings(server, shots=3, max_items=12))
    examples = re.findall(r"\nLabel: (\w+)", server.requests[0]["messages"][0]["content"])
    assert len(set(examples)) == len(examples) == 3


def test_a_sample_of_the_items_is_stratified_and_named(server: Server, dataset: Dataset) -> None:
    found = ask(dataset, settings(server, max_items=10))
    assert len(server.requests) == len(found.test) == 10
    assert np.bincount(found.test.labels).tolist() == [5, 5]
    assert set(found.test.items) <= set(dataset.test.items)
    assert prompted_name(settings(server, max_items=10), 40) == "prompted tiny (0 shots, 10 items)"
    assert prompted_name(settings(server, max_items=99, shots=3), 40) == "prompted tiny (3 shots)"


def test_further_fields_join_the_request_and_null_leaves_one_out(server: Server, dataset: Dataset) -> None:
    ask(dataset, settings(server, max_items=2, extra={"max_tokens": None, "max_completion_tokens": 9}))
    assert "max_tokens" not in server.requests[0]
    assert server.requests[0]["max_completion_tokens"] == 9


# --- what goes wrong ---------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_never_shown(server: Server, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{KEY}\n")
    server.reply = lambda body: (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, {})
    with pytest.raises(EndpointError, match=r"refuses the key \(status 401\).*<key>") as caught:
        ask(dataset, settings(server))
    assert VARIABLE in str(caught.value)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    error: BaseException | None = caught.value
    while error is not None:
        assert KEY not in str(error)
        error = error.__cause__ or error.__context__
    monkeypatch.setenv(VARIABLE, f"{KEY} two")
    with pytest.raises(EndpointError, match=f"{VARIABLE} holds blanks") as caught:
        ask(dataset, settings(server))
    assert KEY not in str(caught.value)


def test_a_missing_key_is_named(server: Server, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    server.reply = lambda body: (401, {"error": "no key"}, {})
    with pytest.raises(EndpointError, match=f"the environment variable {VARIABLE} is not set"):
        ask(dataset, settings(server))
    assert "Authorization" not in server.headers[0]


def test_a_busy_server_is_asked_again_and_a_dead_one_is_not(server: Server, dataset: Dataset) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        again = server.requests.count({**body, "path": "/v1/chat/completions"}) > 1
        return answer(asked_text(body).split()[0]) if again else (429, {"error": "slow"}, {"Retry-After": "0"})

    server.reply = reply
    found = ask(dataset, settings(server))
    assert (found.predictions == dataset.test.labels).all()
    assert len(server.requests) == 80
    server.reply = lambda body: (503, b"<html>overloaded</html>", {})
    with pytest.raises(EndpointError, match=r"status 503: <html>overloaded</html> after 3 attempts"):
        ask(dataset, settings(server))
    closed = Server()
    closed.close()
    started = time.monotonic()
    with pytest.raises(EndpointError, match=f"no endpoint answers at {closed.url}/chat/completions"):
        ask(dataset, settings(closed))
    assert time.monotonic() - started < 2


def test_a_slow_server_times_out_after_all_attempts(server: Server, dataset: Dataset) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        time.sleep(0.3)
        return answer("fresh")

    server.reply = reply
    with pytest.raises(EndpointError, match=r"timed out after 0.05 s after 3 attempts") as caught:
        ask(dataset, settings(server, timeout=0.05, concurrency=1))
    assert "reference.prompting.timeout" in caught.value.hint
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((404, {"error": {"message": "no such model"}}, {}), "does not know the model 'org/tiny'.*no such model"),
        ((200, b"<html>a login page</html>", {}), "something else than a chat completion: <html>a login page</html>"),
        ((200, {"choices": []}, {}), "something else than a chat completion"),
        ((200, {"choices": [{"message": {"content": ["x"]}}]}, {}), "something else than a chat completion"),
        ((400, {"error": {"message": "use max_completion_tokens"}}, {}), "status 400.*use max_completion_tokens"),
        ((301, b"", {"Location": "http://127.0.0.1:9/"}), "status 301"),
    ],
)
def test_what_is_no_answer_says_what_it_is(server: Server, dataset: Dataset, reply: Reply, message: str) -> None:
    server.reply = lambda body: reply
    with pytest.raises(EndpointError, match=message) as caught:
        ask(dataset, settings(server, concurrency=1))
    assert "reference.prompting." in caught.value.hint
    assert len(server.requests) <= prompting.MOST_REFUSED, "2,000 items must not be asked for nothing"


def test_a_text_that_is_refused_counts_as_wrong(server: Server, dataset: Dataset) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        text = asked_text(body)
        return (400, {"error": "filtered"}, {}) if text.endswith("27") else answer(text.split()[0])

    server.reply = reply
    found = ask(dataset, settings(server, concurrency=1))
    assert found.unparsed == 1
    assert (found.predictions == dataset.test.labels).sum() == 39


def test_ctrl_c_does_not_wait_for_answers(server: Server, dataset: Dataset) -> None:
    released = threading.Event()

    def reply(body: dict[str, Any]) -> Reply:
        if len(server.requests) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        released.wait(20)
        return answer("fresh")

    server.reply = reply
    started = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what runs behind
    try:
        with pytest.raises(KeyboardInterrupt):
            ask(dataset, settings(server, timeout=30.0))
    finally:
        released.set()
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 10


# --- a real server -----------------------------------------------------------------------------------------------


def test_a_server_of_transformers_answers_as_the_model_does(
    checkpoint: Callable[[str], Path], dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai", reason="transformers serve needs the packages of the dev extra")
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.cli.serve import Serve

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = checkpoint("chat")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = Serve(force_model=str(folder), host="127.0.0.1", port=port, device="cpu", non_blocking=True)
    try:
        deadline = time.monotonic() + 30
        while not serving.server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        given = settings(f"http://127.0.0.1:{port}/v1", model=str(folder), max_tokens=8, max_items=6, concurrency=2)
        found = ask(dataset, given)
        prompts = [build_prompt(text, given, LABELS, None) for text in found.test.inputs]
        answers = asyncio.run(prompting._ask_all(prompts, given, lambda done, total: None))
        with pytest.raises(EndpointError, match=r"status 400.*nope"):
            ask(dataset, replace(given, model="nope"))
    finally:
        serving.kill_server()

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for prompt, said in zip(prompts, answers, strict=True):
        tokens = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        written = model.generate(**tokens, max_new_tokens=8, do_sample=False)[0, tokens["input_ids"].shape[1] :]
        assert said == tokenizer.decode(written, skip_special_tokens=True)
    assert [label if (label := read_label(str(said), LABELS)) is not None else -1 for said in answers] == list(
        found.predictions
    )


# --- the command line --------------------------------------------------------------------------------------------

TINY = (
    "strategy=frozen",
    "model=local",
    "dataset.train_size=16",
    "dataset.validation_size=10",
    "dataset.test_size=40",
    "dataset.max_length=24",
    "trainer.epochs=1",
    "trainer.precision=fp32",
    "final.seeds=1",
    "study.n_trials=1",
)


@pytest.mark.slow
def test_a_prompted_model_is_a_row_that_is_asked_once(
    server: Server, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    server.reply = lambda body: answer("fresh" if len(asked_text(body)) % 5 else "no idea")
    command = [
        *("sweep", *TINY, f"model.path={tiny_checkpoint}"),
        f"reference.prompting.base_url={server.url}",
        *("reference.prompting.model=org/tiny", "reference.prompting.max_items=20", "reference.prompting.shots=3"),
        f"reference.prompting.api_key_variable={VARIABLE}",
    ]
    text = run(tmp_path, *command)
    assert len(server.requests) == 20
    (row,) = runs(tmp_path, strategy="prompted tiny (3 shots, 20 items)").to_dict("records")
    assert row["tags.thawline.kind"] == "floor"
    assert (row["params.prompted_model"], row["params.shots"]) == ("org/tiny", "3")
    assert (row["metrics.trainable_params"], row["metrics.prompted_items"]) == (0, 20)
    unparsed = sum(len(asked_text(body)) % 5 == 0 for body in server.requests)
    assert row["metrics.prompted_unparsed"] == unparsed
    assert re.search(r"prompted tiny \(3 +0 +0\.\d{3} ", text), text
    (report,) = (tmp_path / "reports").glob("*/report.md")
    page = report.read_text()
    assert "| *prompted tiny (3 shots, 20 items)* | 0 |" in page
    assert f"asked about 20 test items, with 3 examples from train in the prompt. {unparsed} answers" in page

    run(tmp_path, *command, "reference.prompting.timeout=9")
    assert len(server.requests) == 20, "it is not asked again"

    for file in [path for path in tmp_path.rglob("*") if path.is_file()]:
        assert KEY.encode() not in file.read_bytes(), file
    assert KEY not in text


def test_an_endpoint_that_is_not_there_stops_the_command_before_the_first_trial(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    closed = Server()
    closed.close()
    asked = [f"reference.prompting.base_url={closed.url}", "reference.prompting.model=tiny"]
    text = run(tmp_path, "sweep", *TINY, f"model.path={tiny_checkpoint}", *asked, status=2)
    assert f"error: no endpoint answers at {closed.url}/chat/completions" in text
    assert "Traceback" not in text
    assert len(runs(tmp_path, kind="trial")) == 0
    assert "RUNNING" not in set(runs(tmp_path)["status"])
