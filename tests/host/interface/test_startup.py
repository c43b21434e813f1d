"""What the pack costs when the host starts: none of the heavy libraries, and no seconds."""

import re
import subprocess
import sys

from inlay import dev

HEAVY = ("accelerate", "diffusers", "matplotlib", "peft", "skimage", "torchmetrics", "transformers")
# Of our own: modules that a node imports when it runs.
LATER = (
    "encoders.checkpoint_layouts",
    "encoders.image_context",
    "evaluation.score",
    "training.finetune.data",
    "training.finetune.finetune_subject",
    "training.finetune.trainer",
)

LOAD = (dev.PACK / "tests" / "programs" / "load_pack.py").read_text(encoding="utf-8")


def test_loading_the_pack_imports_nothing_heavy(comfyui_path, tmp_path):
    """After the host and its own nodes, as in a real start, so that only what we add is counted."""
    command = [sys.executable, "-c", LOAD, str(comfyui_path), str(dev.PACK)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    added = done.stdout.split()
    assert any(name.endswith(".nodes") for name in added)
    assert [name for name in added if name.split(".")[0] in HEAVY] == []
    assert [name for name in added if name.endswith(LATER)] == []
    assert all((dev.PACK / (name.replace(".", "/") + ".py")).is_file() for name in LATER)


def test_the_host_lists_the_pack_without_a_failure(server):
    log = server.log.read_text(encoding="utf-8")
    (line,) = re.findall(rf"seconds.*: .*{server.pack_folder().name}$", log, re.MULTILINE)
    print(line)
    assert "FAILED" not in line
