"""Stop one process of a group by SIGTERM."""

import signal
import sys
from pathlib import Path

from inlay.headless.errors import end_process
from inlay.headless.finetune_cli import interrupt_between_steps, stop_handler
from inlay.training.finetune.trainer import close_group, open_group

signal.signal(signal.SIGTERM, stop_handler)
group, step = open_group(), 0
try:
    with interrupt_between_steps(lambda step, loss: None, group) as on_step:
        for step in range(1, 10):
            if group.number == 1 and step == 4:
                signal.raise_signal(signal.SIGTERM)
            on_step(step, 0.0)
except KeyboardInterrupt:
    (Path(sys.argv[1]) / f"stopped-{group.number}").write_text(str(step))
close_group(group)
end_process(0)
