"""What the page says about its metrics and statistics: one line each."""

METRIC_DEFINITIONS = {
    "visqol_lr": "ViSQOL in audio mode on the left and the right channel, averaged. The headline: a down-mix would "
    "forgive mono collapse.",
    "visqol_m": "ViSQOL on (L+R)/2, for comparison with papers.",
    "visqol_s": "ViSQOL on (L−R)/2, where that is louder than −60 dBFS RMS.",
    "mel_distance": "As DAC reports it: windows of 2048 and 512 samples with 150 and 80 mel bands, mean absolute "
    "difference of log power plus that of magnitude, summed over both.",
    "stft_distance": "The same without the mel bands.",
    "si_sdr": "Scale-invariant signal-to-distortion ratio, both channels taken as one signal, means removed.",
    "sdr_m": "10 log10 of signal over error energy of the mid signal.",
    "sdr_s": "The same of the side signal.",
    "ild_error": "Mean absolute difference of the inter-channel level differences in 24 ERB bands, 100 Hz to 16 kHz.",
    "ipd_error": "Mean absolute difference of the inter-channel phase differences below 1.5 kHz, weighted by the "
    "reference's coherence. With IC, primary for fusion and split points.",
    "ic_error": "Mean absolute difference of the inter-channel coherence in the same bands.",
    "width_error": "Absolute difference of 10 log10 of side over mid energy.",
    "phase_consistency": "Real part of the cross-spectra of reference and decoded channels, summed, over the summed "
    "product of their magnitudes; 1 is in phase, 0 random.",
    "log_spectral_distance": "Difference of the spectra in dB, floored at −80 dB below the peak: root mean square over "
    "frequency, then the mean over frames and channels.",
    "clipped_samples": "Decoded samples beyond full scale.",
}

STATISTICS = (
    "Segments are averaged to tracks, and the track is the unit of every statistic: segments of one track resemble "
    "each other, and resampling them would claim more certainty than there is.",
    "Intervals are 95 % bias-corrected and accelerated bootstrap intervals (BCa) over tracks; of paired per-track "
    "differences where systems are compared.",
    "p values are two-sided Wilcoxon signed-rank, Holm-corrected within the table they stand in.",
    "Seeds are shown one by one, as mean and standard deviation; they are never pooled as if they were further tracks.",
    "“–” is not applicable; “n/a (reason)” is a value that was refused. Nothing missing is counted as zero.",
    "ViSQOL numbers of different papers are not comparable: compare only rows with the same protocol hash.",
)
