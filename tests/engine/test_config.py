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
