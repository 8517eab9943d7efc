"""A transformer's blocks as one piece that a policy runs or leaves out, through ComfyUI's block replacement.

Before the blocks lies the embedding of the latent, behind them the output layer with the current noise level; both are
cheap, and the peers run them at every evaluation.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from comfy.patcher_extension import WrappersMP


class Policy(Protocol):
    """One sampling run's state. Tensors are (batch, tokens, width), those of one conditioning.

    branch: 0 for the positive conditioning, 1 for the negative; each has a state of its own.
    """

    def wants(self, step: int, branch: int, modulated: torch.Tensor) -> bool:
        """Whether the blocks should run. modulated: the first block's normalised input, modulated by the timestep."""

    def follow(self, branch: int, runs: bool) -> None:
        """The decision: the blocks run where any branch of the batch wants it."""

    def store(self, step: int, branch: int, entering: torch.Tensor, leaving: torch.Tensor) -> None:
        """What entered the blocks, and what left them."""

    def predict(self, step: int, branch: int, entering: torch.Tensor) -> torch.Tensor:
        """What would leave them."""


def with_policy(model, make: Callable[[int], Policy]):
    """A clone of a ModelPatcher that samples with make(number of steps), a new one each run."""
    patched = model.clone()
    trunk = _Trunk(patched.model.diffusion_model, make)
    for name, i in trunk.blocks:
        patched.set_model_patch_replace(trunk.block, "dit", name, i)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "peer", trunk.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "peer", trunk.predict_noise)
    return patched


class _Trunk:
    def __init__(self, network, make: Callable[[int], Policy]):
        self._network, self._make = network, make
        flux = hasattr(network, "double_blocks")
        doubles = network.double_blocks if flux else network.blocks
        singles = network.single_blocks if flux else ()
        self.blocks = [("double_block", i) for i in range(len(doubles))]
        self.blocks += [("single_block", i) for i in range(len(singles))]
        self._modulated = _modulated_in_flux if flux else _modulated_in_wan
        self._policy: Policy | None = None
        self._step = -1
        self._position = 0  # of the next block
        self._entering: torch.Tensor | None = None
        self._runs = True

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        self._policy, self._step = self._make(len(sigmas) - 1), -1
        try:
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            self._policy = self._entering = None

    def predict_noise(self, executor, *args, **kwargs):
        self._step += 1
        return executor(*args, **kwargs)

    def block(self, args: dict, extra: dict) -> dict:
        """Stands in for every block; ComfyUI calls it in their order."""
        if self._position == 0:
            self._branches = args["transformer_options"]["cond_or_uncond"]
            self._enter(args)
        self._position += 1
        answer = extra["original_block"](args) if self._runs else {"img": args["img"], "txt": args.get("txt")}
        if self._position == len(self.blocks):
            self._position = 0
            answer["img"] = self._leave(answer["img"])
        return answer

    def _enter(self, args: dict) -> None:
        self._entering = args["img"].clone()  # FLUX's blocks add in place
        modulated = self._modulated(self._network, args)
        wishes = [
            self._policy.wants(self._step, branch, part)
            for branch, part in zip(self._branches, self._parts(modulated), strict=True)
        ]
        self._runs = any(wishes)
        for branch in self._branches:
            self._policy.follow(branch, self._runs)

    def _leave(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: the prompt's first, in FLUX."""
        prompt = tokens.shape[1] - self._entering.shape[1]
        entering = self._parts(self._entering)
        if self._runs:
            leaving = self._parts(tokens[:, prompt:])
            for branch, before, after in zip(self._branches, entering, leaving, strict=True):
                self._policy.store(self._step, branch, before, after.clone())
            return tokens
        predicted = [
            self._policy.predict(self._step, branch, before)
            for branch, before in zip(self._branches, entering, strict=True)
        ]
        return torch.cat([tokens[:, :prompt], torch.cat(predicted)], 1)

    def _parts(self, batch: torch.Tensor):
        return batch.chunk(len(self._branches))


def _modulated_in_wan(network, args: dict) -> torch.Tensor:
    block = network.blocks[0]
    vec = args["vec"] if args["vec"].ndim == 4 else args["vec"].unsqueeze(1)
    shift, scale = (block.modulation.unsqueeze(0) + vec).unbind(2)[:2]
    return block.norm1(args["img"]) * (1 + scale) + shift


def _modulated_in_flux(network, args: dict) -> torch.Tensor:
    block = network.double_blocks[0]
    modulation, _ = block.img_mod(args["vec"])
    return block.img_norm1(args["img"]) * (1 + modulation.scale) + modulation.shift
