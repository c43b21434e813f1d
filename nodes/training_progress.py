"""What a user sees while something trains."""

import time
from collections.abc import Sequence

import comfy.utils
import latent_preview
from comfy.model_management import InterruptProcessingException
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..common.log import logger
from ..training.finetune import progress as live
from .page import add_get_route, data_url

EVENT, ROUTE = "inlay.training", "/inlay/training"
STRIP_PX = 1024  # pixels of the stored samples, side by side


def add_route() -> None:
    """Lets a page that is opened half-way ask what is being trained."""

    async def trainings(query) -> list:
        return live.all_progress()

    add_get_route(ROUTE, trainings)


class NodeProgress:
    """Stage, step, loss and time left: on the node's bar and chart in the browser, and in the log.

    `notes` are warnings, which the page shows on the node; `workflow` is the id of the workflow with the
    node, see `workflow_id`. As a context it records how the training ended.
    """

    def __init__(self, steps: int, node_id: str | None, notes: Sequence[str] = (), workflow: str = ""):
        self.steps, self.node_id, self.notes, self.workflow = steps, node_id, notes, workflow
        self.bar = comfy.utils.ProgressBar(steps, node_id=node_id)
        self.run: live.TrainingProgress | None = None
        self.time_left = live.TimeLeft(steps)
        self.sent = 0.0

    def __enter__(self) -> "NodeProgress":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self.run and self.run.state == "running":
            stopped = isinstance(error, InterruptProcessingException)
            self.run.state = "stopped" if stopped else "failed" if error else "finished"
            self._send(self.run)

    def stage(self, stage: str) -> None:
        """Show what happens before the first step."""
        if self.node_id:
            self.run = self.run or self._begin(self.node_id, self.steps)
            self.run.stage = stage
            self._send(self.run)
        logger.info(f"Inlay finetune: {stage}")

    def __call__(self, step: int, loss: float) -> None:
        """Show a step's loss on the node, and every tenth of the training in the log."""
        now = time.monotonic()
        left = self.time_left.step_done(step)
        line = f"step {step} of {self.steps}, loss {loss:.4f}"
        if left is not None:
            line += f", {live.duration_text(left)} left"
        self.bar.update_absolute(step, self.steps)
        if self.node_id:
            self.run = self.run or self._begin(self.node_id, self.steps)
            self.run.stage, self.run.left = "", left
            self.run.add(step, loss)
            if now - self.sent > 0.25 or step == self.steps:
                self._send(self.run)
                self.sent = now
        if step % max(self.steps // 10, 1) == 0:
            logger.info(f"Inlay finetune: {line}")

    def show(self, step: int, picture: Tensor) -> None:
        """Show a sample (H, W, 3) in bytes on the node, at that step."""
        self.time_left.sample_done(step)
        image = Image.fromarray(picture.numpy())
        preview = ("JPEG", image, latent_preview.MAX_PREVIEW_RESOLUTION)
        self.bar.update_absolute(step, self.steps, preview)
        if self.run:
            self.run.add_sample(step, data_url(image))
            self._send(self.run, sample=True)

    def show_held_out(self, step: int, loss: float) -> None:
        """Add the loss on a held-out picture after that step; the next message to the page has it."""
        if self.run:
            self.run.held_out = [point for point in self.run.held_out if point[0] < step] + [(step, loss)]

    def show_stored(
        self,
        name: str,
        losses: Sequence[float],
        strip: Image.Image | None,
        held_out: Sequence[Sequence[float]] = (),
    ) -> None:
        """Show the curve and samples of a training that was done before."""
        logger.info(f"Inlay finetune: already learned, loaded {name}")
        if not self.node_id:
            return
        self.run = self._begin(self.node_id, len(losses))
        self.run.add_all(losses)
        self.run.held_out = [(int(step), loss) for step, loss in held_out]
        self.run.state, self.run.stage = "loaded", name
        if strip:
            self.run.add_sample(len(losses), data_url(strip, STRIP_PX))
        self._send(self.run, sample=True)

    def _begin(self, node_id: str, steps: int) -> live.TrainingProgress:
        return live.begin_progress(node_id, steps, self.workflow, self.notes)

    def _send(self, run: live.TrainingProgress, sample: bool = False) -> None:
        """To every page that is open, whoever queued the graph."""
        PromptServer.instance.send_sync(EVENT, run.news(sample))


def workflow_id(extra_pnginfo: dict | None) -> str:
    """Return the id of the workflow that a page queued, from the host's hidden input.

    Empty for other graphs.
    """
    workflow = (extra_pnginfo or {}).get("workflow") or {}
    return str(workflow.get("id") or "")
