"""Tests of generalised linear mixed models."""
