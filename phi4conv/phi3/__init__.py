"""From a Phi-3 or Phi-4 checkpoint to the plan of a phi3 file."""

from phi4conv.phi3.planner import ConversionOptions, plan

__all__ = ["ConversionOptions", "plan"]
