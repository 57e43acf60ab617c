from __future__ import annotations

import re
from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

from datamodules.data_config import DataConfig, DataConfigError


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("root", ""),
        ("crop_seconds", 0.0),
        ("crop_seconds", float("nan")),
        ("batch_size", 0),
        ("batch_size", True),
        ("batch_size", 2.5),
        ("seed", -1),
        ("num_workers", -1),
        ("split", "random"),
        ("held_out_seconds", -1.0),
        ("held_out_fraction", 1.0),
        ("gap_seconds", -0.1),
        ("validation_crops", -1),
        ("evaluation_segment_seconds", 0),
        ("cache_audio", "yes"),
        ("gain_db_range", (3.0, -3.0)),
        ("gain_db_range", (1.0,)),
        ("swap_channels_probability", 1.5),
        ("silence_threshold_db", float("-inf")),
        ("silence_redraws", -1),
    ],
)
def test_a_value_that_is_not_allowed_is_quoted_with_its_key(key: str, value: Any) -> None:
    with pytest.raises(DataConfigError, match=re.escape(f"data.{key}={value!r} is not allowed; type data.{key}=")):
        DataConfig(**{key: value})


def test_it_is_an_omegaconf_schema() -> None:
    schema = OmegaConf.structured({"data": DataConfig})
    overrides = ["data.root=/music", "data.gain_db_range=[-6,0]", "data.cache_audio=false", "data.batch_size=4"]
    merged = OmegaConf.merge(schema, OmegaConf.from_dotlist(overrides))
    config = OmegaConf.to_object(merged)["data"]
    assert config == DataConfig(root="/music", gain_db_range=(-6.0, 0.0), cache_audio=False, batch_size=4)
    assert isinstance(config.gain_db_range, tuple)
    assert OmegaConf.to_object(schema)["data"] == DataConfig()
    with pytest.raises(ConfigKeyError, match="batch_sizes"):
        OmegaConf.merge(schema, OmegaConf.from_dotlist(["data.batch_sizes=4"]))
