"""Define the errors between this package and the host; every message is one sentence for the user."""

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
