"""The entry points that Flower loads; everything else is in the installed package."""

import strategies
from fl_vitlora.deployment import make_node_app, make_server_app

client_app = make_node_app(strategies.load)
server_app = make_server_app(strategies.load)

__all__ = ["client_app", "server_app"]
