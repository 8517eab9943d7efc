"""Copies of tensors that outlive an evaluation, and what to do where there is no room for them."""

import logging
from collections.abc import Callable

import torch

log = logging.getLogger("easycache")

CUDA_CODE = 2  # cudaErrorMemoryAllocation


def copy_for_cache(tensor: torch.Tensor, cache_device: str) -> torch.Tensor:
    """A copy that shares no memory with the caller's tensor, who may overwrite it at any time."""
    return tensor.detach().to("cpu" if cache_device == "cpu" else tensor.device, copy=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no room. Allocators, drivers and backends each have a way of saying so."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, getattr(torch, "AcceleratorError", ())) and getattr(error, "error_code", 0) == CUDA_CODE:
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in words or "can't allocate memory" in words)


class Retries:
    """What one run does where memory runs out in the network: memory may be short for a moment only, so the network
    runs once more; if it fails again, once more without the cache. Where that helped, the cache is freed at once from
    then on.
    """

    def __init__(self):
        self._cache_was_too_much = False

    def call(self, make: Callable, controllers: Callable[[], list], empty_cache: Callable = lambda: None):
        """make(). controllers: those of the run. empty_cache: hands back what the device's allocator keeps.

        Raises the error if no controller holds anything, and with other ranks: the network exchanges data with theirs,
        so one rank alone must not run it again.
        """
        keeping = not self._cache_was_too_much
        while True:
            try:
                return make()
            except Exception as error:
                holding = [one for one in controllers() if one.holds_tensors]
                if any(one.shared for one in holding) or not holding or not is_out_of_memory(error):
                    raise
            # Not in there: the error holds the tensors of what failed.
            if keeping:
                log.warning("EasyCache: out of memory; what failed is done again")
            else:
                log.warning("EasyCache: out of memory; the cache is freed and what failed is done again")
                self._cache_was_too_much = True
                for one in holding:
                    one.reset_cache()
            keeping = False
            empty_cache()
