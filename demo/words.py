"""The demo model's prompts: four words, each with a fixed embedding.

Wan's text encoder gives the network vectors of 4096 numbers. Here the i-th word is the i-th unit vector times SCALE, so
no table has to be stored; the network's own text embedding learns the words.
"""

import torch

from .scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES

WIDTH = 4096
SCALE = 16.0
NOTHING = "nothing"  # the unconditional prompt, and the word for "anything goes"
WORDS = (NOTHING, *COLOURS, *SHAPES, *MOTIONS, *BACKGROUNDS)


def embed(words) -> torch.Tensor:
    """Text embeddings of words, (1, len(words), 4096). Raises KeyError naming an unknown word."""
    index = {word: i for i, word in enumerate(WORDS)}
    tokens = torch.zeros(1, len(words), WIDTH)
    for position, word in enumerate(words):
        tokens[0, position, index[word]] = SCALE
    return tokens


def unconditional() -> torch.Tensor:
    """The empty prompt for classifier-free guidance, (1, 4, 4096)."""
    return embed([NOTHING] * 4)
