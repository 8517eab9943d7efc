"""The demo model's prompts: three words, each with a fixed embedding.

Wan's text encoder gives the network vectors of 4096 numbers. Here the i-th word is the i-th unit vector times SCALE, so
no table has to be stored; the network's own text embedding learns the words.
"""

import torch

WIDTH = 4096
SCALE = 16.0
NOTHING = "nothing"  # the word of the empty prompt
SUBJECTS = (
    "alarm", "alien", "bat", "bee", "bomb", "butterfly", "chick", "clown", "cool", "cowboy", "crab", "crying",
    "dinosaur", "dog", "dolphin", "dragon", "eagle", "fire", "fish", "fox", "frog", "ghost", "heart", "hello", "horse",
    "hourglass", "kangaroo", "ladybug", "laughing", "lion", "lovestruck", "mindblown", "monkey", "octopus", "owl",
    "panda", "parrot", "party", "peacock", "penguin", "planet", "popper", "pufferfish", "pumpkin", "rabbit", "raccoon",
    "rainbow", "rocket", "santa", "sheep", "skull", "sleeping", "snowman", "star", "storm", "sun", "teddy", "thinking",
    "train", "turtle", "ufo", "unicorn", "whale", "zebra",
)  # fmt: skip
BACKGROUNDS = ("sky", "night", "meadow", "sunset", "mint", "lavender", "rays", "dots")
CAMERAS = ("still", "zoom-in", "zoom-out", "pan-left", "pan-right", "sway")
KINDS = (SUBJECTS, BACKGROUNDS, CAMERAS)  # of a prompt's words, in their order
WORDS = (NOTHING, *SUBJECTS, *BACKGROUNDS, *CAMERAS)


def embed(words) -> torch.Tensor:
    """Text embeddings of words, (1, len(words), 4096). Raises KeyError naming an unknown word."""
    index = {word: i for i, word in enumerate(WORDS)}
    return embed_numbers(torch.tensor([[index[word] for word in words]]))


def embed_numbers(numbers: torch.Tensor) -> torch.Tensor:
    """Text embeddings of words by their place in WORDS: (batch, n) to (batch, n, 4096)."""
    text = torch.zeros(*numbers.shape, WIDTH, device=numbers.device)
    return text.scatter_(2, numbers.unsqueeze(2), SCALE)


def unconditional() -> torch.Tensor:
    """The empty prompt for classifier-free guidance, (1, 3, 4096)."""
    return embed([NOTHING] * len(KINDS))
