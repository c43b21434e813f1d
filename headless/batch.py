"""Run many jobs on one or several hosts; each job runs once, and a restarted batch continues.

A job is finished when its folder holds a `result.json` with the job's key. A job that a host accepted before
this process was killed is found there by its prompt id.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .client import Client, HostGone, PromptResult
from .jobs import GraphJob
from .results import load_result, save_result


@dataclass
class Outcome:
    """How a job ended: "finished", "kept" (stored by an earlier run), "failed", or "left" (not run)."""

    job: GraphJob
    state: str
    host: str = ""
    seconds: float = 0.0
    error: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Batch:
    """Run jobs on hosts and store their results.

    Args:
        jobs: their labels differ.
        hosts: URLs.
        out: folder of the results.
        on_job_done: called when a job ends, from any thread.
        log: called with a message for each host that does not answer, from any thread.
    """

    def __init__(
        self,
        jobs: Sequence[GraphJob],
        hosts: Sequence[str],
        out: Path,
        on_job_done: Callable[[Outcome], None],
        log: Callable[[str], None],
    ):
        self.jobs, self.out, self.on_job_done, self.log = list(jobs), out, on_job_done, log
        self.clients = [Client(url) for url in hosts]
        self.changed = threading.Condition()  # guards the attributes below
        self.pending: list[GraphJob] = []
        self.running: dict[Client, GraphJob] = {}
        self.started_subjects: set[tuple[str, ...]] = set()  # outermost labels of jobs that were started
        self.outcomes: dict[tuple[str, ...], Outcome] = {}
        self.host_prompt_ids: dict[Client, set[str]] = {}  # prompt ids that a host had before this run
        self.stopped = False

    def run(self) -> list[Outcome]:
        """Run until every job has ended or every host is gone; returns one outcome per job.

        Raises:
            KeyboardInterrupt: on Ctrl-C, after the hosts have stopped the jobs.
        """
        for job in self.jobs:
            facts = load_result(job, self.out)
            if facts:
                self._end(Outcome(job, "kept", facts=facts))
            else:
                self.pending.append(job)
        workers = [
            threading.Thread(target=self._work, args=(client,), daemon=True)
            for client in self._reachable_clients()
        ]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                while worker.is_alive():
                    worker.join(0.2)  # a timeout lets Windows handle Ctrl-C
        except KeyboardInterrupt:
            self._stop(workers)
            raise
        return [self.outcomes.get(job.labels) or Outcome(job, "left") for job in self.jobs]

    def _reachable_clients(self) -> list[Client]:
        """Return the hosts that answer; note which of the jobs each of them already has."""
        reachable = []
        for client in self.clients:
            try:
                queued = client.queued()
                ids = [job.prompt_id for job in self.pending]
                self.host_prompt_ids[client] = {i for i in ids if i in queued or client.has_finished(i)}
                reachable.append(client)
            except HostGone as error:
                self.log(str(error))
        return reachable

    def _work(self, client: Client) -> None:
        """Run jobs on one host until none is left."""
        uploaded = set()
        while job := self._next_job(client):
            start = time.monotonic()
            outcome = Outcome(job, "finished", client.url)
            try:
                result = self._run_job(client, job, uploaded)
                outcome.seconds = time.monotonic() - start
                outcome.facts = save_result(job, result, outcome.seconds, self.out)
            except HostGone as error:
                self._requeue(client)
                self.log(str(error))
                return
            except Exception as error:  # any error ends the job; otherwise other hosts would wait for it
                outcome.state, outcome.error = "failed", str(error) or type(error).__name__
            self._end(outcome)

    def _run_job(self, client: Client, job: GraphJob, uploaded: set) -> PromptResult:
        """Return the result of a job; jobs that the host already has are not sent again."""
        if job.prompt_id in self.host_prompt_ids[client] and (earlier := client.find(job.prompt_id)):
            return earlier
        for upload in set(job.uploads) - uploaded:
            upload.to(client)
            uploaded.add(upload)
        return client.run(job.graph, prompt_id=job.prompt_id)

    def _next_job(self, client: Client) -> GraphJob | None:
        """Return the host's next job, None if all are done; wait while another host may still return one."""
        with self.changed:
            previous = self.running.pop(client, None)
            self.changed.notify_all()
            while not self.stopped:
                job = self._choose_job(client, previous)
                if job:
                    self.pending.remove(job)
                    self.running[client] = job
                    self.started_subjects.add(job.labels[:1])
                    return job
                if not self.running:
                    return None
                self.changed.wait(0.5)
        return None

    def _choose_job(self, client: Client, previous: GraphJob | None) -> GraphJob | None:
        """Return the best pending job for a host.

        First come jobs that the host already has, then those of its previous subject, whose training it has
        stored, then those of a subject that no host has started.
        """
        others = set().union(*(ids for other, ids in self.host_prompt_ids.items() if other is not client))

        def rank(job: GraphJob) -> int:
            if job.prompt_id in self.host_prompt_ids[client]:
                return 0
            if previous and job.labels[:1] == previous.labels[:1]:
                return 1
            return 2 if job.labels[:1] not in self.started_subjects else 3

        candidates = [
            j
            for j in self.pending
            if j.prompt_id in self.host_prompt_ids[client] or j.prompt_id not in others
        ]
        return min(candidates, key=rank, default=None)

    def _requeue(self, client: Client) -> None:
        """Make the job of a lost host available to the others, and also the jobs that only this host had."""
        with self.changed:
            self.pending.insert(0, self.running.pop(client))
            self.host_prompt_ids.pop(client)
            self.changed.notify_all()

    def _end(self, outcome: Outcome) -> None:
        """Store and report how a job ended."""
        with self.changed:
            if self.stopped:
                return
            self.outcomes[outcome.job.labels] = outcome
        self.on_job_done(outcome)

    def _stop(self, workers: list[threading.Thread]) -> None:
        """Interrupt the jobs on the hosts and wait up to 20 s, because a training first saves its state."""
        with self.changed:
            self.stopped = True
            running = dict(self.running)
        for client, job in running.items():
            with suppress(HostGone):
                client.interrupt(job.prompt_id)
        for worker in workers:
            worker.join(20)
