from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.corpora.manifest import typed
from datamodules.corpora.row_filter import fulfilled
from datamodules.data_config import DataConfigError

TABLE = pd.DataFrame(
    {"genre": ["Rock", "Jazz", ""], "bandwidth_hz": [16000.0, 21000.0, None], "name": ["live/a", "studio/b", "live/c"]}
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bandwidth_hz > 18000", [False, True, False]),
        ("not bandwidth_hz > 18000", [True, False, False]),
        ("genre == 'Rock' or genre == 'Jazz'", [True, True, False]),
        ("(genre != 'Rock') & (bandwidth_hz / 1000 >= 21)", [False, True, False]),
        ("genre in ['Rock', 'Pop']", [True, False, False]),
        ("15000 < bandwidth_hz < 17000", [True, False, False]),
        ("name.str.startswith('live/')", [True, False, True]),
        ("name.str.contains('stud') and bandwidth_hz > -1", [False, True, False]),
        # & and | bind less than a comparison.
        ("bandwidth_hz > 18000 & genre == 'Jazz' | genre == 'Rock'", [True, True, False]),
        ("genre == ''", [False, False, True]),
        ("genre != 'Rock'", [False, True, True]),
        ("genre not in ['Rock', 'Pop']", [False, True, True]),
    ],
)
def test_columns_are_compared(text: str, expected: list[bool]) -> None:
    assert fulfilled(TABLE, text, "data.keep").tolist() == expected


UNKNOWN = typed(
    pd.DataFrame(
        {
            "name": ["a", "b", "c"],
            "bandwidth_hz": [20000.0, None, 15000.0],
            "frames": [1, None, 3],
            "side_to_mid_db": [-np.inf, None, 0.0],
            "is_live": [True, None, False],
            "mood": ["happy", None, "sad"],
        }
    )
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bandwidth_hz > 18000", [True, False, False]),
        ("bandwidth_hz != 20000", [False, False, True]),
        ("not bandwidth_hz > 18000", [False, False, True]),
        ("~(bandwidth_hz > 18000)", [False, False, True]),
        ("not not bandwidth_hz > 18000", [True, False, False]),
        ("not (bandwidth_hz > 18000 and frames == 1)", [False, False, True]),
        ("bandwidth_hz > 18000 or name == 'b'", [True, True, False]),
        ("not (bandwidth_hz > 18000 and name == 'a')", [False, True, True]),
        ("bandwidth_hz in [20000, 1]", [True, False, False]),
        ("bandwidth_hz not in [20000, 1]", [False, False, True]),
        ("not bandwidth_hz in [20000, 1]", [False, False, True]),
        ("not 10000 < bandwidth_hz < 18000", [True, False, False]),
        ("bandwidth_hz / frames != 5", [True, False, True]),
        ("not frames > 1", [True, False, False]),
        ("frames not in [1]", [False, False, True]),
        ("side_to_mid_db < -40", [True, False, False]),
        ("not side_to_mid_db < -40", [False, False, True]),
        ("is_live", [True, False, False]),
        ("not is_live", [False, False, True]),
        ("mood == ''", [False, True, False]),
        ("mood != 'happy'", [False, True, True]),
        ("mood not in ['happy']", [False, True, True]),
        ("not mood.str.startswith('h')", [False, True, True]),
        ("loudness_lufs != 0 or not loudness_lufs < 0", [False, False, False]),
    ],
)
def test_what_is_empty_fulfils_nothing_that_it_would_have_to_be_known_for(text: str, expected: list[bool]) -> None:
    assert fulfilled(UNKNOWN, text, "data.keep").tolist() == expected


NUMBERS = st.lists(st.one_of(st.none(), st.sampled_from([-np.inf, 0.0, 1.0, 2.0])), min_size=1, max_size=6)
COMPARISONS = st.builds(
    "bandwidth_hz {} {}".format, st.sampled_from(["<", "<=", "==", "!=", ">=", ">"]), st.integers(0, 2)
)
CONDITIONS = st.recursive(
    st.one_of(COMPARISONS, st.sampled_from(["bandwidth_hz in [0, 1]", "bandwidth_hz not in [0, 2]"])),
    lambda inner: st.one_of(
        st.builds("not ({})".format, inner),
        st.builds("~({})".format, inner),
        st.builds("({}) {} ({})".format, inner, st.sampled_from(["and", "or", "&", "|"]), inner),
    ),
    max_leaves=5,
)


@given(NUMBERS, CONDITIONS)
def test_a_condition_holds_for_what_is_known_as_in_python_and_never_for_what_is_not(
    numbers: list[float | None], text: str
) -> None:
    rows = pd.DataFrame({"bandwidth_hz": pd.Series(numbers, dtype="float64")})
    python = text.replace("~", "not ")
    expected = [number is not None and bool(eval(python, {"bandwidth_hz": number})) for number in numbers]
    assert fulfilled(rows, text, "data.keep").tolist() == expected


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
        "genre == 'a' * 300000000",
        "genre == ('a' + name) + 'b'",
        "genre in ['a'] * 300000000",
        "genre == b'a' * 300000000",
        "genre * 300000000 == ''",
        "bandwidth_hz > 2 * (bandwidth_hz + 'a')",
        "1 < bandwidth_hz in [2]",
        "(1 < 2) in [True]",
        "'Rock' in genre",
        "genre in 'Rock'",
        "'a' not in ['a']",
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
