"""Bad settings are refused with a sentence that names the field and its range."""

import dataclasses
import math

import pytest

from easycache_core import CacheConfig, CacheController


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.01, 1.01, "0.1", None, True])
def test_threshold_outside_its_range(value):
    with pytest.raises(ValueError, match="threshold must be a number from 0 to 1"):
        CacheConfig(threshold=value)


@pytest.mark.parametrize("value", [0, -1, 51, 2.5, None])
def test_warmup_outside_its_range(value):
    with pytest.raises(ValueError, match="warmup_steps must be a whole number from 1 to 50"):
        CacheConfig(warmup_steps=value)


@pytest.mark.parametrize("value", [math.nan, -1, 0.5, 12, "2", None, False, True])
def test_target_speedup_outside_its_range(value):
    """Catches a message that names a range in which there are numbers that are refused, too."""
    with pytest.raises(ValueError, match=r"target_speedup must be 0 \(off\) or a number from 1 to 10"):
        CacheConfig(target_speedup=value)


@pytest.mark.parametrize(
    ("field", "value"), [("predictor", "guess"), ("cache_device", "disk"), ("max_consecutive_skips", -1)]
)
def test_other_fields(field, value):
    with pytest.raises(ValueError, match=field):
        CacheConfig(**{field: value})


def test_settings_cannot_change_under_a_run():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CacheConfig().threshold = 0.5


def test_negative_number_of_steps():
    with pytest.raises(ValueError, match="total_steps"):
        CacheController(CacheConfig(), total_steps=-1)
