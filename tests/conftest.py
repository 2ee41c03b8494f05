"""What every test runs under: no model hub, no screen, and property tests with no time limit."""

import os

import hypothesis

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

hypothesis.settings.register_profile("bipe", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("bipe")
