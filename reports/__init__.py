"""Metrics, evaluation of codecs, statistics, tables, figures and pages."""
