"""The counts of the telemetry in the formats of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nlsq_nb.errors import MissingDependency

__all__ = ["collector_of", "exposition"]

_DESCRIPTIONS = {
    "nlsq_defense_warmup_calls_total": "Fits whose warm-up looked at the start.",
    "nlsq_defense_layer1_triggers_total": "Warm-ups skipped because the start was near the optimum.",
    "nlsq_defense_layer2_refinement_total": "Warm-ups with the smallest first step.",
    "nlsq_defense_layer2_careful_total": "Warm-ups with the middle first step.",
    "nlsq_defense_layer2_exploration_total": "Warm-ups with the largest first step.",
    "nlsq_defense_layer2_fixed_total": "Warm-ups whose first step was not chosen by the loss.",
    "nlsq_defense_layer3_triggers_total": "Warm-ups abandoned because the loss rose.",
    "nlsq_defense_layer4_triggers_total": "Steps shortened to the longest one allowed.",
    "nlsq_defense_lbfgs_history_fill_total": "Warm-ups that filled the L-BFGS memory.",
    "nlsq_defense_lbfgs_line_search_failures_total": "Line searches that found no acceptable step.",
}


def exposition(metrics: Mapping[str, int]) -> str:
    """Write counts in the text exposition format, version 0.0.4.

    Parameters
    ----------
    metrics : mapping of str to int
        From `export_metrics`.

    Returns
    -------
    str
        Ends with a newline.
    """
    return "".join(
        f"# HELP {name} {_DESCRIPTIONS[name]}\n# TYPE {name} counter\n{name} {count}\n"
        for name, count in metrics.items()
    )


def collector_of(read: Callable[[], Mapping[str, int]]) -> Any:
    """Make an object for `prometheus_client`'s `CollectorRegistry.register`.

    Parameters
    ----------
    read : callable
        Gives the counts of the moment, as `export_metrics` does.

    Returns
    -------
    object
        Reads the counts anew at each scrape.

    Raises
    ------
    MissingDependency
        Without prometheus_client.
    """
    try:
        from prometheus_client.core import CounterMetricFamily
    except ImportError:
        raise MissingDependency(
            'collector() needs prometheus_client: pip install "nlsq_nb[metrics]"; '
            "prometheus_text() works without"
        ) from None
    return _Collector(read, CounterMetricFamily)


@dataclass(frozen=True, slots=True)
class _Collector:
    """The counts as metric families, read anew at each scrape."""

    read: Callable[[], Mapping[str, int]]
    family: Any

    def collect(self) -> Iterator[Any]:
        """The families; each puts the suffix _total back to its name."""
        for name, count in self.read().items():
            yield self.family(name.removesuffix("_total"), _DESCRIPTIONS[name], value=count)
