"""Measuring trained models; each task returns `Score`s."""
