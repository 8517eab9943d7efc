"""The demo model's language: a prompt is four words, each one row of a fixed embedding.

Wan's text encoder hands the network vectors of 4096 numbers; here word number i is the i-th unit vector
times a constant, so that no table has to be stored: the network's own text embedding learns the words.
"""

import torch

from .scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES

WIDTH = 4096
SCALE = 16.0
NOTHING = "nothing"  # the unconditional prompt, and the word for "anything goes"
WORDS = (NOTHING, *COLOURS, *SHAPES, *MOTIONS, *BACKGROUNDS)


def embed(words) -> torch.Tensor:
    """Words to (1, len(words), 4096) text embeddings; KeyError names an unknown word."""
    index = {word: i for i, word in enumerate(WORDS)}
    tokens = torch.zeros(1, len(words), WIDTH)
    for position, word in enumerate(words):
        tokens[0, position, index[word]] = SCALE
    return tokens


def unconditional() -> torch.Tensor:
    """The empty prompt, (1, 4, 4096): what classifier-free guidance steers away from."""
    return embed([NOTHING] * 4)
