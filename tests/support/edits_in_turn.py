"""A sampler that asks two prompts in turn."""

import torch


def edit_in_turns(model, x, sigmas, extra_args=None, callback=None, disable=None, seed=3, bare=False):
    """The latent's picture is carried from the prompt "source" to the prompt "target", along the difference between
    what the two make of one noise, as flow-based editing does. It says in the options which one it asks.

    seed: of the noise. bare: "source" is asked with options of the sampler's own, in which nothing else is.
    """
    rng, start, options = torch.Generator().manual_seed(seed), model.latent_image.clone(), extra_args["model_options"]
    edited, one = start.clone(), x.new_ones([len(x)])
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        source = (1 - sigma) * start + sigma * torch.randn(x.shape, generator=rng)
        points = {"source": source, "target": edited + source - start}
        towards = {}
        for name, point in points.items():
            options["transformer_options"]["prompt in turn"] = name
            given = extra_args
            if bare and name == "source":
                given = {**extra_args, "model_options": {"transformer_options": {"prompt in turn": name}}}
            towards[name] = (point - model(point, sigma * one, **given)) / sigma
        edited = edited + (following - sigma) * (towards["target"] - towards["source"])
        if callback is not None:
            callback({"x": edited, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": edited})
    return edited
