"""Trials and finals as the owner of a study sees them: what is asked of Optuna and written down while they train."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from sweeper import schema
from sweeper.engine import Job, Listener, Trained, WorkerDied
from sweeper.faults import failure_reason
from sweeper.files import replaced
from sweeper.hashing import derive_seed
from sweeper.interruption import Interrupted
from sweeper.plan import Plan
from sweeper.progress import Progress, duration
from sweeper.secrets import redacted
from sweeper.tracking import Tracker
from sweeper.training.checkpoints import Checkpoints
from sweeper.training.pseudo_label import Round
from sweeper.training.recorder import Diverged, EpochRecord

__all__ = [
    "ATTEMPTS",
    "EXCUSED",
    "FINAL",
    "INDEX",
    "REASON",
    "RUN",
    "SECONDS",
    "SHIFTED",
    "STATE",
    "Book",
    "FinalRun",
    "TrialRun",
    "remove_staged",
    "tell",
    "trial_seed",
]

WORST_LOSS = 1e9  # what a diverged trial reports
ATTEMPTS = 3  # times that a run may take its process with it

#: Attributes of trials in Optuna; a study has its run too, and a record for each final.
STATE, REASON, INDEX, RUN, SECONDS = "state", "reason", "index", "mlflow_run", "seconds"
EXCUSED = "excused"  # of an interrupted trial: a signal or something else that ended the sweep; no attempt of its own
FINAL = "final"  # final:<configuration>:<seed's number>
_INTERRUPTED = "interrupted"  # interrupted:<the same>: the final's runs that took their process with them, or may yet
SHIFTED = "shifted"  # of a final's record


@dataclass(eq=False)
class Book:
    """Where the runs of a study are recorded.

    Attributes:
        plan: the study as asked for.
        study: in Optuna.
        tracker: to MLflow.
        progress: to the person who waits.
        checkpoints_dir: where runs in progress keep their checkpoints.
        parent: the study's run in MLflow.
        device: what runs are trained on, for people.
        shifted: name and fingerprint of the shifted data, where there are.
        saved_seconds: of computing, by reading recorded states, in processes other than this one.
    """

    plan: Plan
    study: optuna.Study
    tracker: Tracker
    progress: Progress
    checkpoints_dir: Path
    parent: str = ""
    device: str = ""
    shifted: str | None = None
    saved_seconds: float = 0.0

    def start(self, kind: str, name: str, tags: Mapping[str, str], searched: Mapping[str, Any], **params: Any) -> str:
        """Open the MLflow run of a trial or a final."""
        values = {**self.plan.params, **self.plan.spec.fixed, **searched, schema.PARAM_DEVICE: self.device, **params}
        return self.tracker.start(kind, name, {**self.plan.tags, **tags}, values, parent=self.parent)

    def checkpoints(self, name: str) -> Checkpoints | None:
        """Those of a trial, a final or domain pretraining, where they are asked for."""
        seconds = self.plan.checkpoint_seconds
        return None if seconds is None else Checkpoints(self.checkpoints_dir / name, seconds)

    def fitting(self) -> list[FrozenTrial]:
        """The complete trials that can win: those within the budgets, where these constrain the search."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [trial for trial in complete if all(value <= 0 for value in trial.constraints.values())]

    def best_value(self) -> float | None:
        """The best score of a trial so far, on the validation split."""
        return self.study.best_value if self.fitting() else None

    def final_key(self, configuration: str, seed_index: int) -> str:
        """The study's attribute that records a final."""
        return f"{FINAL}:{configuration}:{seed_index}"

    def record_final(self, key: str, run_id: str, state: str, reason: str, validation: float | None) -> None:
        """Write down, for good, how a final ended."""
        record = {"run": run_id, STATE: state, REASON: reason, "validation": validation, SHIFTED: self.shifted}
        self.study.set_user_attr(key, record)

    def attempts(self, key: str) -> list[str]:
        """The runs of a final that took their process with them, and the one under way."""
        found: list[str] = self.study.user_attrs.get(_attempts_key(key), [])
        return found

    def set_attempts(self, key: str, runs: list[str]) -> None:
        """See :meth:`attempts`."""
        self.study.set_user_attr(_attempts_key(key), runs)

    def give_up_final(self, key: str) -> None:
        """Record a final that was interrupted too often as failed."""
        runs = self.attempts(key)
        reason = f"interrupted {len(runs)} times"
        self.record_final(key, runs[-1], schema.STATE_FAILED, reason, None)
        self.tracker.finish(runs[-1], schema.STATE_FAILED, reason=reason)


def tell(study: optuna.Study, trial: Trial, state: str, reason: str, value: float | None, seconds: float) -> None:
    """Close a trial in Optuna with a state of the schema."""
    trial.set_user_attr(STATE, state)
    trial.set_user_attr(SECONDS, seconds)
    if reason:
        trial.set_user_attr(REASON, redacted(reason))
    if state == schema.STATE_COMPLETE:
        study.tell(trial, value)
    elif state in (schema.STATE_PRUNED, schema.STATE_DIVERGED):
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, state=TrialState.FAIL)


def _outcome(error: BaseException | None) -> tuple[str, str, BaseException | None]:
    """The state of a run, the reason, and the error that is to end the sweep as well, if one is."""
    if error is None:
        return schema.STATE_COMPLETE, "", None
    if isinstance(error, optuna.TrialPruned):
        return schema.STATE_PRUNED, str(error), None
    if isinstance(error, Diverged):
        return schema.STATE_DIVERGED, str(error), None
    if isinstance(error, WorkerDied):
        return schema.STATE_INTERRUPTED, str(error), None
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return schema.STATE_INTERRUPTED, str(error) or "interrupted", error
    if isinstance(error, Exception) and (reason := failure_reason(error)) is not None:
        return schema.STATE_FAILED, reason, None
    # A mistake in the code, or a disk or database that fails: the run is not to blame, and is tried again.
    return schema.STATE_INTERRUPTED, f"{type(error).__name__}: {error}", error


class _Run(Listener):
    """What trials and finals have in common.

    Attributes:
        job: what is trained.
        state: how it ended, by the schema; None while it runs.
        reason: why.
    """

    job: Job
    state: str | None = None
    reason: str = ""

    def __init__(self, book: Book, run_id: str) -> None:
        self.book = book
        self.run_id = run_id
        self.trained: Trained | None = None

    def on_round(self, labelling: Round) -> None:
        self.book.tracker.log_metrics(self.run_id, {schema.PSEUDO_LABELLED: labelling.labelled}, labelling.number)
        if labelling.ended:
            self.book.tracker.set_tags(self.run_id, {schema.TAG_PSEUDO_LABEL: labelling.ended})
            self.book.progress.note(f"    {labelling.ended}")

    def _keep(self, trained: Trained) -> None:
        self.trained = trained
        self.book.saved_seconds += trained.saved_seconds
        if trained.resumed_seconds:
            self.book.progress.note(
                f"    went on from a checkpoint after {duration(trained.resumed_seconds)} of training"
            )

    def _clear_checkpoints(self, state: str) -> None:
        """What was interrupted goes on from them."""
        if self.job.checkpoints is not None and state != schema.STATE_INTERRUPTED:
            self.job.checkpoints.clear()

    @property
    def score(self) -> float | None:
        """The best epoch's, by the study's metric."""
        return None if self.trained is None else getattr(self.trained.best, self.book.plan.metric)


def trial_seed(study_seed: int, index: int) -> int:
    """The seed of a study's trial, by the study's own and the trial's index."""
    return derive_seed(study_seed, "trial", index)


class TrialRun(_Run):
    """A trial from its first step to its end.

    Args:
        book: of its study.
        trial: asked of Optuna, with its index.
        position: its number among those that count.
    """

    def __init__(self, book: Book, trial: Trial, position: int) -> None:
        plan = book.plan
        self.index: int = trial.user_attrs[INDEX]
        seed = trial_seed(plan.seed, self.index)
        self.job = Job(trial.params, seed, checkpoints=book.checkpoints(f"trial-{self.index}"))
        name = f"{plan.strategy} trial {trial.number:03d}"  # sorted as text
        numbers = {schema.PARAM_SEED: seed, schema.PARAM_TRIAL: trial.number}
        super().__init__(book, book.start(schema.KIND_TRIAL, name, {}, trial.params, **numbers))
        self.trial = trial
        self.epochs = 0
        trial.set_user_attr(RUN, self.run_id)
        self.line = book.progress.trial_started(trial.number, position, plan.n_trials, trial.params)
        self.started = time.perf_counter()

    def on_sizes(self, sizes: dict[str, float]) -> None:
        """See :meth:`Listener.on_sizes`."""
        self.book.tracker.log_metrics(self.run_id, sizes)
        self._constrain(sizes)
        budget = self.book.plan.budgets.get(schema.TRAINABLE_PARAMS, math.inf)
        if sizes[schema.TRAINABLE_PARAMS] > budget:
            # Known before training, which is skipped.
            raise optuna.TrialPruned(
                f"{sizes[schema.TRAINABLE_PARAMS]:,.0f} trainable parameters exceed "
                f"report.max_trainable_params={budget:.0f}"
            )

    def on_epoch(self, record: EpochRecord) -> None:
        """See :meth:`Listener.on_epoch`."""
        self.epochs = record.epoch
        self.book.tracker.log_metrics(self.run_id, record.metrics(), record.epoch)
        score = getattr(record, self.book.plan.metric)
        self.line.epoch(record, score)
        self.trial.report(score, record.epoch)
        # An epoch of before an interruption was let pass then, when fewer trials had got as far.
        if not record.replayed and record.epoch < self.book.plan.epochs and self.trial.should_prune():
            raise optuna.TrialPruned(f"{score:.4f} after epoch {record.epoch}")

    def on_trained(self, trained: Trained) -> Path | None:
        """See :meth:`Listener.on_trained`."""
        self._keep(trained)
        return None

    def on_end(self, error: BaseException | None) -> None:
        """See :meth:`Listener.on_end`."""
        book = self.book
        state, reason, fatal = _outcome(error)
        if state == schema.STATE_DIVERGED:
            # TPE learns nothing from a failed trial; from a pruned one with a worst score it learns to keep away.
            self.trial.report(0.0 if book.plan.maximize else WORST_LOSS, self.epochs + 1)
        metrics = dict(self.trained.metrics) if self.trained else {}
        self._constrain(metrics)
        metrics.setdefault(schema.TRAIN_SECONDS, time.perf_counter() - self.started)
        metrics.setdefault(schema.EPOCHS_RUN, self.epochs)
        book.tracker.log_metrics(self.run_id, metrics)
        book.tracker.flush()  # first, so that a kill before the end loses none
        value = self.score if state == schema.STATE_COMPLETE else None
        self.state, self.reason = state, reason
        if fatal is not None:
            self.trial.set_user_attr(EXCUSED, True)
        tell(book.study, self.trial, state, reason, value, self._charged(metrics[schema.TRAIN_SECONDS]))
        book.tracker.finish(self.run_id, state, reason=reason)
        self.line.trial_finished(state, reason, value, book.best_value())
        self._clear_checkpoints(state)
        if fatal is not None:
            raise fatal

    def _charged(self, seconds: float) -> float:
        """A trial's seconds without those before its checkpoint that its interrupted attempts are charged with."""
        if self.trained is None or not self.trained.resumed_seconds:
            return seconds
        charged = sum(
            trial.user_attrs.get(SECONDS, 0.0)
            for trial in self.book.study.get_trials(deepcopy=False)
            if trial.number != self.trial.number and trial.user_attrs.get(INDEX) == self.index
        )
        return seconds - min(self.trained.resumed_seconds, charged)

    def _constrain(self, metrics: Mapping[str, float]) -> None:
        """Tell the sampler how far a trial is beyond each budget, as a share of it; what is not positive fits."""
        for metric, budget in self.book.plan.budgets.items():
            if metric in metrics and metric not in self.trial.constraints:
                self.trial.set_constraint(metric, metrics[metric] / budget - 1)


class FinalRun(_Run):
    """A final from its first step to its end.

    Args:
        book: of its study.
        best: the winning trial.
        configuration: names its values.
        seed_index: which final of this configuration it is.
        folder: where the weights of the best final are kept.
    """

    def __init__(self, book: Book, best: FrozenTrial, configuration: str, seed_index: int, folder: Path) -> None:
        plan = book.plan
        seed = derive_seed(plan.seed, FINAL, seed_index)
        checkpoints = book.checkpoints(f"final-{configuration}-{seed_index}")
        self.job = Job(best.params, seed, test=True, drift=plan.drift, checkpoints=checkpoints)
        tags = {schema.TAG_WINNER: configuration, **({schema.TAG_SHIFTED: book.shifted} if book.shifted else {})}
        name = f"{plan.strategy} final {seed_index:03d}"
        numbers = {schema.PARAM_SEED: seed, schema.PARAM_TRIAL: best.number}
        super().__init__(book, book.start(schema.KIND_FINAL, name, tags, best.params, **numbers))
        self.configuration = configuration
        self.key = book.final_key(configuration, seed_index)
        self.folder, self.staged = folder, _staged(folder, self.run_id)
        book.set_attempts(self.key, [*book.attempts(self.key), self.run_id])
        self.line = book.progress.final_started(seed_index, plan.final_seeds)

    def on_epoch(self, record: EpochRecord) -> None:
        """See :meth:`Listener.on_epoch`."""
        self.book.tracker.log_metrics(self.run_id, record.metrics(), record.epoch)
        self.line.epoch(record, getattr(record, self.book.plan.metric))

    def on_trained(self, trained: Trained) -> Path | None:
        """See :meth:`Listener.on_trained`."""
        self._keep(trained)
        tracker = self.book.tracker
        if trained.predictions is not None:
            tracker.log_table(self.run_id, schema.ARTIFACT_PREDICTIONS, trained.predictions)
        if trained.shifted_predictions is not None:
            tracker.log_table(self.run_id, schema.ARTIFACT_SHIFTED_PREDICTIONS, trained.shifted_predictions)
        return self.staged if self._best() else None

    def on_end(self, error: BaseException | None) -> None:
        """See :meth:`Listener.on_end`."""
        book = self.book
        state, reason, fatal = _outcome(error)
        metrics = self.trained.metrics if self.trained else {}
        book.tracker.log_metrics(self.run_id, metrics)
        book.tracker.flush()  # first, as for trials
        self.state, self.reason = state, reason
        if state == schema.STATE_COMPLETE and self._best() and self.staged.exists():
            with replaced(self.folder) as fresh:
                self.staged.rename(fresh)
        shutil.rmtree(self.staged, ignore_errors=True)
        if state != schema.STATE_INTERRUPTED:
            book.record_final(self.key, self.run_id, state, reason, self.score)
            book.set_attempts(self.key, [])
        elif fatal is not None:
            book.set_attempts(self.key, [run for run in book.attempts(self.key) if run != self.run_id])
        book.tracker.finish(self.run_id, state, reason=reason)
        self.line.final_finished(state, reason, metrics.get(schema.TEST_ACCURACY))
        self._clear_checkpoints(state)
        if fatal is not None:
            raise fatal

    def _best(self) -> bool:
        """Whether no other final of the configuration has as good a validation score; the test split has no say."""
        prefix = self.book.final_key(self.configuration, 0).rstrip("0")
        earlier = [
            record["validation"]
            for key, record in self.book.study.user_attrs.items()
            if key.startswith(prefix) and key != self.key and record[STATE] == schema.STATE_COMPLETE
        ]
        assert self.score is not None, "asked where a final has been trained"
        return not earlier or (self.score > max(earlier) if self.book.plan.maximize else self.score < min(earlier))


def _attempts_key(key: str) -> str:
    return f"{_INTERRUPTED}:{key.removeprefix(f'{FINAL}:')}"


def remove_staged(folder: Path) -> None:
    """Remove what a killed process left of weights that were not moved to ``folder`` yet."""
    for left in folder.parent.glob(_staged(folder, "*").name):
        shutil.rmtree(left, ignore_errors=True)


def _staged(folder: Path, run_id: str) -> Path:
    return folder.with_name(f".{folder.name}.final-{run_id}")
