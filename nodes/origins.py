"""Whose code a function is: ComfyUI's, or a pack's, which may do more than its name says."""

COMFY = ("comfy.", "comfy_extras.")


def is_code_of(function, modules: tuple[str, ...]) -> bool:
    """Whether the code that runs is in one of these modules, or packages, with a dot at the end."""
    module = _module_of(function)
    return any(module == one or (one.endswith(".") and module.startswith(one)) for one in modules)


def _module_of(function) -> str:
    """Where its code is; "" if that is not known. Names prove nothing: functools.wraps copies them."""
    module = getattr(function, "__globals__", {}).get("__name__", "")
    decorated = getattr(function, "__wrapped__", None)
    if decorated is None or not module.startswith("torch."):
        return module
    held = [cell.cell_contents for cell in function.__closure__ or ()]  # torch.no_grad calls what it decorates
    return _module_of(decorated) if any(one is decorated for one in held) else ""
