"""The only room that knows Flower and Ray.

Both send usage statistics home unless told not to; a privacy tool phones nobody, so this is said
here, before either is imported.
"""

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # what Ray will do by itself soon
