from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from datamodules.conditions import fulfilled
from datamodules.data_config import DataConfigError

TABLE = pd.DataFrame(
    {"genre": ["Rock", "Jazz", ""], "bandwidth_hz": [16000.0, 21000.0, None], "name": ["live/a", "studio/b", "live/c"]}
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bandwidth_hz > 18000", [False, True, False]),
        ("not bandwidth_hz > 18000", [True, False, True]),
        ("genre == 'Rock' or genre == 'Jazz'", [True, True, False]),
        ("(genre != 'Rock') & (bandwidth_hz / 1000 >= 21)", [False, True, False]),
        ("genre in ['Rock', 'Pop']", [True, False, False]),
        ("15000 < bandwidth_hz < 17000", [True, False, False]),
        ("name.str.startswith('live/')", [True, False, True]),
        ("name.str.contains('stud') and bandwidth_hz > -1", [False, True, False]),
    ],
)
def test_columns_are_compared(text: str, expected: list[bool]) -> None:
    assert fulfilled(TABLE, text, "data.keep").tolist() == expected


@pytest.mark.parametrize(
    "text",
    [
        "@pandas.io.common.os.system('touch {file}') == 0",
        "name.to_csv('{file}') == 0",
        "name.str.cat(['{file}']) == ''",
        "__import__('os').system('touch {file}') == 0",
        "name.apply(print) == 0",
        "(lambda: 1)() == 1",
        "[x for x in name] == 1",
        "name.str.startswith(name.to_csv('{file}'))",
        "genre = 'Rock'",
        "bandwidth_hz > 1; genre",
        "bandwith_hz > 1",
        "bandwidth_hz + 1",
        "",
        "(" * 500,
    ],
)
def test_what_is_more_than_a_comparison_is_refused_and_does_nothing(text: str, tmp_path: Path) -> None:
    file = tmp_path / "made"
    with pytest.raises(DataConfigError, match=r"^data\.keep: .* is no condition on the columns of a manifest"):
        fulfilled(TABLE, text.replace("{file}", str(file)), "data.keep")
    assert not file.exists()
