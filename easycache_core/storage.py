"""Copies of tensors that outlive an evaluation, and what to do where there is no room for them."""

import torch

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
