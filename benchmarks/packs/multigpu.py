"""ComfyUI-MultiGPU: a loader that puts parts of the network elsewhere (DisTorch); here all of them on the CPU."""

from works_with import Case

from . import common

FOLDER, NEEDS = "ComfyUI-MultiGPU", ("ComfyUI-GGUF",)


def cases(host):
    import folder_paths

    weights = host.module("nodes.demo").WEIGHTS
    folder_paths.add_model_folder_path("diffusion_models", str(weights))
    for kind in ("UNETLoaderMultiGPU", "UNETLoaderDisTorch2MultiGPU"):
        scene = common.video(host)
        widgets = dict(unet_name="easycache_demo_wan.safetensors", weight_dtype="default")
        widgets |= (
            dict(device="cpu") if kind == "UNETLoaderMultiGPU" else dict(compute_device="cpu", donor_device="cpu")
        )
        model = host.node(kind, **widgets)[0]
        scene = scene._replace(model=host.node("ModelSamplingSD3", model, 5.0)[0])
        yield Case(f"video, {kind}", *common.ksampler(host, scene))
