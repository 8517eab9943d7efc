"""ComfyUI-GGUF: quantised weights, which are turned into plain ones at each operation, with a LoRA and without.

Needs the package gguf.
"""

import tempfile
from pathlib import Path

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI-GGUF"
LORA_RANK = 4


def cases(host):
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("Q8_0", "Q4_0", "BF16"):
            scene = quantised(host, Path(folder), kind)
            yield Case(f"video, {kind}", *common.ksampler(host, scene))
        scene = quantised(host, Path(folder), "Q8_0")
        yield Case("video, Q8_0, dpmpp_2m", *common.ksampler(host, scene, "dpmpp_2m"))
        yield Case("video, Q8_0, LoRA", *common.ksampler(host, scene._replace(model=with_lora(scene.model))))
        yield Case("video, Q8_0, LoRA after ours", *common.ksampler(host, scene, patch=with_lora))


def quantised(host, folder: Path, kind: str):
    """The bundled video model, written to a file of that kind and loaded by the pack."""
    import folder_paths
    import gguf

    scene, path = common.video(host), folder / f"{kind}.gguf"
    if not path.is_file():
        writer, wanted = gguf.GGUFWriter(path, "wan"), gguf.GGMLQuantizationType[kind]
        for name, weight in scene.model.model.diffusion_model.state_dict().items():
            block = gguf.GGML_QUANT_SIZES[wanted][0]
            fits = weight.ndim == 2 and weight.shape[-1] % block == 0 and "modulation" not in name
            used = wanted if fits else gguf.GGMLQuantizationType.F32
            if weight.ndim > 4:  # more than the format has
                writer.add_array(f"comfy.gguf.orig_shape.{name}", [int(size) for size in weight.shape])
                weight = weight.flatten(0, weight.ndim - 4)
            values = gguf.quantize(weight.float().numpy(), used)
            writer.add_tensor(name, values, raw_dtype=used)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    folder_paths.add_model_folder_path("diffusion_models", str(folder))
    model = host.node("UnetLoaderGGUF", path.name)[0]
    return scene._replace(model=host.node("ModelSamplingSD3", model, 5.0)[0])


def with_lora(model):
    """The model with a random LoRA on all of its linear layers."""
    import comfy.lora
    import comfy.lora_convert

    rng, weights = torch.Generator().manual_seed(3), {}
    for name, layer in model.model.diffusion_model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            prefix = f"diffusion_model.{name}."
            weights[prefix + "lora_down.weight"] = torch.randn(LORA_RANK, layer.in_features, generator=rng) * 0.03
            weights[prefix + "lora_up.weight"] = torch.randn(layer.out_features, LORA_RANK, generator=rng) * 0.03
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    patched = model.clone()
    patched.add_patches(comfy.lora.load_lora(comfy.lora_convert.convert_lora(weights), keys), 1.0)
    return patched
