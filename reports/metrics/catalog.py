"""All metrics, one entry each: how a metric is computed, how it is written, and what the page says about it.

To add a metric, write a function that takes the reference and the estimate, and add its entry to `METRICS`. Records,
tables, figures and the page read this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from reports.metrics import spectral, stereo, visqol
from reports.metrics.score import Score

# Raise this with every change of the code that changes a score: scores before and after are not comparable.
METRICS_VERSION = 1

SETTINGS: dict[str, Any] = {
    "code": METRICS_VERSION,
    "spectral": spectral.SETTINGS,
    "stereo": stereo.SETTINGS,
    "visqol": visqol.SETTINGS,
}
"""What the evaluation protocol says about the metrics: the version of the code, and the settings of each module."""

PairFunction = Callable[[Tensor, Tensor], Any]
"""(reference, estimate), both `[2, samples]` at 48 kHz -> a `Score`, or a named tuple of `Score`s."""


@dataclass(frozen=True, kw_only=True)
class MetricInfo:
    """One metric: its function and its words."""

    title: str
    """The name in tables and figures."""
    unit: str = ""
    """The unit of the value; "" if it has none."""
    higher_is_better: bool
    """The direction of better."""
    decimals: int
    """Decimals that tables show."""
    headline: bool = False
    """True if the main tables show the metric; the table of all metrics shows it in any case."""
    function: PairFunction | None
    """Computes the score. Entries that name the same function share one call. None: ViSQOL's processes compute it."""
    part: str = ""
    """The field of the function's result that holds this score; "" if the result is the score itself."""
    definition: str
    """What the page says about the metric."""

    @property
    def label(self) -> str:
        """Title and unit: `IPD error (rad)`."""
        return f"{self.title} ({self.unit})" if self.unit and self.unit != "MOS-LQO" else self.title

    @property
    def heading(self) -> str:
        """Title, unit and direction of better: `IPD error (rad) ↓`."""
        return f"{self.label} {'↑' if self.higher_is_better else '↓'}"

    def score(self, result: Any) -> Score:
        """This metric's score.

        Args:
            result: What `function` returned, or `StereoVisqol` for an entry without a function.

        Returns:
            The score that `part` names.
        """
        return getattr(result, self.part) if self.part else result


METRICS: dict[str, MetricInfo] = {
    "visqol_lr": MetricInfo(
        title="ViSQOL-LR",
        unit="MOS-LQO",
        higher_is_better=True,
        decimals=2,
        headline=True,
        function=None,
        part="lr",
        definition="Mean of ViSQOL (audio mode) on the left and on the right channel. This is the headline score, "
        "because ViSQOL on a down-mix does not notice a collapse to mono.",
    ),
    "visqol_m": MetricInfo(
        title="ViSQOL-M",
        unit="MOS-LQO",
        higher_is_better=True,
        decimals=2,
        function=None,
        part="m",
        definition="ViSQOL on the mid signal (L+R)/2, for comparison with papers.",
    ),
    "visqol_s": MetricInfo(
        title="ViSQOL-S",
        unit="MOS-LQO",
        higher_is_better=True,
        decimals=2,
        function=None,
        part="s",
        definition="ViSQOL on the side signal (L−R)/2, where that is louder than −60 dBFS RMS.",
    ),
    "mel_distance": MetricInfo(
        title="Mel distance",
        higher_is_better=False,
        decimals=2,
        headline=True,
        function=spectral.spectral_distances,
        part="mel",
        definition="As DAC reports it: windows of 2048 and 512 samples with 150 and 80 mel bands, mean absolute "
        "difference of log power plus that of magnitude, summed over both windows.",
    ),
    "stft_distance": MetricInfo(
        title="STFT distance",
        higher_is_better=False,
        decimals=2,
        headline=True,
        function=spectral.spectral_distances,
        part="stft",
        definition="The mel distance without the mel bands.",
    ),
    "si_sdr": MetricInfo(
        title="SI-SDR",
        unit="dB",
        higher_is_better=True,
        decimals=1,
        headline=True,
        function=spectral.si_sdr,
        definition="Scale-invariant signal-to-distortion ratio, both channels taken as one signal, means removed.",
    ),
    "sdr_m": MetricInfo(
        title="SDR-M",
        unit="dB",
        higher_is_better=True,
        decimals=1,
        function=stereo.sdr_mid,
        definition="10 log10 of signal energy over error energy, of the mid signal.",
    ),
    "sdr_s": MetricInfo(
        title="SDR-S",
        unit="dB",
        higher_is_better=True,
        decimals=1,
        function=stereo.sdr_side,
        definition="10 log10 of signal energy over error energy, of the side signal.",
    ),
    "ild_error": MetricInfo(
        title="ILD error",
        unit="dB",
        higher_is_better=False,
        decimals=1,
        function=stereo.cue_errors,
        part="ild",
        definition="Mean absolute difference of the inter-channel level differences in 24 ERB bands, 100 Hz to 16 kHz.",
    ),
    "ipd_error": MetricInfo(
        title="IPD error",
        unit="rad",
        higher_is_better=False,
        decimals=2,
        headline=True,
        function=stereo.cue_errors,
        part="ipd",
        definition="Mean absolute difference of the inter-channel phase differences below 1.5 kHz, weighted by the "
        "reference's coherence. With the IC error, the main metric for fusion and split points.",
    ),
    "ic_error": MetricInfo(
        title="IC error",
        higher_is_better=False,
        decimals=2,
        headline=True,
        function=stereo.cue_errors,
        part="ic",
        definition="Mean absolute difference of the inter-channel coherence in 24 ERB bands, 100 Hz to 16 kHz.",
    ),
    "width_error": MetricInfo(
        title="Width error",
        unit="dB",
        higher_is_better=False,
        decimals=1,
        function=stereo.width_error,
        definition="Absolute difference of the stereo widths; the width is 10 log10 of side energy over mid energy.",
    ),
    "phase_consistency": MetricInfo(
        title="Phase consistency",
        higher_is_better=True,
        decimals=2,
        function=stereo.phase_consistency,
        definition="Real part of the cross-spectra of reference and decoded channels, summed, over the summed product "
        "of their magnitudes; 1 is in phase, 0 random.",
    ),
    "log_spectral_distance": MetricInfo(
        title="Log-spectral distance",
        unit="dB",
        higher_is_better=False,
        decimals=1,
        function=spectral.log_spectral_distance,
        definition="Difference of the spectra in dB, floored at −80 dB below the peak: root mean square over "
        "frequency, then the mean over frames and channels.",
    ),
    "clipped_samples": MetricInfo(
        title="Clipped samples",
        higher_is_better=False,
        decimals=0,
        function=spectral.clipped_samples,
        definition="Number of decoded samples beyond full scale.",
    ),
}


def score_pair(reference: Tensor, estimate: Tensor) -> dict[str, Score]:
    """Compute all metrics but ViSQOL; each function runs once.

    Args:
        reference: `[2, samples]` at 48 kHz.
        estimate: The decoded audio, `[2, samples]`, aligned with the reference.

    Returns:
        Metric name -> score, for every entry of `METRICS` with a function.
    """
    functions = dict.fromkeys(info.function for info in METRICS.values() if info.function)
    results = {function: function(reference, estimate) for function in functions}
    return {name: info.score(results[info.function]) for name, info in METRICS.items() if info.function}


def visqol_scores(result: visqol.StereoVisqol) -> dict[str, Score]:
    """Metric name -> score, for every entry of `METRICS` that ViSQOL's processes compute."""
    return {name: info.score(result) for name, info in METRICS.items() if info.function is None}
