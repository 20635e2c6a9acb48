"""Model cards of a comparison: for each study the page that goes with its weights, as the hub shows it.

A card is markdown with metadata in YAML before it (https://huggingface.co/docs/hub/model-cards; the sections follow
Mitchell et al. 2019, arXiv:1810.03993). It is made to be published: no path or address of the machine is in it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from reports import formats
from reports.classes import per_class_markdown
from reports.files import filled
from reports.formats import escape, fence, is_missing, setting
from reports.load import Comparison, best_trial, parsed_config, score_column
from reports.reproduce import train_command
from reports.verdict import Verdict
from sweeper import schema

__all__ = ["model_cards", "without_paths"]

#: The embedded models, by the repository of the hub that holds the same weights.
PUBLISHED = {
    "efficientnet_lite0": "timm/tf_efficientnet_lite0.in1k",
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
}
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_PART = r"[^\s/\\'\"`,;|(){}<>\[\]]+"
_BEGIN = r"(?<![\w/\\.~-])"  # not within a word, an address of the web or another path
#: What begins as only paths do: sqlite:////a, file:/a, C:/a, a Windows server, ~/a (or escaped), ../a.
_ROOT = (
    r"(?:[A-Za-z][\w+]*:/{3,}|file:/+|[A-Za-z]:[\\/]+|\\{2,}(?=[^\s\\/]+[\\/])"
    r"|\\?~(?:[A-Za-z_][\w.-]*)?[\\/]+|(?:\.{1,2}[\\/]+)+)"
)
#: /a/b and //server/a are paths, /a alone and what follows https: are none.
_PATH = rf"{_BEGIN}(?:{_ROOT}(?:{_PART}[\\/]+)*|(?:(?<!:)/+|/(?!/))(?:{_PART}[\\/]+)+)(?:{_PART})?"
#: Of the command that trains a model: where its maker's records, workers and folders are.
_PRIVATE = re.compile(r"\+*(hub|tracking|engine|cache|reference|study\.storage|output_dir|verbosity)[.=]")
_FEW_LABELS = 12


def model_cards(
    loaded: Comparison,
    table: pd.DataFrame,
    verdict: Verdict,
    warnings: Sequence[str],
    shared: Mapping[str, Any],
    *,
    confidence: float = 0.95,
    repository: str | None = None,
) -> dict[str, str]:
    """The card of each study that has a final with a test score, by the study's name.

    Args:
        loaded: the comparison.
        table: its ``tables.comparison_table``.
        verdict: which strategy was chosen.
        warnings: of the report; a card repeats those about the data and about its own strategy.
        shared: what cards have in common with the report, finished markdown: ``comparison_table``, ``classes_table``,
            ``shifted_table``, ``shifted`` and ``versions``.
        confidence: of all intervals.
        repository: ``user/name`` on the hub, where the chosen one goes there.
    """
    rows = {str(row["strategy"]): row for _, row in table[table["kind"] == "strategy"].iterrows()}
    cut = _cutter(loaded)
    cards = {}
    for _, study in loaded.studies.iterrows():
        row = rows[str(study["label"])]
        if not is_missing(row["test_accuracy"]):
            place = repository if study["label"] == verdict.chosen else None
            context = _context(loaded, study, row, table, verdict, warnings, confidence, place, cut)
            cards[str(study["study"])] = filled(
                "model_card.md.j2", {**shared, **context, "shifted": cut(shared["shifted"])}
            )
    return cards


def without_paths(text: str, known: Sequence[str] = (), kept: Sequence[str] = ()) -> str:
    """The text with folders of this machine taken out; of each path its last part stays. Web addresses stay.

    Args:
        text: a value, or a sentence of markdown.
        known: paths that are taken out whatever they look like, spaces in them or not.
        kept: labels, which stay where they look like paths.
    """

    def any_of(words: Sequence[str]) -> str:
        return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) or r"(?!)"

    asked = rf"{_BEGIN}(?:file:(?://)?)?(?:{any_of(known)})(?![\w-]|\.\w)(?:[\\/]+{_PART})*"
    pattern = rf"(?<![\w/\\])(?P<kept>{any_of(kept)})(?![\w/\\])|{asked}|{_PATH}"
    return re.sub(pattern, lambda found: found[0] if found["kept"] else _last(found[0]), text)


def _last(path: str) -> str:
    return re.split(r"[\\/]+", path.rstrip("\\/"))[-1]


def _cutter(loaded: Comparison) -> Callable[[object], str]:
    """What takes the paths out of a logged value, or of a sentence, and leaves the labels of classes and strategies."""
    names = loaded.data_summary.get("label_names")
    labels = {str(name) for name in [*(names if isinstance(names, list) else []), *loaded.studies["label"]]}
    kept = [label for label in labels | {escape(label) for label in labels} if re.search(r"[\\/]", label)]
    known = _paths(loaded)
    return lambda value: without_paths(str(value), known, kept)


def _paths(loaded: Comparison) -> list[str]:
    """The paths that configurations name."""
    found: set[str] = set()

    def collect(value: Any, keys: tuple[str, ...]) -> None:
        """Add the paths in a value; ``keys`` are those that hold one, whatever it looks like."""
        for name, part in value.items():
            if isinstance(part, Mapping):
                if name != "label_descriptions":
                    collect(part, keys)
            elif isinstance(part, str) and (name in keys or re.match(rf"{_ROOT}|/", part)):
                found.update({part.rstrip("\\/")} - {_last(part)})

    for config in map(parsed_config, loaded.configs.values()):
        of_hub = _get(config, "dataset.source") == "hub"  # where dataset.shifted is a name
        collect(config, ("path", "validation_path", "test_path", *(() if of_hub else ("shifted",))))
    return sorted(found)


# --- what the template shows -------------------------------------------------------------------------------------


def _context(
    loaded: Comparison,
    study: pd.Series,
    row: pd.Series,
    table: pd.DataFrame,
    verdict: Verdict,
    warnings: Sequence[str],
    confidence: float,
    repository: str | None,
    cut: Callable[[object], str],
) -> dict[str, Any]:
    label, config = str(study["label"]), parsed_config(loaded.configs.get(str(study["study"]), ""))
    final = _saved_final(loaded, study)
    modality = "image" if loaded.data_summary.get("modality", _get(config, "model.modality")) == "image" else "text"
    head = _get(config, "model.head")
    names = loaded.data_summary.get("label_names")
    names = [str(name) for name in names] if isinstance(names, list) else []
    command = _command(loaded, study, cut)
    return {
        "metadata": _metadata(loaded, study, row, config, modality, cut),
        "title": f"{cut(loaded.title)}, {label}",
        "modality": modality,
        "pairs": modality == "text" and bool(_get(config, "dataset.second_text_column")),
        "task": f"{modality}-classification",
        "auto": "AutoModelForImageClassification" if modality == "image" else "AutoModelForSequenceClassification",
        "base": _base(config) or cut(formats.different([study["model"]])) or "a pretrained model",
        "base_is_local": _get(config, "model.source") == "local",
        "dataset": cut(formats.different([study["dataset"]])) or "a dataset of its maker's own",
        "labels": _labels(names, _get(config, "dataset.label_descriptions")),
        "n_labels": len(names),
        "native": head == "native",
        "timm": head == "native" and (_base(config) or "").startswith("timm/"),
        "repository": repository or "USER/NAME",
        "max_length": _get(config, "dataset.max_length") if modality == "text" else None,
        "accuracy": formats.accuracy(row),
        "confidence": f"{100 * confidence:g} %",
        "seeds": int(row["seeds"]),
        "macro_f1": formats.score(row["test_macro_f1"]),
        "answer": _answer(loaded, label, verdict),
        "summary": verdict.summary,
        "sizes": _sizes(loaded, study),
        "source": _source(loaded, config),
        "training": _training(loaded, study, row, final, config, cut),
        "this_one": _this_one(final),
        "floors": [
            f"{formats.floor_name(str(floor['strategy']))} {formats.accuracy(floor)}"
            for _, floor in table[table["kind"] == "floor"].iterrows()
        ],
        "per_class_table": per_class_markdown(loaded, label),
        "limits": _limits(loaded, study, config, modality, [cut(warning) for warning in warnings]),
        "command": fence(command, "bash") if command else "",
        "comparison": loaded.name,
        "revision": formats.different([study["git_revision"]]),
        "installed": loaded.installed,
        "fingerprint": formats.different([study["data_fingerprint"]]),
    }


def _metadata(
    loaded: Comparison,
    study: pd.Series,
    row: pd.Series,
    config: Mapping[str, Any],
    modality: str,
    cut: Callable[[object], str],
) -> str:
    """The YAML that the hub reads; https://github.com/huggingface/hub-docs/blob/main/modelcard.md.

    No licence: it follows from those of the pretrained model and of the data, which only the publisher can weigh.
    """
    import yaml

    strategy, dataset = str(study["strategy"]), cut(formats.different([study["dataset"]])) or "unknown"
    base = _base(config)
    of_hub = _get(config, "dataset.source") == "hub"
    seeds = int(row["seeds"])
    mean = f", mean over {seeds} seeds" if seeds > 1 else ""
    metrics = [("accuracy", "Test accuracy", row["test_accuracy"]), ("f1", "Test macro-F1", row["test_macro_f1"])]
    content = {
        "library_name": "transformers",
        "pipeline_tag": f"{modality}-classification",
        "base_model": base,
        "datasets": [dataset] if of_hub and _REPOSITORY.fullmatch(dataset) else None,
        "metrics": ["accuracy", "f1"],
        "tags": list(dict.fromkeys(["thawline", *strategy.split("+")])),
        "model-index": [
            {
                "name": f"{strategy} on {dataset}",
                "results": [
                    {
                        "task": {"type": f"{modality}-classification"},
                        "dataset": {
                            "type": dataset if of_hub else re.sub(r"[^\w.-]+", "_", dataset),
                            "name": dataset,
                            "split": "test",
                        },
                        "metrics": [
                            {"type": kind, "name": f"{name}{mean}", "value": round(float(value), 4)}
                            for kind, name, value in metrics
                            if not is_missing(value)
                        ],
                    }
                ],
            }
        ],
    }
    stated = {key: value for key, value in content.items() if value is not None}
    return str(yaml.safe_dump(stated, sort_keys=False, allow_unicode=True)).strip()


def _base(config: Mapping[str, Any]) -> str | None:
    """The repository of the hub with the pretrained weights; ``None`` of those that lie in a folder."""
    source, name = _get(config, "model.source"), str(_get(config, "model.name") or "")
    if source == "asset":
        return PUBLISHED.get(name)
    if source == "timm":
        name = name.removeprefix("timm/")
        return f"timm/{name}" if "." in name else None  # without a tag, timm's default, which changes
    return name if source == "hub" and _REPOSITORY.fullmatch(name) else None


def _saved_final(loaded: Comparison, study: pd.Series) -> pd.Series | None:
    """The final whose weights are kept: the best one on validation, the earliest of equal ones."""
    finals = loaded.finals(study["study"]).sort_values("start_time", kind="stable")
    column = score_column(study, finals)
    scores = pd.to_numeric(finals.get(column, pd.Series(dtype=float)), errors="coerce").dropna()
    if scores.empty:
        return None
    return finals.loc[scores.idxmin() if column.endswith("loss") else scores.idxmax()]


def _labels(names: Sequence[str], described: Any) -> str:
    described = described if isinstance(described, Mapping) else {}
    shown = [
        escape(name) + (f" ({escape(described[name])})" if described.get(name) else "") for name in names[:_FEW_LABELS]
    ]
    return ", ".join(shown) + (f" and {len(names) - _FEW_LABELS} more" if len(names) > _FEW_LABELS else "")


def _answer(loaded: Comparison, label: str, verdict: Verdict) -> str:
    """Whether this strategy was chosen, and else which one and why."""
    others = len(loaded.studies) - 1
    if verdict.chosen is None:
        return "No strategy was chosen."
    if verdict.chosen == label:
        return f"It was chosen among {others + 1} strategies." if others else "No other strategy was compared with it."
    why = ""
    if label in verdict.over_budget:
        why = " This one is over the budget that was set."
    elif label == verdict.best:
        why = " This one scored highest, but the choice is shown or measured to be about as good with fewer parameters."
    elif label in verdict.differences:
        gap = verdict.differences[label]
        shown = formats.score_interval(gap.mean, gap.low, gap.high, difference=True)
        tie = ", a tie" if gap.tie else ""
        why = f" This one differs from the best, {escape(verdict.best)}, by {shown} of test accuracy{tie}."
    return f"**Another strategy was chosen: {escape(verdict.chosen)}.**{why}"


def _sizes(loaded: Comparison, study: pd.Series) -> str:
    """``1,000 of 8,951 train, 500 validation and 2,000 test items``, as far as logged."""
    pools = loaded.data_summary.get("pool_sizes")
    pools = pools if isinstance(pools, dict) else {}
    parts = []
    for split in ("train", "validation", "test"):
        size = pd.to_numeric(study[f"{split}_size"], errors="coerce")
        if is_missing(size):
            continue
        whole = pools.get(split)
        more = f" of {whole:,}" if isinstance(whole, int) and whole > size else ""
        parts.append(f"{size:,.0f}{more} {split}")
    return formats.joined(parts) if parts else ""


def _source(loaded: Comparison, config: Mapping[str, Any]) -> list[str]:
    """Where the rows are from and what was left out, as sentences of markdown."""
    kinds = {
        "embedded": "one of the datasets that Thawline brings",
        "csv": "a table of its maker's own",
        "image_csv": "a table of its maker's own, with images",
        "image_folder": "a folder of images of its maker's own",
        "hub": "a dataset of the Hugging Face hub",
    }
    lines = []
    if kind := kinds.get(str(_get(config, "dataset.source"))):
        revision = _get(config, "dataset.revision")
        lines.append(f"Source: {kind}{f', revision {escape(revision)}' if revision else ''}.")
    counted = loaded.data_summary.get("source")
    counted = counted if isinstance(counted, dict) else {}
    numbers = [
        f"{escape(str(name).replace('_', ' '))} {number:,}"
        for name, number in counted.items()
        if isinstance(number, int) and not isinstance(number, bool)
    ]
    if numbers:
        lines.append(f"Counted while reading it: {', '.join(numbers)}.")
    unlabelled = loaded.data_summary.get("unlabelled")
    if isinstance(unlabelled, int) and unlabelled:
        lines.append(f"Not trained on, with or without a label: {unlabelled:,} items of the training side.")
    return lines


def _training(
    loaded: Comparison,
    study: pd.Series,
    row: pd.Series,
    final: pd.Series | None,
    config: Mapping[str, Any],
    cut: Callable[[object], str],
) -> list[tuple[str, str]]:
    """What the weights came from, as pairs of a name and finished markdown."""
    winner = best_trial(loaded, study)
    names = [] if is_missing(study[schema.PARAM_SEARCHED]) else str(study[schema.PARAM_SEARCHED]).split(",")
    searched = {} if winner is None else {name.strip(): winner.get(name.strip()) for name in names}
    given = _get(config, "strategy")
    given = given if isinstance(given, Mapping) else {}
    fixed = {k: v for k, v in given.items() if k not in ("name", "label", "search_space", *searched)}
    fixed |= {"learning_rate": _get(config, "trainer.learning_rate")} if "learning_rate" not in searched else {}

    def values(of: Mapping[str, Any]) -> str:
        shown = (f"{formats.code(k)} {escape(cut(setting(v)))}" for k, v in of.items() if not is_missing(v))
        return ", ".join(shown)

    run = study if final is None else final

    def logged(column: str) -> str:
        return next((escape(cut(setting(of[column]))) for of in (run, study) if not is_missing(of[column])), "")

    epochs = logged(schema.PARAM_EPOCHS)
    best = "" if final is None or is_missing(final[schema.BEST_EPOCH]) else f"{final[schema.BEST_EPOCH]:.0f} kept"
    share = f" ({formats.percent(row['trainable_pct'])} of {formats.count(row['total_params'])})"
    pairs = [
        ("strategy", escape(given.get("name") or study["strategy"])),
        ("found by the search", values(searched)),
        ("fixed", values(fixed)),
        (
            "trainable parameters",
            "" if is_missing(row["trainable_params"]) else f"{row['trainable_params']:,.0f}{share}",
        ),
        ("epochs", ", ".join(filter(None, [f"at most {epochs}" if epochs else "", best]))),
        ("batch size", logged(schema.PARAM_BATCH_SIZE)),
        ("seed", "" if is_missing(run[schema.PARAM_SEED]) else f"{run[schema.PARAM_SEED]:.0f}"),
        ("precision", logged(schema.PARAM_PRECISION)),
        ("head, pooling", ", ".join(filter(None, (logged(schema.PARAM_HEAD), logged(schema.PARAM_POOLING))))),
        ("training", "" if is_missing(row["train_seconds"]) else f"{formats.duration(row['train_seconds'])} per final"),
        ("search", _search(row)),
        ("hardware", logged(schema.PARAM_DEVICE)),
    ]
    return [(name, value) for name, value in pairs if value]


def _search(row: pd.Series) -> str:
    if is_missing(row["trials"]) or not row["trials"]:
        return ""
    took = "" if is_missing(row["tuning_seconds"]) else f", {formats.duration(row['tuning_seconds'])}"
    return f"{row['trials']:.0f} trials on train and validation only{took}"


def _this_one(final: pd.Series | None) -> str:
    """Which of the finals the weights are of."""
    if final is None:
        return ""
    score = formats.score(final[schema.TEST_ACCURACY])
    seed = "" if is_missing(final[schema.PARAM_SEED]) else f" (seed {final[schema.PARAM_SEED]:.0f})"
    return f"The weights are those of the final that is best on validation{seed}; its own test accuracy is {score}."


def _limits(
    loaded: Comparison, study: pd.Series, config: Mapping[str, Any], modality: str, warnings: Sequence[str]
) -> list[str]:
    """What is known to be wrong with the model or was not looked at, as sentences of markdown."""
    own = escape(study["label"])
    others = [escape(label) for label in loaded.studies["label"] if label != study["label"]]
    about = [w for w in warnings if own in w or not any(re.match(rf"{re.escape(o)}\b", w) for o in others)]
    groups = loaded.data_summary.get("groups")
    if isinstance(groups, dict) and any(groups.values()):
        about.append(
            "Items that share a source (a group) lie in one split each, so that the scores are of new sources."
        )
    else:
        about.append(
            "Items were split one by one: where several come from one source (an author, a patient, a series), scores "
            "on new sources may be lower."
        )
    if _get(config, "dataset.shifted") is None:
        about.append(
            "Only items like those it was trained on were scored: of other times, places and uses nothing is known."
        )
    if modality == "text":
        about.append("Which languages the texts are in was not recorded; of any other language nothing is known.")
        length = _get(config, "dataset.max_length")
        about += [f"Of a text, the first {setting(length)} tokens are read."] if not is_missing(length) else []
    about.append(
        "`thawline predict` gives scores calibrated on the validation split (`temperature` in `thawline.json`); "
        "those of plain transformers are not, and tend to be too sure. Calibrated or not, they mean nothing for items "
        "of another kind."
    )
    about.append("No interval here covers other training rows, or what another search would have found.")
    return about


def _command(loaded: Comparison, study: pd.Series, cut: Callable[[object], str]) -> str:
    """The command that trains this configuration alone, without where its maker's records and workers are."""
    command = train_command(loaded, str(study["label"])) or formats.different([study["command"]])
    try:
        words = shlex.split(command)
    except ValueError:  # an open quote, in a foreign record
        return ""
    return shlex.join(cut(word) for word in words if not _PRIVATE.match(word))


def _get(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
