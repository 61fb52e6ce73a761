"""What all services share: settings, server, statuses, channels, FLOPs."""

import os

# grpc's own lines on standard error repeat what our errors say.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
