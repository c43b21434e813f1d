"""Measure the tiny models: tables and pictures of the documentation."""
