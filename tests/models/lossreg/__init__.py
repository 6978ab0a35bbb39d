"""Tests of regression by any loss."""
