"""Create, run and resume one study; pick the best configuration; retrain and test it.

Optuna's storage is the record that resuming relies on: it holds every trial, and in the study's attributes every
final. MLflow mirrors it for people and reports.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from sweeper import schema
from sweeper.data.encoding import EncodedSplit
from sweeper.engine import Assignment, Engine, Workload
from sweeper.errors import StudyError
from sweeper.faults import failure_summary
from sweeper.files import inside
from sweeper.hashing import derive_seed, digest
from sweeper.interruption import Interrupted, StopSignal
from sweeper.objective import Task
from sweeper.plan import Plan
from sweeper.progress import Progress, duration
from sweeper.resume import claim
from sweeper.runs import (
    ATTEMPTS,
    EXCUSED,
    FINAL,
    INDEX,
    REASON,
    RUN,
    SECONDS,
    SHIFTED,
    STATE,
    Book,
    FinalRun,
    TrialRun,
    remove_staged,
    tell,
)
from sweeper.tracking import Tracker
from sweeper.training.domain_pretrain import domain_pretrain

__all__ = ["finished_trials", "hyperparameter_importances", "run_study"]

STARTUP_TRIALS = 4  # random trials before TPE models anything; its own default, 10, exceeds a small study
IMPORTANCE_TRIALS = 10  # with 8, fANOVA named the only hyperparameter that mattered in half of the studies; 12: 7 of 8

# Attributes of studies in Optuna; of the second there is one for each index.
_LOST_SECONDS, _GIVEN_UP = "domain_pretrain_lost_seconds", "given_up"


def run_study(
    plan: Plan,
    task: Task,
    *,
    storage: optuna.storages.BaseStorage,
    engine: Engine,
    tracker: Tracker,
    progress: Progress,
    models_dir: Path,
    checkpoints_dir: Path,
) -> None:
    """Run what is missing of a study: its trials, then its finals. Everything finished earlier is kept.

    Raises:
        StudyError: no trial completed, too many failed, or the name is taken by a study of something else.
        Interrupted: a signal came; all runs are closed, and the same call continues.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=plan.study,
        storage=storage,
        direction="maximize" if plan.maximize else "minimize",
        pruner=_pruner(plan.pruner, plan.epochs),
        load_if_exists=True,
    )
    claim(study, plan)
    book = Book(plan, study, tracker, progress, inside(checkpoints_dir, plan.study))
    runner = _StudyRunner(book, task, engine, models_dir)
    with StopSignal() as stop:
        runner.run(stop)
        stop.check()


class _StudyRunner:
    """The state of one call of :func:`run_study`."""

    def __init__(self, book: Book, task: Task, engine: Engine, models_dir: Path) -> None:
        self.book = book
        self.plan, self.study, self.tracker, self.progress = book.plan, book.study, book.tracker, book.progress
        self.task = task
        self.engine = engine
        self.models_dir = models_dir
        self.unlabelled: EncodedSplit = task.train.select([])
        self.pretraining: dict[str, float] = {}

    def run(self, stop: StopSignal) -> None:
        """Trials, then finals; the parent run is closed whatever happens."""
        self._close_interrupted()
        self.book.parent = self._open_parent()
        state, reason = schema.STATE_FAILED, ""
        try:
            self._wrap(stop)
            workload = Workload(self.task, self.plan.spec, self.plan.pseudo_label, self.unlabelled)
            self.book.device, self.book.shifted = self._device(workload), self._shifted()
            saved_before = 0.0 if self.task.cache is None else self.task.cache.saved_seconds
            in_time = self._trials(workload, stop)
            self._note_pruning()
            self._log_importances()
            self._finals(workload, stop)
            self._note_cache(saved_before)
            state = schema.STATE_COMPLETE if in_time else schema.STATE_TIMEOUT
            if in_time:  # those of runs that were given up are left
                shutil.rmtree(self.book.checkpoints_dir, ignore_errors=True)
        except (Interrupted, KeyboardInterrupt) as error:
            state, reason = schema.STATE_INTERRUPTED, str(error) or "interrupted"
            raise Interrupted(reason) from None
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.tracker.finish(self.book.parent, state, reason=reason, metrics=self._totals())

    # --- wrappers ------------------------------------------------------------------------------------------------

    def _wrap(self, stop: StopSignal) -> None:
        """Train the backbone on the domain, or find it trained; tokenise what trials pseudo-label."""
        pseudo_label, pretraining = self.plan.pseudo_label, self.plan.domain_pretrain
        if pseudo_label.rounds:
            seed = derive_seed(self.plan.seed, "pseudo_label")
            self.unlabelled = self.task.unlabelled(pseudo_label.size, seed)
            if lost := min(len(self.task.dataset.unlabelled), pseudo_label.size or sys.maxsize) - len(self.unlabelled):
                self.progress.note(f"unlabelled images that cannot be read, left out: {lost}")
        if not pretraining.epochs:
            return
        lost = self.study.user_attrs.get(_LOST_SECONDS, 0.0)
        checkpoints = self.book.checkpoints("domain_pretrain")
        started = time.perf_counter()
        try:
            self.task, done = domain_pretrain(
                self.task,
                pretraining,
                seed=derive_seed(self.plan.seed, "domain_pretrain"),
                models_dir=self.models_dir,
                on_start=lambda texts: self.progress.note(
                    f"Domain pretraining: {texts:,} texts, {pretraining.epochs} epochs ..."
                ),
                on_step=stop.check,
                checkpoints=checkpoints,
            )
        except (Interrupted, KeyboardInterrupt):
            lost += time.perf_counter() - started
            self.study.set_user_attr(_LOST_SECONDS, lost)
            self.pretraining = {schema.DOMAIN_PRETRAIN_SECONDS: lost}
            raise
        self.pretraining = {
            schema.DOMAIN_PRETRAIN_SECONDS: lost + done.seconds - min(lost, done.resumed_seconds),
            schema.DOMAIN_PRETRAIN_LOSS: done.losses[-1],
        }
        self.progress.note(f"Domain pretraining: {duration(done.seconds)}, loss {done.losses[-1]:.3f}")
        if checkpoints is not None:
            checkpoints.clear()

    def _note_pruning(self) -> None:
        pruned = [trial for trial in self._finished() if trial.user_attrs.get(STATE) == schema.STATE_PRUNED]
        saved = sum(self.plan.epochs - len(trial.intermediate_values) for trial in pruned)
        if saved:
            self.progress.note(f"  pruning saved {saved} of {self.plan.n_trials * self.plan.epochs} epochs")

    def _log_importances(self) -> None:
        """What share of the spread of scores each searched value explains, once there are trials enough to tell."""
        if found := hyperparameter_importances(self.study):
            self.tracker.log_text(self.book.parent, schema.ARTIFACT_IMPORTANCES, json.dumps(found, indent=2))

    def _note_cache(self, before: float) -> None:
        """What reading recorded states saved in this call, where it is worth a line."""
        here = 0.0 if self.task.cache is None else self.task.cache.saved_seconds - before
        if (saved := here + self.book.saved_seconds) >= 1:
            self.progress.note(f"  recorded states of frozen blocks saved about {duration(saved)} of computing")

    def _device(self, workload: Workload) -> str:
        """What runs are trained on."""
        device = str(self.plan.params[schema.PARAM_DEVICE])
        alone = workload.brief or self.engine.processes == 1
        return device if alone else f"{device.partition(',')[0]}, {self.engine.description}"

    # --- trials --------------------------------------------------------------------------------------------------

    def _trials(self, workload: Workload, stop: StopSignal) -> bool:
        """Run trials up to the asked total; False where the timeout came first."""
        started = time.monotonic()
        runs: list[TrialRun] = []

        def is_late() -> bool:
            return self.plan.timeout is not None and time.monotonic() - started > self.plan.timeout

        def next_trial() -> Assignment | None:
            self._check_failures(runs)
            self._retry_interrupted()
            done, running = len(self._finished()), sum(run.state is None for run in runs)
            if is_late() or done + running >= self.plan.n_trials:
                return None
            runs.append(TrialRun(self.book, self._ask(), done + running + 1))
            return runs[-1].job, runs[-1]

        self._retry_interrupted()
        while len(self._finished()) < self.plan.n_trials and not is_late():
            self.engine.run(workload, next_trial, stop)
            if not self._close_lost():
                break
        if (done := len(self._finished())) < self.plan.n_trials:
            self.progress.note(f"timeout after {done} of {self.plan.n_trials} trials")
            return False
        return True

    def _ask(self) -> Trial:
        # A sampler seeded by the trial's number: a resumed study does not draw the same values again.
        before = self.study.get_trials(deepcopy=False)
        seed = derive_seed(self.plan.seed, "sampler", len(before))
        self.study.sampler = _sampler(self.plan.sampler, seed, several=self.engine.workers > 1)
        trial = self.study.ask(self.plan.spec.space)
        if (index := trial.user_attrs.get(INDEX)) is None:
            indices = [other.user_attrs.get(INDEX, -1) for other in before]
            trial.set_user_attr(INDEX, max(indices, default=-1) + 1)
        elif index in _settled([other for other in before if other.number != trial.number]):
            # A database that lost its answer to the queueing was asked twice.
            trial.set_user_attr(EXCUSED, True)
            tell(self.study, trial, schema.STATE_INTERRUPTED, "queued twice", None, 0.0)
            return self._ask()
        return trial

    def _close_lost(self) -> bool:
        """Close in Optuna what runs there and nowhere else; whether there was any.

        A dead process left it, or a database whose answer to a new trial was lost: then the trial was made twice.
        """
        lost = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for frozen in lost:
            seconds = frozen.user_attrs.get(SECONDS, 0.0)
            trial = Trial(self.study, frozen._trial_id)
            tell(self.study, trial, schema.STATE_INTERRUPTED, schema.REASON_PROCESS_ENDED, None, seconds)
        return bool(lost)

    def _close_interrupted(self) -> None:
        """Close in Optuna and MLflow what a dead process left running; this process owns the output folder."""
        self._close_lost()
        open_runs = set(self.tracker.open_runs(self.plan.study))
        for frozen in self.study.get_trials(deepcopy=False):
            if (run_id := frozen.user_attrs.get(RUN)) in open_runs:  # Optuna knows how it ended
                open_runs.discard(run_id)
                self.tracker.finish(run_id, frozen.user_attrs[STATE], reason=frozen.user_attrs.get(REASON, ""))
        for key, record in self.study.user_attrs.items():
            if key.startswith(f"{FINAL}:") and record["run"] in open_runs:
                open_runs.discard(record["run"])
                self.tracker.finish(record["run"], record[STATE], reason=record.get(REASON, ""))
        self.tracker.close_interrupted(open_runs)

    def _retry_interrupted(self) -> None:
        """Queue each interrupted configuration again, under its own index, unless it was tried often enough."""
        trials = self.study.get_trials(deepcopy=False)
        attempts = _attempts(trials)
        settled = _settled(trials)
        for index, count in attempts.items():
            if index in settled or index is None:
                continue
            own = [trial for trial in trials if trial.user_attrs.get(INDEX) == index]
            if count < ATTEMPTS:
                params = max((trial.params for trial in own), key=len)  # one that was killed while it was drawn has few
                self.study.enqueue_trial(params, user_attrs={INDEX: index})
            elif (key := _given_up_key(index)) not in self.study.user_attrs:
                self.study.set_user_attr(key, count)
                if run_id := own[-1].user_attrs.get(RUN):
                    self.tracker.finish(run_id, schema.STATE_FAILED, reason=f"interrupted {count} times")

    def _finished(self) -> list[FrozenTrial]:
        return finished_trials(self.study)

    def _check_failures(self, runs: Sequence[TrialRun]) -> None:
        """End the study where too many trials of this call failed; whoever calls again may have mended the cause."""
        ended = [run for run in runs if run.state is not None]
        interrupted = {run.index: run for run in ended if run.state == schema.STATE_INTERRUPTED}
        recorded = self.study.user_attrs
        given_up = [run for index, run in interrupted.items() if _given_up_key(index) in recorded]
        counted = [run for run in ended if run.state != schema.STATE_INTERRUPTED] + given_up
        failed = [run for run in counted if run.state in (schema.STATE_FAILED, schema.STATE_INTERRUPTED)]
        if len(counted) >= 3 and len(failed) / len(counted) > self.plan.max_failure_rate:
            raise failure_summary(f"trials of {self.plan.study}", len(counted), [run.reason for run in failed])

    # --- finals --------------------------------------------------------------------------------------------------

    def _finals(self, workload: Workload, stop: StopSignal) -> None:
        """Retrain the best configuration with each seed that is missing and score it on the test split."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        beyond = any(value > 0 for trial in self._finished() for value in trial.constraints.values())
        if beyond and not self.book.fitting():
            # No error: that nothing fits is an answer too, and the report gives the reasons.
            self.progress.note(f"no trial of {self.plan.strategy} completed within the budgets: no finals")
            return
        if not complete:
            states = Counter(trial.user_attrs.get(STATE) for trial in self._finished())
            reasons = sorted({str(trial.user_attrs.get(REASON, "")) for trial in self._finished()} - {""})
            if not states:
                raise StudyError(
                    f"study.timeout={self.plan.timeout} came before the first trial of {self.plan.study} ended",
                    "Raise study.timeout and run the same command.",
                )
            counts = ", ".join(f"{count} {state}" for state, count in states.items())
            raise StudyError(
                f"no trial of {self.plan.study} completed ({counts}: {'; '.join(reasons[:3])})",
                "Search lower learning rates (strategy.search_space.learning_rate.high=...), or raise study.timeout.",
            )
        best = self.study.best_trial
        configuration = digest({**self.plan.spec.fixed, **best.params}, 12)
        self.tracker.set_tags(self.book.parent, {schema.TAG_WINNER: configuration})
        keys = [self.book.final_key(configuration, index) for index in range(self.plan.final_seeds)]
        earlier = [record for key in keys if (record := self.study.user_attrs.get(key)) is not None]
        folder = inside(self.models_dir, self.plan.study)
        remove_staged(folder)
        recorded = self.study.user_attrs
        # One that failed is tried again, once in each command, whose user may have mended the cause.
        todo = [
            index
            for index, key in enumerate(keys)
            if key not in recorded
            or (recorded[key][STATE] == schema.STATE_FAILED and len(self.book.attempts(key)) < ATTEMPTS)
        ]
        runs: dict[int, FinalRun] = {}

        def next_final() -> Assignment | None:
            for index in todo:
                if (run := runs.get(index)) is not None and run.state != schema.STATE_INTERRUPTED:
                    continue  # under way, or settled
                if len(self.book.attempts(keys[index])) < ATTEMPTS:
                    runs[index] = FinalRun(self.book, best, configuration, index, folder)
                    return runs[index].job, runs[index]
                if keys[index] not in self.study.user_attrs:
                    self.book.give_up_final(keys[index])
            return None

        if todo:
            self.engine.run(workload, next_final, stop)
        ended = [self.study.user_attrs.get(key, {}) for key in keys]
        failed = [str(record.get(REASON, "")) for record in ended if record.get(STATE) == schema.STATE_FAILED]
        if failed and len(failed) / len(ended) > self.plan.max_failure_rate:
            raise failure_summary(f"finals of {self.plan.study}", len(ended), failed)
        unscored = sum(bool(self.book.shifted) and record.get(SHIFTED) != self.book.shifted for record in earlier)
        if unscored:
            self.progress.note(
                f"{unscored} finals of {self.plan.strategy} ended without this dataset.shifted, and are not scored on "
                "it; a higher final.seeds adds finals that are, another output_dir or study.seed trains all anew"
            )

    # --- bookkeeping ---------------------------------------------------------------------------------------------

    def _open_parent(self) -> str:
        known = self.study.user_attrs.get(RUN)
        if known and self.tracker.reopen(known, self.plan.study_tags):
            self._log_files(known)  # its budget may have grown
            return str(known)
        if known and self._finished():
            raise StudyError(
                f"{self.plan.study} is recorded in Optuna, but its MLflow runs are not at {self.tracker.uri}",
                "Give the tracking.uri it was made with, or start anew in another output_dir.",
            )
        parent = self.tracker.start(
            schema.KIND_STUDY,
            self.plan.study,
            {**self.plan.tags, **self.plan.study_tags},
            {**self.plan.params, schema.PARAM_SEARCHED: ",".join(self.plan.spec.space)},
        )
        self._log_files(parent)
        frames = {
            name: getattr(self.task.dataset, name).frame(self.task.dataset.label_names)
            for name in ("train", "validation", "test")
        }
        self.tracker.log_dataset(parent, self.task.dataset.name, frames, source=self.task.dataset.name)
        self.study.set_user_attr(RUN, parent)
        return parent

    def _log_files(self, parent: str) -> None:
        for name, text in self.plan.files.items():
            self.tracker.log_text(parent, name, text)

    def _totals(self) -> dict[str, float]:
        trials = self.study.get_trials(deepcopy=False)
        states = Counter(trial.user_attrs.get(STATE) for trial in trials)
        given_up = sum(trial.user_attrs.get(STATE) == schema.STATE_INTERRUPTED for trial in self._finished())
        states.update({schema.STATE_FAILED: given_up, schema.STATE_INTERRUPTED: -given_up})
        totals: dict[str, float] = {
            f"{schema.COUNT_PREFIX}{state}": states.get(state, 0)
            for state in (
                schema.STATE_COMPLETE,
                schema.STATE_PRUNED,
                schema.STATE_DIVERGED,
                schema.STATE_FAILED,
                schema.STATE_INTERRUPTED,
            )
        }
        totals[schema.N_TRIALS] = self.plan.n_trials
        totals[schema.FINAL_SEEDS] = self.plan.final_seeds
        totals |= self.pretraining
        totals[schema.TUNING_SECONDS] = sum(
            [trial.user_attrs.get(SECONDS, 0.0) for trial in trials],
            self.pretraining.get(schema.DOMAIN_PRETRAIN_SECONDS, 0.0),
        )
        if (best := self.book.best_value()) is not None:
            totals[_best_metric(self.plan.metric)] = best
        return totals

    def _shifted(self) -> str | None:
        """Name and fingerprint of the shifted data, where there are."""
        shifted = self.task.dataset.summary.get("shifted")
        return f"{shifted['name']} {shifted['fingerprint']}" if shifted else None


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count towards a study's total: all but interrupted ones that are, or can be, tried again."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    attempts = _attempts(trials)
    counted = [trial for trial in trials if trial.user_attrs.get(STATE) != schema.STATE_INTERRUPTED]
    settled = _settled(trials)
    given_up = {
        index: trial
        for trial in trials
        if (index := trial.user_attrs.get(INDEX)) is not None and index not in settled and attempts[index] >= ATTEMPTS
    }
    return [*counted, *given_up.values()]


def _given_up_key(index: int) -> str:
    """The study's attribute that says that a configuration was tried often enough."""
    return f"{_GIVEN_UP}:{index}"


def _attempts(trials: Sequence[FrozenTrial]) -> dict[int | None, int]:
    """Index -> how often its configuration was tried; a signal's interruptions are not its own."""
    attempts: dict[int | None, int] = Counter()
    for trial in trials:
        if trial.state.is_finished():
            attempts[trial.user_attrs.get(INDEX)] += EXCUSED not in trial.user_attrs
    return attempts


def _settled(trials: Sequence[FrozenTrial]) -> set[int | None]:
    """The indices whose configuration has ended for good, is under way or waits."""
    return {
        trial.user_attrs.get(INDEX)
        for trial in trials
        if not trial.state.is_finished() or trial.user_attrs.get(STATE) != schema.STATE_INTERRUPTED
    }


def hyperparameter_importances(study: optuna.Study) -> dict[str, float]:
    """Hyperparameter -> share of the variance that it explains alone (fANOVA, Hutter et al. 2014), highest first.

    Of complete trials; nothing for fewer than ``IMPORTANCE_TRIALS`` of them, a single hyperparameter or equal scores.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < IMPORTANCE_TRIALS or len(complete[0].params) < 2 or len({t.value for t in complete}) == 1:
        return {}
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))


def _best_metric(metric: str) -> str:
    return f"best_{metric}"


def _sampler(name: str, seed: int, *, several: bool) -> BaseSampler:
    """``several``: trials are under way side by side, and the sampler keeps away from those."""
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "gp":
        return GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    return TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=several)


def _pruner(name: str, epochs: int) -> BasePruner:
    if name == "median":
        return MedianPruner(n_startup_trials=2, n_warmup_steps=0, n_min_trials=2)
    if name == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)
    if name == "successive_halving":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    return NopPruner()
