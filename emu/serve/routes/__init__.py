"""The routes of the HTTP API; each module has a function `router` that makes them for one server."""
