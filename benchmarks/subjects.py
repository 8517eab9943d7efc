"""The models that are sampled: tiny, trained, and in architectures that ComfyUI knows from full-sized ones.

video         the demo model that comes with the pack: Wan 2.1's architecture, a prompt of three words per seed
emoji         Noto's emoji by their names in FLUX's architecture, 98 M parameters (emoji/): eight per seed
emoji-small   the same with 2 M parameters and the faces alone, for a CPU
digits        handwritten digits in FLUX's architecture (digits/): ten pictures per seed, one of each digit
digits-unet   the same digits in Stable Diffusion 1.5's architecture, which predicts noise
sheet         smaller digits by a perceptron that takes less than a millisecond, for studies of many runs (sheet/)
"""

import abc
import time
from typing import NamedTuple

import numpy as np
import torch
from configurations import Configuration, configurations, lengths
from digits import model as digits
from emoji import model as emoji
from host import Host
from sheet import model as sheet
from trained import FOLDER

FRAMES, PICTURES = 2, 4  # of a small scene


class Scene(NamedTuple):
    """What a seed asks for, in ComfyUI's terms."""

    positive: list
    negative: list
    latent: dict


class Sampled(NamedTuple):
    pictures: np.ndarray  # (n, height, width, 3) in 0..1, not rounded to 8 bits
    evaluations: int
    seconds: float


class Subject(abc.ABC):
    """A model in ComfyUI whose network's evaluations are counted.

    Evaluations are counted inside the network, at its first layer: methods skip at several depths, and what they all
    spare is what lies behind. cond and uncond of one evaluation go through in one batch.
    """

    name: str
    configurations: list[Configuration]
    transformer = True  # the peers leave out a transformer's blocks

    def __init__(self, host: Host, model, first_layer: torch.nn.Module, last_layer: torch.nn.Module):
        self.host, self.model = host, model
        self._evaluations = 0
        self._noise, self._noise_source = 0.0, torch.Generator()
        first_layer.register_forward_pre_hook(self._count)
        last_layer.register_forward_hook(self._disturb)

    @classmethod
    def missing(cls) -> str:
        """What to do about weights that are not there; empty if nothing is missing."""
        return ""  # what comes with the pack needs nothing

    @classmethod
    def require_weights(cls) -> None:
        if missing := cls.missing():
            raise SystemExit(missing)

    def _count(self, *_):
        self._evaluations += 1

    def _disturb(self, _layer, _inputs, output):
        if self._noise:
            noise = torch.randn(output.shape, generator=self._noise_source).to(output.device)
            return output * (1 + self._noise * noise)

    @abc.abstractmethod
    def scene(self, seed: int) -> Scene:
        """What the seed asks for."""

    def small_scene(self, seed: int) -> Scene:
        """What the seed asks for, with few frames and pictures."""
        scene = self.scene(seed)
        latent = scene.latent["samples"]
        latent = latent[:, :, :FRAMES] if latent.ndim == 5 else latent[:PICTURES]

        def first(conditioning: list) -> list:
            size = len(latent)
            return [[cond[:size], {key: value[:size] for key, value in rest.items()}] for cond, rest in conditioning]

        return Scene(first(scene.positive), first(scene.negative), {"samples": latent})

    @abc.abstractmethod
    def decode(self, latents: dict) -> np.ndarray:
        """Pictures (n, height, width, 3) in 0..1."""

    @abc.abstractmethod
    def shifted(self, model, shift: float):
        """The model with that shift of its noise levels."""

    @property
    def shift(self) -> float:
        """Of its noise levels in the base configuration."""
        return self.configurations[0].shift

    def prepared(self, configuration: Configuration, dtype: str):
        """The model as the configuration has it, computing in that dtype ("fp32", "bf16")."""
        model = self.shifted(self.model, configuration.shift)
        return model if dtype == "fp32" else self.host.node("ModelComputeDtype", model, dtype)[0]

    def latent(self, model, scene: Scene, configuration: Configuration, seed: int):
        """The final latent. seed: of the start noise."""
        return self.host.node(
            "KSampler", model, seed, configuration.steps, configuration.cfg, configuration.sampler,
            configuration.scheduler, scene.positive, scene.negative, scene.latent,
        )[0]["samples"]  # fmt: skip

    def sample(self, model, scene: Scene, configuration: Configuration, seed: int) -> Sampled:
        """seed: of the start noise, and of the noise on the network's output."""
        self._evaluations, self._noise = 0, configuration.noise
        self._noise_source.manual_seed(seed)
        started = time.perf_counter()
        latent = self.latent(model, scene, configuration, seed)
        seconds = time.perf_counter() - started
        self._noise = 0.0
        return Sampled(self.decode({"samples": latent.cpu()}), self._evaluations, seconds)


class Video(Subject):
    name = "video"
    configurations = configurations(
        shift=5.0, cfg=2.5, other=dict(shift=8.0), strong=dict(shift=6.0, cfg=4.0),
        beta=dict(shift=4.0, cfg=3.5), quadratic=dict(cfg=4.0),
    )  # fmt: skip

    def __init__(self, host: Host):
        model = host.node("EasyCacheDemoModel", "rocket", "night", "zoom-out", 1)[0]
        network = model.model.diffusion_model
        super().__init__(host, model, network.blocks[0], network.head)
        self._words = host.module("demo.words")

    def scene(self, seed: int) -> Scene:
        rng = torch.Generator().manual_seed(seed)
        words = [kind[int(torch.randint(len(kind), (), generator=rng))] for kind in self._words.KINDS]
        return Scene(*self.host.node("EasyCacheDemoModel", *words, 1)[1:])

    def decode(self, latents: dict) -> np.ndarray:
        return self.host.node("EasyCacheDemoDecode", latents)[0].cpu().numpy()

    def shifted(self, model, shift: float):
        return self.host.node("ModelSamplingSD3", model, shift)[0]


class Flux(Subject):
    """In FLUX's architecture."""

    @staticmethod
    def _ends(network) -> tuple[torch.nn.Module, torch.nn.Module]:
        """First and last layer."""
        return network.double_blocks[0], network.final_layer

    def shifted(self, model, shift: float):
        return self.host.node("ModelSamplingAuraFlow", model, shift)[0]


class Emoji(Flux):
    name, variant, folder = "emoji", "large", FOLDER
    configurations = lengths(shift=2.0, cfg=3.5)
    pictures = 8

    def __init__(self, host: Host):
        model, self._codec, self._names = emoji.load(self.variant, self.folder)
        super().__init__(host, model, *self._ends(model.model.diffusion_model))

    @classmethod
    def missing(cls) -> str:
        file = emoji.weights(cls.variant, cls.folder)
        return "" if file.is_file() else f"{file} is missing: make it with `nox -s emoji -- --size {cls.variant}`"

    def scene(self, seed: int) -> Scene:
        rng = torch.Generator().manual_seed(seed)
        return self.scene_of([self._names[i] for i in torch.randperm(len(self._names), generator=rng)[: self.pictures]])

    @staticmethod
    def scene_of(names: list[str]) -> Scene:
        """A batch of what these names say."""

        def conditioning(names):
            context, pooled = emoji.prompts(names)
            return [[context, {"pooled_output": pooled}]]

        size = emoji.SIZE // emoji.CELL
        latent = torch.zeros(len(names), emoji.CHANNELS, size, size)
        return Scene(conditioning(names), conditioning([""] * len(names)), {"samples": latent})

    def decode(self, latents: dict) -> np.ndarray:
        return emoji.decode(self.model.model.process_latent_in(latents["samples"]), self._codec).numpy()


class EmojiSmall(Emoji):
    name, variant = "emoji-small", "small"


class Digits(Flux):
    name = "digits"
    configurations = configurations(
        shift=2.0, cfg=3.0, other=dict(shift=4.0), strong=dict(shift=3.0, cfg=4.0),
        beta=dict(shift=2.5, cfg=5.0), quadratic=dict(cfg=4.0),
    )  # fmt: skip
    architecture = "flux"

    def __init__(self, host: Host):
        model, self._codec = digits.load(self.architecture)
        super().__init__(host, model, *self._ends(model.model.diffusion_model))
        self._context, self._pooled = digits.prompts()

    @classmethod
    def missing(cls) -> str:
        weights = digits.ARCHITECTURES[cls.architecture].weights
        return "" if weights.is_file() else f"{weights} is missing: make it with `python3 -m nox -s digits`"

    def scene(self, seed: int) -> Scene:
        return self.scene_of(torch.arange(10))

    def scene_of(self, labels: torch.Tensor) -> Scene:
        """A batch of these digits."""

        def conditioning(label):
            return [[self._context[label], {"pooled_output": self._pooled[label]}]]

        size = digits.SIZE // digits.CELL
        latent = torch.zeros(len(labels), digits.CHANNELS, size, size)
        return Scene(conditioning(labels), conditioning(torch.full_like(labels, 10)), {"samples": latent})

    def decode(self, latents: dict) -> np.ndarray:
        pictures = digits.decode(self.model.model.process_latent_in(latents["samples"]), self._codec)
        return pictures[..., None].expand(-1, -1, -1, 3).numpy()


class DigitsUnet(Digits):
    name = "digits-unet"
    karras = dict(scheduler="karras")
    configurations = configurations(
        shift=0.0, cfg=3.0, other=karras, strong=dict(cfg=4.0, **karras), beta=dict(cfg=5.0), quadratic=dict(cfg=4.0)
    )
    architecture = "unet"
    transformer = False

    @staticmethod
    def _ends(network) -> tuple[torch.nn.Module, torch.nn.Module]:
        return network.input_blocks[0][0], network.out

    def shifted(self, model, shift: float):
        return model


class Sheet(Subject):
    name = "sheet"
    configurations = [Configuration("base", 20, "euler", "simple", 0.0, 4.0)]
    transformer = False

    def __init__(self, host: Host):
        model = sheet.load()
        super().__init__(host, model, model.model.diffusion_model.inlet, model.model.diffusion_model.outlet)

    def scene(self, seed: int) -> Scene:
        return Scene(*sheet.scene(seed))

    def decode(self, latents: dict) -> np.ndarray:
        return sheet.pictures(latents["samples"]).flatten(0, 1)[..., None].numpy()

    def shifted(self, model, shift: float):
        return model


SUBJECTS: dict[str, type[Subject]] = {
    subject.name: subject for subject in (Video, Emoji, EmojiSmall, Digits, DigitsUnet)
}
WITH_SHEET = SUBJECTS | {Sheet.name: Sheet}
