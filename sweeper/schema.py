"""The names that the engine writes to MLflow and the reports read: runs, tags, params, metrics, artifacts.

A comparison has one ``study`` run per strategy; its ``trial`` and ``final`` runs are MLflow children of it
(``mlflow.parentRunId``). ``floor`` runs belong to the comparison alone. Documented in ``docs/mlflow_schema.md``.
"""

from __future__ import annotations

from typing import Final

SCHEMA_VERSION: Final = "1"

# --- tags, in every run ------------------------------------------------------------------------------------------
TAG_SCHEMA: Final = "thawline.schema"
TAG_KIND: Final = "thawline.kind"  # one of KINDS
TAG_COMPARISON: Final = "thawline.comparison"
TAG_CURVE: Final = "thawline.curve"  # what comparisons have in common that differ in their train split only
TAG_STUDY: Final = "thawline.study"  # of floor runs, in those of zero_shot and of prompted models
TAG_STATE: Final = "thawline.state"  # one of STATES
TAG_REASON: Final = "thawline.reason"  # why a run failed, diverged, was pruned or interrupted; absent otherwise
TAG_STRATEGY: Final = "thawline.strategy"  # its label and wrappers, e.g. lora+pseudo_label; of a reference, its row
TAG_MODEL: Final = "thawline.model"
TAG_DATASET: Final = "thawline.dataset"
TAG_PARENT: Final = "mlflow.parentRunId"
TAG_RUN: Final = "thawline.run"  # an id of our own, by which a run is found again
TAG_PSEUDO_LABEL: Final = "thawline.pseudo_label"  # trial, final: why a round added nothing and was the last
TAG_SHIFTED: Final = "thawline.shifted"  # final: name and fingerprint of the shifted data that it was scored on

# --- tags of study runs ------------------------------------------------------------------------------------------
TAG_COMMAND: Final = "thawline.command"  # the command that reproduces the study
TAG_GIT: Final = "thawline.git_revision"  # or the version, "thawline 0.1.0", where it was installed
TAG_FINGERPRINT: Final = "thawline.data_fingerprint"
TAG_WINNER: Final = "thawline.configuration"  # study: the configuration its finals train; final: the one it trained

KIND_STUDY: Final = "study"
KIND_TRIAL: Final = "trial"
KIND_FINAL: Final = "final"
KIND_FLOOR: Final = "floor"
KINDS: Final = (KIND_STUDY, KIND_TRIAL, KIND_FINAL, KIND_FLOOR)

STATE_RUNNING: Final = "running"
STATE_COMPLETE: Final = "complete"
STATE_PRUNED: Final = "pruned"
STATE_DIVERGED: Final = "diverged"  # loss not finite; Optuna sees the trial as pruned
STATE_FAILED: Final = "failed"
STATE_INTERRUPTED: Final = "interrupted"  # stopped from outside, or by what is not its own fault; tried again
STATE_TIMEOUT: Final = "timeout"  # study only: cut short by study.timeout, its budget is unequal

#: ``thawline.reason`` of an interrupted run that its own process could not close.
REASON_PROCESS_ENDED: Final = "its process ended"

#: ``thawline.state`` -> the run status that MLflow shows.
MLFLOW_STATUS: Final = {
    STATE_RUNNING: "RUNNING",
    STATE_COMPLETE: "FINISHED",
    STATE_TIMEOUT: "FINISHED",
    STATE_PRUNED: "KILLED",
    STATE_INTERRUPTED: "KILLED",
    STATE_DIVERGED: "FAILED",
    STATE_FAILED: "FAILED",
}
STATES: Final = tuple(MLFLOW_STATUS)

# --- metrics with epochs as steps, in trial and final runs -------------------------------------------------------
TRAIN_LOSS: Final = "train_loss"
VALIDATION_LOSS: Final = "validation_loss"
VALIDATION_ACCURACY: Final = "validation_accuracy"
VALIDATION_MACRO_F1: Final = "validation_macro_f1"
SAMPLES_PER_SECOND: Final = "train_samples_per_second"
EPOCH_METRICS: Final = (TRAIN_LOSS, VALIDATION_LOSS, VALIDATION_ACCURACY, VALIDATION_MACRO_F1, SAMPLES_PER_SECOND)

# --- a metric with rounds of pseudo-labelling as steps, in trial and final runs ----------------------------------
PSEUDO_LABELLED: Final = "pseudo_labelled"  # unlabelled items whose prediction reached the threshold

# --- single metrics, in trial and final runs ---------------------------------------------------------------------
BEST_EPOCH: Final = "best_epoch"  # 1-based; chosen on validation
BEST_VALIDATION_ACCURACY: Final = "best_validation_accuracy"
BEST_VALIDATION_MACRO_F1: Final = "best_validation_macro_f1"
BEST_VALIDATION_LOSS: Final = "best_validation_loss"
EPOCHS_RUN: Final = "epochs_run"
TRAINABLE_PARAMS: Final = "trainable_params"  # of the stage that trains the most
TRAINABLE_PARAMS_MEAN: Final = "trainable_params_mean"  # over the planned epochs of all stages
TRAINABLE_PARAMS_HEAD: Final = "trainable_params_head"
TRAINABLE_PARAMS_BACKBONE: Final = "trainable_params_backbone"
TOTAL_PARAMS: Final = "total_params"
TRAINABLE_PCT: Final = "trainable_pct"  # percent of total_params
EXPECTED_TRAINABLE_PARAMS: Final = "expected_trainable_params"  # by the strategy's formula, where it has one
TRAIN_SECONDS: Final = "train_seconds"  # wall time of training and its evaluations
RECORDED_SECONDS: Final = "recorded_seconds"  # what recording took, once, of the frozen states that the run read
PEAK_MEMORY_MB: Final = "peak_memory_mb"
MICRO_BATCH_SIZE: Final = "micro_batch_size"  # examples of a batch at once; below batch_size where memory ran out
STORED_BYTES: Final = "stored_bytes"  # what has to be stored to restore what was trained
SIZE_METRICS: Final = (
    TRAINABLE_PARAMS,
    TRAINABLE_PARAMS_MEAN,
    TRAINABLE_PARAMS_HEAD,
    TRAINABLE_PARAMS_BACKBONE,
    TOTAL_PARAMS,
    TRAINABLE_PCT,
    STORED_BYTES,
)

# --- metrics of final and floor runs (the test split, scored once per seed) --------------------------------------
TEST_ACCURACY: Final = "test_accuracy"
TEST_MACRO_F1: Final = "test_macro_f1"
TEST_LOSS: Final = "test_loss"
TEST_SAMPLES_PER_SECOND: Final = "test_samples_per_second"  # by the whole model, recorded states unused, see the docs

# --- metrics of prompted models, in floor runs -------------------------------------------------------------------
PROMPTED_ITEMS: Final = "prompted_items"  # test items that were asked about
PROMPTED_UNPARSED: Final = "prompted_unparsed"  # answers that name no label, or several; they count as wrong
PROMPTED_CUT: Final = "prompted_cut"  # texts that were cut

# --- metrics of final runs where dataset.shifted names a second dataset -------------------------------------------
SHIFTED_ACCURACY: Final = "shifted_accuracy"
SHIFTED_MACRO_F1: Final = "shifted_macro_f1"
SHIFTED_LOSS: Final = "shifted_loss"

# --- metrics of final runs with final.drift: backbone's features on validation inputs, trained against pretrained ---
DRIFT_CKA: Final = "drift_cka"  # linear CKA; 1 = the same features
DRIFT_COSINE: Final = "drift_cosine"  # mean over the inputs
DRIFT_ITEMS: Final = "drift_items"  # inputs looked at

# --- metrics of study runs ---------------------------------------------------------------------------------------
TUNING_SECONDS: Final = "tuning_seconds"  # summed over all trials, whatever their state, and domain pretraining
DOMAIN_PRETRAIN_SECONDS: Final = "domain_pretrain_seconds"  # in tuning_seconds; also where another study trained it
DOMAIN_PRETRAIN_LOSS: Final = "domain_pretrain_loss"  # the language model's mean training loss in its last epoch
N_TRIALS: Final = "n_trials"  # the total asked for; a metric, because it may grow
FINAL_SEEDS: Final = "final_seeds"  # the number of finals asked for; likewise
COUNT_PREFIX: Final = "trials_"  # trials_complete, trials_pruned, trials_diverged, trials_failed, trials_interrupted

# --- params ------------------------------------------------------------------------------------------------------
PARAM_STRATEGY: Final = "strategy"
PARAM_MODEL: Final = "model"
PARAM_DATASET: Final = "dataset"
PARAM_SEED: Final = "seed"
PARAM_TRIAL: Final = "trial"  # trial number; in finals the number of the trial that won
PARAM_EPOCHS: Final = "epochs"
PARAM_BATCH_SIZE: Final = "batch_size"
PARAM_TRAIN_SIZE: Final = "train_size"
PARAM_VALIDATION_SIZE: Final = "validation_size"
PARAM_TEST_SIZE: Final = "test_size"
PARAM_PRECISION: Final = "precision"
PARAM_DEVICE: Final = "device"
PARAM_HEAD: Final = "head"
PARAM_POOLING: Final = "pooling"
PARAM_METRIC: Final = "metric"  # study: what trials are chosen by, e.g. validation_accuracy
PARAM_SAMPLER: Final = "sampler"
PARAM_PRUNER: Final = "pruner"
PARAM_FLOOR: Final = "floor"  # floor runs: majority | tfidf_logreg | pixels_logreg | zero_shot | prompted <model> (...)
PARAM_PROMPTED_MODEL: Final = "prompted_model"  # as its endpoint names it
PARAM_SHOTS: Final = "shots"  # examples in its prompt
#: Swept values are params named by the field alone: ``learning_rate``, ``rank``, ``alpha_ratio``, ``num_blocks``.
#: The study's param ``searched`` holds their names, separated by commas.
PARAM_SEARCHED: Final = "searched"

# --- artifacts ---------------------------------------------------------------------------------------------------
ARTIFACT_CONFIG: Final = "config.yaml"  # study: the composed configuration
ARTIFACT_VERSIONS: Final = "versions.json"  # study: {"python": "3.11.7", "torch": "2.15.0", ...}
ARTIFACT_DATA_SUMMARY: Final = "data_summary.json"  # study: sizes, label names and counts, warnings
ARTIFACT_SEARCH_SPACE: Final = "search_space.json"  # study: {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": true}}
ARTIFACT_IMPORTANCES: Final = "importances.json"  # study: {"learning_rate": 0.8, ...}, shares of what was searched
ARTIFACT_PREDICTIONS: Final = "predictions.csv"  # final, floor: item,group,label,prediction,probability
ARTIFACT_SHIFTED_PREDICTIONS: Final = "shifted_predictions.csv"  # final: the same of the shifted data
ARTIFACT_REPORT: Final = "report"  # study: folder of the newest report's files, in the newest study of a comparison
