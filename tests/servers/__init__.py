"""Real local servers for tests: `web.WebServer` sends what its handlers choose; those in `misbehaviour` misbehave."""
