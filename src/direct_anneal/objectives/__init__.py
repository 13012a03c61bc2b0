"""Objectives: from features to a selection problem."""
