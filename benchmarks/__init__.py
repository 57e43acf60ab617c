"""What is measured, never asserted. Numbers are kept in BENCHMARKS.md."""
