"""The table of metrics, streamed: each batch gives a tally, tallies add up, the sum gives the score.

The table can be copied and extended: ``default_metrics() | {"mine": Metric("mine", "...", tally)}``. One file per
kind of model holds everything about its metrics: `classes`, `segmentation`, `regression`, `language`, `own`.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.calibrate.checks import did_you_mean
from onnxprune.calibrate.streams import is_import_spec
from onnxprune.errors import UsageError
from onnxprune.evaluate.classes import agreement, macro_f1, top_k
from onnxprune.evaluate.language import perplexity
from onnxprune.evaluate.own import own_metric
from onnxprune.evaluate.regression import mean_squared_error, signal_to_noise
from onnxprune.evaluate.score import Metric, Score, Tally
from onnxprune.evaluate.segmentation import mean_iou

__all__ = ["Metric", "Score", "Tally", "default_metrics", "find_metric"]


def default_metrics() -> dict[str, Metric]:
    """Return a new table of the metrics that come with the package, by name."""
    metrics = (
        Metric("top1", "share of samples whose label has the highest output", top_k(1)),
        Metric("top5", "share of samples whose label is among the 5 highest outputs", top_k(5)),
        Metric("f1", "mean of the classes' F1", macro_f1),
        Metric("miou", "mean of the classes' intersection over union, over pixels", mean_iou),
        Metric("mse", "mean squared difference from target arrays", mean_squared_error, False),
        Metric("psnr", "peak signal to noise ratio against target arrays", signal_to_noise),
        Metric("perplexity", "exponential of the mean loss per next token", perplexity, False),
        Metric(
            "agreement",
            "share of samples with the original's highest output",
            agreement,
            reference="original",
        ),
    )
    return {metric.name: metric for metric in metrics}


def find_metric(name: str, metrics: Mapping[str, Metric] | None = None) -> Metric:
    """Return a metric by its name in a table, or as ``module:function``.

    Parameters
    ----------
    name
        As users write it.
    metrics
        The table; :func:`default_metrics` by default.

    Raises
    ------
    UsageError
        If there is no such metric.
    """
    table = default_metrics() if metrics is None else metrics
    if name in table:
        return table[name]
    if is_import_spec(name):
        return own_metric(name)
    raise UsageError(
        f"there is no metric {name!r}{did_you_mean(name, table)}",
        f"Known: {', '.join(table)}, or module:function of your own.",
    )
