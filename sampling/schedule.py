"""Which steps are spent on the close-up and which on its surroundings."""

from torch import Tensor


def split_schedule(sigmas: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(close-up, surroundings): the first round(share * T) of the T steps, and the rest (DreamMix, sec. 3.2).

    A share between 0 and 1 leaves each part a step where there are two. sigmas (T + 1,), falling. Both parts
    hold the sigma at the switch; a part without steps is empty, so the share 0 gives (empty, sigmas) and 1
    gives (sigmas, empty). Raises ValueError for a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"close_up_share: {share} is no share; give a number from 0 to 1.")
    steps = max(len(sigmas) - 1, 0)
    switch = int(share * steps + 0.5)
    if 0 < share < 1 and steps > 1:
        switch = min(max(switch, 1), steps - 1)
    if switch == 0:
        return sigmas[:0], sigmas
    if switch == steps:
        return sigmas, sigmas[:0]
    return sigmas[: switch + 1], sigmas[switch:]
