"""Values that reach a model's call from a CONDITIONING."""

import comfy.conds


def constant(value) -> comfy.conds.CONDConstant:
    """A value that is handed to the network as it is; prompts with other values run in other batches."""
    return comfy.conds.CONDConstant(value)
