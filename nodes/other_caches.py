"""Other caches that work on the same model: their errors and ours would add up."""

import logging
import re
from collections.abc import Iterable, Sequence
from itertools import chain, combinations, dropwhile, groupby, starmap
from typing import NamedTuple

import torch

from ..easycache_core.samples import sample_of
from ..easycache_core.storage import is_out_of_memory
from .parametrisation import Parametrisation

log = logging.getLogger("easycache")

# As they name their wrappers, their options or the functions that they put into a model.
NAMES = {
    "easycache": "ComfyUI's built-in EasyCache or LazyCache node",
    "lazycache": "ComfyUI's built-in EasyCache or LazyCache node",
    "teacache": "TeaCache",
    "rel_l1_thresh": "TeaCache",
    "magcache": "MagCache",
    "wavespeed": "WaveSpeed",
    "fbcache": "WaveSpeed's first-block cache",
    "first_block_cache": "a first-block cache",
    "cachedit": "CacheDiT",
    "cache_dit": "CacheDiT",
    "dbcache": "CacheDiT",
    "taylorseer": "TaylorSeer",
    "spectrum": "Spectrum",
    "dicache": "DiCache",
    "nunchaku_cache": "Nunchaku's cache",
    "deepcache": "DeepCache",
    "adacache": "AdaCache",
    "blockcache": "BlockCache",
    "bwcache": "BWCache",
    "ertacache": "ERTACache",
    "fastercache": "FasterCache",
    "hicache": "HiCache",
    "meancache": "MeanCache",
    "smoothcache": "SmoothCache",
    "tgate": "T-GATE",
}
# Shorter ones are also in other words (tgate in output_gate, dicache in radicache): they count where a word begins.
# Words of the language count where a name begins: power_spectrum is another thing.
UNMISTAKABLE, ORDINARY = 8, {"spectrum"}
_WORD = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_INTRODUCING = {"comfy", "ui", "apply", "node", "nodes"}  # at the beginning of names
# The same answer at two noise levels, as a part of its size: networks, and rounding, are further apart.
REPEATED = 1e-6
# Where branches differ by less, as a part of their size, as near noise level 0, that they still do is nothing kept.
LEAST = 1e-3
# An answer as a combination of the TERMS before it: what remains, as a part of how far these are from it. A cache's is
# below 2e-5, a trained network's above 2e-3, a random one's above 8e-5.
TERMS = 3
PREDICTED = 3e-5
# The same for outputs in half precision, whose rounding remains, in eps of their type. Of a network's, one per run was
# near 3, the others above 4. So two have to be below 2, as most of those are that caches scale or put on a line.
COARSELY_PREDICTED = 2.0
HALVES = (torch.float16, torch.bfloat16)  # the coarser one last, as its numbers are mostly also among the others
SAMPLE_SIZE = 256  # elements
LEAST_SAMPLE = 48  # elements; a few terms can make any few of them
MAX_PAIRED = 8  # branches of which each pair is looked at
REPEATS = "is the one before: another cache repeats it"
PREDICTS = "is a combination of those before: another cache predicts it"


def other_caches(patcher, model_options: dict, own_key: str) -> list[str]:
    """Who else caches, by name, as far as names tell. patcher: a ModelPatcher. own_key: of our wrappers."""
    options = model_options.get("transformer_options", {})
    names = [key for key in options if key not in ("wrappers", "easycache_ranks")]
    for by_key in options.get("wrappers", {}).values():
        for key, wrappers in by_key.items():
            if key != own_key:
                names += [str(key), *map(_origin, wrappers)]
    patches = list(getattr(patcher, "object_patches", {}).values())
    patches += [one for layers in options.get("patches_replace", {}).values() for one in layers.values()]
    patches += [one for functions in options.get("patches", {}).values() for one in functions]
    for value in model_options.values():
        patches += value if isinstance(value, list) else [value]
    network = getattr(patcher.model, "diffusion_model", None)
    own = vars(network) if isinstance(network, torch.nn.Module) else {}
    names += own  # some set attributes of the network, and put another forward there
    patches += own.values()
    names += [_origin(one) for one in patches if callable(one)]
    return sorted({who for who in map(_who_is, map(str, names)) if who is not None})


def _who_is(name: str) -> str | None:
    """The first of NAMES that is in it: a cache names itself, and what it does, in one function's name."""
    parts = [[word.lower() for word in _WORD.findall(part)] for part in re.split(r"[\s./]+", name)]
    words = [word for part in parts for word in part]
    tails = ["".join(words[n:]) for n in range(len(words))]  # from the beginning of each word on
    whole = ["".join(dropwhile(_INTRODUCING.__contains__, part)) for part in parts]

    def has(mark: str) -> bool:
        if mark in ORDINARY:
            return any(one.startswith(mark) for one in whole)
        mark = mark.replace("_", "")
        return any(tail.startswith(mark) for tail in tails) if len(mark) < UNMISTAKABLE else mark in "".join(words)

    return next((who for mark, who in NAMES.items() if has(mark)), None)


def _origin(function) -> str:
    """Where a function comes from: its own name and those of the class and the module that hold it."""
    function = getattr(function, "func", function)  # of a functools.partial
    kind = function if hasattr(function, "__qualname__") else type(function)
    # ComfyUI names a pack's modules by the path of its folder, which says nothing above the last one.
    modules = kind.__module__.replace("\\", "/").split("/")[-1].split(".")[-2:]
    return f"{' '.join(modules)} {kind.__qualname__}"


def warn_of_other_caches(patcher, model_options: dict, own_key: str) -> list[str]:
    """Returns their names."""
    found = other_caches(patcher, model_options, own_key)
    for who in found:
        log.warning(f"EasyCache: the model also goes through {who}; two caches add up their errors, so use one of them")
    return found


class _Sample(NamedTuple):
    """Of one answer: some of D and of x, and sigma."""

    denoised: torch.Tensor
    x: torch.Tensor
    sigma: torch.Tensor


class _Kept(NamedTuple):
    """What a cache may keep of the answers of a branch, each (answers, elements), and sigma, (answers,).

    forms: denoised latents, their distances from x, and the network's outputs. output_per: by how much the output
    changes per unit of each of them, (answers, 1).
    """

    sigma: torch.Tensor
    forms: Sequence[torch.Tensor]
    output_per: Sequence[torch.Tensor]


def _repeated_level(branch: _Kept, other: _Kept | None = None) -> float | None:
    """The first noise level whose answer is the one before; with another branch, whose difference between the two is,
    which is what guidance makes use of.
    """
    sigma = branch.sigma
    if other is not None and (branch.forms[0].shape != other.forms[0].shape or not torch.equal(sigma, other.sigma)):
        return None
    same = torch.zeros_like(sigma[1:], dtype=torch.bool)
    for n, kept in enumerate(branch.forms):
        size = kept[1:].abs().amax(1)
        if other is not None:
            kept = kept - other.forms[n]
        change = kept.diff(dim=0).abs().amax(1)
        same |= (change <= REPEATED * size) & (kept[1:].abs().amax(1) > LEAST * size)
    same &= branch.forms[0][1:].any(1) & (sigma.diff() != 0)
    return next(iter(sigma[1:][same].tolist()), None)


def _predicted_level(branch: _Kept) -> float | None:
    """The first noise level whose answer is a combination of the TERMS before: they were scaled or extrapolated.

    What remains is measured in outputs of the network: at high noise levels denoised latents and their distances from x
    nearly are combinations, whatever the network says.
    """
    asked = torch.stack([(form != 0).any(0) for form in branch.forms]).all(0)  # elsewhere a few terms suffice
    finite = all(form.isfinite().all() for form in branch.forms)
    if len(branch.sigma) <= TERMS or asked.sum() < LEAST_SAMPLE or not finite:
        return None
    output = branch.forms[-1][:, asked]
    before, answer = _windows(output)
    change = torch.minimum((answer - before).abs().amax((1, 2)), answer.abs().amax((1, 2)))
    eps = _eps_of_halves(output[TERMS:])
    bound = change * torch.where(eps > 0, COARSELY_PREDICTED * eps, PREDICTED)
    sigma_before, sigma = _windows(branch.sigma[:, None])
    new = (sigma_before != sigma).all(2)[:, 0]  # some samplers ask the same again
    for form, output_per in zip(branch.forms, branch.output_per, strict=True):
        before, answer = _windows(form[:, asked])
        weights = torch.linalg.lstsq(before, answer, driver="gelsd").solution  # a driver that allows for equal terms
        remains = (answer - before @ weights).abs().amax((1, 2)) * output_per[TERMS:, 0].abs()
        predicted = (remains < bound) & new
        if predicted.sum() > 1 or (predicted & (eps == 0)).any():
            return branch.sigma[TERMS:][predicted][0].item()
    return None


def _windows(answers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The TERMS before each of these answers but the first ones, (answers - TERMS, elements, TERMS), and itself, with 1
    in place of TERMS. answers: (answers, elements).
    """
    windows = answers.unfold(0, TERMS + 1, 1)
    return windows[..., :-1], windows[..., -1:]


def _eps_of_halves(output: torch.Tensor) -> torch.Tensor:
    """The eps of the half precision that the network gave each of these outputs in, 0 where it gave it in none.

    output: (answers, elements), which went through a denoised latent. Returns (answers,).
    """
    found = torch.zeros_like(output[:, 0])
    for dtype in HALVES:
        eps = torch.finfo(dtype).eps
        off = (output - output.to(dtype)).abs().sum(1)  # of any other numbers a sixth of eps
        found[off <= 0.02 * eps * output.abs().sum(1)] = eps
    return found


def _first(levels: Iterable[float | None]) -> float | None:
    return next((level for level in levels if level is not None), None)


class Repetitions:
    """Looks for answers that were those at another noise level, or that are combinations of those before: what a cache
    repeats or predicts that lies anywhere between the sampler and the network. Some keep the network's output, some
    denoised latents, some distances of these from x, some what two branches differ by.

    Samples are compared once the sampler is through, all at once: on a GPU each comparison is a dozen kernels.
    """

    def __init__(self, conversion: Parametrisation):
        self._conversion = conversion
        self._samples: dict[str, list[_Sample]] = {}  # by branch
        self._level: float | None = None  # at which one was found
        self._says = REPEATS

    def note(self, branch: str, denoised: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> None:
        """The answer was computed. sigma: a scalar tensor. Does not wait for the device."""
        try:
            sample = _Sample(sample_of([denoised], SAMPLE_SIZE), sample_of([x], SAMPLE_SIZE), sigma.clone())
            self._samples.setdefault(branch, []).append(sample)
        except Exception as error:
            if not is_out_of_memory(error):
                raise

    def found(self) -> bool:
        """Whether there was any, once the sampler is through. Waits for the device."""
        try:
            kinds = [list(alike) for of in self._samples.values() for _, alike in groupby(of, lambda one: len(one.x))]
            branches = [self._kept(alike) for alike in kinds if len(alike) > 1]
            pairs = combinations(branches[:MAX_PAIRED], 2)
            self._level = _first(chain(map(_repeated_level, branches), starmap(_repeated_level, pairs)))
            if self._level is None:
                self._level, self._says = _first(map(_predicted_level, branches)), PREDICTS
        except Exception as error:  # a run that is through is not lost for this
            log.debug(f"EasyCache: answers cannot be compared: {type(error).__name__}: {error}")
        return self._level is not None

    def _kept(self, samples: list[_Sample]) -> "_Kept":
        # In double precision, which not all devices have: what remains of a combination is little.
        denoised, x, sigma = (torch.stack(each).cpu().double() for each in zip(*samples, strict=True))
        one = torch.ones_like(denoised[:, :1])
        per_denoised = self._conversion.network_output(one, torch.zeros_like(one), sigma)
        output = self._conversion.network_output(denoised, x, sigma)
        return _Kept(sigma, (denoised, denoised - x, output), (per_denoised, per_denoised, one))

    def warn(self) -> None:
        """Say where one was, if any was found."""
        if self._level is not None:
            log.warning(
                f"EasyCache: at noise level {self._level:.4g} the network's answer {self._says}, whose errors and ours "
                "add up; use one of them"
            )

    def close(self) -> None:
        """Free every tensor."""
        self._samples = {}
