"""The entry points that Flower loads; everything else is in the installed package."""

import strategies
from fl_vitlora.experiment.deployment import make_node_app, make_server_app

client_app = make_node_app(strategies.load_for)
server_app = make_server_app(strategies.load_for)

__all__ = ["client_app", "server_app"]
