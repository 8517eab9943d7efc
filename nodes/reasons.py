"""Why a run skipped nothing, or computed more than its budget allows: parts of sentences of the log and the report.

When each of them holds is in account.py.
"""

# Nothing was skipped, and the settings are not to blame.
NOT_FINITE = "the latent or the network's output is NaN or inf"
DIFFERENTIATED = "its guider or sampler differentiates through the network, which no prediction can stand in for"
PARTS = "it asks about parts of the latent, one after the other, or at another size"
ANOTHER_LATENT = "the latent, or all of its noise, is another one at nearly every evaluation"
ALWAYS_NEW = "what is asked is new at every evaluation"
REARRANGED = "the latent that is asked about is turned or moved from step to step"
WINDOWS_MOVE = (
    "its context windows move from step to step, and answer otherwise in each place, which nothing forecasts: with "
    "context_schedule standard_static more can be skipped, and the result is closer"
)
ALWAYS_CHANGED = "prompts, options, keyframes or strengths of what is asked change at nearly every step"
WEIGHTS_CHANGE = "the network's weights change at nearly every step"

# More was computed than target_speedup allows.
IN_TURN = "as prompts or latents that take turns have a budget each"
FROM_NOT_FINITE = "as nothing can be predicted from NaN or inf"
BOTH_ENDS = "as the first and the last one are computed"
UNPREDICTABLE = "as what was asked could not be predicted from what was asked before"
FEWER_EVALUATIONS = "as the sampler took fewer evaluations than its schedule has steps"
LAST_UNKNOWN = "as what may be the last one is computed, and nothing told how many there would be"


def remembers(place: str) -> str:
    """place: in which the network keeps what one call leaves for the next."""
    return f"the network keeps what one call leaves for the next, in {place}"


def replaced_by(module: str) -> str:
    return f"{module} has replaced ComfyUI's calc_cond_batch, where the node sees what is asked"


def switches_by_itself(controlnet: str) -> str:
    """controlnet: the name of its class."""
    return f"a ControlNet ({controlnet}) decides by itself at which noise levels it changes"


def too_few_each(histories: int, evaluations: int) -> str:
    """histories: of prompts or latents that take turns."""
    return f"{histories} prompts or latents take turns in {evaluations} evaluations, too few for each"
