"""Every public configuration key with its type, default and meaning, and the check of their values.

Hydra composes ``conf/`` into a :class:`Config`. :func:`check` collects all mistakes at once; what passes it becomes
plain arguments (:class:`~sweeper.plan.Plan`, :class:`~sweeper.training.trainer.TrainerSettings`), and nothing below
the commands sees a config object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from sweeper.errors import near_matches
from sweeper.names import folder_problem, text_problem

__all__ = [
    "Config",
    "check",
    "config_dir",
    "data_name",
    "effective_pooling",
    "group_names",
    "natural_direction",
    "register",
    "users_config_dir",
]

METRICS = ("validation_accuracy", "validation_macro_f1", "validation_loss")
RESUME = ("auto", "never", "require")
SAMPLERS = ("tpe", "random", "gp")
PRUNERS = ("none", "median", "hyperband", "successive_halving")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
VERBOSITIES = ("quiet", "normal", "verbose")
MODEL_SOURCES = ("asset", "hub", "timm", "local")
DATA_SOURCES = ("embedded", "csv", "image_folder", "image_csv", "hub")
MODALITIES = ("text", "image")
AUGMENTATIONS = ("none", "light", "strong")
PAIRS = {"text": "model=minilm dataset=review_lines", "image": "model=efficientnet_lite0 dataset=textile"}
ENGINES = ("inline", "processes", "ray")
CLASS_WEIGHTS = ("none", "balanced")
HEADS = ("linear", "mlp", "native")
POOLINGS = ("mean", "first", "max", "native")


@dataclass
class ModelConfig:
    """The pretrained model, its pooling and its head."""

    name: str = MISSING  # shown in names of studies; with source hub or timm, the name there
    source: str = MISSING  # where the weights come from; asset = embedded, local = the folder of model.path
    modality: str = "text"  # what it takes; the dataset must hold the same
    path: str | None = None  # folder with a transformers checkpoint, for source local
    revision: str | None = None  # commit or tag, for sources hub and timm
    head: str = "linear"  # linear | mlp | native: the classifier on top; native = the architecture's own
    pooling: str = "mean"  # mean | first | max | native: of tokens or patches to one vector; native = the model's own


@dataclass
class DatasetConfig:
    """The labelled data and how much of it is used."""

    name: str | None = MISSING  # an embedded dataset's, or the hub's; of own files null = the file's or folder's name
    source: str = "embedded"  # embedded | csv | image_folder | image_csv | hub: where the data come from
    modality: str = "text"  # text | image: what its items are
    path: str | None = None  # own data: a file (CSV, JSON lines, parquet) or, of image_folder, a folder
    validation_path: str | None = None  # own data: validation rows; null = carved from train
    test_path: str | None = None  # own data: test rows; null = carved from all
    subset: str | None = None  # hub: the configuration of a dataset that has several
    revision: str | None = None  # hub: a commit or tag
    train_split: str | None = None  # hub: the split to train on; null = train
    validation_split: str | None = None  # hub: null = validation where there is one, else carved from train
    test_split: str | None = None  # hub: null = test where there is one, else carved
    text_column: str | None = None  # null = the one that holds texts, where that is clear
    second_text_column: str | None = None  # of pairs of texts
    image_column: str | None = None  # image_csv, hub: null = the one that holds images, where that is clear
    label_column: str | None = None  # null = label, where there is one; rows without a label are used unlabelled
    group_column: str | None = None  # rows of one group never lie on two sides of a split
    split_column: str | None = None  # own data: a column that says train, validation or test
    shifted: str | None = None  # finals are scored on it too: own data's path, or the name of another dataset
    train_size: int | None = None  # examples that are trained on; null = all
    train_sizes: list[int] | None = None  # a comparison at each of these instead, and one table and curve over them
    validation_size: int | None = None  # examples that trials are scored on; null = all
    test_size: int | None = None  # examples that finals are scored on; null = all
    seed: int = 42  # of the stratified sub-samples
    max_length: int = 128  # tokens; longer texts are cut
    image_size: int | None = None  # pixels of both sides; null = the model's own
    augmentation: str = "none"  # none | light | strong: of train images (sweeper/data/images.py)
    label_descriptions: dict[str, str] | None = None  # label -> a sentence for zero_shot; null = the labels' names


@dataclass
class StudyConfig:
    """The Optuna study."""

    name: str | None = None  # null = model-dataset-strategy-<hash of what is measured>
    resume: str = "auto"  # auto = continue it, or create it; never = it must be new; require = it must exist
    n_trials: int = 5  # total of completed, pruned, diverged and failed trials
    timeout: float | None = None  # seconds; no trial starts later
    seed: int = 42  # of sampling, initialisation and data order
    sampler: str = "tpe"  # tpe | random | gp: how configurations are drawn; gp = a Gaussian process
    pruner: str = "median"  # none | median | hyperband | successive_halving: what ends a poor trial early
    metric: str = "validation_accuracy"  # validation_accuracy | validation_macro_f1 | validation_loss: of trials
    direction: str | None = None  # null = the metric's own
    # an Optuna storage URL, sqlite:///... or postgresql://...; null = sqlite in output_dir
    storage: str | None = None
    max_failure_rate: float = 0.5  # stop when more than this share of at least 3 trials failed; below 1


@dataclass
class TrainerConfig:
    """The training run of one configuration."""

    epochs: int = 3  # at most
    batch_size: int = 32  # examples per step, before accumulation
    learning_rate: float | None = None  # a fixed rate; needs strategy.search_space.learning_rate=null
    weight_decay: float = 0.01  # AdamW, not on biases and norms
    warmup_ratio: float = 0.1  # part of all steps
    max_grad_norm: float = 1.0  # clipping
    precision: str = "auto"  # of training; auto = bf16 or fp32, whichever a step of the model is faster in here
    gradient_accumulation_steps: int = 1  # batches per optimiser step
    length_grouping: bool = True  # batches of texts of similar length
    class_weights: str = "none"  # none | balanced: each class weighs alike in the loss, however rare
    early_stopping_patience: int = 0  # epochs without improvement before a run stops; 0 = off
    early_stopping_metric: str = "validation_loss"  # what has to improve
    checkpoint_seconds: float | None = 300.0  # of training between two checkpoints of a run; null = none


@dataclass
class PseudoLabelConfig:
    """Self-training around any strategy: confident predictions on unlabelled items join the train split."""

    rounds: int = 0  # of labelling and training anew, after the first training; 0 = off
    threshold: float = 0.9  # least probability of the predicted class
    size: int | None = None  # unlabelled items that are predicted; null = all


@dataclass
class DomainPretrainConfig:
    """Language modelling on unlabelled text before any strategy."""

    epochs: int = 0  # 0 = off
    learning_rate: float = 5.0e-5  # peak
    batch_size: int = 32  # texts per step
    mask_probability: float = 0.15  # of a token, in masked language modelling
    size: int | None = None  # unlabelled texts that are trained on; null = all


@dataclass
class CacheConfig:
    """What frozen blocks compute, recorded once and read again."""

    enabled: bool = True  # false = every trial computes everything
    dir: str | None = None  # null = states/ in the user's cache folder; processes and output folders may share it
    max_gb: float = 10.0  # of all that is recorded; the least recently used goes first


@dataclass
class FinalConfig:
    """The retraining of the best configuration, scored on the test split."""

    seeds: int = 3  # how many; 0 = the search alone: no test scores, no report
    drift: bool = False  # how far finals' features moved from the pretrained ones (on validation inputs)


@dataclass
class PromptingConfig:
    """A prompted model as a reference row: asked for the label of each test text, trained on nothing."""

    base_url: str | None = None  # of an OpenAI-compatible endpoint, e.g. http://127.0.0.1:8000/v1; null = off
    model: str | None = None  # as the endpoint names it
    shots: int = 0  # examples from train in the prompt, stratified: 0, or 3 to 10
    instruction: str = MISSING  # before the examples and the text; {labels} becomes the list of labels
    api_key_variable: str | None = "OPENAI_API_KEY"  # the environment variable with the key; null = none is sent
    max_items: int | None = None  # test items that are asked about, a stratified sample; null = all
    max_characters: int = 2000  # of a text; longer ones are cut
    max_tokens: int = 16  # of an answer
    concurrency: int = 8  # requests under way at a time
    timeout: float = 60.0  # seconds for one request
    extra: dict[str, Any] = field(default_factory=dict)  # further fields of each request; null leaves one out


@dataclass
class ReferenceConfig:
    """Rows to measure strategies against, beside the floors."""

    prompting: PromptingConfig = field(default_factory=PromptingConfig)


@dataclass
class EngineConfig:
    """Where runs are trained."""

    # inline = one after another, in this process; processes = side by side, on this machine; ray = on a cluster
    name: str = "inline"
    workers: int | None = None  # runs at a time; null = one for each GPU, or each core up to 4 (ray: of each machine)
    address: str | None = None  # of ray: host:port, or auto = the cluster this machine is in; null = this machine alone
    cpus_per_worker: float | None = None  # of ray: reserved, and threads; null = what is there, shared equally
    gpus_per_worker: float | None = None  # of ray: up to 1, as a run trains on one; null = 1 where there are any


@dataclass
class TrackingConfig:
    """MLflow."""

    uri: str | None = None  # null = sqlite in output_dir; http(s)://host:port = a tracking server
    experiment: str = "thawline"  # created when missing
    register: bool = True  # the chosen model goes into MLflow's model registry, under the comparison's name


@dataclass
class ReportConfig:
    """The markdown report, and what it may choose."""

    # make report: a comparison or a curve over train sizes; several, or all, for one summary; null = the newest
    comparison: Any = None
    confidence: float = 0.95  # of every interval
    delta: float = 0.01  # of accuracy: what more parameters are not worth; 0.01 is one point
    max_trainable_params: int | None = None  # budgets: what exceeds one is not chosen; null = none
    max_train_seconds: float | None = None  # of one training run
    max_memory_mb: float | None = None  # peak of one training run
    constrain_search: bool = False  # true = the search keeps to the budgets too, in studies of their own


@dataclass
class HubConfig:
    """The Hugging Face hub."""

    push: str | None = None  # user/name: the chosen strategy's model is uploaded there with its card; null = nothing is
    private: bool = True  # seen by its owner alone; false = by everybody, see docs/sharing.md


@dataclass
class Config:
    """The whole configuration."""

    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    # name, fields and search_space; label = what tables call it, null = its name
    strategy: dict[str, Any] = field(default_factory=lambda: {"label": None})
    study: StudyConfig = field(default_factory=StudyConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    pseudo_label: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    domain_pretrain: DomainPretrainConfig = field(default_factory=DomainPretrainConfig)
    final: FinalConfig = field(default_factory=FinalConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    # what `compare` runs where no strategy= is given: names, or {strategy: name, label: ..., key: value} of variants,
    # whose keys are those of strategy.*; null = frozen, lora, partial, full
    compare: list[Any] | None = None
    output_dir: str = "outputs"  # databases, artifacts, reports, winners; one process at a time owns it
    dry_run: bool = False  # print what would run, and how long, and stop
    verbosity: str = "normal"  # quiet = warnings and the result; verbose = every epoch


def register() -> None:
    """Make the schema known to Hydra as ``schema``, the first entry of ``conf/config.yaml``."""
    ConfigStore.instance().store(name="schema", node=Config)


def config_dir() -> Path:
    """The folder ``conf/``: inside the installed package, or beside it in a clone."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def group_names() -> list[str]:
    """Hydra's groups, each a folder of ``conf/``."""
    return sorted(path.name for path in config_dir().iterdir() if path.is_dir())


def users_config_dir() -> str | None:
    """``conf``, where the current folder has one with groups of ours in it: it joins the search path by itself.

    Not one with a ``config.yaml``: that is the project's own, or another application's.
    """
    folder = Path("conf")
    joins = not (folder / "config.yaml").exists() and any((folder / group).is_dir() for group in group_names())
    return str(folder) if joins else None


def check(config: Config) -> list[str]:
    """Every impossible value of a composed configuration, each as one line; none where all is well.

    The strategy's fields and search space are checked by :func:`sweeper.search_space.parse_strategy`.
    """
    problems: list[str] = []
    for group, key, minimum in _MINIMA:
        value = attrgetter(f"{group}.{key}")(config)
        if value is not None and value < minimum:
            problems.append(f"{group}.{key}={value}: must be at least {minimum}")
    for group, key, low, high in _INTERVALS:
        value = attrgetter(f"{group}.{key}")(config)
        if not low <= value < high:
            problems.append(f"{group}.{key}={value}: must be at least {low} and below {high}")
    for group, key in _POSITIVE:
        value = attrgetter(f"{group}.{key}")(config)
        if value is not None and value <= 0:
            problems.append(f"{group}.{key}={value}: must be above 0")
    for group, key, allowed in _CHOICES:
        value = getattr(getattr(config, group) if group else config, key)
        if value is not None and value not in allowed:
            problems.append(f"{group}{'.' if group else ''}{key}={value}: {near_matches(str(value), allowed)}")
    if config.study.direction == natural_direction(config.study.metric, opposite=True):
        problems.append(f"study.direction={config.study.direction}: the wrong way for {config.study.metric}")
    problems += _check_names(config)
    problems += _check_comparison(config.report.comparison)
    sizes = config.dataset.train_sizes
    if sizes is not None and (not sizes or any(size < 2 for size in sizes) or sorted(set(sizes)) != list(sizes)):
        problems.append(f"dataset.train_sizes={sizes}: must be different numbers from 2, the smallest first, or null")
    if sizes and config.study.name:
        problems.append(f"study.name={config.study.name} names one study, not one for each of dataset.train_sizes")
    if config.hub.push is not None and (sizes or config.final.seeds == 0):
        what = "dataset.train_sizes has a winner at each size" if sizes else "final.seeds=0 has none"
        problems.append(f"hub.push={config.hub.push} uploads one model, and {what}: leave one of them out")
    if config.model.source == "local" and not config.model.path:
        problems.append("model.path is not given: model=local needs model.path=<folder with a checkpoint>")
    own = config.dataset.source in ("csv", "image_folder", "image_csv")
    if own and not config.dataset.path:
        problems.append(
            f"dataset.path is not given: dataset={config.dataset.source} needs dataset.path=<your file or folder>"
        )
    if not own and not config.dataset.name:
        problems.append(f"dataset.name is not given: dataset.source={config.dataset.source} needs one")
    problems += _unread("model", config.model, _MODEL_KEYS)
    problems += _check_engine(config.engine)
    problems += _check_data_keys(config.dataset)
    if config.model.modality != config.dataset.modality:
        problems.append(
            f"model={config.model.name} takes {config.model.modality}, "
            f"dataset={config.dataset.name or config.dataset.source} holds "
            f"{config.dataset.modality}: choose a pair of one modality, such as {PAIRS[config.model.modality]} or "
            f"{PAIRS[config.dataset.modality]}"
        )
    if config.domain_pretrain.epochs > 0 and config.model.modality != "text":
        problems.append(
            f"domain_pretrain.epochs={config.domain_pretrain.epochs}: it trains on text, and model={config.model.name} "
            f"takes {config.model.modality}; allowed is 0"
        )
    budgets = (config.report.max_trainable_params, config.report.max_train_seconds, config.report.max_memory_mb)
    if config.report.constrain_search and not any(budgets):
        problems.append(
            "report.constrain_search=true: there is no budget to keep to; give report.max_trainable_params, "
            "report.max_train_seconds or report.max_memory_mb"
        )
    return problems + _check_prompting(config.reference.prompting, config.dataset.modality)


def _check_names(config: Config) -> list[str]:
    """Names that cannot be shown, logged or made a folder."""
    shown = {
        "model.name": config.model.name,
        "dataset.name": config.dataset.name,
        "tracking.experiment": config.tracking.experiment,
    }
    problems = {key: text_problem(name) for key, name in shown.items() if name is not None}
    problems["study.name"] = folder_problem(config.study.name) if config.study.name is not None else ""
    return [f"{key}={attrgetter(key)(config)!r}: {problem}" for key, problem in problems.items() if problem]


def _check_comparison(given: Any) -> list[str]:
    names = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if given is None or (names and all(isinstance(name, str | int) and str(name).strip() for name in names)):
        return []
    return [f"report.comparison={given}: must be a name, names as [a,b], or all; null is the newest"]


def _check_prompting(prompting: PromptingConfig, modality: str) -> list[str]:
    """What is wrong with a prompted model; never with the value of what may hold a key."""
    where = "reference.prompting"
    problems = []
    variable = prompting.api_key_variable
    if variable is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable):
        problems.append(
            f"{where}.api_key_variable: must be the name of an environment variable in capitals, such as "
            "OPENAI_API_KEY, and never the key itself"
        )
    if prompting.base_url is None:
        return problems
    url = urlsplit(prompting.base_url)
    if url.username or url.password or url.query or url.fragment:
        problems.append(f"{where}.base_url: must hold no user, password or query; {where}.api_key_variable names a key")
    elif url.scheme not in ("http", "https") or not url.hostname:
        problems.append(f"{where}.base_url={prompting.base_url}: must be like http://127.0.0.1:8000/v1")
    if not prompting.model:
        problems.append(f"{where}.model is not given: {where}.base_url needs the name of a model there")
    if prompting.shots != 0 and not 3 <= prompting.shots <= 10:
        problems.append(f"{where}.shots={prompting.shots}: must be 0, or 3 to 10")
    if prompting.instruction.count("{labels}") != 1:
        problems.append(f"{where}.instruction: must hold {{labels}} once, the place of the list of labels")
    if modality != "text":
        problems.append(f"{where}.base_url is given, and the dataset holds {modality}s: only texts are asked about")
    return problems


def _unread(group: str, given: Any, keys: Mapping[str, Sequence[str]], by: str = "source") -> list[str]:
    """Keys that are given and that this source does not read; ``keys`` are those that each source reads.

    ``by`` is the key that names the source.
    """
    problems = []
    source = getattr(given, by)
    for key in sorted(set().union(*keys.values())):
        value, readers = getattr(given, key), [reader for reader, own in keys.items() if key in own]
        if value is not None and source not in readers:
            problems.append(
                f"{group}.{key}={value}: {group}.{by}={source} does not read it; it is for {', '.join(readers)}"
            )
    return problems


def _check_engine(engine: EngineConfig) -> list[str]:
    problems = _unread("engine", engine, _ENGINE_KEYS, by="name") if engine.name in ENGINES else []
    cpus, gpus, address = engine.cpus_per_worker, engine.gpus_per_worker, engine.address
    if cpus is not None and cpus > 1 and cpus != int(cpus):
        problems.append(f"engine.cpus_per_worker={cpus}: above 1, Ray reserves whole ones")
    if gpus is not None and not 0 <= gpus <= 1:
        problems.append(f"engine.gpus_per_worker={gpus}: must be at least 0 and at most 1, as a run trains on one GPU")
    if address is not None and address != "auto" and not re.fullmatch(r"[^\s/]+:\d+", address):
        problems.append(
            f"engine.address={address}: must be host:port of a cluster that this machine belongs to, auto for the one "
            "it belongs to, or null for this machine alone"
        )
    return problems


def _check_data_keys(dataset: DatasetConfig) -> list[str]:
    """Keys that say where the data are, and that this source does not read."""
    if dataset.source not in _DATA_KEYS:
        return []
    problems = _unread("dataset", dataset, _DATA_KEYS)
    for modality, keys in _OF_MODALITY.items():
        problems += [
            f"dataset.{key}={value}: it is for {modality}s, and the dataset holds {dataset.modality}s"
            for key, nothing in keys.items()
            if dataset.modality != modality and (value := getattr(dataset, key)) != nothing
        ]
    holds = {"csv": "text", "image_csv": "image", "image_folder": "image"}.get(dataset.source)
    if holds and dataset.modality != holds:
        problems.append(f"dataset.modality={dataset.modality}: dataset.source={dataset.source} holds {holds}")
    if dataset.split_column and (dataset.validation_path or dataset.test_path):
        problems.append("dataset.split_column and dataset.validation_path or dataset.test_path: give one of them")
    given = [path for path in (dataset.path, dataset.validation_path, dataset.test_path) if path is not None]
    if len({Path(path).expanduser().absolute() for path in given}) < len(given):
        problems.append("dataset.path, dataset.validation_path and dataset.test_path must differ")
    if dataset.path and dataset.source == "embedded" and dataset.name != "fashion_mnist":
        problems.append(
            f"dataset.path={dataset.path}: dataset={dataset.name} has its own data; your own are read by "
            "dataset=csv, dataset=image_csv or dataset=image_folder"
        )
    return problems


def data_name(dataset: DatasetConfig) -> str:
    """What the dataset is called: its name, or that of its file or folder without its endings."""
    name = Path(str(dataset.path)).expanduser().absolute().name
    return dataset.name or name.removesuffix(".gz").rpartition(".")[0].strip(".") or name


def effective_pooling(model: ModelConfig) -> str:
    """The pooling that is used: a native head brings its own."""
    return "native" if model.head == "native" else model.pooling


def natural_direction(metric: str, *, opposite: bool = False) -> str:
    """``minimize`` for a loss, ``maximize`` for a score, or the other way round."""
    return "minimize" if metric.endswith("loss") != opposite else "maximize"


_FILES = ("path", "validation_path", "test_path")
_COLUMNS = ("label_column", "group_column")
_HUB = ("subset", "revision", "train_split", "validation_split", "test_split")
#: What each source reads, of the keys that say where the data are.
_DATA_KEYS: dict[str, tuple[str, ...]] = {
    "embedded": ("path",),
    "csv": (*_FILES, *_COLUMNS, "split_column", "text_column", "second_text_column"),
    "image_csv": (*_FILES, *_COLUMNS, "split_column", "image_column"),
    "image_folder": _FILES,
    "hub": (*_HUB, *_COLUMNS, "text_column", "second_text_column", "image_column"),
}
#: Likewise of a model.
_MODEL_KEYS: dict[str, tuple[str, ...]] = {"local": ("path",), "hub": ("revision",), "timm": ("revision",)}
#: Keys that each engine reads.
_ENGINE_KEYS: dict[str, tuple[str, ...]] = {
    "processes": ("workers",),
    "ray": ("workers", "address", "cpus_per_worker", "gpus_per_worker"),
}
#: Keys of data that only one modality has, and their values that mean nothing.
_OF_MODALITY: dict[str, dict[str, Any]] = {
    "image": {"image_column": None, "image_size": None, "augmentation": "none"},
    "text": {"text_column": None, "second_text_column": None},
}
_MINIMA = (
    ("study", "n_trials", 1),
    ("final", "seeds", 0),
    ("trainer", "epochs", 1),
    ("trainer", "batch_size", 1),
    ("trainer", "gradient_accumulation_steps", 1),
    ("trainer", "weight_decay", 0),
    ("trainer", "early_stopping_patience", 0),
    ("dataset", "train_size", 2),
    ("dataset", "validation_size", 2),
    ("dataset", "test_size", 2),
    ("dataset", "max_length", 2),
    ("dataset", "image_size", 8),
    ("pseudo_label", "rounds", 0),
    ("pseudo_label", "size", 1),
    ("domain_pretrain", "epochs", 0),
    ("domain_pretrain", "batch_size", 1),
    ("domain_pretrain", "size", 1),
    ("engine", "workers", 1),
    ("reference.prompting", "max_items", 2),
    ("reference.prompting", "max_characters", 1),
    ("reference.prompting", "max_tokens", 1),
    ("reference.prompting", "concurrency", 1),
)
_POSITIVE = (
    ("study", "timeout"),
    ("trainer", "learning_rate"),
    ("trainer", "max_grad_norm"),
    ("trainer", "checkpoint_seconds"),
    ("cache", "max_gb"),
    ("engine", "cpus_per_worker"),
    ("domain_pretrain", "learning_rate"),
    ("report", "max_trainable_params"),
    ("report", "max_train_seconds"),
    ("report", "max_memory_mb"),
    ("reference.prompting", "timeout"),
)
_INTERVALS = (
    ("trainer", "warmup_ratio", 0, 1),
    ("study", "max_failure_rate", 0, 1),
    ("report", "confidence", 0.5, 1),
    ("report", "delta", 0, 1),
    ("pseudo_label", "threshold", 0, 1),
    ("domain_pretrain", "mask_probability", 0.01, 1),
)
_CHOICES = (
    ("model", "source", MODEL_SOURCES),
    ("model", "modality", MODALITIES),
    ("model", "head", HEADS),
    ("model", "pooling", POOLINGS),
    ("dataset", "source", DATA_SOURCES),
    ("dataset", "modality", MODALITIES),
    ("dataset", "augmentation", AUGMENTATIONS),
    ("trainer", "class_weights", CLASS_WEIGHTS),
    ("study", "resume", RESUME),
    ("study", "sampler", SAMPLERS),
    ("study", "pruner", PRUNERS),
    ("study", "metric", METRICS),
    ("study", "direction", ("maximize", "minimize")),
    ("trainer", "precision", PRECISIONS),
    ("engine", "name", ENGINES),
    ("trainer", "early_stopping_metric", METRICS),
    ("", "verbosity", VERBOSITIES),
)
