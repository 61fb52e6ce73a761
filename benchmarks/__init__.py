"""What the suite is measured by. Run each as `python -m benchmarks.NAME`; see the Makefile."""
