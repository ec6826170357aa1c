"""The only package of this project that uses Flower and Ray.

By default, Flower and Ray send usage statistics to their makers. A tool for privacy must not send
them. Therefore this module switches the statistics off before Flower or Ray is imported.
"""

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # Ray announces this as its future default
