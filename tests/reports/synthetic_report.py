"""A small study with known answers: 6 tracks, 8 systems, 3 rates, one failure, one metric with missing values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from reports.page.build import ReportInput
from reports.records import COLUMNS, SystemCard

SAMPLE_RATE = 48000
TRACKS = ("Brass & Co.", "Night <live>", "Étude", "100 % dub", "low_end", "Ágnes's reel")
LEVELS = (4, 8, 16)
DAC_LEVELS = (1, 2, 3)
TYPICAL = {
    "visqol_lr": 2.6,
    "visqol_s": 2.1,
    "mel_distance": 1.40,
    "stft_distance": 1.95,
    "si_sdr": 2.0,
    "sdr_m": 3.1,
    "sdr_s": 1.2,
    "ild_error": 2.0,
    "ipd_error": 0.42,
    "ic_error": 0.15,
}
GROWTH = {"visqol_lr": 0.3, "visqol_s": 0.25, "si_sdr": 1.5, "sdr_m": 1.5, "sdr_s": 1.3}
BETTER = {name: 1 if name in GROWTH else -1 for name in TYPICAL}

# system -> how much better than the baseline, in units of one rate step
QUALITY = {
    "base": 0.0,
    "base-seed-2": 0.05,
    "fusion-0": -0.9,
    "fusion-3": -0.3,
    "split-3": -0.4,
    "waveform": -1.2,
    "dac": -0.6,
    "base@step0": -6.0,
    "base@zero-codes": -5.0,
}
BASELINE = "base"


def cards() -> tuple[SystemCard, ...]:
    rest: dict[str, tuple[str, str, str, dict[str, str]]] = {
        "base": ("STFT <6/6>", "baseline", "", {}),
        "base-seed-2": ("STFT <6/6>, seed 2", "variant", "second seed", {"seed": "2"}),
        "fusion-0": ("Fusion 0", "variant", "channels fused at once", {"model.fusion": "0"}),
        "fusion-3": ("Fusion 3", "variant", "channels fused before block 3", {"model.fusion": "3"}),
        "fusion-7": ("Fusion 7", "variant", "channels fused last & split first", {"model.fusion": "7"}),
        "split-3": ("Split 3", "variant", "channels split after block 3", {"model.split": "3"}),
        "waveform": ("Waveform_front-end", "variant", "waveform front-end, 50 % fewer bands", {"frontend": "waveform"}),
        "dac": ("DAC", "peer", "", {}),
        "base@step0": ("untrained", "check", "", {}),
        "base@zero-codes": ("zero codes", "check", "", {}),
    }
    return tuple(_card(name, *words) for name, words in rest.items())


def _card(name: str, title: str, role: str, change: str, changes: dict[str, str]) -> SystemCard:
    failed = name == "fusion-7"
    return SystemCard(
        name=name,
        title=title,
        role=role,
        change=change,
        changes=changes,
        axis="fusion" if "fusion" in name else "",
        signature=name.ljust(8, "0")[:8],
        parameters=None if failed else 4_936_450 + 10_000 * len(name),
        codebook_parameters=262_144,
        macs_per_second=5.97e9,
        encode_real_time_factor=0.081,
        decode_real_time_factor=0.214,
        threads=2,
        latency_ms=80.0 if role != "peer" else None,
        is_causal=role != "peer",
        sample_rate=48000 if role != "peer" else 44100,
        steps=None if failed else 0 if name.endswith("step0") else 12000,
        training_seconds=None if failed else 2520.0,
        audio_seconds_seen=None if failed else 61440.0,
        seed=2 if name.endswith("2") else 1,
        status="failed" if failed else "finished",
        status_reason="out of memory at step 1200 & 50 % of <budget>" if failed else "",
        versions={"torch": "2.13.0", "visqol-python": "3.8.1"},
        data_fingerprint="5f1c9a2e",
        protocol_hash="9d41ce07ab12",
        git_revision="9657cbb",
    )


def records() -> pd.DataFrame:
    random = np.random.default_rng(7)
    taste = {(track, metric): random.normal(0, 0.5) for track in TRACKS for metric in TYPICAL}
    rows = []
    for system, quality in QUALITY.items():
        for step, levels in enumerate(DAC_LEVELS if system == "dac" else LEVELS):
            kbps = levels * (1.7227 if system == "dac" else 0.4)
            for track in TRACKS:
                for metric, typical in TYPICAL.items():
                    growth = GROWTH.get(metric, 0.15 * typical)
                    gain = growth * (step + quality + 0.4 * taste[track, metric] + random.normal(0, 0.12))
                    value, reason = max(typical + BETTER[metric] * gain, -20.0), ""
                    if metric == "visqol_s" and track == "low_end":
                        value, reason = np.nan, "side below -60 dBFS"
                    if metric == "sdr_s" and system == "waveform":
                        value, reason = np.nan, "silent side & <mono>"
                    rows.append((system, levels, kbps, track, f"{track} 0-10 s", metric, value, reason))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def curves() -> dict[str, pd.DataFrame]:
    random, found = np.random.default_rng(3), {}
    for system in ("base", "base-seed-2", "fusion-0", "fusion-3", "fusion-7", "split-3", "waveform", "dac"):
        last = 1200 if system == "fusion-7" else 12000
        steps = np.arange(10, last + 1, 20)
        floor = 1.0 - 0.15 * QUALITY.get(system, 0)
        parts = {
            "train/mel_loss": floor + 3 * np.exp(-steps / 1500) + random.normal(0, 0.12, steps.size),
            "train/discriminator_loss": 1.6 + 0.3 * np.exp(-steps / 3000) + random.normal(0, 0.15, steps.size),
            "train/commitment_loss": 0.2
            + 0.1 * floor * (1 - np.exp(-steps / 900))
            + random.normal(0, 0.02, steps.size),
        }
        frames = [pd.DataFrame({"step": steps, "name": name, "value": values}) for name, values in parts.items()]
        rare = np.arange(500, last + 1, 500)
        held_out = floor + 0.2 + 2.5 * np.exp(-rare / 1700)
        frames.append(pd.DataFrame({"step": rare, "name": "validation/mel_loss", "value": held_out}))
        found[system] = pd.concat(frames, ignore_index=True)
    return found


def axes() -> dict[str, list[tuple[str, float | str]]]:
    return {
        "Fusion point": [("fusion-0", 0), ("fusion-3", 3), ("base", 6), ("base-seed-2", 6), ("fusion-7", 7)],
        "Split point": [("split-3", 3), ("base", 6), ("base-seed-2", 6)],
        "Front-end": [("base", "complex STFT"), ("base-seed-2", "complex STFT"), ("waveform", "waveform")],
    }


def audio(folder: Path, seconds: float = 1.5) -> tuple[dict[str, Path], dict[tuple[str, int, str], Path]]:
    """Two segments of stereo chords with noise; "decoded" is the reference with noise and less treble."""
    random = np.random.default_rng(11)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    reference, decoded = {}, {}
    for index, segment in enumerate(("Brass & Co. 0-10 s", "Night <live> 0-10 s")):
        notes = [220 * 2 ** (step / 12) for step in (0, 4, 7, 12 + index)]
        chord = sum(
            np.sin(2 * np.pi * note * harmonic * time) / harmonic for note in notes for harmonic in range(1, 30)
        )
        noise = random.normal(0, 0.3, (2, time.size)) * np.exp(-8 * (time % 0.5))
        sound = 0.04 * (np.stack([chord, np.roll(chord, 20)]) + noise)
        reference[segment] = folder / f"reference-{index}.flac"
        soundfile.write(reference[segment], sound.T, SAMPLE_RATE)
        for system, levels in (("base", 4), ("base", 8), ("dac", 2)):
            path = folder / f"{system}-{levels}-{index}.flac"
            spread = 0.01 if system == "base" else 0.03
            soundfile.write(path, (sound + random.normal(0, spread / levels, sound.shape)).T, SAMPLE_RATE)
            decoded[system, levels, segment] = path
    return reference, decoded


def report_input(folder: Path, **changes: object) -> ReportInput:
    reference, decoded = audio(folder)
    given: dict[str, object] = {
        "title": "Where should stereo meet? <fusion & split>",
        "question": "Does fusing the channels later keep the stereo image at 3.2 kbps?",
        "lead": (
            "Every model here was trained for 12 000 steps on two cores: about 0.1 % of the published budget.",
            "Read differences between rows, not absolute quality.",
        ),
        "cards": cards(),
        "records": records(),
        "curves": curves(),
        "reference_audio": reference,
        "decoded_audio": decoded,
        "baseline": BASELINE,
        "peers": ("dac",),
        "ablation_levels": 8,
        "study_facts": {
            "Corpus": "demo corpus, 147 s <six excerpts>",
            "Steps": "12 000 x batch 4 x 1.28 s",
            "Protocol": "9d41ce07ab12",
            "Code": "9657cbb",
            "Versions": "torch 2.13.0, visqol-python 3.8.1",
        },
        "axes": axes(),
    }
    return ReportInput(**{**given, **changes})  # type: ignore[arg-type]
