"""A sweep's winner on a hub: what is uploaded, that it reads back, and what is said where it cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sweeper import hub as pushing
from tests.cli import TINY_SWEEP, give_database, runs
from tests.hub import Client, Hub, serve

SMALL = (*TINY_SWEEP, "strategy=frozen", "study.n_trials=1", "trainer.epochs=1", "final.seeds=1")
#: Reads a model from the hub and from a folder, as one who does not have this project.
READ = """
import json
from transformers import pipeline
texts = ["a bright film", "a dull film, and a long one"]
answers = []
for model in ({name!r}, {folder!r}):
    classify = pipeline("text-classification", model=model, trust_remote_code={trust}, device="cpu")
    answers.append(classify(texts, truncation=True, max_length=32))
print("READ", json.dumps(answers))
"""
PUSH = """
from pathlib import Path
from sweeper.errors import ThawlineError
from sweeper.hub import push_model
try:
    print("PUSHED", push_model(Path({folder!r}), {name!r}, private={private}, comparison="tiny"))
except ThawlineError as error:
    print(error)
"""


class Swept(NamedTuple):
    """An output folder, the winner's folder in it, and what its two sweeps printed: a refused one and the next."""

    output: Path
    model: Path
    refused: str
    printed: str


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serve() as hub:
        hub.uploads = tmp_path_factory.mktemp("hub")
        yield hub


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub, tmp_path_factory.mktemp("home")) as client:
        yield client


@pytest.fixture(scope="module")
def swept(
    hub: Hub, client: Client, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Swept:
    output = tmp_path_factory.mktemp("pushed")
    give_database(output)
    asked = (*SMALL, f"model.path={checkpoint('bert')}", "hub.push=team/winner", f"output_dir={output}")
    hub.refused = {"/lfs/": (413, "over the quota")}
    try:
        refused = client.run("sweep", *asked, status=2, HF_TOKEN="write")
    finally:
        hub.refused = {}
    printed = client.run("sweep", *asked, HF_TOKEN="write")
    return Swept(output, next(output.glob("models/*/config.json")).parent, refused, printed)


def read_back(client: Client, folder: Path, name: str, *, trust: bool) -> None:
    printed = client.run("-c", READ.format(name=name, folder=str(folder), trust=trust), HF_TOKEN="write")
    uploaded, local = json.loads(next(line for line in printed.splitlines() if line.startswith("READ"))[5:])
    assert uploaded == local, "what was uploaded predicts what the folder does"
    assert {answer["label"] for answer in uploaded} <= {"fresh", "rotten"}


def test_a_winner_is_uploaded_in_one_commit_and_reads_back(hub: Hub, client: Client, swept: Swept) -> None:
    comparison = next(swept.output.glob("reports/*")).name
    assert hub.commits == [("team/winner", f"The winner of {comparison}")]
    assert f"Hub:       {hub.url}/team/winner (private)" in swept.printed
    assert hub.revisions("models", "team/winner")["main"].private
    uploaded = hub.uploads / "team/winner"
    names = {path.relative_to(uploaded).as_posix() for path in uploaded.rglob("*") if path.is_file()}
    assert names - {".gitattributes"} == {path.name for path in swept.model.iterdir() if path.is_file()}
    assert {"README.md", "classifier.py", "model.safetensors", "tokenizer.json"} <= names
    read_back(client, swept.model, "team/winner", trust=True)


def test_nothing_of_this_machine_is_uploaded(hub: Hub, swept: Swept) -> None:
    for path in (hub.uploads / "team/winner").rglob("*"):
        if path.suffix in (".json", ".md"):
            text = path.read_text()
            assert str(swept.output) not in text and "/checkpoints" not in text and str(Path.home()) not in text, path


def test_a_refused_upload_ends_the_sweep_and_the_same_command_mends_it(swept: Swept) -> None:
    report, _, error = swept.refused.partition("error: ")
    assert "Report:" in report, "everything else is done and said before"
    assert error.startswith("hub.push=team/winner: the model is too large for this account (")
    assert "over the quota" in error and "Traceback" not in swept.refused
    assert f"{swept.model} is complete; the same command uploads again and trains nothing." in error
    assert len(runs(swept.output, kind="trial")) == len(runs(swept.output, kind="final")) == 1


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("whoami", 401, "does not accept the token (Invalid"),
        ("repos/create", 403, "the token may not write to repositories of team (no rights)"),
        ("/commit/", 413, "the model is too large for this account (too much)"),
        ("/preupload/", 404, "answers 404 (gone)"),
    ],
)
def test_what_the_hub_refuses_is_said(
    hub: Hub, client: Client, swept: Swept, path: str, status: int, words: str
) -> None:
    message = words.partition("(")[2].strip(")")
    hub.refused = {path: (status, message)}
    try:
        printed = client.run(
            "-c", PUSH.format(folder=str(swept.model), name="team/refused", private=True), HF_TOKEN="write"
        )
    finally:
        hub.refused = {}
    assert "hub.push=team/refused: " in printed and words in printed
    assert "the same command uploads again and trains nothing" in printed and (swept.model / "config.json").exists()


@pytest.mark.parametrize("how", ["silent", "cut"])
def test_a_lost_connection_loses_nothing(hub: Hub, client: Client, swept: Swept, how: str) -> None:
    push = PUSH.format(folder=str(swept.model), name=f"user/{how}", private=True)
    hub.silent, hub.cut = how == "silent", "^/lfs/[0-9a-f]" if how == "cut" else ""
    stored = {path: path.read_bytes() for path in (hub.uploads / "lfs").glob("*")}
    for path in stored:
        path.unlink()
    try:
        printed = client.run("-c", push, HF_TOKEN="write")
    finally:
        hub.silent, hub.cut = False, ""
    assert f"the connection to {hub.url} was lost or not made (" in printed
    assert f"PUSHED {hub.url}/user/{how}" in client.run("-c", push, HF_TOKEN="write")


def test_a_repository_holds_the_newest_model_alone(hub: Hub, client: Client, swept: Swept, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    for name, text in {
        "config.json": '{"model_type": "bert", "_name_or_path": "/home/me/secret/bert"}',
        "adapter/adapter_config.json": '{"base_model_name_or_path": "/home/me/secret/bert"}',
        "README.md": "# mine",
        "rows.csv": "text,label",
    }.items():
        (tmp_path / name).write_text(text)
    push = PUSH.format(folder=str(tmp_path), name="user/again", private=False)
    assert "PUSHED" in client.run("-c", push, HF_TOKEN="write")
    there = hub.uploads / "user/again"
    assert not (there / "rows.csv").exists() and not hub.revisions("models", "user/again")["main"].private
    assert json.loads((there / "adapter/adapter_config.json").read_text()) == {"base_model_name_or_path": "bert"}
    assert "secret" not in (there / "config.json").read_text()

    (there / "notes.md").write_text("the owner's own")
    (tmp_path / "adapter/adapter_config.json").unlink()
    client.run("-c", push, HF_TOKEN="write")
    assert not (there / "adapter/adapter_config.json").exists() and (there / "notes.md").exists()
    public = client.run("-c", push.replace("private=False", "private=True"), HF_TOKEN="write")
    assert "it exists and is public" in public and "hub.private=false publishes the model" in public


@pytest.mark.parametrize(
    ("overrides", "environment", "words"),
    [
        (["hub.push=user/x"], {}, "there is no token; set HF_TOKEN to one that may write (http://127.0.0.1"),
        (["hub.push=user/x"], {"HF_TOKEN": "stale"}, "does not know the token"),
        (["hub.push=user/x"], {"HF_TOKEN": "read"}, "the token may read only"),
        (["hub.push=other/x"], {"HF_TOKEN": "write"}, "other is not yours; the token is for user, team, others"),
        (["hub.push=x"], {"HF_TOKEN": "write"}, "hub.push=x: must be user/name"),
        (["hub.push=user/x", "final.seeds=0"], {"HF_TOKEN": "write"}, "final.seeds=0 has none"),
        (["hub.push=user/x", "dataset.train_sizes=[20,40]"], {"HF_TOKEN": "write"}, "has a winner at each size"),
    ],
)
def test_what_cannot_be_pushed_is_a_mistake_before_the_first_trial(
    client: Client, checkpoint: Callable[[str], Path], overrides: list[str], environment: dict[str, str], words: str
) -> None:
    printed = client.run(
        "sweep", *SMALL, f"model.path={checkpoint('bert')}", "dry_run=true", *overrides, status=2, **environment
    )
    assert words in printed and "Traceback" not in printed and "Loading" not in printed


@pytest.mark.slow
def test_a_native_head_needs_no_code_of_ours(
    hub: Hub, client: Client, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    hub.silent = True  # which is no mistake before training
    try:
        asked = (*SMALL, f"model.path={checkpoint('bert')}", "model.head=native", "hub.push=user/native")
        printed = client.run("sweep", *asked, f"output_dir={tmp_path}", status=2, HF_TOKEN="write")
    finally:
        hub.silent = False
    assert "was lost or not made" in printed and "Report:" in printed
    client.run("sweep", *asked, f"output_dir={tmp_path}", HF_TOKEN="write")
    model = next(tmp_path.glob("models/*/config.json")).parent
    assert not list(model.glob("*.py"))
    read_back(client, model, "user/native", trust=False)


def test_a_token_is_judged_by_what_it_may_do() -> None:
    account = {"name": "Me", "orgs": [{"name": "team"}], "auth": {"accessToken": {"role": "fineGrained"}}}
    assert "may read only" in pushing._refusals(account, "me/x")[0]
    scope = {"entity": {"type": "user", "name": "Me"}, "permissions": ["repo.write"]}
    account["auth"] = {"accessToken": {"role": "fineGrained", "fineGrained": {"scoped": [scope]}}}
    assert pushing._refusals(account, "me/x") == pushing._refusals(account, "team/x") == []
    assert pushing._refusals({}, "me/x") == [], "a mirror of the hub may say less"


def test_a_hub_that_does_not_answer_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pushing.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(pushing.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "write")
    assert "HF_HUB_OFFLINE is set; unset it" in pushing.push_problems("user/x", private=True)[0]
    monkeypatch.setattr(pushing, "_OFFLINE", False)
    with caplog.at_level("WARNING", "sweeper.hub"):
        assert pushing.push_problems("user/x", private=True) == []
    assert "http://127.0.0.1:9 does not answer" in caplog.text
