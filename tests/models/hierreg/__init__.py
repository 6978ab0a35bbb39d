"""Tests of hierarchical regression."""
