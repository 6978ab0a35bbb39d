"""Tests of trajectory models."""
