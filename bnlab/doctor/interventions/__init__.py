"""Interventions: what causes would undo is undone on held-back images, and graded by what that brings back."""
