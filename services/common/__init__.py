"""What all services share: settings, server, statuses, channels, FLOPs."""

import os

# grpc's own lines on standard error repeat what our errors say.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from prometheus_client import disable_created_metrics

# A second series for each counter, of no use to anybody here.
disable_created_metrics()
