"""Chooses ranks and policies under a memory budget, and predicts what a training step takes."""

from wasi.planning.planner import InfeasibleError, plan

__all__ = ["InfeasibleError", "plan"]
