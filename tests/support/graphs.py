"""Graphs of the bundled model for the browser tests, as Frontend.build takes them."""


def sampling(steps: int, seed: int, sampler: str = "euler", **widgets) -> list[dict]:
    """One EasyCache (Adaptive) node, node 3, and one sampler. widgets: of the former."""
    return [
        *_model(),
        {"type": "EasyCacheAdaptive", "at": [350, 50], "widgets": widgets, "inputs": {"model": [1, 0]}},
        {
            "type": "KSampler",
            "at": [700, 50],
            "widgets": {"seed": seed, "steps": steps, "cfg": 4.0, "sampler_name": sampler, "scheduler": "simple"},
            "inputs": {"model": [2, 0], "positive": [0, 1], "negative": [0, 2], "latent_image": [0, 3]},
        },
        *_output(3),
    ]


def two_stages(steps: int, seed: int, first: dict, second: dict) -> list[dict]:
    """As Wan 2.2 is sampled: a node and a sampler each for the high and for the low noise levels."""
    stages = []
    for number, widgets in enumerate((first, second)):
        sampler = {
            "add_noise": "disable" if number else "enable",
            "noise_seed": seed, "steps": steps, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple",
            "start_at_step": number * steps // 2,
            "end_at_step": (number + 1) * steps // 2,
            "return_with_leftover_noise": "disable" if number else "enable",
        }  # fmt: skip
        latent = [3, 0] if number else [0, 3]
        stages += [
            {
                "type": "EasyCacheAdaptive",
                "at": [350 + 340 * number, 50],
                "widgets": widgets,
                "inputs": {"model": [1, 0]},
            },
            {
                "type": "KSamplerAdvanced",
                "at": [350 + 340 * number, 650],
                "widgets": sampler,
                "inputs": {
                    "model": [2 + 2 * number, 0], "positive": [0, 1], "negative": [0, 2], "latent_image": latent,
                },
            },
        ]  # fmt: skip
    return [*_model(), *stages, *_output(5)]


def _model():
    yield {"type": "EasyCacheDemoModel", "at": [0, 50]}
    yield {"type": "ModelSamplingSD3", "at": [0, 350], "widgets": {"shift": 5.0}, "inputs": {"model": [0, 0]}}


def _output(sampler: int):
    yield {"type": "EasyCacheDemoDecode", "at": [1050, 50], "inputs": {"samples": [sampler, 0]}}
    yield {"type": "PreviewImage", "at": [1050, 200], "inputs": {"images": [sampler + 1, 0]}}
