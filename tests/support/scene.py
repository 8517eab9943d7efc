"""A model to sample with: conditionings, an empty latent, and a count of the network's real calls."""

from streams import streams


class Scene:
    """The network's calls are counted by a hook on the network itself, not taken from the pack's own counter."""

    def __init__(self, model, positive, negative, latent):
        self.model, self.positive, self.negative, self.latent = model, positive, negative, latent
        self.calls = []  # of each forward call of the network: (batch size, sigma, cond_or_uncond)
        self._hook = model.model.diffusion_model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module, args, kwargs):
        options = kwargs["transformer_options"]
        self.calls.append((len(streams(args[0])[0]), float(options["sigmas"][0]), tuple(options["cond_or_uncond"])))

    def leave_alone(self):
        """Count no longer."""
        self._hook.remove()

    def counting(self, run):
        """(result of run(), noise levels at which the network really ran)."""
        self.calls.clear()
        result = run()
        return result, sorted({sigma for _, sigma, _ in self.calls}, reverse=True)
