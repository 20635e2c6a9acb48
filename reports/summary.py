"""Several comparisons, over datasets or models, as one page: ranks, wins and losses, one figure; from MLflow alone.

Design choices: accuracies on different data are never averaged or subtracted; within a comparison strategies are
compared in pairs, as its own report compares them, and only who wins, ties and loses is carried from one to the next
(Demsar 2006, "Statistical comparisons of classifiers over multiple data sets", JMLR 7).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from reports import formats
from reports.files import report_folder, write_pages
from reports.load import Comparison, list_comparisons, load_comparison, newest_run
from reports.plots.summary import summary_figure
from reports.render import Report
from reports.stats import SeedScores, check_confidence, paired_difference, pool
from reports.tables import comparison_table, strategy_scores
from reports.verdict import Rule, judge_comparison
from sweeper import schema
from sweeper.errors import ConfigError

__all__ = ["ALL", "REPORT_NAME", "RankTest", "build_summary", "outcomes", "rank_test", "shared_ranks"]

ALL = "all"  # in place of names: every comparison of the store
REPORT_NAME = "summary"
LEAST_DATASETS = 10  # below, the chi-squared distribution of Friedman's statistic is no approximation


def build_summary(
    tracking_uri: str,
    *,
    reports_dir: Path,
    comparisons: Sequence[str],
    confidence: float = 0.95,
    rule: Rule | None = None,
) -> Report:
    """Read comparisons from MLflow and write ``<reports_dir>/summary-<...>/summary.md`` and all beside it.

    Args:
        tracking_uri: MLflow's address.
        reports_dir: folder of all reports; created when missing.
        comparisons: their names, or ``[ALL]``; those without a test score are left out and named.
        confidence: of all intervals and pairwise decisions, between 0 and 1.
        rule: what may be chosen; ``reports.verdict.Rule()`` by default.

    Returns:
        The report; its table has a row for each strategy: ``strategy``, ``mean_rank`` (NaN where it is not in
        all comparisons), ``comparisons``, ``chosen`` (how often), ``wins``, ``ties``, ``losses`` over pairs and
        comparisons.

    Raises:
        ThawlineError: the store cannot be read, a comparison is unknown, or the folder cannot be written.
        ConfigError: ``confidence`` is not between 0 and 1, or fewer than two comparisons have test scores.
    """
    check_confidence(confidence)
    everything = list(comparisons) == [ALL]
    names = list(list_comparisons(tracking_uri)["comparison"]) if everything else list(dict.fromkeys(comparisons))
    loaded = [load_comparison(tracking_uri, str(name)) for name in names]
    scored = [comparison for comparison in loaded if _labels(strategy_scores(comparison))]
    if len(scored) < 2:
        raise ConfigError(
            f"a summary needs two comparisons with test scores; {len(scored)} of {len(names)} have them: "
            f"{', '.join(comparison.name for comparison in scored) or 'none'}",
            "Name several, as in COMPARISON=a,b, or leave it out for a report of the newest.",
        )
    scored.sort(key=lambda comparison: (comparison.title, comparison.train_size, comparison.name))
    titles = _titles(scored)
    tables = [comparison_table(comparison, confidence) for comparison in scored]
    chosen = [
        judge_comparison(comparison, table, confidence, rule).chosen
        for comparison, table in zip(scored, tables, strict=True)
    ]
    decided = [outcomes(strategy_scores(comparison), confidence) for comparison in scored]
    ranks = shared_ranks(decided)
    datasets = _named(scored, "dataset")
    test = rank_test(ranks, confidence) if len(set(datasets)) == len(scored) else None
    table = _rank_table(decided, ranks, chosen)

    name = f"summary-{ALL if everything else _digest([comparison.name for comparison in loaded])}"
    folder = report_folder(Path(reports_dir), name)
    points = pd.concat(
        [
            rows.assign(dataset=dataset, model=model)
            for rows, dataset, model in zip(tables, datasets, _models(scored), strict=True)
        ],
        ignore_index=True,
    )
    drawing = summary_figure(points, alt=_alt_text(titles, tables), confidence=confidence)
    summary = _summary(table, len(scored), len(set(datasets)), test, confidence)
    context = {
        "title": _heading(scored, datasets),
        "summary": summary,
        "ranks_table": _ranks_markdown(table, len(scored)),
        "pairs_table": _pairs_markdown(decided, list(table["strategy"])),
        "accuracy_table": _accuracy_markdown(titles, tables, chosen, list(table["strategy"]), confidence),
        "comparisons": [
            (title, comparison.name, _budget(comparison)) for title, comparison in zip(titles, scored, strict=True)
        ],
        "common": len(ranks.columns),
        "notes": _notes(loaded, scored, datasets),
        "confidence": f"{100 * confidence:g} %",
        "least": LEAST_DATASETS,
        "names": [ALL] if everything else sorted(names),
        "installed": all(comparison.installed for comparison in loaded),
    }
    files = write_pages(
        folder,
        REPORT_NAME,
        "summary.md.j2",
        context,
        drawings=[] if drawing is None else [drawing],
        strategies=list(table["strategy"]),
    )
    return Report(files[0], name, table, summary, files, newest_run(scored))


# --- who wins ----------------------------------------------------------------------------------------------------


def outcomes(scores: dict[str, SeedScores], confidence: float = 0.95) -> pd.DataFrame:
    """Each strategy of one comparison against each other: 1 for a win of the row, 0 for a tie, -1 for a loss.

    A tie is a paired difference whose interval holds zero (``stats.paired_difference``); NaN where one score each
    cannot say, and on the diagonal. Strategies without a score are left out.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    labels = _labels(scores)
    table = pd.DataFrame(math.nan, index=labels, columns=labels)
    together = pool(scores)
    for a, b in combinations(labels, 2):
        gap = paired_difference(scores[a], scores[b], confidence=confidence, pool=together)
        if gap.tie is not None:
            table.loc[a, b] = 0.0 if gap.tie else math.copysign(1.0, gap.mean)
            table.loc[b, a] = 0.0 - table.loc[a, b]
    return table


def shared_ranks(decided: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The ranks of the strategies that all comparisons have: a row for each comparison, 1 is the best.

    A strategy gets a point for each other one that it beats and half a point for each that it ties with, or whose
    order is unknown; ranks are those of the points, and equal points share the mean of their ranks.

    Args:
        decided: of :func:`outcomes`, one for each comparison.
    """
    from scipy.stats import rankdata

    common = [label for label in decided[0].columns if all(label in table.columns for table in decided)]
    rows = []
    for table in decided:
        block = table.loc[common, common].to_numpy(float)
        points = (block == 1).sum(axis=1) + 0.5 * ((block == 0) | np.isnan(block)).sum(axis=1)
        rows.append(rankdata(-points) if common else points)
    return pd.DataFrame(rows, columns=common)


@dataclass(frozen=True)
class RankTest:
    """Friedman's test that all strategies rank equally, and Nemenyi's critical difference of two mean ranks.

    Attributes:
        p_value: of Friedman's test.
        critical_difference: mean ranks that lie farther apart differ, where Friedman's test rejects.
        differing: pairs that do, the better one first; none where Friedman's test does not reject.
    """

    p_value: float
    critical_difference: float
    differing: tuple[tuple[str, str], ...]


def rank_test(ranks: pd.DataFrame, confidence: float = 0.95) -> RankTest | None:
    """Friedman's (1937) and Nemenyi's (1963) tests as in Demsar (2006, section 3.2.2); every row needs its own dataset.

    ``None`` below ten datasets or three strategies: Friedman's statistic is not yet chi-squared there. The critical
    difference is q * sqrt(k (k + 1) / 6 N) with q the studentized range of k strategies over sqrt(2).

    Args:
        ranks: (datasets, strategies), of :func:`shared_ranks`.
        confidence: 1 less the level of both tests.
    """
    from scipy.stats import friedmanchisquare, studentized_range

    datasets, strategies = ranks.shape
    if datasets < LEAST_DATASETS or strategies < 3:
        return None
    level = 1 - confidence
    spread = ranks.nunique(axis=1).gt(1).any()  # without any the statistic is 0 / 0
    p_value = float(friedmanchisquare(*ranks.to_numpy().T).pvalue) if spread else 1.0
    range_ = float(studentized_range.ppf(confidence, strategies, np.inf))
    critical = range_ / math.sqrt(2) * math.sqrt(strategies * (strategies + 1) / (6 * datasets))
    means = ranks.mean().sort_values(kind="stable")
    pairs = [(str(a), str(b)) for a, b in combinations(means.index, 2) if means[b] - means[a] > critical]
    return RankTest(p_value, critical, tuple(pairs) if p_value < level else ())


def _rank_table(decided: Sequence[pd.DataFrame], ranks: pd.DataFrame, chosen: Sequence[str | None]) -> pd.DataFrame:
    means = ranks.mean()
    picked = Counter(chosen)
    labels = list(dict.fromkeys(label for table in decided for label in table.columns))
    rows = []
    for label in labels:
        against = np.concatenate([table.loc[label].to_numpy(float) for table in decided if label in table.index])
        rows.append(
            {"strategy": label, "mean_rank": float(means.get(label, math.nan))}
            | {"comparisons": sum(label in table.index for table in decided), "chosen": picked[label]}
            | {name: int((against == value).sum()) for name, value in (("wins", 1), ("ties", 0), ("losses", -1))}
        )
    table = pd.DataFrame(rows)
    order = table.assign(net=table["losses"] - table["wins"])
    return table.loc[order.sort_values(["mean_rank", "net", "strategy"], na_position="last").index].reset_index(
        drop=True
    )


def _labels(scores: dict[str, SeedScores]) -> list[str]:
    return [label for label, score in scores.items() if len(score.accuracies)]


# --- how it is shown ---------------------------------------------------------------------------------------------


def _summary(table: pd.DataFrame, n: int, n_datasets: int, test: RankTest | None, confidence: float) -> str:
    """The answer: who ranks first, how often it was chosen, and whether that is more than chance."""
    ranked = table[table["mean_rank"].notna()]
    if len(ranked) < 2:
        return "No ranks: fewer than two strategies have test scores in all of these comparisons."
    best = ranked[ranked["mean_rank"] == ranked["mean_rank"].min()]
    first = formats.joined([f"**{formats.escape(label)}**" for label in best["strategy"]])
    sentences = [
        f"{first} {'has' if len(best) == 1 else 'share'} the best mean rank, {best['mean_rank'].iloc[0]:.2f} of"
    ]
    sentences[0] += f" {len(ranked)}, over {n} comparisons."
    picked = table[table["chosen"] > 0].sort_values("chosen", ascending=False, kind="stable")
    if len(picked):
        each = [f"{formats.escape(row['strategy'])} in {row['chosen']}" for row in picked.to_dict("records")]
        sentences.append(f"The reports of the single comparisons choose {formats.joined(each)}.")
    if test is not None:
        verdict = f"Friedman's test over {n} datasets: p = {test.p_value:.2g}"
        if test.differing:
            pairs = formats.joined([f"{formats.escape(a)} above {formats.escape(b)}" for a, b in test.differing])
            sentences.append(f"{verdict}; mean ranks more than {test.critical_difference:.2f} apart differ: {pairs}.")
        elif test.p_value < 1 - confidence:
            sentences.append(
                f"{verdict}: the strategies do not all rank alike, but Nemenyi's test cannot say which differ: no two "
                f"mean ranks are more than {test.critical_difference:.2f} apart."
            )
        else:
            sentences.append(f"{verdict}: no strategy ranks above another beyond chance at {100 * confidence:g} %.")
    elif len(ranked) > 2 and n_datasets >= LEAST_DATASETS:
        sentences.append("Several comparisons share a dataset and are not independent: no significance is claimed.")
    else:
        sentences.append(
            f"No significance is claimed for ranks: that takes at least {LEAST_DATASETS} comparisons, each on a "
            "dataset of its own, of at least 3 strategies."
        )
    return " ".join(sentences)


def _ranks_markdown(table: pd.DataFrame, n: int) -> str:
    header = ["strategy", "mean rank", "wins", "ties", "losses", "chosen", "comparisons"]
    rows = [
        [
            formats.escape(row["strategy"]),
            formats.MISSING if math.isnan(row["mean_rank"]) else f"{row['mean_rank']:.2f}",
            *(str(row[name]) for name in ("wins", "ties", "losses")),
            str(row["chosen"]),
            f"{row['comparisons']} of {n}",
        ]
        for row in table.to_dict("records")
    ]
    return formats.markdown_table(header, rows)


def _pairs_markdown(decided: Sequence[pd.DataFrame], labels: list[str]) -> str:
    """Wins / ties / losses of the row against the column."""
    rows = []
    for a in labels:
        cells = []
        for b in labels:
            known = [table.loc[a, b] for table in decided if a in table.index and b in table.index]
            counts = [sum(value == wanted for value in known) for wanted in (1, 0, -1)]
            cells.append("" if a == b else " / ".join(map(str, counts)) if sum(counts) else formats.MISSING)
        rows.append([formats.escape(a), *cells])
    if len(labels) < 2:
        return ""
    return formats.markdown_table(["wins / ties / losses of", *(f"against {formats.escape(b)}" for b in labels)], rows)


def _accuracy_markdown(
    titles: Sequence[str],
    tables: Sequence[pd.DataFrame],
    chosen: Sequence[str | None],
    labels: list[str],
    confidence: float,
) -> str:
    header = [f"test accuracy [{100 * confidence:g} %]", *map(formats.escape, labels), "*strongest floor*"]
    rows = []
    for title, table, winner in zip(titles, tables, chosen, strict=True):
        cells = {
            row["strategy"]: formats.accuracy(row) for row in table[table["kind"] == "strategy"].to_dict("records")
        }
        row = [formats.escape(title)]
        row += [f"**{cells[label]}**" if label == winner else cells.get(label, formats.MISSING) for label in labels]
        floors = table[(table["kind"] == "floor") & table["test_accuracy"].notna()].sort_values("test_accuracy")
        strongest = floors.to_dict("records")[-1:]
        floor = formats.MISSING
        if strongest:
            name = formats.floor_name(strongest[0]["strategy"], short=True)
            floor = f"{formats.accuracy(strongest[0])} {formats.escape(name)}"
        rows.append([*row, floor])
    return formats.markdown_table(header, rows)


def _alt_text(titles: Sequence[str], tables: Sequence[pd.DataFrame]) -> str:
    parts = []
    for title, table in zip(titles, tables, strict=True):
        rows = table[(table["kind"] == "strategy") & table["test_accuracy"].notna()]
        scores = [f"{row['strategy']} {formats.score(row['test_accuracy'])}" for row in rows.to_dict("records")]
        parts.append(f"{title}: {', '.join(scores)}")
    return f"Test accuracy against trainable parameters. {'; '.join(parts)}."


def _notes(loaded: Sequence[Comparison], scored: Sequence[Comparison], datasets: Sequence[str]) -> list[str]:
    notes = []
    kept = {comparison.name for comparison in scored}
    if missing := [comparison.name for comparison in loaded if comparison.name not in kept]:
        notes.append(f"Without any test score, and left out: {', '.join(missing)}.")
    for dataset, times in Counter(datasets).items():
        prints = {
            formats.different(c.studies["data_fingerprint"])
            for c, name in zip(scored, datasets, strict=True)
            if name == dataset
        }
        if times > 1 and len(prints) > 1:
            notes.append(
                f"Comparisons on {dataset} ran on different data (another split or train size, perhaps other data "
                "altogether): where they share a panel of the figure, a difference may come from that."
            )
    if len({value for c in scored for value in c.studies[schema.N_TRIALS].dropna()}) > 1:
        notes.append("Not all studies were tuned with the same number of trials.")
    if several := [comparison.name for comparison in scored if comparison.notes]:
        notes.append(f"The reports of {', '.join(several)} have notes of their own on their records.")
    return notes


def _titles(comparisons: Sequence[Comparison]) -> list[str]:
    """``model on dataset``, made unique by the train size, or else by the comparison's name."""
    titles = [comparison.title for comparison in comparisons]
    sized = [
        f"{title}, {formats.setting(c.train_size)} examples" if titles.count(title) > 1 else title
        for title, c in zip(titles, comparisons, strict=True)
    ]
    return [
        f"{title} ({c.name})" if sized.count(title) > 1 else title for title, c in zip(sized, comparisons, strict=True)
    ]


def _named(comparisons: Sequence[Comparison], column: str) -> list[str]:
    """The model or dataset of each comparison; its own name where that is unknown."""
    return [formats.different(comparison.studies[column]) or comparison.name for comparison in comparisons]


def _heading(comparisons: Sequence[Comparison], datasets: Sequence[str]) -> str:
    counts = [_count(_named(comparisons, "model"), "model"), _count(datasets, "dataset")]
    sizes = [formats.setting(comparison.train_size) for comparison in comparisons]
    if len(set(sizes)) > 1 and len(set(datasets)) == 1:
        counts.append(_count(sizes, "train size"))
    return f"{len(comparisons)} comparisons: {', '.join(counts)}"


def _models(comparisons: Sequence[Comparison]) -> list[str]:
    """What a mark of the figure stands for: the model, and what else differs between comparisons on one dataset."""
    models = _named(comparisons, "model")
    datasets = [formats.different(comparison.studies["dataset"]) for comparison in comparisons]
    pairs = list(zip(models, datasets, strict=True))
    return [
        f"{model}, {formats.setting(c.train_size)} examples" if pairs.count(pair) > 1 else model
        for model, pair, c in zip(models, pairs, comparisons, strict=True)
    ]


def _budget(comparison: Comparison) -> str:
    """Examples, trials and finals, as far as they are known."""
    parts = [] if math.isnan(comparison.train_size) else [f"{formats.setting(comparison.train_size)} training examples"]
    for column, what in ((schema.N_TRIALS, "trials"), (schema.FINAL_SEEDS, "finals")):
        values = sorted(set(comparison.studies[column].dropna()))
        parts += [f"{' or '.join(map(formats.setting, values))} {what}"] if values else []
    return ", ".join(parts)


def _count(values: Sequence[str], what: str) -> str:
    different = len(set(values))
    return f"{different} {what}{'' if different == 1 else 's'}"


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:8]
