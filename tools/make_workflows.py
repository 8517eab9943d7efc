"""Write the example workflows with their thumbnails, and the blueprint, from the definitions in this file.

python tools/make_workflows.py          in an environment that tools/comfy_host.py has prepared

File names, resolutions, guidance and shifts are those that the models' authors and ComfyUI's documentation recommend.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy_host
from blueprint import blueprint
from comfy_server import scratch_server
from workflow_card import card, sketch
from workflow_graph import Graph, Node

FOLDER, BLUEPRINTS = comfy_host.PACK / "workflows", comfy_host.PACK / "subgraphs"
BLUEPRINT = "EasyCache sampling"
WRITTEN_ON = "0.3.75"  # of ComfyUI: others list other outputs of its nodes
NEWER = comfy_host.PACK / "tools" / "newer_nodes.json"  # from /object_info of ComfyUI 0.33
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


WAN, WAN22 = "Wan_2.1_ComfyUI_repackaged", "Wan_2.2_ComfyUI_Repackaged"
HUNYUAN, HUNYUAN15, QWEN = "HunyuanVideo_repackaged", "HunyuanVideo_1.5_repackaged", "Qwen-Image_ComfyUI"
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
BOOKSHOP = (
    "A small bookshop on a rainy street corner at night, its window glowing warm yellow. Reflections on wet "
    'cobblestones, a bicycle leaning by the door, a hand-painted sign above it that reads "Second Chapter".'
)
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


def beside(graph: Graph, title: str, left, right) -> Node:
    """Two pictures or animations as one."""
    return graph.node("ImageStitch", title, image1=left, image2=right, spacing_width=8)


def animation(graph: Graph, images, name: str, size: tuple[int, int]) -> Node:
    """The node that saves frames so that any frontend shows them as they are."""
    return graph.node("SaveAnimatedWEBP", size=size, images=images, filename_prefix=name, fps=8.0, lossless=True,
                      quality=90, method="default")  # fmt: skip


def note(graph: Graph, about: str, *files: File) -> Node:
    listed = "\n".join(f"- models/{file.folder}: [{file.name}]({file.url})" for file in files)
    return graph.note(f"{about}\n\n### Files\n\n{listed}" if files else about)


def in_columns(graph: Graph, about: Node, *, models, prompt, cache, sample, save) -> None:
    """The layout that most of the workflows have. All but about: lists of nodes."""
    graph.columns(
        [("", [about])],
        [("Load models", models), ("Prompt", prompt)],
        [("EasyCache", cache), ("Sample", sample)],
        [("Decode and save", save)],
    )


class DrawnTwice:
    """The demo model's video, drawn without the cache and with it.

    demo, shifted, seed, cached: nodes. samplers: the uncached one, and that with the cache.
    """

    def __init__(self, graph: Graph):
        self.demo = graph.node("EasyCacheDemoModel", subject="rocket", background="night", camera="zoom-out")
        self.shifted = graph.node("ModelSamplingSD3", model=self.demo, shift=5.0)
        self.seed = graph.node("PrimitiveInt", "Seed for both", value=7)
        self.cached = easycache(graph, self.shifted)
        self.samplers = [
            graph.node(
                "KSampler", title, model=model, positive=self.demo["positive"], negative=self.demo["negative"],
                latent_image=self.demo["latent"], seed=self.seed, steps=20, cfg=2.5, sampler_name="euler",
                scheduler="simple",
            )
            for title, model in (("Uncached", self.shifted), ("With EasyCache", self.cached))
        ]  # fmt: skip


def instant_demo(graph: Graph) -> None:
    drawn = DrawnTwice(graph)
    decoded = [graph.node("EasyCacheDemoDecode", samples=sampler) for sampler in drawn.samplers]
    both = beside(graph, "Uncached | EasyCache", *decoded)
    saved = animation(graph, both, "EasyCache_demo", (480, 480))
    about = note(
        graph,
        """
        ## EasyCache, the instant demo

        Press **Run**. A tiny video model that comes with the pack draws the same video twice: on the left with every
        step computed, on the right with **EasyCache (Adaptive)** skipping the steps it can predict. The last node on
        the right shows both. The chart on the node and the log tell how many were skipped.

        Then change the settings:

        - **threshold** up: more steps are skipped, and the right video moves away from the left one.
        - **warmup_steps** up: safer composition, less speed-up.
        - **target_speedup** at 3: at most every third step is computed, whatever the threshold.

        The words in **EasyCache Demo Model** say what is drawn. The seed is shared by both samplers.

        To speed up your own workflow, put EasyCache (Adaptive) between your model and your sampler.
        """,
    )
    graph.columns(
        [("", [about])],
        [("Model and words", [drawn.demo, drawn.shifted, drawn.seed]), ("EasyCache", [drawn.cached])],
        [("Sample", drawn.samplers)],
        [("Decode and compare", [*decoded, both]), ("Save", [saved])],
    )


def report_and_compare(graph: Graph) -> None:
    drawn = DrawnTwice(graph)
    report = graph.node("EasyCacheReport", model=drawn.cached, latent=drawn.samplers[1])
    decoded = [graph.node("EasyCacheDemoDecode", samples=latent) for latent in (drawn.samplers[0], report)]
    compared = graph.node("EasyCacheCompare", reference=decoded[0], candidate=decoded[1])
    both = beside(graph, "Uncached | EasyCache", *decoded)
    all_three = beside(graph, "... | difference", both, compared["difference"])
    plot = graph.node("PreviewImage", "What EasyCache did", (560, 400), images=report["plot"])
    numbers = graph.node("PreviewAny", "The run's numbers", (560, 180), source=report["report"])
    saved = animation(graph, all_three, "EasyCache_compare", (560, 280))
    near = graph.node("PreviewAny", "How near the pictures are", (560, 180), source=compared["report"])
    about = note(
        graph,
        """
        ## EasyCache, report and compare

        Press **Run**. The bundled video model draws the same video twice, with every step computed and with
        **EasyCache (Adaptive)**.

        - **EasyCache Report** shows what the cache did: which steps were computed, the estimated error below the
          threshold, and all numbers as JSON. It gets the model that the sampler gets, and the sampler's latent.
        - **EasyCache Compare** says how near the two videos are (PSNR, SSIM) and where they differ. A difference is
          enlarged; the picture says how many times. The node's own estimate is of the latent, whose dB are others.

        Turn **threshold** up, or set **target_speedup** to 3, run again, and watch both.

        No model of your own is needed. In your workflow, put the Report behind your sampler; Compare needs a second,
        uncached run with the same seed.
        """,
    )
    graph.columns(
        [("", [about]), ("Model and words", [drawn.demo, drawn.shifted, drawn.seed])],
        [("EasyCache", [drawn.cached]), ("Report and compare", [report, compared])],
        [("Sample", drawn.samplers), ("Decode", [*decoded, both, all_three])],
        [("What the cache did", [plot, numbers]), ("What came of it", [saved, near])],
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
    in_columns(graph, about, models=[model, clip, vae], prompt=[positive, negative, latent], cache=[shifted, cached],
               sample=[sampled], save=[decoded, *video(graph, decoded, 16.0, "wan21_t2v")])  # fmt: skip


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
        [("", [about]), ("First frame", [image, seen, start])],
        [("Load models", [model, clip, vae, vision]), ("Prompt", [positive, negative])],
        [("EasyCache", [shifted, cached]), ("Sample", [sampled])],
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
            shifted, ("EasyCache, high noise", "EasyCache, low noise"), (1.4, 2.1), strict=True
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

        Ten steps are few, so both are given a budget, by which one knows what is skipped, the presets *Wan 2.2 high
        noise* and *low noise*: **target_speedup** 1.4 lets the first compute at most 8 of its 10 steps, 2.1 the second
        5, together 13 of 20. The first and the last step
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
        [("Sample", [high, low]), ("Decode and save", [decoded, *video(graph, decoded, 16.0, "wan22_t2v")])],
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
    in_columns(graph, about, models=[model, clip, vae], prompt=[positive, guided, latent], cache=[shifted, cached],
               sample=[noise, guider, sampler, sigmas, sampled],
               save=[decoded, *video(graph, decoded, 24.0, "hunyuan_video")])  # fmt: skip


def flux(graph: Graph) -> None:
    checkpoint = File("checkpoints", "Comfy-Org/flux1-dev", "flux1-dev-fp8.safetensors")
    loaded = load(graph, "CheckpointLoaderSimple", ckpt_name=checkpoint)
    positive = graph.node("CLIPTextEncode", "Prompt", TEXT, clip=loaded["CLIP"], text=BOOKSHOP)
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
    in_columns(graph, about, models=[loaded], prompt=[positive, guided, negative, latent], cache=[cached],
               sample=[sampled], save=[decoded, saved])  # fmt: skip


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
    in_columns(graph, about, models=[loaded], prompt=[positive, negative, latent], cache=[cached], sample=[sampled],
               save=[decoded, saved])  # fmt: skip


def wan_22_5b(graph: Graph) -> None:
    network = split(WAN22, "diffusion_models", "wan2.2_ti2v_5B_fp16")
    vae_file = split(WAN22, "vae", "wan2.2_vae")
    model = load(graph, "UNETLoader", unet_name=network)
    clip = load(graph, "CLIPLoader", clip_name=UMT5, type="wan")
    vae = load(graph, "VAELoader", vae_name=vae_file)
    positive, negative = prompts(graph, clip, POTTER)
    latent = graph.node("Wan22ImageToVideoLatent", "Latent (a start image may be connected)", vae=vae, width=1280,
                        height=704, length=121)  # fmt: skip
    shifted = graph.node("ModelSamplingSD3", model=model, shift=8.0)
    cached = easycache(graph, shifted)
    sampled = graph.node("KSampler", model=cached, positive=positive, negative=negative, latent_image=latent, seed=1,
                         steps=20, cfg=5.0, sampler_name="uni_pc", scheduler="simple")  # fmt: skip
    decoded = graph.node("VAEDecode", samples=sampled, vae=vae)
    about = note(
        graph,
        """
        ## Wan 2.2 5B text or image to video, with EasyCache

        One network draws all steps here, so one **EasyCache (Adaptive)** is enough. It stands as it came: how many of
        the 20 steps are computed follows the picture. The chart on the node tells.

        - Not fast enough: **target_speedup** 2 for 10 of the 20 steps. UniPC uses each answer again, also one that was
          forecast, so look closely above that; *euler* bears more.
        - Motion differs from the uncached video: **threshold** down to 0.1, or **warmup_steps** up to 4.
        - To compare, set **threshold** to 0 and run again: every step is computed, with the same seed.

        For image to video, connect a LoadImage to **start_image**.
        """,
        network, UMT5, vae_file,
    )  # fmt: skip
    in_columns(graph, about, models=[model, clip, vae], prompt=[positive, negative, latent], cache=[shifted, cached],
               sample=[sampled], save=[decoded, *video(graph, decoded, 24.0, "wan22_5b")])  # fmt: skip


def hunyuan_video_15(graph: Graph) -> None:
    network = split(HUNYUAN15, "diffusion_models", "hunyuanvideo1.5_720p_t2v_fp16")
    qwen = split(HUNYUAN15, "text_encoders", "qwen_2.5_vl_7b_fp8_scaled")
    glyphs = split(HUNYUAN15, "text_encoders", "byt5_small_glyphxl_fp16")
    vae_file = split(HUNYUAN15, "vae", "hunyuanvideo15_vae_fp16")
    model = load(graph, "UNETLoader", unet_name=network)
    clip = load(graph, "DualCLIPLoader", clip_name1=qwen, clip_name2=glyphs, type="hunyuan_video_15")
    vae = load(graph, "VAELoader", vae_name=vae_file)
    positive, negative = prompts(graph, clip, LIGHTHOUSE, "")
    latent = graph.node("EmptyHunyuanVideo15Latent", "Empty latent", width=1280, height=720, length=121)
    shifted = graph.node("ModelSamplingSD3", model=model, shift=7.0)
    cached = easycache(graph, shifted)
    sampled = graph.node("KSampler", model=cached, positive=positive, negative=negative, latent_image=latent, seed=1,
                         steps=20, cfg=6.0, sampler_name="euler", scheduler="simple")  # fmt: skip
    decoded = graph.node("VAEDecodeTiled", samples=sampled, vae=vae)
    about = note(
        graph,
        """
        ## HunyuanVideo 1.5 text to video, with EasyCache

        Unlike HunyuanVideo it is sampled with CFG, so the paper's settings for that model do not fit. **EasyCache
        (Adaptive)** stands as it came: the picture decides how many of the 20 steps are computed, most often about
        half.

        - Not fast enough: **target_speedup** 2.5 for 8 of the 20 steps.
        - Nearer to the uncached video: **threshold** down to 0.05.
        - With the authors' 50 steps: **target_speedup** 3, for 17 of them, takes less time than 20 steps without a
          cache.
        - To compare, set **threshold** to 0 and run again: every step is computed, with the same seed.

        The step-distilled networks (8 and 12 steps) leave little or nothing to skip.
        """,
        network, qwen, glyphs, vae_file,
    )  # fmt: skip
    in_columns(graph, about, models=[model, clip, vae], prompt=[positive, negative, latent], cache=[shifted, cached],
               sample=[sampled], save=[decoded, *video(graph, decoded, 24.0, "hunyuan_video_15")])  # fmt: skip


def ltx_2(graph: Graph) -> None:
    checkpoint = File("checkpoints", "Lightricks/LTX-2", "ltx-2-19b-dev-fp8.safetensors")
    gemma = split("ltx-2", "text_encoders", "gemma_3_12B_it_fp4_mixed")
    loaded = load(graph, "CheckpointLoaderSimple", ckpt_name=checkpoint)
    clip = load(graph, "LTXAVTextEncoderLoader", text_encoder=gemma, ckpt_name=checkpoint)
    sound_vae = load(graph, "LTXVAudioVAELoader", ckpt_name=checkpoint)
    positive, negative = prompts(graph, clip, f"{LIGHTHOUSE} The sound of waves and wind, gulls cry.")
    guided = graph.node("LTXVConditioning", positive=positive, negative=negative, frame_rate=25.0)
    picture = graph.node("EmptyLTXVLatentVideo", "Empty video", width=768, height=512, length=97)
    sound = graph.node("LTXVEmptyLatentAudio", "Empty sound", frames_number=97, frame_rate=25.0, audio_vae=sound_vae)
    latent = graph.node("LTXVConcatAVLatent", "Video and sound", video_latent=picture, audio_latent=sound)
    cached = easycache(graph, loaded["MODEL"])
    noise = graph.node("RandomNoise", noise_seed=1)
    guider = graph.node("CFGGuider", model=cached, positive=guided["positive"], negative=guided["negative"], cfg=4.0)
    sampler = graph.node("KSamplerSelect", sampler_name="euler")
    sigmas = graph.node("LTXVScheduler", steps=20, latent=latent)
    sampled = graph.node("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas,
                         latent_image=latent)  # fmt: skip
    parts = graph.node("LTXVSeparateAVLatent", av_latent=sampled)
    frames = graph.node("VAEDecodeTiled", samples=parts["video_latent"], vae=loaded["VAE"])
    heard = graph.node("LTXVAudioVAEDecode", samples=parts["audio_latent"], audio_vae=sound_vae)
    made = graph.node("CreateVideo", images=frames, audio=heard, fps=25.0)
    saved = graph.node("SaveVideo", size=VIDEO, video=made, filename_prefix="video/EasyCache_ltx2")
    about = note(
        graph,
        """
        ## LTX-2 text to video with sound, with EasyCache

        Video and sound are sampled together. **EasyCache (Adaptive)** keeps an error for each of them, and the worse
        one decides, so the sound is not given up for the picture. That is why **threshold** is used here and no budget.

        - Not fast enough: **threshold** up to 0.25. With **target_speedup** listen to the sound, too.
        - Nearer to the uncached video: **threshold** down to 0.1.
        - To compare, set **threshold** to 0 and run again: every step is computed, with the same seed.

        This is the full network with 20 steps. The distilled LoRA takes 8 steps and the upscaling stage 3: there is
        nothing to skip there, so leave EasyCache out of them. Needs ComfyUI 0.8 or newer.
        """,
        checkpoint, gemma,
    )  # fmt: skip
    graph.columns(
        [("", [about]), ("Video and sound", [picture, sound, latent])],
        [("Load models", [loaded, clip, sound_vae]), ("Prompt", [positive, negative, guided])],
        [("EasyCache", [cached]), ("Sample", [noise, guider, sampler, sigmas, sampled])],
        [("Decode and save", [parts, frames, heard, made, saved])],
    )


def flux_2(graph: Graph) -> None:
    network = split("flux2-dev", "diffusion_models", "flux2_dev_fp8mixed")
    mistral = split("flux2-dev", "text_encoders", "mistral_3_small_flux2_bf16")
    vae_file = split("flux2-dev", "vae", "flux2-vae")
    model = load(graph, "UNETLoader", unet_name=network)
    clip = load(graph, "CLIPLoader", clip_name=mistral, type="flux2")
    vae = load(graph, "VAELoader", vae_name=vae_file)
    positive = graph.node("CLIPTextEncode", "Prompt", TEXT, clip=clip, text=BOOKSHOP)
    guided = graph.node("FluxGuidance", conditioning=positive, guidance=4.0)
    latent = graph.node("EmptyFlux2LatentImage", "Empty latent", width=1024, height=1024)
    cached = easycache(graph, model, target_speedup=2.0)
    noise = graph.node("RandomNoise", noise_seed=1)
    guider = graph.node("BasicGuider", model=cached, conditioning=guided)
    sampler = graph.node("KSamplerSelect", sampler_name="euler")
    sigmas = graph.node("Flux2Scheduler", steps=20, width=1024, height=1024)
    sampled = graph.node("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas,
                         latent_image=latent)  # fmt: skip
    decoded = graph.node("VAEDecode", samples=sampled, vae=vae)
    saved = graph.node("SaveImage", size=PICTURE, images=decoded, filename_prefix="EasyCache_flux2")
    about = note(
        graph,
        """
        ## FLUX.2 dev text to image, with EasyCache

        **EasyCache (Adaptive)** has a budget here: **target_speedup** 2 computes at most 10 of the 20 steps, so that
        every picture takes equally long. With a budget, **threshold** and **warmup_steps** have no effect and are grey.

        - Not fast enough: **target_speedup** up to 2.5 (8 of 20); 3 for previews. Look closely at lettering then.
        - Nearer to the uncached picture: **target_speedup** down to 1.5 (14 of 20).
        - To let the picture decide: **target_speedup** 0.
        - To compare, set **target_speedup** to 1 and run again: every step is computed, with the same seed.

        The turbo LoRA with its 8 steps leaves nothing to skip. If you change the size, change it in the scheduler, too.
        """,
        network, mistral, vae_file,
    )  # fmt: skip
    in_columns(graph, about, models=[model, clip, vae], prompt=[positive, guided, latent], cache=[cached],
               sample=[noise, guider, sampler, sigmas, sampled], save=[decoded, saved])  # fmt: skip


def qwen_image(graph: Graph) -> None:
    network = split(QWEN, "diffusion_models", "qwen_image_fp8_e4m3fn")
    qwen = split(QWEN, "text_encoders", "qwen_2.5_vl_7b_fp8_scaled")
    vae_file = split(QWEN, "vae", "qwen_image_vae")
    model = load(graph, "UNETLoader", unet_name=network)
    clip = load(graph, "CLIPLoader", clip_name=qwen, type="qwen_image")
    vae = load(graph, "VAELoader", vae_name=vae_file)
    positive, negative = prompts(graph, clip, BOOKSHOP, "")
    latent = graph.node("EmptySD3LatentImage", "Empty latent", width=1328, height=1328)
    shifted = graph.node("ModelSamplingAuraFlow", model=model, shift=3.1)
    cached = easycache(graph, shifted)
    sampled = graph.node("KSampler", model=cached, positive=positive, negative=negative, latent_image=latent, seed=1,
                         steps=20, cfg=4.0, sampler_name="euler", scheduler="simple")  # fmt: skip
    decoded = graph.node("VAEDecode", samples=sampled, vae=vae)
    saved = graph.node("SaveImage", size=PICTURE, images=decoded, filename_prefix="EasyCache_qwen_image")
    about = note(
        graph,
        """
        ## Qwen-Image text to image, with EasyCache

        **EasyCache (Adaptive)** stands as it came: the picture decides how many of the 20 steps are computed, most
        often about half. Positive and negative prompt are skipped together.

        - Not fast enough: **target_speedup** 2.5 for 8 of the 20 steps. Look closely at lettering then.
        - Nearer to the uncached picture: **threshold** down to 0.05.
        - With the authors' 50 steps: **target_speedup** 3, for 17 of them, takes less time than 20 steps without a
          cache.
        - To compare, set **threshold** to 0 and run again: every step is computed, with the same seed.

        The Lightning LoRAs (4 and 8 steps) leave nothing to skip; take EasyCache out there.
        """,
        network, qwen, vae_file,
    )  # fmt: skip
    in_columns(graph, about, models=[model, clip, vae], prompt=[positive, negative, latent], cache=[shifted, cached],
               sample=[sampled], save=[decoded, saved])  # fmt: skip


def z_image(graph: Graph) -> None:
    network = split("z_image", "diffusion_models", "z_image_bf16")
    qwen = split("z_image_turbo", "text_encoders", "qwen_3_4b")
    vae_file = split("z_image_turbo", "vae", "ae")
    model = load(graph, "UNETLoader", unet_name=network)
    clip = load(graph, "CLIPLoader", clip_name=qwen, type="lumina2")
    vae = load(graph, "VAELoader", vae_name=vae_file)
    positive, negative = prompts(graph, clip, BOOKSHOP, "")
    latent = graph.node("EmptySD3LatentImage", "Empty latent", width=1024, height=1024)
    shifted = graph.node("ModelSamplingAuraFlow", model=model, shift=3.0)
    cached = easycache(graph, shifted, target_speedup=1.8)
    sampled = graph.node("KSampler", model=cached, positive=positive, negative=negative, latent_image=latent, seed=1,
                         steps=25, cfg=4.0, sampler_name="res_multistep", scheduler="simple")  # fmt: skip
    decoded = graph.node("VAEDecode", samples=sampled, vae=vae)
    saved = graph.node("SaveImage", size=PICTURE, images=decoded, filename_prefix="EasyCache_z_image")
    about = note(
        graph,
        """
        ## Z-Image text to image, with EasyCache

        *res_multistep* uses each answer of the network again in the next step, also one that was forecast. So
        **EasyCache (Adaptive)** has a careful budget: **target_speedup** 1.8 computes at most 14 of the 25 steps.

        - Not fast enough: *euler* instead of *res_multistep*, and **target_speedup** up to 2.5 (10 of 25).
        - Nearer to the uncached picture: **target_speedup** down to 1.4 (18 of 25).
        - To compare, set **target_speedup** to 1 and run again: every step is computed, with the same seed.

        This is the base model. Z-Image-Turbo with its 8 steps leaves nothing to skip.
        """,
        network, qwen, vae_file,
    )  # fmt: skip
    in_columns(graph, about, models=[model, clip, vae], prompt=[positive, negative, latent], cache=[shifted, cached],
               sample=[sampled], save=[decoded, saved])  # fmt: skip


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
    "EasyCache - report and compare": Workflow(report_and_compare),
    "EasyCache - Wan 2.1 T2V": Workflow(
        wan_21_t2v, "Wan 2.1", ("text to video, 1.3B", "forecast by threshold"), sketch(30, 2, 3)
    ),
    "EasyCache - Wan 2.1 I2V": Workflow(
        wan_21_i2v, "Wan 2.1", ("image to video, 14B", "forecast by threshold"), sketch(40, 2, 3)
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
    "EasyCache - Wan 2.2 5B": Workflow(
        wan_22_5b, "Wan 2.2 5B", ("text or image to video", "forecast by threshold"), sketch(20, 2, 2)
    ),
    "EasyCache - HunyuanVideo 1.5 T2V": Workflow(
        hunyuan_video_15, "HunyuanVideo 1.5", ("text to video", "forecast by threshold"), sketch(20, 2, 2)
    ),
    "EasyCache - LTX-2 T2V": Workflow(
        ltx_2, "LTX-2", ("text to video with sound", "the worse of both decides"), sketch(20, 2, 2)
    ),
    "EasyCache - FLUX.2 dev": Workflow(
        flux_2, "FLUX.2 dev", ("text to image", "a budget of forecasts"), sketch(20, 1, 2), frames=1
    ),
    "EasyCache - Qwen-Image": Workflow(
        qwen_image, "Qwen-Image", ("text to image", "forecast by threshold"), sketch(20, 2, 2), frames=1
    ),
    "EasyCache - Z-Image": Workflow(
        z_image, "Z-Image", ("text to image", "a careful budget"), sketch(25, 3, 2), frames=1
    ),
    "EasyCache - SDXL": Workflow(
        sdxl, "SDXL", ("text to image", "forecast by threshold"), sketch(30, 2, 3), frames=1
    ),
}  # fmt: skip


def files(object_info: dict) -> dict[str, str]:
    """The contents of the workflows' files by name. object_info: of the bundled ComfyUI, as newer ones may have widgets
    that it does not know; NEWER adds the nodes that it lacks.
    """
    definitions = json.loads(NEWER.read_text(encoding="utf-8")) | object_info
    written = {}
    for name, workflow in WORKFLOWS.items():
        graph = Graph(name, definitions)
        workflow.build(graph)
        written[name] = json.dumps(graph.saved(), indent=1, ensure_ascii=False) + "\n"
    return written


def cached_sampling(object_info: dict) -> str:
    """The contents of the blueprint's file: a KSampler with the cache before it and the report behind it."""
    graph = Graph(BLUEPRINT, object_info)
    cached = easycache(graph, None)
    sampled = graph.node("KSampler", model=cached, steps=20, cfg=4.0, sampler_name="euler", scheduler="simple")
    report = graph.node("EasyCacheReport", model=cached, latent=sampled)
    graph.columns([("", [cached])], [("", [sampled])], [("", [report])])
    contents = blueprint(
        graph, BLUEPRINT,
        "A KSampler that skips the steps whose result EasyCache (Adaptive) can forecast, with a report of the run. "
        "Takes the place of a KSampler. Preview its plot to see the run, or open it: the chart is on the node inside.",
        ["EasyCache", "cached sampling", "cached KSampler", "TeaCache", "MagCache"],
        inputs=[(cached, "model"), (sampled, "positive"), (sampled, "negative"), (sampled, "latent_image"),
                (cached, "threshold"), (cached, "target_speedup"), (sampled, "seed"), (sampled, "steps"),
                (sampled, "cfg"), (sampled, "sampler_name"), (sampled, "scheduler"), (sampled, "denoise")],
        outputs=[(name, report[name]) for name in ("latent", "plot", "report")],
        size=(330, 330),
    )  # fmt: skip
    return json.dumps(contents, indent=1, ensure_ascii=False) + "\n"


async def object_info() -> dict:
    """A real server's node definitions."""
    async with scratch_server() as server:
        return await server.get("/object_info")


def main() -> None:
    known = asyncio.run(object_info())
    BLUEPRINTS.mkdir(exist_ok=True)
    (BLUEPRINTS / f"{BLUEPRINT}.json").write_text(cached_sampling(known), encoding="utf-8")
    for name, text in files(known).items():
        (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")
        if WORKFLOWS[name].title:
            WORKFLOWS[name].thumbnail().save(FOLDER / f"{name}.jpg", quality=90)


if __name__ == "__main__":
    main()
