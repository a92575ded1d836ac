"""Real local servers for tests: `web.WebServer` does as told, `misbehaviour` tells it to do wrong."""
