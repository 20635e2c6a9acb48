"""A sweep's winner on a hub: what is uploaded, that it reads back, and what is said where it cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from huggingface_hub.utils import http_backoff

from sweeper import hub as pushing
from sweeper.errors import ThawlineError
from tests.cli import TINY_SWEEP, runs
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
    asked = (*SMALL, f"model.path={checkpoint('bert')}", "hub.push=team/winner", f"output_dir={output}")
    hub.refused = {"/lfs/": (413, "over the quota")}
    try:
        refused = client.run("sweep", *asked, status=2, HF_TOKEN="write")
    finally:
        hub.refused = {}
    printed = client.run("sweep", *asked, HF_TOKEN="write")
    return Swept(output, next(output.glob("models/*/config.json")).parent, refused, printed)


@pytest.fixture
def here(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process with that hub and a token that may write, as a client's is that was started so."""
    values = {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
    for name, value in values.items():
        monkeypatch.setattr(pushing.constants, name, value)
    monkeypatch.setattr(pushing, "_OFFLINE", False)
    monkeypatch.setitem(http_backoff.__kwdefaults__, "base_wait_time", 0.01)
    monkeypatch.setenv("HF_TOKEN", "write")
    return monkeypatch


@pytest.fixture(scope="module")
def model(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a sweep leaves it, as far as uploads go."""
    folder = shutil.copytree(checkpoint("bert"), tmp_path_factory.mktemp("models") / "study")
    (folder / "README.md").write_text("---\ntags: [thawline]\n---\n# A model\n")
    return folder


def push(folder: Path, name: str, *, private: bool = True) -> str:
    return pushing.push_model(folder, name, private=private, comparison="tiny")


def read_back(client: Client, folder: Path, name: str, *, trust: bool) -> None:
    printed = client.run("-c", READ.format(name=name, folder=str(folder), trust=trust), HF_TOKEN="write")
    uploaded, local = json.loads(next(line for line in printed.splitlines() if line.startswith("READ"))[5:])
    assert uploaded == local, "what was uploaded predicts what the folder does"
    assert {answer["label"] for answer in uploaded} <= {"fresh", "rotten"}


@pytest.mark.slow
def test_a_winner_is_uploaded_in_one_commit_and_reads_back(hub: Hub, client: Client, swept: Swept) -> None:
    comparison = next(swept.output.glob("reports/*")).name
    assert [commit for commit in hub.commits if commit[0] == "team/winner"] == [
        ("team/winner", f"The winner of {comparison}")
    ]
    assert f"Hub:       {hub.url}/team/winner (private)" in swept.printed
    assert hub.revisions("models", "team/winner")["main"].private
    uploaded = hub.uploads / "team/winner"
    names = {path.relative_to(uploaded).as_posix() for path in uploaded.rglob("*") if path.is_file()}
    assert names - {".gitattributes"} == {path.name for path in swept.model.iterdir() if path.is_file()}
    assert {"README.md", "classifier.py", "model.safetensors", "tokenizer.json"} <= names
    read_back(client, swept.model, "team/winner", trust=True)


@pytest.mark.slow
def test_nothing_of_this_machine_is_uploaded(hub: Hub, swept: Swept) -> None:
    for path in (hub.uploads / "team/winner").rglob("*"):
        if path.suffix in (".json", ".md"):
            text = path.read_text()
            assert str(swept.output) not in text and "/checkpoints" not in text and str(Path.home()) not in text, path


@pytest.mark.slow
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
        ("whoami", 401, "does not accept the token (stale)"),
        ("repos/create", 403, "the token may not write to repositories of team (no rights)"),
        ("/lfs/", 413, "the model is too large for this account (too much)"),
        ("/commit/", 413, "the model is too large for this account (too much)"),
        ("/preupload/", 503, "answers 503 (out of order)"),
    ],
)
def test_what_the_hub_refuses_is_said(
    hub: Hub, here: pytest.MonkeyPatch, model: Path, path: str, status: int, words: str
) -> None:
    here.setattr(hub, "refused", {path: (status, words.partition("(")[2].strip(")"))})
    with pytest.raises(ThawlineError) as refused:
        push(model, "team/refused")
    assert refused.value.message.startswith("hub.push=team/refused: ") and words in refused.value.message
    assert refused.value.hint == f"{model} is complete; the same command uploads again and trains nothing."


@pytest.mark.parametrize("how", ["silent", "cut"])
def test_a_lost_connection_loses_nothing(hub: Hub, here: pytest.MonkeyPatch, model: Path, how: str) -> None:
    for path in (hub.uploads / "lfs").glob("*"):
        path.unlink()
    with here.context() as lost:
        lost.setattr(hub, how, True if how == "silent" else "^/lfs/[0-9a-f]")
        with pytest.raises(ThawlineError, match=f"the connection to {hub.url} was lost or not made"):
            push(model, f"user/{how}")
    assert push(model, f"user/{how}") == f"{hub.url}/user/{how}"
    stored = (hub.uploads / "user" / how / "model.safetensors").read_bytes()
    assert stored == (model / "model.safetensors").read_bytes()


def test_a_repository_holds_the_newest_model_alone(hub: Hub, here: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    for name, text in {
        "config.json": '{"_name_or_path": "/home/me/secret/bert", "id2label": {"0": "/r/science"}}',
        "adapter/adapter_config.json": '{"base_model_name_or_path": "/home/me/secret/bert"}',
        "tokenizer_config.json": '{"cls_token": "/a/b/c", "backbone": {"tokenizer_file": "../mine/tokenizer.json"}}',
        "thawline.json": '{"base": {"source": "/home/me/secret/bert"}, "strategy": {"name": "/a/b/c"}}',
        "README.md": "# mine",
        "rows.csv": "text,label",
    }.items():
        (tmp_path / name).write_text(text)
    push(tmp_path, "user/again", private=False)
    there = hub.uploads / "user/again"
    assert not (there / "rows.csv").exists() and not hub.revisions("models", "user/again")["main"].private
    settings = json.loads((there / "config.json").read_text())
    assert settings == {"_name_or_path": "bert", "id2label": {"0": "/r/science"}}
    assert json.loads((there / "adapter/adapter_config.json").read_text()) == {"base_model_name_or_path": "bert"}

    tokenizer = {"cls_token": "/a/b/c", "backbone": {"tokenizer_file": "tokenizer.json"}}
    assert json.loads((there / "tokenizer_config.json").read_text()) == tokenizer, "a token is no path"
    manifest = {"base": {"source": "bert"}, "strategy": {"name": "/a/b/c"}}
    assert json.loads((there / "thawline.json").read_text()) == manifest

    owners = ("notes.md", "requirements.txt", "LICENSE.txt", "eval_results.json", "adapter/notes.txt")
    for name in (*owners, "model-00001-of-00002.safetensors"):
        (there / name).write_text("the owner's own, but for the weights")
    (tmp_path / "adapter/adapter_config.json").unlink()
    push(tmp_path, "user/again", private=False)
    assert not (there / "adapter/adapter_config.json").exists()
    assert not (there / "model-00001-of-00002.safetensors").exists()
    assert all((there / name).exists() for name in owners)
    assert [name for name, _ in hub.commits].count("user/again") == 2
    with pytest.raises(ThawlineError, match="it exists and is public"):
        push(tmp_path, "user/again")
    assert "hub.private=false publishes the model" in pushing.push_problems("user/again", private=True)[0]


def test_nothing_is_removed_from_a_repository_without_a_model_of_ours(
    hub: Hub, here: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    push(model, "user/theirs")
    (hub.uploads / "user/theirs/vocab.txt").write_text("of another program")
    push(model, "user/theirs")
    assert (hub.uploads / "user/theirs/vocab.txt").exists()
    ours = shutil.copytree(model, tmp_path / "ours")
    (ours / "thawline.json").write_text("{}")
    for _ in range(2):  # its own model is there from the second one on
        there = (hub.uploads / "user/theirs/vocab.txt").exists()
        push(ours, "user/theirs")
    assert there and not (hub.uploads / "user/theirs/vocab.txt").exists()


@pytest.mark.parametrize(
    ("name", "token", "words"),
    [
        ("user/x", None, "there is no token; set HF_TOKEN to one that may write (http://127.0.0.1"),
        ("user/x", "stale", "does not know the token"),
        ("user/x", "read", "the token may read only"),
        ("other/x", "write", "other is not yours; the token is for user, team, others"),
        ("x", "write", "hub.push=x: must be user/name"),
        ("user/x", "write", ""),
    ],
)
def test_what_the_hub_would_refuse_is_known_before(
    here: pytest.MonkeyPatch, tmp_path: Path, name: str, token: str | None, words: str
) -> None:
    here.setattr(pushing.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))  # nobody's login
    here.setenv("HF_TOKEN", token) if token else here.delenv("HF_TOKEN")
    problems = pushing.push_problems(name, private=True)
    assert len(problems) == bool(words) and all(words in problem for problem in problems)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["hub.push=other/x", "strategy.dropout=2"], "other is not yours"),
        (["hub.push=user/x", "final.seeds=0"], "final.seeds=0 has none"),
        (["hub.push=user/x", "dataset.train_sizes=[20,40]"], "has a winner at each size"),
    ],
)
def test_what_cannot_be_pushed_is_a_mistake_before_the_first_trial(
    client: Client, checkpoint: Callable[[str], Path], overrides: list[str], words: str
) -> None:
    asked = (*SMALL, "strategy=lora", f"model.path={checkpoint('bert')}", "dry_run=true", *overrides)
    printed = client.run("sweep", *asked, status=2, HF_TOKEN="write")
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
    hub: Hub, here: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here.setattr(hub, "silent", True)
    with caplog.at_level("WARNING", "sweeper.hub"):
        assert pushing.push_problems("user/x", private=True) == []
    assert f"{hub.url} does not answer" in caplog.text
    here.setattr(pushing, "_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set; unset it" in pushing.push_problems("user/x", private=True)[0]
