"""Write the example workflows and their thumbnails, from the definitions in this file.

python tools/make_workflows.py          in an environment that tools/comfy_host.py has prepared

File names, resolutions, guidance and shifts are those that the models' authors and ComfyUI's documentation recommend.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy_host
from comfy_server import scratch_server
from workflow_card import card, sketch
from workflow_graph import Graph, Node

FOLDER = comfy_host.PACK / "workflows"
CACHE = {"color": "#1f3d33", "bgcolor": "#2a5a4a"}
TEXT, VIDEO, PICTURE = (400, None), (560, 470), (560, 600)


@dataclass(frozen=True)
class File:
    """A model's file: its folder in ComfyUI's `models`, and its repository and path on Hugging Face."""

    folder: str
    repository: str
    path: str

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.repository}/resolve/main/{self.path}"


def split(repository: str, folder: str, name: str) -> File:
    """A file of the models that Comfy-Org has repackaged."""
    return File(folder, f"Comfy-Org/{repository}", f"split_files/{folder}/{name}.safetensors")


WAN, WAN22, HUNYUAN = "Wan_2.1_ComfyUI_repackaged", "Wan_2.2_ComfyUI_Repackaged", "HunyuanVideo_repackaged"
UMT5 = split(WAN, "text_encoders", "umt5_xxl_fp8_e4m3fn_scaled")
WAN_VAE = split(WAN, "vae", "wan_2.1_vae")

LIGHTHOUSE = """
A lighthouse on a rocky coast at dusk, its beam sweeping slowly over the water. Waves break against the rocks and throw
up spray, gulls circle the lantern room. Wide shot, steady camera, soft orange light on the horizon, fine detail.
"""
POTTER = """
A potter's hands shape a tall clay vase on a spinning wheel in a sunlit workshop. Wet clay glistens, the rim rises and
narrows under the fingers. Close-up, shallow depth of field, warm light from a window on the left.
"""
FLAWS = "blurry, low quality, compression artefacts, still image, overexposed, deformed hands, watermark, subtitles"


def load(graph: Graph, kind: str, **inputs) -> Node:
    """A loader. ComfyUI offers to download missing files from the addresses in the node's properties."""
    files = [value for value in inputs.values() if isinstance(value, File)]
    models = [{"name": file.name, "url": file.url, "directory": file.folder} for file in files]
    named = {name: value.name if isinstance(value, File) else value for name, value in inputs.items()}
    return graph.node(kind, size=TEXT, look={"properties": {"models": models}}, **named)


def easycache(graph: Graph, model, title: str = "", **widgets) -> Node:
    """An EasyCache (Adaptive) node, tall enough for the chart that the browser draws on it."""
    return graph.node("EasyCacheAdaptive", title, (360, 490), CACHE, model=model, **widgets)


def prompts(graph: Graph, clip, positive: str, negative: str = FLAWS) -> list[Node]:
    """The positive and the negative prompt."""
    return [
        graph.node("CLIPTextEncode", f"{name} prompt", TEXT, clip=clip, text=" ".join(text.split()))
        for name, text in (("Positive", positive), ("Negative", negative))
    ]


def video(graph: Graph, images, fps: float, name: str) -> list[Node]:
    """The nodes that save frames as a video."""
    made = graph.node("CreateVideo", images=images, fps=fps)
    return [made, graph.node("SaveVideo", size=VIDEO, video=made, filename_prefix=f"video/EasyCache_{name}")]


def note(graph: Graph, about: str, *files: File) -> Node:
    listed = "\n".join(f"- models/{file.folder}: [{file.name}]({file.url})" for file in files)
    return graph.note(f"{about}\n\n### Files\n\n{listed}" if files else about)


def instant_demo(graph: Graph) -> None:
    demo = graph.node("EasyCacheDemoModel", subject="rocket", background="night", camera="zoom-out")
    shifted = graph.node("ModelSamplingSD3", model=demo, shift=5.0)
    seed = graph.node("PrimitiveInt", "Seed for both", value=7)
    cached = easycache(graph, shifted)
    samplers = [
        graph.node(
            "KSampler", title, model=model, positive=demo["positive"], negative=demo["negative"],
            latent_image=demo["latent"], seed=seed, steps=20, cfg=2.5, sampler_name="euler", scheduler="simple",
        )
        for title, model in (("Uncached", shifted), ("With EasyCache", cached))
    ]  # fmt: skip
    decoded = [graph.node("EasyCacheDemoDecode", samples=sampler) for sampler in samplers]
    both = graph.node("ImageStitch", "Uncached | EasyCache", image1=decoded[0], image2=decoded[1], spacing_width=8)
    saved = graph.node("SaveAnimatedWEBP", size=(480, 480), images=both, filename_prefix="EasyCache_demo", fps=8.0,
                       lossless=True, quality=90, method="default")  # fmt: skip
    about = note(
        graph,
        """
        ## EasyCache, the instant demo

        Press **Run**. A tiny video model that comes with the pack draws the same video twice: on the left with every
        step computed, on the right with **EasyCache (Adaptive)** skipping the steps it can predict. The chart on the
        node and the log tell how many were skipped.

        Then turn the sliders:

        - **threshold** up: more steps are skipped, and the right video moves away from the left one.
        - **warmup_steps** up: safer composition, less speed-up.
        - **target_speedup** at 3: every third step is computed, whatever the threshold.

        The words in **EasyCache Demo Model** say what is drawn. The seed is shared by both samplers.

        To speed up your own workflow, put EasyCache (Adaptive) between your model and your sampler.
        """,
    )
    graph.columns(
        [("", [about])],
        [("Model and words", [demo, shifted, seed]), ("EasyCache", [cached])],
        [("Sample", samplers)],
        [("Decode and compare", [*decoded, both]), ("Save", [saved])],
    )


def wan_21_t2v(graph: Graph) -> None:
    network = split(WAN, "diffusion_models", "wan2.1_t2v_1.3B_fp16")
    model = load(graph, "UNETLoader", unet_name=network)
    clip = load(graph, "CLIPLoader", clip_name=UMT5, type="wan")
    vae = load(graph, "VAELoader", vae_name=WAN_VAE)
    positive, negative = prompts(graph, clip, LIGHTHOUSE)
    latent = graph.node("EmptyHunyuanLatentVideo", "Empty latent", width=832, height=480, length=81)
    shifted = graph.node("ModelSamplingSD3", model=model, shift=8.0)
    cached = easycache(graph, shifted, threshold=0.15, warmup_steps=2)
    sampled = graph.node("KSampler", model=cached, positive=positive, negative=negative, latent_image=latent, seed=1,
                         steps=30, cfg=6.0, sampler_name="uni_pc", scheduler="simple")  # fmt: skip
    decoded = graph.node("VAEDecode", samples=sampled, vae=vae)
    about = note(
        graph,
        """
        ## Wan 2.1 text to video, with EasyCache

        **EasyCache (Adaptive)** stands between the shift and the sampler. It is set to forecast steps as long as the
        error stays below **threshold** 0.15, after a warm-up of 2 steps. The chart on the node and the log tell how
        many were computed.

        - Not fast enough: **threshold** up to 0.25, or **target_speedup** 2.5 for 12 of the 30 steps, whatever the
          picture. Past 2.5 look closely at hands, faces and fast motion.
        - Composition differs from the uncached video: **threshold** down to 0.1, or **warmup_steps** up to 5.
        - To compare, set **threshold** to 0 and run again: every step is computed, with the same seed.

        The paper's own settings for Wan 2.1 are made for 50 steps: **steps** 50, **predictor** reuse, **threshold**
        0.05, **warmup_steps** 10. With 30 steps each one moves further: threshold 0.1 and warmup_steps 6 are a start
        for reuse.
        """,
        network, UMT5, WAN_VAE,
    )  # fmt: skip
    graph.columns(
        [("", [about])],
        [("Load models", [model, clip, vae]), ("Prompt", [positive, negative, latent])],
        [("EasyCache", [shifted, cached])],
        [("Sample", [sampled])],
        [("Decode and save", [decoded, *video(graph, decoded, 16.0, "wan21_t2v")])],
    )


def wan_21_i2v(graph: Graph) -> None:
    network = split(WAN, "diffusion_models", "wan2.1_i2v_480p_14B_fp16")
    vision_file = split(WAN, "clip_vision", "clip_vision_h")
    model = load(graph, "UNETLoader", unet_name=network)
    clip = load(graph, "CLIPLoader", clip_name=UMT5, type="wan")
    vae = load(graph, "VAELoader", vae_name=WAN_VAE)
    vision = load(graph, "CLIPVisionLoader", clip_name=vision_file)
    positive, negative = prompts(graph, clip, """
        The scene comes to life: gentle natural movement, hair and cloth stir in a light wind, the camera moves slowly
        closer. The subject stays the same.
    """)  # fmt: skip
    image = graph.node("LoadImage", "First frame", (TEXT[0], 470), image="example.png")
    seen = graph.node("CLIPVisionEncode", clip_vision=vision, image=image, crop="none")
    start = graph.node("WanImageToVideo", positive=positive, negative=negative, vae=vae, clip_vision_output=seen,
                       start_image=image, width=832, height=480, length=81)  # fmt: skip
    shifted = graph.node("ModelSamplingSD3", model=model, shift=3.0)
    cached = easycache(graph, shifted, threshold=0.15, warmup_steps=2)
    sampled = graph.node("KSampler", model=cached, positive=start["positive"], negative=start["negative"],
                         latent_image=start["latent"], seed=1, steps=40, cfg=5.0, sampler_name="uni_pc",
                         scheduler="simple")  # fmt: skip
    decoded = graph.node("VAEDecode", samples=sampled, vae=vae)
    about = note(
        graph,
        """
        ## Wan 2.1 image to video, with EasyCache

        Choose your picture in **First frame**. **EasyCache (Adaptive)** is set to forecast steps as long as the error
        stays below **threshold** 0.15, after a warm-up of 2 steps.

        - Not fast enough: **threshold** up to 0.25, or **target_speedup** 3 for 14 of the 40 steps, whatever the
          picture. Past 2.5 look closely at faces and fast motion.
        - Motion differs from the uncached video: **threshold** down to 0.1, or **warmup_steps** up to 6.
        - To compare, set **threshold** to 0 and run again: every step is computed, with the same seed.

        With **predictor** reuse, the paper's rule, start from **steps** 50, **threshold** 0.05 and **warmup_steps** 10,
        its authors' settings for Wan 2.1.
        """,
        network, UMT5, WAN_VAE, vision_file,
    )  # fmt: skip
    graph.columns(
        [("", [about])],
        [("Load models", [model, clip, vae, vision]), ("Prompt", [positive, negative])],
        [("First frame", [image, seen, start])],
        [("EasyCache", [shifted, cached])],
        [("Sample", [sampled])],
        [("Decode and save", [decoded, *video(graph, decoded, 16.0, "wan21_i2v")])],
    )


def wan_22_t2v(graph: Graph) -> None:
    networks = [
        split(WAN22, "diffusion_models", f"wan2.2_t2v_{noise}_noise_14B_fp8_scaled") for noise in ("high", "low")
    ]
    models = [load(graph, "UNETLoader", unet_name=network) for network in networks]
    clip = load(graph, "CLIPLoader", clip_name=UMT5, type="wan")
    vae = load(graph, "VAELoader", vae_name=WAN_VAE)
    positive, negative = prompts(graph, clip, POTTER)
    latent = graph.node("EmptyHunyuanLatentVideo", "Empty latent", width=832, height=480, length=81)
    shifted = [graph.node("ModelSamplingSD3", model=model, shift=8.0) for model in models]
    cached = [
        easycache(graph, model, title, target_speedup=speedup)
        for model, title, speedup in zip(
            shifted, ("EasyCache, high noise", "EasyCache, low noise"), (1.4, 2.0), strict=True
        )
    ]
    common = dict(positive=positive, negative=negative, steps=20, cfg=3.5, sampler_name="euler", scheduler="simple")
    high = graph.node("KSamplerAdvanced", "High noise: steps 1 to 10", model=cached[0], latent_image=latent,
                      noise_seed=1, start_at_step=0, end_at_step=10, add_noise="enable",
                      return_with_leftover_noise="enable", **common)  # fmt: skip
    low = graph.node("KSamplerAdvanced", "Low noise: steps 11 to 20", model=cached[1], latent_image=high,
                     start_at_step=10, end_at_step=10000, add_noise="disable", return_with_leftover_noise="disable",
                     **common)  # fmt: skip
    decoded = graph.node("VAEDecode", samples=low, vae=vae)
    about = note(
        graph,
        """
        ## Wan 2.2 14B text to video, an EasyCache for each half

        Wan 2.2 has two networks, and two samplers share the 20 steps: the first ten go to the high-noise network, which
        lays out composition and motion, the others to the low-noise network, which draws the detail. Each has its own
        **EasyCache (Adaptive)**, as nothing that is cached of one is of use to the other.

        Ten steps are few, so both are given a budget, by which one knows what is skipped: **target_speedup** 1.4 lets
        the first compute at most 8 of its 10 steps, 2.0 the second 5, together 13 of 20. The first and the last step
        of each half are always computed.

        - Not fast enough: **low noise** up to 2.5 (4 of 10). Only then **high noise** up to 2.
        - Composition or motion differ from the uncached video: **high noise** down to 1.2 (9 of 10), or to 1, which
          computes them all.
        - With more steps, say 40 with the halves split at 20, both can go up to 2 to 2.5.

        Step-distilled LoRAs (4 to 8 steps) leave nothing to skip; take EasyCache out there.
        """,
        *networks, UMT5, WAN_VAE,
    )  # fmt: skip
    graph.columns(
        [("", [about])],
        [("Load models", [*models, clip, vae]), ("Prompt", [positive, negative, latent])],
        [("High noise: EasyCache", [shifted[0], cached[0]]), ("Low noise: EasyCache", [shifted[1], cached[1]])],
        [("Sample", [high, low])],
        [("Decode and save", [decoded, *video(graph, decoded, 16.0, "wan22_t2v")])],
    )


def hunyuan_video(graph: Graph) -> None:
    network = split(HUNYUAN, "diffusion_models", "hunyuan_video_t2v_720p_bf16")
    clip_l = split(HUNYUAN, "text_encoders", "clip_l")
    llava = split(HUNYUAN, "text_encoders", "llava_llama3_fp8_scaled")
    vae_file = split(HUNYUAN, "vae", "hunyuan_video_vae_bf16")
    model = load(graph, "UNETLoader", unet_name=network)
    clip = load(graph, "DualCLIPLoader", clip_name1=clip_l, clip_name2=llava, type="hunyuan_video")
    vae = load(graph, "VAELoader", vae_name=vae_file)
    positive = graph.node("CLIPTextEncode", "Prompt", TEXT, clip=clip, text=" ".join(LIGHTHOUSE.split()))
    guided = graph.node("FluxGuidance", conditioning=positive, guidance=6.0)
    latent = graph.node("EmptyHunyuanLatentVideo", "Empty latent", width=848, height=480, length=73)
    shifted = graph.node("ModelSamplingSD3", model=model, shift=7.0)
    cached = easycache(graph, shifted, threshold=0.025, warmup_steps=5, predictor="reuse")
    noise = graph.node("RandomNoise", noise_seed=1)
    guider = graph.node("BasicGuider", model=cached, conditioning=guided)
    sampler = graph.node("KSamplerSelect", sampler_name="euler")
    sigmas = graph.node("BasicScheduler", model=cached, scheduler="simple", steps=50)
    sampled = graph.node("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas,
                         latent_image=latent)  # fmt: skip
    decoded = graph.node("VAEDecodeTiled", samples=sampled, vae=vae, tile_size=256, overlap=64)
    about = note(
        graph,
        """
        ## HunyuanVideo text to video, with the paper's EasyCache

        These are the settings that the EasyCache paper published for HunyuanVideo, which is sampled without CFG: 50
        Euler steps, **predictor** reuse, **threshold** 0.025, **warmup_steps** 5. Its authors report 2.2x on their
        GPUs.

        - Not fast enough: **threshold** up to 0.05, in small steps. The video moves away from the uncached one.
        - Nearer to the uncached video: **predictor** forecast with **threshold** 0.05. It holds three more latents in
          memory, and was closer in all our comparisons, which were made with small models.
        - For an even run time: **predictor** forecast with **target_speedup** 2, for 25 of the 50 steps.
        - With 30 steps each one moves further: for reuse start from **threshold** 0.05 and **warmup_steps** 3.
        - To compare, set **threshold** to 0 and run again: every step is computed, with the same seed.
        """,
        network, clip_l, llava, vae_file,
    )  # fmt: skip
    graph.columns(
        [("", [about])],
        [("Load models", [model, clip, vae]), ("Prompt", [positive, guided, latent])],
        [("EasyCache", [shifted, cached])],
        [("Sample", [noise, guider, sampler, sigmas, sampled])],
        [("Decode and save", [decoded, *video(graph, decoded, 24.0, "hunyuan_video")])],
    )


def flux(graph: Graph) -> None:
    checkpoint = File("checkpoints", "Comfy-Org/flux1-dev", "flux1-dev-fp8.safetensors")
    loaded = load(graph, "CheckpointLoaderSimple", ckpt_name=checkpoint)
    positive = graph.node("CLIPTextEncode", "Prompt", TEXT, clip=loaded["CLIP"], text=(
        "A small bookshop on a rainy street corner at night, its window glowing warm yellow. Reflections on wet "
        "cobblestones, a bicycle leaning by the door, a hand-painted sign above it that reads \"Second Chapter\"."
    ))  # fmt: skip
    guided = graph.node("FluxGuidance", conditioning=positive, guidance=3.5)
    negative = graph.node("ConditioningZeroOut", "No negative prompt", conditioning=positive)
    latent = graph.node("EmptySD3LatentImage", "Empty latent", width=1024, height=1024)
    cached = easycache(graph, loaded["MODEL"], target_speedup=2.0)
    sampled = graph.node("KSampler", model=cached, positive=guided, negative=negative, latent_image=latent, seed=1,
                         steps=28, cfg=1.0, sampler_name="euler", scheduler="simple")  # fmt: skip
    decoded = graph.node("VAEDecode", samples=sampled, vae=loaded["VAE"])
    saved = graph.node("SaveImage", size=PICTURE, images=decoded, filename_prefix="EasyCache_flux")
    about = note(
        graph,
        """
        ## FLUX.1 dev text to image, with EasyCache

        **EasyCache (Adaptive)** has a budget here: **target_speedup** 2 computes at most 14 of the 28 steps, where a
        skip would cost most, and forecasts the others. With a budget, **threshold** and **warmup_steps** have no say.

        - Not fast enough: **target_speedup** up to 2.5 (12 of 28); 3 and more for previews. Look closely
          at lettering then.
        - Nearer to the uncached picture: **target_speedup** down to 1.5 (19 of 28).
        - To let the picture decide: **target_speedup** 0, **threshold** 0.15 and **warmup_steps** 2.
        - To compare, set **target_speedup** to 1 and run again: every step is computed, with the same seed.

        FLUX.1 schnell with its 4 steps leaves nothing to skip.
        """,
        checkpoint,
    )
    graph.columns(
        [("", [about])],
        [("Load models", [loaded]), ("Prompt", [positive, guided, negative, latent])],
        [("EasyCache", [cached])],
        [("Sample", [sampled])],
        [("Decode and save", [decoded, saved])],
    )


def sdxl(graph: Graph) -> None:
    checkpoint = File("checkpoints", "stabilityai/stable-diffusion-xl-base-1.0", "sd_xl_base_1.0.safetensors")
    loaded = load(graph, "CheckpointLoaderSimple", ckpt_name=checkpoint)
    positive, negative = prompts(graph, loaded["CLIP"], """
        photograph of an old stone bridge over a mountain stream in autumn, golden larches, morning mist between the
        slopes, mossy boulders, soft light, fine detail
    """, "blurry, low quality, oversaturated, painting, frame, text, watermark")  # fmt: skip
    latent = graph.node("EmptyLatentImage", "Empty latent", width=1024, height=1024)
    cached = easycache(graph, loaded["MODEL"], threshold=0.15, warmup_steps=2)
    sampled = graph.node("KSampler", model=cached, positive=positive, negative=negative, latent_image=latent, seed=1,
                         steps=30, cfg=7.0, sampler_name="dpmpp_2m", scheduler="karras")  # fmt: skip
    decoded = graph.node("VAEDecode", samples=sampled, vae=loaded["VAE"])
    saved = graph.node("SaveImage", size=PICTURE, images=decoded, filename_prefix="EasyCache_sdxl")
    about = note(
        graph,
        """
        ## SDXL text to image, with EasyCache

        **EasyCache (Adaptive)** is set to forecast steps as long as the error stays below **threshold** 0.15, after a
        warm-up of 2 steps. The chart on the node and the log tell how many were computed.

        - Not fast enough: **threshold** up to 0.25, or **target_speedup** 2.5 for 12 of the 30 steps, whatever the
          picture.
        - Composition differs from the uncached picture: **threshold** down to 0.1, or **warmup_steps** up to 5.
        - To compare, set **threshold** to 0 and run again: every step is computed, with the same seed.

        Samplers that inject noise (names with *ancestral* or *sde*) leave little to forecast: few steps or none are
        skipped there. ControlNets and guidance add-ons are skipped together with the network.
        """,
        checkpoint,
    )
    graph.columns(
        [("", [about])],
        [("Load models", [loaded]), ("Prompt", [positive, negative, latent])],
        [("EasyCache", [cached])],
        [("Sample", [sampled])],
        [("Decode and save", [decoded, saved])],
    )


@dataclass(frozen=True)
class Workflow:
    """title: in its thumbnail; None where tools/result_thumbnails.py makes the thumbnail."""

    build: Callable[[Graph], None]
    title: str | None = None
    lines: tuple[str, ...] = ()
    computed: Sequence[bool] = ()
    frames: int = 3

    def thumbnail(self):
        return card(self.title, self.lines, self.computed, self.frames)


WORKFLOWS = {
    "EasyCache - instant demo": Workflow(instant_demo),
    "EasyCache - Wan 2.1 T2V": Workflow(
        wan_21_t2v, "Wan 2.1", ("text to video, 1.3B", "forecast by threshold"), sketch(30, 5, 3)
    ),
    "EasyCache - Wan 2.1 I2V": Workflow(
        wan_21_i2v, "Wan 2.1", ("image to video, 14B", "forecast by threshold"), sketch(40, 6, 3)
    ),
    "EasyCache - Wan 2.2 T2V": Workflow(
        wan_22_t2v, "Wan 2.2", ("text to video, 14B, high and low noise", "a budget for each half"),
        sketch(10, 4, 2) + sketch(10, 1, 2),
    ),
    "EasyCache - HunyuanVideo T2V": Workflow(
        hunyuan_video, "HunyuanVideo", ("text to video", "the paper's settings"), sketch(50, 5, 3)
    ),
    "EasyCache - FLUX.1 dev": Workflow(
        flux, "FLUX.1 dev", ("text to image", "a budget of forecasts"), sketch(28, 1, 2), frames=1
    ),
    "EasyCache - SDXL": Workflow(
        sdxl, "SDXL", ("text to image", "forecast by threshold"), sketch(30, 5, 3), frames=1
    ),
}  # fmt: skip


def files(object_info: dict) -> dict[str, str]:
    """The contents of the workflows' files by name."""
    written = {}
    for name, workflow in WORKFLOWS.items():
        graph = Graph(name, object_info)
        workflow.build(graph)
        written[name] = json.dumps(graph.saved(), indent=1, ensure_ascii=False) + "\n"
    return written


async def object_info() -> dict:
    """A real server's node definitions."""
    async with scratch_server() as server:
        return await server.get("/object_info")


def main() -> None:
    for name, text in files(asyncio.run(object_info())).items():
        (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")
        if WORKFLOWS[name].title:
            WORKFLOWS[name].thumbnail().save(FOLDER / f"{name}.jpg", quality=90)


if __name__ == "__main__":
    main()
