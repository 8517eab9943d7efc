"""Every node of the host that makes a sampler, a guider, a schedule or a patched model, at a budget and at a threshold.

WAYS says on which tiny model a node is tried and with which inputs; what it does not name is filled in by type, or has
its default. A node that ComfyUI adds and that has no entry fails `test_no_node_is_left_out`.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import comfy_host
import patch_networks
import pytest
import tiny_models
import torch
from closeness import psnr
from host_source import node_ids
from streams import nested, streams

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 12
MADE = ("SAMPLER", "GUIDER", "SIGMAS", "MODEL")
SETTINGS = {
    "a budget of 2": dict(target_speedup=2.0),
    "threshold 0.3": dict(threshold=0.3),
    "threshold 0 is bit-identical": dict(threshold=0.0),
}


@dataclass(frozen=True)
class Way:
    """family: the tiny model. inputs: of the node; a function is called with (comfy, scene) for its value. latent: the
    shape to sample, if not the family's own; a list for several streams. mask: whether its noise is masked. sampled:
    what the sampling node gets. closer_than: in dB, of the uncached run.
    """

    family: str = "SD15"
    inputs: dict = field(default_factory=dict)
    latent: tuple | list[tuple] | None = None
    mask: bool = False
    sampled: dict = field(default_factory=dict)
    closer_than: float = 10.0


def way(family: str = "SD15", **inputs) -> Way:
    return Way(family, inputs)


def lora_of(comfy, scene) -> dict:
    """A LoRA of the tiny network, as its loader would read it."""
    rng, weights = torch.Generator().manual_seed(9), {}
    for name, weight in scene.model.model.diffusion_model.state_dict().items():
        if name.endswith(("to_q.weight", "to_v.weight")):
            layer = "diffusion_model." + name.removesuffix(".weight")
            weights[f"{layer}.lora_down.weight"] = torch.randn(4, weight.shape[1], generator=rng) * 0.3
            weights[f"{layer}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=rng) * 0.3
    return weights


def lora_file(comfy, scene) -> str:
    """Its file name among ComfyUI's."""
    from pathlib import Path

    import folder_paths
    from safetensors.torch import save_file

    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(lora_of(comfy, scene), folder / "every_node.safetensors")
    return "every_node.safetensors"


def picture(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(1))


def hidden_states(*_) -> tiny_models.Vision:
    shapes = tiny_models.Vision(all_hidden_states=(1, 21, 5, 1152), penultimate_hidden_states=(1, 5, 1152))
    return tiny_models.draw(shapes, torch.Generator().manual_seed(2))


LAYERS = dict(double_layers="0", single_layers="", start_percent=0.0, end_percent=1.0)
WINDOWS = dict(context_overlap=5, context_schedule="standard_static")
LONG_VIDEO = (1, 16, 8, 8, 8)

# With random weights its denoised latent leaps from step to step, and more so with guidance.
WILD = dict(sampled=dict(cfg=1.5), closer_than=7.0)

WAYS: dict[str, Way] = {
    # Samplers.
    **dict.fromkeys(
        ["KSamplerSelect", "SamplerEulerAncestral", "SamplerEulerAncestralCFGPP", "SamplerLMS", "SamplerDPMPP_3M_SDE",
         "SamplerDPMPP_2M_SDE", "SamplerDPMPP_SDE", "SamplerDPMPP_2S_Ancestral", "SamplerDPMAdaptative",
         "SamplerER_SDE", "SamplerSASolver", "SamplerSEEDS2", "SamplerLCM", "SamplerLCMUpscale", "SamplerEulerCFGpp"],
        Way(closer_than=0.0),  # most of them add noise
    ),
    "SamplerARVideo": Way("WAN21_CausalAR_T2V", sampled=dict(cfg=1.0)),
    "VOIDSampler": way("CogVideoX_Inpaint"),
    # Schedules.
    **dict.fromkeys(
        ["BasicScheduler", "KarrasScheduler", "ExponentialScheduler", "PolyexponentialScheduler", "LaplaceScheduler",
         "VPScheduler", "BetaSamplingScheduler", "SDTurboScheduler", "AlignYourStepsScheduler", "GITSScheduler"],
        way(),
    ),
    "SplitSigmas": way(step=STEPS - 2),
    "SplitSigmasDenoise": way(denoise=0.3),
    "FlipSigmas": Way(sampled=dict(add_noise=False, cfg=1.0), closer_than=0.0),  # each step goes further than the last
    "SetFirstSigma": way(sigma=20.0),
    "ExtendIntermediateSigmas": way(),
    "ManualSigmas": way(sigmas="14, 11, 8, 6, 4, 3, 2, 1.5, 1, 0.5, 0.2, 0"),
    "OptimalStepsScheduler": way("Flux"),
    "Flux2Scheduler": way("Flux2"),
    "LTXVScheduler": way("LTXV"),
    "Ideogram4Scheduler": way("Ideogram4"),
    # Guiders.
    **dict.fromkeys(["CFGGuider", "DualCFGGuider", "DualModelGuider", "BasicGuider", "PerpNegGuider"], way()),
    "LTXVDualCFGGuider": way("LTXAV"),
    # Patches of any model.
    **dict.fromkeys(
        ["CFGOverride", "RescaleCFG", "PerpNeg", "APG", "TCFG", "CFGZeroStar", "CFGNorm", "FreSca", "Mahiro",
         "Epsilon Scaling", "TemporalScoreRescaling", "RenormCFG", "ModelAttentionBackend", "SelectModelDevice",
         "MultiGPU_WorkUnits", "wanBlockSwap", "ModelMergeSimple", "ModelMergeBlocks"],
        way(),
    ),
    "ModelMergeSubtract": way(multiplier=-1.0),
    "ModelMergeAdd": Way(closer_than=0.0),  # weights of twice the size, which the network does not stand
    "ModelComputeDtype": way(dtype="bf16"),
    "LatentApplyOperationCFG": way(operation=lambda comfy, scene: comfy.node("LatentOperationTonemapReinhard", 1.0)[0]),
    "DifferentialDiffusion": Way(mask=True),
    "LoraModelLoader": way(lora=lora_of, bypass=True),
    "LoraLoaderBypass": way(lora_name=lora_file, clip=None),
    "LoraLoaderBypassModelOnly": way(lora_name=lora_file),
    # Of the UNets of Stable Diffusion.
    **dict.fromkeys(
        ["TomePatchModel", "FreeU", "FreeU_V2", "SelfAttentionGuidance", "PerturbedAttentionGuidance",
         "ModelSamplingDiscrete", "ModelSamplingContinuousEDM", "ModelSamplingContinuousV", "NAGuidance"],
        way(),
    ),
    "HyperTile": way(tile_size=32),
    "UNetSelfAttentionMultiply": way(q=1.1),
    "UNetCrossAttentionMultiply": way(q=1.1),
    "PatchModelAddDownscale": way(block_number=1),
    "UNetTemporalAttentionMultiply": Way("SVD_img2vid", dict(self_temporal=1.1), **WILD),
    "VideoLinearCFGGuidance": Way("SVD_img2vid", **WILD),
    "VideoTriangleCFGGuidance": Way("SVD_img2vid", **WILD),
    # Of other networks.
    "ModelSamplingStableCascade": way("Stable_Cascade_C"),
    "ModelSamplingSD3": way("SD3"),
    "ModelSamplingAuraFlow": way("AuraFlow"),
    "ModelSamplingFlux": way("Flux"),
    "ModelSamplingLTXV": way("LTXV"),
    "ModelNoiseScale": way("HiDreamO1", noise_scale=2.0),
    "SkipLayerGuidanceSD3": way("SD3", layers="0", end_percent=0.5),
    "SkipLayerGuidanceDiT": way("Flux", **LAYERS),
    "SkipLayerGuidanceDiTSimple": way("Flux", **LAYERS),
    "ScaleROPE": way("Flux", scale_x=1.1),
    "FluxKVCache": Way("Flux2", sampled=dict(cfg=1.0)),
    "MiniMaxH3SigmaShift": way("MiniMaxH3"),
    "LTXVModalityGuidance": way("LTXAV"),
    "LTXVSpatioTemporalGuidance": way("LTXV", blocks="0"),
    "ChromaRadianceOptions": way("ChromaRadiance", nerf_tile_size=32),
    "HiDreamO1PatchSeamSmoothing": way("HiDreamO1", start_percent=0.5),
    "WanAnimate2Cache": way("WAN_Animate2"),
    "ARVideoI2V": Way(
        "WAN21_CausalAR_T2V",
        dict(vae=patch_networks.vae("WAN21_T2V"), start_image=picture(1, 64, 64), width=64, height=64, length=13),
        sampled=dict(sampler="ar_video", cfg=1.0),
    ),
    "QwenImageDiffsynthControlnet": way(
        "QwenImage",
        model_patch=patch_networks.qwen_image,
        vae=patch_networks.vae("QwenImage"),
        image=picture(1, 128, 128),
    ),
    "ZImageFunControlnet": way(
        "ZImage", model_patch=patch_networks.z_image, vae=patch_networks.vae("ZImage"), image=picture(1, 128, 128)
    ),
    "WanUni3CControlnetApply": way(
        "WAN21_T2V",
        model_patch=patch_networks.uni3c,
        vae=patch_networks.vae("WAN21_T2V"),
        render_video=picture(5, 64, 64),
    ),
    "USOStyleReference": Way(
        "Flux", dict(model_patch=patch_networks.uso, clip_vision_output=hidden_states), sampled=dict(cfg=1.0)
    ),
    "LTXVReferenceAudio": way(
        "LTXAV",
        audio_vae=patch_networks.audio_vae,
        reference_audio=dict(waveform=torch.zeros(1, 2, 100), sample_rate=44100),
        start_percent=0.2,
        end_percent=0.7,
    ),
    "ContextWindowsManual": Way("WAN21_T2V", WINDOWS | dict(dim=2, context_length=4, context_overlap=2), LONG_VIDEO),
    "WanContextWindowsManual": Way("WAN21_T2V", WINDOWS | dict(context_length=13), LONG_VIDEO),
    "LTXVContextWindows": Way(  # windows of a video and its sound
        "LTXAV", WINDOWS | dict(context_length=25, context_overlap=9), [(1, 128, 8, 8, 8), (1, 8, 57, 16)]
    ),
}  # fmt: skip

# The others, and why.
NOT_TRIED = {
    "TorchCompileModel": "tests/host/test_torch_compile.py",
    "EasyCache": "another cache; tests/host/test_other_caches.py: it is warned of",
    "LazyCache": "another cache; tests/host/test_other_caches.py: it is warned of",
    "HypernetworkLoader": "takes a file of weights; it patches attention as UNetSelfAttentionMultiply does",
    "TrainLoraNode": "trains a LoRA, which LoraModelLoader applies",
    "ImageOnlyCheckpointLoader": "loads a model, and patches none",
    "SUPIRApply": "takes a network of its own, which only a checkpoint brings",
    "AnimaLLLiteApply": "takes a network of its own, which only a checkpoint brings",
    "WanInfiniteTalkToVideo": "takes a network of its own, which only a checkpoint brings",
    "TripoSplatSamplingPreview": "takes a decoder that only a checkpoint brings; it draws previews",
}

KNOWN = node_ids(comfy_host.find())
NODES = [name for name in [*WAYS, *NOT_TRIED] if name in KNOWN]


def makes(node) -> set[str]:
    """What of MADE a node class puts out."""
    return set(node.RETURN_TYPES) & set(MADE)


def test_no_node_is_left_out(comfy):
    """A node that a new ComfyUI brings must not go untested unnoticed."""

    def counts(node):
        ours = getattr(node, "RELATIVE_PYTHON_MODULE", "").startswith("comfy_extras.")
        # One for each architecture, with the names of its blocks.
        merges = any(base.__name__ == "ModelMergeBlocks" for base in node.__mro__[1:])
        return ours and makes(node) and not merges

    named = {name for name, node in comfy.classes.items() if counts(node)}
    assert named - set(NODES) == set(), "no entry"
    assert set(NODES) - set(comfy.classes) == set(), "no node"


def inputs_of(node, given: dict, comfy, scene, model, sigmas) -> dict:
    """By type where the entry says nothing: models, conditionings, schedules, and the first choice of a list."""
    inputs = {}
    for group in ("required", "optional"):
        for name, (kind, *options) in node.INPUT_TYPES().get(group, {}).items():
            options = options[0] if options else {}
            if name in given:
                value = given[name]
                inputs[name] = value(comfy, scene) if isinstance(value, Callable) else value
            elif kind == "MODEL":
                inputs[name] = model
            elif kind == "CONDITIONING":
                inputs[name] = scene.negative if name in ("negative", "empty_conditioning") else scene.positive
            elif kind == "SIGMAS":
                inputs[name] = sigmas
            elif name == "steps":
                inputs[name] = 10 if node.__name__ == "SDTurboScheduler" else STEPS
            elif group == "required" and "default" not in options:
                choices = [False] if kind == "BOOLEAN" else kind if isinstance(kind, list) else options.get("options")
                if choices:
                    inputs[name] = choices[0]
    return inputs


class Tried:
    """A node's runs: the latent's streams and how often the network ran at each noise level."""

    def __init__(self, comfy, scene, name):
        self._comfy, self._scene, self._name, self._way = comfy, scene, name, WAYS[name]
        self.latent = scene.latent
        if self._way.latent is not None:
            shapes = self._way.latent
            several = isinstance(shapes, list)
            self.latent = {"samples": nested(list(map(torch.zeros, shapes))) if several else torch.zeros(shapes)}
        if self._way.mask:
            mask = torch.linspace(0, 1, 16).expand(1, 16, 16)
            self.latent = comfy.node("SetLatentNoiseMask", {"samples": torch.ones(1, 4, 16, 16)}, mask)[0]
        self.plain, self.evaluations = self.run({}, False)

    def run(self, widgets: dict, cache_first: bool):
        comfy, scene = self._comfy, self._scene
        sigmas = comfy.node("BasicScheduler", scene.model, "simple", STEPS, 1.0)[0]

        conds = dict(positive=scene.positive, negative=scene.negative)  # some nodes put out others

        @torch.no_grad()
        def made(model):
            node = comfy.classes[self._name]
            inputs = inputs_of(node, self._way.inputs, comfy, scene, model, sigmas)
            outputs = dict(zip(getattr(node, "RETURN_NAMES", MADE), comfy.node(self._name, **inputs), strict=False))
            conds.update({name: value for name, value in outputs.items() if name in conds})
            return next(iter(outputs.values()))

        def cached(model):
            return comfy.cached(model, **widgets) if widgets else model

        kinds = makes(comfy.classes[self._name])
        if "MODEL" in kinds:
            model = made(cached(scene.model)) if cache_first else cached(made(scene.model))
        else:
            model = cached(scene.model)
        if kinds == {"GUIDER"}:
            guider = made(model)
            return self._counted(
                lambda: comfy.node("SamplerCustomAdvanced", comfy.node("RandomNoise", 5)[0], guider,
                                   comfy.node("KSamplerSelect", "euler")[0], sigmas, self.latent)[0]
            )  # fmt: skip
        sampled = dict(add_noise=True, cfg=4.0, sampler="euler") | self._way.sampled
        sampler = comfy.node("KSamplerSelect", sampled["sampler"])[0]
        if kinds == {"SAMPLER"}:
            sampler = made(model)
        if kinds == {"SIGMAS"}:
            sigmas = made(model)
        return self._counted(
            lambda: comfy.node("SamplerCustom", model, sampled["add_noise"], 5, sampled["cfg"], conds["positive"],
                               conds["negative"], sampler, sigmas, self.latent)[0]
        )  # fmt: skip

    def _counted(self, sample):
        latent, _ = self._scene.counting(sample)
        return streams(latent["samples"]), Counter(sigma for _, sigma, _ in self._scene.calls)


@pytest.fixture(scope="module")
def tried(comfy, tiny):
    return functools.cache(lambda name: Tried(comfy, tiny(WAYS[name].family), name))


@pytest.mark.verifies("nodes", "{settings}")
@pytest.mark.in_turn("settings")
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("node", NODES)
def test_right_or_computed_whole(tried, caplog, record_property, node, settings):
    """Catches a result that is far off, and a run in which nothing is skipped and no line says why."""
    if node in NOT_TRIED:
        pytest.skip(NOT_TRIED[node])
    of_node = tried(node)
    widgets = SETTINGS[settings]
    with caplog.at_level(logging.INFO):
        latent, evaluations = of_node.run(widgets, cache_first="threshold" in widgets)
    if widgets.get("threshold") == 0:
        assert all(map(torch.equal, latent, of_node.plain)) and evaluations == of_node.evaluations
        return
    assert all(stream.isfinite().all() for stream in latent)
    says = [line for line in caplog.messages if line.startswith("EasyCache: ")]
    if evaluations.total() < of_node.evaluations.total():
        assert all(psnr(*pair) > WAYS[node].closer_than for pair in zip(latent, of_node.plain, strict=True))
        return
    why = [line for line in says if "nothing was skipped" in line.lower() or "everything is computed" in line]
    assert why, f"nothing was skipped, and the log does not say why: {says}"
    assert all(map(torch.equal, latent, of_node.plain)), "computed whole, but not the same"
    record_property("computed whole", why[0].partition("othing was skipped: ")[2] or why[0].removeprefix("EasyCache: "))
