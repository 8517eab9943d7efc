"""Training of tiny diffusion models: a resumable loop, optimisers and losses."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

EMA = 0.998
REPORTS = 10  # per training
SAVE_EVERY = 120.0  # seconds
# Without AVX512 bfloat16 is emulated on a CPU, and many times slower than float32.
HAS_BFLOAT16 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def half_precision(device: str = "cpu"):
    """Autocast to bfloat16 if the device has it, else to nothing."""
    return torch.autocast(device, torch.bfloat16, enabled=device != "cpu" or HAS_BFLOAT16)


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon(adjust_lr_fn="match_rms_adamw"), for convolutions, too, whose weights it takes as matrices.

    Weights of one shape are orthogonalised together: a few large multiplications instead of many small ones.
    """

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._stacks = {}
        for parameter in self.param_groups[0]["params"]:
            self._stacks.setdefault(parameter.flatten(1).shape, []).append(parameter)

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        for shape, weights in self._stacks.items():
            gradient = torch.stack([weight.grad.flatten(1) for weight in weights])
            state = self.state[weights[0]]
            if not state:
                state["velocity"] = torch.zeros_like(gradient)
            velocity = state["velocity"].lerp_(gradient, 1 - group["momentum"])
            update = self._orthogonal(gradient.lerp(velocity, group["momentum"])).to(gradient.dtype)
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            updates = [one.view_as(weight) for one, weight in zip(update.contiguous(), weights, strict=True)]
            torch._foreach_add_(weights, updates, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)

    @staticmethod
    def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
        """Five steps of Newton's and Schulz's iteration."""
        tall = matrices.shape[-2] > matrices.shape[-1]
        x = matrices.mT if tall else matrices
        x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
        x = x.bfloat16() if x.is_cuda or HAS_BFLOAT16 else x
        for _ in range(5):
            square = x @ x.mT
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        return x.mT if tall else x


def write(state: dict, file: Path) -> None:
    """A file that is whole, or the one from before, whenever training is cut off."""
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(file)


class Trainer:
    """Trains for so many seconds, or steps, at a learning rate that falls meanwhile; keeps a moving average.

    file: where it is kept how far training came, to go on from when it is started again; gone once it is through.
    """

    def __init__(
        self, name: str, modules: list[torch.nn.Module], optimisers: list, seconds: float = math.inf,
        steps: float = math.inf, file: Path | None = None,
    ):  # fmt: skip
        self.name, self.modules, self.optimisers = name, modules, optimisers
        self.seconds, self.steps, self._file = seconds, steps, file
        self._rates = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
        self._parameters = [p for module in modules for p in module.parameters()]
        self._average = [p.detach().clone() for p in self._parameters]
        self.step, self._spent_before = 0, 0.0
        if file is not None and file.exists():
            self._resume()

    def run(self, loss_of_next_batch) -> None:
        """Afterwards the modules have the averaged weights, and are frozen."""
        started, recent, reports = time.perf_counter(), [], 1
        spent = saved = self._spent_before
        while (done := max(spent / self.seconds, self.step / self.steps)) < 1:
            recent.append(self._learn(loss_of_next_batch, done))
            spent = self._spent_before + time.perf_counter() - started
            if self.step % 10:
                continue  # reading a loss waits for the GPU
            mean = torch.stack(recent).mean().item()
            if not math.isfinite(mean):
                raise FloatingPointError(f"{self.name}: the loss is not finite at step {self.step}")
            if done > reports / REPORTS:
                print(f"{self.name}: step {self.step} loss {mean:.4f} {spent:.0f} s", flush=True)
                reports += 1
                recent.clear()
            if self._file is not None and spent - saved > SAVE_EVERY:
                self._save(spent)
                saved = spent
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, self._average)
        for module in self.modules:
            module.eval().requires_grad_(False)
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        print(f"{self.name}: {self.step} steps, {sum(p.numel() for p in self._parameters):,} parameters")

    def _learn(self, loss_of_next_batch, done: float) -> torch.Tensor:
        fall = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))
        for optimiser, rate in zip(self.optimisers, self._rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * min(1.0, (self.step + 1) / 100) * fall
            optimiser.zero_grad(set_to_none=True)
        loss = loss_of_next_batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        with torch.no_grad():
            torch._foreach_lerp_(self._average, self._parameters, 1 - min(EMA, self.step / (self.step + 10)))
        return loss.detach()

    def _save(self, spent: float) -> None:
        state = {
            "modules": [module.state_dict() for module in self.modules],
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "average": self._average, "step": self.step, "spent": spent,
        }  # fmt: skip
        write(state, self._file)

    def _resume(self) -> None:
        state = torch.load(self._file, weights_only=True)
        for one, saved in zip(self.modules + self.optimisers, state["modules"] + state["optimisers"], strict=True):
            one.load_state_dict(saved)
        torch._foreach_copy_(self._average, state["average"])
        self.step, self._spent_before = state["step"], state["spent"]
        print(f"{self.name}: going on from step {self.step}")


def compile_blocks(blocks, loss_of_next_batch) -> None:
    """Compile the repeated blocks alone: they share their code, which takes seconds instead of minutes."""
    torch._dynamo.config.recompile_limit = 32  # one version per size of picture
    for block in blocks:
        block.compile(dynamic=False)
    for _ in range(2):
        loss_of_next_batch().backward()


def eager():
    """Checks run uncompiled: their batches have other sizes, each of which would be compiled anew."""
    return torch.compiler.set_stance("force_eager")


def adamw(parameters, rate):
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)


def muon_and_adamw(modules, is_matrix: Callable[[str, torch.Tensor], bool], rate: float = 4e-3, others: float = 1e-3):
    """Muon for the parameters (name, parameter) that are matrices, AdamW for the others.

    This trains faster than AdamW alone: a loss of 0.25 against 0.30 after 300 steps of a tiny video model.
    """
    named = [pair for module in modules for pair in module.named_parameters()]
    matrices = [parameter for name, parameter in named if is_matrix(name, parameter)]
    rest = [parameter for name, parameter in named if not is_matrix(name, parameter)]
    return [Muon(matrices, lr=rate), adamw(rest, rate=others)]


def _stratified_uniform(count: int, rng: torch.Generator) -> torch.Tensor:
    """Random numbers (count,), one in each of `count` equal parts of 0 to 1: each batch has all noise levels."""
    places = torch.arange(count, device=rng.device) + torch.rand(count, generator=rng, device=rng.device)
    return (places / count).clamp(1e-4, 1 - 1e-4)


def _noise_levels(count: int, shift: float, rng: torch.Generator, uniform: float) -> torch.Tensor:
    """Sigmas (count,) for flow matching: logit-normal, then shifted; that part of them uniform."""
    level = torch.special.ndtri(_stratified_uniform(count, rng)).sigmoid()
    level = shift * level / (1 + (shift - 1) * level)
    if not uniform:
        return level
    chosen = torch.rand(count, generator=rng, device=rng.device) < uniform
    return torch.where(chosen, torch.rand(count, generator=rng, device=rng.device).clamp(1e-3, 1), level)


def flow_matching_loss(
    velocity, latent: torch.Tensor, shift: float, rng: torch.Generator, uniform: float = 0.0
) -> torch.Tensor:
    """Mean squared error of velocity(x, sigma) from noise - latent, at x = (1 - sigma) latent + sigma noise.

    latent: (batch, channels, ...), on the generator's device. sigma: (batch,), random. shift: above 1, more of the
    batch is noisy. uniform: the part of the batch whose sigma is uniform instead.
    """
    sigma = _noise_levels(len(latent), shift, rng, uniform)
    noise = torch.randn(latent.shape, generator=rng, device=rng.device)
    level = sigma.view(-1, *[1] * (latent.ndim - 1))
    with half_precision(rng.device.type):
        answer = velocity((1 - level) * latent + level * noise, sigma)
    return (answer.float() - (noise - latent)).square().mean()


def noise_prediction_loss(noise_in, latent: torch.Tensor, model_sampling, rng: torch.Generator) -> torch.Tensor:
    """Mean squared error of noise_in(x, timestep) from the noise, at x = latent + sigma noise.

    Timesteps and the scale of x are those of ComfyUI's model_sampling. latent: (batch, channels, ...).
    """
    timestep = (_stratified_uniform(len(latent), rng) * len(model_sampling.sigmas)).long()
    sigma = model_sampling.sigmas[timestep]
    noise = torch.randn(latent.shape, generator=rng)
    noisy = model_sampling.noise_scaling(sigma, noise, latent)
    with half_precision():
        answer = noise_in(model_sampling.calculate_input(sigma, noisy), timestep)
    return (answer.float() - noise).square().mean()
