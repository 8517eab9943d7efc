"""The EasyCache (Adaptive) node."""

from comfy_api.latest import io

from ..easycache_core import CacheConfig
from ..easycache_core.config import CACHE_DEVICES
from ..easycache_core.predictors import PREDICTORS
from .host_features import known_to
from .patch import with_cache
from .settings import Settings

# What people call it, or search for instead.
SEARCH_ALIASES = [
    "TeaCache", "MagCache", "First Block Cache", "WaveSpeed", "CacheDiT", "Spectrum", "LazyCache", "cache", "caching",
    "speed up", "speedup", "faster", "accelerate", "acceleration", "skip steps",
]  # fmt: skip


class EasyCacheAdaptive(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EasyCacheAdaptive",
            display_name="EasyCache (Adaptive)",
            category="EasyCache",
            description="Speeds up sampling by skipping network evaluations whose result can be predicted. "
            "Put it between the model (with its LoRAs and its shift) and the sampler.",
            **known_to(io.Schema, search_aliases=SEARCH_ALIASES),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to speed up, as the sampler would get it: with its LoRAs and its shift. It is "
                    "not changed; use this node's output.",
                ),
                io.Float.Input(
                    "threshold",
                    optional=True,
                    default=0.15,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="How large the estimated error of skipped steps may become before the network runs again. "
                    "Higher: more steps are skipped, and the result moves away from the uncached one. 0: nothing is "
                    "skipped. No effect while target_speedup is on.",
                ),
                io.Int.Input(
                    "warmup_steps",
                    optional=True,
                    default=2,
                    min=1,
                    max=50,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="The first steps are always computed: they lay out the picture. Higher: safer "
                    "composition, less speed-up. Take about a tenth to a fifth of the sampler's steps with reuse; "
                    "forecast needs less. No effect while target_speedup is on.",
                ),
                io.Combo.Input(
                    "predictor",
                    **known_to(io.Combo.Input, advanced=True),
                    options=list(PREDICTORS),
                    optional=True,
                    default="forecast",
                    tooltip="How skipped steps are filled in. forecast: follow the denoised picture along the noise "
                    "levels and correct the accumulated error of earlier forecasts; mostly much closer to the uncached "
                    "result. reuse: the EasyCache paper's rule, decision for decision.",
                ),
                io.Float.Input(
                    "target_speedup",
                    optional=True,
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    tooltip="Compute at most one in this many evaluations, 1 to 10: 2 for half of them, 3 for a third. "
                    "Higher: faster, and further from the uncached result. 0: off, the threshold decides. When it is "
                    "on, threshold and warmup_steps are ignored, and steps are computed where skipping them would cost "
                    "most.",
                ),
                io.Int.Input(
                    "max_consecutive_skips",
                    **known_to(io.Int.Input, advanced=True),
                    optional=True,
                    default=0,
                    min=0,
                    max=50,
                    tooltip="Run the network at the latest after this many skipped evaluations in a row. Higher: "
                    "longer gaps are allowed. 0: no limit, the threshold alone decides. A limit that target_speedup "
                    "leaves too few evaluations for has no effect.",
                ),
                io.Float.Input(
                    "start_percent",
                    **known_to(io.Float.Input, advanced=True),
                    optional=True,
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="No skipping before this part of the schedule. Higher: skipping starts later. "
                    "0: right after the warm-up. Where target_speedup leaves too few evaluations for it and "
                    "end_percent, neither has an effect, and the log says so.",
                ),
                io.Float.Input(
                    "end_percent",
                    **known_to(io.Float.Input, advanced=True),
                    optional=True,
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="No skipping after this part of the schedule. Higher: skipping goes on for longer. Lower: "
                    "the last, detail-drawing steps are all computed. 1: to the end; the last step is always computed.",
                ),
                io.Combo.Input(
                    "cache_device",
                    **known_to(io.Combo.Input, advanced=True),
                    options=list(CACHE_DEVICES),
                    optional=True,
                    default="gpu",
                    tooltip="Where cached tensors live. gpu: next to the latent, fastest. cpu: in main memory, which "
                    "saves a few latents' worth of video memory and costs copies at every step.",
                ),
                io.Boolean.Input(
                    "verbose",
                    **known_to(io.Boolean.Input, advanced=True),
                    optional=True,
                    default=False,
                    tooltip="Write one line per evaluation to the log: computed or skipped, and why. It makes the "
                    "sampler wait for the GPU at each step.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            # Without this ComfyUI would give two nodes of the same settings one model, and one history of runs.
            not_idempotent=True,
            outputs=[io.Model.Output(tooltip="The model with the cache. Connect it to the sampler.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        threshold: float = 0.15,
        warmup_steps: int = 2,
        predictor: str = "forecast",
        target_speedup: float = 0.0,
        max_consecutive_skips: int = 0,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        cache_device: str = "gpu",
        verbose: bool = False,
    ) -> io.NodeOutput:
        config = CacheConfig(
            threshold=threshold,
            warmup_steps=warmup_steps,
            predictor=predictor,
            target_speedup=target_speedup,
            max_consecutive_skips=max_consecutive_skips,
            cache_device=cache_device,
        )
        node = cls.hidden.unique_id if cls.hidden else None
        return io.NodeOutput(with_cache(model, Settings(config, start_percent, end_percent, verbose), node))
