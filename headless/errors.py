"""Errors between this package and the host, one sentence for the user each, and how a command ends."""

import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches

# Exit codes of the command lines: success, run failed, wrong arguments, no host, interrupted.
DONE, FAILED, WRONG, NO_HOST, STOPPED = 0, 1, 2, 3, 130


class HostError(RuntimeError):
    """Base of all errors of `headless`; `str(error)` is a sentence for the user."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return the end of a sentence about an unknown name: the most similar known names, ignoring case.

    >>> nearest("ksampler", ["KSampler", "VAEDecode"])
    'did you mean KSampler?'
    """
    by_fold = {other.casefold(): other for other in known}
    close = get_close_matches(name.casefold(), by_fold, count, cutoff=0.4)
    if close:
        return f"did you mean {' or '.join(by_fold[other] for other in close)}?"
    if not by_fold:
        return "there is none at all."
    listed = sorted(by_fold.values())
    return f"there is {', '.join(listed[:12])}{' and more' * (len(listed) > 12)}."


def end_process(code: int) -> None:
    """End this process with the exit code, without the clean-up of Python where a launcher started several.

    There torch's threads abort some of the processes that end as usual, after their work.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
