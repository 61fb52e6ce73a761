"""Where torch is not installed, which is everywhere but where models are trained, its tests are not there."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else ["test_torch.py", "test_prm_torch.py"]
