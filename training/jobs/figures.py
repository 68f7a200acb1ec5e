"""The queue in Prometheus' terms, read from the run directories when it is scraped."""

from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from training.jobs.queue import JobQueue, count_states
from training.runs.journal import STATES


class JobFigures(Collector):
    def __init__(self, queue: JobQueue):
        self._queue = queue

    def describe(self) -> Iterable[Metric]:
        return ()  # registering need not collect

    def collect(self) -> Iterator[Metric]:
        jobs = self._queue.all()
        counted = count_states(jobs)
        states = GaugeMetricFamily("bianlian_training_jobs", "Training runs by state.", labels=["state"])
        for state in STATES:
            states.add_metric([state], counted[state])
        yield states
        # A gauge: a run that goes on from a checkpoint has learned less than it had, and a deleted one nothing.
        yield GaugeMetricFamily(
            "bianlian_training_tokens",
            "Tokens that the runs on disk have learned from.",
            value=sum(job.status.trained_tokens for job in jobs),
        )
