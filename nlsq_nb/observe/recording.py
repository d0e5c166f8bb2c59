"""From the events of a fit to the counts of its telemetry."""

from __future__ import annotations

from collections.abc import Iterable

from nlsq_nb import events
from nlsq_nb.observe.telemetry import DefenseLayerTelemetry

__all__ = ["TelemetryObserver", "with_events"]


class TelemetryObserver:
    """Records the events of one fit in every telemetry given.

    Parameters
    ----------
    *sinks : DefenseLayerTelemetry
        The result's own, and the one of the process.
    """

    def __init__(self, *sinks: DefenseLayerTelemetry) -> None:
        self._sinks = sinks

    def __call__(self, event: events.Event) -> None:
        """Receive an event."""
        for sink in self._sinks:
            _record(sink, event)


def with_events(
    telemetry: DefenseLayerTelemetry, coming: Iterable[events.Event]
) -> DefenseLayerTelemetry:
    """A telemetry as it will be once it has been told of some events.

    Parameters
    ----------
    telemetry : DefenseLayerTelemetry
        Is left as it is.
    coming : iterable of Event
        What it will be told of.

    Returns
    -------
    DefenseLayerTelemetry
        A copy that knows them.
    """
    ahead = DefenseLayerTelemetry()
    ahead.restore(telemetry.to_dict())
    for event in coming:
        _record(ahead, event)
    return ahead


def _record(sink: DefenseLayerTelemetry, event: events.Event) -> None:
    match event:
        case events.WarmupStarted():
            sink.record_warmup_start()
        case events.WarmStartDetected():
            sink.record_layer1_trigger(event.relative_loss, event.threshold)
        case events.StepModeChosen():
            sink.record_layer2_lr_mode(event.mode, event.relative_loss)
        case events.CostGuardTripped():
            sink.record_layer3_trigger(event.cost_ratio, event.tolerance, event.iteration)
        case events.StepClipped():
            sink.record_layer4_clip(event.original_norm, event.max_norm)
        case events.StepsClipped():
            sink.record_layer4_clips(event.original_norms, event.max_norm)
        case events.HistoryFilled():
            sink.record_lbfgs_history_fill(event.iteration)
        case events.LineSearchFailed():
            sink.record_lbfgs_line_search_failure(event.iteration, event.reason)
