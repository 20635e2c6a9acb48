"""A prompted model as a reference: it is asked for the label of each test text through an OpenAI-compatible endpoint.

The client is plain httpx2, which huggingface_hub brings along: the protocol is one POST with one answer, and asyncio's
requests end at once when a person interrupts them.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2
import numpy as np

from sweeper.data.dataset import Dataset, Split
from sweeper.data.splits import sample_rows, stratified_subsample
from sweeper.errors import EndpointError
from sweeper.hashing import derive_seed

__all__ = ["Answers", "Prompting", "ask_dataset", "build_prompt", "prompted_name", "read_label"]

#: Seconds before each new attempt, where the endpoint does not say how many.
DELAYS: Final = (0.5, 1.0, 2.0, 4.0)
LONGEST_DELAY: Final = 60.0
#: Worth another attempt: timeouts, rate limits, and what fails inside the server.
TRANSIENT: Final = (408, 409, 429, 500, 502, 503, 504)
#: Of one text: too long, or withheld by a filter. The others may be answered.
REFUSED: Final = (400, 413, 422)
#: So many refusals before any answer mean that the request is wrong, not the text.
MOST_REFUSED: Final = 5
SHOWN: Final = 300  # characters of what a server says in an error


@dataclass(frozen=True)
class Prompting:
    """The keys of ``PromptingConfig`` in ``sweeper/config.py``; see there. ``base_url`` and ``model`` are given."""

    base_url: str
    model: str
    shots: int
    instruction: str
    api_key_variable: str | None
    max_items: int | None
    max_characters: int
    max_tokens: int
    concurrency: int
    timeout: float
    extra: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Answers:
    """What a prompted model made of the test split.

    Attributes:
        test: the rows that were asked about.
        predictions: int64 label of each, shape (rows,); -1 where the answer names no label, or more than one.
        unparsed: how many are -1, refused requests among them.
        cut: how many texts were cut at ``max_characters``.
    """

    test: Split
    predictions: np.ndarray
    unparsed: int
    cut: int


def prompted_name(settings: Prompting, test_size: int) -> str:
    """What reports call the row: the model, the number of examples, and how many items, where not all are asked."""
    model = settings.model.rstrip("/").rpartition("/")[2]
    shots = "1 shot" if settings.shots == 1 else f"{settings.shots} shots"
    asked = settings.max_items or test_size
    return f"prompted {model} ({shots}{f', {asked} items' if asked < test_size else ''})"


def ask_dataset(
    dataset: Dataset,
    settings: Prompting,
    *,
    descriptions: Mapping[str, str] | None,
    seed: int,
    on_answer: Callable[[int, int], None] = lambda done, total: None,
) -> Answers:
    """Ask for the label of each test text, or of a stratified sample of them.

    Args:
        dataset: of texts, or pairs of texts.
        settings: endpoint, model, number of examples and so on.
        descriptions: label -> what it means, beside its name in the prompt.
        seed: which examples are shown, and which items are asked about.
        on_answer: called with how many answers there are, and how many there will be.

    Raises:
        EndpointError: the endpoint cannot be reached, refuses the key, does not know the model, or answers with
            something else than a chat completion.
    """
    rows = np.arange(len(dataset.test))
    if settings.max_items is not None and settings.max_items < len(rows):
        rows = stratified_subsample(dataset.test.labels, settings.max_items, seed=seed)
    test = dataset.test.rows(rows)
    examples = _examples(dataset.train, settings.shots, seed)
    names = dataset.label_names
    prompts = [build_prompt(text, settings, names, descriptions, examples) for text in test.inputs]
    answers = asyncio.run(_ask_all(prompts, settings, on_answer))
    labels = [None if answer is None else read_label(answer, names) for answer in answers]
    return Answers(
        test=test,
        predictions=np.array([-1 if label is None else label for label in labels], dtype=np.int64),
        unparsed=labels.count(None),
        cut=sum(max(map(len, _parts(text))) > settings.max_characters for text in test.inputs),
    )


# --- prompts and answers -----------------------------------------------------------------------------------------


def build_prompt(
    text: str | tuple[str, str],
    settings: Prompting,
    label_names: Sequence[str],
    descriptions: Mapping[str, str] | None,
    examples: Sequence[tuple[str | tuple[str, str], int]] = (),
) -> str:
    """The instruction with the labels, the examples with their labels, and the text without one.

    All of it is one message of the user: not every chat template knows a system's.
    """
    labels = "\n".join(f"- {name}{f': {descriptions[name]}' if descriptions else ''}" for name in label_names)
    parts = [settings.instruction.replace("{labels}", labels).strip()]
    for example, label in examples:
        parts.append(f"{_shown(example, settings.max_characters)}\nLabel: {label_names[label]}")
    parts.append(f"{_shown(text, settings.max_characters)}\nLabel:")
    return "\n\n".join(parts)


def read_label(answer: str, label_names: Sequence[str]) -> int | None:
    """The label that an answer names: exactly, but for case, or as the only one somewhere in a sentence; else None."""
    answer = re.sub(r"<think>.*?(</think>|$)", "", answer, flags=re.DOTALL).strip()  # a cut-off thought names nothing
    answer = re.sub(r"^\W*label\W+", "", answer, flags=re.IGNORECASE)
    bare = answer.strip(" \t\n\"'`*_.,:;!()[]")
    for given in (answer, bare):
        if given in label_names:
            return label_names.index(given)
    same = [index for index, name in enumerate(label_names) if name.casefold() == bare.casefold()]
    if same:
        return same[0] if len(same) == 1 else None
    rest, found = answer.casefold(), []
    for index in sorted(
        range(len(label_names)), key=lambda index: -len(label_names[index])
    ):  # "not spam" before "spam"
        rest, times = re.subn(rf"(?<!\w){re.escape(label_names[index].casefold())}(?!\w)", " ", rest)
        found += [index] * bool(times)
    return found[0] if len(found) == 1 else None


def _shown(text: str | tuple[str, str], limit: int) -> str:
    titles = ("Text", "Second text")
    return "\n".join(f"{title}: {part[:limit]}" for title, part in zip(titles, _parts(text), strict=False))


def _parts(text: str | tuple[str, str]) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def _examples(train: Split, shots: int, seed: int) -> list[tuple[Any, int]]:
    """Stratified rows of train, in a random order; of more classes than shots, each example is of another class."""
    if not shots:
        return []
    rows = stratified_subsample(train.labels, max(shots, len(set(train.labels.tolist()))), seed=seed)
    chosen = [int(rows[place]) for place in sample_rows(len(rows), shots, seed=seed)]
    chosen.sort(key=lambda row: derive_seed(seed, "shots", row))
    return [(train.inputs[row], int(train.labels[row])) for row in chosen]


# --- the endpoint ------------------------------------------------------------------------------------------------


async def _ask_all(
    prompts: Sequence[str], settings: Prompting, on_answer: Callable[[int, int], None]
) -> list[str | None]:
    """The answers in the order of the prompts, ``concurrency`` of them under way at a time."""
    answers: list[str | None] = [None] * len(prompts)
    waiting = iter(enumerate(prompts))
    done = 0
    on_answer(done, len(prompts))

    async def work(ask: Callable[[str], Awaitable[str | None]]) -> None:
        nonlocal done
        for place, prompt in waiting:
            answers[place] = await ask(prompt)
            done += 1
            on_answer(done, len(prompts))

    key = os.environ.get(settings.api_key_variable or "", "").strip()
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise EndpointError(
            f"the environment variable {settings.api_key_variable} holds blanks or characters that no header may hold",
            "Put the key alone there.",
        )
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(headers=headers, timeout=settings.timeout) as client:
        endpoint = _Endpoint(client, settings, key, most_refused=min(MOST_REFUSED, len(prompts)))
        # A first failure ends asyncio.run, which cancels what else is under way; so does Ctrl-C.
        await asyncio.gather(*(work(endpoint.ask) for _ in range(settings.concurrency)))
    return answers


@dataclass
class _Endpoint:
    """One chat model; nothing that it raises holds the key."""

    client: httpx2.AsyncClient
    settings: Prompting
    key: str = field(repr=False)
    most_refused: int
    _answered: bool = False
    _refused: int = 0

    async def ask(self, prompt: str) -> str | None:
        """The answer to one prompt; None where the endpoint refuses this one."""
        body = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self.settings.max_tokens,
            **self.settings.extra,
        }
        body = {name: value for name, value in body.items() if value is not None}
        for delay in (*DELAYS, None):
            response, problem = await self._post(body)
            if response is not None and response.status_code not in TRANSIENT:
                return self._read(response)
            if delay is None or (response is None and not self._answered and "timed out" not in problem):
                raise EndpointError(
                    f"{problem}{f' after {len(DELAYS) + 1} attempts' if delay is None else ''}",
                    "Check reference.prompting.base_url and that its server runs; a slow one needs a higher "
                    "reference.prompting.timeout, a busy one a lower reference.prompting.concurrency.",
                )
            await asyncio.sleep(_wanted_delay(response, delay))
        raise AssertionError("the last attempt returns or raises")

    async def _post(self, body: Mapping[str, Any]) -> tuple[httpx2.Response | None, str]:
        """The response, if any came, and what went wrong otherwise or where it is transient."""
        url = f"{self.settings.base_url.rstrip('/')}/chat/completions"
        try:
            response = await self.client.post(url, json=body)
        except httpx2.TimeoutException:
            return None, f"the request to {url} timed out after {self.settings.timeout:g} s"
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            return None, self._clean(f"no endpoint answers at {url}: {error or type(error).__name__}")
        return response, f"{url} answers with status {response.status_code}: {self._said(response)}"

    def _read(self, response: httpx2.Response) -> str | None:
        status, said = response.status_code, self._said(response)
        if status in (401, 403):
            variable = self.settings.api_key_variable
            given = "the key" if self.key else "a request without a key"
            lacks = f"the environment variable {variable} is not set" if variable else "api_key_variable is null"
            raise EndpointError(
                f"the endpoint refuses {given} (status {status}): {said}",
                f"Put a valid key into the environment variable {variable}, or name another one in "
                "reference.prompting.api_key_variable."
                if self.key
                else f"Here {lacks}: put the key there, or name another one in reference.prompting.api_key_variable.",
            )
        if status == 404:
            raise EndpointError(
                f"the endpoint does not know the model {self.settings.model!r}, or the path (status 404): {said}",
                "Check reference.prompting.model, and that reference.prompting.base_url ends like http://host:port/v1.",
            )
        if status in REFUSED:
            self._refused += 1
            if self._answered or self._refused < self.most_refused:
                return None
        if status != 200:
            raise EndpointError(
                f"the endpoint refuses the request (status {status}): {said}",
                "reference.prompting.extra changes or leaves out (null) fields of the request, such as max_tokens.",
            )
        try:
            answer = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            answer = 0
        if not isinstance(answer, str | None):
            raise EndpointError(
                f"{self.settings.base_url} answers with something else than a chat completion: {said}",
                "reference.prompting.base_url must be that of an OpenAI-compatible server, such as http://host:port/v1.",
            )
        self._answered = True
        return answer or ""

    def _said(self, response: httpx2.Response) -> str:
        """What the server says of it, in one short line."""
        try:
            content = response.json()
        except ValueError:
            return self._clean(response.text)
        error = content.get("error", content.get("detail", content)) if isinstance(content, dict) else content
        return self._clean(str(error.get("message", error) if isinstance(error, dict) else error))

    def _clean(self, text: str) -> str:
        line = " ".join((text.replace(self.key, "<key>") if self.key else text).split())
        return line if len(line) <= SHOWN else f"{line[:SHOWN]} ..."


def _wanted_delay(response: httpx2.Response | None, otherwise: float) -> float:
    """Seconds that the server asks to wait, if it says so."""
    asked = "" if response is None else response.headers.get("retry-after", "")
    return min(float(asked), LONGEST_DELAY) if re.fullmatch(r"\d+(\.\d+)?", asked) else otherwise
