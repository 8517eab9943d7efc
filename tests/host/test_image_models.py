"""Image models in their own architectures, tiny and with random weights: distilled guidance (FLUX) and eps (SD 1.5)."""

import pytest
import torch
from scene import Scene


def random_model(config, seed=0):
    """A ModelPatcher around a supported model with small random weights."""
    import comfy.model_management as management
    import comfy.model_patcher

    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.diffusion_model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return comfy.model_patcher.ModelPatcher(model, management.get_torch_device(), management.unet_offload_device())


@pytest.fixture(scope="module")
def flux(comfy):
    """FLUX.1 dev's architecture: guidance is an input of the network, so there is one branch only."""
    import comfy.supported_models

    config = comfy.supported_models.Flux(
        dict(image_model="flux", in_channels=16, out_channels=16, vec_in_dim=32, context_in_dim=48, hidden_size=64,
             mlp_ratio=2.0, num_heads=2, depth=1, depth_single_blocks=1, axes_dim=[8, 12, 12], theta=10000,
             patch_size=2, qkv_bias=True, guidance_embed=True)
    )  # fmt: skip
    cond = [[torch.randn(1, 6, 48), {"pooled_output": torch.randn(1, 32), "guidance": 3.5}]]
    return Scene(random_model(config), cond, cond, {"samples": torch.zeros(1, 16, 16, 16)})


@pytest.fixture(scope="module")
def unet(comfy):
    """Stable Diffusion 1.5's architecture: predicts eps; the sampler's latent is up to 15 times wider."""
    import comfy.supported_models

    config = comfy.supported_models.SD15(
        dict(image_size=32, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=[1, 1],
             channel_mult=[1, 2], transformer_depth=[1, 1], transformer_depth_middle=1,
             transformer_depth_output=[1, 1, 1, 1], context_dim=48, num_heads=4, use_spatial_transformer=True,
             use_linear_in_transformer=False, adm_in_channels=None, legacy=False, use_checkpoint=False,
             use_temporal_attention=False)
    )  # fmt: skip
    positive, negative = ([[torch.randn(1, 7, 48), {}]] for _ in range(2))
    return Scene(random_model(config), positive, negative, {"samples": torch.zeros(2, 4, 16, 16)})


@pytest.mark.parametrize(("name", "cfg"), [("flux", 1.0), ("unet", 1.0), ("unet", 7.0)])
def test_image_models(comfy, name, cfg, request):
    """Catches a cache tied to video latents or to two branches."""
    scene = request.getfixturevalue(name)
    plain, everywhere = scene.counting(lambda: comfy.sample(scene, cfg=cfg, steps=20))
    same = comfy.sample(scene, comfy.cached(scene.model, threshold=0.0), cfg=cfg, steps=20)
    assert torch.equal(plain, same)

    model = comfy.cached(scene.model, threshold=0.3)
    cached, levels = scene.counting(lambda: comfy.sample(scene, model, cfg=cfg, steps=20))
    assert len(everywhere) == 20 and len(levels) < 16
    assert cached.shape == plain.shape and cached.isfinite().all()


@pytest.mark.parametrize("name", ["flux", "unet"])
def test_a_reused_step_is_the_papers_rule_on_the_networks_own_input_and_output(comfy, name, request):
    """v_n = x_n + (v_i - x_i), with x as the network gets it: eps models scale the sampler's latent down first."""
    from comfy.patcher_extension import WrappersMP

    scene = request.getfixturevalue(name)
    sampling = scene.model.get_model_object("model_sampling")
    network, steps = [], []

    def note_network(module, args, kwargs, output):
        network.append((args[0], output))

    def note_step(executor, x, timestep, *args, **kwargs):
        before = len(network)
        denoised = executor(x, timestep, *args, **kwargs)
        steps.append((len(network) == before, network[-1], x, timestep, denoised))
        return denoised

    model = comfy.cached(scene.model, threshold=0.3)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "note", note_step)
    handle = scene.model.model.diffusion_model.register_forward_hook(note_network, with_kwargs=True)
    try:
        comfy.sample(scene, model, cfg=1.0, steps=20)
    finally:
        handle.remove()
    reused = [step[1:] for step in steps if step[0]]
    assert len(reused) > 4
    for (last_x, last_v), x, sigma, denoised in reused:
        predicted = sampling.calculate_input(sigma, x) + (last_v - last_x)
        expected = sampling.calculate_denoised(sigma, predicted, x)
        torch.testing.assert_close(denoised, expected, rtol=1e-3, atol=1e-3)
