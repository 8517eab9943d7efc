"""Every example of docs/attach.md that is marked as Python runs as it stands there."""

import re
from pathlib import Path

import diffusers
import pytest
import torch
from pipelines import build

import easycache_core  # noqa: F401  for the examples: a ComfyUI in this process takes the pack's root off the path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "attach.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def test_the_examples_are_there():
    """Catches a page whose examples the next test no longer finds."""
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs_and_skips_something(example, monkeypatch):
    """Catches an example that does not run, or that shows a cache which never skips."""
    subject = build("Wan")
    prompts = [subject.arguments[name] for name in ("prompt_embeds", "negative_prompt_embeds")]
    size = {name: value for name, value in subject.arguments.items() if "embeds" not in name}

    class Downloaded:
        """Stands for the download alone: the pipeline is a real one, small, and with its prompt encoded already."""

        transformer, scheduler = subject.pipe.transformer, subject.pipe.scheduler

        @staticmethod
        def from_pretrained(name, torch_dtype):
            return Downloaded()

        def __call__(self, prompt, **options):
            return subject.pipe(prompt_embeds=prompts[0], negative_prompt_embeds=prompts[1], **size, **options)

    monkeypatch.setattr(diffusers, "WanPipeline", Downloaded)
    names = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(example, str(PAGE), "exec"), names)
    if "attach" in names:
        assert names["cache"].skipped > 0
    else:
        assert 90 < names["sigma_of"](999) < 110 and names["sigma_of"](0) < 0.1
