"""What a user sees while something trains."""

import logging
import time
from collections.abc import Sequence

import comfy.utils
import latent_preview
from comfy.model_management import InterruptProcessingException
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..training.finetune import progress as live
from .page import add_get_route, data_url

EVENT, ROUTE = "inlay.training", "/inlay/training"


def add_route() -> None:
    """Lets a page that is opened half-way ask what is being trained."""

    async def trainings(query) -> list:
        return live.runs()

    add_get_route(ROUTE, trainings)


class Progress:
    """Step, loss and time left: on the node's bar, text and chart in the browser, and every tenth in the log.

    `notes` are warnings, which stay under the text; `workflow` is the id of the workflow with the node, see
    `workflow_id`. As a context it tells the chart how the training ended.
    """

    def __init__(self, steps: int, node_id: str | None, notes: Sequence[str] = (), workflow: str = ""):
        self.steps, self.node_id, self.notes, self.workflow = steps, node_id, notes, workflow
        self.bar = comfy.utils.ProgressBar(steps, node_id=node_id)
        self.run: live.Run | None = None  # nothing is shown of a training that was done before
        self.first: tuple[int, float] | None = None
        self.told = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self.run:
            stopped = isinstance(error, InterruptProcessingException)
            self.run.state = "stopped" if stopped else "failed" if error else "finished"
            self._tell(self.run)

    def __call__(self, step: int, loss: float) -> None:
        now = time.monotonic()
        self.first = self.first or (step, now)
        done, spent = step - self.first[0], now - self.first[1]
        left = spent / done * (self.steps - step) if done else 0.0
        line = f"step {step} of {self.steps}, loss {loss:.4f}, {left:.0f} s left"
        self.bar.update_absolute(step, self.steps)
        if self.node_id:
            self.run = self.run or live.begin(self.node_id, self.steps, self.workflow)
            self.run.add(step, loss)
            if now - self.told > 0.25 or step == self.steps:
                PromptServer.instance.send_progress_text("\n".join([line, *self.notes]), self.node_id)
                self._tell(self.run)
                self.told = now
        if step % max(self.steps // 10, 1) == 0:
            logging.info(f"Inlay finetune: {line}")

    def show(self, step: int, picture: Tensor) -> None:
        """A sample (H,W,3) in bytes on the node, at that step."""
        image = Image.fromarray(picture.numpy())
        preview = ("JPEG", image, latent_preview.MAX_PREVIEW_RESOLUTION)
        self.bar.update_absolute(step, self.steps, preview)
        if self.run:
            self.run.add_sample(step, data_url(image))
            self._tell(self.run, sample=True)

    def _tell(self, run: live.Run, sample: bool = False) -> None:
        """To every page that is open, whoever queued the graph."""
        PromptServer.instance.send_sync(EVENT, run.news(sample))


def workflow_id(extra_pnginfo: dict | None) -> str:
    """The id of the workflow that a page queued, from the host's hidden input; empty for other graphs."""
    workflow = (extra_pnginfo or {}).get("workflow") or {}
    return str(workflow.get("id") or "")
