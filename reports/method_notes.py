"""The page's notes on its statistics, one line each."""

STATISTICS = (
    "Segments are averaged to tracks, and the track is the unit of every statistic. Segments of one track are not "
    "independent, so resampling them would give intervals that are too narrow.",
    "Intervals are 95 % bias-corrected and accelerated bootstrap intervals (BCa) over tracks. Where systems are "
    "compared, they are intervals of the paired per-track differences.",
    "p values come from the two-sided Wilcoxon signed-rank test, with Holm's correction over their table.",
    "Seeds are shown one by one, and as mean and standard deviation; they never count as further tracks.",
    "“–” means not applicable; “n/a (reason)” means that the score is missing. A missing score never counts as zero.",
    "ViSQOL scores of different papers are not comparable: compare only rows with the same protocol hash.",
)
