"""Tests of linear mixed models."""
