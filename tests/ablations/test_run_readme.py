from __future__ import annotations

from typing import Any

import pytest

from ablations.compose import load_experiment
from ablations.run_readme import readme

FACTS = {
    "command": "spectrostream train config=tiny 'out=my runs/one'",
    "git_revision": "0123456789",
    "versions": {"python": "3.11", "torch": "2.13"},
    "data": "demo corpus: 6 tracks",
    "data_fingerprint": "f" * 64,
}


def page(*words: str, **facts: Any) -> str:
    return readme("one", load_experiment("tiny", words), {**FACTS, **facts})


def test_the_readme_names_command_versions_and_corpus() -> None:
    text = page()
    assert text.startswith("# one\n")
    assert "\n    spectrostream train config=tiny 'out=my runs/one'\n" in text
    for words in (
        "git revision 0123456789",
        "python 3.11, torch 2.13",
        "demo corpus: 6 tracks, fingerprint ffffffffffff\n",
    ):
        assert words in text
    assert "git revision unknown" in page(git_revision="")


@pytest.mark.parametrize(
    ("word", "file"),
    [
        ("trainer.tensorboard=true", "tensorboard/"),
        ("trainer.wandb=offline", "wandb/, wandb-id.txt"),
        ("trainer.samples_every=5", "samples/step-00000000/"),
    ],
)
def test_the_readme_lists_the_files_of_this_configuration(word: str, file: str) -> None:
    assert f"| `{file}` |" in page(word)
    assert f"| `{file}` |" not in page()
    assert "| `checkpoints/` |" in page()
