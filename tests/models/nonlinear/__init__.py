"""Tests of nonlinear models."""
