"""Create, run and resume one study; pick the best configuration; retrain and test it.

Optuna's storage is the record that resuming relies on: it holds every trial, and in the study's attributes every
final. MLflow mirrors it for people and reports.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from sweeper import schema
from sweeper.data.encoding import EncodedSplit
from sweeper.errors import StudyError
from sweeper.files import replaced
from sweeper.hashing import derive_seed, digest
from sweeper.interruption import Interrupted, StopSignal
from sweeper.objective import Run, Task
from sweeper.plan import Plan
from sweeper.progress import Progress, duration
from sweeper.tracking import Tracker
from sweeper.training.checkpoints import Checkpoints
from sweeper.training.domain_pretrain import domain_pretrain
from sweeper.training.pseudo_label import Round, self_train
from sweeper.training.recorder import Diverged, EpochRecord

__all__ = ["finished_trials", "hyperparameter_importances", "run_study"]

STARTUP_TRIALS = 4  # random trials before TPE models anything; its own default, 10, exceeds a small study
IMPORTANCE_TRIALS = 10  # with 8, fANOVA named the only hyperparameter that mattered in half of the studies; 12: 7 of 8
WORST_LOSS = 1e9  # what a diverged trial reports
ATTEMPTS = 3  # times that one configuration is tried when it is interrupted

# Attributes in Optuna: of trials ...
_STATE, _REASON, _INDEX, _RUN, _SECONDS = "state", "reason", "index", "mlflow_run", "seconds"
# ... and of studies.
_FINAL, _IDENTITY, _LOST_SECONDS = "final", "identity", "domain_pretrain_lost_seconds"
_SHIFTED = "shifted"  # of a final's record


def run_study(
    plan: Plan,
    task: Task,
    *,
    storage: optuna.storages.BaseStorage,
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
    if study.user_attrs.setdefault(_IDENTITY, plan.identity) != plan.identity:
        raise StudyError(
            f"study.name={plan.study} belongs to a study of another model, dataset, strategy or trainer setting",
            "Leave study.name out, choose another one, or give the settings that it was made with.",
        )
    study.set_user_attr(_IDENTITY, plan.identity)
    runner = _StudyRunner(plan, task, study, tracker, progress, models_dir, checkpoints_dir / plan.study)
    with StopSignal() as stop:
        runner.run(stop)
        stop.check()


class _StudyRunner:
    """The state of one call of :func:`run_study`."""

    def __init__(
        self,
        plan: Plan,
        task: Task,
        study: optuna.Study,
        tracker: Tracker,
        progress: Progress,
        models_dir: Path,
        checkpoints_dir: Path,
    ) -> None:
        self.plan = plan
        self.task = task
        self.study = study
        self.tracker = tracker
        self.progress = progress
        self.models_dir = models_dir
        self.checkpoints_dir = checkpoints_dir
        self.parent = ""
        self.unlabelled: EncodedSplit = task.train.select([])
        self.pretraining: dict[str, float] = {}
        self.saved_before = 0.0

    def run(self, stop: StopSignal) -> None:
        """Trials, then finals; the parent run is closed whatever happens."""
        self._close_interrupted()
        self.parent = self._open_parent()
        state, reason = schema.STATE_FAILED, ""
        try:
            self._wrap(stop)
            self.saved_before = 0.0 if self.task.cache is None else self.task.cache.saved_seconds
            in_time = self._trials(stop)
            self._note_pruning()
            self._log_importances()
            self._finals(stop)
            self._note_cache()
            state = schema.STATE_COMPLETE if in_time else schema.STATE_TIMEOUT
            if in_time:  # of runs that were given up too
                shutil.rmtree(self.checkpoints_dir, ignore_errors=True)
        except (Interrupted, KeyboardInterrupt) as error:
            state, reason = schema.STATE_INTERRUPTED, str(error) or "interrupted"
            raise Interrupted(reason) from None
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.tracker.finish(self.parent, state, reason=reason, metrics=self._totals())

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
                checkpoints=(checkpoints := self._checkpoints("domain_pretrain")),
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
        pruned = [trial for trial in self._finished() if trial.user_attrs.get(_STATE) == schema.STATE_PRUNED]
        saved = sum(self.plan.epochs - len(trial.intermediate_values) for trial in pruned)
        if saved:
            self.progress.note(f"  pruning saved {saved} of {self.plan.n_trials * self.plan.epochs} epochs")

    def _log_importances(self) -> None:
        """What share of the spread of scores each searched value explains, once there are trials enough to tell."""
        if found := hyperparameter_importances(self.study):
            self.tracker.log_text(self.parent, schema.ARTIFACT_IMPORTANCES, json.dumps(found, indent=2))

    def _note_cache(self) -> None:
        """What reading recorded states saved in this call, where it is worth a line."""
        if self.task.cache is not None and (saved := self.task.cache.saved_seconds - self.saved_before) >= 1:
            self.progress.note(f"  recorded states of frozen blocks saved about {duration(saved)} of computing")

    def _train(
        self,
        configuration: Mapping[str, Any],
        *,
        seed: int,
        run_id: str,
        stop: StopSignal,
        on_epoch: Callable[[EpochRecord], None],
        on_sizes: Callable[[dict[str, float]], None] = lambda sizes: None,
        checkpoints: Checkpoints | None = None,
    ) -> Run:
        """One run of the strategy, with its pseudo-labelling, as a trial and a final alike train it."""

        def on_round(labelling: Round) -> None:
            self.tracker.log_metrics(run_id, {schema.PSEUDO_LABELLED: labelling.labelled}, labelling.number)
            if labelling.ended:
                self.tracker.set_tags(run_id, {schema.TAG_PSEUDO_LABEL: labelling.ended})
                self.progress.note(f"    {labelling.ended}")

        run = self_train(
            self.task,
            self.plan.spec,
            configuration,
            settings=self.plan.pseudo_label,
            unlabelled=self.unlabelled,
            seed=seed,
            on_epoch=on_epoch,
            on_step=stop.check,
            on_sizes=on_sizes,
            on_round=on_round,
            checkpoints=checkpoints,
        )
        if run.fit.resumed_seconds:
            self.progress.note(f"    went on from a checkpoint after {duration(run.fit.resumed_seconds)} of training")
        return run

    def _checkpoints(self, name: str) -> Checkpoints | None:
        """Those of a trial (``trial-<index>``) or a final (``final-<configuration>-<k>``), where they are asked for."""
        if self.plan.checkpoint_seconds is None:
            return None
        return Checkpoints(self.checkpoints_dir / name, self.plan.checkpoint_seconds)

    # --- trials --------------------------------------------------------------------------------------------------

    def _trials(self, stop: StopSignal) -> bool:
        """Run trials up to the asked total; False where the timeout came first."""
        self._retry_interrupted()
        started = time.monotonic()
        while (done := len(self._finished())) < self.plan.n_trials:
            stop.check()
            if self.plan.timeout is not None and time.monotonic() - started > self.plan.timeout:
                self.progress.note(f"timeout after {done} of {self.plan.n_trials} trials")
                return False
            # A sampler seeded by the trial's number: a resumed study does not draw the same values again.
            number = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = _sampler(self.plan.sampler, derive_seed(self.plan.seed, "sampler", number))
            trial = self.study.ask(self.plan.spec.space)
            if _INDEX not in trial.user_attrs:
                trial.set_user_attr(_INDEX, self._next_index())
            self._trial(trial, done + 1, stop)
            self._check_failures()
        return True

    def _trial(self, trial: Trial, position: int, stop: StopSignal) -> None:
        seed = derive_seed(self.plan.seed, "trial", trial.user_attrs[_INDEX])
        run_id = self.tracker.start(
            schema.KIND_TRIAL,
            f"{self.plan.strategy} trial {trial.number:03d}",  # sorted as text
            self.plan.tags,
            {
                **self.plan.params,
                **self._values(trial.params),
                schema.PARAM_SEED: seed,
                schema.PARAM_TRIAL: trial.number,
            },
            parent=self.parent,
        )
        trial.set_user_attr(_RUN, run_id)
        self.progress.trial_started(position, self.plan.n_trials, trial.params)
        started = time.perf_counter()
        state, reason, value, metrics, resumed = schema.STATE_FAILED, "", None, {}, 0.0
        history: list[EpochRecord] = []
        checkpoints = self._checkpoints(f"trial-{trial.user_attrs[_INDEX]}")

        def on_epoch(record: EpochRecord) -> None:
            history.append(record)
            self.tracker.log_metrics(run_id, record.metrics(), record.epoch)
            score = getattr(record, self.plan.metric)
            self.progress.epoch(record, score)
            trial.report(score, record.epoch)
            if record.epoch < self.plan.epochs and trial.should_prune():
                raise optuna.TrialPruned(f"{score:.4f} after epoch {record.epoch}")

        def on_sizes(sizes: dict[str, float]) -> None:
            self.tracker.log_metrics(run_id, sizes)
            self._constrain(trial, sizes)
            budget = self.plan.budgets.get(schema.TRAINABLE_PARAMS, math.inf)
            if sizes[schema.TRAINABLE_PARAMS] > budget:
                # Known before training, which is skipped.
                raise optuna.TrialPruned(
                    f"{sizes[schema.TRAINABLE_PARAMS]:,.0f} trainable parameters exceed "
                    f"report.max_trainable_params={budget:.0f}"
                )

        try:
            run = self._train(
                trial.params,
                seed=seed,
                run_id=run_id,
                stop=stop,
                on_epoch=on_epoch,
                on_sizes=on_sizes,
                checkpoints=checkpoints,
            )
            state, value, metrics = schema.STATE_COMPLETE, getattr(run.fit.best, self.plan.metric), run.metrics()
            resumed = run.fit.resumed_seconds
            self._constrain(trial, metrics)
        except optuna.TrialPruned as pruned:
            state, reason = schema.STATE_PRUNED, str(pruned)
        except Diverged as diverged:
            # TPE learns nothing from a failed trial; from a pruned one with a worst score it learns to keep away.
            state, reason = schema.STATE_DIVERGED, str(diverged)
            trial.report(0.0 if self.plan.maximize else WORST_LOSS, history[-1].epoch + 1 if history else 1)
        except (torch.OutOfMemoryError, MemoryError) as error:
            reason = f"out of memory: {error}"
        except (Interrupted, KeyboardInterrupt) as error:
            state, reason = schema.STATE_INTERRUPTED, str(error) or "interrupted"
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise
        finally:
            metrics.setdefault(schema.TRAIN_SECONDS, time.perf_counter() - started)
            metrics.setdefault(schema.EPOCHS_RUN, len(history))
            self.tracker.log_metrics(run_id, metrics)
            self.tracker.flush()  # first, so that a kill before the end loses none
            self._tell(trial, state, reason, value, self._charged(trial, metrics[schema.TRAIN_SECONDS], resumed))
            if checkpoints is not None and state != schema.STATE_INTERRUPTED:
                checkpoints.clear()
            self.tracker.finish(run_id, state, reason=reason)
            self.progress.trial_finished(state, reason, value, self._best_value())

    def _charged(self, trial: Trial, seconds: float, resumed: float) -> float:
        """A trial's seconds without those before its checkpoint that its interrupted attempts are charged with."""
        attempts = [other for other in self.study.get_trials(deepcopy=False) if other.number != trial.number]
        own = [other for other in attempts if other.user_attrs.get(_INDEX) == trial.user_attrs[_INDEX]]
        return seconds - min(resumed, sum(other.user_attrs.get(_SECONDS, 0.0) for other in own))

    def _constrain(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        """Tell the sampler how far a trial is beyond each budget, as a share of it; what is not positive fits."""
        for metric, budget in self.plan.budgets.items():
            if metric in metrics and metric not in trial.constraints:
                trial.set_constraint(metric, metrics[metric] / budget - 1)

    def _tell(self, trial: Trial, state: str, reason: str, value: float | None, seconds: float) -> None:
        trial.set_user_attr(_STATE, state)
        trial.set_user_attr(_SECONDS, seconds)
        if reason:
            trial.set_user_attr(_REASON, reason)
        if state == schema.STATE_COMPLETE:
            self.study.tell(trial, value)
        elif state in (schema.STATE_PRUNED, schema.STATE_DIVERGED):
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def _close_interrupted(self) -> None:
        """Close in Optuna and MLflow what a dead process left running; this process owns the output folder."""
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            trial = Trial(self.study, frozen._trial_id)
            self._tell(
                trial, schema.STATE_INTERRUPTED, schema.REASON_PROCESS_ENDED, None, frozen.user_attrs.get(_SECONDS, 0.0)
            )
        open_runs = set(self.tracker.open_runs(self.plan.study))
        for frozen in self.study.get_trials(deepcopy=False):
            if (run_id := frozen.user_attrs.get(_RUN)) in open_runs:  # Optuna knows how it ended
                open_runs.discard(run_id)
                self.tracker.finish(run_id, frozen.user_attrs[_STATE], reason=frozen.user_attrs.get(_REASON, ""))
        self.tracker.close_interrupted(open_runs)

    def _retry_interrupted(self) -> None:
        """Queue each interrupted configuration again, under its own index, unless it was tried often enough."""
        trials = self.study.get_trials(deepcopy=False)
        attempts = Counter(trial.user_attrs.get(_INDEX) for trial in trials if trial.state.is_finished())
        settled = {
            trial.user_attrs.get(_INDEX)
            for trial in trials
            if not trial.state.is_finished() or trial.user_attrs.get(_STATE) != schema.STATE_INTERRUPTED
        }
        for index, count in attempts.items():
            if index in settled or index is None:
                continue
            last = [trial for trial in trials if trial.user_attrs.get(_INDEX) == index][-1]
            if count < ATTEMPTS:
                self.study.enqueue_trial(last.params, user_attrs={_INDEX: index})
            elif run_id := last.user_attrs.get(_RUN):
                self.tracker.finish(run_id, schema.STATE_FAILED, reason=f"interrupted {count} times")

    def _finished(self) -> list[FrozenTrial]:
        return finished_trials(self.study)

    def _next_index(self) -> int:
        indices = [trial.user_attrs.get(_INDEX, -1) for trial in self.study.get_trials(deepcopy=False)]
        return max(indices, default=-1) + 1

    def _check_failures(self) -> None:
        finished = self._finished()
        failed = [trial for trial in finished if trial.user_attrs.get(_STATE) == schema.STATE_FAILED]
        if len(finished) >= 3 and len(failed) / len(finished) > self.plan.max_failure_rate:
            reasons = Counter(str(trial.user_attrs.get(_REASON, "")).splitlines()[0] for trial in failed)
            raise StudyError(
                f"{len(failed)} of {len(finished)} trials of {self.plan.study} failed: "
                + "; ".join(f"{reason} ({count} times)" for reason, count in reasons.most_common()),
                "Mend the cause and run the same command, or raise study.max_failure_rate.",
            )

    # --- finals --------------------------------------------------------------------------------------------------

    def _finals(self, stop: StopSignal) -> None:
        """Retrain the best configuration with each seed that is missing and score it on the test split."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        beyond = any(value > 0 for trial in self._finished() for value in trial.constraints.values())
        if beyond and not self._fitting():
            # No error: that nothing fits is an answer too, and the report gives the reasons.
            self.progress.note(f"no trial of {self.plan.strategy} completed within the budgets: no finals")
            return
        if not complete:
            states = Counter(trial.user_attrs.get(_STATE) for trial in self._finished())
            reasons = sorted({str(trial.user_attrs.get(_REASON, "")) for trial in self._finished()} - {""})
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
        self.tracker.set_tags(self.parent, {schema.TAG_WINNER: configuration})
        shifted, unscored = self._shifted(), 0
        for seed_index in range(self.plan.final_seeds):
            record = self.study.user_attrs.get(f"{_FINAL}:{configuration}:{seed_index}")
            if record is None:
                stop.check()
                self._final(best, configuration, seed_index, stop)
            elif shifted and record.get(_SHIFTED) != shifted:
                unscored += 1
        if unscored:
            self.progress.note(
                f"{unscored} finals of {self.plan.strategy} ended without this dataset.shifted, and are not scored on "
                "it; a higher final.seeds adds finals that are, another output_dir or study.seed trains all anew"
            )

    def _final(self, best: FrozenTrial, configuration: str, seed_index: int, stop: StopSignal) -> None:
        seed = derive_seed(self.plan.seed, _FINAL, seed_index)
        tags = {**self.plan.tags, schema.TAG_WINNER: configuration}
        if shifted := self._shifted():
            tags[schema.TAG_SHIFTED] = shifted
        run_id = self.tracker.start(
            schema.KIND_FINAL,
            f"{self.plan.strategy} final {seed_index:03d}",
            tags,
            {**self.plan.params, **self._values(best.params), schema.PARAM_SEED: seed, schema.PARAM_TRIAL: best.number},
            parent=self.parent,
        )
        self.progress.final_started(seed_index + 1, self.plan.final_seeds)
        state, reason, metrics = schema.STATE_FAILED, "", {}
        checkpoints = self._checkpoints(f"final-{configuration}-{seed_index}")

        def on_epoch(record: EpochRecord) -> None:
            self.tracker.log_metrics(run_id, record.metrics(), record.epoch)
            self.progress.epoch(record, getattr(record, self.plan.metric))

        try:
            run = self._train(
                best.params, seed=seed, run_id=run_id, stop=stop, on_epoch=on_epoch, checkpoints=checkpoints
            )
            scores = self.task.score_test(run)
            metrics = {**run.metrics(), **scores.metrics, **(self.task.drift(run) if self.plan.drift else {})}
            self.tracker.log_table(run_id, schema.ARTIFACT_PREDICTIONS, scores.predictions)
            if scores.shifted_predictions is not None:
                self.tracker.log_table(run_id, schema.ARTIFACT_SHIFTED_PREDICTIONS, scores.shifted_predictions)
            self._save_if_best(run, configuration)
            state = schema.STATE_COMPLETE
        except Diverged as error:
            state, reason = schema.STATE_DIVERGED, str(error)
        except (Interrupted, KeyboardInterrupt) as error:
            state, reason = schema.STATE_INTERRUPTED, str(error) or "interrupted"
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.tracker.finish(run_id, state, reason=reason, metrics=metrics)
            self.progress.final_finished(state, reason, metrics.get(schema.TEST_ACCURACY))
        validation = metrics.get(_best_metric(self.plan.metric))
        record = {"run": run_id, "state": state, "validation": validation, _SHIFTED: shifted}
        self.study.set_user_attr(f"{_FINAL}:{configuration}:{seed_index}", record)
        if checkpoints is not None:
            checkpoints.clear()

    def _save_if_best(self, run: Run, configuration: str) -> None:
        """Keep the weights of the final with the best validation score; the test split has no say."""
        score = getattr(run.fit.best, self.plan.metric)
        earlier = [
            record["validation"]
            for key, record in self.study.user_attrs.items()
            if key.startswith(f"{_FINAL}:{configuration}:") and record["validation"] is not None
        ]
        if earlier and not (score > max(earlier) if self.plan.maximize else score < min(earlier)):
            return
        with replaced(self.models_dir / self.plan.study) as fresh:
            self.task.save(run, fresh)

    # --- bookkeeping ---------------------------------------------------------------------------------------------

    def _open_parent(self) -> str:
        known = self.study.user_attrs.get(_RUN)
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
        self.study.set_user_attr(_RUN, parent)
        return parent

    def _log_files(self, parent: str) -> None:
        for name, text in self.plan.files.items():
            self.tracker.log_text(parent, name, text)

    def _totals(self) -> dict[str, float]:
        trials = self.study.get_trials(deepcopy=False)
        states = Counter(trial.user_attrs.get(_STATE) for trial in trials)
        given_up = sum(trial.user_attrs.get(_STATE) == schema.STATE_INTERRUPTED for trial in self._finished())
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
            [trial.user_attrs.get(_SECONDS, 0.0) for trial in trials],
            self.pretraining.get(schema.DOMAIN_PRETRAIN_SECONDS, 0.0),
        )
        if (best := self._best_value()) is not None:
            totals[_best_metric(self.plan.metric)] = best
        return totals

    def _best_value(self) -> float | None:
        return self.study.best_value if self._fitting() else None

    def _fitting(self) -> list[FrozenTrial]:
        """The complete trials that can win: those within the budgets, where these constrain the search."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [trial for trial in complete if all(value <= 0 for value in trial.constraints.values())]

    def _shifted(self) -> str | None:
        """Name and fingerprint of the shifted data, where there are."""
        shifted = self.task.dataset.summary.get("shifted")
        return f"{shifted['name']} {shifted['fingerprint']}" if shifted else None

    def _values(self, searched: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.plan.spec.fixed, **searched}


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count towards a study's total: all but interrupted ones that are, or can be, tried again."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    attempts = Counter(trial.user_attrs.get(_INDEX) for trial in trials)
    counted = [trial for trial in trials if trial.user_attrs.get(_STATE) != schema.STATE_INTERRUPTED]
    settled = {trial.user_attrs.get(_INDEX) for trial in counted}
    given_up = {
        index: trial
        for trial in trials
        if (index := trial.user_attrs.get(_INDEX)) not in settled and attempts[index] >= ATTEMPTS
    }
    return [*counted, *given_up.values()]


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


def _sampler(name: str, seed: int) -> BaseSampler:
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "gp":
        return GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    return TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=False)


def _pruner(name: str, epochs: int) -> BasePruner:
    if name == "median":
        return MedianPruner(n_startup_trials=2, n_warmup_steps=0, n_min_trials=2)
    if name == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)
    if name == "successive_halving":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    return NopPruner()
