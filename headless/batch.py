"""Many jobs on one or several hosts: nothing twice, nothing lost, and a restart goes on where it stopped.

A job is done when its folder holds a `result.json` with the job's key. A job that a host had taken on before
we were killed is found there again by its prompt id.
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
from .results import keep_file, kept_files


@dataclass
class Outcome:
    """How a job ended: "finished", "kept" (it was there already), "failed", or "left" (no host to run it)."""

    job: GraphJob
    state: str
    host: str = ""
    seconds: float = 0.0
    error: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Batch:
    """Runs `jobs`, whose labels differ, on `hosts` into `out`.

    `tell` hears of each job as it ends, `warn` of each host that is gone; both from any thread.
    """

    def __init__(
        self,
        jobs: Sequence[GraphJob],
        hosts: Sequence[str],
        out: Path,
        tell: Callable[[Outcome], None],
        warn: Callable[[str], None],
    ):
        self.jobs, self.out, self.tell, self.warn = list(jobs), out, tell, warn
        self.clients = [Client(url) for url in hosts]
        self.changed = threading.Condition()  # guards the four below
        self.waiting: list[GraphJob] = []
        self.running: dict[Client, GraphJob] = {}
        self.begun: set[tuple[str, ...]] = set()  # outermost labels that some host has taken up
        self.outcomes: dict[tuple[str, ...], Outcome] = {}
        self.known: dict[Client, set[str]] = {}  # prompt ids that a host had before we came
        self.stopped = False

    def run(self) -> list[Outcome]:
        """Blocks until every job has ended, or every host is gone.

        Raises:
            KeyboardInterrupt: on Ctrl-C, once the hosts have let go of what they were doing.
        """
        for job in self.jobs:
            facts = kept_files(job, self.out)
            if facts:
                self._end(Outcome(job, "kept", facts=facts))
            else:
                self.waiting.append(job)
        workers = [
            threading.Thread(target=self._work, args=(client,), daemon=True) for client in self._answering()
        ]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                while worker.is_alive():
                    worker.join(0.2)  # with a limit, so that Ctrl-C is heard on Windows too
        except KeyboardInterrupt:
            self._stop(workers)
            raise
        return [self.outcomes.get(job.labels) or Outcome(job, "left") for job in self.jobs]

    def _answering(self) -> list[Client]:
        """The hosts that are there, having said which of our jobs they have taken on before."""
        there = []
        for client in self.clients:
            try:
                queued = client.queued()
                ids = [job.prompt_id for job in self.waiting]
                self.known[client] = {i for i in ids if i in queued or client.has_finished(i)}
                there.append(client)
            except HostGone as error:
                self.warn(str(error))
        return there

    def _work(self, client: Client) -> None:
        """One host's share of the jobs."""
        uploaded = set()
        while job := self._take(client):
            start = time.monotonic()
            outcome = Outcome(job, "finished", client.url)
            try:
                result = self._result(client, job, uploaded)
                outcome.seconds = time.monotonic() - start
                outcome.facts = keep_file(job, result, outcome.seconds, self.out)
            except HostGone as error:
                self._give_back(client)
                self.warn(str(error))
                return
            except Exception as error:  # of whatever kind: other hosts wait for this job's end
                outcome.state, outcome.error = "failed", str(error) or type(error).__name__
            self._end(outcome)

    def _result(self, client: Client, job: GraphJob, uploaded: set) -> PromptResult:
        if job.prompt_id in self.known[client] and (found := client.find(job.prompt_id)):
            return found
        for upload in set(job.uploads) - uploaded:
            upload.to(client)
            uploaded.add(upload)
        return client.run(job.graph, prompt_id=job.prompt_id)

    def _take(self, client: Client) -> GraphJob | None:
        """The host's next job; waits while another host may yet give one back. None when all is done."""
        with self.changed:
            last = self.running.pop(client, None)
            self.changed.notify_all()
            while not self.stopped:
                job = self._best(client, last)
                if job:
                    self.waiting.remove(job)
                    self.running[client] = job
                    self.begun.add(job.labels[:1])
                    return job
                if not self.running:
                    return None
                self.changed.wait(0.5)
        return None

    def _best(self, client: Client, last: GraphJob | None) -> GraphJob | None:
        """What the host has already; then its last subject's, whose training it has; then a new subject's."""
        others = set().union(*(known for other, known in self.known.items() if other is not client))

        def rank(job: GraphJob) -> int:
            if job.prompt_id in self.known[client]:
                return 0
            if last and job.labels[:1] == last.labels[:1]:
                return 1
            return 2 if job.labels[:1] not in self.begun else 3

        free = [j for j in self.waiting if j.prompt_id in self.known[client] or j.prompt_id not in others]
        return min(free, key=rank, default=None)

    def _give_back(self, client: Client) -> None:
        """A host is gone: its job is anybody's, and so is what only it had."""
        with self.changed:
            self.waiting.insert(0, self.running.pop(client))
            self.known.pop(client)
            self.changed.notify_all()

    def _end(self, outcome: Outcome) -> None:
        with self.changed:
            if self.stopped:
                return
            self.outcomes[outcome.job.labels] = outcome
        self.tell(outcome)

    def _stop(self, workers: list[threading.Thread]) -> None:
        """Takes our jobs back from the hosts and waits a little: a training saves its state first."""
        with self.changed:
            self.stopped = True
            running = dict(self.running)
        for client, job in running.items():
            with suppress(HostGone):
                client.interrupt(job.prompt_id)
        for worker in workers:
            worker.join(20)
